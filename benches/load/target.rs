//! The proxy under load, and how it is reached: over TLS as the service `web`, or in the clear.

use std::{
    io::{self, BufReader, Read, Write},
    net::{self, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    StreamOwned,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long a connection may take to carry its first byte.
const PATIENCE: Duration = Duration::from_secs(5);

/// Loopback addresses that connections come from in turn, so that ports in TIME_WAIT do not run out.
const SOURCES: u8 = 32;

/// What is read at once from a busy TLS connection: rustls alone reads 4 KiB.
const READ_AHEAD: usize = 128 * 1024;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address of the proxy, on loopback.
    #[arg(long)]
    target: SocketAddr,
    /// Speak TLS with the identity in this folder: `roots.pem`, `web.pem`, `web.key`.
    #[arg(long)]
    tls: Option<PathBuf>,
}

/// A connection of either kind.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// A connection of either kind that blocks, for a thread of its own.
pub(crate) trait Blocking: Read + Write + Send {}

impl<T: Read + Write + Send> Blocking for T {}

pub(crate) struct Target {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    name: ServerName<'static>,
    turn: AtomicU8,
}

impl Target {
    pub(crate) fn new(arguments: &Arguments) -> Result<Arc<Self>> {
        anyhow::ensure!(arguments.target.ip().is_loopback(), "the target is not on loopback");
        Ok(Arc::new(Self {
            address: arguments.target,
            tls: arguments.tls.as_deref().map(config).transpose()?,
            name: ServerName::try_from("localhost").context("a name")?,
            turn: AtomicU8::new(0),
        }))
    }

    /// A connection over which a mode and its answer have gone.
    pub(crate) async fn greet(&self, mode: &[u8], answer: usize) -> Result<Box<dyn Connection>> {
        let opened = async {
            let stream = self.tcp().await?;
            let mut connection: Box<dyn Connection> = match &self.tls {
                None => Box::new(stream),
                Some(config) => Box::new(TlsConnector::from(config.clone()).connect(self.name.clone(), stream).await?),
            };
            connection.write_all(mode).await?;
            connection.flush().await?;
            connection.read_exact(&mut vec![0; answer]).await?;
            Ok::<_, io::Error>(connection)
        };
        timeout(PATIENCE, opened).await.context("no answer through the proxy in 5 s")?.context("cannot connect")
    }

    /// A connection that blocks, over which a mode has gone.
    pub(crate) async fn blocking(&self, mode: &[u8]) -> Result<Box<dyn Blocking>> {
        let stream = self.tcp().await.context("cannot connect")?.into_std()?;
        self.greet_blocking(stream, mode).context("cannot connect")
    }

    /// A byte there and back over a new connection, as soon as the proxy lets one through.
    pub(crate) fn touch(&self) -> Result<()> {
        let stream = net::TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        self.greet_blocking(stream, b"e")?.read_exact(&mut [0])?;
        Ok(())
    }

    /// Has the library draw its first random numbers, which takes it longer than all later ones.
    pub(crate) fn warm_up(&self) -> Result<()> {
        if let Some(config) = &self.tls {
            let mut bytes = [0; 32];
            config.crypto_provider().secure_random.fill(&mut bytes).ok().context("no random numbers")?;
        }
        Ok(())
    }

    fn greet_blocking(&self, stream: net::TcpStream, mode: &[u8]) -> Result<Box<dyn Blocking>> {
        stream.set_nonblocking(false)?;
        let mut connection: Box<dyn Blocking> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let mut session = ClientConnection::new(config.clone(), self.name.clone())?;
                session.set_buffer_limit(Some(4 * READ_AHEAD));
                let ahead = ReadAhead(BufReader::with_capacity(READ_AHEAD, stream));
                Box::new(StreamOwned::new(session, ahead))
            }
        };
        connection.write_all(mode)?;
        connection.flush()?;
        Ok(connection)
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % SOURCES;
        socket.bind((Ipv4Addr::new(127, 1, 0, 1 + turn), 0).into())?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A socket that is read in large pieces and written as it comes.
struct ReadAhead(BufReader<net::TcpStream>);

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for ReadAhead {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(buffer)
    }

    fn write_vectored(&mut self, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// TLS 1.3, AES-128-GCM, X25519, a client certificate, and no resumption: the same work for all.
fn config(folder: &Path) -> Result<Arc<ClientConfig>> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    for root in certificates(folder, "roots.pem")? {
        roots.add(root)?;
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let key = folder.join("web.key");
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(chain)))
        .with_client_auth_cert(
            certificates(folder, "web.pem")?,
            PrivateKeyDer::from_pem_file(&key).with_context(|| format!("cannot read {}", key.display()))?,
        )?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn certificates(folder: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>> {
    let path = folder.join(name);
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
    all.with_context(|| format!("cannot read {}", path.display()))
}

/// Checks the chain in full and leaves out the DNS name, which the leaves of a mesh do not have.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
