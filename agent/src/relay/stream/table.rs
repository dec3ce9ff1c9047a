//! The streams of a shard by number, which is what epoll knows them by.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::relay::shard::{StreamToken, watch};
use crate::relay::stream::client::Client;
use crate::relay::stream::peers::PeerListener;
use crate::relay::stream::splice::{Half, Progress};

/// What is behind a number.
#[derive(Debug)]
pub(super) enum Entry {
    /// A client that sends messages.
    Client(Client),
    /// One end of a connection between a client and a peer.
    Half(Half),
    /// Where peers connect to.
    Listener(PeerListener),
}

/// See the module. A number may still come in an event of the round in which its entry left, so
/// that it is given to another one only after that.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Option<Box<Entry>>>,
    free: Vec<u32>,
    /// Free when the round is over.
    resting: Vec<u32>,
}

impl Table {
    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        let entry = Some(Box::new(entry));
        if let Some(id) = self.free.pop() {
            self.entries[id as usize] = entry;
            return id;
        }
        self.entries.push(entry);
        u32::try_from(self.entries.len() - 1).expect("fewer streams than descriptors")
    }

    /// Takes an entry out; its descriptor leaves the epoll set when it is closed.
    pub(super) fn remove(&mut self, id: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(id as usize)?.take()?;
        self.resting.push(id);
        Some(*entry)
    }

    /// Every event of the round is handled: numbers that were given back may be given away.
    pub(super) fn end_round(&mut self) {
        self.free.append(&mut self.resting);
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self) {
        for id in 0..u32::try_from(self.entries.len()).unwrap_or(u32::MAX) {
            drop(self.remove(id));
        }
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_deref_mut()
    }

    pub(super) fn client(&mut self, id: u32) -> Option<&mut Client> {
        match self.get_mut(id) {
            Some(Entry::Client(client)) => Some(client),
            _ => None,
        }
    }

    /// Two ends at once.
    pub(super) fn pair(&mut self, one: u32, other: u32) -> Option<(&mut Half, &mut Half)> {
        let both = self.entries.get_disjoint_mut([one as usize, other as usize]).ok()?;
        match both.map(Option::as_deref_mut) {
            [Some(Entry::Half(first)), Some(Entry::Half(second))] => Some((first, second)),
            _ => None,
        }
    }

    /// Who took too long.
    pub(super) fn late(&self, now: Instant) -> Vec<u32> {
        let is_late = |entry: &Entry| match entry {
            Entry::Client(client) => client.is_late(now),
            Entry::Half(half) => match half.progress {
                Progress::Connecting { deadline } => deadline <= now,
                Progress::Waiting | Progress::Joined(_) => false,
            },
            Entry::Listener(_) => false,
        };
        let late =
            (0..).zip(&self.entries).filter(|(_, entry)| entry.as_deref().is_some_and(is_late));
        late.map(|(id, _)| id).collect()
    }

    /// How many clients and how many connections with peers there are.
    pub(super) fn count(&self) -> (u64, u64) {
        let (mut clients, mut halves, mut joined) = (0, 0, 0);
        for entry in self.entries.iter().flatten() {
            match &**entry {
                Entry::Client(_) => clients += 1,
                Entry::Half(half) if matches!(half.progress, Progress::Joined(_)) => joined += 1,
                Entry::Half(_) => halves += 1,
                Entry::Listener(_) => {}
            }
        }
        (clients + joined / 2, halves + joined / 2)
    }

    /// Makes epoll watch a descriptor for `wanted`; for nothing, not at all, since errors and
    /// hang-ups would be told otherwise again and again.
    ///
    /// # Errors
    ///
    /// Returns the error of epoll_ctl(2).
    pub(super) fn watch(&mut self, id: u32, wanted: EpollFlags, epoll: &Epoll) -> io::Result<()> {
        match self.get_mut(id) {
            Some(Entry::Client(client)) => {
                change(id, &client.wire, &mut client.interest, wanted, epoll)
            }
            Some(Entry::Half(half)) => change(id, &half.wire, &mut half.interest, wanted, epoll),
            Some(Entry::Listener(listener)) => {
                watch(epoll, &listener.socket, StreamToken::Stream(id), wanted)
            }
            None => Ok(()),
        }
    }
}

fn change(
    id: u32,
    fd: &impl AsFd,
    interest: &mut EpollFlags,
    wanted: EpollFlags,
    epoll: &Epoll,
) -> io::Result<()> {
    let before = std::mem::replace(interest, wanted);
    match (before.is_empty(), wanted.is_empty()) {
        _ if before == wanted => Ok(()),
        (true, _) => watch(epoll, fd, StreamToken::Stream(id), wanted),
        (false, true) => Ok(epoll.delete(fd)?),
        (false, false) => {
            let mut event = EpollEvent::new(wanted, StreamToken::Stream(id).encode());
            Ok(epoll.modify(fd, &mut event)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::{Client, Entry, Table};
    use crate::relay::stream::wire::Wire;

    fn entry() -> Entry {
        let (ours, _) = UnixStream::pair().unwrap();
        Entry::Client(Client::new(Wire::local(ours).unwrap(), None, None, Instant::now()))
    }

    #[test]
    fn a_number_is_not_given_away_while_events_of_its_last_entry_may_come() {
        let mut table = Table::default();
        let first = table.insert(entry());
        assert!(table.remove(first).is_some());

        let second = table.insert(entry());
        assert_ne!(second, first);
        assert!(table.get_mut(first).is_none(), "a late event finds nobody");
        table.end_round();
        assert_eq!(table.insert(entry()), first);

        table.clear();
        assert_ne!(table.insert(entry()), first);
        assert_eq!(table.count(), (1, 0));
    }
}
