//! Sessions over the records of any library: how a verdict gets into one, written once.
//!
//! A backend has the records of a connection, handshake included ([`Records`]); what makes a session with the mesh of
//! them is that the peer was judged in this very handshake, and by nobody but core.

use crate::{
    buf::Buf,
    judgement::{Judge, Verdict, judging, not_judging},
    tls::{AgentSession, Established, HandshakeStep, MeshSession, Progress, Session, SessionError, TlsFacts},
    verify::RejectReason,
};

/// The records of one connection, with the promises of [`Session`].
pub trait Records: Send {
    /// As [`AgentSession::handshake`]: true when it is done.
    ///
    /// # Errors
    /// [`SessionError`]; `out` then holds the alert to send.
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError>;

    /// As [`Session::open`].
    ///
    /// # Errors
    /// [`SessionError`]; `out` then holds the alert, if there is one to send.
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError>;

    /// As [`Session::seal`].
    ///
    /// # Errors
    /// [`SessionError`] when the library fails.
    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError>;

    /// As [`Session::close`].
    ///
    /// # Errors
    /// [`SessionError`] when the library fails.
    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError>;

    /// Ends the connection: each later call returns this error, which it gives back.
    fn fail(&mut self, error: SessionError) -> SessionError;

    /// Whether the finished handshake resumed an older session.
    fn resumed(&self) -> bool;

    /// What was agreed. Asked only after a finished handshake.
    fn facts(&self) -> TlsFacts;
}

/// A session with another service of the mesh.
#[derive(Debug)]
pub struct Mesh<R> {
    records: R,
    verdict: Option<Verdict>,
}

impl<R: Records> Mesh<R> {
    /// A session at its beginning.
    pub fn new(records: R) -> Self {
        Self { records, verdict: None }
    }
}

impl<R: Records> Session for Mesh<R> {
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        not_judging(|| self.records.open(wire, plain, out))
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        not_judging(|| self.records.seal(plain, out))
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        not_judging(|| self.records.close(out))
    }
}

impl<R: Records> MeshSession for Mesh<R> {
    fn handshake(&mut self, judge: &Judge, wire: &mut Buf, out: &mut Buf) -> Result<HandshakeStep, SessionError> {
        let Self { records, verdict } = self;
        let mut result = judging(judge, verdict, || records.handshake(wire, out));
        // Our own refusal is the reason, whatever words the library found for it, and whatever it did in spite of it.
        if let Some(Err(reason)) = verdict {
            result = Err(records.fail(SessionError::Rejected(*reason)));
        }
        if !result? {
            return Ok(HandshakeStep::NeedInput);
        }
        if records.resumed() {
            return Err(records.fail(SessionError::Rejected(RejectReason::Resumed)));
        }
        let Some(Ok(peer)) = verdict.take() else {
            return Err(records.fail(SessionError::Rejected(RejectReason::Unjudged)));
        };
        Ok(HandshakeStep::Done(Box::new(Established { peer, facts: records.facts() })))
    }
}

/// A session with the agent, whom the library judges.
#[derive(Debug)]
pub struct Agent<R> {
    pub(crate) records: R,
}

impl<R: Records> Agent<R> {
    /// A session at its beginning.
    pub fn new(records: R) -> Self {
        Self { records }
    }
}

impl<R: Records> Session for Agent<R> {
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        not_judging(|| self.records.open(wire, plain, out))
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        not_judging(|| self.records.seal(plain, out))
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        not_judging(|| self.records.close(out))
    }
}

impl<R: Records> AgentSession for Agent<R> {
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError> {
        not_judging(|| self.records.handshake(wire, out))
    }
}
