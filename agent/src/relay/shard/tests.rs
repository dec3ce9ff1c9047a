use std::net::UdpSocket;

use nix::sys::epoll::{EpollEvent, EpollTimeout};

use super::listeners::Opened;
use super::{Shard, new};

#[test]
fn a_closed_listener_that_postern_net_still_holds_wakes_nobody() {
    let (mut shards, _handle) = new(1).unwrap();
    let shard = &mut shards[0];
    let held = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let opened = vec![Opened { address, socket: held.try_clone().unwrap(), reads: true }];
    let mut events = [EpollEvent::empty(); 4];
    let mut ready = |shard: &Shard| shard.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();

    shard.forwarder.listeners.change(&shard.epoll, &[address], opened).unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).unwrap();
    assert_eq!(ready(shard), 1);
    shard.forwarder.listeners.change(&shard.epoll, &[], Vec::new()).unwrap();

    assert_eq!(ready(shard), 0);
}
