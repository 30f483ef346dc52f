//! Plain HTTP and unix sockets to the agent.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::address::{AgentAddress, Endpoint};
use crate::transport::{Bounds, Transport, TransportError};

/// How long a connection to the agent may take, within the deadline of the call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an unused connection is kept. Agents count connections per address for the whole host.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How many unused connections are kept.
const MAX_IDLE: usize = 8;

/// Keep-alive probes on the connections, so that a path that died silently does not leave a watch deaf.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The transport for `http://` and `unix://`.
///
/// A connection is driven by the runtime that opened it, and waking another thread costs more than an exchange. So
/// there are two pools: one for runtimes of one thread, as data threads are, and one for all others.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    of_one_thread: reqwest::Client,
    of_others: reqwest::Client,
    base: String,
}

impl HttpTransport {
    /// A transport to `address`.
    ///
    /// # Errors
    /// [`HttpTransportError::Https`] for an HTTPS address, whose transport needs a TLS library and comes from outside.
    pub fn new(address: &AgentAddress) -> Result<Self, HttpTransportError> {
        // The host of a unix socket names no place; Consul's own client says localhost too, and some agents look at it.
        let base = match address.endpoint() {
            Endpoint::Http(authority) => format!("http://{authority}"),
            Endpoint::Unix(_) => "http://localhost".to_owned(),
            Endpoint::Https(_) => return Err(HttpTransportError::Https),
        };
        Ok(Self { of_one_thread: pool(address)?, of_others: pool(address)?, base })
    }

    /// The pool for whoever asks.
    fn client(&self) -> &reqwest::Client {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::CurrentThread => &self.of_one_thread,
            _ => &self.of_others,
        }
    }
}

/// A pool of connections to the agent.
fn pool(address: &AgentAddress) -> Result<reqwest::Client, HttpTransportError> {
    let mut builder = reqwest::Client::builder()
        // A proxy from the environment would get the token, and its answers would be believed.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .user_agent(concat!("lictor/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEPALIVE)
        .tcp_keepalive_interval(KEEPALIVE)
        .tcp_keepalive_retries(3);
    if let Endpoint::Unix(path) = address.endpoint() {
        builder = builder.unix_socket(path.as_path());
    }
    builder.build().map_err(|error| HttpTransportError::Client(words(error)))
}

#[async_trait]
impl Transport for HttpTransport {
    async fn exchange(
        &self,
        request: http::Request<Bytes>,
        bounds: Bounds,
    ) -> Result<http::Response<Bytes>, TransportError> {
        let exchange = self.unbounded_in_time(request, bounds.max_body);
        tokio::time::timeout(bounds.deadline, exchange).await.unwrap_or(Err(TransportError::Timeout(bounds.deadline)))
    }
}

impl HttpTransport {
    async fn unbounded_in_time(
        &self,
        request: http::Request<Bytes>,
        max_body: usize,
    ) -> Result<http::Response<Bytes>, TransportError> {
        let client = self.client();
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let request = client
            .request(parts.method, format!("{}{target}", self.base))
            .headers(parts.headers)
            .body(body)
            .build()
            .map_err(failed)?;
        let mut answer = client.execute(request).await.map_err(failed)?;
        if answer.content_length().is_some_and(|length| length > max_body as u64) {
            return Err(TransportError::TooLarge(max_body));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > max_body {
                return Err(TransportError::TooLarge(max_body));
            }
            body.extend_from_slice(&chunk);
        }
        let mut response = http::Response::new(body.freeze());
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }
}

/// Why there is no transport.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpTransportError {
    /// The address asks for HTTPS.
    #[error("an https:// agent needs the transport of a TLS backend")]
    Https,
    /// The HTTP library refused its settings.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
}

fn failed(error: reqwest::Error) -> TransportError {
    if error.is_connect() { TransportError::Connect(words(error)) } else { TransportError::Broken(words(error)) }
}

/// The last cause, which is where the library says what happened: those above it name its own layers.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut last: &dyn std::error::Error = &error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
