//! One HTTP exchange with the agent, whatever lies beneath it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Carries one request to the agent and its answer back.
///
/// Plain HTTP and unix sockets are served from [`crate::consul`]; HTTPS over a backend's session lives beside the
/// data plane, since it shares its sockets and buffers.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends `request`, whose URI holds path and query only, and collects the answer.
    ///
    /// Redirects are not followed, proxies of the environment are not used, content is not decoded.
    ///
    /// # Errors
    /// [`TransportError`]; after [`TransportError::TooLarge`] and a timeout the connection is not used again.
    async fn exchange(
        &self,
        request: http::Request<Bytes>,
        bounds: Bounds,
    ) -> Result<http::Response<Bytes>, TransportError>;
}

/// What one exchange may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the call to the last byte of the answer.
    pub deadline: Duration,
    /// Bytes of the answer's body.
    pub max_body: usize,
}

/// Why an exchange failed before there was a whole answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody listens, or the network or the TLS handshake with the agent failed.
    #[error("cannot connect to the agent: {0}")]
    Connect(String),
    /// The deadline passed.
    #[error("the agent did not answer within {0:?}")]
    Timeout(Duration),
    /// The body is larger than the call allows.
    #[error("the agent's answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The connection broke, or what came is not HTTP.
    #[error("the exchange with the agent broke: {0}")]
    Broken(String),
}
