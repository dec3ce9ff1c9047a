//! The crate `turn-client-proto`: another reading of the same RFCs, driven over real sockets.
//!
//! It is the client that knows what no browser asks for: SHA-256 integrity, USERHASH, two families
//! in one allocation.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use stun_proto::auth::Feature;
use turn_client_proto::api::{
    Transmit, TurnClientApi, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet,
};
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::types::stun::message::IntegrityAlgorithm;
use turn_client_proto::types::{AddressFamily, TransportType, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;

use crate::lab::host::Host;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many datagrams are sent to the peer, which sends them back.
const DATAGRAMS: usize = 20;

/// What is asked for, and of whom.
#[derive(Clone, Debug)]
pub struct SecondOpinion {
    /// The TURN server.
    pub server: SocketAddr,
    /// UDP or TCP to the server.
    pub transport: TransportType,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// MESSAGE-INTEGRITY-SHA256 in requests too, and the user name as USERHASH.
    pub modern: bool,
    /// Families of the allocation.
    pub families: Vec<AddressFamily>,
    /// Who sends everything back; it must be reachable by policy.
    pub peer: SocketAddr,
}

/// Allocates, binds a channel, exchanges datagrams with the peer and frees the allocation; returns
/// the relayed addresses.
///
/// # Errors
///
/// Says which step did not work.
pub fn second_opinion(host: &Host, wish: &SecondOpinion) -> Result<Vec<SocketAddr>> {
    let mut config = TurnConfig::new(TurnCredentials::new(&wish.user, &wish.password));
    let (first, others) = wish.families.split_first().context("no family")?;
    config.set_address_family(*first);
    for family in others {
        config.add_address_family(*family);
    }
    // It always chooses a password algorithm, so responses are signed with SHA-256 whatever its
    // requests are (RFC 8489 section 9.2.4).
    config.add_supported_integrity(IntegrityAlgorithm::Sha256);
    if wish.modern {
        config.set_supported_integrity(IntegrityAlgorithm::Sha256);
        config.set_anonymous_username(Feature::Required);
    }
    if wish.transport == TransportType::Udp {
        let local = if wish.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = host.in_network(|| {
            let socket = UdpSocket::bind(local)?;
            socket.connect(wish.server)?;
            Ok::<_, std::io::Error>(socket)
        })??;
        socket.set_read_timeout(Some(TICK))?;
        let local = socket.local_addr()?;
        let client = TurnClientUdp::allocate(local, wish.server, config);
        Driver { client, wire: Wire::Udp(socket), relayed: Vec::new(), echoed: 0 }.run(wish)
    } else {
        let stream = host.in_network(|| TcpStream::connect_timeout(&wish.server, PATIENCE))??;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let client = TurnClientTcp::allocate(local, wish.server, config);
        Driver { client, wire: Wire::Tcp(stream), relayed: Vec::new(), echoed: 0 }.run(wish)
    }
}

/// How long one read waits.
const TICK: Duration = Duration::from_millis(20);

enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

struct Driver<C> {
    client: C,
    wire: Wire,
    relayed: Vec<SocketAddr>,
    echoed: usize,
}

impl<C: TurnClientApi> Driver<C> {
    fn run(mut self, wish: &SecondOpinion) -> Result<Vec<SocketAddr>> {
        let count = wish.families.len();
        self.until("the allocation", |driver| driver.relayed.len() == count)?;
        self.client.bind_channel(TransportType::Udp, wish.peer, now()).context("bind_channel")?;
        let peer = wish.peer.ip();
        self.until("the permission", |driver| {
            driver.client.have_permission(TransportType::Udp, peer)
        })?;
        for number in 1..=DATAGRAMS {
            // It does not pad ChannelData on a stream (RFC 8656 section 12.5), so that nothing
            // that follows would be found.
            let payload = vec![u8::try_from(number)?; 500 + 4 * number];
            let packet = self.client.send_to(TransportType::Udp, wish.peer, payload, now())?;
            if let Some(packet) = packet {
                self.send(&packet.build().data)?;
            }
            self.until("an echo", |driver| driver.echoed == number)?;
        }
        self.client.delete(now()).context("delete")?;
        for _ in 0..10 {
            self.turn()?;
        }
        Ok(self.relayed)
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            ensure!(Instant::now() < deadline, "turn-client-proto: {what} did not come");
            self.turn()?;
        }
        Ok(())
    }

    /// Sends what is to be sent, takes what came, looks at what happened.
    fn turn(&mut self) -> Result<()> {
        if matches!(self.client.poll(now()), TurnPollRet::Closed) {
            return Ok(());
        }
        while let Some(packet) = self.client.poll_transmit(now()) {
            self.send(&packet.data)?;
        }
        let mut buffer = vec![0; 4096];
        let received = match &mut self.wire {
            Wire::Udp(socket) => socket.recv(&mut buffer),
            Wire::Tcp(stream) => stream.read(&mut buffer),
        };
        match received {
            Ok(length) => {
                buffer.truncate(length);
                self.receive(buffer)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(data) = self.client.poll_recv(now()) {
            self.echoed += usize::from(data.data().len() > 500);
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                TurnEvent::AllocationCreated(_, relayed) => self.relayed.push(relayed),
                TurnEvent::PermissionCreated(..) | TurnEvent::ChannelCreated(..) => {}
                other => bail!("turn-client-proto: {other:?}"),
            }
        }
        Ok(())
    }

    fn receive(&mut self, data: Vec<u8>) -> Result<()> {
        let (local, server) = (self.client.local_addr(), self.client.remote_addr());
        let packet = Transmit::new(data, self.client.transport(), server, local);
        match self.client.recv(packet, now()) {
            TurnRecvRet::Handled => {}
            TurnRecvRet::PeerData(data) => self.echoed += usize::from(data.data().len() > 500),
            other => bail!("turn-client-proto does not understand what came: {other:?}"),
        }
        Ok(())
    }

    fn send(&mut self, data: &[u8]) -> Result<()> {
        match &mut self.wire {
            Wire::Udp(socket) => drop(socket.send(data)?),
            Wire::Tcp(stream) => stream.write_all(data)?,
        }
        Ok(())
    }
}

fn now() -> stun_proto::Instant {
    // Its clock counts from an instant of the process.
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    stun_proto::Instant::from_nanos(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX))
}
