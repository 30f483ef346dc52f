//! What the agent does wrong on request, and coming and going.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use std::time::Duration;

use common::{Client, Got, start};
use lictor_agent::{Calls, Dialect, Endpoint, Fault, LeafFault, Options, Rule};
use rcgen::PublicKeyData as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

const LEAF: &str = "/v1/agent/connect/ca/leaf/web";
const ROOTS: &str = "/v1/agent/connect/ca/roots";

fn question() -> Value {
    json!({"Target": "db", "ClientCertURI": "spiffe://x.consul/ns/default/dc/dc1/svc/web"})
}

fn blocked(client: &Client, path: String) -> tokio::task::JoinHandle<Result<Got, reqwest::Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.send("GET", &path, None).await })
}

/// One question on a connection of its own, so that nothing is left of another.
async fn raw(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn an_error_comes_as_often_as_was_asked_for_and_carries_index_1() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let fault = Fault::Status { status: 500, body: String::new() };
    handle.misbehave_times(Endpoint::Roots, fault, 2);
    for _ in 0..2 {
        let got = client.get(ROOTS).await;
        assert_eq!((got.status, got.body.as_str(), got.index()), (500, "No cluster leader", 1));
        assert_eq!(got.header("x-consul-knownleader"), Some("false"));
    }
    assert_eq!(client.get(ROOTS).await.status, 200);
    assert_eq!(handle.stats().statuses[&500], 2);
}

#[tokio::test]
async fn a_call_that_hangs_is_counted_as_arrived_and_not_as_answered() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.misbehave(Endpoint::Authorize, Fault::Hang);
    let asked = client.authorize(question());
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    let stats = handle.stats();
    assert_eq!((stats.calls(Endpoint::Authorize), stats.answers(Endpoint::Authorize)), (1, 0));
    handle.behave_at(Endpoint::Authorize);
    assert_eq!(client.authorize(question()).await.status, 200);
}

#[tokio::test]
async fn a_fault_can_spare_the_calls_that_do_not_block_and_those_for_other_names() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let error = Fault::Status { status: 500, body: String::new() };
    handle.misbehave_by(Rule::new(Endpoint::Leaf, error).calls(Calls::Blocking).containing("/web"));
    let index = client.get(LEAF).await.index();
    let tail = format!("?index={index}&wait=50ms");
    assert_eq!(client.get(&format!("{LEAF}{tail}")).await.status, 500);
    assert_eq!(client.get(&format!("/v1/agent/connect/ca/leaf/db{tail}")).await.status, 200);
}

#[tokio::test]
async fn a_caller_that_goes_away_is_no_longer_blocked() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let index = client.get(LEAF).await.index();
    let call = blocked(&client, format!("{LEAF}?index={index}&wait=60s"));
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1).await;
    call.abort();
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 0).await;
}

#[tokio::test]
async fn a_truncated_body_breaks_off_before_its_announced_length() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    handle.misbehave(Endpoint::Leaf, Fault::Truncate);
    let answer = raw(handle.address(), LEAF).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let announced: usize = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    assert_eq!(body.len(), announced / 2);
}

#[tokio::test]
async fn bodies_grow_turn_their_types_and_lie_about_their_index() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.misbehave_times(Endpoint::Roots, Fault::Oversize { bytes: 3 << 20 }, 1);
    let big = client.get(ROOTS).await;
    assert_eq!(big.body.len(), 3 << 20);
    assert!(big.json()["Roots"].is_array());
    handle.misbehave_times(Endpoint::Roots, Fault::WrongTypes, 1);
    assert!(client.get(ROOTS).await.json()["Roots"].is_object());
    handle.misbehave_times(Endpoint::Roots, Fault::Index { index: 0 }, 1);
    assert_eq!(client.get(ROOTS).await.index(), 0);
    handle.misbehave_times(Endpoint::Roots, Fault::NoIndex, 1);
    assert_eq!(client.get(ROOTS).await.header("x-consul-index"), None);
    let text = "this is no JSON".to_owned();
    handle.misbehave_times(Endpoint::Roots, Fault::Body { text }, 1);
    assert_eq!(client.get(ROOTS).await.body, "this is no JSON");
}

#[tokio::test]
async fn authorize_answers_in_every_wrong_shape() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let reason = r#""Reason":"Default behavior configured by ACLs""#;
    for (fault, body) in [
        (Fault::AuthorizeMissing, format!("{{{reason}}}")),
        (Fault::AuthorizeTwice, format!(r#"{{"Authorized":true,"Authorized":false,{reason}}}"#)),
        (Fault::AuthorizeText, format!(r#"{{"Authorized":"true",{reason}}}"#)),
        (Fault::ExtraBytes, format!(r#"{{"Authorized":true,{reason}}}{{"Authorized":true}}"#)),
    ] {
        handle.misbehave_times(Endpoint::Authorize, fault, 1);
        let got = client.authorize(question()).await;
        assert_eq!((got.status, got.body), (200, body));
    }
}

#[tokio::test]
async fn blocked_calls_end_with_the_error_that_they_are_told_and_later_ones_do_not() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let index = client.get(LEAF).await.index();
    let call = blocked(&client, format!("{LEAF}?index={index}&wait=20s"));
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1).await;
    handle.refuse_blocked(Endpoint::Leaf, 403, "ACL not found");
    let refused = call.await.unwrap().unwrap();
    assert_eq!((refused.status, refused.body.as_str()), (403, "ACL not found"));
    let later = client.get(&format!("{LEAF}?index={index}&wait=50ms")).await;
    assert_eq!(later.status, 200);
}

#[tokio::test]
async fn the_key_belongs_to_the_leaf_unless_it_is_told_not_to() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    for (fault, belongs) in [(None, true), (Some(LeafFault::WrongKey), false)] {
        handle.set_leaf_fault("web", fault).unwrap();
        let leaf = client.get(LEAF).await.json();
        let text = leaf["CertPEM"].as_str().unwrap().as_bytes();
        let (_, pem) = x509_parser::pem::parse_x509_pem(text).unwrap();
        let cert = pem.parse_x509().unwrap();
        let key = rcgen::KeyPair::from_pem(leaf["PrivateKeyPEM"].as_str().unwrap()).unwrap();
        let point = cert.public_key().subject_public_key.data.to_vec();
        assert_eq!(point == key.der_bytes(), belongs);
    }
}

#[tokio::test]
async fn a_frozen_agent_takes_connections_and_answers_when_it_thaws() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.freeze();
    let call = blocked(&client, ROOTS.to_owned());
    handle.wait_until(|s| s.open_connections == 1).await;
    assert_eq!(handle.stats().calls(Endpoint::Roots), 0);
    handle.thaw();
    assert_eq!(call.await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn a_stopped_agent_cuts_blocked_calls_and_comes_back_on_its_port_with_its_state() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let roots = client.get(ROOTS).await;
    let call = blocked(&client, format!("{ROOTS}?index={}&wait=20s", roots.index()));
    handle.wait_until(|s| s.blocked(Endpoint::Roots) == 1).await;
    handle.stop_listening().await;
    assert!(call.await.unwrap().is_err());
    let stats = handle.stats();
    assert_eq!((stats.open_connections, stats.blocked(Endpoint::Roots)), (0, 0));
    assert!(client.send("GET", ROOTS, None).await.is_err());
    handle.start_listening().await.unwrap();
    assert_eq!(client.get(ROOTS).await.json(), roots.json());
}

#[tokio::test]
async fn a_wiped_restart_brings_a_new_authority_and_lower_indexes_on_the_same_port() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    for _ in 0..3 {
        handle.rotate_root().unwrap();
    }
    handle.register(json!({"Name": "web", "Port": 1})).unwrap();
    let before = client.get(ROOTS).await;
    handle.restart_wiped().await.unwrap();
    let after = client.get(ROOTS).await;
    assert!(after.index() < before.index());
    assert_ne!(after.json()["TrustDomain"], before.json()["TrustDomain"]);
    assert_eq!(after.json()["Roots"].as_array().unwrap().len(), 1);
    assert_eq!(client.get("/v1/agent/services").await.json(), json!({}));
}

#[tokio::test]
async fn one_connection_too_many_gets_a_raw_429_before_it_asks() {
    let options = Options { max_connections_per_client: 2, ..Options::default() };
    let agent = start(options).await;
    let handle = agent.handle();
    let mut first = TcpStream::connect(handle.address()).await.unwrap();
    let _second = TcpStream::connect(handle.address()).await.unwrap();
    handle.wait_until(|s| s.open_connections == 2).await;
    let mut third = TcpStream::connect(handle.address()).await.unwrap();
    let mut answer = String::new();
    third.read_to_string(&mut answer).await.unwrap();
    let wanted = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 81\r\n\
Connection: close\r\n\r\nYour IP is issuing too many concurrent connections, please rate limit your calls\n";
    assert_eq!(answer, wanted);
    first.shutdown().await.unwrap();
    drop(first);
    handle.wait_until(|s| s.open_connections == 1).await;
    assert!(raw(handle.address(), ROOTS).await.starts_with("HTTP/1.1 200"));
    assert_eq!(handle.stats().refused_connections, 1);
}

#[tokio::test]
async fn hashes_and_indexes_move_while_the_content_stays() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.register(json!({"Name": "web", "Port": 1})).unwrap();
    let path = "/v1/agent/service/web";
    let (leaf, roots, service) = (client.get(LEAF).await, client.get(ROOTS).await, client.get(path).await);
    handle.touch_leaf("web");
    handle.touch_roots();
    handle.change_hashes();
    let (leaf2, roots2, service2) = (client.get(LEAF).await, client.get(ROOTS).await, client.get(path).await);
    assert!(leaf2.index() > leaf.index() && roots2.index() > roots.index());
    assert_eq!(leaf.json()["CertPEM"], leaf2.json()["CertPEM"]);
    assert_eq!(roots.json(), roots2.json());
    assert_ne!(service.json()["ContentHash"], service2.json()["ContentHash"]);
}

#[tokio::test]
async fn a_unix_socket_serves_the_same_and_is_replaced_when_it_was_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let options = Options { unix_socket: Some(path.clone()), ..Options::default() };
    let agent = start(options).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let request = format!("GET {ROOTS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    agent.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn an_address_in_use_is_an_error_at_start() {
    let agent = start(Options::default()).await;
    let options = Options { address: agent.address(), ..Options::default() };
    let second = lictor_agent::Agent::start(options, std::sync::Arc::new(common::RcgenKeys)).await;
    assert!(second.unwrap_err().to_string().contains(&agent.address().to_string()));
}

/// The rows of what real client agents answered after their only server was killed.
#[tokio::test]
async fn without_servers_the_cache_answers_and_the_rest_fails_as_it_does_in_each_dialect() {
    for (dialect, streaming) in [(Dialect::Today, 503), (Dialect::Old, 500)] {
        let agent = start(Options { dialect, ..Options::default() }).await;
        let handle = agent.handle();
        let client = Client::new(&handle);
        let health = "/v1/health/connect/db";
        let matches = "/v1/connect/intentions/match?by=destination&name=db";
        handle.register(json!({"Name": "db", "Port": 1, "Connect": {"Native": true}})).unwrap();
        let leaf = client.get(LEAF).await;
        let roots = client.get(ROOTS).await;
        client.authorize(question()).await;
        client.get(&format!("{health}?cached")).await;
        client.get(&format!("{matches}&cached")).await;
        let call = blocked(&client, format!("{ROOTS}?index={}&wait=20s", roots.index()));
        handle.wait_until(|s| s.blocked(Endpoint::Roots) == 1).await;
        handle.lose_servers();
        assert_eq!(call.await.unwrap().unwrap().status, 500);
        for (path, status) in [
            (ROOTS.to_owned(), 200),
            (format!("{ROOTS}?index={}&wait=5s", roots.index()), 500),
            (LEAF.to_owned(), 200),
            (format!("{LEAF}?index={}&wait=50ms", leaf.index()), 200),
            ("/v1/agent/connect/ca/leaf/other".to_owned(), 500),
            (format!("{health}?cached"), 200),
            ("/v1/health/connect/other?cached".to_owned(), streaming),
            (format!("{health}?index=99&wait=5s"), streaming),
            (format!("{health}?stale"), 500),
            (health.to_owned(), 500),
            (format!("{matches}&cached"), 200),
            (matches.to_owned(), 500),
            ("/v1/query/x/execute".to_owned(), 500),
            ("/v1/status/leader".to_owned(), 500),
            ("/v1/agent/services".to_owned(), 200),
            ("/v1/agent/service/db".to_owned(), 200),
        ] {
            let got = client.get(&path).await;
            assert_eq!(got.status, status, "{path}: {}", got.body);
        }
        let known = client.authorize(question()).await;
        assert_eq!((known.status, known.header("x-cache")), (200, Some("HIT")));
        let unknown = json!({"Target": "x", "ClientCertURI": "spiffe://x.consul/ns/default/dc/dc1/svc/web"});
        assert_eq!(client.authorize(unknown).await.status, 500);
        handle.find_servers();
        assert_eq!(client.get(health).await.status, 200);
    }
}
