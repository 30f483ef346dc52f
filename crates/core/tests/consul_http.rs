//! The transports over real sockets: what goes over the wire, and what hostile answers cost.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

mod consul_support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use lictor_core::{
    consul::{
        AgentAddress, AgentClient, BasicAuth, ClientSettings, HttpTransport, HttpTransportError, SidecarError, Token,
        find_sidecar,
    },
    transport::{Bounds, Transport, TransportError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
};

const BOUNDS: Bounds = Bounds { deadline: Duration::from_secs(5), max_body: 1000 };

/// Reads one request head.
async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Serves each connection `answer` to its first request and closes it.
async fn server(answer: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                head(&mut stream).await;
                let _ = stream.write_all(answer).await;
            });
        }
    });
    (address, connections)
}

fn transport(address: &str) -> HttpTransport {
    HttpTransport::new(&AgentAddress::parse(address, false).unwrap()).unwrap()
}

async fn get(address: &str) -> Result<http::Response<Bytes>, TransportError> {
    let request = http::Request::get("/v1/x").body(Bytes::new()).unwrap();
    transport(address).exchange(request, BOUNDS).await
}

#[tokio::test]
async fn a_request_carries_token_credentials_and_prefix_and_asks_for_no_compression() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/consul", listener.local_addr().unwrap());
    let address = AgentAddress::parse(&address, false).unwrap();
    let settings = ClientSettings {
        token: Token::value("abc").unwrap(),
        basic_auth: Some(BasicAuth::parse("user:pass").unwrap()),
        path_prefix: address.prefix().to_owned(),
        ..ClientSettings::default()
    };
    let client = AgentClient::new(Arc::new(HttpTransport::new(&address).unwrap()), settings);
    let asking = tokio::spawn(async move { find_sidecar(&client, "web").await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = head(&mut stream).await.to_ascii_lowercase();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    assert!(matches!(asking.await.unwrap(), Err(SidecarError::None(_))));
    assert!(head.starts_with("get /consul/v1/agent/services http/1.1\r\n"), "{head}");
    for line in ["x-consul-token: abc\r\n", "authorization: basic dxnlcjpwyxnz\r\n"] {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert!(!head.contains("accept-encoding"), "{head}");
}

#[tokio::test]
async fn an_agent_on_a_unix_socket_is_called_localhost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix://{}", path.display());
    let asking = tokio::spawn(async move { get(&address).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere").await.unwrap();
    assert_eq!(&asking.await.unwrap().unwrap().body()[..], b"here");
    assert!(head.to_ascii_lowercase().contains("host: localhost\r\n"), "{head}");
}

#[tokio::test]
async fn an_https_address_is_refused_rather_than_spoken_to_in_the_clear() {
    let address = AgentAddress::parse("https://127.0.0.1:8501", false).unwrap();
    assert_eq!(HttpTransport::new(&address).unwrap_err(), HttpTransportError::Https);
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (elsewhere, followed) = server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n");
    let (address, _) = server(answer.leak().as_bytes()).await;
    assert_eq!(get(&address).await.unwrap().status(), 302);
    assert_eq!(followed.load(Relaxed), 0);
}

#[tokio::test]
async fn an_answer_beyond_its_bound_is_refused_announced_or_not() {
    let announced: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n";
    let chunked: &[u8] =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001))
            .leak()
            .as_bytes();
    let endless: &[u8] = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", "x".repeat(5000)).leak().as_bytes();
    for answer in [announced, chunked, endless] {
        let (address, _) = server(answer).await;
        let error = get(&address).await.unwrap_err();
        assert!(matches!(error, TransportError::TooLarge(1000)), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_http_or_ends_early_is_broken() {
    let headers: &[u8] = format!("HTTP/1.1 200 OK\r\n{}", "A: b\r\n".repeat(100_000)).leak().as_bytes();
    for answer in [&b"SSH-2.0-x\r\n\r\n"[..], b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", headers] {
        let (address, _) = server(answer).await;
        let error = get(&address).await.unwrap_err();
        assert!(matches!(error, TransportError::Broken(_)), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    assert!(matches!(get(&address).await.unwrap_err(), TransportError::Connect(_)));
    assert!(matches!(get("unix:///nowhere/agent.sock").await.unwrap_err(), TransportError::Connect(_)));
}

#[tokio::test]
async fn a_silent_agent_costs_the_deadline_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let request = http::Request::get("/").body(Bytes::new()).unwrap();
    let bounds = Bounds { deadline: Duration::from_millis(200), max_body: 10 };
    let began = Instant::now();
    let error = transport(&address).exchange(request, bounds).await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn calls_in_a_row_use_one_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..20 {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    });
    let transport = transport(&address);
    for _ in 0..20 {
        let request = http::Request::get("/").body(Bytes::new()).unwrap();
        transport.exchange(request, BOUNDS).await.unwrap();
    }
    served.await.unwrap();
}

/// The name of the variable that tells the child of the next test where the agent is.
const CHILD: &str = "LICTOR_TEST_AGENT";

/// A proxy from the environment would be handed the token, and its answers would be believed. The environment of a
/// running process must not be changed, so the test runs itself again with the variables set.
#[tokio::test]
async fn a_proxy_from_the_environment_does_not_see_a_byte() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    if let Ok(agent) = std::env::var(CHILD) {
        let client = consul_support::http_client(&agent, ClientSettings::default());
        assert!(matches!(find_sidecar(&client, "web").await, Err(SidecarError::None(_))));
        return;
    }
    let (proxy, proxied) = server(OK).await;
    let (agent, asked) = server(OK).await;
    let name = "a_proxy_from_the_environment_does_not_see_a_byte";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(CHILD, agent).env_remove("NO_PROXY").env_remove("no_proxy");
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"] {
        child.env(variable, format!("http://{proxy}"));
    }
    let output = tokio::task::spawn_blocking(move || child.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((proxied.load(Relaxed), asked.load(Relaxed)), (0, 1));
}
