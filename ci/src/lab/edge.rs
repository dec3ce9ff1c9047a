//! The edge: the agent's processes straight in a namespace, or the booted image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::host::{Daemon, Host, eventually};
use super::site::SiteFiles;
use super::supervisor::{Environment, Supervisor};
use super::unit::read_users;
use crate::artifacts::{self, Artifacts};

/// The agent's processes in a namespace, with their own D-Bus and systemd-resolved.
#[derive(Debug)]
pub struct NamespaceEdge {
    supervisor: Option<Supervisor>,
    _resolved: Daemon,
    _bus: Daemon,
    agent: PathBuf,
    host: Arc<Host>,
}

impl NamespaceEdge {
    /// Starts it without any bundle: it waits for one.
    ///
    /// # Errors
    ///
    /// Says which part does not come up.
    pub fn start(host: &Arc<Host>, artifacts: &Artifacts, site: &SiteFiles) -> Result<Self> {
        let root = artifacts::repository();
        let overlay = root.join("overlays/base");
        let users = read_users(&overlay.join("usr/lib/sysusers.d/postern.conf"))?;
        prepare_files(host, &overlay, &users, site)?;
        let bus = start_bus(host, &overlay)?;
        let resolved = start_resolved(host)?;
        let environment = Environment {
            agent: artifacts.agent.clone(),
            units: overlay.join("usr/lib/systemd/system"),
            users,
            credentials: BTreeMap::from([
                ("dmi-serial".to_owned(), site.hardware_serial().to_owned()),
                ("dmi-uuid".to_owned(), String::new()),
            ]),
        };
        let supervisor = Some(Supervisor::start(host, &environment)?);
        let agent = artifacts.agent.clone();
        let host = Arc::clone(host);
        Ok(Self { supervisor, _resolved: resolved, _bus: bus, agent, host })
    }

    /// Hands a bundle over as a person on the box would; the verdict is what it printed.
    ///
    /// # Errors
    ///
    /// Shows the refusal or the reason of the roll back.
    pub fn apply(&self, bundle: &Path) -> Result<String> {
        let output = self.host.command(&self.agent).arg("apply").arg(bundle).output()?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() {
            bail!("{}", said.trim());
        }
        Ok(said)
    }

    /// What `postern-agent status --json` says.
    ///
    /// # Errors
    ///
    /// Shows what it said instead of an answer.
    pub fn status(&self) -> Result<Value> {
        let output = self.host.command(&self.agent).args(["status", "--json"]).output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Resident memory of each process in bytes.
    ///
    /// # Errors
    ///
    /// Says when /proc cannot be read.
    pub fn resident_memory(&self) -> Result<Vec<(String, u64)>> {
        let listing = self.host.run("ps -eo rss=,args= | grep '[p]ostern-agent '")?;
        let mut found = Vec::new();
        for line in listing.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [rss, .., name] = words[..]
                && !line.contains("setpriv")
            {
                found.push((name.to_owned(), rss.parse::<u64>()? * 1024));
            }
        }
        Ok(found)
    }

    /// The log of one of its processes, such as `postern-relay`.
    #[must_use]
    pub fn log(&self, unit: &str) -> String {
        let path = self.host.directory().join(format!("{unit}.log"));
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Ends a process as a crash would.
    pub fn kill(&self, unit: &str) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.kill(unit);
        }
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }
}

impl Drop for NamespaceEdge {
    fn drop(&mut self) {
        // Before the bus and resolved go, or its processes would be started again for nothing.
        drop(self.supervisor.take());
    }
}

/// The booted image in a virtual machine with its two NICs on the lab's networks.
#[derive(Debug)]
pub struct MachineEdge {
    machine: Daemon,
    console: PathBuf,
}

impl MachineEdge {
    /// Boots `image` with `bundle`.
    ///
    /// # Errors
    ///
    /// Says when QEMU cannot be started.
    pub fn start(
        host: &Host,
        artifacts: &Artifacts,
        image: &Path,
        bundle: &Path,
        site: &SiteFiles,
    ) -> Result<Self> {
        let console = host.directory().join("console.log");
        let mut command = host.command(&artifacts.postern);
        command.arg("run").arg(image).arg("--bundle").arg(bundle);
        command.arg("--device-key").arg(site.device_key());
        command.args(["--net", "tap=tap1,tap2", "--serial-log"]).arg(&console);
        let machine = host.daemon("machine", &mut command)?;
        Ok(Self { machine, console })
    }

    /// The file with the serial console.
    #[must_use]
    pub fn console_path(&self) -> &Path {
        &self.console
    }

    /// Everything the serial console has shown.
    #[must_use]
    pub fn console(&self) -> String {
        fs::read(&self.console)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the console shows `needle`.
    ///
    /// # Errors
    ///
    /// Shows the end of the console.
    pub fn wait_for(&mut self, needle: &str, patience: Duration) -> Result<()> {
        eventually(patience, || {
            let console = self.console();
            if console.contains(needle) {
                return Ok(());
            }
            let lines: Vec<&str> = console.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            bail!("no `{needle}` on the console:\n{tail}\n{}", self.machine.log())
        })
    }
}

/// Private files of the namespace edge: users, state, trust, device key, resolver.
fn prepare_files(
    host: &Host,
    overlay: &Path,
    users: &BTreeMap<String, u32>,
    site: &SiteFiles,
) -> Result<()> {
    // `proc` of the mount namespace is fresh, so the sysctls are this network namespace's.
    host.run(
        "mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib; mount -t tmpfs tmpfs /mnt",
    )?;
    host.run(
        "mkdir -p /mnt/upper /mnt/work
         mount -t overlay overlay -o lowerdir=/usr/lib,upperdir=/mnt/upper,workdir=/mnt/work /usr/lib
         mkdir -p /usr/lib/postern",
    )?;
    host.run(&format!("cp '{}' /usr/lib/postern/trust", site.trust().display()))?;
    let mut passwd = fs::read_to_string("/etc/passwd")?;
    let mut group = fs::read_to_string("/etc/group")?;
    let resolve = ("systemd-resolve".to_owned(), 991);
    let extra = users.iter().map(|(n, i)| (n.clone(), *i)).chain([resolve]);
    for (name, id) in extra {
        if !passwd.lines().any(|line| line.starts_with(&format!("{name}:"))) {
            passwd.push_str(&format!("{name}:x:{id}:{id}::/:/usr/sbin/nologin\n"));
            group.push_str(&format!("{name}:x:{id}:\n"));
        }
    }
    for (name, text) in [("passwd", passwd), ("group", group)] {
        let file = host.directory().join(name);
        fs::write(&file, text)?;
        host.bind(&file, &format!("/etc/{name}"))?;
    }
    let tmpfiles = fs::read_to_string(overlay.join("usr/lib/tmpfiles.d/postern.conf"))?;
    for line in tmpfiles.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["d", path, mode, user, group, ..] = words[..] {
            host.run(&format!("install -d -m {mode} -o {user} -g {group} {path}"))?;
        }
    }
    for file in site.device_files()? {
        let name = file.file_name().context("a file")?.to_string_lossy();
        let to = format!("/var/lib/postern/device/{name}");
        let mode = if matches!(&*name, "seal" | "identity") { "0600" } else { "0644" };
        host.run(&format!("install -m {mode} '{}' {to}", file.display()))?;
    }
    host.set_resolver("127.0.0.53")
}

fn start_bus(host: &Host, overlay: &Path) -> Result<Daemon> {
    let config = host.directory().join("bus.conf");
    let ours = overlay.join("usr/share/dbus-1/system.d/org.postern.Agent1.conf");
    let resolved =
        resolved_folder()?.join("usr/share/dbus-1/system.d/org.freedesktop.resolve1.conf");
    fs::write(
        &config,
        format!(
            "<busconfig><type>system</type><auth>EXTERNAL</auth>
             <listen>unix:path=/run/dbus/system_bus_socket</listen>
             <policy context=\"default\"><allow user=\"*\"/><deny own=\"*\"/>
               <deny send_type=\"method_call\"/><allow send_type=\"signal\"/>
               <allow send_requested_reply=\"true\" send_type=\"method_return\"/>
               <allow send_requested_reply=\"true\" send_type=\"error\"/>
               <allow receive_type=\"method_call\"/><allow receive_type=\"method_return\"/>
               <allow receive_type=\"error\"/><allow receive_type=\"signal\"/>
               <allow send_destination=\"org.freedesktop.DBus\"/></policy>
             <include>{}</include><include>{}</include></busconfig>",
            ours.display(),
            resolved.display()
        ),
    )?;
    host.run("mkdir -p /run/dbus")?;
    let mut command = host.command("dbus-daemon");
    command.arg(format!("--config-file={}", config.display())).args(["--nofork", "--nopidfile"]);
    let bus = host.daemon("bus", &mut command)?;
    eventually(Duration::from_secs(5), || host.run("test -S /run/dbus/system_bus_socket"))
        .with_context(|| format!("dbus-daemon does not start:\n{}", bus.log()))?;
    Ok(bus)
}

fn start_resolved(host: &Host) -> Result<Daemon> {
    host.run("mkdir -p /run/systemd/resolve; chown systemd-resolve: /run/systemd/resolve")?;
    let folder = resolved_folder()?;
    let program = ["lib/systemd/systemd-resolved", "usr/lib/systemd/systemd-resolved"]
        .iter()
        .map(|path| folder.join(path))
        .find(|path| path.exists())
        .context("the package systemd-resolved has no systemd-resolved in it")?;
    let mut command = host.command(program);
    let resolved = host.daemon("resolved", &mut command)?;
    eventually(Duration::from_secs(10), || {
        host.run("test -e /run/systemd/resolve/stub-resolv.conf")
    })
    .with_context(|| format!("systemd-resolved does not start:\n{}", resolved.log()))?;
    Ok(resolved)
}

/// systemd-resolved from its package, unpacked and never installed: installing it would take
/// over the name resolution of the machine that runs the lab.
fn resolved_folder() -> Result<PathBuf> {
    if Path::new("/usr/lib/systemd/systemd-resolved").exists() {
        return Ok(PathBuf::from("/"));
    }
    crate::packages::unpacked("systemd-resolved")
}
