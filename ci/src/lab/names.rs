//! Internal and external DNS of the lab: two dnsmasq that log each question.

use std::time::Duration;

use anyhow::{Context, Result};

use super::host::{Daemon, Host};
use super::topology::{CONFERENCE, EXTERNAL_DNS, INTERNAL_DNS, LAN1, STATIC_NAT};

/// One name server.
#[derive(Debug)]
pub struct NameServer(Daemon);

impl NameServer {
    /// The external one: every name of the edge leads to the static NAT address.
    ///
    /// # Errors
    ///
    /// Says when dnsmasq does not start.
    pub fn external(host: &Host) -> Result<Self> {
        let records = [
            ("cmsweb.octavio.com", STATIC_NAT),
            ("vcse.octavio.com", STATIC_NAT),
            ("time.octavio.com", EXTERNAL_DNS),
        ];
        Self::start(host, EXTERNAL_DNS, &records)
    }

    /// The internal one: the split horizon of the reference deployment.
    ///
    /// # Errors
    ///
    /// Says when dnsmasq does not start.
    pub fn internal(host: &Host) -> Result<Self> {
        let records = [
            ("cms.octavio.local", CONFERENCE),
            ("cmsweb.octavio.com", CONFERENCE),
            ("vcse.octavio.com", LAN1),
        ];
        Self::start(host, INTERNAL_DNS, &records)
    }

    fn start(host: &Host, address: &str, records: &[(&str, &str)]) -> Result<Self> {
        let mut command = host.command("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root"]);
        command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file="]);
        command.args(["--log-queries", "--log-facility=-", "--except-interface=lo"]);
        command.arg(format!("--listen-address={address}"));
        for (name, to) in records {
            command.arg(format!("--host-record={name},{to}"));
        }
        let mut daemon = host.daemon("dns", &mut command)?;
        daemon.wait_for("started", Duration::from_secs(5)).context("dnsmasq")?;
        Ok(Self(daemon))
    }

    /// How often `name` was asked for.
    #[must_use]
    pub fn questions_for(&self, name: &str) -> usize {
        let log = self.0.log();
        log.lines()
            .filter(|line| line.contains("query[") && line.contains(&format!(" {name} ")))
            .count()
    }
}
