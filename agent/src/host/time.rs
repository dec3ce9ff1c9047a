//! Time servers, by systemd-timesyncd's configuration, and the clock's floor.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::{Value, json};
use zbus::Connection;

use super::ServiceManagerProxy;

/// Our part of timesyncd.conf(5).
pub(super) const CONFIGURATION: &str = "/run/systemd/timesyncd.conf.d/postern.conf";
/// What serves the time.
const UNIT: &str = "systemd-timesyncd.service";

/// Sets the clock to `floor` seconds since the epoch when it is earlier; never back.
pub(super) fn raise_clock(floor: u64) -> anyhow::Result<u32> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
    let floor = Duration::from_secs(floor);
    if now >= floor {
        return Ok(0);
    }
    match clock_settime(ClockId::CLOCK_REALTIME, floor.into()) {
        Ok(()) => {
            tracing::warn!(from = now.as_secs(), to = floor.as_secs(), "Clock was behind, raised");
            Ok(1)
        }
        // A namespace: the clock is the machine's.
        Err(Errno::EPERM) => {
            tracing::warn!("clock: behind the floor, and not managed here");
            Ok(0)
        }
        Err(error) => bail!("cannot set it to {}: {error}", floor.as_secs()),
    }
}

/// Gives timesyncd its servers and returns the number of changes.
pub(super) async fn apply(
    bus: &Connection,
    path: &Path,
    servers: &[String],
    manager: bool,
) -> anyhow::Result<u32> {
    if !manager {
        tracing::info!("time: not managed here");
        return Ok(0);
    }
    let text = configuration(servers)?;
    if fs::read_to_string(path).is_ok_and(|now| now == text) {
        return Ok(0);
    }
    tracing::info!(?servers, "Setting time servers");
    write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    let manager = ServiceManagerProxy::new(bus).await?;
    if let Err(error) = manager.restart_unit(UNIT, "replace").await {
        // So that the next attempt does not take it for done.
        drop(fs::remove_file(path));
        return Err(error).with_context(|| format!("cannot restart {UNIT}"));
    }
    Ok(1)
}

/// What timesyncd was told.
pub(super) fn observe(path: &Path, manager: bool) -> Value {
    let text = fs::read_to_string(path).unwrap_or_default();
    let servers: Vec<&str> = text
        .lines()
        .find_map(|line| line.strip_prefix("NTP="))
        .map(|line| line.split_whitespace().collect())
        .unwrap_or_default();
    json!({
        "managed": manager,
        "servers": servers,
        "clock": clock_gettime(ClockId::CLOCK_REALTIME).map(|now| now.tv_sec()).unwrap_or(0),
    })
}

/// An empty `FallbackNTP=` keeps the distribution's servers out.
fn configuration(servers: &[String]) -> anyhow::Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
    if let Some(odd) = servers.iter().find(|name| name.is_empty() || !name.chars().all(plain)) {
        bail!("{odd:?} is neither a name nor an address");
    }
    Ok(format!("[Time]\nNTP={}\nFallbackNTP=\n", servers.join(" ")))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)?;
    // timesyncd reads it as a user of its own, whatever our umask.
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::configuration;

    #[test]
    fn a_time_server_cannot_bring_lines_of_its_own() {
        assert_eq!(
            configuration(&["192.0.2.1".to_owned(), "time.example.org".to_owned()]).unwrap(),
            "[Time]\nNTP=192.0.2.1 time.example.org\nFallbackNTP=\n"
        );
        assert!(configuration(&["a\n[Match]".to_owned()]).is_err());
    }
}
