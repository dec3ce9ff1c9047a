//! `postern-host` with a real dbus-daemon, systemd-resolved and systemd-hostnamed in namespaces of
//! the test's own.
//!
//! They need root, dbus-daemon, apt-get and dpkg-deb: systemd-resolved is unpacked into the target
//! folder and never installed, because its installation takes over the machine's name resolution.

mod bus;

use std::path::Path;
use std::time::Duration;

use zbus::Connection;

use self::bus::{Bus, MAC1, MAC2, NameServer, in_namespace};
use super::*;
use crate::ipc::Channel;
use crate::plan::{LinkDns, LinkSelector};

fn plan() -> HostPlan {
    let link = |mac: &str, server: &str, domains: &[(&str, bool)], default_route| LinkDns {
        select: LinkSelector::Mac(mac.to_owned()),
        servers: vec![server.parse().unwrap()],
        domains: domains.iter().map(|(name, route)| ((*name).to_owned(), *route)).collect(),
        default_route,
    };
    HostPlan {
        host_name: "edge".to_owned(),
        dns: vec![
            link(MAC1, "192.0.2.53", &[("corp.example", true), ("branch.example", false)], false),
            link(MAC2, "198.51.100.53", &[(".", true)], true),
        ],
        ntp: vec!["192.0.2.123".to_owned()],
        clock_floor: 1_700_000_000,
    }
}

fn host(bus: &Bus) -> Host {
    let mut host = Host::new().unwrap();
    bus.address.clone_into(&mut host.address);
    host
}

async fn apply(host: &mut Host, plan: &HostPlan) -> u32 {
    match host.answer(HostRequest::Apply(plan.clone())).await {
        HostReply::Applied { writes, micros } => {
            println!("{writes} changes in {micros} us");
            writes
        }
        other => panic!("{other:?}"),
    }
}

async fn observe(host: &mut Host) -> Value {
    match host.answer(HostRequest::Observe).await {
        HostReply::Observed(value) => value,
        other => panic!("{other:?}"),
    }
}

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Lookup {
    fn resolve_hostname(
        &self,
        index: i32,
        name: &str,
        family: i32,
        flags: u64,
    ) -> zbus::Result<(Vec<(i32, i32, Vec<u8>)>, String, u64)>;
}

async fn lookup(bus: &Bus, name: &str) -> Vec<u8> {
    let bus: Connection =
        zbus::connection::Builder::address(bus.address.as_str()).build().await.unwrap();
    let lookup = LookupProxy::new(&bus).await.unwrap();
    let (addresses, ..) = lookup.resolve_hostname(0, name, nix::libc::AF_INET, 0).await.unwrap();
    addresses[0].2.clone()
}

#[test]
fn each_name_is_asked_of_its_own_nic_and_a_second_apply_changes_nothing() {
    in_namespace(async |bus| {
        let inside = NameServer::start(1, "192.0.2.53", [192, 0, 2, 80]);
        let outside = NameServer::start(2, "198.51.100.53", [198, 51, 100, 80]);
        bus.start_resolved();
        let mut host = host(&bus);

        let first = apply(&mut host, &plan()).await;
        assert!(first >= 5, "{first}");
        assert_eq!(apply(&mut host, &plan()).await, 0);

        assert_eq!(lookup(&bus, "host.corp.example").await, [192, 0, 2, 80]);
        assert_eq!(lookup(&bus, "www.example.org").await, [198, 51, 100, 80]);
        let (inside, outside) = (inside.asked(), outside.asked());
        assert!(inside.iter().all(|name| name.ends_with("corp.example")), "{inside:?}");
        assert!(outside.iter().all(|name| name == "www.example.org"), "{outside:?}");

        let now = observe(&mut host).await;
        let link = |name: &str| {
            let links = now["dns"].as_array().unwrap_or_else(|| panic!("{now:#}"));
            links.iter().find(|link| link["kernel-name"] == name).unwrap().clone()
        };
        assert_eq!(link("near1")["servers"], json!(["192.0.2.53"]));
        assert_eq!(link("near1")["domains"], json!(["~corp.example", "branch.example"]));
        assert_eq!(link("near1")["default-route"], false);
        assert_eq!(link("near2")["domains"], json!(["~."]));
        assert_eq!(link("near2")["llmnr"], "no");

        let mut other = plan();
        other.dns[0].servers = vec!["192.0.2.54".parse().unwrap()];
        assert_eq!(apply(&mut host, &other).await, 1);
    });
}

#[test]
fn a_resolver_that_comes_late_is_waited_for() {
    in_namespace(async |bus| {
        let mut host = host(&bus);
        let start = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            bus.start_resolved();
        };
        let plan = plan();
        let (writes, ()) = tokio::join!(apply(&mut host, &plan), start);

        assert!(writes >= 5, "{writes}");
    });
}

#[test]
fn the_host_name_is_set_by_hostnamed_once() {
    in_namespace(async |bus| {
        bus.start_resolved();
        bus.start_hostnamed();
        let mut host = host(&bus);
        let mut plan = plan();
        plan.dns.clear();

        assert_eq!(apply(&mut host, &plan).await, 1);

        assert_eq!(name::current().unwrap(), "edge");
        assert_eq!(apply(&mut host, &plan).await, 0);
        assert_eq!(observe(&mut host).await["host-name"], "edge");
    });
}

#[test]
fn without_a_service_manager_name_and_time_are_not_managed_here() {
    in_namespace(async |bus| {
        bus.start_resolved();
        let before = name::current().unwrap();
        let mut host = host(&bus);
        let mut plan = plan();
        plan.dns.clear();

        assert_eq!(apply(&mut host, &plan).await, 0);

        let now = observe(&mut host).await;
        assert_eq!(now["host-name"].as_str(), Some(before.as_str()));
        assert_eq!(now["host-name-managed"], false);
        assert_eq!(now["time"]["managed"], false);
        assert!(!Path::new(time::CONFIGURATION).exists());
    });
}

/// Stands in for PID 1, which a namespace does not have.
#[derive(Debug)]
struct Manager(mpsc::UnboundedSender<String>);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn restart_unit(&self, name: &str, _mode: &str) -> zbus::OwnedObjectPath {
        self.0.send(name.to_owned()).unwrap();
        zbus::ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/1").into()
    }
}

#[test]
fn time_servers_are_written_and_timesyncd_restarted_once() {
    in_namespace(async |bus| {
        let (sender, mut restarted) = mpsc::unbounded_channel();
        let _manager = zbus::connection::Builder::address(bus.address.as_str())
            .name("org.freedesktop.systemd1")
            .serve_at("/org/freedesktop/systemd1", Manager(sender))
            .build()
            .await
            .unwrap();
        let mut host = host(&bus);
        let mut plan = plan();
        plan.dns.clear();
        plan.host_name = name::current().unwrap();

        assert_eq!(apply(&mut host, &plan).await, 1);
        assert_eq!(apply(&mut host, &plan).await, 0);

        assert_eq!(restarted.try_recv().unwrap(), "systemd-timesyncd.service");
        assert!(restarted.try_recv().is_err());
        let text = std::fs::read_to_string(time::CONFIGURATION).unwrap();
        assert_eq!(text, "[Time]\nNTP=192.0.2.123\nFallbackNTP=\n");
    });
}

#[test]
fn one_part_that_fails_does_not_keep_the_others_from_being_set() {
    in_namespace(async |bus| {
        bus.start_resolved();
        bus.start_hostnamed();
        let mut host = host(&bus);
        let mut plan = plan();
        plan.dns[0].select = LinkSelector::Mac("02:00:5e:00:53:99".to_owned());

        let reply = host.answer(HostRequest::Apply(plan)).await;

        let HostReply::Failed(why) = reply else { panic!("{reply:?}") };
        assert!(why.starts_with("DNS: DNS: no NIC has MAC 02:00:5e:00:53:99"), "{why}");
        assert_eq!(name::current().unwrap(), "edge");
    });
}

#[test]
fn without_a_bus_the_reply_says_where_it_was_looked_for() {
    in_namespace(async |_bus| {
        let mut host = Host::new().unwrap();
        "unix:path=/run/dbus/nobody".clone_into(&mut host.address);

        let reply = host.answer(HostRequest::Observe).await;

        assert!(
            matches!(&reply, HostReply::Failed(why) if why.contains("/run/dbus/nobody")),
            "{reply:?}"
        );
    });
}

#[test]
fn only_the_agent_may_change_anything() {
    in_namespace(async |bus| {
        bus.start_resolved();
        let folder = tempfile::TempDir::new().unwrap();
        let socket = folder.path().join("host");
        let ask = {
            let socket = socket.clone();
            move || {
                let mut tries = 0;
                let channel = loop {
                    match Channel::connect(&socket) {
                        Ok(channel) => break channel,
                        Err(error) => assert!(tries < 500, "{error}"),
                    }
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(10));
                };
                let ask = |request| {
                    channel.send(&request, &[]).unwrap();
                    channel.receive::<HostReply>().unwrap().unwrap().0
                };
                (
                    ask(HostRequest::Apply(plan())),
                    ask(HostRequest::Reboot),
                    ask(HostRequest::Observe),
                )
            }
        };
        let host = host(&bus);
        let (apply, reboot, observe) = tokio::select! {
            ended = serve_at(&socket, Some(12345), host) => panic!("{ended:?}"),
            replies = tokio::task::spawn_blocking(ask) => replies.unwrap(),
        };
        assert!(matches!(apply, HostReply::Failed(_)), "{apply:?}");
        assert!(matches!(reboot, HostReply::Failed(_)), "{reboot:?}");
        assert!(matches!(observe, HostReply::Observed(_)), "{observe:?}");
    });
}
