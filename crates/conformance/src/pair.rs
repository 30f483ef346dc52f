//! A session of the backend under test and a peer that misbehaves, joined in memory.
//!
//! The peer is rustls with resolvers that send any bytes as certificates, whatever the key, and that accept whatever
//! we send. Nothing here waits: each side is handed what the other has sent until neither has more to say.

use std::{
    io::{Read as _, Write as _},
    sync::{Arc, Mutex},
};

use lictor_core::{
    Buf, Established, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, Progress, SessionError, TlsBackend,
    TlsPolicy, identity::Grammar,
};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error,
    KeyLog, NamedGroup, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, Signer, SigningKey},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use crate::{
    certs::{Mesh, pem},
    keys::{Key, KeyKind, SignatureKind},
    report::Way,
    verifier::{Side, service},
};

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

impl Version {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Tls12, Self::Tls13];

    /// The name that [`lictor_core::TlsFacts`] uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }

    fn supported(self) -> &'static SupportedProtocolVersion {
        match self {
            Self::Tls12 => &TLS12,
            Self::Tls13 => &TLS13,
        }
    }
}

/// Every side with every version, and the pair as the table has it.
#[must_use]
pub fn ways() -> Vec<(Side, Version, Way)> {
    let pairs = Side::BOTH.into_iter().flat_map(|side| Version::BOTH.map(|version| (side, version)));
    pairs.map(|(side, version)| (side, version, (side, version).into())).collect()
}

/// Our own context: a good leaf for the service `db`, with one intermediate, so that there is a chain to send.
///
/// # Panics
/// When the backend refuses good material.
#[must_use]
pub fn our_context(backend: &dyn TlsBackend, mesh: &Mesh, policy: &TlsPolicy) -> Arc<dyn MeshContext> {
    backend.mesh_context(&our_leaf(mesh), policy).expect("good material builds a context")
}

/// The leaf of [`our_context`].
///
/// # Panics
/// Never: the leaf is good.
#[must_use]
pub fn our_leaf(mesh: &Mesh) -> Leaf {
    our_leaf_of(mesh, KeyKind::P256)
}

/// The same with another kind of key.
///
/// # Panics
/// When there are no private keys of that kind.
#[must_use]
pub fn our_leaf_of(mesh: &Mesh, kind: KeyKind) -> Leaf {
    let ca = mesh.intermediate("Our intermediate");
    let key = Key::generate(kind);
    let chain = pem("CERTIFICATE", &ca.issue(&mesh.leaf_of("db"), &key)) + &ca.pem();
    let key = pem("PRIVATE KEY", key.pkcs8().expect("a key of the library"));
    Leaf::from_pem(&chain, &key, Grammar::Spiffe).expect("a good leaf")
}

/// Our side: a session of the backend under test, and all that it has given.
pub struct Ours {
    session: Box<dyn MeshSession>,
    /// By what it judges; a test may change it between steps.
    pub judge: Judge,
    wire: Buf,
    plain: Buf,
    out: Buf,
    /// What a finished handshake gave.
    pub established: Option<Established>,
    /// The error on which it stands.
    pub failed: Option<SessionError>,
    /// Whether the peer has closed.
    pub closed: bool,
    /// How many bytes of the peer lay unopened when the handshake was done.
    pub waited_behind: Option<usize>,
    /// A promise of the session trait that was broken.
    pub broken_promise: Option<String>,
}

impl Ours {
    /// Our session on `side`.
    ///
    /// # Panics
    /// When the backend makes none.
    #[must_use]
    pub fn new(context: &dyn MeshContext, judge: Judge, side: Side) -> Self {
        let session = match side {
            Side::Inbound => context.accept(),
            Side::Outbound => context.connect(service("web").server_name().as_deref()),
        };
        Self::over(session.expect("a session"), judge)
    }

    /// Our side over a session at its beginning.
    #[must_use]
    pub fn over(session: Box<dyn MeshSession>, judge: Judge) -> Self {
        let mut ours = Self {
            session,
            judge,
            wire: Buf::default(),
            plain: Buf::default(),
            out: Buf::default(),
            established: None,
            failed: None,
            closed: false,
            waited_behind: None,
            broken_promise: None,
        };
        ours.step();
        ours
    }

    /// Takes bytes of the peer, and goes as far as they go.
    pub fn take(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.wire.append(bytes);
        self.step();
    }

    /// What is there to send.
    #[must_use]
    pub fn sent(&mut self) -> Vec<u8> {
        self.out.take()
    }

    /// The plaintext that has come.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        self.plain.data()
    }

    /// How many bytes of the peer wait unopened.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.wire.len()
    }

    /// Seals data.
    ///
    /// # Panics
    /// When the session cannot.
    pub fn send(&mut self, data: &[u8]) {
        self.try_send(data).expect("data can be sealed");
    }

    /// Seals data, if the session can.
    ///
    /// # Errors
    /// Its own.
    pub fn try_send(&mut self, data: &[u8]) -> Result<(), SessionError> {
        self.session.seal(data, &mut self.out)
    }

    /// Closes our direction.
    ///
    /// # Panics
    /// When the session cannot.
    pub fn close(&mut self) {
        self.session.close(&mut self.out).expect("a session can be closed");
    }

    /// Asks once more for a step of the handshake.
    ///
    /// # Errors
    /// The session's own.
    pub fn handshake_again(&mut self) -> Result<HandshakeStep, SessionError> {
        self.session.handshake(&self.judge, &mut self.wire, &mut self.out)
    }

    /// Lends another buffer for what is sent, with what it has room for.
    pub fn lend_out(&mut self, out: Buf) {
        self.out = out;
    }

    /// How many bytes the buffer for what is sent has room for.
    #[must_use]
    pub fn room_to_send(&self) -> usize {
        self.out.capacity()
    }

    fn step(&mut self) {
        if self.established.is_none() {
            match self.session.handshake(&self.judge, &mut self.wire, &mut self.out) {
                Ok(HandshakeStep::NeedInput) => return,
                Ok(HandshakeStep::Done(established)) => {
                    self.established = Some(*established);
                    self.waited_behind = Some(self.wire.len());
                }
                Err(error) => return self.fail(error, true),
            }
        }
        match self.session.open(&mut self.wire, &mut self.plain, &mut self.out) {
            Ok(Progress::NeedInput) if self.closed => {
                self.broken_promise = Some("the close of the peer was not reported again".to_owned());
            }
            Ok(Progress::NeedInput) => {}
            Ok(Progress::PeerClosed) => self.closed = true,
            Err(error) => self.fail(error, false),
        }
    }

    /// Takes an error down, and holds the session to its promise: the same error again, and nothing more to send.
    fn fail(&mut self, error: SessionError, in_handshake: bool) {
        let (sent, plain) = (self.out.len(), self.plain.len());
        for _ in 0..2 {
            let mut results = Vec::new();
            if in_handshake {
                let step = self.session.handshake(&self.judge, &mut self.wire, &mut self.out);
                results.push(step.map(|step| format!("{step:?}")));
            }
            let opened = self.session.open(&mut self.wire, &mut self.plain, &mut self.out);
            results.push(opened.map(|progress| format!("{progress:?}")));
            results.push(self.session.seal(b"x", &mut self.out).map(|()| "sealed".to_owned()));
            results.push(self.session.close(&mut self.out).map(|()| "closed".to_owned()));
            if let Some(other) = results.iter().find(|result| result.as_ref() != Err(&error)) {
                self.broken_promise = Some(format!("{error:?} was followed by {other:?}"));
            }
        }
        if self.out.len() != sent {
            self.broken_promise = Some(format!("more was sent after {error:?}"));
        }
        if self.plain.len() != plain {
            self.broken_promise = Some(format!("plaintext was given out after {error:?}"));
        }
        self.failed = Some(error);
    }
}

/// Makes what is signed out of what should be.
pub type Instead = fn(&[u8]) -> Vec<u8>;

/// What a peer does.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// What it sends as its certificates; nothing means an empty list.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key with which it signs the handshake. Where it cannot sign, the signature is made up.
    pub key: Arc<Key>,
    /// The version that it speaks.
    pub version: Version,
    /// Whether it speaks the other version as well.
    pub both_versions: bool,
    /// The suites that it knows, the preferred one first; all that rustls has by default, AES-128 first.
    pub suites: Option<Vec<SupportedCipherSuite>>,
    /// The groups that it knows, the preferred one first; all that rustls has by default, P-256 first.
    pub groups: Option<Vec<&'static dyn SupportedKxGroup>>,
    /// The schemes by which it lets us sign; all that rustls has by default.
    pub takes: Option<Vec<SignatureScheme>>,
    /// The scheme by which it says that it signs, whatever was offered.
    pub signs_as: Option<SignatureScheme>,
    /// What it signs in place of what it should.
    pub signs_instead: Option<Instead>,
    /// Whether it refuses our certificate, with alert 48.
    pub refuses_us: bool,
    /// Whether as a server it ends the handshake with a client that has no certificate.
    pub demands_certificate: bool,
    /// Whether as a server it hands out tickets; otherwise it names its sessions where the version has that.
    pub hands_out_tickets: bool,
    /// The protocols that it offers.
    pub alpn: Vec<Vec<u8>>,
    /// The most plaintext that it puts into one record, header included.
    pub max_fragment: Option<usize>,
    /// The client that it is, with the sessions that it remembers.
    pub memory: Option<Arc<ClientConfig>>,
    /// The server that it is, with the sessions that it remembers.
    pub memory_as_server: Option<Arc<ServerConfig>>,
}

impl PeerSettings {
    /// A peer that sends `chain`.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Arc<Key>, version: Version) -> Self {
        Self {
            chain,
            key,
            version,
            both_versions: false,
            suites: None,
            groups: None,
            takes: None,
            signs_as: None,
            signs_instead: None,
            refuses_us: false,
            demands_certificate: true,
            hands_out_tickets: true,
            alpn: Vec::new(),
            max_fragment: None,
            memory: None,
            memory_as_server: None,
        }
    }

    fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        if self.both_versions { vec![&TLS13, &TLS12] } else { vec![self.version.supported()] }
    }

    fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128"));
        // P-256 is the group that every build of every backend has, so no handshake needs a second hello.
        provider.kx_groups.sort_by_key(|group| group.name() != NamedGroup::secp256r1);
        if let Some(suites) = &self.suites {
            provider.cipher_suites.clone_from(suites);
        }
        if let Some(groups) = &self.groups {
            provider.kx_groups.clone_from(groups);
        }
        Arc::new(provider)
    }

    fn judges_us(&self, witness: &Arc<Witness>) -> Arc<AcceptAll> {
        let takes = self
            .takes
            .clone()
            .unwrap_or_else(|| aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes());
        Arc::new(AcceptAll {
            witness: witness.clone(),
            takes,
            refuses: self.refuses_us,
            demands: self.demands_certificate,
        })
    }

    /// The configuration of a client, with a memory of sessions of its own.
    ///
    /// # Panics
    /// When rustls refuses its own provider.
    #[must_use]
    pub fn client(&self, witness: &Arc<Witness>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&self.versions())
            .expect("suites of a version that rustls speaks");
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(self.judges_us(witness))
            .with_client_cert_resolver(Arc::new(Sends::new(self, witness)));
        config.alpn_protocols.clone_from(&self.alpn);
        config.max_fragment_size = self.max_fragment;
        config.resumption = Resumption::in_memory_sessions(16);
        config.enable_secret_extraction = true;
        config.key_log = witness.clone();
        config
    }

    /// The configuration of a server that asks for a certificate and would resume.
    ///
    /// # Panics
    /// When rustls refuses its own provider.
    #[must_use]
    pub fn server(&self, witness: &Arc<Witness>) -> ServerConfig {
        let builder = ServerConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&self.versions())
            .expect("suites of a version that rustls speaks");
        let mut config = builder
            .with_client_cert_verifier(self.judges_us(witness))
            .with_cert_resolver(Arc::new(Sends::new(self, witness)));
        config.alpn_protocols.clone_from(&self.alpn);
        config.max_fragment_size = self.max_fragment;
        if self.hands_out_tickets {
            config.ticketer = aws_lc_rs::Ticketer::new().expect("randomness for a ticket key");
        }
        // AES-128 whatever the client prefers, so that the keys are of one kind.
        config.ignore_client_order = true;
        config.enable_secret_extraction = true;
        config.key_log = witness.clone();
        config
    }
}

/// What a peer saw of us.
#[derive(Debug, Default)]
pub struct Witness(Mutex<Seen>);

/// See [`Witness`].
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The chain that we sent.
    pub chain: Vec<CertificateDer<'static>>,
    /// How many names of authorities we sent with our request for a certificate.
    pub authorities: usize,
    /// The schemes that we named with it.
    pub schemes: Vec<SignatureScheme>,
    /// Whether we asked for a certificate.
    pub asked: bool,
    /// The server name that we sent.
    pub server_name: Option<String>,
    /// Whether we offered an application protocol.
    pub alpn: bool,
    /// The first traffic secrets of the client and the server (RFC 8446, section 7.1), for who forges records.
    pub secrets: [Vec<u8>; 2],
}

impl Witness {
    /// What was seen so far.
    ///
    /// # Panics
    /// When a test has panicked before.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.0.lock().expect("a test that goes on").clone()
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.lock().expect("a test that goes on"));
    }
}

impl KeyLog for Witness {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let place = match label {
            "CLIENT_TRAFFIC_SECRET_0" => 0,
            "SERVER_TRAFFIC_SECRET_0" => 1,
            _ => return,
        };
        self.note(|seen| seen.secrets[place] = secret.to_vec());
    }
}

/// The other side.
pub struct Peer {
    /// The connection of rustls.
    pub connection: Connection,
    /// What it saw of us.
    pub witness: Arc<Witness>,
    /// The fatal alert that it was sent.
    pub alert: Option<u8>,
    /// Its own complaint, if it is another.
    pub error: Option<String>,
    /// What it received.
    pub received: Vec<u8>,
}

impl Peer {
    /// The peer of our side `side`: a client when we are the server.
    ///
    /// # Panics
    /// When rustls refuses its own configuration.
    #[must_use]
    pub fn new(settings: &PeerSettings, side: Side) -> Self {
        let witness = Arc::new(Witness::default());
        match side {
            Side::Inbound => {
                let config = settings.memory.clone().unwrap_or_else(|| Arc::new(settings.client(&witness)));
                Self::client(config, witness)
            }
            Side::Outbound => {
                let config = settings.memory_as_server.clone().unwrap_or_else(|| Arc::new(settings.server(&witness)));
                Self::server(config, witness)
            }
        }
    }

    /// A client with this configuration.
    ///
    /// # Panics
    /// When rustls refuses it.
    #[must_use]
    pub fn client(config: Arc<ClientConfig>, witness: Arc<Witness>) -> Self {
        let name = ServerName::try_from("db.default.dc1.internal.example").expect("a host name");
        Self::joined(ClientConnection::new(config, name).expect("a client").into(), witness)
    }

    /// A server with this configuration.
    ///
    /// # Panics
    /// When rustls refuses it.
    #[must_use]
    pub fn server(config: Arc<ServerConfig>, witness: Arc<Witness>) -> Self {
        Self::joined(ServerConnection::new(config).expect("a server").into(), witness)
    }

    fn joined(mut connection: Connection, witness: Arc<Witness>) -> Self {
        connection.set_buffer_limit(None);
        Self { connection, witness, alert: None, error: None, received: Vec::new() }
    }

    /// Takes bytes of ours.
    ///
    /// # Panics
    /// When rustls takes nothing though it is offered something.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.alert.is_none() && self.error.is_none() {
            if self.connection.read_tls(&mut bytes).is_err() {
                return;
            }
            match self.connection.process_new_packets() {
                Ok(_) => {}
                Err(Error::AlertReceived(alert)) => self.alert = Some(u8::from(alert)),
                Err(error) => self.error = Some(error.to_string()),
            }
            // An end of the stream is an error of the reader, not of the test.
            let _ = self.connection.reader().read_to_end(&mut self.received);
        }
    }

    /// What it has to send.
    ///
    /// # Panics
    /// Never: a vector takes everything.
    #[must_use]
    pub fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut sent).expect("a vector takes everything");
        }
        sent
    }

    /// Whether its handshake is done, as it sees it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Sends data.
    ///
    /// # Panics
    /// Never: its buffer has no limit.
    pub fn send(&mut self, data: &[u8]) {
        self.connection.writer().write_all(data).expect("room for the data");
    }
}

/// Hands each side what the other has sent, in pieces of at most `piece` bytes towards us, until both are silent.
pub fn talk(ours: &mut Ours, peer: &mut Peer, piece: usize) {
    loop {
        let theirs = peer.sent();
        for bytes in theirs.chunks(piece) {
            ours.take(bytes);
        }
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            return;
        }
    }
}

/// The same between two sides of ours.
pub fn talk_to_each_other(one: &mut Ours, other: &mut Ours, piece: usize) {
    loop {
        let (there, back) = (one.sent(), other.sent());
        there.chunks(piece).for_each(|bytes| other.take(bytes));
        back.chunks(piece).for_each(|bytes| one.take(bytes));
        if there.is_empty() && back.is_empty() {
            return;
        }
    }
}

/// Sends its certificates whatever it is asked.
#[derive(Debug)]
struct Sends {
    certified: Arc<CertifiedKey>,
    witness: Arc<Witness>,
}

impl Sends {
    fn new(settings: &PeerSettings, witness: &Arc<Witness>) -> Self {
        let key: Arc<dyn SigningKey> = Arc::new(AnyKey::new(settings));
        let certified = Arc::new(CertifiedKey::new(settings.chain.clone(), key));
        Self { certified, witness: witness.clone() }
    }
}

impl ResolvesClientCert for Sends {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.witness.note(|seen| {
            (seen.asked, seen.authorities) = (true, authorities.len());
            seen.schemes = schemes.to_vec();
        });
        (!self.certified.cert.is_empty()).then(|| self.certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Sends {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.witness.note(|seen| {
            seen.server_name = hello.server_name().map(str::to_owned);
            seen.alpn = hello.alpn().is_some();
        });
        Some(self.certified.clone())
    }
}

/// A key that signs under whatever scheme is offered, if need be with a signature that is none.
#[derive(Debug)]
struct AnyKey {
    key: Arc<Key>,
    real: Option<Arc<dyn SigningKey>>,
    algorithm: SignatureAlgorithm,
    named: Option<SignatureScheme>,
    instead: Option<Instead>,
}

impl AnyKey {
    fn new(settings: &PeerSettings) -> Self {
        let key = &settings.key;
        let algorithm = match key.kind() {
            KeyKind::Rsa2048 | KeyKind::RsaByHand(_) => SignatureAlgorithm::RSA,
            _ => SignatureAlgorithm::ECDSA,
        };
        let real = key.pkcs8().and_then(|pkcs8| {
            aws_lc_rs::sign::any_supported_type(&PrivatePkcs8KeyDer::from(pkcs8.to_vec()).into()).ok()
        });
        Self { key: key.clone(), real, algorithm, named: settings.signs_as, instead: settings.signs_instead }
    }
}

impl SigningKey for AnyKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.signer(offered)?;
        match self.instead {
            Some(instead) => Some(Box::new(SignsInstead { signer, instead })),
            None => Some(signer),
        }
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

impl AnyKey {
    fn signer(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        if let Some(scheme) = self.named {
            // What rustls signs for this key it signs well; under other names the hash is right and the key is not.
            let real = self.real.as_ref().and_then(|real| real.choose_scheme(&[scheme]));
            return real.or_else(|| Some(Box::new(Named { key: self.key.clone(), scheme })));
        }
        let real = self.real.as_ref().and_then(|real| real.choose_scheme(offered));
        let scheme = match self.algorithm {
            SignatureAlgorithm::RSA => SignatureScheme::RSA_PSS_SHA256,
            _ => SignatureScheme::ECDSA_NISTP256_SHA256,
        };
        real.or_else(|| Some(Box::new(MadeUp(scheme))))
    }
}

/// A good signature of something else.
#[derive(Debug)]
struct SignsInstead {
    signer: Box<dyn Signer>,
    instead: Instead,
}

impl Signer for SignsInstead {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.signer.sign(&(self.instead)(message))
    }

    fn scheme(&self) -> SignatureScheme {
        self.signer.scheme()
    }
}

/// A signature that is none.
#[derive(Debug)]
struct MadeUp(SignatureScheme);

impl Signer for MadeUp {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![0x30; 64])
    }

    fn scheme(&self) -> SignatureScheme {
        self.0
    }
}

/// A signature by a key under a name that is another key's, or of a hash that nobody uses any more.
#[derive(Debug)]
struct Named {
    key: Arc<Key>,
    scheme: SignatureScheme,
}

impl Signer for Named {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let kind = match self.scheme {
            SignatureScheme::ECDSA_SHA1_Legacy => SignatureKind::EcdsaSha1,
            SignatureScheme::ECDSA_NISTP384_SHA384 => SignatureKind::EcdsaSha384,
            SignatureScheme::ECDSA_NISTP521_SHA512 => SignatureKind::EcdsaSha512,
            SignatureScheme::RSA_PKCS1_SHA1 => SignatureKind::RsaSha1,
            _ => self.key.usual_signature(),
        };
        Ok(self.key.sign(message, kind))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// Accepts certificates and signatures of ours, unless it is to refuse us: it is we who are under test.
#[derive(Debug)]
struct AcceptAll {
    witness: Arc<Witness>,
    takes: Vec<SignatureScheme>,
    refuses: bool,
    demands: bool,
}

impl AcceptAll {
    fn judge(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        let chain = [leaf].into_iter().chain(others).map(|certificate| certificate.clone().into_owned()).collect();
        self.witness.note(|seen| seen.chain = chain);
        if self.refuses { Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) } else { Ok(()) }
    }
}

impl ServerCertVerifier for AcceptAll {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.takes.clone()
    }
}

impl ClientCertVerifier for AcceptAll {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.demands
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.takes.clone()
    }
}
