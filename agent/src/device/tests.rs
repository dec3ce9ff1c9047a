//! On image files of a FAT, and on folders that look like sysfs.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use bundle::device_key::DevicePublic;

use super::*;

#[test]
fn a_flashed_pair_is_moved_wiped_and_reported() {
    let place = Place::new();
    let keys = DeviceKeys::generate("edge1").unwrap();
    let text = keys.to_file().unwrap();
    place.put("postern.device", text.as_bytes());

    place.boot().unwrap();

    let (kept, origin) = place.store.load().unwrap().unwrap();
    assert_eq!(kept.seal_text(), keys.seal_text());
    assert_eq!(origin, Origin::Flashed);
    assert_eq!(place.get("postern.device"), None);
    let public: DevicePublic = place.get("device.pub").unwrap().parse().unwrap();
    assert_eq!(public.seal.fingerprint(), keys.public().seal.fingerprint());
    // Deleting alone would leave the key in the volume.
    let volume = fs::read(place.image()).unwrap();
    let secret = keys.seal_text();
    let secret = secret.trim().as_bytes();
    assert!(!volume.windows(secret.len()).any(|window| window == secret));
}

#[test]
fn without_a_flashed_pair_one_is_made_and_its_public_half_left_for_people() {
    let place = Place::new();

    place.boot().unwrap();

    let (keys, origin) = place.store.load().unwrap().unwrap();
    assert_eq!(origin, Origin::Software);
    let text = place.get("device.pub").unwrap();
    assert!(text.starts_with("# identity: software\n"), "{text}");
    let public: DevicePublic = text.parse().unwrap();
    assert_eq!(public.seal.fingerprint(), keys.public().seal.fingerprint());
}

#[test]
fn keys_that_are_there_stay() {
    let place = Place::new();
    place.boot().unwrap();
    let before = place.store.load().unwrap().unwrap().0.seal_text();

    let other = DeviceKeys::generate("other").unwrap().to_file().unwrap();
    place.put("postern.device", other.as_bytes());
    place.boot().unwrap();

    assert_eq!(place.store.load().unwrap().unwrap().0.seal_text(), before);
    assert_eq!(place.get("postern.device"), Some(other));
}

#[test]
fn a_power_cut_before_the_wipe_is_made_good_at_the_next_boot() {
    let place = Place::new();
    let keys = DeviceKeys::generate("edge1").unwrap();
    place.store.save(&keys, Origin::Flashed, "").unwrap();
    place.put("postern.device", keys.to_file().unwrap().as_bytes());

    place.boot().unwrap();

    assert_eq!(place.get("postern.device"), None);
}

#[test]
fn keys_without_an_origin_were_never_finished() {
    let place = Place::new();
    fs::write(place.folder().join("seal"), "half").unwrap();

    place.boot().unwrap();

    assert_eq!(place.store.load().unwrap().unwrap().1, Origin::Software);
}

#[test]
fn damaged_keys_are_not_replaced_in_silence() {
    let place = Place::new();
    place.boot().unwrap();
    fs::write(place.folder().join("seal"), "AGE-SECRET-KEY-1DAMAGED\n").unwrap();

    assert!(place.boot().is_err());
    assert_eq!(fs::read(place.folder().join("seal")).unwrap(), b"AGE-SECRET-KEY-1DAMAGED\n");
}

#[test]
fn a_box_without_a_provision_partition_makes_its_keys() {
    let place = Place::new();

    put_in_place(&place.store, None).unwrap();
    put_in_place(&place.store, Some(place.folder().join("not-there"))).unwrap();

    assert_eq!(place.store.load().unwrap().unwrap().1, Origin::Software);
}

#[test]
fn a_flashed_file_that_is_no_pair_is_left_alone() {
    let place = Place::new();
    place.put("postern.device", b"{}");

    place.boot().unwrap();

    assert_eq!(place.store.load().unwrap().unwrap().1, Origin::Software);
    assert_eq!(place.get("postern.device").as_deref(), Some("{}"));
}

#[test]
fn private_keys_are_readable_by_root_alone() {
    let place = Place::new();
    place.boot().unwrap();
    for (name, mode) in
        [("seal", 0o600), ("identity", 0o600), ("device.pub", 0o644), ("origin", 0o644)]
    {
        let path = place.folder().join(name);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
}

#[test]
fn the_partition_is_found_by_its_name_in_the_gpt() {
    let sys = tempfile::tempdir().unwrap();
    for (name, partition) in [("vda1", "esp"), ("vda5", "provision"), ("vda6", "data")] {
        fs::create_dir(sys.path().join(name)).unwrap();
        let uevent =
            format!("MAJOR=254\nDEVNAME={name}\nDEVTYPE=partition\nPARTNAME={partition}\n");
        fs::write(sys.path().join(name).join("uevent"), uevent).unwrap();
    }

    assert_eq!(provision::find(sys.path(), Path::new("/dev")), Some("/dev/vda5".into()));
    assert_eq!(provision::find(&sys.path().join("vda1"), Path::new("/dev")), None);
}

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("device");
        fs::create_dir(&folder).unwrap();
        let place = Self { store: Store::new(&folder), dir };
        let mut image =
            OpenOptions::new().read(true).write(true).create_new(true).open(place.image()).unwrap();
        image.set_len(16 << 20).unwrap();
        fatfs::format_volume(&mut image, fatfs::FormatVolumeOptions::new()).unwrap();
        place
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("provision.img")
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("device")
    }

    fn boot(&self) -> anyhow::Result<()> {
        put_in_place(&self.store, Some(self.image()))
    }

    fn volume(&self) -> fatfs::FileSystem<File> {
        let file = OpenOptions::new().read(true).write(true).open(self.image()).unwrap();
        fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap()
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        let volume = self.volume();
        let mut file = volume.root_dir().create_file(name).unwrap();
        file.truncate().unwrap();
        file.write_all(bytes).unwrap();
    }

    fn get(&self, name: &str) -> Option<String> {
        let volume = self.volume();
        let mut file = volume.root_dir().open_file(name).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Some(text)
    }
}
