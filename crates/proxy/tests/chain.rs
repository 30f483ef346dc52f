//! Two sidecars and what lies between them: the whole way of a byte.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use lictor_conformance::sidecars::{ANY, Chain, PATIENCE, instance, until};
use lictor_rustls::RustlsBackend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

async fn chain(application: SocketAddr) -> Chain {
    Chain::to(application, Arc::new(RustlsBackend::new().unwrap())).await
}

#[tokio::test]
async fn a_request_travels_and_its_answer_comes_back_whole_after_both_half_closes() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    let (request, answer) = (vec![7u8; 300_000], vec![9u8; 200_000]);
    let (wanted, given) = (request.clone(), answer.clone());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = application.accept().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert!(got == wanted, "{} bytes", got.len());
        stream.write_all(&given).await.unwrap();
    });
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    client.write_all(&request).await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == answer, "{} bytes", got.len());
    serving.await.unwrap();
    until(|| chain.db.metrics().inbound.open == 0 && chain.web.metrics().upstreams["db"].open == 0).await;
    let inbound = chain.db.metrics().inbound;
    assert_eq!((inbound.rx_bytes, inbound.tx_bytes), (300_000, 200_000));
    let outbound = &chain.web.metrics().upstreams["db"];
    assert_eq!((outbound.rx_bytes, outbound.tx_bytes), (300_000, 200_000));
}

#[tokio::test]
async fn an_application_that_speaks_first_is_heard() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    let (mut stream, _) = timeout(PATIENCE, application.accept()).await.unwrap().unwrap();
    stream.write_all(b"220 ready").await.unwrap();
    let mut got = [0; 9];
    timeout(PATIENCE, client.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"220 ready");
}

#[tokio::test]
async fn a_denied_client_never_reaches_the_application() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    chain.doorman.denies.store(true, Ordering::SeqCst);
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    let mut got = Vec::new();
    let end = timeout(PATIENCE, client.read_to_end(&mut got)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    until(|| chain.db.metrics().inbound.refused.contains(&("denied", 1))).await;
    assert!(futures_util::FutureExt::now_or_never(application.accept()).is_none());
    assert_eq!(chain.doorman.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_socket_that_is_opened_and_closed_is_no_failure_and_no_question() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    drop(TcpStream::connect(chain.mesh_side).await.unwrap());
    until(|| chain.db.metrics().inbound.bare_opens == 1).await;
    let inbound = chain.db.metrics().inbound;
    assert!(inbound.handshake_failures.iter().all(|(_, count)| *count == 0), "{inbound:?}");
    assert_eq!(chain.doorman.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_application_that_resets_resets_the_other_one() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let (mut stream, _) = timeout(PATIENCE, application.accept()).await.unwrap().unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.unwrap();
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
    let end = timeout(PATIENCE, client.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_drain_lets_connections_finish_and_a_cut_resets_them() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let (mut stream, _) = timeout(PATIENCE, application.accept()).await.unwrap().unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.unwrap();
    let drained = chain.db.drain(std::time::Duration::from_millis(50)).await;
    assert_eq!(drained.forced, 1);
    let end = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let end = timeout(PATIENCE, client.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(TcpStream::connect(chain.mesh_side).await.is_err());
}

#[tokio::test]
async fn another_instance_is_tried_when_the_first_does_not_answer() {
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    // Bound and not listening, so that nobody else can have the port and whoever dials it is refused.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&ANY.into()).unwrap();
    let address = silent.local_addr().unwrap().as_socket().unwrap();
    chain.list.0.lock().push(instance("db", address));
    for _ in 0..20 {
        let mut client = TcpStream::connect(chain.upstream).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let (mut stream, _) = timeout(PATIENCE, application.accept()).await.unwrap().unwrap();
        let mut got = [0; 1];
        timeout(PATIENCE, stream.read_exact(&mut got)).await.unwrap().unwrap();
    }
}
