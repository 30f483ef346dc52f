//! What all connections of one sidecar share.

use std::sync::Arc;

use lictor_core::{Authorizer, Discovery, ServiceName};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Limits,
    dial::Dialler,
    limits::{Handshakes, Slots},
    live::Live,
    metrics::Metrics,
    record::{InFlight, LiveTable, RateLimit},
    rejudge::{Book, Known},
    relay::Budget,
};

/// What all connections of one sidecar share.
pub(crate) struct Shared {
    pub(crate) service: ServiceName,
    pub(crate) live: Arc<Live>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) discovery: Arc<dyn Discovery>,
    /// Where everything runs that is not a connection.
    pub(crate) control: Handle,
    pub(crate) dialler: Dialler,
    pub(crate) limits: RwLock<Limits>,
    pub(crate) inbound_slots: Arc<Slots>,
    pub(crate) outbound_slots: Arc<Slots>,
    pub(crate) handshakes: Arc<Handshakes>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) metrics: Metrics,
    pub(crate) table: Arc<LiveTable>,
    /// Peers whose open connections are judged again.
    pub(crate) book: Arc<Book<Known>>,
    pub(crate) inbound_in_flight: Arc<InFlight>,
    pub(crate) outbound_in_flight: Arc<InFlight>,
    /// Lines about peers that have proven nothing.
    pub(crate) lines: RateLimit,
    /// Ends every connection by a reset.
    pub(crate) cut: CancellationToken,
}
