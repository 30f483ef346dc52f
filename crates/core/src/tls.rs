//! What a TLS library must offer: contexts that are built once per rotation, and sessions without I/O.
//!
//! A session takes ciphertext in and gives ciphertext and plaintext out. Sockets, deadlines, half-close and copying
//! live once, in the data plane, for all libraries.

use std::{fmt, sync::Arc};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{
    buf::Buf,
    judgement::Judge,
    material::Leaf,
    policy::{Crypto, TlsPolicy},
    verify::{PeerProof, RejectReason, SignatureAlgorithms},
};

/// A TLS library: builds contexts, makes keys, verifies signatures.
///
/// All calls are synchronous and do no I/O. Contexts are built once per rotation, never per connection, so broken
/// material is refused while the last good context serves.
pub trait TlsBackend: Send + Sync + 'static {
    /// The name that the configuration and the features use: `rustls`, `openssl`, `boring`.
    fn name(&self) -> &'static str;

    /// The library and its version in words, as it reports itself.
    fn library(&self) -> String;

    /// What the library is and what it makes of `policy`, for `lictor crypto`, the metrics and the start-up log.
    fn crypto(&self, policy: &TlsPolicy) -> Crypto;

    /// The signature verification of this library, over which [`crate::verify`] works.
    fn signature_algorithms(&self) -> &SignatureAlgorithms;

    /// Checks that the private key of `leaf` is the one its certificate names.
    ///
    /// # Errors
    /// [`BuildError`] when it is not, or when the library cannot use the key.
    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError>;

    /// Builds the context with which we meet other services of the mesh, in both roles.
    ///
    /// Roots are no part of it: they travel with each call as part of the [`Judge`], so a removed root stops being
    /// trusted at once, also for handshakes under way.
    ///
    /// # Errors
    /// [`BuildError`] when the library refuses key, chain or policy.
    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError>;

    /// Builds the context with which we talk to the agent over HTTPS.
    ///
    /// It is another type than [`MeshContext`], so a context with system roots or with verification off cannot reach
    /// a mesh listener.
    ///
    /// # Errors
    /// [`BuildError`] when the library refuses certificate, key or roots.
    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError>;

    /// Makes a new P-256 key.
    ///
    /// # Errors
    /// [`BuildError`] when the library's random generator or key generation fails.
    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError>;
}

/// A P-256 key that a backend made.
pub trait SigningKey: Send + Sync {
    /// The public key as an uncompressed point of 65 bytes (SEC 1, section 2.3.3).
    fn public_point(&self) -> &[u8];

    /// Signs `message` by ECDSA with SHA-256; the signature is DER (RFC 3279, section 2.2.3).
    ///
    /// # Errors
    /// [`BuildError`] when the library fails.
    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, BuildError>;

    /// The private key as PKCS#8 DER (RFC 5208).
    fn pkcs8(&self) -> PrivateKeyDer<'static>;
}

/// Makes the sessions between us and other services of the mesh.
pub trait MeshContext: Send + Sync {
    /// A session in which we are the server. The client must present a certificate, no CA names are sent, and
    /// nothing is resumed.
    ///
    /// # Errors
    /// [`SessionError`] when the library has no memory or no randomness.
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError>;

    /// A session in which we are the client, sending `server_name` as SNI where it is a legal one, and no ALPN.
    ///
    /// # Errors
    /// As for [`accept`](Self::accept).
    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError>;
}

/// Makes the sessions with the agent, in which we are always the client.
pub trait AgentContext: Send + Sync {
    /// A session that verifies the agent by `server_name` (a DNS name or an IP address), unless the settings say not
    /// to verify.
    ///
    /// # Errors
    /// [`SessionError`] when the name is neither, or when the library has no memory or no randomness.
    fn connect(&self, server_name: &str) -> Result<Box<dyn AgentSession>, SessionError>;
}

/// The records of one TLS connection after its handshake.
///
/// What holds for every call, the handshake included:
/// * After an error `out` may hold an alert, which is still to be sent. Each later call returns the same error.
/// * No certificate is judged outside a handshake: a library that asks for a verdict then is refused.
/// * Right after the handshake `open` must be called once even when nothing new has come, since data may already be
///   waiting. A TLS 1.3 client learns only there that the server refused it.
/// * After [`Progress::PeerClosed`] the rest of `wire` means nothing and is dropped; sealing goes on.
pub trait Session: Send {
    /// Opens all whole records of `wire` into `plain`; answers that the protocol asks for go to `out`.
    ///
    /// Legal with nothing in `wire`. What is left in `wire` afterwards is part of a record.
    ///
    /// # Errors
    /// [`SessionError`]; `out` then holds the alert, if there is one to send.
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError>;

    /// Seals all of `plain` into `out`, in as many records as it takes.
    ///
    /// # Errors
    /// [`SessionError`] when the library fails; nothing may be sent after that.
    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError>;

    /// Puts a close_notify alert into `out`; nothing can be sealed after it, and opening goes on.
    ///
    /// # Errors
    /// [`SessionError`] when the library fails.
    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError>;
}

/// A session with another service of the mesh.
pub trait MeshSession: Session {
    /// Takes the handshake as far as the bytes in `wire` go. Data behind the peer's last flight stays in `wire`.
    ///
    /// The verdict about the peer is formed inside this call, under `judge` (see [`crate::judgement`]). It leaves the
    /// session only as part of [`HandshakeStep::Done`], since an identity is proven by CertificateVerify and not by
    /// the chain. A handshake that would end without a verdict of its own is an error.
    ///
    /// # Errors
    /// [`SessionError`]; `out` then holds the alert to send.
    fn handshake(&mut self, judge: &Judge, wire: &mut Buf, out: &mut Buf) -> Result<HandshakeStep, SessionError>;
}

/// A session with the agent.
pub trait AgentSession: Session {
    /// Takes the handshake as far as the bytes in `wire` go; true when it is done.
    ///
    /// # Errors
    /// [`SessionError`]; `out` then holds the alert to send.
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError>;
}

/// Where a handshake stands.
#[derive(Debug)]
pub enum HandshakeStep {
    /// It needs more bytes from the peer. `out` may hold a flight to send first.
    NeedInput,
    /// It is done; `out` may hold the last flight.
    Done(Box<Established>),
}

/// What a finished handshake proved and agreed.
#[derive(Debug)]
pub struct Established {
    /// Who the peer is.
    pub peer: PeerProof,
    /// What was agreed, for the connection record.
    pub facts: TlsFacts,
}

/// What was agreed, in the names of the IANA registry where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite, as `TLS_AES_128_GCM_SHA256`.
    pub suite: &'static str,
    /// The group of the key exchange, as `X25519MLKEM768`.
    pub group: &'static str,
}

/// How far [`Session::open`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All whole records are open.
    NeedInput,
    /// The peer has sent close_notify: the end of its bytes is real. Reported again by each later call.
    PeerClosed,
}

/// How to talk HTTPS with the agent.
pub struct AgentTls {
    /// The authorities that may have issued the agent's certificate, already loaded: from CA files, or the system's.
    pub roots: Vec<CertificateDer<'static>>,
    /// Our certificate chain and key, for agents that verify incoming connections.
    pub client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Whether to verify the agent; off only when the operator says so.
    pub verification: AgentVerification,
}

/// Whether the agent's certificate is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentVerification {
    /// Chain, validity and name.
    Full,
    /// Nothing: the operator set `CONSUL_HTTP_SSL_VERIFY=false`.
    Off,
}

impl fmt::Debug for AgentTls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentTls")
            .field("roots", &self.roots.len())
            .field("client", &self.client.as_ref().map(|(chain, _)| chain.len()))
            .field("verification", &self.verification)
            .finish_non_exhaustive()
    }
}

/// Why a session failed, and by that whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// We refused the peer's certificate or identity.
    #[error("refused the peer: {0}")]
    Rejected(RejectReason),
    /// The peer sent a fatal alert: it refused us, or gave up.
    #[error("the peer sent alert {0}")]
    PeerAlert(u8),
    /// No version, suite or group that both sides speak.
    #[error("nothing in common with the peer: {0}")]
    NothingInCommon(String),
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// What came is not TLS at all.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// A record failed its integrity check.
    #[error("a record was damaged or forged on the way")]
    BadRecord,
    /// Our own side failed.
    #[error("the TLS library failed: {0}")]
    Internal(String),
}

impl SessionError {
    /// The reason to count the failure under: our own verdict where there is one, otherwise the nearest.
    #[must_use]
    pub fn reject_reason(&self) -> Option<RejectReason> {
        match self {
            Self::Rejected(reason) => Some(*reason),
            Self::Protocol(_) | Self::NotTls | Self::BadRecord => Some(RejectReason::BadMessage),
            Self::PeerAlert(_) | Self::NothingInCommon(_) | Self::Internal(_) => None,
        }
    }
}

/// Why a context could not be built, or a key not be made or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The private key is not the one that the certificate names.
    #[error("the private key does not match the certificate")]
    KeyMismatch,
    /// The library cannot use the key, the chain or the policy.
    #[error("the TLS library refuses the {what}: {why}")]
    Refused {
        /// `key`, `certificate`, `roots` or `policy`.
        what: &'static str,
        /// The library's words.
        why: String,
    },
}
