//! The transient host name, by systemd-hostnamed (org.freedesktop.hostname1(5)).
//!
//! Not by sethostname(2): that takes CAP_SYS_ADMIN, which this process does not have.

use anyhow::{Context, bail};
use zbus::Connection;

use super::has_owner;

#[zbus::proxy(
    interface = "org.freedesktop.hostname1",
    default_service = "org.freedesktop.hostname1",
    default_path = "/org/freedesktop/hostname1"
)]
trait HostName {
    fn set_hostname(&self, name: &str, interactive: bool) -> zbus::Result<()>;
}

/// The kernel's host name.
pub(super) fn current() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Whether somebody on the bus can set it: hostnamed runs, or the service manager can start it.
pub(super) async fn is_managed(bus: &Connection, manager: bool) -> anyhow::Result<bool> {
    Ok(manager || has_owner(bus, "org.freedesktop.hostname1").await?)
}

/// Sets it when it differs and returns the number of changes.
pub(super) async fn apply(bus: &Connection, wanted: &str, manager: bool) -> anyhow::Result<u32> {
    if current()? == wanted {
        return Ok(0);
    }
    if !is_managed(bus, manager).await? {
        tracing::info!("host name: not managed here");
        return Ok(0);
    }
    tracing::info!(name = wanted, "Setting the host name");
    let hostnamed = HostNameProxy::new(bus).await?;
    hostnamed
        .set_hostname(wanted, false)
        .await
        .with_context(|| format!("systemd-hostnamed did not take {wanted}"))?;
    let now = current()?;
    if now != wanted {
        bail!("systemd-hostnamed took {wanted}, yet the name is {now}: is there an /etc/hostname?");
    }
    Ok(1)
}
