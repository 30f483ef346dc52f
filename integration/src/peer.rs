//! Peers of the mesh made by hand: clients and servers on rustls with any certificate, and plain TCP ones.

use std::{
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
};

use anyhow::{Context, Result, ensure};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use crate::{
    agent::Https,
    wait::{self, SOON},
};

/// A chain and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// As it came, for programs that read files.
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            chain_pem: self.chain_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl Identity {
    pub(crate) fn from_pem(chain: &str, key: &str) -> Result<Self> {
        let certificates = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            chain: certificates.context("the chain is not PEM")?,
            key: PrivateKeyDer::from_pem_slice(key.as_bytes()).context("the key is not PEM")?,
            chain_pem: chain.to_owned(),
            key_pem: key.to_owned(),
        })
    }

    /// With more certificates behind it.
    pub(crate) fn with(mut self, pem: &str) -> Result<Self> {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            self.chain.push(certificate.context("not PEM")?);
        }
        self.chain_pem.push_str(pem);
        Ok(self)
    }

    /// From when and until when the leaf is good, as Consul writes it (RFC 3339).
    pub(crate) fn validity(&self) -> Result<(String, String)> {
        let leaf = self.chain.first().context("an empty chain")?;
        let (_, parsed) = X509Certificate::from_der(leaf).context("no certificate")?;
        let written = |time: x509_parser::time::ASN1Time| {
            time.to_datetime().format(&time::format_description::well_known::Rfc3339).context("a time out of range")
        };
        Ok((written(parsed.validity().not_before)?, written(parsed.validity().not_after)?))
    }

    pub(crate) fn serial(&self) -> Result<String> {
        serial(self.chain.first().context("an empty chain")?)
    }
}

/// The serial number of a certificate as lower-case hex bytes with colons.
pub(crate) fn serial(certificate: &CertificateDer<'_>) -> Result<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).context("no certificate")?;
    let bytes = parsed.raw_serial();
    let bytes = if bytes.len() > 1 && bytes[0] == 0 { &bytes[1..] } else { bytes };
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}

/// The URIs in a certificate.
pub(crate) fn uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            uris.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }));
        }
    }
    uris
}

/// Which versions a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    V12,
    V13,
    Both,
}

impl Tls {
    /// Both versions, one after the other.
    pub(crate) const EACH: [Self; 2] = [Self::V12, Self::V13];

    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static V12: [&SupportedProtocolVersion; 1] = [&TLS12];
        static V13: [&SupportedProtocolVersion; 1] = [&TLS13];
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
        match self {
            Self::V12 => &V12,
            Self::V13 => &V13,
            Self::Both => &BOTH,
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A client of the mesh. By default it believes any server that proves its key and remembers what it was shown.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) identity: Option<Identity>,
    pub(crate) tls: Tls,
    pub(crate) alpn: Vec<Vec<u8>>,
    pub(crate) server_name: Option<String>,
    /// Check the server's chain against these.
    pub(crate) roots: Option<Vec<String>>,
    /// Keep sessions and offer them again.
    pub(crate) resume: Option<rustls::client::Resumption>,
}

impl Client {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity: Some(identity),
            tls: Tls::Both,
            alpn: Vec::new(),
            server_name: None,
            roots: None,
            resume: None,
        }
    }

    pub(crate) fn anonymous() -> Self {
        Self { identity: None, tls: Tls::Both, alpn: Vec::new(), server_name: None, roots: None, resume: None }
    }

    #[must_use]
    pub(crate) fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    fn config(&self) -> Result<ClientConfig> {
        let verifier = Arc::new(AnyServer { roots: self.roots.clone(), provider: provider() });
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(self.tls.versions())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_sni = self.server_name.is_some();
        config.resumption = self.resume.clone().unwrap_or_else(rustls::client::Resumption::disabled);
        Ok(config)
    }

    /// Connects and shakes hands. On TLS 1.3 this can succeed although the server will refuse.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<MeshClient> {
        self.shake(crate::app::connect(address).await?).await
    }

    async fn shake(&self, tcp: TcpStream) -> Result<MeshClient> {
        tcp.set_nodelay(true)?;
        let name = self.server_name.clone().unwrap_or_else(|| "mesh.invalid".to_owned());
        let connector = TlsConnector::from(Arc::new(self.config()?));
        let shake = connector.connect(ServerName::try_from(name)?, tcp);
        let stream = wait::within("a handshake", SOON, shake).await?.context("the handshake failed")?;
        Ok(MeshClient(stream))
    }

    /// The server refuses: during the handshake or right after it, and not a byte of data comes. Gives what was seen.
    pub(crate) async fn is_refused(&self, address: SocketAddr) -> Result<String> {
        // Whoever does not listen has refused nobody.
        let tcp = crate::app::connect(address).await?;
        let mut stream = match self.shake(tcp).await {
            Ok(stream) => stream,
            Err(error) => return Ok(format!("{error:#}")),
        };
        // On TLS 1.3 the verdict comes after our own last word.
        if let Err(error) = stream.write_all(b"a byte that must not arrive").await {
            // A reset is told once: a read after it would look like an end.
            return Ok(error.to_string());
        }
        let mut buffer = [0; 1024];
        match wait::within("a refusal", SOON, stream.read(&mut buffer)).await? {
            Ok(0) => Ok("close_notify".to_owned()),
            Ok(read) => anyhow::bail!("{read} bytes came on a connection that should be refused"),
            Err(error) => Ok(error.to_string()),
        }
    }
}

/// A connection of a [`Client`].
pub(crate) struct MeshClient(client::TlsStream<TcpStream>);

impl MeshClient {
    /// The serial number of the server's leaf.
    pub(crate) fn server_serial(&self) -> Result<String> {
        serial(self.server_chain()?.first().context("no certificate")?)
    }

    /// What the server sent.
    pub(crate) fn server_chain(&self) -> Result<&[CertificateDer<'static>]> {
        self.0.get_ref().1.peer_certificates().context("the server sent no certificate")
    }

    pub(crate) fn alpn(&self) -> Option<Vec<u8>> {
        self.0.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
    }

    pub(crate) fn resumed(&self) -> bool {
        self.0.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// TLS 1.3: new keys, and the peer is asked for the same.
    pub(crate) fn update_keys(&mut self) -> Result<()> {
        Ok(self.0.get_mut().1.refresh_traffic_keys()?)
    }

    /// The TCP connection alone, to end it without a close_notify.
    pub(crate) fn into_tcp(self) -> TcpStream {
        self.0.into_inner().0
    }

    /// Ends by a reset.
    pub(crate) fn reset(self) -> Result<()> {
        reset(self.into_tcp())
    }
}

/// Closes with a reset instead of a FIN.
pub(crate) fn reset(stream: TcpStream) -> Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
    drop(stream);
    Ok(())
}

macro_rules! delegate {
    ($name:ident) => {
        impl AsyncRead for $name {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut TaskContext<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_read(cx, buffer)
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut TaskContext<'_>,
                bytes: &[u8],
            ) -> Poll<std::io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(cx, bytes)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(cx)
            }
        }
    };
}

delegate!(MeshClient);
delegate!(MeshServerStream);

/// A server of the mesh, as a sidecar or a native application is one.
pub(crate) struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    shaken: Arc<AtomicU64>,
    handed: tokio::sync::Mutex<mpsc::UnboundedReceiver<MeshServerStream>>,
    task: JoinHandle<()>,
}

/// How a [`Server`] is to be.
#[derive(Clone)]
pub(crate) struct ServerOptions {
    pub(crate) identity: Identity,
    /// Clients must chain to these; without any, every client passes that proves its key.
    pub(crate) roots: Vec<String>,
    pub(crate) tls: Tls,
    pub(crate) address: SocketAddr,
    /// Hand connections to the test instead of echoing.
    pub(crate) hand: bool,
    /// Issue session tickets.
    pub(crate) tickets: bool,
}

impl ServerOptions {
    pub(crate) fn new(identity: Identity, roots: Vec<String>) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { identity, roots, tls: Tls::Both, address, hand: false, tickets: false }
    }
}

impl Server {
    pub(crate) async fn start(options: &ServerOptions) -> Result<Self> {
        let verifier: Arc<dyn ClientCertVerifier> = if options.roots.is_empty() {
            Arc::new(AnyClient(provider()))
        } else {
            WebPkiClientVerifier::builder_with_provider(Arc::new(store(&options.roots)?), provider()).build()?
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(options.tls.versions())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(options.identity.chain.clone(), options.identity.key.clone_key())?;
        if !options.tickets {
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        }
        let listener = TcpListener::bind(options.address).await?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (accepted, shaken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, done) = (Arc::clone(&accepted), Arc::clone(&shaken));
        let (hand, handed) = mpsc::unbounded_channel();
        let keep = options.hand;
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, done, hand) = (acceptor.clone(), Arc::clone(&done), hand.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut stream = MeshServerStream(stream);
                    if keep {
                        let _ = hand.send(stream);
                    } else {
                        let _ = echo(&mut stream).await;
                    }
                });
            }
        });
        Ok(Self { address, accepted, shaken, handed: tokio::sync::Mutex::new(handed), task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// TCP connections so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Handshakes that this side finished so far.
    pub(crate) fn shaken(&self) -> u64 {
        self.shaken.load(Ordering::Relaxed)
    }

    /// The next connection, where they are handed.
    pub(crate) async fn next(&self) -> Result<MeshServerStream> {
        let mut handed = self.handed.lock().await;
        wait::within("a connection at the mesh server", SOON, handed.recv()).await?.context("the server is gone")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo(stream: &mut MeshServerStream) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            stream.shutdown().await?;
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
        stream.flush().await?;
    }
}

/// A connection at a [`Server`].
pub(crate) struct MeshServerStream(server::TlsStream<TcpStream>);

impl MeshServerStream {
    /// The URIs in the client's certificate.
    pub(crate) fn client_uris(&self) -> Result<Vec<String>> {
        let chain = self.0.get_ref().1.peer_certificates().context("the client sent no certificate")?;
        let (_, parsed) = X509Certificate::from_der(chain.first().context("an empty chain")?)?;
        Ok(uris(&parsed))
    }

    pub(crate) fn resumed(&self) -> bool {
        self.0.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    pub(crate) fn into_tcp(self) -> TcpStream {
        self.0.into_inner().0
    }
}

/// TLS in front of the embedded agent's plain HTTP.
pub(crate) struct TlsFront {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl TlsFront {
    pub(crate) async fn start(files: &Https, target: SocketAddr) -> Result<Self> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let identity = Identity::from_pem(&read(&files.cert)?, &read(&files.key)?)?;
        let roots = store(&[read(&files.ca)?])?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(Tls::Both.versions())?
            .with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?,
            )
            .with_single_cert(identity.chain, identity.key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(tcp).await?;
                    let mut plain = TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut stream, &mut plain).await
                });
            }
        });
        Ok(Self { address, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn store(roots: &[String]) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for pem in roots {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            store.add(certificate.context("a root is not PEM")?)?;
        }
    }
    ensure!(!store.is_empty(), "no roots");
    Ok(store)
}

/// Believes a server that proves its key, and where roots are given, that chains to them. The name plays no part.
#[derive(Debug)]
struct AnyServer {
    roots: Option<Vec<String>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if let Some(roots) = &self.roots {
            let store = store(roots).map_err(|error| TlsError::General(error.to_string()))?;
            let algorithms = self.provider.signature_verification_algorithms.all;
            let leaf = ParsedCertificate::try_from(leaf)?;
            rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, &store, intermediates, now, algorithms)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Believes a client that proves its key.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, leaf, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
