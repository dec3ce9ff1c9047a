//! Channels (RFC 8656 §12).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::five_tuple::Family;
use crate::permission::{Revision, Verdict, advance};

/// RFC 8656 §12.
pub(crate) const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);

/// Octets before the data of a ChannelData message (RFC 8656 §12.4).
pub(crate) const CHANNEL_HEADER_LENGTH: usize = 4;

/// A channel number, 0x4000 to 0x7FFF.
///
/// RFC 8656 §12 lets clients use 0x4000 to 0x4FFF only, because on a socket that also carries
/// DTLS and RTP the rest could be taken for these (RFC 7983). Clients of RFC 5766, coturn's up to
/// 4.15 among them, pick from all of 0x4000 to 0x7FFF, and no protocol that a TURN port of ours
/// shares begins with such an octet, so they are served too.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(crate) struct ChannelNumber(u16);

impl ChannelNumber {
    /// The number, if it is one.
    pub(crate) fn new(number: u16) -> Option<Self> {
        (0x4000..=0x7FFF).contains(&number).then_some(Self(number))
    }

    pub(crate) const fn to_be_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }
}

/// A number that stands for a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    pub(crate) number: ChannelNumber,
    pub(crate) peer: SocketAddr,
    pub(crate) expires_at: Instant,
    pub(crate) verdict: Verdict,
}

/// Why a channel cannot be bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BindError {
    /// The number has another peer, or the peer another number.
    Conflict,
    /// There are too many.
    Full,
}

/// The channels of one allocation: one number per peer, one peer per number.
#[derive(Debug, Default)]
pub(crate) struct Channels(Vec<Channel>);

impl Channels {
    /// The live channel with that number.
    #[inline]
    pub(crate) fn by_number(
        &mut self,
        number: ChannelNumber,
        now: Instant,
    ) -> Option<&mut Channel> {
        let index = self.0.iter().position(|channel| channel.number == number)?;
        let index = advance(&mut self.0, index);
        self.0.get_mut(index).filter(|channel| channel.expires_at > now)
    }

    /// The number of the live channel to that peer.
    #[inline]
    pub(crate) fn by_peer(&mut self, peer: SocketAddr, now: Instant) -> Option<ChannelNumber> {
        let index = self.0.iter().position(|channel| channel.peer == peer)?;
        let index = advance(&mut self.0, index);
        let found = self.0.get(index).filter(|channel| channel.expires_at > now);
        found.map(|channel| channel.number)
    }

    /// Forgets what the policy said.
    pub(crate) fn forget_verdicts(&mut self) {
        for channel in &mut self.0 {
            channel.verdict.revision = Revision::NONE;
        }
    }

    /// Forgets the peers of a family whose leg is gone.
    pub(crate) fn drop_family(&mut self, family: Family) {
        self.0.retain(|channel| Family::of(channel.peer.ip()) != family);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether [`Self::bind`] would work.
    pub(crate) fn check(
        &mut self,
        number: ChannelNumber,
        peer: SocketAddr,
        limit: usize,
        now: Instant,
    ) -> Result<(), BindError> {
        self.0.retain(|channel| channel.expires_at > now);
        let same = |channel: &Channel| (channel.number == number, channel.peer == peer);
        match self.0.iter().map(same).find(|(number, peer)| *number || *peer) {
            Some((true, true)) => Ok(()),
            Some(_) => Err(BindError::Conflict),
            None if self.0.len() >= limit => Err(BindError::Full),
            None => Ok(()),
        }
    }

    /// Binds or refreshes a channel that [`Self::check`] passed.
    pub(crate) fn bind(
        &mut self,
        number: ChannelNumber,
        peer: SocketAddr,
        verdict: Verdict,
        now: Instant,
    ) {
        let fresh = Channel { number, peer, expires_at: now + CHANNEL_LIFETIME, verdict };
        match self.0.iter_mut().find(|channel| channel.number == number) {
            Some(channel) => *channel = fresh,
            None => self.0.push(fresh),
        }
    }
}
