//! What status tells of a relay.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::json;

use super::{Control, Guest, Log, SHARDS, enter_network, slice, start_shards};
use crate::plan::RelaySlice;

#[test]
fn a_range_without_a_free_port_is_an_alarm_and_each_allocation_tells_its_traffic() {
    for shards in SHARDS {
        enter_network();
        let handle = start_shards(shards, &Log::default());
        let mut control = Control::new(&handle);
        control.swap(&RelaySlice { media_ports: (24000, 24001), ..slice() }).unwrap();
        let before = control.report();
        let server = UdpSocket::bind("198.51.100.180:5000").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let guests = [Guest::new(), Guest::new()];
        for guest in &guests {
            guest.allocate("correct horse").unwrap();
        }
        guests[0].permit("198.51.100.180:0");
        guests[0].indicate("198.51.100.180:5000", &[0; 100]);
        let (_, relay) = server.recv_from(&mut [0; 128]).unwrap();
        server.send_to(&[0; 10], relay).unwrap();
        guests[0].socket.recv(&mut [0; 128]).unwrap();

        assert_eq!(Guest::new().allocate("correct horse"), Err(508));

        let report = control.report();
        assert_eq!(before["alarms"], json!([]));
        assert_eq!(before["ports"], json!({ "used": 0, "free": 2 }));
        assert_eq!(report["alarms"], json!(["ports-exhausted"]));
        assert_eq!(report["ports"], json!({ "used": 2, "free": 0 }));
        assert_eq!(report["shards"], shards);
        assert_eq!(report["refused"]["media-ports"], 1);
        assert_eq!(report["kernel-receive-drops"], 0);
        assert_eq!(report["allocations-are-all"], true);
        let allocations = report["allocations"].as_array().unwrap();
        assert_eq!(allocations.len(), 2);
        let client = guests[0].socket.local_addr().unwrap().to_string();
        let own = allocations.iter().find(|one| one["client"] == client).unwrap();
        assert_eq!(own["from-client"], json!({ "packets": 1, "bytes": 100 }));
        assert_eq!(own["to-client"], json!({ "packets": 1, "bytes": 10 }));
        assert_eq!(own["relayed"], json!([format!("203.0.113.156:{}", relay.port())]));
        assert_eq!((&own["user"], &own["transport"]), (&json!("turnuser"), &json!("udp")));
    }
}
