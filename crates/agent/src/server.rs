//! Sockets and HTTP: accepting, the limit of connections, putting answers on the wire.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use crate::answer::Answer;
use crate::misbehave::{self, Delivery};
use crate::request::Request;
use crate::routes::{self, Route};
use crate::stats::{AuthorizeCall, Endpoint, Seen};
use crate::store::Shared;

/// A request body may have this many bytes.
const MAX_REQUEST: usize = 1 << 20;
/// Go sends a body without a length once it outgrows this buffer.
const CHUNKED_FROM: usize = 2048;

/// The bytes that connection 201 gets before anything is read.
const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain\r\nContent-Length: 81\r\n\
Connection: close\r\n\r\nYour IP is issuing too many concurrent connections, please rate limit your calls\n";

/// Accepts until it is dropped, and all its connections go with it.
pub(crate) async fn serve(shared: Arc<Shared>, tcp: TcpListener, unix: Option<UnixListener>) {
    let mut connections = JoinSet::new();
    let clients = Arc::new(Mutex::new(HashMap::new()));
    loop {
        tokio::select! {
            accepted = tcp.accept() => match accepted {
                Ok((stream, peer)) => {
                    let limit = shared.read(|s| s.max_connections_per_client);
                    match Client::new(&clients, peer.ip(), limit) {
                        Some(client) => {
                            connections.spawn(connection(Arc::clone(&shared), stream, Some(client)));
                        }
                        None => {
                            shared.stats.send_modify(|s| s.refused_connections += 1);
                            connections.spawn(refuse(stream));
                        }
                    }
                }
                Err(error) => pause(&error).await,
            },
            accepted = accept_unix(unix.as_ref()) => match accepted {
                Ok(stream) => {
                    connections.spawn(connection(Arc::clone(&shared), stream, None));
                }
                Err(error) => pause(&error).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Binds a unix socket; a socket that an earlier agent left behind is replaced, any other file is not.
pub(crate) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt as _;
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

async fn accept_unix(unix: Option<&UnixListener>) -> io::Result<tokio::net::UnixStream> {
    match unix {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// An accept that failed (no descriptors, mostly) is tried again, but not in a spin.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Counts one connection of an address for as long as it lives.
struct Client {
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    ip: IpAddr,
}

impl Client {
    fn new(clients: &Arc<Mutex<HashMap<IpAddr, usize>>>, ip: IpAddr, limit: usize) -> Option<Self> {
        let mut map = clients.lock();
        let open = map.entry(ip).or_default();
        if *open >= limit {
            return None;
        }
        *open += 1;
        Some(Self { clients: Arc::clone(clients), ip })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(open) = self.clients.lock().get_mut(&self.ip) {
            *open = open.saturating_sub(1);
        }
    }
}

/// Counts an open connection.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.stats.send_modify(|s| {
            s.connections += 1;
            s.open_connections += 1;
            s.most_connections = s.most_connections.max(s.open_connections);
        });
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.stats.send_modify(|s| s.open_connections = s.open_connections.saturating_sub(1));
    }
}

async fn refuse(mut stream: TcpStream) {
    // A reset would overtake the answer where the request lies unread, so some of it is read first, briefly.
    let _ = stream.write_all(TOO_MANY).await;
    let _ = stream.shutdown().await;
    let mut dropped = [0; 512];
    let _ = tokio::time::timeout(Duration::from_millis(10), stream.read(&mut dropped)).await;
}

async fn connection<S>(shared: Arc<Shared>, stream: S, _client: Option<Client>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _open = Open::new(Arc::clone(&shared));
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(respond(&shared, request).await) }
    });
    // An error here is the client's going, or a body that is cut off on purpose.
    if let Err(error) = hyper::server::conn::http1::Builder::new()
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "connection ended");
    }
}

async fn respond(shared: &Shared, request: http::Request<Incoming>) -> Response<Outgoing> {
    thaw(shared).await;
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, MAX_REQUEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            let answer = Answer::text(413, "Request body too large");
            return outgoing(shared, answer, Delivery::Whole);
        }
    };
    let req = Request::new(parts.method, &parts.uri, &parts.headers, body);
    let route = Route::of(&req.path);
    let endpoint = route.endpoint();
    shared.stats.send_modify(|s| {
        s.arrived(Seen {
            endpoint,
            method: req.method.to_string(),
            target: parts.uri.to_string(),
            with_token: req.token.is_some(),
            user_agent: parts.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).map(str::to_owned),
        });
    });
    let fault = misbehave::take(shared, endpoint, &parts.uri.to_string(), &req);
    let instead = match &fault {
        Some(fault) => misbehave::instead(fault).await,
        None => None,
    };
    let (answer, delivery) = match instead {
        Some(answer) => (answer, Delivery::Whole),
        None => {
            let good = routes::answer(shared, &route, &req).await;
            match &fault {
                Some(fault) => misbehave::spoil(fault, good),
                None => (good, Delivery::Whole),
            }
        }
    };
    // A frozen agent sends nothing, not even what it had been asked for before.
    thaw(shared).await;
    shared.stats.send_modify(|s| {
        if endpoint == Endpoint::Authorize {
            s.authorized(AuthorizeCall {
                body: String::from_utf8_lossy(&req.body).into_owned(),
                status: answer.status,
                answer: String::from_utf8_lossy(&answer.body).into_owned(),
            });
        }
        s.answered(endpoint, answer.status);
    });
    outgoing(shared, answer, delivery)
}

async fn thaw(shared: &Shared) {
    // The sender lives in `shared`, so this ends by a thaw only.
    let _ = shared.frozen.subscribe().wait_for(|frozen| !frozen).await;
}

fn outgoing(shared: &Shared, answer: Answer, delivery: Delivery) -> Response<Outgoing> {
    let chunked = answer.body.len() > CHUNKED_FROM;
    let body = match delivery {
        Delivery::Whole => Outgoing::Whole { data: Some(answer.body), chunked },
        Delivery::Truncated => Outgoing::Truncated {
            announced: answer.body.len() as u64,
            data: Some(answer.body.slice(..answer.body.len() / 2)),
            pause: Box::pin(tokio::time::sleep(Duration::from_millis(20))),
        },
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !answer.bare {
        headers.insert(HeaderName::from_static("vary"), HeaderValue::from_static("Accept-Encoding"));
        let policy = shared.read(|s| s.acl_default().as_str());
        headers.insert(HeaderName::from_static("x-consul-default-acl-policy"), HeaderValue::from_static(policy));
    }
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    }
    response
}

/// A body, whole or cut off.
enum Outgoing {
    Whole {
        data: Option<Bytes>,
        chunked: bool,
    },
    Truncated {
        announced: u64,
        data: Option<Bytes>,
        /// What was given out is flushed before the connection breaks.
        pause: Pin<Box<Sleep>>,
    },
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Whole { data, .. } => Poll::Ready(data.take().filter(|d| !d.is_empty()).map(|d| Ok(Frame::data(d)))),
            Self::Truncated { data, pause, .. } => {
                if let Some(half) = data.take().filter(|d| !d.is_empty()) {
                    return Poll::Ready(Some(Ok(Frame::data(half))));
                }
                ready!(pause.as_mut().poll(cx));
                Poll::Ready(Some(Err(io::Error::other("cut off on purpose"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { data, .. } => data.as_ref().is_none_or(Bytes::is_empty),
            Self::Truncated { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { data: Some(data), chunked: false } => SizeHint::with_exact(data.len() as u64),
            Self::Whole { data: None, .. } => SizeHint::with_exact(0),
            Self::Whole { .. } => SizeHint::default(),
            Self::Truncated { announced, .. } => SizeHint::with_exact(*announced),
        }
    }
}
