//! Where the instances of an upstream are, as the data plane asks for it.

use std::sync::Arc;

use async_trait::async_trait;

/// Finds the healthy mesh instances of an upstream.
///
/// It is polled on a data thread, between the turns of connections: asking and parsing go elsewhere.
#[async_trait]
pub trait Discovery: Send + Sync + 'static {
    /// The instances to choose from for a new connection.
    ///
    /// Answers from memory where that is fresh, waits a bounded time where it is not, and falls back to the last
    /// known list when the control plane is lost. An empty list is a real answer: there is no healthy instance.
    ///
    /// # Errors
    /// [`DiscoveryError`] when nothing was ever known and nothing could be learnt now.
    async fn instances(&self, destination: &Destination) -> Result<Arc<[Instance]>, DiscoveryError>;

    /// Says that the destination is no longer an upstream, so nothing about it need be kept.
    fn forget(&self, destination: &Destination);
}

/// What an upstream points at. Empty fields of the registration are `None`, never a silent `default`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// A service or a prepared query.
    pub kind: DestinationKind,
    /// Name of the service, or name or ID of the query.
    pub name: String,
    /// The datacenter to ask in; our agent's own when absent.
    pub datacenter: Option<String>,
    /// The namespace (Consul Enterprise).
    pub namespace: Option<String>,
    /// The admin partition (Consul Enterprise).
    pub partition: Option<String>,
    /// The peered cluster.
    pub peer: Option<String>,
}

/// The two kinds of [`Destination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DestinationKind {
    /// A service, found by `/v1/health/connect/:name`.
    Service,
    /// A prepared query, executed with `connect=true`.
    PreparedQuery,
}

/// One instance that can be dialled, and who must answer there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    /// Unique within its node, for logs and for remembering failures.
    pub id: String,
    /// IP address or host name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The service that the certificate must name.
    pub service: String,
    /// The namespace that the certificate must name.
    pub namespace: String,
    /// The admin partition that the certificate must name, in lower case.
    pub partition: String,
    /// The datacenter that the certificate must name.
    pub datacenter: String,
    /// Relative share of new connections; at least 1.
    pub weight: u32,
}

/// Why no list of instances could be given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The agent said no: the token may not read the service.
    #[error(
        "the agent does not let this token read the upstream (service:read on it and on its sidecar, node:read): {0}"
    )]
    Forbidden(String),
    /// The query or endpoint does not exist.
    #[error("the agent knows no such upstream: {0}")]
    NotFound(String),
    /// Everything else that went wrong at the agent or on the way to it.
    #[error("the agent could not be asked for the upstream: {0}")]
    Unavailable(String),
}
