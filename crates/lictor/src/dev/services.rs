//! The two small services of `lictor dev`: `web`, which calls `api`, and `api`, which says what it saw.
//!
//! They speak plain HTTP and know nothing of certificates: that is what the sidecars are for.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// How long `web` waits for `api`.
const CALL: Duration = Duration::from_secs(15);

/// Says who is connected to the sidecar of `api` now, one line each.
pub(crate) type Callers = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Serves `api` on `listener`.
pub(crate) async fn api(listener: TcpListener, callers: Callers) {
    let router = Router::new().fallback(api_answer).with_state(callers);
    serve(listener, router).await;
}

/// Serves `web` on `listener`; it reaches `api` at `upstream`, a port of its own sidecar.
pub(crate) async fn web(listener: TcpListener, upstream: SocketAddr) {
    let router = Router::new().fallback(web_answer).with_state(upstream);
    serve(listener, router).await;
}

async fn serve(listener: TcpListener, router: Router) {
    // It ends only with its task.
    let _ = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await;
}

async fn api_answer(
    State(callers): State<Callers>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> String {
    let mut answer = format!(
        "Hello from api.\n  I saw {} {} from {from}, which is my sidecar.\n",
        request.method(),
        request.uri().path()
    );
    for caller in callers() {
        answer.push_str("  My sidecar says who called: ");
        answer.push_str(&caller);
        answer.push('\n');
    }
    answer
}

async fn web_answer(State(upstream): State<SocketAddr>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    match tokio::time::timeout(CALL, call(upstream, &path)).await {
        Ok(Ok(answer)) => {
            format!("Hello from web. I called http://{upstream}{path}, and api answered:\n\n{answer}").into_response()
        }
        Ok(Err(error)) => refused(upstream, &error),
        Err(_) => refused(upstream, "no answer"),
    }
}

fn refused(upstream: SocketAddr, error: &str) -> Response {
    let answer = format!(
        "Hello from web. I called http://{upstream} and got no answer from api: {error}.\nIs there an intention that \
         denies it?\n"
    );
    (StatusCode::BAD_GATEWAY, answer).into_response()
}

/// One request over a connection of its own, so that each is judged by the intentions of its moment.
pub(crate) async fn call(upstream: SocketAddr, path: &str) -> Result<String, String> {
    let words = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    };
    let stream = TcpStream::connect(upstream).await.map_err(|error| words(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(header::HOST, upstream.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| words(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| words(&error))?;
        let body = Limited::new(response.into_body(), 64 * 1024).collect().await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }
    .await;
    driver.abort();
    answer
}
