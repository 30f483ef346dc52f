//! Sessions over rustls's unbuffered connections.
//!
//! What that interface asks for, and what it punishes, all met in [`Unbuffered`]:
//! * rustls opens records where they lie and answers how many bytes to drop from the front. Of a handshake message in
//!   several records it drops nothing, and keeps a *position* into bytes that are not its own. Those records move to
//!   `held` and come first in every later call, sealing included; called with anything shorter, rustls panics.
//! * It is handed one record at a time. So data behind the last flight of a handshake stays in `wire` unopened, and
//!   what is left there is always the beginning of a record.
//! * After an error its alert comes out of one more call; a call beyond that reads the bad record again, which is a
//!   second alert or a panic. So it is called only while it says that it wants to write, and never again.
//! * "The peer has closed" is said once.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lictor_core::{
    Buf, Progress, SessionError, TlsFacts,
    records::{
        MAX_PLAINTEXT, PROTOCOL_VERSION_ALERT, RECORD_OVERHEAD, asks_for_less_than_tls12, cannot_be_tls, first_record,
        is_bare_close, is_handshake,
    },
    session::Records,
};
use rustls::{
    CommonState, HandshakeKind, ProtocolVersion,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};

use crate::{error::session_error, policy::facts};

/// The most that a session holds of a message which is not whole yet.
///
/// rustls bounds a handshake message to 64 KiB, but not how thinly it is spread: one byte a record would cost 360 KiB
/// before anybody is authenticated, and 1.4 MB after. An honest peer sends a chain of 16 KiB in two records.
const MAX_HELD: usize = 64 * 1024;

/// Room for a KeyUpdate that rustls puts before the data by itself.
const PENDING_ANSWER: usize = 64;

/// The two unbuffered connections as one.
pub(crate) trait Connection: Send {
    /// What rustls keeps for the side.
    type Side;

    /// Hands rustls all bytes that it has not let go of, and returns what it wants next.
    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;

    /// What is agreed so far.
    fn state(&self) -> &CommonState;
}

impl Connection for UnbufferedServerConnection {
    type Side = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(input)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

impl Connection for UnbufferedClientConnection {
    type Side = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, input: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(input)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

/// One connection with what rustls makes its caller keep.
pub(crate) struct Unbuffered<C> {
    connection: C,
    /// Whole records that rustls has a position in, as it left them. Empty at nearly all times.
    held: Vec<u8>,
    phase: Phase,
    /// The peer's close_notify has come.
    peer_closed: bool,
    /// Ours has gone.
    closed: bool,
    /// The error that ended the session; rustls is not called again.
    failed: Option<SessionError>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No record has come yet, so it is not sure that the peer speaks TLS.
    First,
    Handshake,
    Done,
}

/// What one call of rustls came to.
enum Step {
    /// Something went to the output; there may be more.
    Wrote,
    /// Data went to the plaintext.
    Read,
    /// Nothing more without input.
    Idle,
    PeerClosed,
}

impl<C: Connection> Records for Unbuffered<C> {
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError> {
        self.guarded(out, |records, out| {
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
                    // rustls would judge what such a hello lacks before it judges the version.
                    out.append(&PROTOCOL_VERSION_ALERT);
                    return Err(SessionError::NothingInCommon("the client speaks TLS 1.1 at most".to_owned()));
                }
                if is_bare_close(wire.data()) {
                    // rustls ignores it in TLS 1.2, and would wait for a peer that has gone.
                    return Err(SessionError::PeerAlert(0));
                }
                let went_in = records.advance(wire, None, out)?;
                if records.peer_closed {
                    return Err(SessionError::PeerAlert(0));
                }
                // Not "rustls lets us send", which a TLS 1.3 server may do before the client has proven anything.
                if !records.connection.state().is_handshaking() {
                    records.phase = Phase::Done;
                    return Ok(true);
                }
                if !went_in {
                    return Ok(false);
                }
            }
        })
    }

    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        self.guarded(out, |records, out| {
            records.must_be_done()?;
            loop {
                if records.peer_closed {
                    return Ok(Progress::PeerClosed);
                }
                if records.renegotiates(wire.data()) {
                    return Err(SessionError::Protocol("the peer wants to negotiate anew".to_owned()));
                }
                if !records.advance(wire, Some(plain), out)? && !records.peer_closed {
                    return Ok(Progress::NeedInput);
                }
            }
        })
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        if self.closed && self.failed.is_none() {
            // A fault of the caller, which ends nothing: opening goes on.
            return Err(SessionError::Internal("sealing after close_notify".to_owned()));
        }
        self.guarded(out, |records, out| {
            records.must_be_done()?;
            let mut room = plain.len() + plain.len().div_ceil(MAX_PLAINTEXT) * RECORD_OVERHEAD + PENDING_ANSWER;
            loop {
                let UnbufferedStatus { discard, state, .. } = records.connection.process(&mut records.held);
                match state {
                    Ok(ConnectionState::WriteTraffic(mut traffic)) => match traffic.encrypt(plain, out.space(room)) {
                        Ok(written) => {
                            out.filled(written);
                            return Ok(());
                        }
                        Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                            room = size.required_size;
                        }
                        Err(error) => return Err(SessionError::Internal(error.to_string())),
                    },
                    Ok(ConnectionState::EncodeTlsData(encode)) => write(encode, out)?,
                    Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                    Ok(ConnectionState::PeerClosed) => records.peer_closed = true,
                    Ok(other) => return Err(SessionError::Internal(format!("cannot seal in state {other:?}"))),
                    Err(error) => return Err(session_error(&error)),
                }
                records.let_go(discard);
            }
        })
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        self.guarded(out, |records, out| {
            if records.closed {
                return Ok(());
            }
            records.closed = true;
            if records.phase != Phase::Done {
                // Before that rustls says nothing; whoever waits for a handshake sees the connection end.
                return Ok(());
            }
            loop {
                let UnbufferedStatus { discard, state, .. } = records.connection.process(&mut records.held);
                match state {
                    Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                        let room = out.space(RECORD_OVERHEAD + PENDING_ANSWER);
                        let written = traffic
                            .queue_close_notify(room)
                            .map_err(|error| SessionError::Internal(error.to_string()))?;
                        out.filled(written);
                        return Ok(());
                    }
                    Ok(ConnectionState::EncodeTlsData(encode)) => write(encode, out)?,
                    Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                    Ok(ConnectionState::PeerClosed) => records.peer_closed = true,
                    // TLS 1.2 with its keys used up: rustls has closed by itself.
                    Ok(ConnectionState::Closed) => return Ok(()),
                    Ok(other) => return Err(SessionError::Internal(format!("cannot close in state {other:?}"))),
                    Err(error) => return Err(session_error(&error)),
                }
                records.let_go(discard);
            }
        })
    }

    fn fail(&mut self, error: SessionError) -> SessionError {
        self.failed = Some(error.clone());
        error
    }

    fn resumed(&self) -> bool {
        self.connection.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    fn facts(&self) -> TlsFacts {
        facts(self.connection.state())
    }
}

impl<C: Connection> Unbuffered<C> {
    /// A connection at its beginning.
    pub(crate) fn new(connection: C) -> Self {
        Self { connection, held: Vec::new(), phase: Phase::First, peer_closed: false, closed: false, failed: None }
    }

    /// Whether the peer asks for another handshake on an established connection, which TLS 1.2 can and TLS 1.3
    /// cannot: after the first one no handshake message is sent in TLS 1.2 for any other reason.
    fn renegotiates(&self, bytes: &[u8]) -> bool {
        is_handshake(bytes) && self.connection.state().protocol_version() == Some(ProtocolVersion::TLSv1_2)
    }

    fn must_be_done(&self) -> Result<(), SessionError> {
        if self.phase == Phase::Done {
            return Ok(());
        }
        Err(SessionError::Internal("the handshake is not done".to_owned()))
    }

    /// Runs one call, unless the session has failed; makes an error last and brings its alert out.
    ///
    /// A panic inside rustls is an error of this connection alone. There have been some on a peer's whim, and one
    /// remains in builds with debug assertions: after our close_notify, any record that rustls must answer with an
    /// alert.
    fn guarded<R>(
        &mut self,
        out: &mut Buf,
        call: impl FnOnce(&mut Self, &mut Buf) -> Result<R, SessionError>,
    ) -> Result<R, SessionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let error = match catch_unwind(AssertUnwindSafe(|| call(self, out))) {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(error)) => {
                self.alert(out);
                error
            }
            Err(_) if self.closed => SessionError::Protocol("what came after our close_notify is no TLS".to_owned()),
            Err(_) => SessionError::Internal("rustls panicked".to_owned()),
        };
        self.held = Vec::new();
        Err(self.fail(error))
    }

    /// Brings out what rustls has to say after an error.
    fn alert(&mut self, out: &mut Buf) {
        // Behind a close_notify no alert has any meaning.
        while !self.closed && self.connection.state().wants_write() {
            match step(&mut self.connection, &mut self.held, None, out) {
                (_, Ok(Step::Wrote)) => {}
                _ => return,
            }
        }
    }

    /// Hands rustls the next whole record, if there is one, and lets it work until it wants input again.
    ///
    /// False when there was none. What rustls did not let go of is in `held` afterwards.
    fn advance(&mut self, wire: &mut Buf, mut plain: Option<&mut Buf>, out: &mut Buf) -> Result<bool, SessionError> {
        let record = first_record(wire.data());
        let mut left = record.unwrap_or(0);
        if left > 0 && self.phase == Phase::First {
            self.phase = Phase::Handshake;
        }
        if !self.held.is_empty() {
            if record.is_none() {
                // rustls has seen all of it. Seen again it is not always free: records of refused early data are
                // decrypted anew in each call, and count each time against what may be skipped.
                return Ok(false);
            }
            self.hold(wire, left)?;
            left = 0;
        }
        loop {
            let in_place = self.held.is_empty();
            let step = if in_place {
                let (discard, step) =
                    step(&mut self.connection, &mut wire.data_mut()[..left], plain.as_deref_mut(), out);
                wire.consume(discard);
                left -= discard;
                step?
            } else {
                let (discard, step) = step(&mut self.connection, &mut self.held, plain.as_deref_mut(), out);
                self.let_go(discard);
                step?
            };
            match step {
                // The common way out of a record of data: nothing of it is left, and rustls has nothing to say.
                Step::Read if in_place && left == 0 && !self.connection.state().wants_write() => break,
                Step::Wrote | Step::Read => {}
                Step::Idle => break,
                Step::PeerClosed => {
                    self.peer_closed = true;
                    return Ok(record.is_some());
                }
            }
        }
        if left > 0 {
            self.hold(wire, left)?;
        }
        Ok(record.is_some())
    }

    /// Moves the first `n` bytes of `wire` behind what is held already.
    fn hold(&mut self, wire: &mut Buf, n: usize) -> Result<(), SessionError> {
        if self.held.len() + n > MAX_HELD {
            return Err(SessionError::Protocol(format!("a message in fragments of more than {MAX_HELD} bytes")));
        }
        self.held.extend_from_slice(&wire.data()[..n]);
        wire.consume(n);
        Ok(())
    }

    /// Drops what rustls is done with from the front of what is held, and the storage with the last of it.
    fn let_go(&mut self, n: usize) {
        if n == self.held.len() {
            self.held = Vec::new();
        } else {
            self.held.drain(..n);
        }
    }
}

/// One call of rustls: what it wants dropped from the front of `input`, at once, and what it came to.
fn step<C: Connection>(
    connection: &mut C,
    input: &mut [u8],
    plain: Option<&mut Buf>,
    out: &mut Buf,
) -> (usize, Result<Step, SessionError>) {
    let UnbufferedStatus { mut discard, state, .. } = connection.process(input);
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(encode)) => write(encode, out).map(|()| Step::Wrote),
        // It is in `out`, and whatever is in `out` gets sent or the connection ends.
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Step::Wrote)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => match plain {
            Some(plain) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        plain.append(record.payload);
                    }
                    Some(Err(error)) => break Err(session_error(&error)),
                    None => break Ok(Step::Read),
                }
            },
            None => Err(SessionError::Protocol("data inside the handshake".to_owned())),
        },
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Step::Idle),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::PeerClosed),
        Ok(other) => Err(SessionError::Internal(format!("rustls is in state {other:?}"))),
        Err(error) => Err(session_error(&error)),
    };
    (discard, step)
}

/// Writes what rustls has ready; asked with no room, it tells the size.
fn write<D>(mut encode: EncodeTlsData<'_, D>, out: &mut Buf) -> Result<(), SessionError> {
    let failed = |error: EncodeError| SessionError::Internal(error.to_string());
    match encode.encode(&mut []) {
        Ok(_) => Ok(()),
        Err(EncodeError::InsufficientSize(size)) => {
            let written = encode.encode(out.space(size.required_size)).map_err(failed)?;
            out.filled(written);
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use lictor_core::{
        ExpectedPeer, HandshakeStep, Judge, MeshSession as _, PeerPolicy, RejectReason, Roots, Session as _, SpiffeId,
        identity::Grammar, session::Mesh,
    };
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection, crypto::aws_lc_rs};
    use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName, UnixTime};

    use super::*;

    /// What no context of ours can lead to: a client that verifies by name, so core is never asked, and resumes.
    #[test]
    fn a_handshake_without_a_verdict_of_its_own_or_resumed_is_no_session() {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["web.example".to_owned()]).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into())
            .unwrap();
        let (client, server) = (Arc::new(client), Arc::new(server));

        let SpiffeId::Service(web) =
            SpiffeId::parse(b"spiffe://td/ns/default/dc/dc1/svc/web", Grammar::default()).unwrap()
        else {
            unreachable!()
        };
        let judge = Judge {
            expected: ExpectedPeer::Server(Arc::new(web)),
            roots: Arc::new(Roots::from_pem(1, "td", [cert.pem().as_str()]).unwrap()),
            policy: Arc::new(PeerPolicy::default()),
            now: UnixTime::since_unix_epoch(Duration::from_secs(1)),
        };
        for reason in [RejectReason::Unjudged, RejectReason::Resumed] {
            let name = ServerName::try_from("web.example").unwrap();
            let mut session =
                Mesh::new(Unbuffered::new(UnbufferedClientConnection::new(client.clone(), name).unwrap()));
            let mut server = ServerConnection::new(server.clone()).unwrap();
            let (mut wire, mut out) = (Buf::default(), Buf::default());
            let error = loop {
                match session.handshake(&judge, &mut wire, &mut out) {
                    Ok(HandshakeStep::NeedInput) => {}
                    Ok(HandshakeStep::Done(_)) => panic!("a session without a verdict"),
                    Err(error) => break error,
                }
                server.read_tls(&mut &out.take()[..]).unwrap();
                server.process_new_packets().unwrap();
                let mut sent = Vec::new();
                while server.wants_write() {
                    server.write_tls(&mut sent).unwrap();
                }
                wire.append(&sent);
            };
            assert_eq!(error, SessionError::Rejected(reason));
            assert_eq!(session.seal(b"x", &mut out), Err(error), "for good");
        }
    }
}
