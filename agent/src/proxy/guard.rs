//! The stream that hyper's server reads from: it hands on only bytes that were judged.
//!
//! A [`Guard`] sits between TLS (or TCP) and hyper. It holds a request head back until
//! [`head`](super::head) has passed it, follows the body to its end, and begins anew. For each
//! head it leaves one verdict in the connection's [`Verdicts`], and hyper calls the service once
//! per head, so the service takes the verdict that belongs to its request. A refused head never
//! reaches hyper: it gets [`STAND_IN`] in its place, so that refusals are answered in their turn,
//! by the same code as everything else.
//!
//! # Invariants
//!
//! 1. Verdicts and requests come in the same order and number.
//! 2. After a refusal and after an Upgrade nothing more is handed on: what follows belongs to no
//!    request, or to the tunnel.
//! 3. A head is whole within [`HEAD_TIME`] of its first byte; a body or a reader that makes no
//!    progress for [`STALL_TIME`] ends the connection.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::chunked::Chunked;
use super::head::{Framing, Head, Refusal, Scanner, examine};

/// From the first byte of a head to its last.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest time without a byte in a body that is being read or an answer that is being written.
const STALL_TIME: Duration = Duration::from_secs(60);
/// How long a closed connection goes on reading, so that the answer is not lost in a reset.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// How much it reads then.
const LINGER_BYTES: usize = 256 * 1024;
/// Read at once.
const PIECE: usize = 16 * 1024;
/// What hyper sees instead of a refused head.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";

/// What became of each head of one connection, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdicts(Arc<Mutex<VecDeque<Result<Head, Refusal>>>>);

impl Verdicts {
    /// The verdict on the request that hyper has just handed to the service.
    pub(super) fn take(&self) -> Option<Result<Head, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn add(&self, verdict: Result<Head, Refusal>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(verdict);
    }
}

/// Where in the stream of requests the next byte is.
#[derive(Debug)]
enum State {
    Head(Scanner),
    Length(u64),
    Chunked(Chunked),
    /// Nothing more is handed on.
    Stopped,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Guard<S> {
    stream: S,
    /// Read and not yet handed on; the first `passed` bytes may be.
    raw: Vec<u8>,
    passed: usize,
    state: State,
    verdicts: Verdicts,
    read_timer: Timer,
    write_timer: Timer,
    lingered: usize,
    closing: bool,
}

impl<S> Guard<S> {
    /// Guards a fresh connection, of which `read` was read already; verdicts go to `verdicts`.
    pub(super) fn new(stream: S, read: Vec<u8>, verdicts: Verdicts) -> Self {
        let mut read_timer = Timer::default();
        read_timer.arm(HEAD_TIME);
        Self {
            stream,
            raw: read,
            passed: 0,
            state: State::Head(Scanner::default()),
            verdicts,
            read_timer,
            write_timer: Timer::default(),
            lingered: 0,
            closing: false,
        }
    }

    /// The stream and what was read of it beyond the last request, for a tunnel.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.raw)
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.verdicts.add(Err(refusal));
        self.raw.clear();
        self.raw.extend_from_slice(STAND_IN);
        self.passed = STAND_IN.len();
        self.state = State::Stopped;
        self.read_timer.disarm();
    }

    /// Judges what has been read; `false` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// Returns `InvalidData` for a broken chunked body: hyper is in the middle of it, so all
    /// that is left is to end the connection.
    fn judge(&mut self) -> io::Result<bool> {
        if self.raw.is_empty() {
            return Ok(false);
        }
        match &mut self.state {
            State::Head(scanner) => {
                match scanner.scan(&self.raw) {
                    Ok(None) => {
                        self.read_timer.arm_once(HEAD_TIME);
                        return Ok(false);
                    }
                    Ok(Some(length)) => match examine(&self.raw[..length]) {
                        Ok(head) => self.pass(length, head),
                        Err(refusal) => self.refuse(refusal),
                    },
                    Err(refusal) => self.refuse(refusal),
                }
                Ok(true)
            }
            State::Length(left) => {
                let available = self.raw.len() as u64;
                let step = available.min(*left);
                *left -= step;
                self.passed = usize::try_from(step).unwrap_or(self.raw.len());
                if *left == 0 {
                    self.state = State::Head(Scanner::default());
                }
                Ok(true)
            }
            State::Chunked(chunked) => {
                let (length, done) = chunked.advance(&self.raw).map_err(|refusal| {
                    io::Error::new(io::ErrorKind::InvalidData, refusal.reason)
                })?;
                self.passed = length;
                if done {
                    self.state = State::Head(Scanner::default());
                }
                Ok(true)
            }
            State::Stopped => Ok(false),
        }
    }

    fn pass(&mut self, length: usize, head: Head) {
        self.verdicts.add(Ok(head));
        self.passed = length;
        self.read_timer.disarm();
        self.state = match head.framing {
            _ if head.websocket => State::Stopped,
            Framing::Length(0) => State::Head(Scanner::default()),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunked::default()),
        };
    }

    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) {
        let step = self.passed.min(buffer.remaining());
        buffer.put_slice(&self.raw[..step]);
        self.passed -= step;
        if step == self.raw.len() {
            // An idle connection keeps no buffer.
            self.raw = Vec::new();
        } else {
            self.raw.drain(..step);
        }
    }

    /// The time is up: `None` for a connection that never sent anything.
    fn expire(&mut self) -> io::Result<()> {
        match self.state {
            State::Head(_) if self.raw.is_empty() => {}
            State::Head(_) => self.refuse(Refusal {
                status: StatusCode::REQUEST_TIMEOUT,
                reason: "the request head took more than 10 seconds",
            }),
            _ => return Err(io::ErrorKind::TimedOut.into()),
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Reads a piece into `raw`; `true` at the end of the stream.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut piece = [const { MaybeUninit::uninit() }; PIECE];
        let mut buffer = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        self.raw.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().is_empty()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.passed > 0 {
                this.hand_on(buffer);
                return Poll::Ready(Ok(()));
            }
            if this.judge()? {
                continue;
            }
            if matches!(this.state, State::Stopped) {
                return Poll::Pending;
            }
            match this.poll_fill(context) {
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(false)) => {
                    if !matches!(this.state, State::Head(_)) {
                        this.read_timer.disarm();
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if !matches!(this.state, State::Head(_)) {
                        this.read_timer.arm_once(STALL_TIME);
                    }
                    ready!(this.read_timer.poll(context));
                    this.expire()?;
                    if this.passed == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guard<S> {
    /// Notes progress of a writer, or its lack.
    fn watch_write<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer.disarm();
            return written;
        }
        self.write_timer.arm_once(STALL_TIME);
        ready!(self.write_timer.poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch_write(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch_write(context, flushed)
    }

    /// Closes our direction, then reads on for a moment: closing a socket that holds unread bytes
    /// resets the connection, and the client would lose the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closing {
            let shut = Pin::new(&mut this.stream).poll_shutdown(context);
            ready!(this.watch_write(context, shut))?;
            this.closing = true;
            this.read_timer.arm(LINGER_TIME);
        }
        while this.lingered < LINGER_BYTES {
            this.raw.clear();
            match this.poll_fill(context) {
                Poll::Ready(Ok(true) | Err(_)) => break,
                Poll::Ready(Ok(false)) => this.lingered += this.raw.len(),
                Poll::Pending => {
                    ready!(this.read_timer.poll(context));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A deadline that can be taken back; its allocation is reused.
#[derive(Debug, Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Timer {
    fn arm(&mut self, after: Duration) {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(Instant::now() + after),
            None => self.sleep = Some(Box::pin(sleep(after))),
        }
        self.armed = true;
    }

    fn arm_once(&mut self, after: Duration) {
        if !self.armed {
            self.arm(after);
        }
    }

    fn disarm(&mut self) {
        self.armed = false;
    }

    /// Ready once the deadline has passed; for ever pending when there is none.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.sleep {
            Some(sleep) if self.armed => {
                ready!(sleep.as_mut().poll(context));
                self.armed = false;
                Poll::Ready(())
            }
            _ => Poll::Pending,
        }
    }
}
