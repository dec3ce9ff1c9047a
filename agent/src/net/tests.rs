//! `postern-net` on real NICs: veth pairs in a network namespace of each test's own.
//!
//! They need root, nft and iproute2, and fail when one is missing.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::engine::Engine;
use super::{Paths, Peers, serve_at};
use crate::ipc::{Channel, seal};
use crate::message::{NetReply, NetRequest};
use crate::plan::{
    Generation, LinkPlan, LinkSelector, ListenerPlan, NetPlan, RoutePlan, Service, Transport,
};

mod store_and_deadline;
mod two_nics;

const MAC1: &str = "02:00:5e:00:53:01";
const MAC2: &str = "02:00:5e:00:53:02";

/// Runs `test` on a thread in a new network namespace with two veth pairs, whose far ends are
/// the neighbours 192.0.2.254 and 198.51.100.254.
fn in_namespace<T: Send + 'static>(test: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root, to make namespaces");
        ip("link set lo up");
        for (name, mac) in [("near1", MAC1), ("near2", MAC2)] {
            ip(&format!("link add {name} address {mac} type veth peer name {name}p"));
            ip(&format!("link set {name}p up"));
        }
        let directory = TempDir::new().unwrap();
        test(directory.path())
    };
    thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn engine_test(test: impl AsyncFnOnce(Engine) + Send + 'static) {
    in_namespace(move |directory| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut engine = open(directory);
            engine.start().await;
            test(engine).await;
        });
    });
}

fn open(directory: &Path) -> Engine {
    let run = directory.join("run");
    std::fs::create_dir_all(&run).unwrap();
    Engine::open(&directory.join("state"), &run).unwrap()
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is there");
    assert!(status.success(), "ip {arguments}");
}

/// What `ip -j` prints.
fn ip_json(arguments: &str) -> Value {
    let output = Command::new("ip").arg("-j").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip -j {arguments}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Array(Vec::new()))
}

fn nft_list() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft is there");
    String::from_utf8(output.stdout).unwrap()
}

/// The addresses of a link, with prefix length, of global scope.
fn addresses(link: &str) -> Vec<String> {
    let value = ip_json(&format!("addr show dev {link}"));
    let infos = value[0]["addr_info"].as_array().cloned().unwrap_or_default();
    let text = |info: &Value| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]);
    infos.iter().filter(|info| info["scope"] == "global").map(text).collect()
}

/// Our routes of a table as `DST via GATEWAY dev LINK metric N`.
fn routes(family: &str, table: &str) -> Vec<String> {
    let value = ip_json(&format!("{family} route show table {table} proto 84"));
    let text = |route: &Value| {
        let mut text = route["dst"].as_str().unwrap().to_owned();
        if let Some(gateway) = route["gateway"].as_str() {
            text += &format!(" via {gateway}");
        }
        format!(
            "{text} dev {} metric {}",
            route["dev"].as_str().unwrap(),
            route["metric"].as_u64().unwrap_or(0)
        )
    };
    let mut routes: Vec<String> = value.as_array().unwrap().iter().map(text).collect();
    routes.sort();
    routes
}

fn rules() -> Vec<String> {
    let value = ip_json("rule show");
    let text = |rule: &Value| {
        format!("{} {}", rule["src"].as_str().unwrap(), rule["table"].as_str().unwrap())
    };
    let ours = value.as_array().unwrap().iter().filter(|rule| rule["protocol"] == "84");
    let mut rules: Vec<String> = ours.map(text).collect();
    rules.sort();
    rules
}

fn generation(serial: u64) -> Generation {
    Generation { serial, digest: format!("{serial:064x}") }
}

fn route(to: &str, via: &str, metric: u32) -> RoutePlan {
    RoutePlan { to: to.parse().unwrap(), via: Some(via.parse().unwrap()), metric }
}

fn link(name: &str, mac: &str, address: &str, table: u32, routes: Vec<RoutePlan>) -> LinkPlan {
    LinkPlan {
        name: name.to_owned(),
        select: LinkSelector::Mac(mac.to_owned()),
        addresses: vec![address.parse().unwrap()],
        mtu: None,
        routes,
        table,
    }
}

fn ruleset(port: u16) -> Value {
    let add = |kind: &str, mut body: Value| {
        body["family"] = "inet".into();
        body["table"] = "postern".into();
        json!({"add": {kind: body}})
    };
    let left = json!({"meta": {"key": "iifname"}});
    let dport = json!({"payload": {"protocol": "tcp", "field": "dport"}});
    json!({"nftables": [
        {"add": {"table": {"family": "inet", "name": "postern"}}},
        add("chain", json!({"name": "input", "type": "filter", "hook": "input", "prio": 0,
            "policy": "drop"})),
        add("rule", json!({"chain": "input", "expr": [
            {"match": {"op": "==", "left": left, "right": "lo"}},
            {"accept": null}]})),
        add("rule", json!({"chain": "input", "expr": [
            {"match": {"op": "==", "left": left, "right": "@lan2"}},
            {"match": {"op": "==", "left": dport, "right": port}},
            {"counter": null},
            {"accept": null}]})),
    ]})
}

/// The two-NIC plan of an edge: lan2 has the default route, lan1 a route to what is behind it.
fn plan() -> NetPlan {
    let default = route("0.0.0.0/0", "198.51.100.254", 100);
    NetPlan {
        links: vec![
            link(
                "lan1",
                MAC1,
                "192.0.2.1/24",
                101,
                vec![route("203.0.113.0/24", "192.0.2.254", 200)],
            ),
            link("lan2", MAC2, "198.51.100.1/24", 102, vec![default]),
        ],
        ruleset: ruleset(443),
        sysctls: vec![
            ("net/ipv4/conf/@lan1/arp_ignore".to_owned(), "1".to_owned()),
            ("net/ipv4/conf/@lan2/rp_filter".to_owned(), "2".to_owned()),
            ("net/ipv4/ip_local_reserved_ports".to_owned(), "24000-29999".to_owned()),
        ],
        listeners: vec![listener(Service::Proxy, "198.51.100.1:443", Transport::Tcp)],
        deadline: Duration::from_secs(60),
    }
}

fn listener(owner: Service, address: &str, transport: Transport) -> ListenerPlan {
    ListenerPlan { owner, address: address.parse().unwrap(), transport }
}

async fn applied(engine: &mut Engine, serial: u64, plan: &NetPlan) -> u32 {
    engine.put_plan(&generation(serial), plan).unwrap();
    let applied = engine.apply(&generation(serial)).await.unwrap();
    println!("generation {serial}: {} writes in {} us", applied.writes, applied.micros);
    applied.writes
}

async fn observed(engine: &Engine) -> Value {
    super::observe::observe(engine).await.unwrap()
}

#[test]
fn without_a_generation_links_are_up_and_nothing_comes_in() {
    engine_test(async |engine| {
        assert!(engine.generation().is_none());
        assert_eq!(ip_json("link show near1")[0]["operstate"], "UP");
        assert!(nft_list().contains("type filter hook input priority filter; policy drop"));
        let now = observed(&engine).await;
        assert_eq!((&now["rescue"], &now["in-order"]), (&json!(true), &json!(true)), "{now:#}");
    });
}

#[test]
fn a_plan_becomes_addresses_routes_rules_settings_and_a_ruleset() {
    engine_test(async |mut engine| {
        assert!(applied(&mut engine, 1, &plan()).await > 0);

        assert_eq!(addresses("near1"), ["192.0.2.1/24"]);
        assert_eq!(addresses("near2"), ["198.51.100.1/24"]);
        assert_eq!(
            routes("-4", "main"),
            [
                "203.0.113.0/24 via 192.0.2.254 dev near1 metric 200",
                "default via 198.51.100.254 dev near2 metric 100"
            ]
        );
        assert_eq!(
            routes("-4", "101"),
            [
                "192.0.2.0/24 dev near1 metric 0",
                "203.0.113.0/24 via 192.0.2.254 dev near1 metric 200"
            ]
        );
        assert_eq!(
            routes("-4", "102"),
            [
                "198.51.100.0/24 dev near2 metric 0",
                "default via 198.51.100.254 dev near2 metric 100"
            ]
        );
        assert_eq!(rules(), ["192.0.2.1 101", "198.51.100.1 102"]);
        let leaves_by =
            |from: &str| ip_json(&format!("route get 203.0.113.9 from {from}"))[0]["dev"].clone();
        assert_eq!(leaves_by("192.0.2.1"), "near1");
        assert_eq!(leaves_by("198.51.100.1"), "near2");
        let setting =
            |path: &str| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap();
        assert_eq!(setting("ipv4/conf/near1/arp_ignore").trim(), "1");
        assert_eq!(setting("ipv4/conf/near2/rp_filter").trim(), "2");
        assert_eq!(setting("ipv4/ip_local_reserved_ports").trim(), "24000-29999");
        assert!(nft_list().contains("iifname \"near2\" tcp dport 443"), "{}", nft_list());
        let now = observed(&engine).await;
        assert_eq!(now["in-order"], true, "{now:#}");
        assert_eq!(now["nics"][0]["mac-source"], "current");
        assert_eq!(now["pending"]["generation"]["serial"], 1);
    });
}

#[test]
fn applying_what_is_in_force_writes_nothing() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;

        assert_eq!(applied(&mut engine, 1, &plan()).await, 0);
        // A new bundle with the same network, too.
        assert_eq!(applied(&mut engine, 2, &plan()).await, 0);
        assert_eq!(engine.repair(true).await, 0);
    });
}

#[test]
fn a_restart_of_the_process_writes_nothing_but_its_sockets() {
    in_namespace(|directory| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut engine = open(directory);
            applied(&mut engine, 1, &plan()).await;
            engine.confirm(&generation(1)).unwrap();
            drop(engine);

            let mut engine = open(directory);
            engine.start().await;

            assert_eq!(engine.generation(), Some(&generation(1)));
            assert_eq!(engine.last_apply.unwrap().writes, 1, "the listener");
        });
    });
}

#[test]
fn ipv6_is_configured_like_ipv4_and_writes_nothing_again() {
    engine_test(async |mut engine| {
        let mut plan = plan();
        plan.links[1].addresses.push("2001:db8:2::1/64".parse().unwrap());
        plan.links[1].routes.push(route("::/0", "2001:db8:2::fe", 0));
        plan.listeners.push(listener(Service::Relay, "[2001:db8:2::1]:443", Transport::Udp));
        applied(&mut engine, 1, &plan).await;

        assert!(addresses("near2").contains(&"2001:db8:2::1/64".to_owned()));
        assert_eq!(
            routes("-6", "102"),
            [
                "2001:db8:2::/64 dev near2 metric 1024",
                "default via 2001:db8:2::fe dev near2 metric 1024"
            ]
        );
        assert_eq!(applied(&mut engine, 1, &plan).await, 0);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = observed(&engine).await;
        assert_eq!(now["in-order"], true, "{now:#}");
    });
}

#[test]
fn a_renumbered_nic_keeps_no_trace_of_the_old_address() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        let mut renumbered = plan();
        renumbered.links[0].addresses = vec!["192.0.2.77/24".parse().unwrap()];
        renumbered.links[1] = link(
            "lan2",
            MAC2,
            "203.0.113.1/25",
            102,
            vec![route("0.0.0.0/0", "203.0.113.126", 100)],
        );
        renumbered.links[0].routes.clear();
        renumbered.listeners = vec![listener(Service::Proxy, "203.0.113.1:443", Transport::Tcp)];
        applied(&mut engine, 2, &renumbered).await;

        assert_eq!(addresses("near1"), ["192.0.2.77/24"]);
        assert_eq!(addresses("near2"), ["203.0.113.1/25"]);
        assert_eq!(routes("-4", "main"), ["default via 203.0.113.126 dev near2 metric 100"]);
        assert_eq!(rules(), ["192.0.2.77 101", "203.0.113.1 102"]);
        assert_eq!(applied(&mut engine, 2, &renumbered).await, 0);

        engine.revert().await;
        assert!(addresses("near1").is_empty() && addresses("near2").is_empty());
        assert!(rules().is_empty() && routes("-4", "main").is_empty());
    });
}

#[test]
fn routes_and_rules_of_others_are_left_alone() {
    engine_test(async |mut engine| {
        ip("addr add 10.0.0.1/8 dev near1p");
        ip("route add 172.16.0.0/12 via 10.0.0.2");
        ip("rule add from 10.0.0.1 lookup 77 priority 500");
        applied(&mut engine, 1, &plan()).await;
        engine.revert().await;

        assert_eq!(ip_json("route show 172.16.0.0/12")[0]["gateway"], "10.0.0.2");
        assert!(ip_json("rule show").to_string().contains("\"77\""));
        assert_eq!(addresses("near1p"), ["10.0.0.1/8"]);
    });
}

#[test]
fn a_refused_ruleset_leaves_everything_as_it_was() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        let before = nft_list();
        let mut refused = plan();
        refused.links[0].addresses = vec!["192.0.2.99/24".parse().unwrap()];
        refused.ruleset["nftables"].as_array_mut().unwrap().push(json!({"add": {"rule": {
            "family": "inet", "table": "postern", "chain": "nosuch", "expr": [{"accept": null}]}}}));
        engine.put_plan(&generation(2), &refused).unwrap();

        let error = engine.apply(&generation(2)).await.unwrap_err().to_string();

        assert!(error.contains("No such file or directory"), "{error}");
        assert_eq!(nft_list(), before);
        assert_eq!(addresses("near1"), ["192.0.2.1/24"]);
        assert_eq!(engine.generation(), Some(&generation(1)));
        assert_eq!(engine.pending.as_ref().unwrap().generation, generation(1));
    });
}

#[test]
fn a_plan_that_the_kernel_refuses_half_way_is_undone() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        let mut off_link = plan();
        off_link.links[0].addresses = vec!["192.0.2.99/24".parse().unwrap()];
        off_link.links[1].routes = vec![route("0.0.0.0/0", "203.0.113.200", 50)];
        engine.put_plan(&generation(2), &off_link).unwrap();

        let error = engine.apply(&generation(2)).await.unwrap_err().to_string();

        assert!(error.contains("via 203.0.113.200"), "{error}");
        assert_eq!(addresses("near1"), ["192.0.2.1/24"]);
        assert_eq!(observed(&engine).await["in-order"], true);
    });
}

#[test]
fn a_nic_that_is_not_there_is_named_with_those_that_are() {
    engine_test(async |mut engine| {
        let mut plan = plan();
        plan.links[1].select = LinkSelector::Mac("02:00:5e:00:53:99".to_owned());
        engine.put_plan(&generation(1), &plan).unwrap();

        let error = engine.apply(&generation(1)).await.unwrap_err().to_string();

        assert!(
            error.starts_with("lan2: no NIC has MAC 02:00:5e:00:53:99; this box has "),
            "{error}"
        );
        assert!(error.contains(&format!("near2 (MAC {MAC2})")), "{error}");
        assert!(addresses("near1").is_empty());
    });
}

#[test]
fn swapped_nics_are_followed_and_shown() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        assert_eq!(observed(&engine).await["nics"][0]["kernel-name"], "near1");
        ip("link set near1 address 02:00:5e:00:53:03");
        ip(&format!("link set near2 address {MAC1}"));
        ip(&format!("link set near1 address {MAC2}"));

        assert!(engine.repair(false).await > 0);

        let now = observed(&engine).await;
        assert_eq!(now["nics"][0]["kernel-name"], "near2");
        assert_eq!(now["nics"][0]["mac-source"], "current");
        assert_eq!(now["in-order"], true, "{now:#}");
        assert_eq!(addresses("near2"), ["192.0.2.1/24"]);
        assert_eq!(addresses("near1"), ["198.51.100.1/24"]);
        assert!(nft_list().contains("iifname \"near1\" tcp dport 443"), "{}", nft_list());
    });
}

#[test]
fn a_renamed_nic_keeps_its_firewall_rules() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        ip("link set near2 down");
        ip("link set near2 name renamed");
        ip("link set renamed up");

        assert!(engine.repair(false).await > 0);

        assert!(nft_list().contains("iifname \"renamed\" tcp dport 443"), "{}", nft_list());
        assert_eq!(observed(&engine).await["in-order"], true);
    });
}

#[test]
fn a_nic_that_comes_late_is_configured_when_it_comes() {
    in_namespace(|directory| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut engine = open(directory);
            applied(&mut engine, 1, &plan()).await;
            engine.confirm(&generation(1)).unwrap();
            drop(engine);
            ip("link del near2");

            let mut engine = open(directory);
            engine.start().await;
            assert_eq!(addresses("near1"), ["192.0.2.1/24"]);
            let now = observed(&engine).await;
            assert!(
                now["faults"][0].as_str().unwrap().starts_with("lan2: no NIC has MAC"),
                "{now}"
            );

            ip(&format!("link add late address {MAC2} type veth peer name latep"));
            ip("link set latep up");
            assert!(engine.repair(false).await > 0);
            assert_eq!(addresses("late"), ["198.51.100.1/24"]);
            assert_eq!(observed(&engine).await["in-order"], true);
        });
    });
}

#[test]
fn a_changed_ruleset_is_seen_and_put_back() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        let flushed = Command::new("nft").args(["flush", "table", "inet", "postern"]).status();
        assert!(flushed.unwrap().success());
        assert_eq!(observed(&engine).await["ruleset"]["in-order"], false);

        assert_eq!(engine.repair(true).await, 1);
        assert_eq!(observed(&engine).await["in-order"], true);
    });
}

#[test]
fn counters_and_traffic_do_not_make_a_ruleset_differ() {
    engine_test(async |mut engine| {
        applied(&mut engine, 1, &plan()).await;
        let addresses: [SocketAddr; 2] =
            ["192.0.2.254:9".parse().unwrap(), "198.51.100.1:443".parse().unwrap()];
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for address in addresses {
            drop(socket.send_to(b"x", address));
        }
        assert_eq!(engine.repair(true).await, 0);
    });
}

/// The plan that the planner makes of the reference site.
const REFERENCE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/plan/octavio.plan.json"));

/// The reference site's plan, with the NICs here made to match it.
fn reference_plan() -> NetPlan {
    let golden: Value = serde_json::from_str(REFERENCE).unwrap();
    let plan: NetPlan = serde_json::from_value(golden["net"].clone()).unwrap();
    for (near, link) in ["near1", "near2"].iter().zip(&plan.links) {
        let LinkSelector::Mac(mac) = &link.select else { panic!("{link:?}") };
        ip(&format!("link set {near} address {mac}"));
    }
    plan
}

#[test]
fn the_reference_site_applies_and_writes_nothing_again() {
    engine_test(async |mut engine| {
        let plan = reference_plan();

        assert!(applied(&mut engine, 7, &plan).await > 0);

        let now = observed(&engine).await;
        assert_eq!(now["in-order"], true, "{now:#}");
        assert_eq!(applied(&mut engine, 7, &plan).await, 0);
        assert_eq!(engine.repair(true).await, 0);
    });
}

#[test]
fn a_setting_of_the_machine_around_a_namespace_is_left_out_and_shown() {
    engine_test(async |mut engine| {
        let mut plan = plan();
        let machines = "net/core/rmem_max".to_owned();
        let here = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
        plan.sysctls.push((machines.clone(), "123456".to_owned()));
        plan.sysctls.push(("net/ipv4/no_such_setting".to_owned(), "1".to_owned()));

        applied(&mut engine, 1, &plan).await;

        let now = observed(&engine).await;
        assert_eq!(now["in-order"], true, "{now:#}");
        assert_eq!(now["sysctls"]["unsettable"], json!([machines, "net/ipv4/no_such_setting"]));
        let after = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap_or_default();
        assert_eq!(after, here);
    });
}

#[test]
fn a_setting_outside_net_is_refused() {
    engine_test(async |mut engine| {
        for path in ["kernel/core_pattern", "net/../kernel/core_pattern", "net//x"] {
            let mut plan = plan();
            plan.sysctls = vec![(path.to_owned(), "x".to_owned())];
            engine.put_plan(&generation(1), &plan).unwrap();
            let error = engine.apply(&generation(1)).await.unwrap_err().to_string();
            assert!(error.contains("only plain paths below net/"), "{error}");
        }
    });
}

#[test]
fn a_ruleset_about_another_table_is_refused() {
    engine_test(async |mut engine| {
        let mut plan = plan();
        plan.ruleset = json!([{"flush": {"table": {"family": "ip", "name": "others"}}}]);
        engine.put_plan(&generation(1), &plan).unwrap();

        let error = engine.apply(&generation(1)).await.unwrap_err().to_string();

        assert!(error.contains("only the table inet postern is ours"), "{error}");
    });
}
