//! Drives a session's handshake over a socket.

use std::{future::poll_fn, io, task::Poll, time::Duration};

use lictor_core::{Established, HandshakeStep, Judge, MeshSession, SessionError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    buffers::lend,
    record::{EndReason, HandshakeFailure},
    relay::poll_read_into,
};

/// What one step of a handshake reads at most. A flight with a long chain is smaller.
const STEP: usize = 16 * 1024;

/// What a peer may send of a message before it is whole: above the largest chain that is looked at.
const MOST_HELD: usize = 128 * 1024;

/// What a refused peer may still send before its socket is closed, so that it reads the alert and not a reset.
const FAREWELL_BYTES: usize = 64 * 1024;

/// How long a refused peer may take to read the alert.
const FAREWELL: Duration = Duration::from_secs(1);

/// A finished handshake.
pub struct Shaken {
    /// The session, ready for data.
    pub session: Box<dyn MeshSession>,
    /// Who the peer is and what was agreed.
    pub established: Established,
    /// Ciphertext behind the peer's last flight.
    pub early: Vec<u8>,
}

/// Why there is none.
pub enum Unshaken {
    /// The peer opened and closed without a byte, as TCP health checks do. No failure.
    BareOpen,
    /// The peer was refused in its handshake, and has been told by an alert where the library sends one.
    Refused(EndReason, String),
    /// It failed otherwise: whatever is left of the socket is to be reset.
    Failed(EndReason, String),
}

/// Shakes hands. `judge` is asked anew for each step, so that the newest roots judge.
///
/// `hello` is called when a flight of the peer has been understood. There is no deadline here: the caller has one over
/// this and whatever follows.
///
/// # Errors
/// [`Unshaken`]; the socket is then to be closed, by a reset where nothing was sent.
pub async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut session: Box<dyn MeshSession>,
    judge: impl Fn() -> Judge,
    mut hello: impl FnMut(),
) -> Result<Shaken, Unshaken> {
    let mut wire: Vec<u8> = Vec::new();
    let mut heard = 0usize;
    let mut read = false;
    loop {
        // One synchronous step, with the thread's buffers.
        let step = poll_fn(|cx| {
            lend(|lent| {
                lent.wire.append(&wire);
                if read {
                    match poll_read_into(cx, stream, &mut lent.wire, STEP + wire.len()) {
                        Ok(Poll::Pending) => return Poll::Pending,
                        Ok(Poll::Ready(0)) => return Poll::Ready(Err(None)),
                        Ok(Poll::Ready(n)) => heard += n,
                        Err(error) => return Poll::Ready(Err(Some(error))),
                    }
                }
                let result = session.handshake(&judge(), &mut lent.wire, &mut lent.out);
                wire = lent.wire.take();
                let result = match result {
                    Ok(HandshakeStep::NeedInput) if wire.len() > MOST_HELD => {
                        Err(SessionError::Protocol("a handshake message without an end".to_owned()))
                    }
                    other => other,
                };
                Poll::Ready(Ok((result, lent.out.take())))
            })
        })
        .await;
        let (result, out) = match step {
            Ok(step) => step,
            Err(_) if heard == 0 && read => return Err(Unshaken::BareOpen),
            Err(error) => return Err(closed(error)),
        };
        if !out.is_empty() {
            hello();
        }
        let refused = result.is_err();
        if let Err(error) = stream.write_all(&out).await
            && !refused
        {
            return Err(closed(Some(error)));
        }
        match result {
            Ok(HandshakeStep::NeedInput) => {}
            Ok(HandshakeStep::Done(established)) => {
                return Ok(Shaken { session, established: *established, early: wire });
            }
            Err(error) => {
                farewell(stream).await;
                return Err(Unshaken::Refused(reason(&error), error.to_string()));
            }
        }
        read = true;
        // A flood of handshakes is paid for step by step, so that data in flight gets its turn between.
        tokio::task::yield_now().await;
    }
}

/// Lets a refused peer read what was sent to it: closing with its bytes unread would reset the alert away.
pub(crate) async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let drain = async {
        let _ = stream.shutdown().await;
        let mut scrap = vec![0; 4096];
        let mut left = FAREWELL_BYTES;
        while let Ok(n) = stream.read(&mut scrap).await {
            left = left.saturating_sub(n);
            if n == 0 || left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(FAREWELL, drain).await;
}

fn closed(error: Option<io::Error>) -> Unshaken {
    let words = error.map_or_else(|| "closed in mid-handshake".to_owned(), |error| error.to_string());
    Unshaken::Failed(EndReason::Handshake(HandshakeFailure::Closed), words)
}

fn reason(error: &SessionError) -> EndReason {
    match error {
        SessionError::NotTls => EndReason::Handshake(HandshakeFailure::NotTls),
        SessionError::PeerAlert(_) => EndReason::Handshake(HandshakeFailure::PeerAlert),
        SessionError::NothingInCommon(_) => EndReason::Handshake(HandshakeFailure::NothingInCommon),
        SessionError::Internal(_) => EndReason::Handshake(HandshakeFailure::Internal),
        other => other.reject_reason().map_or(EndReason::Internal, EndReason::Rejected),
    }
}
