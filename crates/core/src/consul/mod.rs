//! The client of the local Consul agent.
//!
//! One small typed client ([`AgentClient`]) over a [`Transport`](crate::transport::Transport), and on top of it what
//! the traits of this crate ask for: certificates ([`ConsulCertSource`]), decisions ([`ConsulAuthorizer`]) and
//! instances ([`ConsulDiscovery`]); besides them our own definition ([`OwnDefinition`]), the lookup of a sidecar
//! ([`find_sidecar`]) and the registration ([`Registration`]).
//!
//! What the agent says is hostile input here: every answer is bounded in size and time, nothing in it can make a loop
//! spin or end, and a state once good is never replaced by a broken one.

mod address;
mod authorize;
mod backoff;
#[cfg(test)]
mod captured;
mod cert_source;
mod client;
mod definition;
mod discovery;
mod health;
mod http_transport;
mod instances;
mod json;
mod leaf;
mod own;
mod register;
mod roots;
mod sidecar;
mod task;
mod token;
mod watch;

pub use self::{
    address::{AddressError, AgentAddress, Authority, Endpoint},
    authorize::ConsulAuthorizer,
    cert_source::ConsulCertSource,
    client::{AgentClient, CallClass, CallError, ClientSettings},
    definition::{DefinitionError, Listen, LocalService, MAX_TIMEOUT, ProxyDefinition, Upstream},
    discovery::ConsulDiscovery,
    health::{AgentHealth, CallOutcome},
    http_transport::{HttpTransport, HttpTransportError},
    own::{DefinitionProblem, DefinitionSource, OwnDefinition, OwnDefinitionState},
    register::{Readiness, Registration, RegistrationSettings},
    sidecar::{SidecarError, find_sidecar},
    token::{BasicAuth, Token, TokenError},
};
