//! The reference lab: the deployment of one edge between the Internet and a conference, in
//! network namespaces of this machine (see [`topology`]).
//!
//! Nothing on the way is a stand-in: dnsmasq, nginx, Janus, coturn's clients and Chromium are the
//! ones of Debian, and the edge is either the agent's own processes or the booted image. Dropping
//! a [`Lab`] ends every process and namespace of it.

pub mod browser;
pub mod certificates;
pub mod conference;
pub mod edge;
pub mod host;
pub mod names;
pub mod site;
pub mod supervisor;
pub mod topology;
pub mod unit;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use self::certificates::Authority;
use self::conference::{Conference, Turn};
use self::edge::{MachineEdge, NamespaceEdge};
use self::names::NameServer;
use self::site::{SiteFiles, Variant};
use self::topology::{InnerPath, Nics, Topology};
use crate::artifacts::Artifacts;

/// Everything around the edge, running.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: services before the hosts they run on, files last.
    /// The conference inside.
    pub conference: Conference,
    /// External DNS.
    pub external: NameServer,
    /// Internal DNS.
    pub internal: NameServer,
    /// Hosts and links.
    pub topology: Topology,
    /// The site's files.
    pub site: SiteFiles,
    /// The authority that guests trust.
    pub public: Authority,
    artifacts: Artifacts,
    setup: Setup,
    directory: Directory,
}

/// How the lab is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Namespace or virtual machine.
    pub nics: Nics,
    /// Whether media can go straight to the conference.
    pub inner: InnerPath,
}

/// A folder that is removed at the end, unless it is to be kept.
#[derive(Debug)]
struct Directory(Option<tempfile::TempDir>, PathBuf);

impl Lab {
    /// Starts everything but the edge.
    ///
    /// # Errors
    ///
    /// Says what does not come up, with the end of its log.
    pub fn start(artifacts: &Artifacts, setup: Setup) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces, which takes root: run it with sudo"
        );
        let directory = Directory::new()?;
        let path = directory.path();
        let public = Authority::new("Lab public CA")?;
        let private = Authority::new("Lab inside CA")?;
        let site = SiteFiles::prepare(&path.join("site"), &artifacts.postern, &public, &private)?;
        let topology = Topology::start(path, setup.nics, setup.inner)?;
        topology.inet.set_resolver(topology::EXTERNAL_DNS)?;
        topology.inside.set_resolver(topology::INTERNAL_DNS)?;
        let external = NameServer::external(&topology.inet)?;
        let internal = NameServer::internal(&topology.inside)?;
        let turn = Turn {
            user: "turnuser".to_owned(),
            password: site.turn_password.clone(),
            relay_only: setup.inner == InnerPath::TurnOnly,
        };
        let conference = Conference::start(&topology.inside, &private, &turn)?;
        let artifacts = artifacts.clone();
        Ok(Self {
            conference,
            external,
            internal,
            topology,
            site,
            public,
            artifacts,
            setup,
            directory,
        })
    }

    /// Signs the site under `serial`.
    ///
    /// # Errors
    ///
    /// Shows what `postern bundle sign` said.
    pub fn sign(&self, serial: u64) -> Result<PathBuf> {
        self.site.sign(Variant { serial, inner: self.setup.inner })
    }

    /// The edge as the agent's processes in its namespace, without a bundle yet.
    ///
    /// # Errors
    ///
    /// Says what does not come up.
    pub fn namespace_edge(&self) -> Result<NamespaceEdge> {
        ensure!(self.setup.nics == Nics::Veth, "this lab was set up for a virtual machine");
        NamespaceEdge::start(&self.topology.edge, &self.artifacts, &self.site)
            .context("the namespace edge")
    }

    /// The edge as a virtual machine that boots `image` with `bundle`.
    ///
    /// # Errors
    ///
    /// Says what does not come up.
    pub fn machine_edge(&self, image: &Path, bundle: &Path) -> Result<MachineEdge> {
        ensure!(self.setup.nics == Nics::Tap, "this lab was set up for a namespace edge");
        MachineEdge::start(&self.topology.edge, &self.artifacts, image, bundle, &self.site)
    }

    /// Whether media can go straight to the conference.
    #[must_use]
    pub fn inner_path(&self) -> InnerPath {
        self.setup.inner
    }

    /// The folder with logs and files of this lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Directory {
    fn new() -> Result<Self> {
        let made = tempfile::Builder::new().prefix("postern-lab-").tempdir()?;
        // Processes of several users read what belongs to them below it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(made.path(), open)?;
        let path = made.path().to_owned();
        if std::env::var_os("POSTERN_KEEP_LAB").is_some() {
            println!("lab files stay in {}", made.keep().display());
            return Ok(Self(None, path));
        }
        Ok(Self(Some(made), path))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().map_or(&self.1, |made| made.path())
    }
}
