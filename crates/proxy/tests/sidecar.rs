//! One sidecar: what it opens when, what changes leave alone, whom it turns away, and how it ends.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use lictor_conformance::{
    certs::Mesh,
    sidecars::{ANY, Chain, Doorman, List, PATIENCE, Scene, address_of, inbound, instance, outbound, roots, until},
};
use lictor_core::{
    Authorizer, Destination, Discovery, DiscoveryError, Inbound, Instance, Permit, Refusal, rotation::Rotation,
};
use lictor_proxy::{BindPolicy, ListenerState, PathSnapshot, Sidecar, SidecarConfig, UpstreamBind, UpstreamConfig};
use lictor_rustls::RustlsBackend;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    time::{Instant, timeout},
};

fn scene() -> Scene {
    Scene::new(Arc::new(RustlsBackend::new().unwrap()))
}

async fn chain(application: SocketAddr) -> Chain {
    Chain::to(application, Arc::new(RustlsBackend::new().unwrap())).await
}

/// An application that sends back what it gets, and its address.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

async fn ask(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut got = [0; 5];
    stream.write_all(b"hello").await?;
    timeout(PATIENCE, stream.read_exact(&mut got)).await.expect("an answer in time")?;
    assert_eq!(&got, b"hello");
    Ok(())
}

/// How the other side ended `stream`; `None` for a clean end.
async fn end_of(stream: &mut TcpStream) -> Option<ErrorKind> {
    let end = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("it ends in time");
    end.err().map(|error| error.kind())
}

/// The same for a new connection to `address` that sends `bytes`; an end may come before connect has looked.
async fn end_at(address: SocketAddr, bytes: &[u8]) -> Option<ErrorKind> {
    match TcpStream::connect(address).await {
        Ok(mut stream) => match stream.write_all(bytes).await {
            Ok(()) => end_of(&mut stream).await,
            Err(error) => Some(error.kind()),
        },
        Err(error) => Some(error.kind()),
    }
}

fn count(pairs: &[(&'static str, u64)], name: &str) -> u64 {
    pairs.iter().find(|(label, _)| *label == name).map(|(_, count)| *count).expect("a name that is counted")
}

fn inbound_of(sidecar: &Sidecar) -> PathSnapshot {
    sidecar.metrics().inbound
}

fn only_outbound(config: &SidecarConfig) -> &UpstreamConfig {
    config.upstreams.values().next().unwrap()
}

#[tokio::test]
async fn the_mesh_side_refuses_until_there_is_material_and_then_opens() {
    let (scene, doorman, list) = (scene(), Arc::default(), Arc::default());
    let source = scene.empty_source("db");
    let reserved = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let deps = scene.deps(source.clone(), &doorman, &list);
    let sidecar = Sidecar::start(deps, inbound("db", reserved, echo().await)).unwrap();
    assert_eq!(sidecar.listeners()[0].state, ListenerState::WaitingForMaterial);
    assert_eq!(TcpStream::connect(reserved).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    source.offer_roots(roots(&[&scene.mesh.root]));
    source.offer_leaf(scene.leaf(&scene.mesh.root, "db")).unwrap();
    assert_eq!(address_of(&sidecar).await, reserved);
    TcpStream::connect(reserved).await.unwrap();
    assert!(sidecar.metrics().material_generation.is_some());
}

#[tokio::test]
async fn without_material_an_application_is_turned_away_and_nothing_is_dialled() {
    let (scene, doorman, list) = (scene(), Arc::default(), Arc::new(List::default()));
    let server = TcpListener::bind(ANY).await.unwrap();
    list.0.lock().push(instance("db", server.local_addr().unwrap()));
    let mut config = outbound("web", "db", ANY);
    config.upstreams.values_mut().for_each(|upstream| upstream.connect_timeout = Duration::from_millis(100));
    let sidecar = Sidecar::start(scene.deps(scene.empty_source("web"), &doorman, &list), config).unwrap();
    assert_eq!(end_at(address_of(&sidecar).await, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| count(&sidecar.metrics().upstreams["db"].ended, "no_material") == 1).await;
    assert!(futures_util::FutureExt::now_or_never(server.accept()).is_none());
}

#[tokio::test]
async fn the_same_configuration_again_changes_nothing() {
    let chain = chain(echo().await).await;
    let (db, web) = (inbound("db", ANY, echo().await), outbound("web", "db", ANY));
    let before = chain.web.listeners();
    let applied = chain.web.apply(web);
    assert!(applied.added.is_empty() && applied.changed.is_empty() && applied.removed.is_empty());
    assert_eq!(chain.web.listeners(), before, "the port that the system chose is still the same");
    let applied = chain.db.apply(db);
    assert!(applied.inbound_changed, "another application is another configuration");
    assert_eq!(address_of(&chain.db).await, chain.mesh_side, "and the same listener");
}

#[tokio::test]
async fn a_new_target_counts_for_new_connections_and_leaves_old_ones_alone() {
    let chain = chain(echo().await).await;
    let mut old = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut old).await.unwrap();
    let other = TcpListener::bind(ANY).await.unwrap();
    let config = inbound("db", ANY, other.local_addr().unwrap());
    assert!(chain.db.apply(config).inbound_changed);
    let mut new = TcpStream::connect(chain.upstream).await.unwrap();
    new.write_all(b"to the new one").await.unwrap();
    let (mut stream, _) = timeout(PATIENCE, other.accept()).await.unwrap().unwrap();
    let mut got = [0; 14];
    stream.read_exact(&mut got).await.unwrap();
    ask(&mut old).await.unwrap();
}

#[tokio::test]
async fn a_removed_upstream_closes_its_port_and_keeps_its_connections() {
    let chain = chain(echo().await).await;
    let mut old = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut old).await.unwrap();
    let mut config = outbound("web", "db", ANY);
    config.upstreams.clear();
    assert_eq!(chain.web.apply(config).removed, ["db"]);
    assert!(chain.web.listeners().is_empty());
    let closed = async { while TcpStream::connect(chain.upstream).await.is_ok() {} };
    timeout(PATIENCE, closed).await.unwrap();
    ask(&mut old).await.unwrap();
}

#[tokio::test]
async fn an_upstream_that_is_added_or_moved_leaves_the_others_alone() {
    let chain = chain(echo().await).await;
    let mut old = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut old).await.unwrap();
    let mut config = outbound("web", "db", ANY);
    let mut second = only_outbound(&config).clone();
    second.bind = UpstreamBind::Tcp("127.0.0.2:0".parse().unwrap());
    config.upstreams.insert("second".to_owned(), second);
    assert_eq!(chain.web.apply(config.clone()).added, ["second"]);
    let address = |name: &str| match chain.web.listeners().into_iter().find(|l| l.upstream.as_deref() == Some(name)) {
        Some(listener) => match listener.state {
            ListenerState::Listening(address) => address,
            _ => None,
        },
        None => None,
    };
    assert_eq!(address("db"), Some(chain.upstream));
    ask(&mut TcpStream::connect(address("second").unwrap()).await.unwrap()).await.unwrap();
    config.upstreams.get_mut("second").unwrap().bind = UpstreamBind::Tcp("127.0.0.3:0".parse().unwrap());
    assert_eq!(chain.web.apply(config).changed, ["second"]);
    until(|| address("second").is_some_and(|address| address.ip().to_string() == "127.0.0.3")).await;
    assert_eq!(address("db"), Some(chain.upstream));
    ask(&mut old).await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_ends_the_start_where_the_operator_wrote_it() {
    let (scene, doorman, list) = (scene(), Arc::default(), Arc::default());
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap();
    for config in [inbound("web", address, address), outbound("web", "db", address)] {
        let error = Sidecar::start(scene.deps(scene.source("web"), &doorman, &list), config).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

#[tokio::test]
async fn an_address_in_use_that_the_registration_asks_for_is_tried_again_while_others_serve() {
    let chain = chain(echo().await).await;
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let address = taken.local_addr().unwrap();
    let mut config = outbound("web", "db", ANY);
    let mut second = only_outbound(&config).clone();
    (second.bind, second.bind_policy) = (UpstreamBind::Tcp(address), BindPolicy::Retry);
    config.upstreams.insert("second".to_owned(), second);
    assert!(chain.web.apply(config).failed.is_empty());
    let state = || chain.web.listeners().into_iter().find(|l| l.upstream.as_deref() == Some("second")).unwrap().state;
    assert!(matches!(state(), ListenerState::Failed { retrying: true, .. }));
    ask(&mut TcpStream::connect(chain.upstream).await.unwrap()).await.unwrap();
    drop(taken);
    until(|| state() == ListenerState::Listening(Some(address))).await;
    ask(&mut TcpStream::connect(address).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_upstream_on_a_unix_socket_serves() {
    let chain = chain(echo().await).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db.sock");
    let mut config = outbound("web", "db", ANY);
    config.upstreams.get_mut("db").unwrap().bind = UpstreamBind::Unix { path: path.clone(), mode: 0o600 };
    assert_eq!(chain.web.apply(config.clone()).changed, ["db"]);
    until(|| path.exists()).await;
    ask(&mut UnixStream::connect(&path).await.unwrap()).await.unwrap();
    config.upstreams.clear();
    chain.web.apply(config);
    until(|| !path.exists()).await;
}

#[tokio::test]
async fn over_the_limit_a_client_is_reset_before_any_cryptography() {
    let application = echo().await;
    let chain = chain(application).await;
    let mut config = inbound("db", ANY, application);
    config.inbound.as_mut().unwrap().max_connections = Some(1);
    chain.db.apply(config);
    let mut first = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut first).await.unwrap();
    assert_eq!(end_at(chain.mesh_side, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| count(&inbound_of(&chain.db).limited, "inbound_connections") == 1).await;
    drop(first);
    until(|| chain.db.metrics().connections_in_use == 0).await;
    ask(&mut TcpStream::connect(chain.upstream).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn who_has_proven_nothing_takes_no_place_at_the_application() {
    let application = echo().await;
    let chain = chain(application).await;
    let mut config = inbound("db", ANY, application);
    config.inbound.as_mut().unwrap().max_connections = Some(2);
    chain.db.apply(config);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(chain.mesh_side).await.unwrap());
    }
    until(|| chain.db.metrics().handshakes_in_flight == 10).await;
    ask(&mut TcpStream::connect(chain.upstream).await.unwrap()).await.unwrap();
    assert_eq!(count(&inbound_of(&chain.db).limited, "inbound_connections"), 0);
}

#[tokio::test]
async fn idle_sockets_of_five_times_the_cap_do_not_keep_a_good_client_out() {
    let application = echo().await;
    let chain = chain(application).await;
    let mut config = inbound("db", ANY, application);
    (config.limits.handshakes, config.limits.handshakes_per_source) = (8, 8);
    chain.db.apply(config);
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(chain.mesh_side).await.unwrap());
    }
    until(|| count(&inbound_of(&chain.db).handshake_failures, "handshake_given_up") == 32).await;
    ask(&mut TcpStream::connect(chain.upstream).await.unwrap()).await.unwrap();
    assert_eq!(chain.db.metrics().handshakes_in_flight, 7);
}

#[tokio::test]
async fn a_silent_client_is_closed_at_the_handshake_deadline() {
    let application = echo().await;
    let chain = chain(application).await;
    let mut config = inbound("db", ANY, application);
    config.inbound.as_mut().unwrap().handshake_timeout = Duration::from_millis(100);
    chain.db.apply(config);
    // Taken before, since the deadline may have begun when the connection is looked at here.
    let began = Instant::now();
    let mut silent = TcpStream::connect(chain.mesh_side).await.unwrap();
    assert_eq!(end_of(&mut silent).await, Some(ErrorKind::ConnectionReset));
    assert!(began.elapsed() >= Duration::from_millis(100));
    until(|| count(&inbound_of(&chain.db).handshake_failures, "handshake_timeout") == 1).await;
    assert_eq!(chain.doorman.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn plaintext_is_refused_without_a_question_and_without_an_application() {
    let application = TcpListener::bind(ANY).await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    let _ = end_at(chain.mesh_side, b"GET / HTTP/1.1\r\n\r\n").await;
    until(|| count(&inbound_of(&chain.db).handshake_failures, "handshake_not_tls") == 1).await;
    assert_eq!(chain.doorman.asked.load(Ordering::SeqCst), 0);
    assert!(futures_util::FutureExt::now_or_never(application.accept()).is_none());
}

#[tokio::test]
async fn an_application_that_is_down_ends_its_client_by_a_reset() {
    let down = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let chain = chain(down).await;
    assert_eq!(end_at(chain.upstream, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| count(&inbound_of(&chain.db).ended, "application_unreachable") == 1).await;
}

#[tokio::test]
async fn a_server_of_another_identity_gets_no_byte() {
    let application = TcpListener::bind(ANY).await.unwrap();
    let chain = chain(application.local_addr().unwrap()).await;
    chain.list.0.lock()[0].datacenter = "dc2".to_owned();
    assert_eq!(end_at(chain.upstream, b"secret").await, Some(ErrorKind::ConnectionReset));
    until(|| count(&chain.web.metrics().upstreams["db"].rejected, "wrong_service") == 1).await;
    assert!(futures_util::FutureExt::now_or_never(application.accept()).is_none());
}

#[tokio::test]
async fn an_upstream_without_instances_resets_at_once() {
    let chain = chain(echo().await).await;
    chain.list.0.lock().clear();
    assert_eq!(end_at(chain.upstream, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| count(&chain.web.metrics().upstreams["db"].ended, "no_instance") == 1).await;
}

#[tokio::test]
async fn a_server_that_never_answers_costs_the_connect_timeout_and_no_more() {
    let chain = chain(echo().await).await;
    let silent = TcpListener::bind(ANY).await.unwrap();
    *chain.list.0.lock() = vec![instance("db", silent.local_addr().unwrap())];
    let mut config = outbound("web", "db", ANY);
    config.upstreams.get_mut("db").unwrap().connect_timeout = Duration::from_millis(300);
    chain.web.apply(config);
    let began = Instant::now();
    assert_eq!(end_at(chain.upstream, b"").await, Some(ErrorKind::ConnectionReset));
    assert!(began.elapsed() >= Duration::from_millis(300));
    until(|| count(&chain.web.metrics().upstreams["db"].handshake_failures, "handshake_timeout") == 1).await;
}

/// Permits, and takes its time: for ever, or until it has replaced the roots.
struct Slow {
    replaces: Option<(Arc<Rotation>, Mesh)>,
}

#[async_trait]
impl Authorizer for Slow {
    async fn authorize(&self, _: &Inbound<'_>) -> Result<Permit, Refusal> {
        match &self.replaces {
            Some((source, other)) => source.offer_roots(roots(&[&other.root])),
            None => std::future::pending().await,
        };
        Ok(Permit::granted_by("too late".to_owned(), SystemTime::now()))
    }
}

async fn behind(
    authorizer: impl FnOnce(&Scene, &Arc<Rotation>) -> Slow,
) -> (Sidecar, Sidecar, SocketAddr, TcpListener) {
    let (scene, doorman, list) = (scene(), Arc::<Doorman>::default(), Arc::new(List::default()));
    let application = TcpListener::bind(ANY).await.unwrap();
    let source = scene.source("db");
    let mut deps = scene.deps(source.clone(), &doorman, &list);
    deps.authorizer = Arc::new(authorizer(&scene, &source));
    let mut config = inbound("db", ANY, application.local_addr().unwrap());
    config.inbound.as_mut().unwrap().handshake_timeout = Duration::from_secs(2);
    let db = Sidecar::start(deps, config).unwrap();
    let mesh_side = address_of(&db).await;
    list.0.lock().push(instance("db", mesh_side));
    let web = Sidecar::start(scene.deps(scene.source("web"), &doorman, &list), outbound("web", "db", ANY)).unwrap();
    let upstream = address_of(&web).await;
    (db, web, upstream, application)
}

#[tokio::test]
async fn an_authorizer_that_hangs_refuses_within_the_handshake_deadline() {
    let (db, _web, upstream, application) = behind(|_, _| Slow { replaces: None }).await;
    assert_eq!(end_at(upstream, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| inbound_of(&db).handshake_failures.iter().any(|(name, n)| *name == "handshake_timeout" && *n == 1)).await;
    assert!(futures_util::FutureExt::now_or_never(application.accept()).is_none());
}

#[tokio::test]
async fn a_root_that_is_removed_while_the_authorizer_thinks_no_longer_counts() {
    let replace = |_: &Scene, source: &Arc<Rotation>| Slow { replaces: Some((source.clone(), Mesh::new(1))) };
    let (db, _web, upstream, application) = behind(replace).await;
    assert_eq!(end_at(upstream, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| inbound_of(&db).rejected.iter().map(|(_, count)| count).sum::<u64>() == 1).await;
    assert!(futures_util::FutureExt::now_or_never(application.accept()).is_none());
}

/// A chain whose server judges open connections again each second, with one of them open.
async fn judged_again() -> (Chain, TcpStream) {
    let application = echo().await;
    let chain = chain(application).await;
    let mut config = inbound("db", ANY, application);
    config.inbound.as_mut().unwrap().reauthorize = Some(Duration::ZERO);
    chain.db.apply(config);
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut client).await.unwrap();
    (chain, client)
}

fn rejudged(chain: &Chain, outcome: &str) -> u64 {
    count(&chain.db.metrics().rejudged, outcome)
}

#[tokio::test]
async fn an_open_connection_is_judged_again_and_reset_when_the_policy_has_turned() {
    let (chain, mut client) = judged_again().await;
    until(|| rejudged(&chain, "permitted") > 0).await;
    ask(&mut client).await.unwrap();
    chain.doorman.denies.store(true, Ordering::SeqCst);
    assert_eq!(end_of(&mut client).await, Some(ErrorKind::ConnectionReset));
    until(|| count(&inbound_of(&chain.db).ended, "revoked") == 1).await;
    assert_eq!(rejudged(&chain, "revoked"), 1);
    assert_eq!(count(&chain.web.metrics().upstreams["db"].ended, "peer_reset"), 1);
    chain.doorman.denies.store(false, Ordering::SeqCst);
    ask(&mut TcpStream::connect(chain.upstream).await.unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_open_connection_does_not_outlive_the_root_of_its_peer_where_it_is_judged_again() {
    let (chain, mut client) = judged_again().await;
    let other = Mesh::new(1);
    chain.db_source.offer_roots(roots(&[&chain.scene.mesh.root, &other.root]));
    until(|| rejudged(&chain, "permitted") > 1).await;
    ask(&mut client).await.unwrap();
    chain.db_source.offer_roots(roots(&[&other.root]));
    assert_eq!(end_of(&mut client).await, Some(ErrorKind::ConnectionReset));
    until(|| count(&inbound_of(&chain.db).ended, "peer_lapsed") == 1).await;
}

/// Permits once, and then cannot decide.
#[derive(Default)]
struct Forgetful(std::sync::atomic::AtomicUsize);

#[async_trait]
impl Authorizer for Forgetful {
    async fn authorize(&self, _: &Inbound<'_>) -> Result<Permit, Refusal> {
        if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
            return Ok(Permit::granted_by("the first time".to_owned(), SystemTime::now()));
        }
        Err(Refusal { kind: lictor_core::RefusalKind::Unreachable, detail: "away".to_owned() })
    }
}

#[tokio::test]
async fn whoever_cannot_be_judged_again_lives_on() {
    let (scene, doorman, list) = (scene(), Arc::<Doorman>::default(), Arc::new(List::default()));
    let mut deps = scene.deps(scene.source("db"), &doorman, &list);
    deps.authorizer = Arc::new(Forgetful::default());
    let mut config = inbound("db", ANY, echo().await);
    config.inbound.as_mut().unwrap().reauthorize = Some(Duration::ZERO);
    let db = Sidecar::start(deps, config).unwrap();
    let mesh_side = address_of(&db).await;
    list.0.lock().push(instance("db", mesh_side));
    let deps = scene.deps(scene.source("web"), &doorman, &list);
    let web = Sidecar::start(deps, outbound("web", "db", ANY)).unwrap();
    let mut client = TcpStream::connect(address_of(&web).await).await.unwrap();
    ask(&mut client).await.unwrap();
    until(|| count(&db.metrics().rejudged, "undecided") >= 3).await;
    ask(&mut client).await.unwrap();
    assert_eq!(inbound_of(&db).open, 1);
}

#[tokio::test]
async fn open_connections_are_listed_with_both_identities_and_leave_the_list() {
    let chain = chain(echo().await).await;
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut client).await.unwrap();
    let (inbound, outbound) = (chain.db.connections(), chain.web.connections());
    assert_eq!((inbound.len(), outbound.len()), (1, 1));
    assert!(inbound[0].own_identity.ends_with("/svc/db") && inbound[0].peer_identity.ends_with("/svc/web"));
    assert!(outbound[0].own_identity.ends_with("/svc/web") && outbound[0].peer_identity.ends_with("/svc/db"));
    assert_eq!((inbound[0].rx_bytes, inbound[0].tx_bytes), (5, 5));
    assert_eq!(inbound[0].rule.as_deref(), Some("told so by the test"));
    assert_eq!(outbound[0].opener, Some(client.local_addr().unwrap()));
    drop(client);
    until(|| chain.db.connections().is_empty() && chain.web.connections().is_empty()).await;
}

#[tokio::test]
async fn while_inbound_drains_the_application_may_still_dial() {
    let chain = chain(echo().await).await;
    let mut config = inbound("db", ANY, echo().await);
    config.upstreams = outbound("db", "cache", ANY).upstreams;
    chain.db.apply(config);
    let ListenerState::Listening(Some(way_out)) = chain.db.listeners()[1].state else { panic!("it is open") };
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut client).await.unwrap();
    let deps = chain.scene.deps(chain.scene.source("cache"), &chain.doorman, &chain.list);
    let cache = Sidecar::start(deps, inbound("cache", ANY, echo().await)).unwrap();
    let elsewhere = address_of(&cache).await;
    *chain.list.0.lock() = vec![instance("cache", elsewhere)];

    let db = Arc::new(chain.db);
    let draining = tokio::spawn({
        let db = db.clone();
        async move { db.drain(PATIENCE).await }
    });
    until(|| db.listeners()[0].state == ListenerState::Closed).await;
    assert!(TcpStream::connect(chain.mesh_side).await.is_err());
    let mut request = TcpStream::connect(way_out).await.unwrap();
    ask(&mut request).await.unwrap();
    ask(&mut client).await.unwrap();
    drop((request, client));
    let drained = timeout(PATIENCE, draining).await.unwrap().unwrap();
    assert_eq!(drained.forced, 0);
    assert!(TcpStream::connect(way_out).await.is_err());
}

#[tokio::test]
async fn an_abort_ends_a_drain_and_closes_everything() {
    let chain = chain(echo().await).await;
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    ask(&mut client).await.unwrap();
    let web = Arc::new(chain.web);
    let draining = tokio::spawn({
        let web = web.clone();
        async move { web.drain(Duration::from_secs(3600)).await }
    });
    until(|| web.listeners().iter().all(|listener| listener.state == ListenerState::Closed)).await;
    assert!(!draining.is_finished(), "one connection is still open");
    web.abort();
    let drained = timeout(PATIENCE, draining).await.unwrap().unwrap();
    assert_eq!(drained.forced, 1);
    assert_eq!(end_of(&mut client).await, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_drain_that_is_aborted_leaves_nothing_behind_that_still_tries_to_bind() {
    let chain = chain(echo().await).await;
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let mut config = inbound("db", ANY, echo().await);
    config.upstreams = outbound("db", "cache", taken.local_addr().unwrap()).upstreams;
    config.upstreams.get_mut("cache").unwrap().bind_policy = BindPolicy::Retry;
    let (doorman, list) = (Arc::<Doorman>::default(), Arc::<List>::default());
    let deps = chain.scene.deps(chain.scene.source("db"), &doorman, &list);
    let before = Arc::strong_count(&deps.workers);
    let workers = deps.workers.clone();
    let db = Arc::new(Sidecar::start(deps, config).unwrap());
    let mut silent = TcpStream::connect(address_of(&db).await).await.unwrap();
    until(|| db.metrics().connections_in_use == 1).await;
    let draining = tokio::spawn({
        let db = db.clone();
        async move { db.drain(Duration::from_secs(3600)).await }
    });
    until(|| db.listeners()[0].state == ListenerState::Closed).await;
    db.abort();
    assert_eq!(timeout(PATIENCE, draining).await.unwrap().unwrap().forced, 1);
    assert_eq!(end_of(&mut silent).await, Some(ErrorKind::ConnectionReset));
    drop(db);
    // The task that tries to bind holds the data threads.
    until(|| Arc::strong_count(&workers) == before).await;
}

#[tokio::test]
async fn an_abort_does_not_wait_for_an_application_that_does_not_accept() {
    // Its queue is full, so that the kernel answers nothing.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&ANY.into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let application = echo().await;
    let chain = chain(application).await;
    let mut config = inbound("db", ANY, address);
    config.inbound.as_mut().unwrap().connect_timeout = Duration::from_secs(300);
    chain.db.apply(config);
    let mut client = TcpStream::connect(chain.upstream).await.unwrap();
    until(|| chain.doorman.asked.load(Ordering::SeqCst) == 1).await;
    let began = Instant::now();
    assert_eq!(timeout(PATIENCE, chain.db.drain(Duration::ZERO)).await.unwrap().forced, 1);
    assert_eq!(end_of(&mut client).await, Some(ErrorKind::ConnectionReset));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(count(&inbound_of(&chain.db).ended, "cut"), 1);
}

/// Never says where anything is, and counts who still waits for it.
#[derive(Default)]
struct Mute(Arc<()>);

#[async_trait]
impl Discovery for Mute {
    async fn instances(&self, _: &Destination) -> Result<Arc<[Instance]>, DiscoveryError> {
        let _waiting = self.0.clone();
        std::future::pending().await
    }

    fn forget(&self, _: &Destination) {}
}

#[tokio::test]
async fn a_question_about_instances_goes_with_whoever_asked_it() {
    let (scene, doorman, list) = (scene(), Arc::<Doorman>::default(), Arc::<List>::default());
    let mut deps = scene.deps(scene.source("web"), &doorman, &list);
    let mute = Arc::new(Mute::default());
    deps.discovery = mute.clone();
    let mut config = outbound("web", "db", ANY);
    config.upstreams.get_mut("db").unwrap().connect_timeout = Duration::from_millis(100);
    let web = Sidecar::start(deps, config).unwrap();
    assert_eq!(end_at(address_of(&web).await, b"").await, Some(ErrorKind::ConnectionReset));
    until(|| count(&web.metrics().upstreams["db"].ended, "no_discovery") == 1).await;
    until(|| Arc::strong_count(&mute.0) == 1).await;
}
