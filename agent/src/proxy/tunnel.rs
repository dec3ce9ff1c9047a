//! The relay between the two ends of a WebSocket, which after the 101 is bytes both ways.
//!
//! An idle tunnel holds no buffer: reads land in one scratch per thread, and only what the other
//! end does not take at once is kept. A tunnel depends on nothing that a new slice changes.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A tunnel in which nothing moves for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(3600);
/// The same once one end has said that it sends no more.
const HALF_CLOSED_TIME: Duration = Duration::from_secs(60);

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 32 * 1024]);
}

/// One direction.
#[derive(Debug, Default)]
struct Direction {
    /// Read and not yet written, from `written` on.
    rest: Vec<u8>,
    written: usize,
    ended: bool,
    unflushed: bool,
    done: bool,
}

/// Both ends and what is on its way between them; resolves when both directions have ended.
#[derive(Debug)]
pub(super) struct Tunnel<A, B> {
    client: A,
    upstream: B,
    to_upstream: Direction,
    to_client: Direction,
    idle: Pin<Box<Sleep>>,
    moved: Instant,
}

impl<A, B> Tunnel<A, B> {
    /// Joins both ends; the byte strings were read from them already.
    pub(super) fn new(client: (A, Vec<u8>), upstream: (B, Vec<u8>)) -> Self {
        Self {
            client: client.0,
            upstream: upstream.0,
            to_upstream: Direction { rest: client.1, ..Direction::default() },
            to_client: Direction { rest: upstream.1, ..Direction::default() },
            idle: Box::pin(sleep(IDLE_TIME)),
            moved: Instant::now(),
        }
    }
}

impl<A, B> Future for Tunnel<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (mut to_upstream, mut to_client) = (false, false);
        let up = this.to_upstream.poll(
            context,
            &mut this.client,
            &mut this.upstream,
            &mut to_upstream,
        )?;
        let down =
            this.to_client.poll(context, &mut this.upstream, &mut this.client, &mut to_client)?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if to_upstream || to_client {
            this.moved = Instant::now();
        }
        let half_closed = up.is_ready() || down.is_ready();
        let deadline = this.moved + if half_closed { HALF_CLOSED_TIME } else { IDLE_TIME };
        // The timer is only moved when it fires or must fire earlier, not with every packet.
        if half_closed && this.idle.deadline() > deadline {
            this.idle.as_mut().reset(deadline);
        }
        while this.idle.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            this.idle.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl Direction {
    /// Moves what can be moved; ready when the direction has ended. Sets `moved` when it did.
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut bool,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            while self.written < self.rest.len() {
                let rest = &self.rest[self.written..];
                let step = ready!(Pin::new(&mut *writer).poll_write(context, rest))?;
                if step == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += step;
                (self.unflushed, *moved) = (true, true);
            }
            (self.rest, self.written) = (Vec::new(), 0);
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_flush(context))?;
                ready!(Pin::new(&mut *writer).poll_shutdown(context))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            let read = SCRATCH.with(|scratch| {
                let mut scratch = scratch.borrow_mut();
                let mut buffer = ReadBuf::new(&mut scratch);
                ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer))?;
                *moved = true;
                Poll::Ready(self.write(context, writer, buffer.filled()))
            })?;
            if read.is_pending() {
                if self.unflushed && Pin::new(&mut *writer).poll_flush(context)?.is_ready() {
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
        }
    }

    /// Writes what was just read and keeps what the writer does not take.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        self.ended = bytes.is_empty();
        while !bytes.is_empty() {
            match Pin::new(&mut *writer).poll_write(context, bytes)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(step) => {
                    bytes = &bytes[step..];
                    self.unflushed = true;
                }
                Poll::Pending => {
                    self.rest = bytes.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }
}
