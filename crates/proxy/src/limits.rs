//! Who gets a slot, and who goes when there is none.
//!
//! Established connections and handshakes under way are capped apart, so that peers which never finish a handshake
//! cannot use up the room of those that have. When the handshakes are full, the oldest one that has not sent a whole
//! hello is given up for the new one, and where all have, the oldest that has proven nothing for a moment: an
//! attacker's stuck sockets make room for a good client, not the reverse.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::record::LimitName;

/// Descriptors kept for listeners, the agent, the admin interface, logs and the runtime.
const KEPT_DESCRIPTORS: usize = 200;

/// How many connections a descriptor limit allows: each takes two, and some are kept.
#[must_use]
pub fn connections_for(descriptors: u64) -> usize {
    let usable = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(KEPT_DESCRIPTORS);
    (usable / 2).clamp(4, 1_000_000)
}

/// The soft limit of descriptors of this process.
#[must_use]
pub fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit of descriptors to the hard one, and returns what it is then.
pub fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files to the hard one");
        }
    }
    descriptor_limit()
}

/// How long an honest peer takes for its side of a handshake at most, links across oceans and busy hosts included.
/// After that it may go for a new one, when there is no other room.
const HONEST_HANDSHAKE: Duration = Duration::from_secs(2);

/// Counts slots up to a bound that may change.
#[derive(Debug)]
pub(crate) struct Slots {
    used: AtomicUsize,
    most: AtomicUsize,
}

impl Slots {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most: AtomicUsize::new(most) })
    }

    pub(crate) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether there is none to take at the moment.
    pub(crate) fn are_taken(&self) -> bool {
        self.used() >= self.most.load(Ordering::Relaxed)
    }

    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        let most = self.most.load(Ordering::Relaxed);
        let taken =
            self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < most).then_some(used + 1));
        taken.is_ok().then(|| Slot(self.clone()))
    }
}

/// One slot, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The inbound handshakes under way.
#[derive(Debug)]
pub(crate) struct Handshakes {
    table: Mutex<Table>,
    most: AtomicUsize,
    most_per_source: AtomicUsize,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// In the order of their arrival, since numbers count up.
    under_way: std::collections::BTreeMap<u64, Entry>,
    by_source: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Entry {
    source: IpAddr,
    stage: Arc<AtomicU8>,
    began: Instant,
    given_up: CancellationToken,
}

/// How far a handshake has come, as far as giving it up is concerned.
const SILENT: u8 = 0;
const GREETED: u8 = 1;
const PROVEN: u8 = 2;

impl Entry {
    /// Whether it may go for a new one: at once while it has sent no whole hello, after a moment while it has proven
    /// nothing. One that is proven waits for our own authorizer, and stays.
    fn may_go(&self, stage: u8, now: Instant) -> bool {
        self.stage.load(Ordering::Relaxed) == stage
            && (stage == SILENT || now.saturating_duration_since(self.began) >= HONEST_HANDSHAKE)
    }
}

impl Handshakes {
    pub(crate) fn new(most: usize, most_per_source: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            most: AtomicUsize::new(most),
            most_per_source: AtomicUsize::new(most_per_source),
            next: AtomicU64::new(0),
        })
    }

    pub(crate) fn set_most(&self, most: usize, most_per_source: usize) {
        self.most.store(most, Ordering::Relaxed);
        self.most_per_source.store(most_per_source, Ordering::Relaxed);
    }

    pub(crate) fn under_way(&self) -> usize {
        self.table.lock().under_way.len()
    }

    /// A place for a handshake with `source`. Where all are taken, the oldest that is silent is given up for it, and if
    /// none is, the oldest that has proven nothing for longer than an honest peer takes.
    pub(crate) fn begin(self: &Arc<Self>, source: IpAddr) -> Result<Handshake, LimitName> {
        let source = network(source);
        let mut table = self.table.lock();
        let of_source = table.by_source.get(&source).copied().unwrap_or(0);
        // A source that is over its share pays with its own oldest silent handshake, before anybody else does.
        let own_share = of_source >= self.most_per_source.load(Ordering::Relaxed);
        if own_share || table.under_way.len() >= self.most.load(Ordering::Relaxed) {
            let now = Instant::now();
            let oldest = [SILENT, GREETED].into_iter().find_map(|stage| {
                let may_go = |entry: &Entry| entry.may_go(stage, now) && (!own_share || entry.source == source);
                table.under_way.iter().find(|(_, entry)| may_go(entry)).map(|(number, _)| *number)
            });
            let Some(oldest) = oldest else {
                return Err(if own_share { LimitName::HandshakesPerSource } else { LimitName::Handshakes });
            };
            table.remove(oldest);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (stage, given_up) = (Arc::new(AtomicU8::new(SILENT)), CancellationToken::new());
        *table.by_source.entry(source).or_default() += 1;
        let entry = Entry { source, stage: stage.clone(), began: Instant::now(), given_up: given_up.clone() };
        table.under_way.insert(number, entry);
        Ok(Handshake { number, stage, given_up, all: self.clone() })
    }
}

impl Table {
    fn remove(&mut self, number: u64) {
        let Some(entry) = self.under_way.remove(&number) else { return };
        entry.given_up.cancel();
        if let Some(count) = self.by_source.get_mut(&entry.source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&entry.source);
            }
        }
    }
}

/// One handshake under way.
#[derive(Debug)]
pub(crate) struct Handshake {
    number: u64,
    stage: Arc<AtomicU8>,
    given_up: CancellationToken,
    all: Arc<Handshakes>,
}

impl Handshake {
    /// The peer has sent a whole hello.
    pub(crate) fn greeted(&self) {
        self.stage.store(GREETED, Ordering::Relaxed);
    }

    /// The peer has proven who it is.
    pub(crate) fn proven(&self) {
        self.stage.store(PROVEN, Ordering::Relaxed);
    }

    /// Returns when the place was given to somebody else.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.table.lock().remove(self.number);
    }
}

/// The address that counts as one source: an IPv6 host may choose among a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn slots_come_back_when_they_are_dropped() {
        let slots = Slots::new(1);
        let slot = slots.take().unwrap();
        assert!(slots.take().is_none());
        drop(slot);
        assert!(slots.take().is_some());
    }

    #[tokio::test]
    async fn the_oldest_silent_handshake_goes_when_all_places_are_taken() {
        let all = Handshakes::new(2, 2);
        let (first, second) = (all.begin(host(1)).unwrap(), all.begin(host(2)).unwrap());
        first.greeted();
        let third = all.begin(host(3)).unwrap();
        second.given_up().await;
        third.greeted();
        assert_eq!(all.begin(host(4)).unwrap_err(), LimitName::Handshakes);
        drop(first);
        assert!(all.begin(host(4)).is_ok());
        assert_eq!(all.under_way(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_greets_and_then_falls_silent_goes_after_a_moment_and_a_proven_one_stays() {
        let all = Handshakes::new(2, 2);
        let (stuck, proven) = (all.begin(host(1)).unwrap(), all.begin(host(2)).unwrap());
        stuck.greeted();
        proven.proven();
        assert_eq!(all.begin(host(3)).unwrap_err(), LimitName::Handshakes);
        tokio::time::advance(HONEST_HANDSHAKE).await;
        let good = all.begin(host(3)).unwrap();
        stuck.given_up().await;
        good.proven();
        assert!(!proven.given_up.is_cancelled());
        assert_eq!(all.begin(host(4)).unwrap_err(), LimitName::Handshakes);
    }

    #[tokio::test]
    async fn a_source_over_its_share_pays_with_its_own() {
        let all = Handshakes::new(10, 1);
        let (other, mine) = (all.begin(host(1)).unwrap(), all.begin(host(2)).unwrap());
        let again = all.begin(host(2)).unwrap();
        mine.given_up().await;
        assert!(!other.given_up.is_cancelled());
        again.greeted();
        assert_eq!(all.begin(host(2)).unwrap_err(), LimitName::HandshakesPerSource);
    }

    #[test]
    fn a_whole_ipv6_network_is_one_source() {
        assert_eq!(network("2001:db8::1".parse().unwrap()), network("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(network("2001:db8::1".parse().unwrap()), network("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), host(1));
    }

    #[test]
    fn each_connection_is_counted_with_two_descriptors() {
        assert_eq!(connections_for(20_200), 10_000);
        assert_eq!(connections_for(0), 4);
    }
}
