//! Sessions of the libraries that want a byte stream beneath them, which are OpenSSL and BoringSSL.
//!
//! Such a library is given two buffers in memory in place of a socket, lent for one call and taken back after it. What
//! it may read is cut at the last whole record, so it never keeps part of one, and data behind the last flight of a
//! handshake stays where it is. A backend implements [`Engine`], which is a thin layer over the library's calls; the
//! states and the promises of [`Session`](crate::tls::Session) are kept here, once.

use std::{
    io::{self, Read, Write},
    mem::swap,
};

use crate::{
    buf::Buf,
    records::{
        MAX_PLAINTEXT, PROTOCOL_VERSION_ALERT, RECORD_OVERHEAD, asks_for_less_than_tls12, cannot_be_tls, first_record,
        is_bare_close, is_handshake, whole_records,
    },
    session::{self, Records},
    tls::{Progress, SessionError, TlsFacts},
};

/// The two buffers that stand in for a socket.
///
/// Reading never waits: it fails with [`io::ErrorKind::WouldBlock`] when no whole record is left. Between two calls
/// it holds nothing.
#[derive(Debug, Default)]
pub struct Pipe {
    wire: Buf,
    /// How much of `wire` may be read.
    readable: usize,
    out: Buf,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = into.len().min(self.readable);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into[..n].copy_from_slice(&self.wire.data()[..n]);
        self.wire.consume(n);
        self.readable -= n;
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection of a library over a [`Pipe`]: each call is one call of the library.
///
/// After each call, failed or not, nothing may be left in a queue of errors that the library keeps for the thread.
pub trait Engine: Send {
    /// The pipe beneath the library.
    fn pipe(&mut self) -> &mut Pipe;

    /// Goes on with the handshake.
    ///
    /// # Errors
    /// [`Stop`], also for want of input.
    fn handshake(&mut self) -> Result<(), Stop>;

    /// Opens data into `into`, which has room for [`MAX_PLAINTEXT`] bytes.
    ///
    /// # Errors
    /// [`Stop`], also for want of input and at the peer's close_notify.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Stop>;

    /// Seals the beginning of `plain`, which is not empty, and says how much that was.
    ///
    /// # Errors
    /// [`Stop`].
    fn write(&mut self, plain: &[u8]) -> Result<usize, Stop>;

    /// Writes close_notify; called once.
    ///
    /// # Errors
    /// [`Stop`].
    fn close(&mut self) -> Result<(), Stop>;

    /// Whether the finished handshake resumed an older session.
    fn resumed(&self) -> bool;

    /// What was agreed. Asked only after a finished handshake.
    fn facts(&self) -> TlsFacts;
}

/// Why a call of the library came back without its result.
#[derive(Debug)]
pub enum Stop {
    /// It needs more bytes from the peer.
    WantsInput,
    /// The peer has sent close_notify.
    PeerClosed,
    /// It failed for good; what it had to say to the peer is in the pipe.
    Failed(SessionError),
}

/// A session with another service of the mesh over a library that has just begun.
pub fn mesh<E: Engine>(engine: E) -> session::Mesh<Streamed<E>> {
    session::Mesh::new(Streamed::new(engine))
}

/// A session with the agent over a library that has just begun.
pub fn agent<E: Engine>(engine: E) -> session::Agent<Streamed<E>> {
    session::Agent::new(Streamed::new(engine))
}

/// The records of one connection over such a library.
#[derive(Debug)]
pub struct Streamed<E> {
    engine: E,
    phase: Phase,
    /// Negotiation anew is a thing of TLS 1.2 alone.
    may_renegotiate: bool,
    peer_closed: bool,
    /// Our close_notify has gone.
    closed: bool,
    /// The error that ended the session; the library is not called again.
    failed: Option<SessionError>,
    /// How much of a handshake has come.
    handshake_bytes: usize,
}

/// The most bytes that a peer may spend on its handshake.
///
/// The libraries bound a message, but not how thinly it is spread: at one byte a record a ClientHello of 64 KiB is a
/// third of a megabyte. The largest list of certificates that is looked at fits in with room for its records.
const MAX_HANDSHAKE: usize = 96 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No record has come yet, so it is not sure that the peer speaks TLS.
    First,
    Handshake,
    Done,
}

impl<E: Engine> Records for Streamed<E> {
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError> {
        self.lasting(|records| {
            if records.phase == Phase::Done {
                return Err(SessionError::Internal("the handshake was done before".to_owned()));
            }
            if records.closed {
                return Err(SessionError::Internal("the session was closed before its handshake was done".to_owned()));
            }
            loop {
                if records.phase == Phase::First && cannot_be_tls(wire.data()) {
                    return Err(SessionError::NotTls);
                }
                if records.phase == Phase::First && asks_for_less_than_tls12(wire.data()) {
                    out.append(&PROTOCOL_VERSION_ALERT);
                    return Err(SessionError::NothingInCommon("the client speaks TLS 1.1 at most".to_owned()));
                }
                if is_bare_close(wire.data()) {
                    return Err(SessionError::PeerAlert(0));
                }
                // One record at a time, since each may be the last before data or a farewell.
                let record = first_record(wire.data());
                if record.is_some() && records.phase == Phase::First {
                    records.phase = Phase::Handshake;
                }
                records.handshake_bytes += record.unwrap_or(0);
                if records.handshake_bytes > MAX_HANDSHAKE {
                    return Err(SessionError::Protocol(format!("a handshake of more than {MAX_HANDSHAKE} bytes")));
                }
                match records.lend(wire, record.unwrap_or(0), out, E::handshake) {
                    Ok(()) => {
                        records.phase = Phase::Done;
                        records.may_renegotiate = records.engine.facts().version == "TLSv1.2";
                        return Ok(true);
                    }
                    Err(Stop::WantsInput) if record.is_none() => return Ok(false),
                    Err(Stop::WantsInput) => {}
                    Err(Stop::PeerClosed) => return Err(SessionError::PeerAlert(0)),
                    Err(Stop::Failed(error)) => return Err(error),
                }
            }
        })
    }

    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        self.lasting(|records| {
            records.must_be_done()?;
            if records.peer_closed {
                return Ok(Progress::PeerClosed);
            }
            if records.may_renegotiate {
                return records.open_one_by_one(wire, plain, out);
            }
            let readable = whole_records(wire.data());
            records.opened(wire, readable, plain, out)
        })
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        if self.closed && self.failed.is_none() {
            // A fault of the caller, which ends nothing: opening goes on.
            return Err(SessionError::Internal("sealing after close_notify".to_owned()));
        }
        self.lasting(|records| {
            records.must_be_done()?;
            // Room at once, so that the buffer does not grow record by record.
            out.space(plain.len() + (plain.len() / MAX_PLAINTEXT + 1) * RECORD_OVERHEAD);
            records.lend(&mut Buf::default(), 0, out, |engine| {
                let mut rest = plain;
                while !rest.is_empty() {
                    match engine.write(rest) {
                        Ok(n) => rest = &rest[n..],
                        Err(stop) => return Err(failure_of_our_own("seal", stop)),
                    }
                }
                Ok(())
            })
        })
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        self.lasting(|records| {
            if records.closed {
                return Ok(());
            }
            records.closed = true;
            if records.phase != Phase::Done {
                // Before that there is nothing to end; whoever waits for a handshake sees the connection end.
                return Ok(());
            }
            records
                .lend(&mut Buf::default(), 0, out, E::close)
                .map_err(|stop| failure_of_our_own("send close_notify", stop))
        })
    }

    fn fail(&mut self, error: SessionError) -> SessionError {
        self.failed = Some(error.clone());
        error
    }

    fn resumed(&self) -> bool {
        self.engine.resumed()
    }

    fn facts(&self) -> TlsFacts {
        self.engine.facts()
    }
}

impl<E: Engine> Streamed<E> {
    fn new(engine: E) -> Self {
        Self {
            engine,
            phase: Phase::First,
            may_renegotiate: false,
            peer_closed: false,
            closed: false,
            failed: None,
            handshake_bytes: 0,
        }
    }

    /// Opens record by record, looking at each from outside: after the first handshake no handshake message is sent
    /// in TLS 1.2 for any other reason than to negotiate anew, which libraries answer in three ways.
    fn open_one_by_one(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        loop {
            if is_handshake(wire.data()) {
                return Err(SessionError::Protocol("the peer wants to negotiate anew".to_owned()));
            }
            let record = first_record(wire.data());
            let progress = self.opened(wire, record.unwrap_or(0), plain, out)?;
            if progress == Progress::PeerClosed || record.is_none() {
                return Ok(progress);
            }
        }
    }

    /// Opens all that is within the first `readable` bytes of `wire`.
    fn opened(
        &mut self,
        wire: &mut Buf,
        readable: usize,
        plain: &mut Buf,
        out: &mut Buf,
    ) -> Result<Progress, SessionError> {
        let stop = self.quiet_if_closed(out, |records, out| {
            records.lend(wire, readable, out, |engine| {
                loop {
                    match engine.read(plain.space(MAX_PLAINTEXT)) {
                        Ok(n) => plain.filled(n),
                        Err(stop) => break stop,
                    }
                }
            })
        });
        match stop {
            Stop::WantsInput => Ok(Progress::NeedInput),
            Stop::PeerClosed => {
                self.peer_closed = true;
                Ok(Progress::PeerClosed)
            }
            Stop::Failed(error) => Err(error),
        }
    }

    /// Lends the buffers to the library for one call, `wire` up to `readable`.
    fn lend<R>(&mut self, wire: &mut Buf, readable: usize, out: &mut Buf, call: impl FnOnce(&mut E) -> R) -> R {
        let pipe = self.engine.pipe();
        swap(&mut pipe.wire, wire);
        swap(&mut pipe.out, out);
        pipe.readable = readable;
        let result = call(&mut self.engine);
        let pipe = self.engine.pipe();
        swap(&mut pipe.wire, wire);
        swap(&mut pipe.out, out);
        pipe.readable = 0;
        result
    }

    /// Behind our close_notify no alert and no answer has any meaning, so what the library writes there is dropped.
    fn quiet_if_closed<R>(&mut self, out: &mut Buf, call: impl FnOnce(&mut Self, &mut Buf) -> R) -> R {
        if self.closed { call(self, &mut Buf::default()) } else { call(self, out) }
    }

    /// Runs one call, unless the session has failed, and makes an error last.
    fn lasting<R>(&mut self, call: impl FnOnce(&mut Self) -> Result<R, SessionError>) -> Result<R, SessionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        call(self).map_err(|error| self.fail(error))
    }

    fn must_be_done(&self) -> Result<(), SessionError> {
        if self.phase == Phase::Done {
            return Ok(());
        }
        Err(SessionError::Internal("the handshake is not done".to_owned()))
    }
}

/// What stopped a call that has no business with the peer's bytes.
fn failure_of_our_own(what: &str, stop: Stop) -> SessionError {
    match stop {
        Stop::Failed(error) => error,
        Stop::WantsInput | Stop::PeerClosed => SessionError::Internal(format!("the library would not {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{AgentSession as _, Session as _};

    /// A library that finishes its handshake with the record that holds `F`, opens all others as they are, says
    /// goodbye at `C` and breaks at `X` with an alert.
    #[derive(Default)]
    struct Fake {
        pipe: Pipe,
        reads: Vec<Vec<u8>>,
    }

    impl Fake {
        fn next(&mut self) -> Result<u8, Stop> {
            let mut record = [0; 6];
            let n = self.pipe.read(&mut record).map_err(|_| Stop::WantsInput)?;
            self.reads.push(record[..n].to_vec());
            match record[5] {
                b'C' => Err(Stop::PeerClosed),
                b'X' => {
                    self.pipe.write_all(b"alert").unwrap();
                    Err(Stop::Failed(SessionError::BadRecord))
                }
                content => Ok(content),
            }
        }
    }

    impl Engine for Fake {
        fn pipe(&mut self) -> &mut Pipe {
            &mut self.pipe
        }

        fn handshake(&mut self) -> Result<(), Stop> {
            while self.next()? != b'F' {}
            Ok(())
        }

        fn read(&mut self, into: &mut [u8]) -> Result<usize, Stop> {
            into[0] = self.next()?;
            Ok(1)
        }

        fn write(&mut self, plain: &[u8]) -> Result<usize, Stop> {
            self.pipe.write_all(&plain[..1]).unwrap();
            Ok(1)
        }

        fn close(&mut self) -> Result<(), Stop> {
            self.pipe.write_all(b"bye").unwrap();
            Ok(())
        }

        fn resumed(&self) -> bool {
            false
        }

        fn facts(&self) -> TlsFacts {
            TlsFacts { version: "TLSv1.3", suite: "", group: "" }
        }
    }

    fn record(content: u8) -> [u8; 6] {
        [23, 3, 3, 0, 1, content]
    }

    fn wire(contents: &[u8]) -> Buf {
        let mut wire = Buf::default();
        for content in contents {
            wire.append(&record(*content));
        }
        wire
    }

    /// A session whose handshake is done.
    fn done() -> session::Agent<Streamed<Fake>> {
        let mut session = agent(Fake::default());
        assert_eq!(session.handshake(&mut wire(b"F"), &mut Buf::default()), Ok(true));
        session
    }

    #[test]
    fn data_behind_the_last_flight_and_part_of_a_record_stay_in_the_wire() {
        let mut session = agent(Fake::default());
        let (mut wire, mut out, mut plain) = (wire(b"hFd"), Buf::default(), Buf::default());
        wire.append(&record(b'e')[..4]);
        assert_eq!(session.handshake(&mut wire, &mut out), Ok(true));
        assert_eq!(wire.len(), 6 + 4);
        assert_eq!(session.open(&mut wire, &mut plain, &mut out), Ok(Progress::NeedInput));
        assert_eq!((plain.data(), wire.len()), (&b"d"[..], 4));
        assert_eq!(session.records.engine.reads.len(), 3, "never part of one");
    }

    #[test]
    fn a_handshake_in_records_without_end_is_given_up() {
        let mut session = agent(Fake::default());
        let taken = (1..).find(|_| session.handshake(&mut wire(b"h"), &mut Buf::default()).is_err()).unwrap();
        assert_eq!(taken, MAX_HANDSHAKE / 6 + 1);
        assert_eq!(session.records.engine.reads.len(), taken - 1);
        assert!(matches!(session.records.failed, Some(SessionError::Protocol(_))));
    }

    #[test]
    fn a_session_that_failed_is_never_lent_to_the_library_again() {
        let mut session = done();
        let (mut wire, mut out, mut plain) = (wire(b"aXb"), Buf::default(), Buf::default());
        assert_eq!(session.open(&mut wire, &mut plain, &mut out), Err(SessionError::BadRecord));
        assert_eq!((plain.data(), out.data()), (&b"a"[..], &b"alert"[..]));
        assert_eq!(session.open(&mut wire, &mut plain, &mut out), Err(SessionError::BadRecord));
        assert_eq!(session.seal(b"x", &mut out), Err(SessionError::BadRecord));
        assert_eq!(session.close(&mut out), Err(SessionError::BadRecord));
        assert_eq!((wire.len(), out.len()), (6, 5));
    }

    #[test]
    fn after_our_close_opening_goes_on_and_nothing_more_is_said() {
        let mut session = done();
        let (mut out, mut plain) = (Buf::default(), Buf::default());
        session.seal(b"abc", &mut out).unwrap();
        session.close(&mut out).unwrap();
        session.close(&mut out).unwrap();
        assert_eq!(out.take(), b"abcbye", "one farewell");
        assert!(matches!(session.seal(b"d", &mut out), Err(SessionError::Internal(_))));
        assert_eq!(session.open(&mut wire(b"z"), &mut plain, &mut out), Ok(Progress::NeedInput));
        assert_eq!(session.open(&mut wire(b"X"), &mut plain, &mut out), Err(SessionError::BadRecord));
        assert_eq!((plain.data(), out.len()), (&b"z"[..], 0));
    }

    #[test]
    fn the_peers_close_lasts_and_leaves_our_side_open() {
        let mut session = done();
        let (mut out, mut plain) = (Buf::default(), Buf::default());
        assert_eq!(session.open(&mut wire(b"aC"), &mut plain, &mut out), Ok(Progress::PeerClosed));
        assert_eq!(session.open(&mut wire(b"b"), &mut plain, &mut out), Ok(Progress::PeerClosed));
        assert_eq!(plain.data(), b"a");
        assert_eq!(session.seal(b"c", &mut out), Ok(()));
    }

    #[test]
    fn nothing_is_sealed_or_opened_before_the_handshake_is_done() {
        let mut session = agent(Fake::default());
        let (mut out, mut plain) = (Buf::default(), Buf::default());
        assert!(session.seal(b"x", &mut out).is_err());
        let mut session = agent(Fake::default());
        assert!(session.open(&mut wire(b"a"), &mut plain, &mut out).is_err());
        assert!(plain.is_empty() && out.is_empty());
    }
}
