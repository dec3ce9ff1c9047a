//! The strict look at a chunked body (RFC 9112 section 7.1) as it passes by.
//!
//! Nothing is decoded here: hyper does that. This finds the byte where the body ends, by a
//! grammar that leaves no second reading: sizes in plain hex, every line ends in CRLF, bounded
//! extensions and trailers.

use super::head::{Refusal, field};
use http::StatusCode;

/// Longest size line with its extensions; enough for any known client, of which none sends any.
const MAX_SIZE_LINE: usize = 256;
/// Longest trailer section.
const MAX_TRAILERS: usize = 4 * 1024;

/// Where in the body the next byte is.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    line: Vec<u8>,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Size,
    Data(u64),
    /// CR and LF after the data of a chunk; how many of the two have passed.
    DataEnd(usize),
    Trailer,
    Done,
}

impl Chunked {
    /// How many bytes of `raw` belong to the body; `true` when the body ends there.
    ///
    /// # Errors
    ///
    /// Returns what breaks the grammar.
    pub(super) fn advance(&mut self, raw: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        while at < raw.len() {
            match self.state {
                State::Done => break,
                State::Data(left) => {
                    let available = (raw.len() - at) as u64;
                    let step = left.min(available);
                    at += usize::try_from(step).unwrap_or(raw.len() - at);
                    self.state =
                        if step == left { State::DataEnd(0) } else { State::Data(left - step) };
                }
                State::DataEnd(passed) => {
                    if raw[at] != b"\r\n"[passed] {
                        return Err(bad("a chunk is longer than its size says"));
                    }
                    at += 1;
                    self.state = if passed == 1 { State::Size } else { State::DataEnd(1) };
                }
                State::Size | State::Trailer => {
                    self.line.push(raw[at]);
                    at += 1;
                    self.end_of_line()?;
                }
            }
        }
        Ok((at, matches!(self.state, State::Done)))
    }

    fn end_of_line(&mut self) -> Result<(), Refusal> {
        let in_trailer = matches!(self.state, State::Trailer);
        let limit = if in_trailer { MAX_TRAILERS } else { MAX_SIZE_LINE };
        self.trailers += usize::from(in_trailer);
        if self.line.len() > limit || self.trailers > MAX_TRAILERS {
            return Err(bad("a chunk's size line or the trailer section is too long"));
        }
        if !self.line.ends_with(b"\n") {
            return Ok(());
        }
        let line = std::mem::take(&mut self.line);
        let line =
            line.strip_suffix(b"\r\n").ok_or_else(|| bad("a line ends in a bare line feed"))?;
        self.state = match (in_trailer, line.is_empty()) {
            (true, true) => State::Done,
            (true, false) => {
                field(line)?;
                State::Trailer
            }
            (false, _) => match size(line)? {
                0 => State::Trailer,
                length => State::Data(length),
            },
        };
        Ok(())
    }
}

fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

fn size(line: &[u8]) -> Result<u64, Refusal> {
    let end = line.iter().position(|&byte| byte == b';').unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    if extension.iter().any(|byte| byte.is_ascii_control()) {
        return Err(bad("a control character in a chunk extension"));
    }
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(bad("a chunk size that is not a hexadecimal number"));
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| bad("a chunk size that is not a hexadecimal number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(body: &[u8]) -> Result<(usize, bool), Refusal> {
        Chunked::default().advance(body)
    }

    #[test]
    fn the_end_is_found_wherever_the_pieces_are_cut() {
        let body = b"5\r\nhello\r\n0A;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1";
        let length = body.len() - b"GET / HTTP/1.1".len();

        assert_eq!(whole(body), Ok((length, true)));
        for cut in 1..length {
            let mut chunked = Chunked::default();
            assert_eq!(chunked.advance(&body[..cut]), Ok((cut, false)), "cut at {cut}");
            assert_eq!(chunked.advance(&body[cut..]), Ok((length - cut, true)), "cut at {cut}");
        }
    }

    #[test]
    fn a_second_reading_is_refused() {
        for body in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
        ] {
            assert!(whole(body).is_err(), "{}", body.escape_ascii());
        }
        assert!(whole(&[b'5'; 300]).is_err());
    }
}
