//! What waits to be written to a stream; an idle one holds no memory.

use std::io::{self, Write};

/// Octets that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    octets: Vec<u8>,
    written: usize,
}

impl Outbound {
    /// How many octets wait.
    pub(super) const fn len(&self) -> usize {
        self.octets.len() - self.written
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a message whole, or not at all when more than `limit` octets would wait.
    pub(super) fn push(&mut self, message: &[&[u8]], limit: usize) -> bool {
        let length: usize = message.iter().map(|piece| piece.len()).sum();
        if self.len() + length > limit {
            return false;
        }
        if self.written > 0 {
            self.octets.drain(..std::mem::take(&mut self.written));
        }
        for piece in message {
            self.octets.extend_from_slice(piece);
        }
        true
    }

    /// Writes what the stream takes.
    ///
    /// # Errors
    ///
    /// Returns what ends the stream.
    pub(super) fn write_to(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match stream.write(&self.octets[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        *self = Self::default();
        Ok(())
    }

    /// Writes `octets` after what waits, and keeps what the stream does not take.
    ///
    /// # Errors
    ///
    /// Returns what ends the stream.
    pub(super) fn write_through(
        &mut self,
        octets: &[u8],
        stream: &mut impl Write,
    ) -> io::Result<()> {
        self.write_to(stream)?;
        let mut rest = octets;
        while self.is_empty() && !rest.is_empty() {
            match stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.octets.extend_from_slice(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::Outbound;

    /// Takes so many octets at a time, and then none until it is given more room.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let length = bytes.len().min(self.1).min(3);
            if length == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.1 -= length;
            self.0.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_are_kept_whole_or_not_at_all() {
        let mut outbound = Outbound::default();
        let mut stream = Slow(Vec::new(), 2);

        assert!(outbound.push(&[b"abc", b"", b"de"], 8));
        outbound.write_to(&mut stream).unwrap();
        assert!(!outbound.push(&[b"toolong"], 8), "3 of 8 are taken");
        assert!(outbound.push(&[b"fghij"], 8));
        stream.1 = 100;
        outbound.write_to(&mut stream).unwrap();

        assert_eq!((stream.0.as_slice(), outbound.len()), (&b"abcdefghij"[..], 0));
    }

    #[test]
    fn what_is_written_through_comes_after_what_waits() {
        let mut outbound = Outbound::default();
        let mut stream = Slow(Vec::new(), 0);
        outbound.write_through(b"first", &mut stream).unwrap();
        stream.1 = 7;

        outbound.write_through(b"second", &mut stream).unwrap();

        assert_eq!((stream.0.as_slice(), outbound.len()), (&b"firstse"[..], 4));
        stream.1 = 9;
        outbound.write_to(&mut stream).unwrap();
        assert_eq!(stream.0, b"firstsecond");
    }
}
