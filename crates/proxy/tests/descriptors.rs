//! A process and its descriptors. Alone in its file, since the limit is that of the whole process.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::{fs::File, sync::Arc};

use lictor_conformance::sidecars::{ANY, Chain, PATIENCE, until};
use lictor_proxy::limits::{descriptor_limit, raise_descriptor_limit};
use lictor_rustls::RustlsBackend;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::timeout,
};

/// Asks the application through both sidecars, and whether it answered.
async fn asks(client: &mut TcpStream) -> bool {
    let mut got = [0; 4];
    client.write_all(b"ping").await.is_ok() && timeout(PATIENCE, client.read_exact(&mut got)).await.unwrap().is_ok()
}

/// Held by whoever changes the limit.
static LIMIT: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn the_soft_limit_is_raised_to_the_hard_one() {
    let _changing = LIMIT.lock().await;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum }).unwrap();
    assert_eq!(descriptor_limit(), 256);
    assert_eq!(raise_descriptor_limit(), limit.maximum.unwrap_or(u64::MAX));
    assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
    setrlimit(Resource::Nofile, limit).unwrap();
}

#[tokio::test]
async fn a_process_without_descriptors_loses_no_listener_and_no_open_connection() {
    let _changing = LIMIT.lock().await;
    let application = TcpListener::bind(ANY).await.unwrap();
    let chain = Chain::to(application.local_addr().unwrap(), Arc::new(RustlsBackend::new().unwrap())).await;
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = application.accept().await else { continue };
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let mut open = TcpStream::connect(chain.upstream).await.unwrap();
    assert!(asks(&mut open).await);

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum }).unwrap();
    // Made before the last descriptor is gone, connected after it.
    let waiting = tokio::net::TcpSocket::new_v4().unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
        assert!(taken.len() < 256, "the limit does not hold");
    }
    let mut waiting = waiting.connect(chain.upstream).await.unwrap();
    until(|| chain.web.metrics().upstreams["db"].accept_errors > 2).await;
    assert!(asks(&mut open).await, "what is open needs none");

    drop(taken);
    assert!(asks(&mut waiting).await, "who waited in the queue is served");
    assert!(asks(&mut TcpStream::connect(chain.upstream).await.unwrap()).await);
    setrlimit(Resource::Nofile, limit).unwrap();
}
