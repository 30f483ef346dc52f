//! Contexts: what is decided once per rotation, never per connection.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use lictor_core::{
    AgentContext, AgentSession, AgentTls, Leaf, MeshContext, MeshSession, SessionError, SignatureAlgorithms, TlsPolicy,
    judgement, session,
    tls::{AgentVerification, BuildError},
    verify::MAX_CHAIN_CERTIFICATES,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, UnbufferedClientConnection, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    server::{
        NoServerSessionStorage, UnbufferedServerConnection,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::{
    error::{build_error, refusal, session_error},
    policy::{must_be_fips, provider, versions},
    session::Unbuffered,
    signature::MESH_ALGORITHMS,
};

/// How we meet other services of the mesh, in both roles.
#[derive(Debug)]
pub(crate) struct Mesh {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Mesh {
    /// Builds both roles over one chain and key.
    pub(crate) fn build(leaf: &Leaf, policy: &TlsPolicy, algorithms: &SignatureAlgorithms) -> Result<Self, BuildError> {
        let own = Arc::new(SingleCertAndKey::from(certified_key(leaf.chain(), leaf.key())?));
        let provider = Arc::new(provider(policy, MESH_ALGORITHMS));
        let versions = &versions(policy);
        let verifier = Arc::new(PeerVerifier { algorithms: algorithms.clone(), signatures: MESH_ALGORITHMS });

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| build_error("policy", &error))?
            .with_client_cert_verifier(verifier.clone())
            .with_cert_resolver(own.clone());
        // Our order of suites, not the client's: libraries put AES-256 first by habit, which costs a tenth in bulk.
        server.ignore_client_order = true;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        // A compressed chain could unpack to far more than the verifier's bound.
        server.cert_compressors = Vec::new();
        server.cert_decompressors = Vec::new();

        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| build_error("policy", &error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(own);
        let client = without_memory(client);
        must_be_fips(server.fips() && client.fips())?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

impl MeshContext for Mesh {
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError> {
        let connection = UnbufferedServerConnection::new(self.server.clone()).map_err(|error| session_error(&error))?;
        Ok(Box::new(session::Mesh::new(Unbuffered::new(connection))))
    }

    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError> {
        // rustls asks for a name even where nobody looks at it. It sends no SNI for an address, so an address stands
        // for "no name" (RFC 6066, section 3: only DNS names are legal there).
        let name = server_name
            .and_then(|name| ServerName::try_from(name).ok())
            .map_or_else(|| ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), |name| name.to_owned());
        let connection =
            UnbufferedClientConnection::new(self.client.clone(), name).map_err(|error| session_error(&error))?;
        Ok(Box::new(session::Mesh::new(Unbuffered::new(connection))))
    }
}

/// How we talk to the agent.
#[derive(Debug)]
pub(crate) struct Agent {
    client: Arc<ClientConfig>,
}

impl Agent {
    /// Builds a client that knows the agent by its name and the given authorities.
    pub(crate) fn build(settings: &AgentTls) -> Result<Self, BuildError> {
        // The agent's certificate is whatever the operator made for it, so the library's whole list of signatures
        // counts here.
        let signatures = aws_lc_rs::default_provider().signature_verification_algorithms;
        let policy = TlsPolicy::default();
        let provider = Arc::new(provider(&policy, signatures));
        let verifier: Arc<dyn ServerCertVerifier> = match settings.verification {
            AgentVerification::Full => named(&settings.roots, &provider)?,
            AgentVerification::Off => Arc::new(AnyCertificate { signatures }),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(&policy))
            .map_err(|error| build_error("policy", &error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let client = match &settings.client {
            Some((chain, key)) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified_key(chain, key)?)))
            }
            None => builder.with_no_client_auth(),
        };
        let client = without_memory(client);
        must_be_fips(client.fips())?;
        Ok(Self { client: Arc::new(client) })
    }
}

impl AgentContext for Agent {
    fn connect(&self, server_name: &str) -> Result<Box<dyn AgentSession>, SessionError> {
        let name = ServerName::try_from(server_name)
            .map_err(|_| SessionError::Internal(format!("{server_name:?} is neither a DNS name nor an IP address")))?;
        let connection = UnbufferedClientConnection::new(self.client.clone(), name.to_owned())
            .map_err(|error| session_error(&error))?;
        Ok(Box::new(session::Agent::new(Unbuffered::new(connection))))
    }
}

/// A chain with its key, once it is sure that they belong together.
pub(crate) fn certified_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, BuildError> {
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key.clone_key())
        .map_err(|error| build_error("key", &error))?;
    let own = CertifiedKey::new(chain.to_vec(), key);
    own.keys_match().map_err(|error| build_error("key", &error))?;
    Ok(own)
}

/// A client that keeps nothing from one connection to the next, and tells nothing that it need not.
fn without_memory(mut client: ClientConfig) -> ClientConfig {
    // By default rustls keeps sessions by server name, which all instances of an upstream share: a resumed session
    // would skip the verifier, even after its root was removed.
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;
    client.alpn_protocols = Vec::new();
    client.cert_compressors = Vec::new();
    client.cert_decompressors = Vec::new();
    client
}

/// The ordinary verifier: chain, validity and name.
fn named(
    certificates: &[CertificateDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, BuildError> {
    let mut roots = RootCertStore::empty();
    // The system's bundle may hold entries that cannot be anchors; one of them must not take the others along.
    roots.add_parsable_certificates(certificates.iter().cloned());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| BuildError::Refused { what: "roots", why: error.to_string() })?;
    Ok(verifier)
}

/// How the handshake's own signature is verified: the three methods that both verifier traits of rustls ask for, and
/// that differ in nothing but the trait.
macro_rules! signatures_of_the_handshake {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, leaf, signed, &self.signatures)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, leaf, signed, &self.signatures)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.signatures.supported_schemes()
        }
    };
}

/// Asks core about each peer of the mesh. Knows only the configuration; who is expected lies in the judgement slot.
#[derive(Debug)]
struct PeerVerifier {
    /// What core verifies certificates with.
    algorithms: SignatureAlgorithms,
    /// The same for the handshake, in rustls's form.
    signatures: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn ask(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        // One more than is allowed is enough to be refused, so a list of thousands is not copied.
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf)
            .chain(others)
            .take(MAX_CHAIN_CERTIFICATES + 1)
            .map(|certificate| CertificateDer::from(certificate.as_ref()))
            .collect();
        judgement::decide(&chain, &self.algorithms).map_err(refusal)
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// None: a Go client whose root is not among the hints would send no certificate at all.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.ask(leaf, others).map(|()| ClientCertVerified::assertion())
    }

    signatures_of_the_handshake!();
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.ask(leaf, others).map(|()| ServerCertVerified::assertion())
    }

    signatures_of_the_handshake!();
}

/// Takes any certificate of the agent, since the operator said so; the handshake must still be signed by its key.
#[derive(Debug)]
struct AnyCertificate {
    signatures: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures_of_the_handshake!();
}
