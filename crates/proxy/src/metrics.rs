//! The numbers of a sidecar: plain atomics, and a snapshot that the binary turns into whatever its scraper reads.

use std::{
    array,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lictor_core::{RefusalKind, RejectReason};
use parking_lot::RwLock;

use crate::record::{EndReason, HandshakeFailure, LimitName};

/// The upper bounds of the duration buckets, in microseconds; one more bucket takes what is above.
pub const DURATION_BOUNDS_MICROS: [u64; 10] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000];

/// A counter that only goes up.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, as buckets, sum and count.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [Counter; DURATION_BOUNDS_MICROS.len() + 1],
    micros: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| Counter::default()), micros: Counter::default() }
    }
}

impl Histogram {
    pub(crate) fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].add(1);
        self.micros.add(micros);
    }

    fn snapshot(&self) -> HistogramSnapshot {
        let buckets = array::from_fn(|index: usize| self.buckets[index].get());
        HistogramSnapshot { count: buckets.iter().sum(), sum: Duration::from_micros(self.micros.get()), buckets }
    }
}

/// The numbers of one direction, or of one upstream.
#[derive(Debug)]
pub(crate) struct PathMetrics {
    /// Sockets accepted.
    pub(crate) accepted: Counter,
    /// Connections that are proven and open.
    pub(crate) open: Gauge,
    /// Connections that have been proven.
    pub(crate) established: Counter,
    pub(crate) tx_bytes: Counter,
    pub(crate) rx_bytes: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) bare_opens: Counter,
    pub(crate) handshake: Histogram,
    pub(crate) authorize: Histogram,
    pub(crate) rejected: Vec<Counter>,
    pub(crate) refused: [Counter; RefusalKind::ALL.len()],
    pub(crate) limited: [Counter; LimitName::ALL.len()],
    pub(crate) failed: [Counter; HandshakeFailure::ALL.len()],
    other: [Counter; OTHER.len()],
}

/// The ends that are counted by name besides those with tables of their own.
const OTHER: [EndReason; 16] = [
    EndReason::Finished,
    EndReason::NoMaterial,
    EndReason::ApplicationUnreachable,
    EndReason::NoInstance,
    EndReason::NoDiscovery,
    EndReason::UpstreamUnreachable,
    EndReason::Truncated,
    EndReason::PeerReset,
    EndReason::PeerAlert,
    EndReason::BadRecord,
    EndReason::ApplicationReset,
    EndReason::Idle,
    EndReason::Revoked,
    EndReason::PeerLapsed,
    EndReason::Cut,
    EndReason::Internal,
];

impl Default for PathMetrics {
    fn default() -> Self {
        Self {
            accepted: Counter::default(),
            open: Gauge::default(),
            established: Counter::default(),
            tx_bytes: Counter::default(),
            rx_bytes: Counter::default(),
            accept_errors: Counter::default(),
            bare_opens: Counter::default(),
            handshake: Histogram::default(),
            authorize: Histogram::default(),
            rejected: RejectReason::ALL.iter().map(|_| Counter::default()).collect(),
            refused: array::from_fn(|_| Counter::default()),
            limited: array::from_fn(|_| Counter::default()),
            failed: array::from_fn(|_| Counter::default()),
            other: array::from_fn(|_| Counter::default()),
        }
    }
}

impl PathMetrics {
    /// Counts the end of a connection under its reason.
    pub(crate) fn ended(&self, reason: EndReason) {
        fn place<T: PartialEq>(all: &[T], one: &T) -> Option<usize> {
            all.iter().position(|each| each == one)
        }
        let counter = match &reason {
            EndReason::Rejected(reason) => place(RejectReason::ALL, reason).map(|at| &self.rejected[at]),
            EndReason::Refused(kind) => place(&RefusalKind::ALL, kind).map(|at| &self.refused[at]),
            EndReason::Limit(limit) => place(&LimitName::ALL, limit).map(|at| &self.limited[at]),
            EndReason::Handshake(failure) => place(&HandshakeFailure::ALL, failure).map(|at| &self.failed[at]),
            other => place(&OTHER, other).map(|at| &self.other[at]),
        };
        debug_assert!(counter.is_some(), "{reason} is counted nowhere");
        if let Some(counter) = counter {
            counter.add(1);
        }
    }

    fn snapshot(&self) -> PathSnapshot {
        fn named(names: impl Iterator<Item = &'static str>, counters: &[Counter]) -> Vec<(&'static str, u64)> {
            names.zip(counters).map(|(name, counter)| (name, counter.get())).collect()
        }
        PathSnapshot {
            accepted: self.accepted.get(),
            open: self.open.get(),
            established: self.established.get(),
            tx_bytes: self.tx_bytes.get(),
            rx_bytes: self.rx_bytes.get(),
            accept_errors: self.accept_errors.get(),
            bare_opens: self.bare_opens.get(),
            handshake: self.handshake.snapshot(),
            authorize: self.authorize.snapshot(),
            rejected: named(RejectReason::ALL.iter().map(|reason| reason.name()), &self.rejected),
            refused: named(RefusalKind::ALL.iter().map(|kind| kind.name()), &self.refused),
            limited: named(LimitName::ALL.iter().map(|limit| limit.name()), &self.limited),
            handshake_failures: named(HandshakeFailure::ALL.iter().map(|failure| failure.name()), &self.failed),
            ended: named(OTHER.iter().map(|reason| reason.name()), &self.other),
        }
    }
}

/// The numbers of a sidecar.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) inbound: Arc<PathMetrics>,
    upstreams: RwLock<BTreeMap<String, Arc<PathMetrics>>>,
    rejudged: [Counter; Rejudged::ALL.len()],
}

/// What came of judging the open connections of a peer again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejudged {
    /// They live on by a decision.
    Permitted,
    /// They live on because nobody could decide.
    Undecided,
    /// They were ended by a decision.
    Revoked,
    /// They were ended because the certificate no longer counts.
    Lapsed,
}

impl Rejudged {
    const ALL: [Self; 4] = [Self::Permitted, Self::Undecided, Self::Revoked, Self::Lapsed];

    fn name(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Undecided => "undecided",
            Self::Revoked => "revoked",
            Self::Lapsed => "lapsed",
        }
    }
}

impl Metrics {
    /// The numbers of the upstream called `name`; they outlive its removal, since counters must not go back.
    pub(crate) fn upstream(&self, name: &str) -> Arc<PathMetrics> {
        if let Some(found) = self.upstreams.read().get(name) {
            return Arc::clone(found);
        }
        Arc::clone(self.upstreams.write().entry(name.to_owned()).or_default())
    }

    pub(crate) fn rejudged(&self, outcome: Rejudged) -> &Counter {
        &self.rejudged[outcome as usize]
    }

    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            inbound: self.inbound.snapshot(),
            rejudged: Rejudged::ALL.iter().map(|outcome| (outcome.name(), self.rejudged(*outcome).get())).collect(),
            upstreams: self.upstreams.read().iter().map(|(name, path)| (name.clone(), path.snapshot())).collect(),
            held_bytes: 0,
            connections_in_use: 0,
            handshakes_in_flight: 0,
            material_generation: None,
        }
    }
}

/// The numbers of a sidecar at one moment.
#[derive(Clone, Debug)]
pub struct MetricsSnapshot {
    /// The inbound listener's.
    pub inbound: PathSnapshot,
    /// Each upstream's, those that are gone included.
    pub upstreams: BTreeMap<String, PathSnapshot>,
    /// How often the open connections of an inbound peer were judged again, by what came of it.
    pub rejudged: Vec<(&'static str, u64)>,
    /// Bytes that connections hold for slow readers.
    pub held_bytes: u64,
    /// Connection slots in use, in both directions, handshakes included.
    pub connections_in_use: u64,
    /// Inbound handshakes under way.
    pub handshakes_in_flight: u64,
    /// The generation of the material in use.
    pub material_generation: Option<u64>,
}

/// The numbers of one direction or upstream. Names in the pairs are stable and fit for labels.
#[derive(Clone, Debug)]
pub struct PathSnapshot {
    /// Sockets accepted.
    pub accepted: u64,
    /// Connections proven and open.
    pub open: u64,
    /// Connections proven, ever.
    pub established: u64,
    /// Bytes sent to whoever opened the connection.
    pub tx_bytes: u64,
    /// Bytes received from whoever opened the connection.
    pub rx_bytes: u64,
    /// Errors of accept(2) after which the listener went on.
    pub accept_errors: u64,
    /// Connections that were closed without one byte, as TCP health checks do.
    pub bare_opens: u64,
    /// How long handshakes took that succeeded, authorization not included.
    pub handshake: HistogramSnapshot,
    /// How long authorization took, whatever it said.
    pub authorize: HistogramSnapshot,
    /// Peers that the verifier refused, by [`RejectReason`].
    pub rejected: Vec<(&'static str, u64)>,
    /// Connections that the authorizer refused, by [`RefusalKind`].
    pub refused: Vec<(&'static str, u64)>,
    /// Connections turned away by a limit, by [`LimitName`].
    pub limited: Vec<(&'static str, u64)>,
    /// Handshakes that failed otherwise, by [`HandshakeFailure`].
    pub handshake_failures: Vec<(&'static str, u64)>,
    /// All other ends, by [`EndReason`].
    pub ended: Vec<(&'static str, u64)>,
}

/// A histogram at one moment.
#[derive(Clone, Debug)]
pub struct HistogramSnapshot {
    /// How many were recorded.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
    /// How many fell under each of [`DURATION_BOUNDS_MICROS`] and above the one before; the last is above all.
    pub buckets: [u64; DURATION_BOUNDS_MICROS.len() + 1],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_counted_under_its_own_name() {
        let path = PathMetrics::default();
        path.ended(EndReason::Rejected(RejectReason::UnknownIssuer));
        path.ended(EndReason::Refused(RefusalKind::Denied));
        path.ended(EndReason::Limit(LimitName::Handshakes));
        path.ended(EndReason::Handshake(HandshakeFailure::Timeout));
        OTHER.iter().for_each(|reason| path.ended(*reason));
        let snapshot = path.snapshot();
        let value = |pairs: &[(&str, u64)], name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        assert_eq!(value(&snapshot.rejected, "unknown_issuer"), Some(1));
        assert_eq!(value(&snapshot.refused, "denied"), Some(1));
        assert_eq!(value(&snapshot.limited, "handshakes"), Some(1));
        assert_eq!(value(&snapshot.handshake_failures, "handshake_timeout"), Some(1));
        assert!(snapshot.ended.iter().all(|(_, count)| *count == 1));
        assert_eq!(snapshot.rejected.iter().map(|(_, count)| count).sum::<u64>(), 1);
    }

    #[test]
    fn durations_fall_into_the_first_bucket_that_is_large_enough() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(250));
        histogram.record(Duration::from_micros(251));
        histogram.record(Duration::from_secs(60));
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.buckets[0], snapshot.buckets[1], snapshot.buckets[10]), (1, 1, 1));
        assert_eq!(snapshot.count, 3);
        assert_eq!(snapshot.sum, Duration::from_micros(60_000_501));
    }

    #[test]
    fn an_upstream_that_comes_back_goes_on_counting() {
        let metrics = Metrics::default();
        metrics.upstream("db").accepted.add(2);
        metrics.upstream("db").accepted.add(1);
        assert_eq!(metrics.snapshot().upstreams["db"].accepted, 3);
    }
}
