//! The suite's TURN client: it does what it is told, also what no client should.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::case::{Fault, Outcome, expect};
use super::digest;
use super::stun::{
    ALLOCATE, BINDING, CHANNEL_BIND, CHANNEL_NUMBER, CREATE_PERMISSION, DATA, DATA_METHOD, ERROR,
    INDICATION, MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, Message, NONCE, PASSWORD_ALGORITHM,
    PASSWORD_ALGORITHMS, Packet, REALM, REFRESH, REQUESTED_TRANSPORT, SEND, SUCCESS, USERNAME,
    XOR_PEER_ADDRESS, XOR_RELAYED_ADDRESS,
};

/// How long an answer may take; it takes that long only when there is none.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long silence lasts after the last thing that was due.
const SILENCE: Duration = Duration::from_millis(30);

/// REQUESTED-TRANSPORT: UDP.
pub(super) const UDP: u32 = 17 << 24;
/// REQUESTED-TRANSPORT: TCP (RFC 6062).
pub(super) const TCP: u32 = 6 << 24;

/// How requests are signed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scheme {
    /// MESSAGE-INTEGRITY under the MD5 key, as RFC 5389.
    Sha1,
    /// MESSAGE-INTEGRITY-SHA256 under the SHA-256 key, with both algorithm attributes.
    Sha256,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Heard {
    Stun(Message),
    Channel(u16, Vec<u8>),
}

#[derive(Debug)]
enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream, Vec<u8>),
}

/// A client at one local address of one server.
#[derive(Debug)]
pub(super) struct Client {
    link: Link,
    pub(super) local: SocketAddr,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) realm: String,
    pub(super) nonce: Vec<u8>,
    pub(super) scheme: Scheme,
    /// PASSWORD-ALGORITHMS of the last challenge.
    pub(super) algorithms: Vec<u8>,
    /// From the last successful Allocate.
    pub(super) relayed: Option<SocketAddr>,
    heard: VecDeque<Heard>,
}

impl Client {
    /// A client over UDP; `socket` is connected.
    pub(super) fn udp(socket: UdpSocket) -> Outcome<Self> {
        let local = socket.local_addr()?;
        Ok(Self::new(Link::Udp(socket), local))
    }

    /// A client over TCP.
    pub(super) fn tcp(stream: TcpStream) -> Outcome<Self> {
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        Ok(Self::new(Link::Tcp(stream, Vec::new()), local))
    }

    fn new(link: Link, local: SocketAddr) -> Self {
        Self {
            link,
            local,
            user: "alice".to_owned(),
            password: "alice-password".to_owned(),
            realm: String::new(),
            nonce: Vec::new(),
            scheme: Scheme::Sha1,
            algorithms: Vec::new(),
            relayed: None,
            heard: VecDeque::new(),
        }
    }

    /// Becomes another user.
    pub(super) fn of_user(mut self, user: &str, password: &str) -> Self {
        user.clone_into(&mut self.user);
        password.clone_into(&mut self.password);
        self
    }

    /// The key that requests are signed with.
    pub(super) fn key(&self) -> Vec<u8> {
        match self.scheme {
            Scheme::Sha1 => digest::md5_key(&self.user, &self.realm, &self.password),
            Scheme::Sha256 => digest::sha256_key(&self.user, &self.realm, &self.password),
        }
    }

    /// Adds credentials as the scheme wants them, in the order RFC 8489 shows.
    pub(super) fn sign(&self, packet: Packet) -> Packet {
        let packet = self.credentials(packet.with(USERNAME, self.user.as_bytes()));
        self.integrity(packet)
    }

    /// Adds REALM, NONCE and the algorithms, but neither user nor integrity.
    pub(super) fn credentials(&self, packet: Packet) -> Packet {
        let packet = packet.with(REALM, self.realm.as_bytes()).with(NONCE, &self.nonce);
        match self.scheme {
            Scheme::Sha1 => packet,
            Scheme::Sha256 => packet
                .with(PASSWORD_ALGORITHMS, &self.algorithms)
                .with(PASSWORD_ALGORITHM, &[0, 2, 0, 0]),
        }
    }

    /// Adds the scheme's integrity.
    pub(super) fn integrity(&self, packet: Packet) -> Packet {
        match self.scheme {
            Scheme::Sha1 => packet.integrity(&self.key()),
            Scheme::Sha256 => packet.integrity_sha256(&self.key(), 32),
        }
    }

    /// Sends octets as they are.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Outcome {
        match &mut self.link {
            Link::Udp(socket) => drop(socket.send(bytes)?),
            Link::Tcp(stream, _) => {
                if let Err(error) = stream.write_all(bytes) {
                    return Err(Fault::differs("an open connection", error.to_string()));
                }
            }
        }
        Ok(())
    }

    /// What comes next within `patience`.
    pub(super) fn hear(&mut self, patience: Duration) -> Outcome<Option<Heard>> {
        if let Some(heard) = self.heard.pop_front() {
            return Ok(Some(heard));
        }
        match self.receive(patience)? {
            Some(bytes) => read(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// One datagram, or one message out of the stream; `None` when there is none in time.
    fn receive(&mut self, patience: Duration) -> Outcome<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut room = [0; 65_536];
        match &mut self.link {
            Link::Udp(socket) => {
                socket.set_read_timeout(Some(patience))?;
                match socket.recv(&mut room) {
                    Ok(length) => Ok(Some(room[..length].to_vec())),
                    Err(error) if is_timeout(error.kind()) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
            Link::Tcp(stream, buffer) => loop {
                if let Some(length) = framed(buffer)? {
                    return Ok(Some(buffer.drain(..length).collect()));
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                stream.set_read_timeout(Some(left))?;
                match stream.read(&mut room) {
                    Ok(0) => return Err(Fault::differs("an open connection", "end of stream")),
                    Ok(length) => buffer.extend(&room[..length]),
                    Err(error) if is_timeout(error.kind()) => return Ok(None),
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                        return Err(Fault::differs("an open connection", "connection reset"));
                    }
                    Err(error) => return Err(error.into()),
                }
            },
        }
    }

    /// The TCP stream with what was read of it and not yet used.
    pub(super) fn into_stream(self) -> Outcome<(TcpStream, Vec<u8>)> {
        match self.link {
            Link::Tcp(stream, buffer) => Ok((stream, buffer)),
            Link::Udp(_) => Err(anyhow::anyhow!("a client over UDP has no stream").into()),
        }
    }

    /// Ends a TCP client's half of the connection.
    pub(super) fn shut_down(&mut self) -> Outcome {
        if let Link::Tcp(stream, _) = &self.link {
            stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Whether the server closes this TCP connection within the patience.
    pub(super) fn is_closed(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.receive(SILENCE) {
                Err(Fault::Differs { .. }) => return true,
                Ok(_) => {}
                Err(Fault::Broken(_)) => return false,
            }
        }
        false
    }

    /// Sends `packet` and returns its answer; other things that come in are kept.
    pub(super) fn call(&mut self, packet: &Packet) -> Outcome<Message> {
        self.send(packet.bytes())?;
        self.answer(packet.id())
    }

    /// The answer to the request with that transaction id.
    pub(super) fn answer(&mut self, id: [u8; 12]) -> Outcome<Message> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(bytes) = self.receive(left.max(Duration::from_micros(1)))? else {
                return Err(Fault::differs("an answer", "nothing"));
            };
            match read(&bytes)? {
                Heard::Stun(message) if message.id == id => return Ok(message),
                other => self.heard.push_back(other),
            }
        }
    }

    /// Signs `packet`, sends it and returns its answer.
    pub(super) fn request(&mut self, packet: Packet) -> Outcome<Message> {
        let signed = self.sign(packet);
        self.call(&signed)
    }

    /// The success answer to `packet`, whose integrity must be right.
    pub(super) fn succeed(&mut self, packet: Packet) -> Outcome<Message> {
        let answer = self.request(packet)?;
        self.check_success(&answer)?;
        Ok(answer)
    }

    /// Fails unless `answer` is a success and its integrity is made with this client's key.
    pub(super) fn check_success(&self, answer: &Message) -> Outcome {
        expect(answer.kind & 0x0110 == SUCCESS, "a success answer", answer)?;
        let kind = match self.scheme {
            Scheme::Sha1 => MESSAGE_INTEGRITY,
            Scheme::Sha256 => MESSAGE_INTEGRITY_SHA256,
        };
        let verified = answer.verify(&self.key());
        expect(
            answer.has(kind) && verified == Some(true),
            "an answer with the integrity of the request's kind and key",
            (answer, verified),
        )
    }

    /// The answer to `packet` must be this error.
    pub(super) fn refused(&mut self, packet: Packet, code: u16) -> Outcome<Message> {
        let answer = self.request(packet)?;
        expect_error(&answer, code)?;
        Ok(answer)
    }

    /// Asks without credentials and remembers realm and nonce.
    pub(super) fn challenge(&mut self) -> Outcome<Message> {
        let answer = self.call(&allocate_request())?;
        expect_error(&answer, 401)?;
        self.learn(&answer);
        Ok(answer)
    }

    /// Remembers realm, nonce and algorithms of an error answer.
    pub(super) fn learn(&mut self, answer: &Message) {
        if let Some(realm) = answer.attribute(REALM) {
            self.realm = String::from_utf8_lossy(realm).into_owned();
        }
        if let Some(nonce) = answer.attribute(NONCE) {
            self.nonce = nonce.to_vec();
        }
        if let Some(algorithms) = answer.attribute(PASSWORD_ALGORITHMS) {
            self.algorithms = algorithms.to_vec();
        }
    }

    /// This client once it has been challenged.
    pub(super) fn challenged(mut self) -> Outcome<Self> {
        self.challenge()?;
        Ok(self)
    }

    /// This client with a UDP allocation.
    pub(super) fn allocated(self) -> Outcome<Self> {
        self.allocated_with(allocate_request())
    }

    /// This client with what `request` allocates.
    pub(super) fn allocated_with(self, request: Packet) -> Outcome<Self> {
        let mut client = if self.nonce.is_empty() { self.challenged()? } else { self };
        let answer = client.succeed(request)?;
        client.relayed = answer.address(XOR_RELAYED_ADDRESS);
        client.relayed()?;
        Ok(client)
    }

    /// The relayed transport address.
    pub(super) fn relayed(&self) -> Outcome<SocketAddr> {
        self.relayed.ok_or_else(|| Fault::differs("XOR-RELAYED-ADDRESS", "none"))
    }

    /// Installs permissions.
    pub(super) fn permit(&mut self, peers: &[SocketAddr]) -> Outcome {
        self.succeed(permission_request(peers)).map(drop)
    }

    /// Binds a channel.
    pub(super) fn bind(&mut self, number: u16, peer: SocketAddr) -> Outcome {
        self.succeed(bind_request(number, peer)).map(drop)
    }

    /// Sends a Send indication.
    pub(super) fn send_to(&mut self, peer: SocketAddr, data: &[u8]) -> Outcome {
        self.send(send_indication(peer, data).bytes())
    }

    /// Sends a ChannelData message.
    pub(super) fn send_channel(&mut self, number: u16, data: &[u8]) -> Outcome {
        let padding = matches!(self.link, Link::Tcp(..));
        self.send(&channel_data(number, data, padding))
    }

    /// The next thing to come in must be a Data indication from `peer`.
    pub(super) fn expect_data(&mut self, peer: SocketAddr, data: &[u8]) -> Outcome {
        let expected = || format!("a Data indication of {} octets from {peer}", data.len());
        match self.hear(PATIENCE)? {
            Some(Heard::Stun(message))
                if message.kind == DATA_METHOD | INDICATION
                    && message.address(XOR_PEER_ADDRESS) == Some(peer)
                    && message.attribute(DATA) == Some(data) =>
            {
                Ok(())
            }
            Some(Heard::Stun(message)) => {
                let peer = message.address(XOR_PEER_ADDRESS);
                let length = message.attribute(DATA).map(<[u8]>::len);
                let received = format!("{message:?} from {peer:?} with {length:?} octets");
                Err(Fault::differs(expected(), received))
            }
            other => Err(Fault::differs(expected(), format!("{other:?}"))),
        }
    }

    /// The next thing to come in must be ChannelData on that channel.
    pub(super) fn expect_channel(&mut self, number: u16, data: &[u8]) -> Outcome {
        match self.hear(PATIENCE)? {
            Some(Heard::Channel(n, octets)) if n == number && octets == data => Ok(()),
            other => Err(Fault::differs(
                format!("{} octets on channel {number:#06x}", data.len()),
                format!("{other:?}"),
            )),
        }
    }

    /// The next STUN message to come in.
    pub(super) fn expect_message(&mut self, kind: u16) -> Outcome<Message> {
        match self.hear(PATIENCE)? {
            Some(Heard::Stun(message)) if message.kind == kind => Ok(message),
            other => {
                Err(Fault::differs(format!("a message of type {kind:#06x}"), format!("{other:?}")))
            }
        }
    }

    /// Nothing came in: an answer to a Binding request, which was sent after everything else, is
    /// the next thing and the last one.
    pub(super) fn hears_nothing(&mut self) -> Outcome {
        let answer = self.call(&Packet::new(BINDING))?;
        expect(answer.kind == BINDING | SUCCESS, "a Binding answer", &answer)?;
        match self.hear(SILENCE)? {
            None => Ok(()),
            Some(heard) => Err(Fault::differs("nothing", format!("{heard:?}"))),
        }
    }

    /// Sends octets that must get no answer and break nothing.
    pub(super) fn ignored(&mut self, bytes: &[u8]) -> Outcome {
        self.send(bytes)?;
        self.hears_nothing()
    }
}

/// Fails unless `answer` is an error with that code.
pub(super) fn expect_error(answer: &Message, code: u16) -> Outcome {
    let is_error = answer.kind & 0x0110 == ERROR;
    expect(is_error && answer.error_code() == Some(code), &format!("error {code}"), answer)
}

/// An Allocate request for UDP.
pub(super) fn allocate_request() -> Packet {
    Packet::new(ALLOCATE).number(REQUESTED_TRANSPORT, UDP)
}

/// A Refresh request with LIFETIME.
pub(super) fn refresh_request(lifetime: u32) -> Packet {
    Packet::new(REFRESH).number(super::stun::LIFETIME, lifetime)
}

/// A CreatePermission request.
pub(super) fn permission_request(peers: &[SocketAddr]) -> Packet {
    let add = |packet: Packet, peer: &SocketAddr| packet.address(XOR_PEER_ADDRESS, *peer);
    peers.iter().fold(Packet::new(CREATE_PERMISSION), add)
}

/// A ChannelBind request.
pub(super) fn bind_request(number: u16, peer: SocketAddr) -> Packet {
    Packet::new(CHANNEL_BIND)
        .number(CHANNEL_NUMBER, u32::from(number) << 16)
        .address(XOR_PEER_ADDRESS, peer)
}

/// A Send indication.
pub(super) fn send_indication(peer: SocketAddr, data: &[u8]) -> Packet {
    Packet::new(SEND | INDICATION).address(XOR_PEER_ADDRESS, peer).with(DATA, data)
}

/// A ChannelData message.
pub(super) fn channel_data(number: u16, data: &[u8], padding: bool) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("payloads are short");
    let mut bytes = [number.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend(data);
    if padding {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn read(bytes: &[u8]) -> Outcome<Heard> {
    if bytes.len() >= 4 && bytes[0] & 0xC0 == 0x40 {
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let padded = 4 + length.next_multiple_of(4);
        expect(
            bytes.len() == 4 + length || bytes.len() == padded,
            "a ChannelData message as long as it says",
            (length, bytes.len()),
        )?;
        let number = u16::from_be_bytes([bytes[0], bytes[1]]);
        return Ok(Heard::Channel(number, bytes[4..4 + length].to_vec()));
    }
    Message::parse(bytes)
        .map(Heard::Stun)
        .map_err(|fault| Fault::differs("a well-formed message", fault))
}

/// Length of the first message in a stream (RFC 8656 §12.5), once it is there.
fn framed(buffer: &[u8]) -> Outcome<Option<usize>> {
    let Some(header) = buffer.get(..4) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let length = match header[0] & 0xC0 {
        0x00 => 20 + length,
        0x40 => 4 + length.next_multiple_of(4),
        _ => return Err(Fault::differs("STUN or ChannelData", format!("{header:02x?}"))),
    };
    Ok((buffer.len() >= length).then_some(length))
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
