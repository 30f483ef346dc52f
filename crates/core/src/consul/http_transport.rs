//! Plain HTTP and unix sockets to the agent.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

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
#[derive(Clone, Debug)]
pub struct HttpTransport {
    client: reqwest::Client,
    base: String,
}

impl HttpTransport {
    /// A transport to `address`.
    ///
    /// # Errors
    /// [`HttpTransportError::Https`] for an HTTPS address, whose transport needs a TLS library and comes from outside.
    pub fn new(address: &AgentAddress) -> Result<Self, HttpTransportError> {
        let builder = reqwest::Client::builder()
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
        let (builder, base) = match address.endpoint() {
            Endpoint::Http(authority) => (builder, format!("http://{authority}")),
            // The host names no place here; Consul's own client says localhost too, and some agents look at it.
            Endpoint::Unix(path) => (builder.unix_socket(path.as_path()), "http://localhost".to_owned()),
            Endpoint::Https(_) => return Err(HttpTransportError::Https),
        };
        let client = builder.build().map_err(|error| HttpTransportError::Client(words(error)))?;
        Ok(Self { client, base })
    }
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
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let request = self
            .client
            .request(parts.method, format!("{}{target}", self.base))
            .headers(parts.headers)
            .body(body)
            .build()
            .map_err(failed)?;
        let mut answer = self.client.execute(request).await.map_err(failed)?;
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
