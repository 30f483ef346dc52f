//! How a verdict crosses a library whose callback knows only its configuration.
//!
//! The three libraries call back for the peer's certificates with nothing of ours at hand but the context, which all
//! connections share. So the session arms a slot of the thread for the duration of one synchronous library call; the
//! callback judges by what is in the slot and leaves the verdict there; the session takes it out at once. An empty
//! slot refuses, a second question in one handshake refuses, and the slot is emptied on every way out, panics
//! included, so no session can read its neighbour's verdict.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{
    identity::SpiffeService,
    material::Roots,
    verify::{PeerPolicy, PeerProof, RejectReason, SignatureAlgorithms, verify_peer},
};

/// Who may be at the other end.
#[derive(Clone, Debug)]
pub enum ExpectedPeer {
    /// Inbound: a client of ours, which may be any service of the mesh; the authorizer decides about it afterwards.
    /// Holds our own identity.
    ClientOf(Arc<SpiffeService>),
    /// Outbound: a server that is exactly this service.
    Server(Arc<SpiffeService>),
}

/// All that a verdict depends on besides the certificates.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Who may be at the other end.
    pub expected: ExpectedPeer,
    /// The newest roots at the moment of the call, not those of the time when the connection began.
    pub roots: Arc<Roots>,
    /// What the operator allows.
    pub policy: Arc<PeerPolicy>,
    /// The moment of judgement.
    pub now: UnixTime,
}

/// What the verifier said in one handshake.
pub type Verdict = Result<PeerProof, RejectReason>;

enum Slot {
    /// No session call is under way, or it may not be asked: refuse.
    Empty,
    Armed(Judge),
    Judged(Box<Verdict>),
}

thread_local! {
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot::Empty) };
}

/// Empties the slot when it goes out of scope.
struct Emptied;

impl Drop for Emptied {
    fn drop(&mut self) {
        SLOT.set(Slot::Empty);
    }
}

/// Runs one synchronous call into a TLS library that may ask for a verdict, and keeps that verdict.
///
/// With a verdict in `verdict` already the slot stays empty, so a second certificate on one connection is refused.
/// A second question during the same call turns the verdict into [`RejectReason::SecondCertificate`].
pub fn judging<R>(judge: &Judge, verdict: &mut Option<Verdict>, call: impl FnOnce() -> R) -> R {
    let _emptied = Emptied;
    SLOT.set(if verdict.is_none() { Slot::Armed(judge.clone()) } else { Slot::Empty });
    let result = call();
    if let Slot::Judged(given) = SLOT.replace(Slot::Empty) {
        *verdict = Some(*given);
    }
    result
}

/// Runs a library call during which no certificate may be judged.
pub fn not_judging<R>(call: impl FnOnce() -> R) -> R {
    let _emptied = Emptied;
    SLOT.set(Slot::Empty);
    call()
}

/// Judges `chain` (as sent, the peer's own certificate first); backends call this from their library's callback.
///
/// # Errors
/// The reason of the refusal, whose [`alert`](RejectReason::alert) the library is to send.
pub fn decide(chain: &[CertificateDer<'_>], algorithms: &SignatureAlgorithms) -> Result<(), RejectReason> {
    let verdict = match SLOT.replace(Slot::Empty) {
        // Two of the libraries call from C, across which no panic may pass; a verifier that panics refuses.
        Slot::Armed(judge) => catch_unwind(AssertUnwindSafe(|| {
            #[cfg(feature = "faults")]
            faults::strike();
            verify_peer(&judge, chain, algorithms)
        }))
        .unwrap_or(Err(RejectReason::Unjudged)),
        Slot::Judged(_) => Err(RejectReason::SecondCertificate),
        Slot::Empty => return Err(RejectReason::SecondCertificate),
    };
    let answer = verdict.as_ref().map(|_| ()).map_err(|reason| *reason);
    SLOT.set(Slot::Judged(Box::new(verdict)));
    answer
}

/// Faults that no peer can cause, for who shows that they would do no harm.
#[cfg(feature = "faults")]
pub mod faults {
    use std::cell::Cell;

    thread_local! {
        static PANICS: Cell<bool> = const { Cell::new(false) };
    }

    /// Makes the next verdict of this thread a panic of the verifier.
    pub fn panic_in_next_verdict() {
        PANICS.set(true);
    }

    pub(super) fn strike() {
        assert!(!PANICS.replace(false), "the verifier was told to panic");
    }
}
