//! The programs and the image that tests and the demo run: built by cargo, found here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const RECIPE: &str = "image/appliance.yaml";

/// Paths of the built programs.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// `postern-agent`, release build.
    pub agent: PathBuf,
    /// `postern`, release build.
    pub postern: PathBuf,
}

impl Artifacts {
    /// Builds both programs (nothing to do when they are fresh).
    ///
    /// The whole workspace and one profile, as the tests: the dependencies are then built once.
    ///
    /// # Errors
    ///
    /// Fails with cargo.
    pub fn build() -> Result<Self> {
        if !are_built() {
            cargo(&["build", "--release", "--workspace", "--bins"])?;
        }
        let folder = target_folder().join("release");
        Ok(Self { agent: folder.join("postern-agent"), postern: folder.join("postern") })
    }
}

/// The lab's signing key and the trust blob made from it; the image carries the blob, so both are
/// made once per target folder.
///
/// # Errors
///
/// Shows what `postern bundle keygen` said.
pub fn signer(postern: &Path) -> Result<[PathBuf; 2]> {
    let folder = target_folder().join("lab/signer");
    let files = [folder.join("signer"), folder.join("signer.trust")];
    if !files.iter().all(|file| file.exists()) {
        std::fs::create_dir_all(&folder)?;
        let words = ["bundle", "keygen", "signer"];
        let status = Command::new(postern).args(words).current_dir(&folder).status()?;
        ensure!(status.success(), "postern {}: {status}", words.join(" "));
    }
    Ok(files)
}

/// Builds the image with the lab's trust blob and returns its path.
///
/// As root, the build runs as `nobody`: it needs no privilege and this proves it.
///
/// # Errors
///
/// Shows what `postern build` said.
pub fn image(artifacts: &Artifacts, output: &Path) -> Result<Duration> {
    let init = build_init()?;
    let [_, trust] = signer(&artifacts.postern)?;
    let lock = download(&artifacts.postern, output)?;
    let mut command = as_ordinary_user(&artifacts.postern, output)?;
    command.args(["build", "--recipe", RECIPE, "--lock"]).arg(lock);
    command.arg("--agent").arg(&artifacts.agent).arg("--init").arg(init);
    command.arg("--trust").arg(trust).arg("-o").arg(output).current_dir(repository());
    let start = std::time::Instant::now();
    let status = command.status()?;
    ensure!(status.success(), "postern build: {status}");
    Ok(start.elapsed())
}

/// Downloads what the committed lock names and returns its path. When the mirror no longer has all
/// of it, a lock made of what it has now, beside `output`.
fn download(postern: &Path, output: &Path) -> Result<PathBuf> {
    let mut command = as_ordinary_user(postern, output)?;
    let status = command.args(["lock", "--recipe", RECIPE]).current_dir(repository()).status()?;
    if status.success() {
        return Ok(repository().join("image/appliance.lock"));
    }
    let lock = output.with_file_name("appliance.lock");
    println!("Locking anew, into {}; the committed lock stays as it is.", lock.display());
    let mut command = as_ordinary_user(postern, output)?;
    command.args(["lock", "--update", "--recipe", RECIPE, "-o"]).arg(&lock);
    let status = command.current_dir(repository()).status()?;
    ensure!(status.success(), "postern lock --update: {status}");
    Ok(lock)
}

/// Builds the initrd's static init and returns its path.
///
/// # Errors
///
/// Fails with cargo.
pub fn build_init() -> Result<PathBuf> {
    let target = "x86_64-unknown-linux-gnu";
    let flags = ["--", "-C", "target-feature=+crt-static", "-C", "relocation-model=static"];
    let mut words = vec!["rustc", "--profile", "init", "-p", "postern-init", "--target", target];
    words.extend(flags);
    if !are_built() {
        cargo(&words)?;
    }
    Ok(target_folder().join(target).join("init/postern-init"))
}

/// Whether whoever started this process has built everything already; the tests run as root, and
/// must not leave root's files in a user's target folder.
fn are_built() -> bool {
    std::env::var_os("POSTERN_BUILT").is_some()
}

/// Where the lab's image is.
#[must_use]
pub fn image_path() -> PathBuf {
    target_folder().join("lab/image/postern.img")
}

/// The repository's top folder.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("ci/ lies in the repository")
}

/// Where cargo builds.
#[must_use]
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository().join("target"), |folder| repository().join(folder))
}

/// Runs cargo in the repository with the lock file as it is.
///
/// # Errors
///
/// Says which call failed.
pub fn cargo(words: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (verb, rest) = words.split_first().context("a verb")?;
    let status = Command::new(program)
        .arg(verb)
        .arg("--locked")
        .args(rest)
        .current_dir(repository())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo {}: {status}", words.join(" "));
    Ok(())
}

/// Where downloads are kept between runs; `POSTERN_STORE` for `postern` points there.
fn store() -> PathBuf {
    if let Some(folder) = std::env::var_os("POSTERN_STORE") {
        return folder.into();
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/cache/postern/store");
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.map_or_else(|| target_folder().join("store"), |cache| cache.join("postern/store"))
}

/// `program` as a user without privileges when this process is root and such a user can read the
/// repository; the store and the folder of `output` become that user's.
fn as_ordinary_user(program: &Path, output: &Path) -> Result<Command> {
    let nobody = 65534;
    let drop = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--"];
    let store = store();
    let folder = output.parent().context("a folder for the image")?;
    std::fs::create_dir_all(folder)?;
    std::fs::create_dir_all(&store)?;
    let readable = |path: &Path| {
        let check = Command::new("setpriv").args(drop).arg("test").arg("-r").arg(path).status();
        check.is_ok_and(|status| status.success())
    };
    let root = nix::unistd::geteuid().is_root();
    let mut command = if root && readable(&repository().join("Cargo.lock")) && readable(program) {
        let mut chown = Command::new("chown");
        let status = chown.arg("-R").arg(format!("{nobody}")).arg(folder).arg(&store).status()?;
        ensure!(status.success(), "chown: {status}");
        let mut command = Command::new("setpriv");
        command.args(drop).arg(program);
        command
    } else {
        if root {
            println!("Building the image as root: other users cannot read this folder.");
        }
        Command::new(program)
    };
    command.env("POSTERN_STORE", store);
    Ok(command)
}
