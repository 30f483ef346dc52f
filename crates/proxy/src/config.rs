//! What a sidecar is told to do, as plain values.
//!
//! Nothing here knows where the values came from: flags, a file or the agent's registration. Since a registration is
//! not the operator, every number is clamped on use (`Clamp`).

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use lictor_core::{Destination, ServiceName};

/// The deadline of an inbound connection from accept to permit. As long as Consul's own proxy claims to wait, and
/// long enough for a client behind a slow link.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the application may take to accept. It runs on this host, so a second is ample (Consul's default too).
pub const DEFAULT_APPLICATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an upstream may take in all, over every instance that is tried (Consul's default).
pub const DEFAULT_UPSTREAM_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many handshakes may be under way: at a handshake of 0.3 ms this is what one core does in a third of a second.
pub const DEFAULT_HANDSHAKES: usize = 1024;

/// How many handshakes one source address (an IPv6 /64) may have under way: a quarter of all, so that four hosts
/// must conspire.
pub const DEFAULT_HANDSHAKES_PER_SOURCE: usize = 256;

/// How much all connections together may hold for readers that are slow. Over it they read in small steps.
pub const DEFAULT_HELD_BYTES: usize = 64 * 1024 * 1024;

/// The mode of an upstream's unix socket: this user alone, since whoever may connect speaks with our identity.
pub const DEFAULT_SOCKET_MODE: u32 = 0o600;

/// How long connections may take to finish after a drain began.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// All that one service identity listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarConfig {
    /// The service whose identity the sidecar bears; never changed by [`Sidecar::apply`](crate::Sidecar::apply).
    pub service: ServiceName,
    /// The mesh side: who may reach the application. `None` for a sidecar that only dials.
    pub inbound: Option<InboundConfig>,
    /// The application's ways into the mesh, by a name that is stable across changes.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    /// What the sidecar may use.
    pub limits: Limits,
}

/// The listener that other services of the mesh connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundConfig {
    /// Where to listen. It opens only when there is material to serve with.
    pub bind: SocketAddr,
    /// What to do when the address cannot be bound.
    pub bind_policy: BindPolicy,
    /// Where the application listens.
    pub application: Application,
    /// How long the application may take to accept (default [`DEFAULT_APPLICATION_CONNECT_TIMEOUT`]).
    pub connect_timeout: Duration,
    /// From accept to permit: handshake and authorization together (default [`DEFAULT_HANDSHAKE_TIMEOUT`]).
    pub handshake_timeout: Duration,
    /// The most connections that may reach the application at once; `None` for what the descriptors allow. Handshakes
    /// have a limit of their own ([`Limits::handshakes`]) and do not count.
    pub max_connections: Option<usize>,
    /// Judges the open connections of each peer again once in so long, and ends by a reset those that would not be let
    /// in any more: by an intention, by the age of the peer's certificate, or because its root is off the list. Whoever
    /// cannot be judged lives on. `None`, the default, leaves open connections alone, as Consul does.
    ///
    /// At least a second; at most a hundred questions a second are asked, so that a great many peers take longer than
    /// that. It holds for connections that are accepted while it is set.
    pub reauthorize: Option<Duration>,
}

impl InboundConfig {
    /// A listener on `bind` in front of `application`, the rest at its defaults.
    #[must_use]
    pub fn new(bind: SocketAddr, application: Application) -> Self {
        Self {
            bind,
            bind_policy: BindPolicy::Fail,
            application,
            connect_timeout: DEFAULT_APPLICATION_CONNECT_TIMEOUT,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            max_connections: None,
            reauthorize: None,
        }
    }
}

/// One upstream: a local listener for the application and what lies behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Where the application connects to.
    pub bind: UpstreamBind,
    /// What to do when that cannot be bound.
    pub bind_policy: BindPolicy,
    /// What to dial.
    pub destination: Destination,
    /// How long one connection may take until it is proven, over every instance that is tried (default
    /// [`DEFAULT_UPSTREAM_CONNECT_TIMEOUT`]).
    pub connect_timeout: Duration,
}

impl UpstreamConfig {
    /// An upstream from `bind` to `destination`, the rest at its defaults.
    #[must_use]
    pub fn new(bind: UpstreamBind, destination: Destination) -> Self {
        Self { bind, bind_policy: BindPolicy::Fail, destination, connect_timeout: DEFAULT_UPSTREAM_CONNECT_TIMEOUT }
    }
}

/// Where an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamBind {
    /// A TCP address. Whether one that is not loopback is allowed has been decided by whoever made this value.
    Tcp(SocketAddr),
    /// A unix socket. One that is there already is replaced only when nobody listens on it and it is ours.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Its permission bits (default [`DEFAULT_SOCKET_MODE`]).
        mode: u32,
    },
}

impl fmt::Display for UpstreamBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where the application listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Application {
    /// A host name or IP address, and a port.
    Tcp {
        /// The host, without brackets where it is an IPv6 address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What to do with a listener whose address cannot be bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BindPolicy {
    /// Say so at once: the operator wrote the address, by flag or file.
    #[default]
    Fail,
    /// Try again and again while the others serve: the agent's registration asks for the address.
    Retry,
}

/// What one sidecar may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most connections in both directions; `None` for what the descriptor limit allows
    /// ([`connections_for`](crate::limits::connections_for)). A quarter is kept for outbound.
    pub connections: Option<usize>,
    /// The most inbound handshakes under way, and never more than a quarter of the connections (default
    /// [`DEFAULT_HANDSHAKES`]).
    pub handshakes: usize,
    /// The most inbound handshakes under way from one source address (default [`DEFAULT_HANDSHAKES_PER_SOURCE`]).
    pub handshakes_per_source: usize,
    /// Bytes that all connections together may hold for slow readers (default [`DEFAULT_HELD_BYTES`]).
    pub held_bytes: usize,
    /// Ends a connection on which nothing has moved for so long; `None`, the default, for never: a database
    /// connection may rest for days.
    pub idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            handshakes: DEFAULT_HANDSHAKES,
            handshakes_per_source: DEFAULT_HANDSHAKES_PER_SOURCE,
            held_bytes: DEFAULT_HELD_BYTES,
            idle: None,
        }
    }
}

/// Brings values from outside into the range in which they make sense.
pub(crate) trait Clamp {
    /// The same with every number in its range.
    #[must_use]
    fn clamped(self) -> Self;
}

/// The shortest and the longest time-out that is taken: below, a scheduling hiccup is an outage; above, a stuck peer
/// holds its slot for longer than anybody waits.
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(300));

/// The shortest and the longest period of [`InboundConfig::reauthorize`]: below, the agent would be asked about little
/// else; above, a certificate of Consul's has long been replaced.
const REAUTHORIZE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));

/// The longest idle limit; anything above is as good as none.
const LONGEST_IDLE: Duration = Duration::from_secs(30 * 24 * 3600);

impl Clamp for SidecarConfig {
    fn clamped(mut self) -> Self {
        self.inbound = self.inbound.map(Clamp::clamped);
        for upstream in self.upstreams.values_mut() {
            upstream.connect_timeout = upstream.connect_timeout.clamp(TIMEOUTS.0, TIMEOUTS.1);
            if let UpstreamBind::Unix { mode, .. } = &mut upstream.bind {
                *mode &= 0o777;
            }
        }
        self.limits = self.limits.clamped();
        self
    }
}

impl Clamp for InboundConfig {
    fn clamped(mut self) -> Self {
        self.connect_timeout = self.connect_timeout.clamp(TIMEOUTS.0, TIMEOUTS.1);
        self.handshake_timeout = self.handshake_timeout.clamp(TIMEOUTS.0, TIMEOUTS.1);
        self.max_connections = self.max_connections.map(|most| most.max(1));
        self.reauthorize = self.reauthorize.map(|period| period.clamp(REAUTHORIZE.0, REAUTHORIZE.1));
        self
    }
}

impl Clamp for Limits {
    fn clamped(mut self) -> Self {
        self.connections = self.connections.map(|most| most.clamp(4, 1_000_000));
        self.handshakes = self.handshakes.clamp(1, 65_536);
        self.handshakes_per_source = self.handshakes_per_source.clamp(1, 65_536);
        self.held_bytes = self.held_bytes.clamp(1024 * 1024, 16 * 1024 * 1024 * 1024);
        self.idle = self.idle.map(|idle| idle.clamp(Duration::from_secs(1), LONGEST_IDLE));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_brought_into_it() {
        let application = Application::Tcp { host: "127.0.0.1".into(), port: 1 };
        let mut inbound = InboundConfig::new("127.0.0.1:1".parse().unwrap(), application);
        inbound.connect_timeout = Duration::ZERO;
        inbound.handshake_timeout = Duration::MAX;
        inbound.max_connections = Some(0);
        inbound.reauthorize = Some(Duration::ZERO);
        let clamped = inbound.clamped();
        assert_eq!(clamped.connect_timeout, TIMEOUTS.0);
        assert_eq!(clamped.handshake_timeout, TIMEOUTS.1);
        assert_eq!(clamped.max_connections, Some(1));
        assert_eq!(clamped.reauthorize, Some(REAUTHORIZE.0));

        let limits = Limits { idle: Some(Duration::MAX), handshakes: 0, held_bytes: 0, ..Limits::default() }.clamped();
        assert_eq!((limits.idle, limits.handshakes), (Some(LONGEST_IDLE), 1));
        assert!(limits.held_bytes > 0);
    }

    #[test]
    fn defaults_are_within_their_own_range() {
        assert_eq!(Limits::default().clamped(), Limits::default());
        let application = Application::Tcp { host: "::1".into(), port: 80 };
        assert_eq!(application.to_string(), "[::1]:80");
        let inbound = InboundConfig::new("127.0.0.1:1".parse().unwrap(), application);
        assert_eq!(inbound.clone().clamped(), inbound);
    }
}
