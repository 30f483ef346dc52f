//! Moves bytes between a TLS session and a plaintext socket, for every library and both directions alike.
//!
//! One poll takes a few turns; a turn reads and writes up to one large buffer each way ([`crate::buffers`]). A
//! connection keeps only what the other side has not taken yet, in vectors of exactly that size, so an idle one costs
//! its sockets and its session. While something is left over for one side, nothing is read from the other: that is the
//! whole of back-pressure.
//!
//! Ends are kept apart. A close_notify is passed on as a half-close, and so is the application's FIN. A FIN without
//! close_notify is a cut: the application's socket is reset, never ended cleanly, because what it has got may be half
//! of an answer.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use lictor_core::{Buf, Progress, Session, SessionError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    buffers::{LENT_BYTES, Lent, lend},
    record::EndReason,
};

/// Turns in one poll. Two let bulk find its socket dry within the poll; more would only delay others.
const TURNS: usize = 2;

/// What an overrun budget lets a turn read, so that slow readers shrink to little and nobody stands still.
const SMALL_READ: usize = 16 * 1024;

/// How long one side may take what came before the other one broke.
const HAND_OVER: Duration = Duration::from_secs(1);

/// Answers that the protocol asks for (KeyUpdate) and that the peer does not take: beyond this it is not read.
const MAX_ANSWERS: usize = 1024 * 1024;

/// Bytes that connections hold for slow readers, over the whole sidecar.
#[derive(Debug)]
pub(crate) struct Budget {
    held: AtomicUsize,
    most: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most: AtomicUsize::new(most) })
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(crate) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// How much one turn may read.
    fn read_size(&self) -> usize {
        if self.held() > self.most.load(Ordering::Relaxed) { SMALL_READ } else { LENT_BYTES }
    }
}

/// What one side has not taken yet.
struct Leftover {
    bytes: Vec<u8>,
    written: usize,
    budget: Arc<Budget>,
}

impl Leftover {
    fn new(budget: Arc<Budget>) -> Self {
        Self { bytes: Vec::new(), written: 0, budget }
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes what is left; ready when nothing is.
    fn poll_flush<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.bytes[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.budget.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.bytes = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes `bytes`, behind what is left if there is any, and keeps what is not taken.
    fn write<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> io::Result<()> {
        let mut taken = 0;
        if self.is_empty() {
            while taken < bytes.len() {
                match Pin::new(&mut *to).poll_write(cx, &bytes[taken..])? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(n) => taken += n,
                    Poll::Pending => break,
                }
            }
        }
        if taken < bytes.len() {
            self.bytes.extend_from_slice(&bytes[taken..]);
            self.budget.held.fetch_add(bytes.len() - taken, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// Bytes moved, by where they went.
pub(crate) trait Count {
    /// Plaintext that came out of the session.
    fn came_from_peer(&self, bytes: usize);
    /// Plaintext that went into the session.
    fn went_to_peer(&self, bytes: usize);
}

/// One connection in its relay.
pub(crate) struct Relay<'a, T, A, C> {
    tls: &'a mut T,
    session: Box<dyn Session>,
    application: &'a mut A,
    count: C,
    /// Ciphertext that came and is part of a record, or came with the handshake.
    partial: Vec<u8>,
    to_peer: Leftover,
    to_application: Leftover,
    budget: Arc<Budget>,
    /// The peer's end is real: close_notify has come.
    peer_closed: bool,
    /// The application has been told so.
    application_told: bool,
    /// The application has ended its direction, and close_notify is sealed.
    application_closed: bool,
    /// Our FIN has followed it.
    peer_told: bool,
    /// Set when the relay begins: data may be waiting in the session without a byte on the socket.
    first: bool,
}

/// How a relay ended, and the library's or system's words where there are any.
pub(crate) type End = (EndReason, String);

impl<'a, T, A, C> Relay<'a, T, A, C>
where
    T: AsyncRead + AsyncWrite + Unpin,
    A: AsyncRead + AsyncWrite + Unpin,
    C: Count,
{
    /// A relay that begins with `early`: ciphertext that came behind the handshake.
    pub(crate) fn new(
        tls: &'a mut T,
        session: Box<dyn Session>,
        application: &'a mut A,
        early: Vec<u8>,
        budget: &Arc<Budget>,
        count: C,
    ) -> Self {
        Self {
            tls,
            session,
            application,
            count,
            partial: early,
            to_peer: Leftover::new(budget.clone()),
            to_application: Leftover::new(budget.clone()),
            budget: budget.clone(),
            peer_closed: false,
            application_told: false,
            application_closed: false,
            peer_told: false,
            first: true,
        }
    }

    /// Moves bytes until both directions have ended, or one has broken, or nothing moved for `idle`.
    pub(crate) async fn run(&mut self, idle: Option<Duration>) -> End {
        let end = self.move_bytes(idle).await;
        // What was good before the break is still handed over, for as long as somebody takes it.
        let hand_over = poll_fn(|cx| match end.0 {
            EndReason::Truncated | EndReason::PeerReset | EndReason::PeerAlert | EndReason::BadRecord => {
                self.to_application.poll_flush(cx, self.application)
            }
            EndReason::ApplicationReset => self.to_peer.poll_flush(cx, self.tls),
            _ => Poll::Ready(Ok(())),
        });
        let _ = tokio::time::timeout(HAND_OVER, hand_over).await;
        end
    }

    async fn move_bytes(&mut self, idle: Option<Duration>) -> End {
        let mut timer = pin!(idle.map(tokio::time::sleep));
        poll_fn(|cx| {
            let mut moved = false;
            let mut end = lend(|lent| self.poll_turns(cx, lent, &mut moved));
            if let (Some(limit), Some(mut sleep)) = (idle, timer.as_mut().as_pin_mut()) {
                if moved {
                    sleep.as_mut().reset(tokio::time::Instant::now() + limit);
                }
                if end.is_pending() && sleep.poll(cx).is_ready() {
                    end = Poll::Ready((EndReason::Idle, String::new()));
                }
            }
            end
        })
        .await
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>, lent: &mut Lent, moved: &mut bool) -> Poll<End> {
        lent.wire.append(&self.partial);
        self.partial = Vec::new();
        let mut end = Poll::Pending;
        let mut turned = true;
        for _ in 0..TURNS {
            match self.turn(cx, lent) {
                Ok(Turn::Moved) => *moved = true,
                Ok(Turn::Dry) => {
                    turned = false;
                    break;
                }
                Ok(Turn::Finished) => {
                    end = Poll::Ready((EndReason::Finished, String::new()));
                    break;
                }
                Err(broken) => {
                    end = Poll::Ready(broken);
                    break;
                }
            }
        }
        if end.is_pending() {
            self.partial = lent.wire.take();
            if turned {
                // Not a plain wake-up of ourselves: while any task is runnable tokio looks at its sockets only now
                // and then, and bulk would starve everybody's small messages. Yielding lets it look first.
                let _ = pin!(tokio::task::yield_now()).poll(cx);
            }
        }
        end
    }

    /// Moves up to one buffer each way.
    fn turn(&mut self, cx: &mut Context<'_>, lent: &mut Lent) -> Result<Turn, End> {
        let inwards = self.move_inwards(cx, lent)?;
        let outwards = self.move_outwards(cx, lent)?;
        if self.application_told && self.peer_told {
            return Ok(Turn::Finished);
        }
        Ok(if inwards || outwards { Turn::Moved } else { Turn::Dry })
    }

    /// Ciphertext of the peer to the application; true when anything moved.
    fn move_inwards(&mut self, cx: &mut Context<'_>, lent: &mut Lent) -> Result<bool, End> {
        if self.to_application.poll_flush(cx, self.application).map_err(application_broke)?.is_pending() {
            return Ok(false);
        }
        if self.peer_closed {
            return self.tell_application(cx);
        }
        if self.to_peer.len() > MAX_ANSWERS {
            return Ok(false);
        }
        let ended = if std::mem::take(&mut self.first) {
            false
        } else {
            let most = self.budget.read_size();
            match poll_read_into(cx, self.tls, &mut lent.wire, most).map_err(peer_broke)? {
                Poll::Ready(n) => n == 0,
                Poll::Pending => return Ok(false),
            }
        };
        lent.plain.clear();
        lent.out.clear();
        let opened = self.session.open(&mut lent.wire, &mut lent.plain, &mut lent.out);
        // What was opened before an error is good, and so is the alert.
        self.count.came_from_peer(lent.plain.len());
        self.to_application.write(cx, self.application, lent.plain.data()).map_err(application_broke)?;
        self.to_peer.write(cx, self.tls, lent.out.data()).map_err(peer_broke)?;
        match opened {
            Ok(Progress::PeerClosed) => {
                self.peer_closed = true;
                lent.wire.clear();
                Ok(true)
            }
            Ok(Progress::NeedInput) if ended => Err((EndReason::Truncated, String::new())),
            Ok(Progress::NeedInput) => Ok(true),
            Err(error) => Err(session_broke(&error)),
        }
    }

    fn tell_application(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.application_told {
            return Ok(false);
        }
        match Pin::new(&mut *self.application).poll_shutdown(cx) {
            Poll::Ready(Ok(())) => {
                self.application_told = true;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(application_broke(error)),
            Poll::Pending => Ok(false),
        }
    }

    /// Plaintext of the application to the peer; true when anything moved.
    fn move_outwards(&mut self, cx: &mut Context<'_>, lent: &mut Lent) -> Result<bool, End> {
        if self.to_peer.poll_flush(cx, self.tls).map_err(peer_broke)?.is_pending() {
            return Ok(false);
        }
        if self.application_closed {
            if self.peer_told {
                return Ok(false);
            }
            return match Pin::new(&mut *self.tls).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => {
                    self.peer_told = true;
                    Ok(true)
                }
                Poll::Ready(Err(error)) => Err(peer_broke(error)),
                Poll::Pending => Ok(false),
            };
        }
        lent.plain.clear();
        let most = self.budget.read_size();
        let n = match poll_read_into(cx, self.application, &mut lent.plain, most).map_err(application_broke)? {
            Poll::Ready(n) => n,
            Poll::Pending => return Ok(false),
        };
        lent.out.clear();
        if n == 0 {
            self.application_closed = true;
            self.session.close(&mut lent.out).map_err(|error| session_broke(&error))?;
        } else {
            self.count.went_to_peer(n);
            self.session.seal(lent.plain.data(), &mut lent.out).map_err(|error| session_broke(&error))?;
        }
        self.to_peer.write(cx, self.tls, lent.out.data()).map_err(peer_broke)?;
        Ok(true)
    }
}

enum Turn {
    Moved,
    /// Nothing to do until a socket says so; each has our waker.
    Dry,
    Finished,
}

/// Reads at most `most` bytes behind what is in `buf`.
pub(crate) fn poll_read_into<R: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    from: &mut R,
    buf: &mut Buf,
    most: usize,
) -> io::Result<Poll<usize>> {
    let room = most.saturating_sub(buf.len()).max(SMALL_READ);
    let space = &mut buf.space(room)[..room];
    let mut read = ReadBuf::new(space);
    match Pin::new(from).poll_read(cx, &mut read) {
        Poll::Ready(Ok(())) => {
            let n = read.filled().len();
            buf.filled(n);
            Ok(Poll::Ready(n))
        }
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(Poll::Pending),
    }
}

fn application_broke(error: io::Error) -> End {
    (EndReason::ApplicationReset, error.to_string())
}

fn peer_broke(error: io::Error) -> End {
    (EndReason::PeerReset, error.to_string())
}

fn session_broke(error: &SessionError) -> End {
    let reason = match error {
        SessionError::PeerAlert(_) => EndReason::PeerAlert,
        SessionError::Internal(_) => EndReason::Internal,
        _ => EndReason::BadRecord,
    };
    (reason, error.to_string())
}
