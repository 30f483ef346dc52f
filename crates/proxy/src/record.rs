//! The record of a connection: a live view while it is open, one line when it has ended.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use lictor_core::{PeerIdentity, RefusalKind, RejectReason, TlsFacts};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{metrics::PathMetrics, relay::Count};

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the mesh to our application.
    Inbound,
    /// From our application into the mesh.
    Outbound,
}

impl Direction {
    /// The stable name used as metric label and log field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A limit that turned a connection away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitName {
    /// The connections of the sidecar, or of the process, are all in use.
    Connections,
    /// The inbound listener's own `max_connections`.
    InboundConnections,
    /// Too many handshakes under way, none of which could be given up.
    Handshakes,
    /// Too many handshakes under way from one source address.
    HandshakesPerSource,
}

impl LimitName {
    /// All limits, for tables of counters.
    pub const ALL: [Self; 4] =
        [Self::Connections, Self::InboundConnections, Self::Handshakes, Self::HandshakesPerSource];

    /// The stable name used as metric label and log field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::InboundConnections => "inbound_connections",
            Self::Handshakes => "handshakes",
            Self::HandshakesPerSource => "handshakes_per_source",
        }
    }
}

/// How a handshake failed other than by a verdict of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// The deadline passed.
    Timeout,
    /// The peer sent an alert: it refused us, or gave up.
    PeerAlert,
    /// The peer closed or reset in the middle of it.
    Closed,
    /// No version, suite or group in common.
    NothingInCommon,
    /// What came is not TLS.
    NotTls,
    /// It was the oldest that had not sent its hello when room was needed.
    GivenUp,
    /// Our own side failed.
    Internal,
}

impl HandshakeFailure {
    /// All failures, for tables of counters.
    pub const ALL: [Self; 7] = [
        Self::Timeout,
        Self::PeerAlert,
        Self::Closed,
        Self::NothingInCommon,
        Self::NotTls,
        Self::GivenUp,
        Self::Internal,
    ];

    /// The stable name used as metric label and log field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "handshake_timeout",
            Self::PeerAlert => "handshake_peer_alert",
            Self::Closed => "handshake_closed",
            Self::NothingInCommon => "handshake_nothing_in_common",
            Self::NotTls => "handshake_not_tls",
            Self::GivenUp => "handshake_given_up",
            Self::Internal => "handshake_internal",
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Both directions were ended by their senders.
    Finished,
    /// A limit turned it away before any cryptography.
    Limit(LimitName),
    /// There is no material to speak with yet.
    NoMaterial,
    /// Our verdict about the peer's certificate.
    Rejected(RejectReason),
    /// The handshake failed in another way.
    Handshake(HandshakeFailure),
    /// The authorizer did not permit it.
    Refused(RefusalKind),
    /// The application did not accept in time, or refused.
    ApplicationUnreachable,
    /// The upstream has no healthy instance.
    NoInstance,
    /// The control plane could not say where the upstream is.
    NoDiscovery,
    /// No instance could be reached and proven in time.
    UpstreamUnreachable,
    /// The peer of the mesh ended without close_notify: what it sent may be cut short.
    Truncated,
    /// The peer of the mesh reset the connection.
    PeerReset,
    /// The peer of the mesh sent a fatal alert after the handshake: it refused us.
    PeerAlert,
    /// The peer of the mesh broke the protocol, or a record was damaged.
    BadRecord,
    /// The application reset the connection.
    ApplicationReset,
    /// Nothing moved for longer than the idle limit.
    Idle,
    /// The authorizer no longer permits it ([`InboundConfig::reauthorize`](crate::InboundConfig::reauthorize)).
    Revoked,
    /// The peer's certificate is over or no longer leads to a root
    /// ([`InboundConfig::reauthorize`](crate::InboundConfig::reauthorize)).
    PeerLapsed,
    /// Cut by the end of a drain or by an abort.
    Cut,
    /// Our own side failed.
    Internal,
}

impl EndReason {
    /// The stable name used as metric label and log field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Limit(limit) => limit.name(),
            Self::NoMaterial => "no_material",
            Self::Rejected(reason) => reason.name(),
            Self::Handshake(failure) => failure.name(),
            Self::Refused(kind) => kind.name(),
            Self::ApplicationUnreachable => "application_unreachable",
            Self::NoInstance => "no_instance",
            Self::NoDiscovery => "no_discovery",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::Truncated => "truncated",
            Self::PeerReset => "peer_reset",
            Self::PeerAlert => "peer_alert",
            Self::BadRecord => "bad_record",
            Self::ApplicationReset => "application_reset",
            Self::Idle => "idle",
            Self::Revoked => "revoked",
            Self::PeerLapsed => "peer_lapsed",
            Self::Cut => "cut",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A connection as `/connections` shows it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Counts up within the process.
    pub id: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// The upstream it belongs to; `None` for inbound.
    pub upstream: Option<String>,
    /// The other end of the socket that was accepted; `None` for a unix socket.
    pub opener: Option<SocketAddr>,
    /// The instance that was dialled, as `id (address)`; `None` for inbound.
    pub instance: Option<String>,
    /// Our own identity at the time.
    pub own_identity: String,
    /// The peer's identity in its certificate's own bytes.
    pub peer_identity: String,
    /// The serial number of the peer's certificate.
    pub peer_serial: String,
    /// The rule that permitted it; `None` for outbound.
    pub rule: Option<String>,
    /// When the rule was applied; `None` for outbound.
    pub decided_at: Option<SystemTime>,
    /// What TLS agreed.
    pub tls: TlsFacts,
    /// When it was accepted.
    pub started: SystemTime,
    /// How long it has been open.
    pub age: Duration,
    /// Bytes sent to whoever opened the connection.
    pub tx_bytes: u64,
    /// Bytes received from whoever opened the connection.
    pub rx_bytes: u64,
}

/// Bytes of one connection, counted by the relay. `tx` is towards the opener, as Consul counts.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// Bytes sent to whoever opened the connection.
    pub tx: AtomicU64,
    /// Bytes received from whoever opened the connection.
    pub rx: AtomicU64,
}

/// A connection that is open and proven.
#[derive(Debug)]
pub(crate) struct LiveConnection {
    pub(crate) id: u64,
    pub(crate) direction: Direction,
    pub(crate) upstream: Option<Arc<str>>,
    pub(crate) opener: Option<SocketAddr>,
    pub(crate) instance: Option<Box<str>>,
    pub(crate) own_identity: Arc<str>,
    pub(crate) peer_identity: Box<str>,
    pub(crate) peer_serial: Box<str>,
    pub(crate) rule: Option<(Box<str>, SystemTime)>,
    pub(crate) tls: TlsFacts,
    pub(crate) started: SystemTime,
    pub(crate) began: Instant,
    pub(crate) handshake: Duration,
    pub(crate) bytes: ByteCounts,
}

impl LiveConnection {
    /// Takes of the peer what the record needs, so that the chain need not be kept for the life of the connection.
    pub(crate) fn identify(peer: &PeerIdentity) -> (Box<str>, Box<str>) {
        (peer.uri().into(), peer.serial().to_string().into())
    }

    /// Whether an outbound connection has ended without one byte of the server.
    pub(crate) fn nothing_came_from_the_server(&self) -> bool {
        self.bytes.tx.load(Ordering::Relaxed) == 0
    }

    fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            id: self.id,
            direction: self.direction,
            upstream: self.upstream.as_deref().map(str::to_owned),
            opener: self.opener,
            instance: self.instance.as_deref().map(str::to_owned),
            own_identity: self.own_identity.to_string(),
            peer_identity: self.peer_identity.to_string(),
            peer_serial: self.peer_serial.to_string(),
            rule: self.rule.as_ref().map(|(rule, _)| rule.to_string()),
            decided_at: self.rule.as_ref().map(|(_, at)| *at),
            tls: self.tls,
            started: self.started,
            age: self.began.elapsed(),
            tx_bytes: self.bytes.tx.load(Ordering::Relaxed),
            rx_bytes: self.bytes.rx.load(Ordering::Relaxed),
        }
    }

    /// Writes the record. Fields are stable; what is free text comes last.
    pub(crate) fn write(&self, reason: EndReason, detail: &str) {
        let opener = self.opener.map(|opener| opener.to_string());
        let rule = self.rule.as_ref().map(|(rule, _)| &**rule);
        let detail = Some(detail).filter(|detail| !detail.is_empty());
        let (tx, rx) = (self.bytes.tx.load(Ordering::Relaxed), self.bytes.rx.load(Ordering::Relaxed));
        tracing::info!(
            target: "lictor::connection",
            {
                connection.id = self.id,
                connection.direction = self.direction.name(),
                connection.reason = reason.name(),
                connection.upstream = self.upstream.as_deref(),
                connection.opener = opener,
                connection.instance = self.instance.as_deref(),
                connection.duration_ms = millis(self.began.elapsed()),
                connection.handshake_ms = millis(self.handshake),
                own.identity = &*self.own_identity,
                peer.identity = &*self.peer_identity,
                peer.serial = &*self.peer_serial,
                bytes.tx = tx,
                bytes.rx = rx,
                tls.version = self.tls.version,
                tls.suite = self.tls.suite,
                tls.group = self.tls.group,
                permit.rule = rule,
                detail
            },
            "connection ended",
        );
    }
}

/// Counts the bytes of one connection, for itself and for its path.
#[derive(Debug)]
pub(crate) struct ConnectionCount {
    connection: Arc<LiveConnection>,
    path: Arc<PathMetrics>,
}

impl ConnectionCount {
    pub(crate) fn new(connection: Arc<LiveConnection>, path: Arc<PathMetrics>) -> Self {
        Self { connection, path }
    }

    fn add(&self, towards_opener: bool, bytes: usize) {
        let bytes = bytes as u64;
        if towards_opener {
            self.connection.bytes.tx.fetch_add(bytes, Ordering::Relaxed);
            self.path.tx_bytes.add(bytes);
        } else {
            self.connection.bytes.rx.fetch_add(bytes, Ordering::Relaxed);
            self.path.rx_bytes.add(bytes);
        }
    }
}

impl Count for ConnectionCount {
    fn came_from_peer(&self, bytes: usize) {
        self.add(self.connection.direction == Direction::Outbound, bytes);
    }

    fn went_to_peer(&self, bytes: usize) {
        self.add(self.connection.direction == Direction::Inbound, bytes);
    }
}

/// The connections of a sidecar that are open and proven, by number.
#[derive(Debug, Default)]
pub(crate) struct LiveTable(Mutex<HashMap<u64, Arc<LiveConnection>>>);

impl LiveTable {
    pub(crate) fn insert(self: &Arc<Self>, connection: LiveConnection) -> LiveEntry {
        let connection = Arc::new(connection);
        self.0.lock().insert(connection.id, Arc::clone(&connection));
        LiveEntry { connection, table: Arc::clone(self) }
    }

    pub(crate) fn list(&self) -> Vec<ConnectionInfo> {
        let open: Vec<_> = self.0.lock().values().cloned().collect();
        let mut list: Vec<_> = open.iter().map(|connection| connection.info()).collect();
        list.sort_by_key(|connection| connection.id);
        list
    }
}

/// Keeps a connection in the table.
#[derive(Debug)]
pub(crate) struct LiveEntry {
    pub(crate) connection: Arc<LiveConnection>,
    table: Arc<LiveTable>,
}

impl Drop for LiveEntry {
    fn drop(&mut self) {
        let mut table = self.table.0.lock();
        table.remove(&self.connection.id);
        // A burst must not leave its table behind for ever.
        if table.capacity() > 1024 && table.len() < table.capacity() / 4 {
            let most = table.len() * 2;
            table.shrink_to(most);
        }
    }
}

/// The next connection's number.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Lets through at most a number of lines a second and counts the rest.
#[derive(Debug)]
pub(crate) struct RateLimit {
    state: Mutex<(Instant, u32, u64)>,
    most: u32,
}

impl RateLimit {
    /// At most `most` lines in each second.
    pub(crate) fn per_second(most: u32) -> Self {
        Self { state: Mutex::new((Instant::now(), 0, 0)), most }
    }

    /// How many lines were held back since the last one, when this one may be written.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        let (began, written, held) = &mut *state;
        if now.saturating_duration_since(*began) >= Duration::from_secs(1) {
            (*began, *written) = (now, 0);
        }
        if *written == self.most {
            *held += 1;
            return None;
        }
        *written += 1;
        Some(std::mem::take(held))
    }
}

/// Counts what is under way, and wakes whoever waits for nothing to be.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: AtomicU64,
    none: Notify,
}

impl InFlight {
    pub(crate) fn enter(self: &Arc<Self>) -> InFlightGuard {
        self.count.fetch_add(1, Ordering::AcqRel);
        InFlightGuard(Arc::clone(self))
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Returns when nothing is under way.
    pub(crate) async fn wait_none(&self) {
        loop {
            let mut none = std::pin::pin!(self.none.notified());
            // Registered before the count is read, so an end between the two is not missed.
            none.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// One thing under way.
#[derive(Debug)]
pub(crate) struct InFlightGuard(Arc<InFlight>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reasons_have_distinct_names() {
        let mut names = HashSet::new();
        for limit in LimitName::ALL {
            assert!(names.insert(EndReason::Limit(limit).name()));
        }
        for failure in HandshakeFailure::ALL {
            assert!(names.insert(EndReason::Handshake(failure).name()));
        }
        for kind in RefusalKind::ALL {
            assert!(names.insert(EndReason::Refused(kind).name()));
        }
        for reason in RejectReason::ALL {
            assert!(names.insert(EndReason::Rejected(*reason).name()));
        }
    }

    #[test]
    fn lines_beyond_the_rate_are_held_back_and_counted() {
        let limit = RateLimit::per_second(2);
        let now = Instant::now();
        assert_eq!(limit.admit(now), Some(0));
        assert_eq!(limit.admit(now), Some(0));
        assert_eq!(limit.admit(now), None);
        assert_eq!(limit.admit(now), None);
        assert_eq!(limit.admit(now + Duration::from_secs(1)), Some(2));
    }

    #[tokio::test]
    async fn waiting_for_nothing_ends_with_the_last_guard() {
        let flights = Arc::new(InFlight::default());
        flights.wait_none().await;
        let (one, two) = (flights.enter(), flights.enter());
        let waiting = tokio::spawn({
            let flights = Arc::clone(&flights);
            async move { flights.wait_none().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        waiting.await.unwrap();
    }
}
