//! Every key of the configuration file. Nothing has a default here: what a missing key means is decided in
//! [`crate::settings`].

use std::collections::BTreeMap;

use serde::Deserialize;

use super::values::{Count, Mode, Port, Secret, Span, Switch, Text};

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    /// Name of the service whose sidecar this is; listeners and upstreams then come from this file.
    pub(crate) service: Option<Text>,
    /// ID of a proxy registered with the agent; listeners and upstreams then come from its registration.
    pub(crate) proxy_id: Option<Text>,
    /// ID of a service registered with the agent; its only sidecar is looked up.
    pub(crate) sidecar_for: Option<Text>,
    /// Register the sidecar with the agent.
    pub(crate) register: Register,
    pub(crate) inbound: Inbound,
    pub(crate) upstream: BTreeMap<String, Upstream>,
    pub(crate) registration: Registration,
    pub(crate) agent: Agent,
    pub(crate) tls: Tls,
    pub(crate) peers: Peers,
    pub(crate) limits: Limits,
    /// Threads that carry data.
    pub(crate) workers: Option<Count>,
    pub(crate) admin: Admin,
    pub(crate) log: Log,
    pub(crate) drain: Drain,
}

/// Registering the sidecar itself, as `-register` does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Register {
    pub(crate) enabled: Option<Switch>,
    /// Suffix of the ID, for several sidecars of one service.
    pub(crate) id: Option<Text>,
}

/// The listener that the mesh connects to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Inbound {
    /// `[host]:port`.
    pub(crate) listen: Option<Text>,
    /// `host:port` or `unix:///path` of the application.
    pub(crate) app: Option<Text>,
    pub(crate) connect_timeout: Option<Span>,
    pub(crate) handshake_timeout: Option<Span>,
    /// How often open connections are judged again; zero for never, whatever the registration says.
    pub(crate) reauthorize: Option<Span>,
    pub(crate) max_connections: Option<Count>,
}

/// A local listener and what lies behind it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Upstream {
    /// Name of the service; the name of the block when absent.
    pub(crate) service: Option<Text>,
    /// Name or ID of a prepared query, instead of a service.
    pub(crate) query: Option<Text>,
    pub(crate) address: Option<Text>,
    pub(crate) port: Option<Port>,
    /// Path of a unix socket, instead of address and port.
    pub(crate) socket: Option<Text>,
    pub(crate) socket_mode: Option<Mode>,
    pub(crate) datacenter: Option<Text>,
    pub(crate) namespace: Option<Text>,
    pub(crate) partition: Option<Text>,
    pub(crate) peer: Option<Text>,
    pub(crate) connect_timeout: Option<Span>,
}

/// What the agent's registration may ask for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registration {
    /// Let it bind upstreams to addresses that are not loopback.
    pub(crate) allow_public_upstreams: Option<Switch>,
    /// Let it make unix sockets below these directories.
    pub(crate) socket_directories: Option<Vec<Text>>,
}

/// The Consul agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Agent {
    /// `host:port`, `http://…`, `https://…` or `unix:///path`.
    pub(crate) address: Option<Text>,
    pub(crate) token: Option<Secret>,
    pub(crate) token_file: Option<Text>,
    /// `user:password` for HTTP basic authentication.
    pub(crate) auth: Option<Secret>,
    pub(crate) datacenter: Option<Text>,
    pub(crate) namespace: Option<Text>,
    pub(crate) partition: Option<Text>,
    pub(crate) tls: AgentTls,
}

/// HTTPS to the agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AgentTls {
    /// Speak HTTPS although the address has no scheme.
    pub(crate) enabled: Option<Switch>,
    pub(crate) ca_file: Option<Text>,
    pub(crate) ca_path: Option<Text>,
    pub(crate) client_cert: Option<Text>,
    pub(crate) client_key: Option<Text>,
    pub(crate) server_name: Option<Text>,
    pub(crate) verify: Option<Switch>,
}

/// TLS in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) backend: Option<Text>,
    pub(crate) min_version: Option<MinVersion>,
    /// Offer the hybrid key exchange X25519MLKEM768 first.
    pub(crate) hybrid: Option<Switch>,
    /// Start only where the library is in FIPS mode.
    pub(crate) require_fips: Option<Switch>,
}

/// The lowest TLS version that is spoken in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum MinVersion {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// Which peers pass.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Peers {
    pub(crate) extra_trust_domains: Option<Vec<Text>>,
    pub(crate) allow_percent_encoding: Option<Switch>,
    pub(crate) leaf_skew: Option<Span>,
    pub(crate) max_leaf_ttl: Option<Span>,
    pub(crate) strict_ca_spiffe: Option<Switch>,
    pub(crate) allow_remote_datacenters: Option<Switch>,
}

/// What the sidecar may use.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub(crate) max_connections: Option<Count>,
    pub(crate) max_handshakes: Option<Count>,
    pub(crate) max_handshakes_per_source: Option<Count>,
    /// Bytes held for slow readers, all connections together.
    pub(crate) max_held_bytes: Option<Count>,
    pub(crate) idle_timeout: Option<Span>,
}

/// The admin listener.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    /// `host:port`, or `off`.
    pub(crate) address: Option<Text>,
    /// Allow an address that is not loopback.
    pub(crate) allow_remote: Option<Switch>,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) level: Option<Level>,
    pub(crate) json: Option<Switch>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The end.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Drain {
    /// How long connections may take to finish.
    pub(crate) timeout: Option<Span>,
    /// How long to go on accepting after deregistration.
    pub(crate) settle: Option<Span>,
}
