//! A TURN client over UDP: as much of one as load needs.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use turn::stun::{AttributeType, Class, ErrorCode, Key, Message, Method, TransactionId, Writer};

use crate::bench::contender::{PASSWORD, REALM, USER};
use crate::bench::field::SERVER;

/// How long an answer may take before the request is sent again.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often a request is sent.
const ATTEMPTS: usize = 5;
/// How long allocations are asked for: longer than any measurement.
const LIFETIME: u32 = 3_600;

/// A client with at most one allocation.
#[derive(Debug)]
pub(crate) struct Client {
    socket: UdpSocket,
    address: SocketAddrV4,
    key: Key,
    nonce: Vec<u8>,
    relayed: Option<SocketAddr>,
}

/// What a relay answered.
#[derive(Debug)]
pub(crate) struct Response {
    /// The whole message.
    bytes: Vec<u8>,
}

impl Response {
    fn message(&self) -> Result<Message<'_>> {
        Message::parse(&self.bytes).context("no STUN message")
    }

    /// The error code, when it is an error.
    pub(crate) fn error(&self) -> Result<Option<ErrorCode>> {
        let message = self.message()?;
        let error = (message.class() == Class::Error).then(|| message.error_code());
        Ok(error.flatten())
    }
}

impl Client {
    /// A client at that address; called in the clients' namespace.
    pub(crate) fn open(address: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
        socket.connect(SERVER)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let key = Key::long_term(USER, REALM, PASSWORD);
        Ok(Self { socket, address, key, nonce: Vec::new(), relayed: None })
    }

    /// Its own address.
    pub(crate) const fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The relayed transport address of its allocation.
    pub(crate) fn relayed(&self) -> Result<SocketAddr> {
        self.relayed.context("no allocation")
    }

    /// Allocates, with the request that is refused for want of a nonce first.
    pub(crate) fn allocate(&mut self) -> Result<()> {
        let udp = [17, 0, 0, 0];
        let transport = |writer: Writer| writer.attribute(AttributeType::REQUESTED_TRANSPORT, &udp);
        let writer = Writer::new(Class::Request, Method::ALLOCATE, transaction()?);
        let refusal = self.exchange(transport(writer).finish())?;
        let message = refusal.message()?;
        let code = message.error_code();
        ensure!(code == Some(ErrorCode::UNAUTHENTICATED), "without credentials: {code:?}");
        self.nonce = message.attribute(AttributeType::NONCE).context("no nonce")?.to_vec();
        let lifetime = LIFETIME.to_be_bytes();
        let response = self.request(Method::ALLOCATE, |writer| {
            transport(writer).attribute(AttributeType::LIFETIME, &lifetime)
        })?;
        succeeded(&response)?;
        let relayed = response.message()?.xor_address(AttributeType::XOR_RELAYED_ADDRESS);
        self.relayed = Some(relayed.context("no relayed address")?);
        Ok(())
    }

    /// Binds a channel to a peer, which permits it.
    pub(crate) fn bind_channel(&self, number: u16, peer: SocketAddr) -> Result<()> {
        let [high, low] = number.to_be_bytes();
        let response = self.request(Method::CHANNEL_BIND, |writer| {
            let writer = writer.attribute(AttributeType::CHANNEL_NUMBER, &[high, low, 0, 0]);
            writer.xor_address(AttributeType::XOR_PEER_ADDRESS, peer)
        })?;
        succeeded(&response).with_context(|| format!("channel to {peer}"))
    }

    /// Asks for a permission, or a channel, for that peer; returns whether it was given.
    pub(crate) fn is_granted(&self, peer: SocketAddr, as_channel: bool) -> Result<bool> {
        let peer = |writer: Writer| writer.xor_address(AttributeType::XOR_PEER_ADDRESS, peer);
        let response = if as_channel {
            let number = [0x50, 0x01, 0, 0];
            self.request(Method::CHANNEL_BIND, |writer| {
                peer(writer.attribute(AttributeType::CHANNEL_NUMBER, &number))
            })
        } else {
            self.request(Method::CREATE_PERMISSION, peer)
        };
        Ok(response?.error()?.is_none())
    }

    /// Frees its allocation, if it has one.
    pub(crate) fn free(&mut self) -> Result<()> {
        if self.relayed.take().is_none() {
            return Ok(());
        }
        let zero = [0; 4];
        let response = self
            .request(Method::REFRESH, |writer| writer.attribute(AttributeType::LIFETIME, &zero))?;
        succeeded(&response)
    }

    /// Sends a request with credentials and returns what is answered.
    pub(crate) fn request(
        &self,
        method: Method,
        attributes: impl FnOnce(Writer) -> Writer,
    ) -> Result<Response> {
        self.exchange(self.signed(method, attributes)?)
    }

    /// A request with credentials.
    pub(crate) fn signed(
        &self,
        method: Method,
        attributes: impl FnOnce(Writer) -> Writer,
    ) -> Result<Vec<u8>> {
        Ok(attributes(Writer::new(Class::Request, method, transaction()?))
            .attribute(AttributeType::USERNAME, USER.as_bytes())
            .attribute(AttributeType::REALM, REALM.as_bytes())
            .attribute(AttributeType::NONCE, &self.nonce)
            .integrity(&self.key)
            .finish())
    }

    fn exchange(&self, request: Vec<u8>) -> Result<Response> {
        let mut buffer = vec![0; 2048];
        for _ in 0..ATTEMPTS {
            self.socket.send(&request)?;
            while let Ok(length) = self.socket.recv(&mut buffer) {
                // Late answers to earlier requests, and relayed data, are not this one's.
                let bytes = &buffer[..length];
                let answers = Message::parse(bytes)
                    .is_ok_and(|message| message.transaction().0[..] == request[8..20]);
                if answers {
                    return Ok(Response { bytes: bytes.to_vec() });
                }
            }
        }
        bail!("the relay does not answer {}", self.address)
    }
}

fn succeeded(response: &Response) -> Result<()> {
    match response.error()? {
        None => Ok(()),
        Some(code) => bail!("refused with {} {}", code.0, code.reason()),
    }
}

fn transaction() -> Result<TransactionId> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(TransactionId(bytes))
}
