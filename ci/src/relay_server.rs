//! Our relay as a black box: `postern-agent relay --slice FILE` on a host of the lab.
//!
//! The one place where a relay slice is written as JSON; `RelaySlice` in `agent/src/plan.rs` reads
//! it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::host::{Daemon, Host};

/// What the relay is to serve; the fields are those of the slice.
#[derive(Clone, Debug)]
pub struct RelaySettings {
    /// REALM.
    pub realm: String,
    /// User names and passwords.
    pub users: Vec<(String, String)>,
    /// Secrets of time-limited credentials.
    pub rest_secrets: Vec<String>,
    /// UDP listeners.
    pub udp: Vec<SocketAddr>,
    /// TCP listeners.
    pub tcp: Vec<SocketAddr>,
    /// Who talks to one of these is an inside client.
    pub inside_addresses: Vec<IpAddr>,
    /// First and last port of allocations.
    pub media_ports: (u16, u16),
    /// Local and told address of the outside face, one per family.
    pub outside: Vec<(IpAddr, IpAddr)>,
    /// The same of the inside face.
    pub inside: Vec<(IpAddr, IpAddr)>,
    /// Whether XOR-RELAYED-ADDRESS names LAN1 to inside clients.
    pub inside_clients_are_told_lan1: bool,
    /// Networks behind LAN1.
    pub inside_routes: Vec<String>,
    /// Peers for every client.
    pub allow: Vec<String>,
    /// Further outside peers for inside clients.
    pub allow_outside: Vec<String>,
    /// Every address of the box, static NAT ones included.
    pub own_addresses: Vec<IpAddr>,
    /// RFC 6062.
    pub tcp_relay: bool,
    /// RFC 8016.
    pub mobility: bool,
    /// Allocations in all.
    pub total: usize,
    /// Allocations of one user.
    pub per_user: usize,
    /// Allocations of one source address.
    pub per_source: usize,
    /// Permissions, and channels, of one allocation.
    pub per_allocation: usize,
    /// Take no new allocations, and name these addresses instead.
    pub drain: Option<Vec<SocketAddr>>,
}

impl Default for RelaySettings {
    fn default() -> Self {
        Self {
            realm: "example.org".to_owned(),
            users: Vec::new(),
            rest_secrets: Vec::new(),
            udp: Vec::new(),
            tcp: Vec::new(),
            inside_addresses: Vec::new(),
            media_ports: (24_000, 29_999),
            outside: Vec::new(),
            inside: Vec::new(),
            inside_clients_are_told_lan1: false,
            inside_routes: Vec::new(),
            allow: Vec::new(),
            allow_outside: Vec::new(),
            own_addresses: Vec::new(),
            tcp_relay: false,
            mobility: false,
            total: 16_384,
            per_user: 16_384,
            per_source: 16_384,
            per_allocation: 256,
            drain: None,
        }
    }
}

impl RelaySettings {
    /// The slice as the relay reads it.
    #[must_use]
    pub fn slice(&self) -> Value {
        let listeners = |addresses: &[SocketAddr], transport: &str| {
            let one = |address: &SocketAddr| {
                let inside = self.inside_addresses.contains(&address.ip());
                json!({"address": address, "transport": transport, "inside": inside})
            };
            addresses.iter().map(one).collect::<Vec<_>>()
        };
        let faces = |faces: &[(IpAddr, IpAddr)]| {
            let one = |(local, told): &(IpAddr, IpAddr)| json!({"local": local, "told": told});
            faces.iter().map(one).collect::<Vec<_>>()
        };
        let user =
            |(name, password): &(String, String)| json!({"name": name, "password": password});
        let listeners = [listeners(&self.udp, "udp"), listeners(&self.tcp, "tcp")].concat();
        json!({
            "realm": self.realm,
            "users": self.users.iter().map(user).collect::<Vec<_>>(),
            "rest_secrets": self.rest_secrets,
            "listeners": listeners,
            "inside_addresses": self.inside_addresses,
            "media_ports": self.media_ports,
            "outside": faces(&self.outside),
            "inside": faces(&self.inside),
            "inside_clients_are_told_lan1": self.inside_clients_are_told_lan1,
            "inside_routes": self.inside_routes,
            "outside_routes": [],
            "allow": self.allow,
            "allow_outside": self.allow_outside,
            "own_addresses": self.own_addresses,
            "tcp_relay": self.tcp_relay,
            "mobility": self.mobility,
            "quotas": {
                "total": self.total,
                "per_user": self.per_user,
                "per_source": self.per_source,
                "per_allocation": self.per_allocation,
                "allocation_bytes_per_second": null,
                "total_bytes_per_second": null,
            },
            "drain": self.drain.as_ref().map(|alternate| json!({"alternate": alternate})),
        })
    }

    /// Starts the relay `agent` on `host` with these settings and `options` beside `--slice`, and
    /// waits until its listeners are open.
    ///
    /// # Errors
    ///
    /// Shows the end of its log when it does not come up.
    pub fn start(
        &self,
        host: &Host,
        agent: &Path,
        name: &str,
        options: &[String],
    ) -> Result<Daemon> {
        let folder = host.directory().join(name);
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let file = folder.join("slice.json");
        fs::write(&file, serde_json::to_vec_pretty(&self.slice())?)?;
        let mut command = host.command(agent);
        command.arg("relay").arg("--slice").arg(&file).args(options);
        let mut daemon = host.daemon(name, &mut command)?;
        daemon.wait_for("serving", Duration::from_secs(10)).context("our relay")?;
        Ok(daemon)
    }
}
