//! Load at a rate, measured while it lasts.

use std::time::{Duration, Instant};

use anyhow::Result;
use sys::packet_socket::{Frames, PacketSocket};

use crate::bench::load::counter::Counter;
use crate::bench::load::{Offered, real};
use crate::bench::processor;

/// Load before counting begins: queues fill, caches warm up.
const WARM_UP: Duration = Duration::from_millis(150);
/// How long is counted. Both together are short enough for real-time priority.
const WINDOW: Duration = Duration::from_millis(500);
/// Quiet before load: where others compete for the cores, the kernel takes a core away from a
/// real-time process after most of a second, and this rest starts that second anew.
const REST: Duration = Duration::from_millis(100);
/// Quiet after load beside an attack, so that each packet is counted as here or lost.
const QUIET: Duration = Duration::from_millis(60);
/// How far sending may lag behind its rate before the debt is forgotten.
const MAX_DEBT: Duration = Duration::from_millis(2);

/// Frames and how they are sent.
#[derive(Debug)]
pub(super) struct Stream<'a> {
    socket: &'a PacketSocket,
    frames: &'a mut Frames,
    batch: usize,
    pace: Pace,
    cursor: usize,
    sent: u64,
}

impl<'a> Stream<'a> {
    /// `batch` frames with one call, so many frames per second; `None`: as fast as this core can.
    pub(super) fn new(
        socket: &'a PacketSocket,
        frames: &'a mut Frames,
        batch: usize,
        per_second: Option<f64>,
    ) -> Self {
        Self { socket, frames, batch, pace: Pace::new(per_second), cursor: 0, sent: 0 }
    }

    /// Frames sent so far.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends the next frames if they are due, and says whether they were.
    pub(super) fn pump(&mut self, now: Instant) -> Result<bool> {
        if !self.pace.is_due(now) {
            return Ok(false);
        }
        let until = self.frames.len().min(self.cursor + self.batch);
        let went = self.socket.send(self.frames, self.cursor..until)?;
        self.cursor = (self.cursor + went) % self.frames.len();
        self.pace.sent(went);
        self.sent += u64::try_from(went)?;
        Ok(true)
    }

    fn pump_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            if !self.pump(now)? {
                std::hint::spin_loop();
            }
        }
    }
}

/// Where relayed packets are counted when they come out.
#[derive(Debug)]
pub(super) struct Outlet<'a> {
    pub(super) counter: &'a mut Counter,
    /// Octets of a packet's UDP payload there.
    pub(super) payload: u64,
    /// The relay's process.
    pub(super) relay: u32,
}

/// Sends a stream whose frames carry `merged` packets each, and measures.
///
/// Sent and arrived are both counted at the edges of the window while load goes on, so that
/// packets which wait in a queue are not mistaken for lost ones, nor a queue for capacity.
pub(super) fn offer(
    mut stream: Stream<'_>,
    merged: u16,
    outlet: &mut Outlet<'_>,
) -> Result<Offered> {
    std::thread::sleep(REST);
    stream.pump_for(WARM_UP)?;
    let relay_time = processor::time_used(outlet.relay)?;
    let sent = stream.sent();
    let before = outlet.counter.read()?;
    let begun = Instant::now();
    stream.pump_for(WINDOW)?;
    let after = outlet.counter.read()?;
    let seconds = begun.elapsed().as_secs_f64();
    let relay_time = processor::time_used(outlet.relay)? - relay_time;
    Ok(Offered {
        sent: (stream.sent() - sent) * u64::from(merged),
        arrived: after.packets_since(before, outlet.payload),
        seconds,
        relay_time,
    })
}

/// Sends media while `attack` is called over and over, and measures the media to the last packet.
pub(super) fn beside(
    mut media: Stream<'_>,
    outlet: &mut Outlet<'_>,
    mut attack: impl FnMut(Instant) -> Result<bool>,
) -> Result<Offered> {
    std::thread::sleep(REST);
    let relay_time = processor::time_used(outlet.relay)?;
    let before = outlet.counter.read()?;
    let begun = Instant::now();
    loop {
        let now = Instant::now();
        if now >= begun + WARM_UP + WINDOW {
            break;
        }
        let media_was_due = media.pump(now)?;
        if !attack(now)? && !media_was_due {
            std::hint::spin_loop();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let relay_time = processor::time_used(outlet.relay)? - relay_time;
    std::thread::sleep(QUIET);
    let after = outlet.counter.read()?;
    let arrived = after.packets_since(before, outlet.payload);
    Ok(Offered { sent: media.sent(), arrived, seconds, relay_time })
}

/// When the next frames are due.
#[derive(Debug)]
struct Pace {
    per_second: Option<f64>,
    due: Instant,
}

impl Pace {
    fn new(per_second: Option<f64>) -> Self {
        Self { per_second, due: Instant::now() }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        if let Some(oldest) = now.checked_sub(MAX_DEBT) {
            self.due = self.due.max(oldest);
        }
        self.per_second.is_none() || self.due <= now
    }

    fn sent(&mut self, frames: usize) {
        if let (Some(per_second), Ok(frames)) = (self.per_second, u64::try_from(frames)) {
            self.due += Duration::from_secs_f64(real(frames) / per_second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_and_a_debt_forgotten() {
        let mut pace = Pace::new(Some(1_000.0));
        let start = pace.due;

        assert!(pace.is_due(start));
        pace.sent(10);
        assert!(!pace.is_due(start + Duration::from_millis(9)));
        assert!(pace.is_due(start + Duration::from_millis(10)));

        let late = start + Duration::from_secs(1);
        assert!(pace.is_due(late));
        pace.sent(3);
        assert!(!pace.is_due(late), "one second's load is not made up for");
    }
}
