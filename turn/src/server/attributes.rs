//! What requests carry (RFC 8489 §14, RFC 8656 §18).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::allocation::{DEFAULT_LIFETIME, MAX_LIFETIME};
use crate::channel::ChannelNumber;
use crate::five_tuple::Family;
use crate::output::ConnectionId;
use crate::relay_port::Wish;
use crate::stun::{AttributeType, ErrorCode, Message, Method};

/// Comprehension-required attributes that a request may carry.
const KNOWN: [AttributeType; 14] = [
    AttributeType::USERNAME,
    AttributeType::USERHASH,
    AttributeType::PASSWORD_ALGORITHM,
    AttributeType::CHANNEL_NUMBER,
    AttributeType::LIFETIME,
    AttributeType::XOR_PEER_ADDRESS,
    AttributeType::REALM,
    AttributeType::NONCE,
    AttributeType::REQUESTED_ADDRESS_FAMILY,
    AttributeType::EVEN_PORT,
    AttributeType::REQUESTED_TRANSPORT,
    AttributeType::DONT_FRAGMENT,
    AttributeType::RESERVATION_TOKEN,
    AttributeType::CONNECTION_ID,
];

/// The value of UNKNOWN-ATTRIBUTES for what `message` has and nobody here knows.
pub(super) fn unknown_attributes(message: &Message<'_>) -> Vec<u8> {
    let known = |kind: AttributeType| {
        !kind.is_comprehension_required()
            || KNOWN.contains(&kind)
            || kind == AttributeType::DATA && message.method() == Method::SEND
    };
    let mut unknown: Vec<_> =
        message.attributes().map(|(kind, _)| kind).filter(|kind| !known(*kind)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    unknown.into_iter().flat_map(|kind| kind.0.to_be_bytes()).collect()
}

/// LIFETIME of a request.
pub(super) fn lifetime(request: &Message<'_>) -> Result<Option<Duration>, ErrorCode> {
    let Some(value) = request.attribute(AttributeType::LIFETIME) else {
        return Ok(None);
    };
    let value = <[u8; 4]>::try_from(value).map_err(|_| ErrorCode::BAD_REQUEST)?;
    Ok(Some(Duration::from_secs(u32::from_be_bytes(value).into())))
}

/// What a client gets that asked for this (RFC 8656 §7.2).
pub(super) fn granted_lifetime(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(DEFAULT_LIFETIME).clamp(DEFAULT_LIFETIME, MAX_LIFETIME)
}

pub(super) fn lifetime_bytes(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

/// REQUESTED-ADDRESS-FAMILY of a request; an unknown family is one this server does not have.
pub(super) fn requested_family(request: &Message<'_>) -> Result<Option<Family>, ErrorCode> {
    match request.attribute(AttributeType::REQUESTED_ADDRESS_FAMILY) {
        None => Ok(None),
        Some([1, _, _, _]) => Ok(Some(Family::V4)),
        Some([2, _, _, _]) => Ok(Some(Family::V6)),
        Some([_, _, _, _]) => Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED),
        Some(_) => Err(ErrorCode::BAD_REQUEST),
    }
}

/// Every XOR-PEER-ADDRESS of a CreatePermission request; at least one.
pub(super) fn peers_of(request: &Message<'_>) -> Result<Vec<IpAddr>, ErrorCode> {
    let peers: Option<Vec<_>> = request
        .attributes()
        .filter(|(kind, _)| *kind == AttributeType::XOR_PEER_ADDRESS)
        .map(|(_, value)| crate::stun::decode_xor_address(value, request.transaction()))
        .map(|address| address.map(|address| address.ip()))
        .collect();
    peers.filter(|peers| !peers.is_empty()).ok_or(ErrorCode::BAD_REQUEST)
}

/// ADDITIONAL-ADDRESS-FAMILY of a request: only IPv6 can come in addition (RFC 8656 §7.2).
pub(super) fn wants_both_families(request: &Message<'_>) -> Result<bool, ErrorCode> {
    match request.attribute(AttributeType::ADDITIONAL_ADDRESS_FAMILY) {
        None => Ok(false),
        Some([2, _, _, _]) => Ok(true),
        Some(_) => Err(ErrorCode::BAD_REQUEST),
    }
}

/// EVEN-PORT of a request (RFC 8656 §18.7).
pub(super) fn wish(request: &Message<'_>) -> Result<Wish, ErrorCode> {
    match request.attribute(AttributeType::EVEN_PORT) {
        None => Ok(Wish::Any),
        Some([bits]) if bits & 0x80 == 0 => Ok(Wish::Even),
        Some([_]) => Ok(Wish::EvenWithNext),
        Some(_) => Err(ErrorCode::BAD_REQUEST),
    }
}

/// RESERVATION-TOKEN of a request (RFC 8656 §18.10).
pub(super) fn token(request: &Message<'_>) -> Result<Option<[u8; 8]>, ErrorCode> {
    match request.attribute(AttributeType::RESERVATION_TOKEN) {
        None => Ok(None),
        Some(value) => value.try_into().map(Some).map_err(|_| ErrorCode::BAD_REQUEST),
    }
}

/// CHANNEL-NUMBER of a request.
pub(super) fn channel_number(request: &Message<'_>) -> Result<ChannelNumber, ErrorCode> {
    let value = request.attribute(AttributeType::CHANNEL_NUMBER);
    let value = value.and_then(|value| <[u8; 4]>::try_from(value).ok());
    value
        .and_then(|value| ChannelNumber::new(u16::from_be_bytes([value[0], value[1]])))
        .ok_or(ErrorCode::BAD_REQUEST)
}

/// XOR-PEER-ADDRESS of a request that has one.
pub(super) fn peer_of(request: &Message<'_>) -> Result<SocketAddr, ErrorCode> {
    request.xor_address(AttributeType::XOR_PEER_ADDRESS).ok_or(ErrorCode::BAD_REQUEST)
}

/// CONNECTION-ID of a request.
pub(super) fn connection_id(request: &Message<'_>) -> Result<ConnectionId, ErrorCode> {
    let value = request.attribute(AttributeType::CONNECTION_ID);
    let value = value.and_then(|value| value.try_into().ok());
    value.map(u32::from_be_bytes).map(ConnectionId).ok_or(ErrorCode::BAD_REQUEST)
}

/// The value of an address attribute that is not masked (RFC 8489 §14.1).
pub(super) fn plain_address(address: SocketAddr) -> Vec<u8> {
    let (family, ip) = match address.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(address.port().to_be_bytes());
    value.extend(ip);
    value
}

/// A family as REQUESTED-ADDRESS-FAMILY and its like have it.
pub(super) const fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 2,
    }
}
