//! Nothing is allocated on the heap for a relayed packet.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use postern_turn::stun::{AttributeType, Class, Method, Writer};
use postern_turn::{RelayPort, Side};

use crate::lab::{Lab, MEDIA_SERVER, at, channel_data, guest};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

#[expect(unsafe_code, reason = "only an allocator sees allocations")]
// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, which is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_relayed_packet_costs_no_heap_allocation() {
    let mut lab = Lab::new();
    let (a, relay_a) = lab.allocate(guest(1));
    let (b, relay_b) = lab.allocate(guest(2));
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
    let peer = at(MEDIA_SERVER);
    let relay = RelayPort(relay_a.port());

    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..100 {
        for datagram in [&to_server, &to_relay, &indication] {
            assert!(lab.server.handle_client(guest(1), datagram, lab.now).is_some());
        }
        let relayed = lab.server.handle_peer(relay, Side::Inside, peer, &to_server, lab.now);
        assert!(relayed.is_some());
    }
    let after = ALLOCATIONS.with(Cell::get);

    assert_eq!(after - before, 0);
}
