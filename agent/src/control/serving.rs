//! The relay and the proxy: they connect to us, we hand out slices.
//!
//! A serving process that (re)connects gets the slice in force at once, so any order of starts
//! and restarts ends the same way. The slices stay sealed: the agent holds descriptors, never
//! their content.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::User;
use serde_json::Value;

use crate::ipc::{Channel, Listener};
use crate::message::{SliceReply, SliceRequest};
use crate::plan::{Generation, Service};

/// How long a serving process may take to load a slice.
const SERVE_TIMEOUT: Duration = Duration::from_secs(60);

/// The slices of one generation.
#[derive(Clone, Debug)]
pub(crate) struct SliceSet {
    /// Which one.
    pub(crate) generation: Generation,
    /// Sealed memfds.
    pub(crate) slices: Arc<BTreeMap<Service, OwnedFd>>,
}

/// Why a service is not serving what it should.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ServeError {
    /// It is not there, or it went away; perhaps it comes back.
    #[error("{} does not answer", unit(*.0))]
    Silent(Service),
    /// It cannot serve this.
    #[error("{unit}: {reason}", unit = unit(*.0), reason = .1)]
    Failed(Service, String),
}

/// All serving processes.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: Option<SliceSet>,
    connected: BTreeMap<Service, Arc<Mutex<Channel>>>,
}

/// The unit of a service, which is its user's name too.
pub(crate) fn unit(service: Service) -> &'static str {
    match service {
        Service::Relay => "postern-relay",
        Service::Proxy => "postern-proxy",
    }
}

impl Serving {
    /// Listens at `path` in a thread of its own, for ever.
    ///
    /// # Errors
    ///
    /// Returns the error of binding the socket or of starting the thread.
    pub(crate) fn listen(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let listener = Listener::bind(path)?;
        let serving = Arc::clone(self);
        let accept = move || loop {
            match listener.accept() {
                Ok(channel) => serving.admit(channel),
                Err(error) => {
                    tracing::warn!("slices: accept: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        };
        thread::Builder::new().name("slices".to_owned()).spawn(accept)?;
        Ok(())
    }

    /// Takes a new connection for the service that its uid says.
    fn admit(self: &Arc<Self>, channel: Channel) {
        let service = match channel.peer_uid() {
            Ok(uid) => match service_of(uid) {
                Some(service) => service,
                None => {
                    tracing::warn!("slices: uid {uid} is no serving process; turned away");
                    return;
                }
            },
            Err(error) => {
                tracing::warn!("slices: peer unknown: {error}");
                return;
            }
        };
        let serving = Arc::clone(self);
        let attach = move || serving.attach(service, channel);
        if let Err(error) = thread::Builder::new().name("attach".to_owned()).spawn(attach) {
            tracing::error!("slices: {error}");
        }
    }

    /// Puts a connection in place of the service's earlier one and sends it what is in force.
    pub(crate) fn attach(&self, service: Service, channel: Channel) {
        if let Err(error) = channel.set_timeout(SERVE_TIMEOUT) {
            tracing::warn!("{}: {error}", unit(service));
            return;
        }
        let channel = Arc::new(Mutex::new(channel));
        let wanted = {
            let mut inner = self.lock();
            inner.connected.insert(service, Arc::clone(&channel));
            inner.wanted.clone()
        };
        self.changed.notify_all();
        tracing::info!("{} is here", unit(service));
        if let Some(set) = wanted
            && set.slices.contains_key(&service)
            && let Err(error) = self.hand(service, &channel, &set)
        {
            tracing::warn!("{error}");
        }
    }

    /// Has every service serve its slice of `set`; those that it has no slice for serve nothing.
    ///
    /// # Errors
    ///
    /// Returns the first [`ServeError`]. A service that is away has `patience` to come.
    pub(crate) fn serve(&self, set: &SliceSet, patience: Duration) -> Result<(), ServeError> {
        let until = Instant::now() + patience;
        self.lock().wanted = Some(set.clone());
        for service in set.slices.keys() {
            loop {
                let channel = self.wait_for(*service, until)?;
                match self.hand(*service, &channel, set) {
                    Err(ServeError::Silent(_)) if Instant::now() < until => {}
                    other => break other?,
                }
            }
        }
        let idle: Vec<_> = {
            let inner = self.lock();
            let others = inner.connected.iter().filter(|(it, _)| !set.slices.contains_key(it));
            others.map(|(service, channel)| (*service, Arc::clone(channel))).collect()
        };
        for (service, channel) in idle {
            self.stop_one(service, &channel);
        }
        Ok(())
    }

    /// Has every service serve nothing.
    pub(crate) fn stop(&self) {
        let connected = {
            let mut inner = self.lock();
            inner.wanted = None;
            inner.connected.clone()
        };
        for (service, channel) in connected {
            self.stop_one(service, &channel);
        }
    }

    fn stop_one(&self, service: Service, channel: &Arc<Mutex<Channel>>) {
        match self.ask(service, channel, &SliceRequest::Stop, None) {
            Ok(SliceReply::Stopped) => {}
            Ok(other) => tracing::warn!("{}: told to stop, said {other:?}", unit(service)),
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// The service's own report; `None` when it is away.
    pub(crate) fn report(&self, service: Service) -> Option<Value> {
        let channel = Arc::clone(self.lock().connected.get(&service)?);
        if hung_up(&channel.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.forget(service, &channel);
            return None;
        }
        match self.ask(service, &channel, &SliceRequest::Report, None) {
            Ok(SliceReply::Report(value)) => Some(value),
            _ => None,
        }
    }

    fn hand(
        &self,
        service: Service,
        channel: &Arc<Mutex<Channel>>,
        set: &SliceSet,
    ) -> Result<(), ServeError> {
        let request = SliceRequest::Serve(set.generation.clone());
        match self.ask(service, channel, &request, set.slices.get(&service))? {
            SliceReply::Ready(generation) if generation == set.generation => {
                tracing::info!("{} serves serial {}", unit(service), generation.serial);
                Ok(())
            }
            SliceReply::Failed(_, reason) => Err(ServeError::Failed(service, reason)),
            other => {
                tracing::warn!("{}: unexpected {other:?}", unit(service));
                self.forget(service, channel);
                Err(ServeError::Silent(service))
            }
        }
    }

    /// One question, one answer; a connection that gave none is given up.
    fn ask(
        &self,
        service: Service,
        channel: &Arc<Mutex<Channel>>,
        request: &SliceRequest,
        slice: Option<&OwnedFd>,
    ) -> Result<SliceReply, ServeError> {
        let fds: Vec<_> = slice.into_iter().map(AsFd::as_fd).collect();
        let answer = {
            let channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
            channel.send(request, &fds).and_then(|()| channel.receive::<SliceReply>())
        };
        match answer {
            Ok(Some((reply, _))) => Ok(reply),
            Ok(None) => {
                self.forget(service, channel);
                Err(ServeError::Silent(service))
            }
            Err(error) => {
                tracing::warn!("{}: {error}", unit(service));
                self.forget(service, channel);
                Err(ServeError::Silent(service))
            }
        }
    }

    fn forget(&self, service: Service, channel: &Arc<Mutex<Channel>>) {
        let mut inner = self.lock();
        if inner.connected.get(&service).is_some_and(|it| Arc::ptr_eq(it, channel)) {
            inner.connected.remove(&service);
            tracing::info!("{} went away", unit(service));
        }
    }

    fn wait_for(
        &self,
        service: Service,
        until: Instant,
    ) -> Result<Arc<Mutex<Channel>>, ServeError> {
        let mut inner = self.lock();
        loop {
            if let Some(channel) = inner.connected.get(&service) {
                return Ok(Arc::clone(channel));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ServeError::Silent(service));
            }
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which service runs as `uid`.
fn service_of(uid: u32) -> Option<Service> {
    [Service::Relay, Service::Proxy].into_iter().find(|service| {
        User::from_name(unit(*service)).ok().flatten().is_some_and(|it| it.uid.as_raw() == uid)
    })
}

fn hung_up(channel: &Channel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => false,
        Ok(_) => fds[0]
            .revents()
            .is_some_and(|it| it.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use serde_json::json;

    use super::{ServeError, Serving, SliceSet};
    use crate::ipc::{Channel, read_sealed, seal};
    use crate::message::{SliceReply, SliceRequest};
    use crate::plan::{Generation, Service};

    fn pair() -> (Channel, Channel) {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        (Channel::from_fd(a), Channel::from_fd(b))
    }

    fn set(serial: u64, text: &str) -> SliceSet {
        let slices = BTreeMap::from([(Service::Relay, seal("slice", text.as_bytes()).unwrap())]);
        let generation = Generation { serial, digest: format!("{serial:064}") };
        SliceSet { generation, slices: Arc::new(slices) }
    }

    /// Answers as a service would: refuses what says "bad".
    fn service(channel: Channel) -> thread::JoinHandle<Vec<String>> {
        thread::spawn(move || {
            let mut seen = Vec::new();
            while let Ok(Some((request, fds))) = channel.receive::<SliceRequest>() {
                let reply = match request {
                    SliceRequest::Serve(generation) => {
                        let fd = fds.into_iter().next().unwrap();
                        let text = String::from_utf8(read_sealed(fd, 100).unwrap()).unwrap();
                        seen.push(text.clone());
                        if text == "bad" {
                            SliceReply::Failed(generation, "port taken".to_owned())
                        } else {
                            SliceReply::Ready(generation)
                        }
                    }
                    SliceRequest::Stop => {
                        seen.push("stop".to_owned());
                        SliceReply::Stopped
                    }
                    SliceRequest::Report => SliceReply::Report(json!({ "active-clients": 0 })),
                };
                channel.send(&reply, &[]).unwrap();
            }
            seen
        })
    }

    #[test]
    fn a_service_that_reconnects_gets_the_slice_in_force() {
        let serving = Serving::default();
        let (ours, theirs) = pair();
        let first = service(theirs);
        serving.attach(Service::Relay, ours);
        serving.serve(&set(1, "one"), Duration::from_secs(1)).unwrap();

        let (ours, theirs) = pair();
        let second = service(theirs);
        serving.attach(Service::Relay, ours);
        drop(serving);

        assert_eq!(first.join().unwrap(), ["one"]);
        assert_eq!(second.join().unwrap(), ["one"]);
    }

    #[test]
    fn a_service_that_cannot_serve_says_why() {
        let serving = Serving::default();
        let (ours, theirs) = pair();
        let _service = service(theirs);
        serving.attach(Service::Relay, ours);

        let error = serving.serve(&set(1, "bad"), Duration::from_secs(1)).unwrap_err();

        assert_eq!(error, ServeError::Failed(Service::Relay, "port taken".to_owned()));
        assert_eq!(error.to_string(), "postern-relay: port taken");
    }

    #[test]
    fn a_service_that_never_comes_is_silent() {
        let serving = Serving::default();

        let error = serving.serve(&set(1, "one"), Duration::from_millis(50)).unwrap_err();

        assert_eq!(error, ServeError::Silent(Service::Relay));
    }

    #[test]
    fn a_service_that_died_reports_nothing() {
        let serving = Serving::default();
        let (ours, theirs) = pair();
        serving.attach(Service::Relay, ours);
        drop(theirs);

        assert_eq!(serving.report(Service::Relay), None);
    }

    #[test]
    fn a_service_without_a_slice_is_told_to_stop() {
        let serving = Serving::default();
        let (ours, theirs) = pair();
        let relay = service(theirs);
        serving.attach(Service::Relay, ours);
        let nothing = SliceSet {
            generation: Generation { serial: 2, digest: "0".repeat(64) },
            slices: Arc::new(BTreeMap::new()),
        };

        serving.serve(&nothing, Duration::from_secs(1)).unwrap();
        drop(serving);

        assert_eq!(relay.join().unwrap(), ["stop"]);
    }
}
