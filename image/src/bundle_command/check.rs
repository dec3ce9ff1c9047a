//! `postern bundle check`.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use bundle::site::{Fault, Severity, Site, check};

use super::files::{read, read_secrets, say};

/// Options of `postern bundle check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The site file; certificate files are read relative to it.
    site: PathBuf,
    /// File of secrets: YAML `name: text`, mode 0600. Without it, NAME.secrets.yaml beside
    /// NAME.site.yaml when it is there; without that, secrets are not judged.
    #[arg(long, value_name = "FILE")]
    secrets: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = args.site.display().to_string();
    let bytes = read(&args.site)?;
    let Ok(text) = String::from_utf8(bytes) else {
        bail!("{name} is not UTF-8 text; save it as UTF-8");
    };
    let (site, mut faults) = match Site::parse(&text, &name) {
        Ok(site) => {
            let warnings = site.warnings().to_vec();
            (Some(site), warnings)
        }
        Err(faults) => (None, faults),
    };
    let mut judged = false;
    if let Some(site) = &site {
        let secrets = match secrets_file(args) {
            Some(path) => Some(read_secrets(&path)?),
            None => None,
        };
        judged = secrets.is_some();
        let files = read_files(site, &args.site)?;
        faults.extend(check(site, &files, secrets.as_ref(), SystemTime::now()));
    }
    show(&faults)?;
    let count = |severity| faults.iter().filter(|fault| fault.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    match (site, errors) {
        (Some(site), 0) => say(&summary(&site, &name, warnings, judged)),
        _ => bail!("{name}: {}, {}", plural(errors, "error"), plural(warnings, "warning")),
    }
}

fn secrets_file(args: &Args) -> Option<PathBuf> {
    let beside = || {
        let name = args.site.file_name()?.to_str()?;
        let path =
            args.site.with_file_name(format!("{}.secrets.yaml", name.strip_suffix(".site.yaml")?));
        path.exists().then_some(path)
    };
    args.secrets.clone().or_else(beside)
}

/// The files that are there; a missing one is a fault of the site, not of this command.
fn read_files(site: &Site, site_file: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let folder = site_file.parent().unwrap_or_else(|| Path::new(""));
    let mut files = BTreeMap::new();
    for name in site.files() {
        let path = folder.join(&name);
        match std::fs::read(&path) {
            Ok(bytes) => drop(files.insert(name, String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
    Ok(files)
}

fn show(faults: &[Fault]) -> anyhow::Result<()> {
    let mut out = std::io::stderr().lock();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for fault in faults {
        writeln!(out, "{}\n", fault.render(colour)).context("cannot write to standard error")?;
    }
    Ok(())
}

fn summary(site: &Site, name: &str, warnings: usize, judged: bool) -> String {
    let mut text = format!("{name}: ok");
    if warnings > 0 {
        text.push_str(&format!(", {}", plural(warnings, "warning")));
    }
    text.push_str(&format!("\n  site {}, serial {}", site.name, site.serial.get()));
    for machine in site.boxes.values() {
        let nats: Vec<String> = machine.lan2.static_nat.iter().map(ToString::to_string).collect();
        let nic = |nic: &bundle::site::Interface| {
            nic.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let told = if nats.is_empty() { String::new() } else { format!(" as {}", nats.join(", ")) };
        text.push_str(&format!(
            "\n  box {}: {}, lan1 {}, lan2 {}{told}",
            machine.name,
            machine.fqdn(),
            nic(&machine.lan1),
            nic(&machine.lan2),
        ));
    }
    if let Some(turn) = &site.turn {
        text.push_str(&format!("\n  turn: port {}, ", turn.port));
        if !turn.tls_ports.is_empty() {
            let ports: Vec<String> = turn.tls_ports.iter().map(ToString::to_string).collect();
            text.push_str(&format!("tls {}, ", ports.join(" ")));
        }
        let users = plural(turn.users.len(), "user");
        text.push_str(&format!("media {}, {users}", turn.media_ports));
        if !turn.rest_secrets.is_empty() {
            text.push_str(", time-limited credentials");
        }
        if turn.drain.is_some() {
            text.push_str(", draining");
        }
    }
    for guest in site.proxy.iter().flat_map(|proxy| &proxy.guests) {
        text.push_str(&format!("\n  guests: {} -> {}", guest.url, guest.upstream.url));
    }
    if !judged {
        text.push_str("\n  secrets were not judged; give them with --secrets FILE");
    }
    text
}

fn plural(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str = include_str!("../../../docs/octavio.site.yaml");

    fn check(site: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("octavio.site.yaml");
        std::fs::write(&path, site).unwrap();
        let error = run(&Args { site: path, secrets: None }).unwrap_err().to_string();
        error.rsplit_once(": ").unwrap().1.to_owned()
    }

    #[test]
    fn missing_certificate_files_are_faults_of_the_site() {
        assert_eq!(check(SITE), "2 errors, 0 warnings");
    }

    #[test]
    fn every_fault_of_the_text_is_counted() {
        let site =
            SITE.replace("serial: 7", "serial: x").replace("172.16.85.168/24", "172.16.85.168");

        assert_eq!(check(&site), "2 errors, 0 warnings");
    }
}
