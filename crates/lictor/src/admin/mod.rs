//! The admin listener: `/live`, `/ready`, `/metrics`, `/crypto`, `/certs` and `/connections`.
//!
//! It asks nobody for a password, so it stays on loopback unless the operator says otherwise, and it answers only
//! requests whose `Host` is a name of loopback: a web page that had its name resolved to 127.0.0.1 (DNS rebinding)
//! gets nothing. It shows no key and no token.

pub(crate) mod metrics;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};

/// How many connections are served at once. Scrapers and probes need a handful.
const CONNECTIONS: usize = 64;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may take in all: one that does not read its answer would hold its place for ever.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the pages show.
pub(crate) trait Status: Send + Sync + 'static {
    /// Whether everything works, and if not, what is missing.
    fn ready(&self) -> Ready;
    /// The metrics in the text format of Prometheus.
    fn metrics(&self) -> String;
    /// The TLS library and what it does, as `lictor crypto -json` prints it.
    fn crypto(&self) -> serde_json::Value;
    /// Identities, serial numbers and validity of leaf and roots.
    fn certs(&self) -> serde_json::Value;
    /// The open connections and those that ended last.
    fn connections(&self) -> serde_json::Value;
}

/// The answer of `/ready`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Ready {
    pub(crate) ready: bool,
    /// What has to happen before it is ready.
    pub(crate) pending: Vec<String>,
    /// What is wrong; those that end service are also why it is not ready.
    pub(crate) problems: Vec<String>,
}

/// Serves `status` on `listener` until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, status: Arc<dyn Status>, any_host: bool) {
    let router = router(status, any_host);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors and the like: it passes, and a pause keeps the loop from spinning meanwhile.
                tracing::warn!(%error, "the admin listener could not accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let router = router.clone();
        tokio::spawn(async move {
            talk(stream, router).await;
            drop(slot);
        });
    }
}

/// Answers one request.
async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that breaks off is its own affair, and so is one that is too slow.
    let _ = tokio::time::timeout(WHOLE_TIMEOUT, served).await;
}

/// Binds `address`.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn router(status: Arc<dyn Status>, any_host: bool) -> Router {
    let router = Router::new()
        .route("/", get(index))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/crypto", get(|State(status): State<Arc<dyn Status>>| async move { Json(status.crypto()) }))
        .route("/certs", get(|State(status): State<Arc<dyn Status>>| async move { Json(status.certs()) }))
        .route("/connections", get(|State(status): State<Arc<dyn Status>>| async move { Json(status.connections()) }))
        .with_state(status);
    if any_host { router } else { router.layer(axum::middleware::from_fn(loopback_host)) }
}

async fn index() -> &'static str {
    "lictor\n\n/live         the process runs\n/ready        200 when it serves, otherwise 503 with what is missing\n\
     /metrics      for Prometheus\n/crypto       the TLS library and what it does\n/certs        who we are and whom we trust\n/connections  who is connected to whom\n"
}

async fn ready(State(status): State<Arc<dyn Status>>) -> Response {
    let ready = status.ready();
    let code = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(ready)).into_response()
}

async fn metrics(State(status): State<Arc<dyn Status>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], status.metrics()).into_response()
}

/// Refuses requests whose `Host` is not a name of loopback.
async fn loopback_host(headers: HeaderMap, request: Request, next: Next) -> Result<Response, Infallible> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_loopback(host) {
        return Ok(next.run(request).await);
    }
    Ok((
        StatusCode::MISDIRECTED_REQUEST,
        "this listener answers only to names of loopback: use localhost or 127.0.0.1\n",
    )
        .into_response())
}

/// A moment as RFC 3339 in UTC, to the second.
pub(crate) fn rfc3339(moment: std::time::SystemTime) -> String {
    humantime::format_rfc3339_seconds(moment).to_string()
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    struct Fixed(Ready);

    impl Status for Fixed {
        fn ready(&self) -> Ready {
            self.0.clone()
        }
        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }
        fn crypto(&self) -> serde_json::Value {
            serde_json::json!({})
        }
        fn certs(&self) -> serde_json::Value {
            serde_json::json!({"generation": 1})
        }
        fn connections(&self) -> serde_json::Value {
            serde_json::json!([])
        }
    }

    /// The whole answer to `GET path` with this `Host`.
    async fn get(ready: Ready, path: &str, host: &str) -> String {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(Fixed(ready)), false));
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn ready_is_503_with_what_is_pending_until_everything_is_there() {
        let pending = Ready { ready: false, pending: vec!["leaf".to_owned()], problems: Vec::new() };
        let answer = get(pending, "/ready", "localhost").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with(r#"{"ready":false,"pending":["leaf"],"problems":[]}"#), "{answer}");
        let answer = get(Ready { ready: true, ..Ready::default() }, "/ready", "localhost").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_answer_makes_room_in_the_end() {
        let (mut client, served) = tokio::io::duplex(48);
        client.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let talking = talk(served, router(Arc::new(Fixed(Ready::default())), false));
        assert!(tokio::time::timeout(WHOLE_TIMEOUT * 2, talking).await.is_ok());
        drop(client);
    }

    #[tokio::test]
    async fn a_page_that_was_rebound_to_loopback_is_told_nothing() {
        for host in ["evil.example", "127.0.0.1.evil.example:19100", ""] {
            let answer = get(Ready::default(), "/certs", host).await;
            assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
            assert!(!answer.contains("generation"), "{host}: {answer}");
        }
        for host in ["localhost:19100", "127.0.0.1:19100", "[::1]:19100", "127.1.2.3"] {
            let answer = get(Ready::default(), "/certs", host).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
        }
    }
}
