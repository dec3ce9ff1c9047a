//! The verbs one after the other, as a person types them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command as Process;

use bundle::device_key::DeviceKeys;
use bundle::trust::TrustChain;
use clap::Parser as _;

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: super::Command,
}

#[test]
fn a_site_is_signed_and_accepted_and_its_secrets_open_with_the_device_key_alone() {
    let desk = Desk::new();
    desk.bundle("sign site.site.yaml --key ops --trust ops.trust --device edge1=edge1.device.pub")
        .unwrap();

    desk.bundle("verify site.postern --trust ops.trust").unwrap();
    desk.bundle("verify site.postern --trust ops.trust --box edge1").unwrap();
    desk.bundle("show site.postern").unwrap();
    let bytes = fs::read(desk.path("site.postern")).unwrap();
    let trust = TrustChain::anchored(&fs::read(desk.path("ops.trust")).unwrap()).unwrap();
    let bundle = super::sign::accept(&bytes, &trust, "edge1").unwrap();
    let keys = fs::read_to_string(desk.path("edge1.device")).unwrap();
    let secrets = bundle.secrets(DeviceKeys::parse(&keys).unwrap().seal()).unwrap();

    let names: Vec<_> = secrets.keys().map(String::as_str).collect();
    assert_eq!(names, ["admin-password", "edge-key", "turn-password"]);
    assert_eq!(secrets["turn-password"], b"TURN-n0t-for-guests-8812");
    assert!(secrets["admin-password"].starts_with(b"$argon2id$"));
    assert!(secrets["edge-key"].starts_with(b"-----BEGIN PRIVATE KEY-----"));
    for secret in ["TURN-n0t-for-guests-8812", "ADMIN-n0t-for-guests-3351", "PRIVATE KEY"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[test]
fn what_split_writes_is_audited_by_ssh_keygen() {
    let desk = Desk::new();
    desk.sign();
    desk.bundle("split site.postern parts --trust ops.trust").unwrap();
    desk.bundle("split site.postern claimed").unwrap();

    for dir in ["parts", "claimed"] {
        let verify = |payload: &[u8]| {
            fs::write(desk.path("payload"), payload).unwrap();
            let status = Process::new("ssh-keygen")
                .args(["-Y", "verify", "-f", "allowed_signers", "-I", "signer"])
                .args(["-n", "bundle.v1@postern", "-s", "sig.1"])
                .current_dir(desk.path(dir))
                .stdin(fs::File::open(desk.path("payload")).unwrap())
                .status()
                .expect("ssh-keygen is here (package openssh-client)");
            status.success()
        };
        let payload = fs::read(desk.path(dir).join("payload")).unwrap();
        assert!(verify(&payload), "{dir}");
        assert!(!verify(&payload[1..]), "{dir}");
    }
    let age = fs::read(desk.path("parts/secrets.1.age")).unwrap();
    assert!(age.starts_with(b"age-encryption.org/v1\n"));
    let site = fs::read(desk.path("parts/site.yaml")).unwrap();
    assert_eq!(site, fs::read(desk.path("site.site.yaml")).unwrap());
}

#[test]
fn an_existing_ssh_key_signs_too() {
    let desk = Desk::new();
    let made = Process::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-b", "256", "-N", "", "-f", "own"])
        .current_dir(desk.dir.path())
        .status();
    assert!(made.expect("ssh-keygen is here (package openssh-client)").success());
    desk.bundle("keygen own --key own.pub").unwrap();

    desk.bundle("sign site.site.yaml --key own --trust own.trust --device edge1=edge1.device.pub")
        .unwrap();

    desk.bundle("verify site.postern --trust own.trust").unwrap();
    let stranger = desk.bundle("verify site.postern --trust ops.trust").unwrap_err();
    assert!(format!("{stranger:#}").contains("does not know as a signer"), "{stranger:#}");
}

#[test]
fn a_key_that_trust_does_not_know_signs_nothing() {
    let desk = Desk::new();
    desk.bundle("keygen other").unwrap();

    let error = desk
        .bundle("sign site.site.yaml --key other --trust ops.trust --device edge1=edge1.device.pub")
        .unwrap_err();

    assert!(format!("{error:#}").contains("nothing was written"), "{error:#}");
    assert!(!desk.path("site.postern").exists());
}

#[test]
fn sign_says_what_is_missing() {
    let desk = Desk::new();
    let sign = "sign site.site.yaml --key ops --trust ops.trust";

    let no_device = desk.bundle(sign).unwrap_err().to_string();
    let wrong_box =
        desk.bundle(&format!("{sign} --device egde1=edge1.device.pub")).unwrap_err().to_string();
    fs::write(desk.path("site.secrets.yaml"), "admin-password: abc\n").unwrap();
    let no_secret =
        desk.bundle(&format!("{sign} --device edge1=edge1.device.pub")).unwrap_err().to_string();

    assert!(no_device.contains("--device edge1=FILE.device.pub"), "{no_device}");
    assert!(wrong_box.contains("no box egde1, it has edge1"), "{wrong_box}");
    assert!(no_secret.starts_with("no value for edge-key (a certificate's key), turn-"));
}

#[test]
fn a_secret_given_by_file_counts_before_the_file_of_secrets() {
    let desk = Desk::new();
    fs::write(desk.path("pw"), "By-File-And-Not-By-Yaml-77\n").unwrap();
    desk.bundle(
        "sign site.site.yaml --key ops --trust ops.trust --device edge1=edge1.device.pub \
         --secret turn-password=@pw -o other.postern",
    )
    .unwrap();

    let bytes = fs::read(desk.path("other.postern")).unwrap();
    let trust = TrustChain::anchored(&fs::read(desk.path("ops.trust")).unwrap()).unwrap();
    let keys = fs::read_to_string(desk.path("edge1.device")).unwrap();
    let bundle = super::sign::accept(&bytes, &trust, "edge1").unwrap();
    let secrets = bundle.secrets(DeviceKeys::parse(&keys).unwrap().seal()).unwrap();

    assert_eq!(secrets["turn-password"], b"By-File-And-Not-By-Yaml-77");
}

#[test]
fn nothing_is_overwritten_without_force() {
    let desk = Desk::new();
    desk.sign();
    for verb in [
        "keygen ops",
        "keygen --device edge1",
        "sign site.site.yaml --key ops --trust ops.trust --device edge1=edge1.device.pub",
    ] {
        let error = desk.bundle(verb).unwrap_err().to_string();
        assert!(error.contains("--force"), "{verb}: {error}");
        desk.bundle(&format!("{verb} --force")).unwrap();
    }
}

#[test]
fn private_files_are_readable_by_their_owner_alone() {
    let desk = Desk::new();
    for (name, mode) in [
        ("ops", 0o600),
        ("ops.pub", 0o644),
        ("ops.trust", 0o644),
        ("edge1.device", 0o600),
        ("edge1.device.pub", 0o644),
    ] {
        let found = fs::metadata(desk.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
}

/// A folder with keys, a site, its certificate and its secrets.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        desk.bundle("keygen ops").unwrap();
        desk.bundle("keygen --device edge1").unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["guest.example.org".to_owned(), "edge1.example.org".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        fs::create_dir(desk.path("certs")).unwrap();
        fs::write(desk.path("certs/edge.pem"), certificate.pem()).unwrap();
        let indented: String =
            key.serialize_pem().lines().map(|line| format!("  {line}\n")).collect();
        let secrets = format!(
            "admin-password: ADMIN-n0t-for-guests-3351\nturn-password: TURN-n0t-for-guests-8812\n\
             edge-key: |\n{indented}"
        );
        fs::write(desk.path("site.secrets.yaml"), secrets).unwrap();
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(desk.path("site.secrets.yaml"), private).unwrap();
        fs::write(desk.path("site.site.yaml"), SITE).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sign(&self) {
        self.bundle(
            "sign site.site.yaml --key ops --trust ops.trust --device edge1=edge1.device.pub",
        )
        .unwrap();
    }

    /// Runs `postern bundle LINE` with paths below the folder.
    fn bundle(&self, line: &str) -> anyhow::Result<()> {
        let below = |word: &str| self.path(word).to_str().unwrap().to_owned();
        let mut words = vec!["bundle".to_owned()];
        let mut before = "";
        for word in line.split_whitespace() {
            let is_name = before == "--box" || before.is_empty() || word.starts_with('-');
            words.push(match word.split_once("=@").map(|pair| ("=@", pair)) {
                _ if is_name => word.to_owned(),
                Some((sign, (name, path))) => format!("{name}{sign}{}", below(path)),
                None => match word.split_once('=') {
                    Some((name, path)) => format!("{name}={}", below(path)),
                    None => below(word),
                },
            });
            before = word;
        }
        super::run(&Cli::try_parse_from(words)?.command)
    }
}

const SITE: &str = r#"
site: example
serial: 7
confirm: { mode: auto, deadline: 120s, require: [upstream] }
boxes:
  edge1:
    role: edge
    match: { serial-number: "7RQ2X13" }
    host-name: edge1
    domain: example.org
    interfaces:
      lan1:
        match: { mac: "52:54:00:00:01:68" }
        address: [192.0.2.10/25]
      lan2:
        match: { mac: "52:54:00:00:02:61" }
        address: [192.0.2.130/26]
        gateway: 192.0.2.129
        static-nat: 203.0.113.10
    dns:
      servers: [198.51.100.53]
    time: { servers: [198.51.100.123] }
    admin: { interface: lan1, port: 445, user: admin, password: { secret: admin-password } }
certificates:
  edge:
    chain: certs/edge.pem
    key: { secret: edge-key }
turn:
  realm: example.org
  listen: [lan1, lan2]
  port: 3478
  media-ports: 24000-29999
  users: [{ name: turnuser, password: { secret: turn-password } }]
  peers:
    allow: [192.0.2.20/32]
proxy:
  listen: [lan2]
  guests:
    - url: https://guest.example.org
      upstream:
        url: https://bridge.example.org
        addresses: [192.0.2.20]
"#;
