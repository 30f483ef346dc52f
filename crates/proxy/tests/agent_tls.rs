//! HTTPS to an agent, which here is a server over a session of the same library.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use lictor_conformance::sidecars::{ANY, Scene, roots};
use lictor_core::{
    AgentTls, Buf, ExpectedPeer, Judge, MeshContext, PeerPolicy, Progress, TlsBackend, TlsPolicy,
    rotation::system_clock,
    tls::AgentVerification,
    transport::{Bounds, Transport, TransportError},
};
use lictor_proxy::{
    agent_tls::TlsTransport,
    handshake::{Shaken, shake},
};
use lictor_rustls::RustlsBackend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const BOUNDS: Bounds = Bounds { deadline: Duration::from_secs(10), max_body: 100_000 };

/// A server that gives `answer` to each request on each of its connections.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    scene: Scene,
    backend: RustlsBackend,
}

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Answer {
    /// Answers with so many bytes.
    Body(usize),
    /// Answers with so many bytes and closes.
    LastBody(usize),
    /// Promises more than it sends, then ends without close_notify.
    Cut,
    /// Says nothing.
    Silence,
}

impl Server {
    async fn start(answer: Answer) -> Self {
        let backend = RustlsBackend::new().unwrap();
        let scene = Scene::new(Arc::new(RustlsBackend::new().unwrap()));
        let listener = TcpListener::bind(ANY).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let leaf = scene.leaf(&scene.mesh.root, "agent");
        let context = backend.mesh_context(&leaf, &TlsPolicy::default()).unwrap();
        let judge = Judge {
            expected: ExpectedPeer::ClientOf(leaf.identity().clone()),
            roots: Arc::new(roots(&[&scene.mesh.root])),
            policy: Arc::new(PeerPolicy::default()),
            now: system_clock()(),
        };
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, context.clone(), judge.clone(), answer));
            }
        });
        Self { address, connections, scene, backend }
    }

    fn client(&self, verification: AgentVerification) -> TlsTransport {
        let leaf = self.scene.leaf(&self.scene.mesh.root, "web");
        let client = Some((leaf.chain().to_vec(), leaf.key().clone_key()));
        let root = roots(&[&self.scene.mesh.root]).anchors()[0].certificate().clone();
        let settings = AgentTls { roots: vec![root], client, verification };
        let context = self.backend.agent_context(&settings).unwrap();
        TlsTransport::new(context, "127.0.0.1", self.address.port(), None).unwrap()
    }
}

async fn serve(mut stream: TcpStream, context: Arc<dyn MeshContext>, judge: Judge, answer: Answer) {
    let shaken = shake(&mut stream, context.accept().unwrap(), || judge.clone(), || {}).await;
    let Ok(Shaken { mut session, early, .. }) = shaken else { return };
    let (mut wire, mut plain, mut out) = (Buf::default(), Buf::default(), Buf::default());
    wire.append(&early);
    loop {
        let Ok(Progress::NeedInput) = session.open(&mut wire, &mut plain, &mut out) else { return };
        if plain.data().ends_with(b"\r\n\r\n") {
            assert!(plain.data().starts_with(b"GET /v1/agent/self?a=1 HTTP/1.1\r\n"));
            plain.clear();
            let (length, more) = match answer {
                Answer::Body(length) => (length, ""),
                Answer::LastBody(length) => (length, "Connection: close\r\n"),
                Answer::Cut => (10, ""),
                Answer::Silence => std::future::pending().await,
            };
            let mut reply = format!("HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nContent-Length: {length}\r\n{more}\r\n");
            reply.push_str(&"x".repeat(if matches!(answer, Answer::Cut) { 5 } else { length }));
            session.seal(reply.as_bytes(), &mut out).unwrap();
        }
        stream.write_all(&out.take()).await.unwrap();
        if matches!(answer, Answer::Cut) && plain.is_empty() && wire.is_empty() {
            return;
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => wire.append(&chunk[..n]),
            _ => return,
        }
    }
}

fn request() -> http::Request<Bytes> {
    http::Request::get("/v1/agent/self?a=1").body(Bytes::new()).unwrap()
}

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let server = Server::start(Answer::Body(50_000)).await;
    let client = server.client(AgentVerification::Off);
    for _ in 0..3 {
        let answer = client.exchange(request(), BOUNDS).await.unwrap();
        assert_eq!(answer.headers()["x-consul-index"], "7");
        assert_eq!(answer.body().len(), 50_000);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn requests_at_the_same_time_do_not_wait_for_each_other() {
    let server = Server::start(Answer::Body(10)).await;
    let client = server.client(AgentVerification::Off);
    let all = (0..4).map(|_| client.exchange(request(), BOUNDS));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer.unwrap().body().len(), 10);
    }
}

#[tokio::test]
async fn a_connection_that_the_agent_closed_is_replaced() {
    let server = Server::start(Answer::LastBody(10)).await;
    let client = server.client(AgentVerification::Off);
    for _ in 0..3 {
        assert_eq!(client.exchange(request(), BOUNDS).await.unwrap().body().len(), 10);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_agent_of_another_name_is_refused() {
    let server = Server::start(Answer::Body(10)).await;
    let error = server.client(AgentVerification::Full).exchange(request(), BOUNDS).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn an_agent_that_misses_our_certificate_is_quoted_with_what_to_do() {
    let server = Server::start(Answer::Body(10)).await;
    let settings = AgentTls { roots: Vec::new(), client: None, verification: AgentVerification::Off };
    let context = server.backend.agent_context(&settings).unwrap();
    let client = TlsTransport::new(context, "127.0.0.1", server.address.port(), None).unwrap();
    let error = client.exchange(request(), BOUNDS).await.unwrap_err().to_string();
    assert!(error.contains("alert 116 certificate_required"), "{error}");
    assert!(error.contains("CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"), "{error}");
}

#[tokio::test]
async fn an_answer_beyond_its_bound_is_an_error_of_its_own() {
    let server = Server::start(Answer::Body(BOUNDS.max_body + 1)).await;
    let error = server.client(AgentVerification::Off).exchange(request(), BOUNDS).await.unwrap_err();
    assert!(matches!(error, TransportError::TooLarge(most) if most == BOUNDS.max_body), "{error:?}");
}

#[tokio::test]
async fn half_an_answer_is_none() {
    let server = Server::start(Answer::Cut).await;
    let error = server.client(AgentVerification::Off).exchange(request(), BOUNDS).await.unwrap_err();
    assert!(matches!(error, TransportError::Broken(_)), "{error:?}");
}

#[tokio::test]
async fn an_agent_that_is_silent_costs_the_deadline_and_one_that_is_absent_nothing() {
    let server = Server::start(Answer::Silence).await;
    let bounds = Bounds { deadline: Duration::from_millis(200), ..BOUNDS };
    let client = server.client(AgentVerification::Off);
    let error = client.exchange(request(), bounds).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout(_)), "{error:?}");

    let refused = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let settings = AgentTls { roots: Vec::new(), client: None, verification: AgentVerification::Off };
    let context = server.backend.agent_context(&settings).unwrap();
    let client = TlsTransport::new(context, "127.0.0.1", refused.port(), None).unwrap();
    let error = client.exchange(request(), BOUNDS).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect(_)), "{error:?}");
}
