//! The machine that a bundle's box entry means: serial number, UUID, NICs.
//!
//! Signatures are not judged here; the box does that.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use bundle::container::{Container, Sections};
use bundle::manifest::{HardwareMatch, Manifest};
use bundle::signature::Fingerprint;
use bundle::site::{Interface, InterfaceMatch, Site};

use super::Nic;
use crate::gpt::Guid;

/// What the guest can see of its hardware.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// The box's name.
    pub(super) name: String,
    /// SMBIOS system serial number.
    pub(super) serial: String,
    /// SMBIOS system UUID, which also becomes the machine id.
    pub(super) uuid: String,
    /// LAN1, LAN2.
    pub(super) nics: [Nic; 2],
    /// What the bundle's secrets are sealed to.
    pub(super) seal_key: Option<Fingerprint>,
}

impl Machine {
    /// A machine that no bundle knows.
    pub(super) fn without_bundle() -> Self {
        let nic = |name| Nic {
            name,
            mac: derived_mac(&["postern", name]),
            pci: None,
            network: None,
            gateway: None,
        };
        Self {
            name: "postern".into(),
            serial: "POSTERN".into(),
            uuid: derived_uuid(&["postern"]),
            nics: [nic("lan1"), nic("lan2")],
            seal_key: None,
        }
    }

    /// The box `wanted` of the bundle, or its only one.
    pub(super) fn of_bundle(path: &Path, wanted: Option<&str>) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read the bundle {}", path.display()))?;
        Self::of_bytes(&bytes, wanted)
            .with_context(|| format!("cannot be a box of the bundle {}", path.display()))
    }

    fn of_bytes(bytes: &[u8], wanted: Option<&str>) -> anyhow::Result<Self> {
        let container = Container::parse(bytes)?;
        let sections = Sections::parse(container.payload)?;
        let manifest = Manifest::parse(sections.manifest)?;
        let site = Site::parse(sections.site, "site")
            .map_err(|faults| anyhow!("its site file is wrong:\n{}", lines(&faults)))?;
        let names: Vec<&str> = manifest.boxes.iter().map(|entry| entry.name.as_str()).collect();
        let name = match (wanted, &names[..]) {
            (Some(name), _) => name,
            (None, [name]) => *name,
            (None, _) => bail!("it has several boxes; choose one with --box: {}", names.join(", ")),
        };
        let entry = manifest.boxes.iter().find(|entry| entry.name == name);
        let (Some(entry), Some(machine)) = (entry, site.machine(name)) else {
            bail!("it has no box `{name}`; it has: {}", names.join(", "));
        };

        let scope = [site.name.as_str(), name];
        let mut nics = [nic("lan1", &machine.lan1, &scope)?, nic("lan2", &machine.lan2, &scope)?];
        let mut serial = format!("POSTERN-{name}");
        let mut uuid = derived_uuid(&scope);
        match &entry.matches {
            HardwareMatch::SerialNumber(wanted) => serial.clone_from(wanted),
            HardwareMatch::Uuid(wanted) => uuid.clone_from(wanted),
            HardwareMatch::Mac(wanted) => give_mac(&mut nics, wanted)?,
            HardwareMatch::Any(_) => {}
        }
        ensure!(
            serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '),
            "QEMU cannot have the serial number `{serial}`"
        );
        let seal_key = entry.seal_key.clone();
        Ok(Self { name: name.to_owned(), serial, uuid, nics, seal_key })
    }
}

fn nic(name: &'static str, interface: &Interface, scope: &[&str]) -> anyhow::Result<Nic> {
    let (mac, pci) = match &interface.hardware {
        InterfaceMatch::Mac(mac) => (mac.to_string(), None),
        InterfaceMatch::Pci(path) => {
            let slot = path.as_str().strip_prefix("0000:00:").with_context(|| {
                format!("{name} is at PCI {path}; QEMU's NICs can only be on bus 0000:00")
            })?;
            (derived_mac(&[scope, &[name]].concat()), Some(slot.to_owned()))
        }
    };
    let v4 = interface.addresses.iter().find(|own| own.address().is_ipv4());
    Ok(Nic {
        name,
        mac,
        pci,
        network: v4.map(|own| (own.address(), own.subnet().prefix_len())),
        gateway: interface.gateways.iter().copied().find(IpAddr::is_ipv4),
    })
}

/// The NIC that is found by its PCI path may have the MAC address that the box is known by.
fn give_mac(nics: &mut [Nic; 2], wanted: &str) -> anyhow::Result<()> {
    if nics.iter().any(|nic| nic.mac.eq_ignore_ascii_case(wanted)) {
        return Ok(());
    }
    let free = nics.iter_mut().find(|nic| nic.pci.is_some());
    let free = free.with_context(|| {
        format!("the box is known by the MAC {wanted}, which is neither LAN1's nor LAN2's")
    })?;
    wanted.clone_into(&mut free.mac);
    Ok(())
}

fn derived_uuid(scope: &[&str]) -> String {
    Guid::derived("machine", &bytes(scope)).to_string()
}

/// In the range that QEMU uses for its own.
fn derived_mac(scope: &[&str]) -> String {
    let guid = Guid::derived("nic", &bytes(scope));
    let [a, b, c, ..] = guid.text_order();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

fn bytes<'a>(scope: &[&'a str]) -> Vec<&'a [u8]> {
    scope.iter().map(|part| part.as_bytes()).collect()
}

fn lines(faults: &[impl Display]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bundle::container::assemble;
    use bundle::device_key::generate_ssh_key;
    use bundle::manifest::{AgentVersion, Confirm, ConfirmMode, HardwareMatch};
    use bundle::seal::Secrets;
    use bundle::sign::{BoxDraft, Draft, payload};
    use bundle::signature::sign;

    use super::Machine;

    const SITE: &str = include_str!("../../../docs/octavio.site.yaml");

    fn bundle(site: &str, names: &[&str], matches: &HardwareMatch) -> Vec<u8> {
        let boxes = names.iter().map(|name| BoxDraft {
            name: (*name).to_owned(),
            matches: matches.clone(),
            device: None,
            secrets: Secrets::default(),
        });
        let draft = Draft {
            site: "octavio".into(),
            site_yaml: site.to_owned(),
            certs: BTreeMap::new(),
            boxes: boxes.collect(),
            serial: 1,
            trust_epoch: 1,
            minimum_agent: AgentVersion::this(),
            created_at: 1_780_000_000,
            confirm: Confirm { mode: ConfirmMode::Auto, deadline: 60, require: Vec::new() },
            reason: String::new(),
        };
        let payload = payload(&draft).unwrap();
        let key = generate_ssh_key("test").unwrap();
        let signature = sign(&key, "bundle.v1@postern", &payload).unwrap();
        assemble(&[], &payload, &[signature]).unwrap()
    }

    #[test]
    fn serial_number_and_both_macs_are_those_of_the_site() {
        let serial = HardwareMatch::SerialNumber("7RQ2X13".into());
        let machine = Machine::of_bytes(&bundle(SITE, &["vcse"], &serial), None).unwrap();
        let again = Machine::of_bytes(&bundle(SITE, &["vcse"], &serial), Some("vcse")).unwrap();

        assert_eq!(machine.serial, "7RQ2X13");
        assert_eq!(machine.nics[0].mac, "52:54:00:00:01:68");
        assert_eq!(machine.nics[1].mac, "52:54:00:00:02:61");
        assert_eq!(machine.uuid, again.uuid);
    }

    #[test]
    fn a_uuid_that_the_bundle_asks_for_is_the_machines() {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        let matches = HardwareMatch::Uuid(uuid.into());
        let machine = Machine::of_bytes(&bundle(SITE, &["vcse"], &matches), None).unwrap();

        assert_eq!(machine.uuid, uuid);
    }

    #[test]
    fn a_nic_found_by_its_pci_path_takes_the_mac_that_the_box_is_known_by() {
        let site = SITE.replace("mac: \"52:54:00:00:01:68\"", "pci: \"0000:00:05.0\"");
        let matches = HardwareMatch::Mac("52:54:00:aa:bb:cc".into());
        let machine = Machine::of_bytes(&bundle(&site, &["vcse"], &matches), None).unwrap();

        assert_eq!(machine.nics[0].pci.as_deref(), Some("05.0"));
        assert_eq!(machine.nics[0].mac, "52:54:00:aa:bb:cc");
    }

    #[test]
    fn a_box_that_is_not_in_the_bundle_is_refused_with_those_that_are() {
        let any = HardwareMatch::Any(true);
        let bytes = bundle(SITE, &["vcse", "other"], &any);
        let none = Machine::of_bytes(&bytes, None).unwrap_err().to_string();
        let wrong = Machine::of_bytes(&bytes, Some("x")).unwrap_err().to_string();

        assert!(none.contains("--box: vcse, other"), "{none}");
        assert!(wrong.contains("no box `x`") && wrong.contains("vcse, other"), "{wrong}");
    }
}
