//! Moves bytes between a TLS session and a plaintext socket, for every library and both directions alike.
//!
//! One poll takes a few turns; a turn reads and writes up to one large buffer each way (`buffers.rs`). A
//! connection keeps only what the other side has not taken yet, in vectors of exactly that size, so an idle one costs
//! its sockets and its session. While something is left over for one side, nothing is read from the other: that is the
//! whole of back-pressure.
//!
//! Ends are kept apart. A close_notify is passed on as a half-close, and so is the application's FIN. A FIN without
//! close_notify is a cut: the application's socket is reset, never ended cleanly, because what it has got may be half
//! of an answer.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use lictor_core::{Buf, MeshSession, PeerProof, Permit, Progress, SessionError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::{
    buffers::{LENT_BYTES, Lent, lend},
    handshake::farewell,
    record::EndReason,
    socket::Socket,
};

/// Turns in one poll. Two let bulk find its socket dry within the poll; more would only delay others.
const TURNS: usize = 2;

/// What an overrun budget lets a turn read, so that slow readers shrink to little and nobody stands still.
const SMALL_READ: usize = 16 * 1024;

/// Answers that the protocol asks for (KeyUpdate) and that the peer does not take: beyond this it is not read.
const MAX_ANSWERS: usize = 1024 * 1024;

/// How long what has come may take to be delivered after something broke.
const WIND_UP: Duration = Duration::from_secs(5);

/// Bytes that connections hold for slow readers, over the whole sidecar.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    most: AtomicUsize,
}

impl Budget {
    /// A budget of `most` bytes, over which connections read in small steps.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most: AtomicUsize::new(most) })
    }

    /// How many bytes are held now.
    #[must_use]
    pub fn held(&self) -> usize {
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

    /// Writes what is left; ready when nothing is. `moved` is set when anything was taken.
    fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.bytes[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            *moved = true;
        }
        self.clear();
        Poll::Ready(Ok(()))
    }

    /// Drops what is left, with its storage.
    fn clear(&mut self) {
        self.budget.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        self.bytes = Vec::new();
        self.written = 0;
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
        self.clear();
    }
}

/// Bytes moved, by where they went.
pub trait Count {
    /// Plaintext that came out of the session.
    fn came_from_peer(&self, bytes: usize);
    /// Plaintext that went into the session.
    fn went_to_peer(&self, bytes: usize);
}

/// Leave to move bytes; the relay takes it by value, so there is none without.
#[derive(Debug)]
pub enum Leave {
    /// A peer may reach our application.
    Inbound(Permit),
    /// The server that was dialled has proven who it is.
    Outbound(Box<PeerProof>),
}

/// One connection in its relay.
pub struct Relay<'a, T, A, C> {
    tls: &'a mut T,
    session: Box<dyn MeshSession>,
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
    /// The first thing that broke. From then on only what has come already is delivered, and no end is a clean one.
    broken: Option<End>,
    /// What may still be read and written; each is taken away by what breaks.
    open: Open,
}

/// How a relay ended, and the library's or system's words where there are any.
pub type End = (EndReason, String);

#[derive(Clone, Copy, Debug)]
struct Open {
    tls_read: bool,
    tls_write: bool,
    application_read: bool,
    application_write: bool,
}

impl<'a, T, A, C> Relay<'a, T, A, C>
where
    T: Socket,
    A: Socket,
    C: Count,
{
    /// A relay that begins with `early`: ciphertext that came behind the handshake.
    ///
    /// The application's socket must be one that ends by a reset when it is dropped; after
    /// [`EndReason::Finished`] the caller lets it end by a FIN.
    pub fn new(
        leave: Leave,
        tls: &'a mut T,
        session: Box<dyn MeshSession>,
        application: &'a mut A,
        early: Vec<u8>,
        budget: &Arc<Budget>,
        count: C,
    ) -> Self {
        // Having it is the point. What it holds, a chain among it, is not kept for the life of the connection.
        drop(leave);
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
            broken: None,
            open: Open { tls_read: true, tls_write: true, application_read: true, application_write: true },
        }
    }

    /// Moves bytes until both directions have ended, or one has broken, or nothing moved for `idle`.
    ///
    /// When something broke, what has come is still delivered as far as the other side takes it within a few seconds;
    /// then the peer sees a FIN without close_notify and the application, as soon as its socket is dropped, a reset.
    pub async fn run(mut self, idle: Option<Duration>) -> End {
        let end = self.relay(idle).await;
        if end.0 != EndReason::Finished {
            // Boxed, so that an end which few connections meet does not cost each of them its room.
            Box::pin(self.part()).await;
        }
        end
    }

    async fn relay(&mut self, idle: Option<Duration>) -> End {
        // Boxed, since most connections have no limit and all would carry its room.
        let mut timer = idle.map(|limit| Box::pin(tokio::time::sleep(limit)));
        let mut winding_up = None;
        std::future::poll_fn(|cx| {
            let mut moved = false;
            let end = lend(|lent| self.poll_turns(cx, lent, &mut moved));
            if end.is_ready() {
                return end;
            }
            if let Some(broken) = &self.broken {
                let deadline = winding_up.get_or_insert_with(|| Box::pin(tokio::time::sleep(WIND_UP)));
                return if deadline.as_mut().poll(cx).is_ready() { Poll::Ready(broken.clone()) } else { Poll::Pending };
            }
            if let (Some(limit), Some(sleep)) = (idle, &mut timer) {
                if moved {
                    sleep.as_mut().reset(tokio::time::Instant::now() + limit);
                }
                if sleep.as_mut().poll(cx).is_ready() {
                    return Poll::Ready((EndReason::Idle, String::new()));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Leaves both sockets in a state in which dropping them loses nothing that was written to them.
    async fn part(&mut self) {
        let Self { tls, application, open, .. } = self;
        let to_application = async {
            if open.application_write {
                all_sent(&**application).await;
            }
        };
        let to_peer = async {
            if open.tls_write {
                discard_until_sent(&mut **tls).await;
                farewell(&mut **tls).await;
            }
        };
        let both = futures_util::future::join(to_application, to_peer);
        let _ = tokio::time::timeout(WIND_UP, both).await;
    }

    fn poll_turns(&mut self, cx: &mut Context<'_>, lent: &mut Lent, moved: &mut bool) -> Poll<End> {
        lent.wire.append(&self.partial);
        self.partial = Vec::new();
        let mut turned = true;
        for _ in 0..TURNS {
            // What a slow reader takes of what is left moves too. It may also be what the other direction waits for,
            // which then needs another turn, since nothing else would wake it.
            let mut flushed = false;
            let inwards = self.move_inwards(cx, lent, &mut flushed);
            let outwards = self.move_outwards(cx, lent, &mut flushed);
            if let Some(broken) = &self.broken {
                if self.is_wound_up() {
                    return Poll::Ready(broken.clone());
                }
            } else if self.application_told && self.peer_told {
                return Poll::Ready((EndReason::Finished, String::new()));
            }
            if inwards || outwards || flushed {
                *moved = true;
            } else {
                turned = false;
                break;
            }
        }
        self.partial = lent.wire.take();
        if turned {
            // Not a plain wake-up of ourselves: while any task is runnable tokio looks at its sockets only now
            // and then, and bulk would starve everybody's small messages. Yielding lets it look first.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
        }
        Poll::Pending
    }

    /// Ciphertext of the peer to the application; true when anything moved.
    fn move_inwards(&mut self, cx: &mut Context<'_>, lent: &mut Lent, flushed: &mut bool) -> bool {
        match self.to_application.poll_flush(cx, self.application, flushed) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return self.application_deaf(&error),
            Poll::Pending => return false,
        }
        if self.peer_closed {
            return self.tell_application(cx);
        }
        if !self.open.tls_read || self.to_peer.len() > MAX_ANSWERS {
            return false;
        }
        let ended = if std::mem::take(&mut self.first) {
            false
        } else {
            let most = self.budget.read_size();
            match poll_read_into(cx, self.tls, &mut lent.wire, most) {
                Ok(Poll::Ready(n)) => n == 0,
                Ok(Poll::Pending) => return false,
                Err(error) => return self.peer_gone(&error),
            }
        };
        lent.plain.clear();
        lent.out.clear();
        let opened = self.session.open(&mut lent.wire, &mut lent.plain, &mut lent.out);
        // What was opened before an error is good, and so is the alert. Behind our own close_notify nothing may be
        // said any more, and our FIN may have gone: an answer then would break what the peer still sends.
        self.count.came_from_peer(lent.plain.len());
        if self.open.tls_write
            && !self.application_closed
            && let Err(error) = self.to_peer.write(cx, self.tls, lent.out.data())
        {
            self.peer_deaf(&error);
        }
        match opened {
            Ok(Progress::PeerClosed) => {
                self.peer_closed = true;
                self.open.tls_read = false;
                lent.wire.clear();
            }
            Ok(Progress::NeedInput) if ended => {
                self.breaks(EndReason::Truncated, String::new());
                self.open.tls_read = false;
                self.open.application_read = false;
            }
            Ok(Progress::NeedInput) => {}
            Err(error) => {
                self.breaks(session_broke(&error), error.to_string());
                self.open.tls_read = false;
                self.open.application_read = false;
            }
        }
        if let Err(error) = self.to_application.write(cx, self.application, lent.plain.data()) {
            self.application_deaf(&error);
        }
        true
    }

    fn tell_application(&mut self, cx: &mut Context<'_>) -> bool {
        if self.application_told || self.broken.is_some() {
            return false;
        }
        match Pin::new(&mut *self.application).poll_shutdown(cx) {
            Poll::Ready(Ok(())) => {
                self.application_told = true;
                true
            }
            Poll::Ready(Err(error)) => self.application_deaf(&error),
            Poll::Pending => false,
        }
    }

    /// Plaintext of the application to the peer; true when anything moved.
    fn move_outwards(&mut self, cx: &mut Context<'_>, lent: &mut Lent, flushed: &mut bool) -> bool {
        match self.to_peer.poll_flush(cx, self.tls, flushed) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return self.peer_deaf(&error),
            Poll::Pending => return false,
        }
        if self.application_closed {
            return self.tell_peer(cx);
        }
        if !self.open.application_read {
            return false;
        }
        lent.plain.clear();
        let most = self.budget.read_size();
        let n = match poll_read_into(cx, self.application, &mut lent.plain, most) {
            Ok(Poll::Ready(n)) => n,
            Ok(Poll::Pending) => return false,
            Err(error) => return self.application_gone(&error),
        };
        lent.out.clear();
        let sealed = if n > 0 {
            self.count.went_to_peer(n);
            self.session.seal(lent.plain.data(), &mut lent.out)
        } else {
            self.open.application_read = false;
            if self.broken.is_some() {
                // It had stopped listening, so this end may be that of a crash: no close_notify.
                return true;
            }
            self.application_closed = true;
            self.session.close(&mut lent.out)
        };
        if let Err(error) = sealed {
            self.breaks(session_broke(&error), error.to_string());
            self.open.application_read = false;
            self.open.tls_read = false;
            return true;
        }
        if let Err(error) = self.to_peer.write(cx, self.tls, lent.out.data()) {
            self.peer_deaf(&error);
        }
        true
    }

    fn tell_peer(&mut self, cx: &mut Context<'_>) -> bool {
        if self.peer_told || !self.open.tls_write {
            return false;
        }
        match Pin::new(&mut *self.tls).poll_shutdown(cx) {
            Poll::Ready(Ok(())) => {
                self.peer_told = true;
                true
            }
            Poll::Ready(Err(error)) => self.peer_deaf(&error),
            Poll::Pending => false,
        }
    }

    /// The peer has reset the connection: what it sent before is still delivered.
    fn peer_gone(&mut self, error: &io::Error) -> bool {
        self.breaks(EndReason::PeerReset, error.to_string());
        self.open.tls_read = false;
        self.open.tls_write = false;
        self.open.application_read = false;
        self.to_peer.clear();
        true
    }

    /// The peer takes nothing any more; what it has sent before may still be in its socket.
    fn peer_deaf(&mut self, error: &io::Error) -> bool {
        self.breaks(EndReason::PeerReset, error.to_string());
        self.open.tls_write = false;
        self.open.application_read = false;
        self.to_peer.clear();
        true
    }

    /// The application has reset the connection: what it sent before is still delivered.
    fn application_gone(&mut self, error: &io::Error) -> bool {
        self.breaks(EndReason::ApplicationReset, error.to_string());
        self.open.application_read = false;
        self.open.application_write = false;
        self.open.tls_read = false;
        self.to_application.clear();
        true
    }

    /// The application takes nothing any more; what it has said before may still be in its socket.
    fn application_deaf(&mut self, error: &io::Error) -> bool {
        self.breaks(EndReason::ApplicationReset, error.to_string());
        self.open.application_write = false;
        self.open.tls_read = false;
        self.to_application.clear();
        true
    }

    /// Notes what broke first.
    fn breaks(&mut self, reason: EndReason, detail: String) {
        self.broken.get_or_insert((reason, detail));
    }

    /// Whether nothing more can be delivered to anybody.
    fn is_wound_up(&self) -> bool {
        let Open { tls_read, application_read, .. } = self.open;
        !tls_read && !application_read && self.to_application.is_empty() && self.to_peer.is_empty()
    }
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

/// Returns when the kernel has sent all that was written.
///
/// The kernel tells nobody, so it is asked, at growing intervals and only at ends that were not clean.
async fn all_sent<S: Socket>(socket: &S) {
    let mut pause = Duration::from_millis(1);
    while !socket.is_all_sent() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The same, reading meanwhile: a peer that is itself in the middle of sending would never come to read.
async fn discard_until_sent<S: Socket>(socket: &mut S) {
    let mut scrap = [0; 4096];
    let mut pause = Duration::from_millis(1);
    while !socket.is_all_sent() {
        match tokio::time::timeout(pause, socket.read(&mut scrap)).await {
            Ok(Ok(n)) if n > 0 => {}
            Ok(_) => return all_sent(socket).await,
            Err(_) => pause = (pause * 2).min(Duration::from_millis(50)),
        }
    }
}

fn session_broke(error: &SessionError) -> EndReason {
    match error {
        SessionError::PeerAlert(_) => EndReason::PeerAlert,
        SessionError::Internal(_) => EndReason::Internal,
        _ => EndReason::BadRecord,
    }
}

#[cfg(test)]
mod tests;
