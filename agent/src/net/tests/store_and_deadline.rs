//! The whole process: its socket, its peers, its deadline, its repairs.

use super::*;

const EVERYBODY: Peers = Peers { unseal: Some(0), agent: Some(0), relay: Some(0), proxy: Some(0) };

/// Runs the server in a namespace and `test` beside it.
fn server_test(peers: Peers, test: impl FnOnce(&Path) + Send + 'static) {
    in_namespace(move |directory| start(directory, peers, test));
}

/// Runs the server over `directory` until `test` returns.
fn start(directory: &Path, peers: Peers, test: impl FnOnce(&Path)) {
    let paths = Paths {
        state: directory.join("state"),
        run: directory.join("run"),
        socket: directory.join("run/control"),
    };
    drop(std::fs::remove_file(&paths.socket));
    let socket = paths.socket.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                ended = serve_at(&paths, peers) => ended.unwrap(),
                _ = stopped => {}
            }
        });
    });
    wait_for("the socket", || Channel::connect(&socket).is_ok());
    test(&socket);
    drop(stop);
    server.join().unwrap();
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what} did not come in 10 s");
        thread::sleep(Duration::from_millis(5));
    }
    started.elapsed()
}

fn ask(socket: &Path, request: &NetRequest) -> NetReply {
    ask_with(socket, request, None).0
}

fn ask_with(socket: &Path, request: &NetRequest, fd: Option<OwnedFd>) -> (NetReply, Vec<OwnedFd>) {
    let channel = Channel::connect(socket).unwrap();
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    channel.send(request, &fds).unwrap();
    channel.receive().unwrap().expect("a reply")
}

fn hand_over(socket: &Path, serial: u64, plan: &NetPlan) {
    let fd = seal("plan", &serde_json::to_vec(plan).unwrap()).unwrap();
    let (reply, _) = ask_with(socket, &NetRequest::Plan(generation(serial)), Some(fd));
    assert!(matches!(reply, NetReply::Done), "{reply:?}");
}

fn apply(socket: &Path, serial: u64) -> u32 {
    match ask(socket, &NetRequest::Apply(generation(serial))) {
        NetReply::Applied { now, writes, micros, .. } => {
            assert_eq!(now, Some(generation(serial)));
            println!("generation {serial} over the socket: {writes} writes in {micros} us");
            writes
        }
        other => panic!("{other:?}"),
    }
}

fn observe(socket: &Path) -> Value {
    match ask(socket, &NetRequest::Observe) {
        NetReply::Observed(value) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unconfirmed_generation_is_taken_back_at_its_deadline() {
    server_test(EVERYBODY, |socket| {
        hand_over(socket, 1, &plan());
        apply(socket, 1);
        assert!(matches!(ask(socket, &NetRequest::Confirm(generation(1))), NetReply::Done));
        let mut other = plan();
        other.links[0].addresses = vec!["192.0.2.50/24".parse().unwrap()];
        other.deadline = Duration::from_secs(1);
        hand_over(socket, 2, &other);
        apply(socket, 2);
        assert_eq!(addresses("near1"), ["192.0.2.50/24"]);

        let took = wait_for("the old address", || addresses("near1") == ["192.0.2.1/24"]);

        println!("taken back {took:?} after an apply with a deadline of 1 s");
        let now = observe(socket);
        assert_eq!(now["generation"]["serial"], 1);
        assert_eq!(now["pending"], Value::Null);
        assert_eq!(now["last-known-good"]["floor"], 1);
        let late = ask(socket, &NetRequest::Confirm(generation(2)));
        assert!(matches!(&late, NetReply::Failed(why) if why.contains("not in force")), "{late:?}");
    });
}

#[test]
fn a_first_generation_that_nobody_confirms_leads_back_to_the_rescue_plan() {
    server_test(EVERYBODY, |socket| {
        let mut plan = plan();
        plan.deadline = Duration::from_secs(1);
        hand_over(socket, 1, &plan);
        apply(socket, 1);

        wait_for("the rescue plan", || observe(socket)["rescue"] == true);

        assert!(addresses("near1").is_empty());
    });
}

#[test]
fn a_confirmed_generation_stays_beyond_its_deadline() {
    server_test(EVERYBODY, |socket| {
        let mut plan = plan();
        plan.deadline = Duration::from_secs(1);
        hand_over(socket, 1, &plan);
        apply(socket, 1);
        ask(socket, &NetRequest::Confirm(generation(1)));
        thread::sleep(Duration::from_millis(1500));

        assert_eq!(observe(socket)["generation"]["serial"], 1);
        assert_eq!(addresses("near1"), ["192.0.2.1/24"]);
    });
}

#[test]
fn a_restart_in_the_same_boot_goes_on_and_in_another_goes_back() {
    in_namespace(|directory| {
        start(directory, EVERYBODY, |socket| {
            hand_over(socket, 1, &plan());
            apply(socket, 1);
            ask(socket, &NetRequest::Confirm(generation(1)));
            let mut other = plan();
            other.links[0].addresses = vec!["192.0.2.50/24".parse().unwrap()];
            hand_over(socket, 2, &other);
            apply(socket, 2);
        });
        start(directory, EVERYBODY, |socket| {
            let now = observe(socket);
            assert_eq!(now["pending"]["generation"]["serial"], 2);
            assert!(now["pending"]["seconds-left"].as_u64().unwrap() > 50);
            assert_eq!(addresses("near1"), ["192.0.2.50/24"]);
        });
        let pending = directory.join("state/pending");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&pending).unwrap()).unwrap();
        value["boot-id"] = "00000000-0000-0000-0000-000000000000".into();
        std::fs::write(&pending, value.to_string()).unwrap();
        start(directory, EVERYBODY, |socket| {
            let now = observe(socket);
            assert_eq!(now["generation"]["serial"], 1);
            assert_eq!(addresses("near1"), ["192.0.2.1/24"]);
        });
        assert!(!pending.exists());
    });
}

#[test]
fn drift_is_repaired_by_itself_and_own_writes_do_not_loop() {
    server_test(EVERYBODY, |socket| {
        hand_over(socket, 1, &plan());
        apply(socket, 1);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(observe(socket)["drift-repairs"], 0);

        ip("addr del 198.51.100.1/24 dev near2");
        let took = wait_for("the address", || {
            addresses("near2") == ["198.51.100.1/24"] && routes("-4", "main").len() == 2
        });

        println!("drift repaired in {took:?}");
        thread::sleep(Duration::from_millis(300));
        let repairs = observe(socket)["drift-repairs"].as_u64().unwrap();
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(observe(socket)["drift-repairs"], repairs);

        ip("link set near1 down");
        wait_for("the link", || ip_json("link show near1")[0]["operstate"] == "UP");
        wait_for("its routes", || routes("-4", "101").len() == 2);
        ip("rule del from 192.0.2.1 lookup 101");
        wait_for("the rule", || rules() == ["192.0.2.1 101", "198.51.100.1 102"]);
        ip("addr add 203.0.113.66/24 dev near1");
        wait_for("only the plan's address", || addresses("near1") == ["192.0.2.1/24"]);
        assert_eq!(observe(socket)["in-order"], true);
    });
}

#[test]
fn a_gateway_is_reachable_when_it_answers() {
    server_test(EVERYBODY, |socket| {
        // The far end answers for lan1's gateway; nobody does for lan2's.
        let status =
            Command::new("ip").args(["addr", "add", "192.0.2.254/24", "dev", "near1p"]).status();
        assert!(status.unwrap().success());
        hand_over(socket, 1, &plan());
        apply(socket, 1);

        wait_for("both answers", || {
            let gateways = observe(socket)["gateways"].clone();
            gateways[0]["interface"] == "lan1" && gateways[1]["reachable"] == false
        });
    });
}

#[test]
fn a_service_gets_its_listeners_and_they_outlive_a_change() {
    server_test(EVERYBODY, |socket| {
        hand_over(socket, 1, &plan());
        apply(socket, 1);
        let (reply, fds) = ask_with(socket, &NetRequest::Listeners, None);
        let NetReply::Listeners(plans) = reply else { panic!("{reply:?}") };
        assert_eq!(plans, plan().listeners);
        let held = std::net::TcpListener::from(fds.into_iter().next().unwrap());
        drop(held);

        // Nobody accepts at the moment, yet a connection attempt is not lost.
        let client = std::net::TcpStream::connect("198.51.100.1:443").unwrap();
        let mut other = plan();
        other.listeners.push(listener(Service::Relay, "198.51.100.1:443", Transport::Udp));
        hand_over(socket, 2, &other);
        assert_eq!(apply(socket, 2), 1, "the new listener only");

        let (_, fds) = ask_with(socket, &NetRequest::Listeners, None);
        assert_eq!(fds.len(), 2);
        let held = std::net::TcpListener::from(fds.into_iter().next().unwrap());
        held.set_nonblocking(false).unwrap();
        let (accepted, from) = held.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        drop(accepted);
    });
}

#[test]
fn a_peer_may_ask_only_what_is_its_own() {
    let others = Peers { unseal: Some(1), agent: Some(2), relay: Some(3), proxy: None };
    server_test(others, |socket| {
        for request in [
            NetRequest::Apply(generation(1)),
            NetRequest::Plan(generation(1)),
            NetRequest::Confirm(generation(1)),
            NetRequest::Revert,
            NetRequest::Listeners,
        ] {
            let reply = ask(socket, &request);
            assert!(matches!(reply, NetReply::Failed(_)), "{request:?} {reply:?}");
        }
        assert_eq!(observe(socket)["rescue"], true);
    });
}
