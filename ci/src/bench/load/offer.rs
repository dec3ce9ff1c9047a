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
/// How far sending may lag behind its rate before the debt is forgotten.
const MAX_DEBT: Duration = Duration::from_millis(2);

/// Frames, where they go out and where they are counted when they come back.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub(super) socket: &'a PacketSocket,
    pub(super) frames: &'a mut Frames,
    /// Packets that each frame carries.
    pub(super) merged: u16,
    /// Frames sent with one call.
    pub(super) batch: usize,
    pub(super) counter: &'a mut Counter,
    /// Octets of a packet's UDP payload where it is counted.
    pub(super) payload: u64,
}

impl Load<'_> {
    /// Sends at that rate, or as fast as this core can, and measures.
    ///
    /// Sent and arrived are both counted at the edges of the window while load goes on, so that
    /// packets which wait in a queue are not mistaken for lost ones, nor a queue for capacity.
    pub(super) fn offer(&mut self, packets_per_second: Option<f64>, relay: u32) -> Result<Offered> {
        let per_second = packets_per_second.map(|rate| rate / f64::from(self.merged));
        let mut pace = Pace::new(per_second);
        let mut cursor = 0;
        self.send_for(WARM_UP, &mut pace, &mut cursor)?;
        let relay_time = processor::time_used(relay)?;
        let before = self.counter.read()?;
        let begun = Instant::now();
        let sent = self.send_for(WINDOW, &mut pace, &mut cursor)?;
        let after = self.counter.read()?;
        let seconds = begun.elapsed().as_secs_f64();
        let relay_time = processor::time_used(relay)? - relay_time;
        Ok(Offered {
            sent: sent * u64::from(self.merged),
            arrived: after.packets_since(before, self.payload),
            seconds,
            relay_time,
        })
    }

    /// Returns how many frames went.
    fn send_for(&mut self, time: Duration, pace: &mut Pace, cursor: &mut usize) -> Result<u64> {
        let end = Instant::now() + time;
        let mut sent = 0;
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(sent);
            }
            if !pace.is_due(now) {
                std::hint::spin_loop();
                continue;
            }
            let until = self.frames.len().min(*cursor + self.batch);
            let went = self.socket.send(self.frames, *cursor..until)?;
            *cursor = (*cursor + went) % self.frames.len();
            pace.sent(went);
            sent += u64::try_from(went)?;
        }
    }
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
