//! Nothing is allocated on the heap for a relayed packet.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use postern_turn::stun::{AttributeType, Class, Method, Writer};
use postern_turn::{Destination, Errand, Quotas, RelayPort, Settings, Side};

use crate::lab::{Lab, MEDIA_SERVER, at, channel_data, guest, settings};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static OCTETS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the allocations of each thread, and the octets that it holds.
struct Counting;

#[expect(unsafe_code, reason = "only an allocator sees allocations")]
// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        OCTETS.with(|octets| octets.set(octets.get().wrapping_add(layout.size())));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        OCTETS.with(|octets| octets.set(octets.get().wrapping_sub(layout.size())));
        // SAFETY: `pointer` came from `alloc` above, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_relayed_packet_costs_no_heap_allocation() {
    let quotas = Quotas {
        allocation_bytes_per_second: Some(1 << 40),
        total_bytes_per_second: Some(1 << 40),
        ..Quotas::default()
    };
    let allow = vec!["198.51.100.176/28".parse().unwrap()];
    let mut lab = Lab::sharded(Settings { quotas, allow, ..settings() }, 2);
    lab.homes.insert(guest(3), 1);
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(guest(2));
    let (c, relay_c) = lab.allocate(guest(3));
    lab.permit(guest(3), &c, &[&relay_a.ip().to_string()]);
    let unbound = channel_data(0x4FFF, &[1; 1200]);
    lab.bind(guest(1), &a, 0x4000, at(MEDIA_SERVER));
    lab.bind(guest(1), &a, 0x4001, relay_b);
    lab.permit(guest(2), &b, &[&relay_a.ip().to_string()]);
    let to_server = channel_data(0x4000, &[1; 1200]);
    let to_relay = channel_data(0x4001, &[1; 1200]);
    let transaction = lab.transaction();
    let indication = Writer::new(Class::Indication, Method::SEND, transaction)
        .xor_address(AttributeType::XOR_PEER_ADDRESS, at(MEDIA_SERVER))
        .attribute(AttributeType::DATA, &[1; 1200])
        .finish();
    lab.permit(guest(1), &a, &["198.51.100.182"]);
    let stranger = at("198.51.100.182:4000");
    let elsewhere = channel_data(0x4002, &[1; 1200]);
    lab.bind(guest(1), &a, 0x4002, relay_c);
    let peer = at(MEDIA_SERVER);
    let relay = RelayPort(relay_a.port());

    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..100 {
        for datagram in [&to_server, &to_relay, &indication] {
            assert!(lab.server.handle_client(guest(1), datagram, lab.now).is_some());
        }
        let relayed = lab.server.handle_peer(relay, Side::Inside, peer, &to_server, lab.now);
        assert!(relayed.is_some());
        let relayed = lab.server.handle_peer(relay, Side::Inside, stranger, &to_server, lab.now);
        assert!(relayed.is_some_and(|relayed| relayed.prefix.as_bytes().len() > 4));
        let relayed = lab.server.handle_client(guest(1), &elsewhere, lab.now).unwrap();
        let Destination::Shard { shard, errand: Errand::Relay { origin, target } } = relayed.to
        else {
            panic!("{relayed:?}");
        };
        let payload = &elsewhere[relayed.payload];
        let now = lab.now;
        assert!(lab.shard(shard.0).handle_relay(origin, target, payload, now).is_some());
        // Two clients in turns miss the one that was found last.
        assert!(lab.server.handle_client(guest(2), &unbound, lab.now).is_none());
    }
    let after = ALLOCATIONS.with(Cell::get);

    assert_eq!(after - before, 0);
}

#[test]
fn an_idle_allocation_with_a_permission_and_a_channel_holds_less_than_1500_octets() {
    let media_ports = Some(20000..=24095);
    let quotas = Quotas { per_source: 4096, ..Quotas::default() };
    let mut lab = Lab::with(Settings { media_ports, quotas, ..settings() });
    let login = lab.alice(guest(1));
    let open = |lab: &mut Lab, port| {
        let request = lab.begin_allocate();
        assert_eq!(lab.ask(guest(port), &login, request).code(), 0);
        assert_eq!(lab.bind(guest(port), &login, 0x4000, at(MEDIA_SERVER)).code(), 0);
    };
    open(&mut lab, 1);
    let before = OCTETS.with(Cell::get);

    for port in 2..=4096 {
        open(&mut lab, port);
    }
    lab.events = Vec::new();
    lab.open.clear();
    lab.owners.clear();
    let held = OCTETS.with(Cell::get) - before;

    assert!(held / 4095 < 1500, "{} octets for each", held / 4095);
}
