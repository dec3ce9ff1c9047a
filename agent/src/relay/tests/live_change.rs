//! A configuration changes while media flows: not one packet is lost.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use turn::stun::{AttributeType, Message};

use super::{Control, Guest, SHARDS, slice, start};
use crate::plan::{RelayListener, RelaySlice, RelayUser, Transport};

/// Ten thousand packets per second for two seconds, as far as the machine keeps up.
const PACKETS: u32 = 20_000;
const PER_MILLISECOND: u32 = 10;

/// Packets on their way at once: fewer than any socket's buffer holds, so that a slow machine is
/// no reason for a loss.
const ON_THE_WAY: u32 = 100;

/// One after the other: users come and go, listeners too, the media range moves, peers change.
fn changes() -> Vec<RelaySlice> {
    let listener = |address: &str| RelayListener {
        address: address.parse().unwrap(),
        transport: Transport::Udp,
        inside: false,
    };
    let mut more_users = slice();
    more_users.users.push(RelayUser { name: "another".into(), password: "battery".into() });
    let mut more_listeners = slice();
    more_listeners.listeners.push(listener("192.0.2.61:3479"));
    more_listeners.listeners.insert(0, listener("192.0.2.61:3480"));
    let mut fewer_listeners = slice();
    fewer_listeners.listeners.remove(0);
    let other_range = RelaySlice { media_ports: (30_000, 30_999), ..slice() };
    let mut more_peers = slice();
    more_peers.allow.insert(0, "198.51.100.181/32".parse().unwrap());
    vec![more_users, more_listeners, fewer_listeners, other_range, more_peers, slice()]
}

#[test]
fn no_packet_is_lost_while_the_configuration_changes() {
    for shards in SHARDS {
        let (handle, _) = start(shards);
        let mut control = Control::new(&handle);
        control.swap(&slice()).unwrap();
        let guest = Guest::new();
        guest.allocate("correct horse").unwrap();
        let peer = UdpSocket::bind("198.51.100.180:5000").unwrap();
        guest.permit("198.51.100.180:0");
        let done = AtomicBool::new(false);

        let (returned, swaps) = std::thread::scope(|scope| {
            scope.spawn(|| echo(&peer, &done));
            let finished = &done;
            let traffic = scope.spawn(move || {
                let returned = send_and_receive(&guest);
                finished.store(true, Ordering::Relaxed);
                returned
            });
            let mut swaps = 0;
            for slice in changes().iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                control.swap(slice).unwrap();
                swaps += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            (traffic.join().unwrap(), swaps)
        });

        assert!(swaps >= 20, "{swaps} swaps while packets flowed");
        assert_eq!(returned.len(), PACKETS as usize, "{swaps} swaps");
        let snapshot = handle.snapshot().unwrap();
        assert_eq!(snapshot.counters.relayed_packets, 2 * u64::from(PACKETS));
        assert_eq!(snapshot.losses, Default::default());
    }
}

/// Sends back whatever comes.
fn echo(peer: &UdpSocket, done: &AtomicBool) {
    peer.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 1500];
    while !done.load(Ordering::Relaxed) {
        if let Ok((length, from)) = peer.recv_from(&mut buffer) {
            peer.send_to(&buffer[..length], from).unwrap();
        }
    }
}

/// Sends numbered packets to the peer and returns the numbers that come back.
fn send_and_receive(guest: &Guest) -> BTreeSet<u32> {
    let mut returned = BTreeSet::new();
    let started = Instant::now();
    let mut sent = 0;
    guest.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut last_return = Instant::now();
    while returned.len() < PACKETS as usize && last_return.elapsed() < Duration::from_secs(5) {
        let elapsed = u32::try_from(started.elapsed().as_millis()).unwrap();
        let due = PACKETS.min((elapsed + 1) * PER_MILLISECOND);
        let back = u32::try_from(returned.len()).unwrap();
        while sent < due.min(back + ON_THE_WAY) {
            guest.indicate("198.51.100.180:5000", &sent.to_be_bytes());
            sent += 1;
        }
        let mut buffer = [0; 1500];
        while let Ok(length) = guest.socket.recv(&mut buffer) {
            let message = Message::parse(&buffer[..length]).unwrap();
            let data = message.attribute(AttributeType::DATA).unwrap();
            assert!(returned.insert(u32::from_be_bytes(data.try_into().unwrap())), "twice");
            last_return = Instant::now();
            if returned.len() >= back as usize + 10 {
                break;
            }
        }
    }
    returned
}
