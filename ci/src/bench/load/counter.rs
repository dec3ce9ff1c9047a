//! What a link of a namespace has received.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use nix::unistd::Pid;

/// Ethernet, IPv4 and UDP headers of one frame; a merged run has them once.
const HEADERS: u64 = 14 + 20 + 8;

/// Counts packets that arrive by one link. What it counts is all that the link carries.
#[derive(Debug)]
pub(super) struct Counter {
    devices: File,
    interface: &'static str,
    text: String,
}

/// Frames and octets received.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Received {
    frames: u64,
    octets: u64,
}

impl Received {
    /// How many packets of `payload` octets came since `before`, however they were merged.
    pub(super) const fn packets_since(self, before: Self, payload: u64) -> u64 {
        let frames = self.frames - before.frames;
        (self.octets - before.octets).saturating_sub(frames * HEADERS) / payload
    }
}

impl Counter {
    /// The counters of `interface` in the network namespace of `process`.
    pub(super) fn open(process: Pid, interface: &'static str) -> Result<Self> {
        let devices = File::open(format!("/proc/{process}/net/dev"))?;
        Ok(Self { devices, interface, text: String::with_capacity(1024) })
    }

    /// Reads them; takes some microseconds.
    pub(super) fn read(&mut self) -> Result<Received> {
        self.devices.seek(SeekFrom::Start(0))?;
        self.text.clear();
        self.devices.read_to_string(&mut self.text)?;
        parse(&self.text, self.interface).context("no counters of the link")
    }
}

fn parse(devices: &str, interface: &str) -> Option<Received> {
    let line = devices.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == interface).then_some(counters)
    })?;
    let mut words = line.split_whitespace().map(str::parse);
    let octets = words.next()?.ok()?;
    let frames = words.next()?.ok()?;
    Some(Received { frames, octets })
}

#[cfg(test)]
mod tests {
    use super::{Received, parse};

    const DEVICES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       0       0    0    0    0     0          0         0        0       0    0    0
    c0: 1209042       8    0    0    0     0          0         0    12345      67    0    0
";

    #[test]
    fn the_receiving_counters_of_the_named_link_are_read() {
        assert_eq!(parse(DEVICES, "c0"), Some(Received { frames: 8, octets: 1_209_042 }));
        assert_eq!(parse(DEVICES, "c1"), None);
    }

    #[test]
    fn a_merged_run_counts_as_its_packets() {
        let before = Received { frames: 3, octets: 1_000 };
        let single = Received { frames: 4, octets: 1_000 + 42 + 160 };
        let merged = Received { frames: 5, octets: 1_000 + 2 * 42 + 160 * 17 };

        assert_eq!(single.packets_since(before, 160), 1);
        assert_eq!(merged.packets_since(before, 160), 17);
    }
}
