//! The two ends of a connection in memory, and who may sit at the far one.

use std::{io::Read, io::Write, sync::Arc};

use aws_lc_rs::aead;
use lictor_core::{
    Buf, Established, HandshakeStep, Judge, MeshSession, Progress, Session, SessionError, TlsPolicy, tls::AgentSession,
};
use rustls::{
    ClientConfig, Connection, ConnectionTrafficSecrets, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs as provider, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::pki::{Ca, Own};

pub(crate) static TLS12: &SupportedProtocolVersion = &rustls::version::TLS12;
pub(crate) static TLS13: &SupportedProtocolVersion = &rustls::version::TLS13;
pub(crate) static VERSIONS: [&SupportedProtocolVersion; 2] = [TLS12, TLS13];

/// One end, whoever it is.
pub(crate) trait End {
    /// Takes bytes from the other end, as many at once as there are.
    fn feed(&mut self, bytes: &[u8]);
    /// What is to be sent to the other end.
    fn sent(&mut self) -> Vec<u8>;
}

/// Carries bytes between two ends, cut into pieces as `cuts` says over and over, until both are silent.
pub(crate) fn pump(a: &mut dyn End, b: &mut dyn End, cuts: &[usize]) {
    let mut cuts = cuts.iter().copied().cycle();
    a.feed(&[]);
    b.feed(&[]);
    loop {
        let (to_b, to_a) = (a.sent(), b.sent());
        if to_a.is_empty() && to_b.is_empty() {
            return;
        }
        carry(&to_b, b, &mut cuts);
        carry(&to_a, a, &mut cuts);
    }
}

fn carry(mut bytes: &[u8], end: &mut dyn End, cuts: &mut dyn Iterator<Item = usize>) {
    while !bytes.is_empty() {
        let cut = cuts.next().unwrap_or(usize::MAX).clamp(1, bytes.len());
        end.feed(&bytes[..cut]);
        bytes = &bytes[cut..];
    }
}

pub(crate) const WHOLE: &[usize] = &[usize::MAX];
pub(crate) const BYTE_BY_BYTE: &[usize] = &[1];

/// A session of ours with its three buffers.
pub(crate) struct Ours<S: ?Sized + Session> {
    pub(crate) wire: Buf,
    pub(crate) out: Buf,
    pub(crate) plain: Buf,
    judge: Option<Judge>,
    pub(crate) established: Option<Box<Established>>,
    pub(crate) done: bool,
    pub(crate) peer_closed: bool,
    pub(crate) error: Option<SessionError>,
    pub(crate) session: Box<S>,
}

impl<S: ?Sized + Session> Ours<S> {
    pub(crate) fn new(session: Box<S>, judge: Option<Judge>) -> Self {
        Self {
            wire: Buf::default(),
            out: Buf::default(),
            plain: Buf::default(),
            judge,
            established: None,
            done: false,
            peer_closed: false,
            error: None,
            session,
        }
    }

    pub(crate) fn open(&mut self) -> Result<Progress, SessionError> {
        self.session.open(&mut self.wire, &mut self.plain, &mut self.out)
    }

    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<(), SessionError> {
        self.session.seal(plain, &mut self.out)
    }

    fn opened(&mut self) {
        match self.open() {
            Ok(progress) => self.peer_closed = progress == Progress::PeerClosed,
            Err(error) => self.error = Some(error),
        }
    }
}

impl Ours<dyn MeshSession> {
    pub(crate) fn server(own: &Own, ca: &Ca) -> Self {
        let context = own.context(&TlsPolicy::default());
        Self::new(context.accept().unwrap(), Some(ca.judge_clients()))
    }

    pub(crate) fn client(own: &Own, ca: &Ca) -> Self {
        let context = own.context(&TlsPolicy::default());
        Self::new(context.connect(Some("web.example")).unwrap(), Some(ca.judge_server("web")))
    }

    pub(crate) fn handshake(&mut self) -> Result<HandshakeStep, SessionError> {
        let judge = self.judge.as_ref().unwrap();
        self.session.handshake(judge, &mut self.wire, &mut self.out)
    }
}

impl End for Ours<dyn MeshSession> {
    fn feed(&mut self, bytes: &[u8]) {
        self.wire.append(bytes);
        if self.error.is_some() {
            return;
        }
        if !self.done {
            match self.handshake() {
                Ok(HandshakeStep::NeedInput) => return,
                Ok(HandshakeStep::Done(established)) => {
                    self.done = true;
                    self.established = Some(established);
                }
                Err(error) => {
                    self.error = Some(error);
                    return;
                }
            }
        }
        self.opened();
    }

    fn sent(&mut self) -> Vec<u8> {
        self.out.take()
    }
}

impl End for Ours<dyn AgentSession> {
    fn feed(&mut self, bytes: &[u8]) {
        self.wire.append(bytes);
        if self.error.is_some() {
            return;
        }
        if !self.done {
            match self.session.handshake(&mut self.wire, &mut self.out) {
                Ok(done) => self.done = done,
                Err(error) => self.error = Some(error),
            }
        }
        if self.done {
            self.opened();
        }
    }

    fn sent(&mut self) -> Vec<u8> {
        self.out.take()
    }
}

/// rustls's buffered connection, which trusts anybody and shows whatever it is given.
pub(crate) struct Plain {
    pub(crate) connection: Connection,
    pub(crate) plain: Vec<u8>,
    pub(crate) error: Option<Error>,
    pub(crate) peer_closed: bool,
}

impl Plain {
    pub(crate) fn new(connection: impl Into<Connection>) -> Self {
        Self { connection: connection.into(), plain: Vec::new(), error: None, peer_closed: false }
    }

    pub(crate) fn client(version: &'static SupportedProtocolVersion, own: Option<&Own>) -> Self {
        Self::client_of(&Arc::new(client_config(version, own)))
    }

    pub(crate) fn client_of(config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("web.example").unwrap();
        Self::new(rustls::ClientConnection::new(config.clone(), name).unwrap())
    }

    pub(crate) fn server(version: &'static SupportedProtocolVersion, own: &Own) -> Self {
        Self::server_of(&Arc::new(server_config(version, own)))
    }

    pub(crate) fn server_of(config: &Arc<ServerConfig>) -> Self {
        Self::new(rustls::ServerConnection::new(config.clone()).unwrap())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.connection.writer().write_all(bytes).unwrap();
    }

    /// The number of the alert that ended the connection.
    pub(crate) fn alert(&self) -> Option<u8> {
        match self.error {
            Some(Error::AlertReceived(alert)) => Some(u8::from(alert)),
            _ => None,
        }
    }
}

impl End for Plain {
    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.error.is_none() {
            if self.connection.read_tls(&mut bytes).unwrap() == 0 {
                return;
            }
            match self.connection.process_new_packets() {
                Ok(state) => self.peer_closed = state.peer_has_closed(),
                Err(error) => self.error = Some(error),
            }
            let mut piece = [0; 16 * 1024];
            while let Ok(n @ 1..) = self.connection.reader().read(&mut piece) {
                self.plain.extend_from_slice(&piece[..n]);
            }
        }
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut sent).unwrap();
        }
        sent
    }
}

/// A client that offers `groups` over TLS 1.3.
pub(crate) fn client_config_of(groups: Vec<&'static dyn SupportedKxGroup>, own: &Own) -> ClientConfig {
    client_config_with(provider_of(groups), TLS13, Some(own))
}

pub(crate) fn client_config(version: &'static SupportedProtocolVersion, own: Option<&Own>) -> ClientConfig {
    client_config_with(provider::default_provider(), version, own)
}

fn provider_of(groups: Vec<&'static dyn SupportedKxGroup>) -> CryptoProvider {
    CryptoProvider { kx_groups: groups, ..provider::default_provider() }
}

pub(crate) fn client_config_with(
    provider: CryptoProvider,
    version: &'static SupportedProtocolVersion,
    own: Option<&Own>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Anybody::new());
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key_der()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.enable_secret_extraction = true;
    config
}

/// A server that knows `groups` over TLS 1.3.
pub(crate) fn server_config_of(groups: Vec<&'static dyn SupportedKxGroup>, own: &Own) -> ServerConfig {
    server_config_with(provider_of(groups), TLS13, own)
}

pub(crate) fn server_config(version: &'static SupportedProtocolVersion, own: &Own) -> ServerConfig {
    server_config_with(provider::default_provider(), version, own)
}

fn server_config_with(provider: CryptoProvider, version: &'static SupportedProtocolVersion, own: &Own) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(Anybody::new())
        .with_single_cert(own.chain.clone(), own.key_der())
        .unwrap();
    config.enable_secret_extraction = true;
    config
}

/// Trusts everybody.
#[derive(Debug)]
pub(crate) struct Anybody {
    pub(crate) schemes: Vec<SignatureScheme>,
}

impl Anybody {
    fn new() -> Arc<Self> {
        Arc::new(Self { schemes: provider::default_provider().signature_verification_algorithms.supported_schemes() })
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider::default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// A peer with a good certificate that after its handshake seals whatever it likes.
pub(crate) struct Forger {
    is_tls13: bool,
    write: Keys,
    read: Keys,
}

struct Keys {
    sequence: u64,
    key: aead::LessSafeKey,
    iv: [u8; 12],
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Self {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("not the suite we put first") };
        let key = aead::UnboundKey::new(&aead::AES_128_GCM, key.as_ref()).unwrap();
        Self { sequence, key: aead::LessSafeKey::new(key), iv: iv.as_ref().try_into().unwrap() }
    }

    /// The nonce of the next record, and its sequence number.
    fn next(&mut self) -> ([u8; 12], u64) {
        let (mut nonce, sequence) = (self.iv, self.sequence);
        for (byte, mask) in nonce[4..].iter_mut().zip(sequence.to_be_bytes()) {
            *byte ^= mask;
        }
        self.sequence += 1;
        (nonce, sequence)
    }
}

impl Forger {
    /// Takes over from an honest peer that has nothing left to send.
    pub(crate) fn from(peer: Plain, version: &'static SupportedProtocolVersion) -> Self {
        let secrets = peer.connection.dangerous_extract_secrets().unwrap();
        Self { is_tls13: version == TLS13, write: Keys::new(secrets.tx), read: Keys::new(secrets.rx) }
    }

    pub(crate) fn seal(&mut self, content_type: u8, content: &[u8]) -> Vec<u8> {
        let (nonce, sequence) = self.write.next();
        let mut body = content.to_vec();
        let (outer, explicit, aad) = if self.is_tls13 {
            body.push(content_type);
            let length = u16::try_from(body.len() + 16).unwrap().to_be_bytes();
            (23, &[][..], vec![23, 3, 3, length[0], length[1]])
        } else {
            let length = u16::try_from(body.len()).unwrap().to_be_bytes();
            let header = [content_type, 3, 3, length[0], length[1]];
            (content_type, &nonce[4..], [&sequence.to_be_bytes()[..], &header].concat())
        };
        let key = &self.write.key;
        key.seal_in_place_append_tag(aead::Nonce::assume_unique_for_key(nonce), aead::Aad::from(&aad[..]), &mut body)
            .unwrap();
        let length = u16::try_from(explicit.len() + body.len()).unwrap().to_be_bytes();
        [&[outer, 3, 3, length[0], length[1]], explicit, &body].concat()
    }

    /// Opens the first record of `wire` (TLS 1.3 only): its content, then its type.
    pub(crate) fn open(&mut self, wire: &[u8]) -> Vec<u8> {
        let (header, rest) = wire.split_at(5);
        let mut body = rest[..usize::from(u16::from_be_bytes([header[3], header[4]]))].to_vec();
        let (nonce, _) = self.read.next();
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        self.read.key.open_in_place(nonce, aead::Aad::from(header), &mut body).unwrap().to_vec()
    }
}
