//! The data plane of Lictor: accept, prove, permit, dial, relay.
//!
//! It knows the traits of `lictor-core` and nothing of Consul. A [`Sidecar`] is one service identity with its
//! listeners; connections run on [`Workers`], whatever drives the sidecar on a runtime of its own, so that neither
//! starves the other.

#![forbid(unsafe_code)]

pub mod agent_tls;
pub mod balancer;
mod buffers;
pub mod config;
mod dial;
pub mod handshake;
mod inbound;
pub mod limits;
mod listener;
mod live;
pub mod metrics;
mod outbound;
pub mod record;
mod rejudge;
pub mod relay;
mod shared;
mod sidecar;
pub mod socket;
pub mod workers;

pub use config::{Application, BindPolicy, InboundConfig, Limits, SidecarConfig, UpstreamBind, UpstreamConfig};
pub use metrics::{HistogramSnapshot, MetricsSnapshot, PathSnapshot};
pub use record::{ConnectionInfo, Direction, EndReason, HandshakeFailure, LimitName};
pub use sidecar::{Applied, BindError, Deps, Drained, ListenerState, ListenerStatus, Sidecar};
pub use workers::Workers;
