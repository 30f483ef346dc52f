//! Peers that mean harm, and servers that fail in the ways that are easy to answer wrongly.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::{io::ErrorKind, net::SocketAddr, sync::Arc};

use lictor_conformance::{
    certs::Mesh,
    sidecars::{ANY, Chain, PATIENCE, address_of, inbound, instance, outbound, roots, until},
};
use lictor_core::{
    AgentContext, AgentTls, Buf, Crypto, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, Progress, Session,
    SessionError, SignatureAlgorithms, TlsBackend, TlsPolicy,
    rotation::Rotation,
    tls::{BuildError, SigningKey},
};
use lictor_proxy::Sidecar;
use lictor_rustls::RustlsBackend;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

fn backend() -> Arc<dyn TlsBackend> {
    Arc::new(RustlsBackend::new().unwrap())
}

/// An address on which nobody listens, and what keeps others from it.
fn nobody() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&ANY.into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

/// Another instance of `db`, in front of `application`.
async fn second_instance(chain: &Chain, application: SocketAddr) -> Sidecar {
    let deps = chain.scene.deps(chain.db_source.clone(), &chain.doorman, &chain.list);
    let second = Sidecar::start(deps, inbound("db", ANY, application)).unwrap();
    let address = address_of(&second).await;
    chain.list.0.lock().push(instance("db", address));
    second
}

/// A hello that offers TLS 1.0 and nothing newer, as one record.
fn hello_of_tls_1_0() -> Vec<u8> {
    let mut body = vec![3, 1];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    let mut hello = vec![1, 0, 0, u8::try_from(body.len()).unwrap()];
    hello.extend(body);
    let mut record = vec![22, 3, 1, 0, u8::try_from(hello.len()).unwrap()];
    record.extend(hello);
    record
}

#[tokio::test]
async fn a_refused_client_with_more_to_say_reads_its_alert_and_a_clean_end() {
    let (nobody, _kept) = nobody();
    let chain = Chain::to(nobody, backend()).await;
    let mut client = TcpStream::connect(chain.mesh_side).await.unwrap();
    let mut said = hello_of_tls_1_0();
    said.resize(48 * 1024, 23);
    client.write_all(&said).await.unwrap();
    let mut alert = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut alert)).await.unwrap().unwrap();
    assert!(matches!(alert[..], [21, 3, _, 0, 2, 2, _]), "{alert:?}");
}

#[tokio::test]
async fn an_instance_that_proves_itself_and_resets_does_not_draw_the_connections() {
    let application = TcpListener::bind(ANY).await.unwrap();
    // The sidecar of the first instance has no application, so it resets every connection once it is proven.
    let (nobody, _kept) = nobody();
    let chain = Chain::to(nobody, backend()).await;
    let _good = second_instance(&chain, application.local_addr().unwrap()).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = application.accept().await {
            let _ = stream.write_all(b"good").await;
        }
    });
    let mut reset = 0;
    for _ in 0..100 {
        let mut got = Vec::new();
        // The reset may be there before the connection is known to stand.
        let visit = async { TcpStream::connect(chain.upstream).await?.read_to_end(&mut got).await };
        match timeout(PATIENCE, visit).await.unwrap() {
            Ok(_) => assert_eq!(got, b"good"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                reset += 1;
            }
        }
        // All are over before the next one, so that only what is remembered tells the two apart.
        until(|| chain.web.metrics().upstreams["db"].open == 0).await;
    }
    assert!(reset < 30, "{reset} of 100 went to the instance that resets");
}

#[tokio::test]
async fn a_connection_that_breaks_after_a_byte_is_not_made_again_elsewhere() {
    let application = TcpListener::bind(ANY).await.unwrap();
    let address = application.local_addr().unwrap();
    let chain = Chain::to(address, backend()).await;
    let _second = second_instance(&chain, address).await;
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let hearing = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = application.accept().await {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_ok() {
                hearing.lock().push(byte[0]);
            }
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    });
    for number in 0..20 {
        let mut client = TcpStream::connect(chain.upstream).await.unwrap();
        client.write_all(&[number]).await.unwrap();
        let end = timeout(PATIENCE, client.read_to_end(&mut Vec::new())).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(*heard.lock(), (0..20).collect::<Vec<u8>>(), "each request is heard once");
}

/// A source and the mesh whose root replaces its own; taken when that is done.
type Replaced = Arc<Mutex<Option<(Arc<Rotation>, Mesh)>>>;

/// A backend whose clients' roots are replaced in the very moment in which a server is proven: the server was judged
/// by the roots before, and has drawn the end of its handshake out until now.
struct Drawn {
    inner: Arc<dyn TlsBackend>,
    source: Replaced,
}

impl TlsBackend for Drawn {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn library(&self) -> String {
        self.inner.library()
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        self.inner.crypto(policy)
    }

    fn signature_algorithms(&self) -> &SignatureAlgorithms {
        self.inner.signature_algorithms()
    }

    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError> {
        self.inner.check_key(leaf)
    }

    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError> {
        let inner = self.inner.mesh_context(leaf, policy)?;
        Ok(Arc::new(DrawnContext { inner, source: self.source.clone() }))
    }

    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError> {
        self.inner.agent_context(settings)
    }

    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError> {
        self.inner.generate_p256()
    }
}

struct DrawnContext {
    inner: Arc<dyn MeshContext>,
    source: Replaced,
}

impl MeshContext for DrawnContext {
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError> {
        self.inner.accept()
    }

    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError> {
        let inner = self.inner.connect(server_name)?;
        Ok(Box::new(DrawnSession { inner, source: self.source.clone() }))
    }
}

struct DrawnSession {
    inner: Box<dyn MeshSession>,
    source: Replaced,
}

impl Session for DrawnSession {
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        self.inner.open(wire, plain, out)
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        self.inner.seal(plain, out)
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        self.inner.close(out)
    }
}

impl MeshSession for DrawnSession {
    fn handshake(&mut self, judge: &Judge, wire: &mut Buf, out: &mut Buf) -> Result<HandshakeStep, SessionError> {
        let step = self.inner.handshake(judge, wire, out);
        if matches!(step, Ok(HandshakeStep::Done(_)))
            && let Some((source, other)) = self.source.lock().take()
        {
            source.offer_roots(roots(&[&other.root]));
        }
        step
    }
}

#[tokio::test]
async fn a_server_whose_root_is_removed_during_its_handshake_gets_no_byte() {
    let application = TcpListener::bind(ANY).await.unwrap();
    let chain = Chain::to(application.local_addr().unwrap(), backend()).await;
    let source = chain.scene.source("web");
    let mut deps = chain.scene.deps(source.clone(), &chain.doorman, &chain.list);
    let removed = Arc::new(Mutex::new(Some((source, Mesh::new(1)))));
    deps.backend = Arc::new(Drawn { inner: deps.backend, source: removed });
    let web = Sidecar::start(deps, outbound("web", "db", ANY)).unwrap();
    let address = address_of(&web).await;
    // The reset may come before connect or write has looked.
    let talk = async {
        let mut client = TcpStream::connect(address).await?;
        client.write_all(b"secret").await?;
        client.read_to_end(&mut Vec::new()).await
    };
    let end = timeout(PATIENCE, talk).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let upstream = || web.metrics().upstreams["db"].clone();
    until(|| upstream().rejected.iter().map(|(_, count)| count).sum::<u64>() == 1).await;
    assert_eq!((upstream().tx_bytes, chain.db.metrics().inbound.rx_bytes), (0, 0));
}
