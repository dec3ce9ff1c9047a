//! ChannelBind and ChannelData (RFC 8656 §12).

use std::net::SocketAddr;

use crate::conformance::case::{Case, Outcome, expect};
use crate::conformance::client::{bind_request, channel_data};
use crate::conformance::setting::{Place, Stage};
use crate::conformance::stun::{CHANNEL_BIND, CHANNEL_NUMBER, Packet, XOR_PEER_ADDRESS};

pub(super) const CASES: &[Case] = &[
    Case::new("a_channel_carries_data_both_ways", "RFC 8656 §12", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.send_channel(0x4000, b"to the peer")?;
        let relay = peer.expect(b"to the peer")?;
        peer.send(relay, b"to the client")?;
        client.expect_channel(0x4000, b"to the client")
    }),
    Case::new("a_channel_carries_data_of_every_length", "RFC 8656 §12.5", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        for length in [1_usize, 2, 3, 4, 5, 7, 8, 100, 1_199, 1_200, 1_400] {
            let data = vec![0xC3; length];
            client.send_channel(0x4000, &data)?;
            let relay = peer.expect(&data)?;
            peer.send(relay, &data)?;
            client.expect_channel(0x4000, &data)?;
        }
        Ok(())
    }),
    Case::new("an_empty_channel_data_becomes_an_empty_datagram", "RFC 8656 §12.6", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.send_channel(0x4000, b"")?;
        peer.expect(b"").map(drop)
    }),
    Case::new("an_empty_datagram_becomes_an_empty_channel_data", "RFC 8656 §12.7", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.send_channel(0x4000, b"where")?;
        let relay = peer.expect(b"where")?;
        peer.send(relay, b"")?;
        client.expect_channel(0x4000, b"")
    }),
    Case::new("padded_channel_data_over_udp_is_cut_to_its_length", "RFC 8656 §12.5", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.send(&channel_data(0x4000, b"five!", true))?;
        peer.expect(b"five!").map(drop)
    }),
    Case::new("channel_data_shorter_than_it_says_is_dropped", "RFC 8656 §12.6", |stage| {
        dropped(stage, &[0x40, 0x00, 0x00, 0x08, 1, 2, 3, 4])
    }),
    Case::new("channel_data_without_a_whole_header_is_dropped", "RFC 8656 §12.6", |stage| {
        dropped(stage, &[0x40, 0x00, 0x00])
    }),
    Case::new("channel_data_on_an_unbound_channel_is_dropped", "RFC 8656 §12.6", |stage| {
        dropped(stage, &channel_data(0x4001, b"nobody", false))
    }),
    Case::new("channel_data_without_an_allocation_is_dropped", "RFC 8656 §12.6", |stage| {
        stage.guest()?.ignored(&channel_data(0x4000, b"nobody", false))
    }),
    Case::new("a_channel_installs_a_permission", "RFC 8656 §12.2", |stage| {
        let (peer, other) = (stage.peer(Place::Media)?, stage.peer(Place::Media)?);
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.send_to(other.address, b"by indication")?;
        other.expect(b"by indication").map(drop)
    }),
    Case::new(
        "data_from_another_port_of_a_channels_peer_is_an_indication",
        "RFC 8656 §12.7",
        |stage| {
            let (peer, other) = (stage.peer(Place::Media)?, stage.peer(Place::Media)?);
            let mut client = stage.guest()?.allocated()?;
            client.bind(0x4000, peer.address)?;
            client.send_channel(0x4000, b"where")?;
            let relay = peer.expect(b"where")?;
            other.send(relay, b"another port")?;
            client.expect_data(other.address, b"another port")
        },
    ),
    Case::new("channel_0x3fff_gets_400", "RFC 8656 §12.2", |stage| number_refused(stage, 0x3FFF)),
    Case::new("channel_0_gets_400", "RFC 8656 §12.2", |stage| number_refused(stage, 0)),
    Case::new("channel_0x8000_gets_400", "RFC 8656 §12.2", |stage| number_refused(stage, 0x8000)),
    Case::new("channel_0xffff_gets_400", "RFC 8656 §12.2", |stage| number_refused(stage, 0xFFFF)),
    Case::new("channel_0x4fff_is_accepted", "RFC 8656 §12", |stage| {
        stage.guest()?.allocated()?.bind(0x4FFF, media())
    }),
    Case::new("channel_0x7fff_of_rfc_5766_is_accepted", "policy: RFC 5766 §11", |stage| {
        stage.guest()?.allocated()?.bind(0x7FFF, media())
    }),
    Case::new("channel_bind_without_number_gets_400", "RFC 8656 §12.2", |stage| {
        let request = Packet::new(CHANNEL_BIND).address(XOR_PEER_ADDRESS, media());
        stage.guest()?.allocated()?.refused(request, 400).map(drop)
    }),
    Case::new("channel_bind_without_peer_gets_400", "RFC 8656 §12.2", |stage| {
        let request = Packet::new(CHANNEL_BIND).number(CHANNEL_NUMBER, 0x4000_0000);
        stage.guest()?.allocated()?.refused(request, 400).map(drop)
    }),
    Case::new("channel_bind_without_allocation_gets_437", "RFC 8656 §5", |stage| {
        stage.guest()?.challenged()?.refused(bind_request(0x4000, media()), 437).map(drop)
    }),
    Case::new("channel_bind_of_the_other_family_gets_443", "RFC 8656 §12.2", |stage| {
        let peer = SocketAddr::new(Place::MediaV6.ip(), 40_000);
        stage.guest()?.allocated()?.refused(bind_request(0x4000, peer), 443).map(drop)
    }),
    Case::new("a_channel_of_another_peer_gets_400", "RFC 8656 §12.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, media())?;
        client.refused(bind_request(0x4000, second()), 400).map(drop)
    }),
    Case::new("a_peer_of_another_channel_gets_400", "RFC 8656 §12.2", |stage| {
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, media())?;
        client.refused(bind_request(0x4001, media()), 400).map(drop)
    }),
    Case::new("a_refused_binding_changes_nothing", "RFC 8656 §12.2", |stage| {
        let (peer, other) = (stage.peer(Place::Media)?, stage.peer(Place::SecondMedia)?);
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.refused(bind_request(0x4000, other.address), 400)?;
        client.refused(bind_request(0x4001, peer.address), 400)?;
        client.send_channel(0x4001, b"never bound")?;
        client.send_channel(0x4000, b"bound")?;
        peer.expect(b"bound")?;
        other.hears_nothing()
    }),
    Case::new("a_channel_is_refreshed_by_binding_it_again", "RFC 8656 §12.1", |stage| {
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, media())?;
        client.bind(0x4000, media())
    }),
    Case::new("the_ports_of_one_address_may_have_channels_of_their_own", "RFC 8656 §12", |stage| {
        let (peer, other) = (stage.peer(Place::Media)?, stage.peer(Place::Media)?);
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.bind(0x4001, other.address)?;
        client.send_channel(0x4001, b"other")?;
        client.send_channel(0x4000, b"peer")?;
        peer.expect(b"peer")?;
        other.expect(b"other").map(drop)
    }),
    Case::new("the_reserved_octets_of_channel_number_are_ignored", "RFC 8656 §18.1", |stage| {
        let request = Packet::new(CHANNEL_BIND)
            .number(CHANNEL_NUMBER, 0x4000_1234)
            .address(XOR_PEER_ADDRESS, media());
        stage.guest()?.allocated()?.succeed(request).map(drop)
    }),
    Case::new("channels_end_with_the_allocation", "RFC 8656 §12", |stage| {
        let (peer, other) = (stage.peer(Place::Media)?, stage.peer(Place::SecondMedia)?);
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.succeed(crate::conformance::client::refresh_request(0))?;
        let mut client = client.allocated()?;
        client.bind(0x4001, other.address)?;
        client.send_channel(0x4000, b"of the last allocation")?;
        client.send_channel(0x4001, b"mark")?;
        other.expect(b"mark")?;
        peer.hears_nothing()
    }),
    Case::new("a_send_indication_to_a_channels_peer_still_works", "RFC 8656 §12", |stage| {
        let peer = stage.peer(Place::Media)?;
        let mut client = stage.guest()?.allocated()?;
        client.bind(0x4000, peer.address)?;
        client.send_to(peer.address, b"the long way")?;
        let relay = peer.expect(b"the long way")?;
        peer.send(relay, b"the short way")?;
        client.expect_channel(0x4000, b"the short way")
    }),
];

fn media() -> SocketAddr {
    SocketAddr::new(Place::Media.ip(), 40_000)
}

fn second() -> SocketAddr {
    SocketAddr::new(Place::SecondMedia.ip(), 40_000)
}

fn number_refused(stage: &Stage<'_>, number: u16) -> Outcome {
    stage.guest()?.allocated()?.refused(bind_request(number, media()), 400).map(drop)
}

/// With channel 0x4000 bound, those octets reach nobody, are not answered, and break nothing.
fn dropped(stage: &Stage<'_>, bytes: &[u8]) -> Outcome {
    let peer = stage.peer(Place::Media)?;
    let mut client = stage.guest()?.allocated()?;
    client.bind(0x4000, peer.address)?;
    client.send(bytes)?;
    client.send_channel(0x4000, b"mark")?;
    peer.expect(b"mark")?;
    client.hears_nothing()?;
    let silent = peer.hears_nothing();
    expect(silent.is_ok(), "nothing more at the peer", silent)
}
