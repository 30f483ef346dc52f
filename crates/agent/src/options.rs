//! What can be chosen when an agent starts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::acl::Acl;
use crate::dialect::Dialect;

/// How an [`Agent`](crate::Agent) starts. The defaults are those of `consul agent -dev`, except that the port is
/// picked by the system and that nothing waits at random.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the HTTP API. Port 0 takes a free one, which stays the same over stop and start.
    pub address: SocketAddr,
    /// A unix socket that serves the same API; an old socket file at this path is replaced.
    pub unix_socket: Option<PathBuf>,
    /// Address of the control listener, see [`control`](crate::control); off by default.
    pub control: Option<SocketAddr>,
    /// Which Consul to play.
    pub dialect: Dialect,
    /// Own datacenter.
    pub datacenter: String,
    /// Other datacenters that `dc=` may name; instances for them come through [`Handle::add_instance`](crate::Handle::add_instance).
    pub other_datacenters: Vec<String>,
    /// Name of the node.
    pub node_name: String,
    /// Address of the node, the fallback for instances without an address of their own.
    pub node_address: IpAddr,
    /// The UUID in front of `.consul` in the trust domain; random by default.
    pub trust_domain_uuid: Option<String>,
    /// Lifetime of leaves. From one hour up it counts from `ValidAfter` (one minute ago) as in Consul; shorter
    /// ones, which Consul does not allow, count from now.
    pub leaf_ttl: Duration,
    /// The part of a leaf's lifetime after which it is renewed; a random point in it is taken for each leaf.
    pub leaf_renewal: RangeInclusive<f64>,
    /// Blocked leaf calls see the new leaf only after a random part of this, once the root has changed. Consul: 30 s.
    pub rotation_jitter: Duration,
    /// Adds up to wait/16 to blocked calls, as servers do.
    pub wait_jitter: bool,
    /// Access control lists; `None` switches them off, and everything is allowed.
    pub acl: Option<Acl>,
    /// `default_intention_policy` of this agent (1.18+); rules over the ACL default in authorize only.
    pub default_intention_policy: Option<crate::Policy>,
    /// `limits.http_max_conns_per_client`: TCP connections from one address; the next one gets a raw 429.
    pub max_connections_per_client: usize,
    /// Ports that sidecar services get when they name none.
    pub sidecar_ports: RangeInclusive<u16>,
    /// Interval of the TCP check that each sidecar service gets. Consul: 10 s.
    pub sidecar_check_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            unix_socket: None,
            control: None,
            dialect: Dialect::Today,
            datacenter: "dc1".to_owned(),
            other_datacenters: Vec::new(),
            node_name: "lictor-dev".to_owned(),
            node_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            trust_domain_uuid: None,
            leaf_ttl: Duration::from_secs(72 * 3600),
            leaf_renewal: 0.6..=0.9,
            rotation_jitter: Duration::ZERO,
            wait_jitter: true,
            acl: None,
            default_intention_policy: None,
            max_connections_per_client: 200,
            sidecar_ports: 21000..=21255,
            sidecar_check_interval: Duration::from_secs(10),
        }
    }
}
