//! A machine of the test's own: network, mounts and host name, with a system bus in it.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

pub(super) const MAC1: &str = "02:00:5e:00:53:11";
pub(super) const MAC2: &str = "02:00:5e:00:53:12";

/// The bus, and what runs beside it; all of it ends with the value.
#[derive(Debug)]
pub(super) struct Bus {
    pub(super) address: String,
    daemons: Mutex<Vec<Daemon>>,
}

/// Runs `test` in namespaces of its own, with two veth pairs (192.0.2.1 and 198.51.100.1 on the
/// near ends) and a system bus that lets everybody own and send everything.
pub(super) fn in_namespace(test: impl AsyncFnOnce(Bus) + Send + 'static) {
    // Before the namespace cuts the network off.
    resolved();
    let run = move || {
        let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        unshare(flags).expect("these tests need root, to make namespaces");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        own_etc();
        ip("link set lo up");
        for (number, mac, address) in [(1, MAC1, "192.0.2.1/24"), (2, MAC2, "198.51.100.1/24")] {
            ip(&format!("link add near{number} address {mac} type veth peer name far{number}"));
            ip(&format!("addr add {address} dev near{number}"));
            ip(&format!("link set near{number} up"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(Bus::start()));
    };
    thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// An /etc that can be written without touching the machine's: the resolver's user, no static
/// host name, and /etc/resolv.conf as resolved wants it (any other is its global configuration).
fn own_etc() {
    for folder in ["/run/etc/upper", "/run/etc/work", "/run/dbus", "/run/systemd/resolve"] {
        fs::create_dir_all(folder).unwrap();
    }
    let options = "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work";
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(options)).unwrap();
    for file in ["/etc/resolv.conf", "/etc/hostname"] {
        drop(fs::remove_file(file));
    }
    symlink("/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf").unwrap();
    let user = "systemd-resolve:x:64991:64991::/:/usr/sbin/nologin\n";
    for (file, line) in [("/etc/passwd", user), ("/etc/group", "systemd-resolve:x:64991:\n")] {
        let others: String = fs::read_to_string(file)
            .unwrap()
            .lines()
            .filter(|line| !line.starts_with("systemd-resolve:"))
            .flat_map(|line| [line, "\n"])
            .collect();
        fs::write(file, others + line).unwrap();
    }
    let owner = Some(64991);
    std::os::unix::fs::chown("/run/systemd/resolve", owner, owner).unwrap();
}

impl Bus {
    fn start() -> Self {
        let socket = Path::new("/run/dbus/system_bus_socket");
        fs::write(
            "/run/dbus/bus.conf",
            "<busconfig><type>system</type><auth>EXTERNAL</auth>
             <listen>unix:path=/run/dbus/system_bus_socket</listen>
             <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>
             </policy></busconfig>",
        )
        .unwrap();
        let mut command = Command::new("dbus-daemon");
        command.args(["--config-file=/run/dbus/bus.conf", "--nofork", "--nopidfile"]);
        let daemon = Daemon::start(command);
        wait_for("dbus-daemon", || socket.exists());
        let address = format!("unix:path={}", socket.display());
        Self { address, daemons: Mutex::new(vec![daemon]) }
    }

    /// Starts systemd-resolved.
    pub(super) fn start_resolved(&self) {
        self.start_service(resolved(), "org.freedesktop.resolve1");
    }

    /// Starts systemd-hostnamed, which the package systemd brings.
    pub(super) fn start_hostnamed(&self) {
        let program = ["/usr/lib/systemd/systemd-hostnamed", "/lib/systemd/systemd-hostnamed"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.exists())
            .expect("systemd-hostnamed is there, from the package systemd");
        self.start_service(program, "org.freedesktop.hostname1");
    }

    fn start_service(&self, program: &Path, name: &str) {
        let mut command = Command::new(program);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        self.daemons.lock().unwrap().push(Daemon::start(command));
        let owned = || {
            let output = Command::new("dbus-send")
                .arg(format!("--bus={}", self.address))
                .args(["--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"])
                .args(["org.freedesktop.DBus.NameHasOwner", &format!("string:{name}")])
                .output()
                .expect("dbus-send is there, from the package dbus");
            String::from_utf8_lossy(&output.stdout).contains("boolean true")
        };
        wait_for(name, owned);
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // The bus itself goes last.
        let daemons = self.daemons.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        while daemons.pop().is_some() {}
    }
}

/// A process that ends with the value.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A name server at the far end of a veth pair: answers every question for an address with
/// one of its own and remembers the names.
#[derive(Debug)]
pub(super) struct NameServer(Arc<Mutex<Vec<String>>>);

impl NameServer {
    pub(super) fn start(pair: u8, address: &'static str, answer: [u8; 4]) -> Self {
        let (sender, receiver) = mpsc::channel();
        let (moved, wait) = mpsc::channel::<()>();
        let names = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&names);
        drop(thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sender.send(gettid()).unwrap();
            wait.recv().unwrap();
            ip("link set lo up");
            ip(&format!("addr add {address}/24 dev far{pair}"));
            ip(&format!("link set far{pair} up"));
            let socket = UdpSocket::bind((address, 53)).unwrap();
            sender.send(gettid()).unwrap();
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let (name, reply) = reply(&buffer[..length], answer);
                record.lock().unwrap().push(name);
                drop(socket.send_to(&reply, from));
            }
        }));
        let thread = receiver.recv().unwrap();
        ip(&format!("link set far{pair} netns {thread}"));
        moved.send(()).unwrap();
        receiver.recv().expect("the name server binds its address");
        Self(names)
    }

    /// The names that it was asked for, in lower case.
    pub(super) fn asked(&self) -> Vec<String> {
        let mut names = self.0.lock().unwrap().clone();
        names.sort();
        names.dedup();
        names
    }
}

/// The name in a question (RFC 1035 section 4.1) and the reply to it.
fn reply(query: &[u8], answer: [u8; 4]) -> (String, Vec<u8>) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += 1 + length;
    }
    let question = &query[12..at + 5];
    let wants_address = question[question.len() - 4..] == [0, 1, 0, 1];
    let mut reply = query[..2].to_vec();
    reply.extend([0x85, 0x80, 0, 1, 0, u8::from(wants_address), 0, 0, 0, 0]);
    reply.extend(question);
    if wants_address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer);
    }
    (labels.join("."), reply)
}

/// systemd-resolved: the machine's own, or out of its package, unpacked in the target folder.
fn resolved() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let program = Path::new("lib/systemd/systemd-resolved");
        let installed = Path::new("/usr").join(program);
        if installed.exists() {
            return installed;
        }
        let test = std::env::current_exe().unwrap();
        let target = test.ancestors().nth(3).expect("target/debug/deps/NAME");
        let folder = target.join("lab/systemd-resolved");
        if !folder.join(".done").exists() {
            unpack(&folder);
        }
        [folder.join(program), folder.join("usr").join(program)]
            .into_iter()
            .find(|path| path.exists())
            .expect("the package systemd-resolved has the program in it")
    })
}

fn unpack(folder: &Path) {
    let scratch = tempfile::TempDir::new().unwrap();
    let output = Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", "systemd-resolved"])
        .current_dir(scratch.path())
        .output()
        .expect("apt-get is there");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "apt-get download systemd-resolved: {words}");
    let package = fs::read_dir(scratch.path()).unwrap().next().expect("a package").unwrap().path();
    fs::create_dir_all(folder).unwrap();
    let status = Command::new("dpkg-deb").arg("-x").arg(package).arg(folder).status();
    assert!(status.expect("dpkg-deb is there").success());
    fs::write(folder.join(".done"), "").unwrap();
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is there");
    assert!(status.success(), "ip {arguments}");
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what} did not come in 10 s");
        thread::sleep(Duration::from_millis(20));
    }
}
