//! Unpredictable numbers from a seed, for ports and reservation tokens.
//!
//! HMAC-SHA256 in counter mode: who sees the numbers cannot tell the next one, and the same seed
//! gives the same run again.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A source of numbers.
#[derive(Clone)]
pub(crate) struct Random {
    seed: [u8; 32],
    counter: u64,
}

impl Random {
    pub(crate) const fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    /// Eight octets.
    pub(crate) fn octets(&mut self) -> [u8; 8] {
        self.counter += 1;
        let block = derive(&self.seed, b"random", &self.counter.to_be_bytes());
        let mut octets = [0; 8];
        octets.copy_from_slice(&block[..8]);
        octets
    }

    /// A number below `bound`, 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let number = u64::from_be_bytes(self.octets());
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(number % bound).unwrap_or(0)
    }
}

/// A key for one purpose.
pub(crate) fn derive(seed: &[u8; 32], purpose: &[u8], input: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(seed).expect("HMAC takes keys of any length");
    mac.update(purpose);
    mac.update(input);
    mac.finalize().into_bytes().into()
}
