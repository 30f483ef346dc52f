//! Judges open inbound connections again, where the operator asks for it.
//!
//! A policy that turns refuses new connections at once and leaves open ones alone, as Consul does everywhere. With a
//! period set, each peer that has connections open is judged again once a period: by time and by the newest roots,
//! then by the authorizer. Connections are grouped by the chain that their peer showed, so a pool of a thousand
//! connections of one client is one question, and what must be kept for it is kept once.
//!
//! Only a decision ends connections. Whatever leaves the authorizer without one (the agent is away, our token is
//! refused, no answer in time) changes nothing: an outage of the agent must not become one of the services.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use lictor_core::{ExpectedPeer, Inbound, PeerIdentity, PeerProof, Refusal, RefusalKind};
use parking_lot::Mutex;
use rand::Rng as _;
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{metrics::Rejudged, record::EndReason, relay::End, shared::Shared};

/// How many questions may be on their way at once: a quarter of what the agent's client allows for authorization, so
/// that new connections never wait for old ones.
const IN_FLIGHT: usize = 2;

/// The least time between two questions, whatever the period: a hundred a second, of which an agent feels little.
const GAP: Duration = Duration::from_millis(10);

/// How long the authorizer may take. Nobody waits for the answer, but the next question may.
const WITHIN: Duration = Duration::from_secs(5);

type Chain = [CertificateDer<'static>];

/// The peers that have connections open, and when each is judged next. `P` is what a judgement needs besides the chain.
pub(crate) struct Book<P> {
    state: Mutex<State<P>>,
    /// There may be something due earlier than there was.
    changed: Notify,
}

struct State<P> {
    period: Option<Duration>,
    next_id: u64,
    peers: HashMap<ByChain<P>, Standing>,
    due: BTreeMap<(Instant, u64), Arc<Peer<P>>>,
}

struct Standing {
    due: Instant,
    connections: usize,
}

/// All connections of one chain.
pub(crate) struct Peer<P> {
    id: u64,
    chain: Vec<CertificateDer<'static>>,
    of: P,
    end: OnceLock<End>,
    ended: CancellationToken,
}

/// A peer under its chain.
struct ByChain<P>(Arc<Peer<P>>);

impl<P> Borrow<Chain> for ByChain<P> {
    fn borrow(&self) -> &Chain {
        &self.0.chain
    }
}

impl<P> Hash for ByChain<P> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.chain[..].hash(state);
    }
}

impl<P> PartialEq for ByChain<P> {
    fn eq(&self, other: &Self) -> bool {
        self.0.chain == other.0.chain
    }
}

impl<P> Eq for ByChain<P> {}

impl<P> Default for Book<P> {
    fn default() -> Self {
        let state = State { period: None, next_id: 0, peers: HashMap::new(), due: BTreeMap::new() };
        Self { state: state.into(), changed: Notify::new() }
    }
}

impl<P> fmt::Debug for Book<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Book").field("period", &state.period).field("peers", &state.peers.len()).finish()
    }
}

impl<P> Book<P> {
    /// Judges each peer once in `period` from now on; `None` for never.
    pub(crate) fn set_period(&self, period: Option<Duration>) {
        let mut state = self.state.lock();
        if state.period == period {
            return;
        }
        state.period = period;
        if let Some(period) = period {
            state.bring_forward(|| Instant::now() + part_of(period));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Notes a connection that has just been permitted; `None` while nothing is judged again.
    pub(crate) fn join(self: &Arc<Self>, chain: Vec<CertificateDer<'static>>, of: P) -> Option<Member<P>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let period = state.period?;
        let peer = match state.peers.get_key_value(&chain[..]) {
            Some((ByChain(known), _)) => known.clone(),
            None => {
                state.next_id += 1;
                let id = state.next_id;
                let peer = Peer { id, chain, of, end: OnceLock::new(), ended: CancellationToken::new() };
                let (peer, due) = (Arc::new(peer), Instant::now() + part_of(period));
                state.peers.insert(ByChain(peer.clone()), Standing { due, connections: 0 });
                state.due.insert((due, id), peer.clone());
                self.changed.notify_one();
                peer
            }
        };
        if let Some(standing) = state.peers.get_mut(&peer.chain[..]) {
            standing.connections += 1;
        }
        Some(Member { book: self.clone(), peer })
    }

    /// Everything is due now: decisions may have changed.
    fn hurry(&self) {
        self.state.lock().bring_forward(Instant::now);
        self.changed.notify_one();
    }

    /// The next peer, as soon as it is due; it is due again a period later.
    async fn next(&self) -> Arc<Peer<P>> {
        loop {
            let first = self.state.lock().take_due();
            match first {
                Ok(peer) => return peer,
                Err(Some(at)) => {
                    tokio::select! {
                        () = sleep_until(at) => {}
                        () = self.changed.notified() => {}
                    }
                }
                Err(None) => self.changed.notified().await,
            }
        }
    }

    /// Ends all connections of `peer`.
    fn end(&self, peer: &Arc<Peer<P>>, end: End) {
        let mut state = self.state.lock();
        // Out of the book first: whoever comes with this chain from now on was permitted later.
        state.forget(peer);
        drop(state);
        if peer.end.set(end).is_ok() {
            peer.ended.cancel();
        }
    }
}

impl<P> State<P> {
    /// Takes the first one that is due, or says when it is.
    fn take_due(&mut self) -> Result<Arc<Peer<P>>, Option<Instant>> {
        let (Some(period), Some(first)) = (self.period, self.due.first_entry()) else { return Err(None) };
        let now = Instant::now();
        if first.key().0 > now {
            return Err(Some(first.key().0));
        }
        let peer = first.remove();
        let due = now + period;
        if let Some(standing) = self.peers.get_mut(&peer.chain[..]) {
            standing.due = due;
            self.due.insert((due, peer.id), peer.clone());
        }
        Ok(peer)
    }

    fn bring_forward(&mut self, mut to: impl FnMut() -> Instant) {
        self.due.clear();
        for (ByChain(peer), standing) in &mut self.peers {
            standing.due = standing.due.min(to());
            self.due.insert((standing.due, peer.id), peer.clone());
        }
    }

    /// Takes `peer` out, if it is still in.
    fn forget(&mut self, peer: &Arc<Peer<P>>) {
        let known = self.peers.get_key_value(&peer.chain[..]);
        if known.is_some_and(|(known, _)| Arc::ptr_eq(&known.0, peer))
            && let Some(standing) = self.peers.remove(&peer.chain[..])
        {
            self.due.remove(&(standing.due, peer.id));
        }
    }
}

/// A moment within `period`, so that peers that came together are not judged together.
fn part_of(period: Duration) -> Duration {
    period.mul_f64(rand::rng().random_range(0.1..=1.0))
}

/// One open connection in the book.
pub(crate) struct Member<P> {
    book: Arc<Book<P>>,
    peer: Arc<Peer<P>>,
}

impl<P> Member<P> {
    /// Returns when the connection has to end.
    pub(crate) async fn ended(&self) -> End {
        self.peer.ended.cancelled().await;
        self.peer.end.get().cloned().unwrap_or((EndReason::Internal, String::new()))
    }
}

impl<P> Drop for Member<P> {
    fn drop(&mut self) {
        let mut state = self.book.state.lock();
        let known = state.peers.get_key_value(&self.peer.chain[..]);
        if !known.is_some_and(|(known, _)| Arc::ptr_eq(&known.0, &self.peer)) {
            return;
        }
        let Some(standing) = state.peers.get_mut(&self.peer.chain[..]) else { return };
        standing.connections -= 1;
        if standing.connections == 0 {
            state.forget(&self.peer);
        }
    }
}

/// Judges peers as they become due, and all of them soon after `changes` says that decisions may be others. Never ends.
async fn walk<P, J, F>(book: &Arc<Book<P>>, mut changes: Option<watch::Receiver<u64>>, judge: J)
where
    P: Send + Sync + 'static,
    J: Fn(Arc<Peer<P>>) -> F,
    F: Future<Output = Option<End>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut asked = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        while asked.try_join_next().is_some() {}
        let peer = tokio::select! {
            peer = book.next() => peer,
            () = changed(&mut changes) => {
                book.hurry();
                continue;
            }
        };
        let (book, judged) = (book.clone(), judge(peer.clone()));
        asked.spawn(async move {
            if let Some(end) = judged.await {
                book.end(&peer, end);
            }
            drop(place);
        });
        sleep(GAP).await;
    }
}

async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = changes {
        if receiver.changed().await.is_ok() {
            return;
        }
        *changes = None;
    }
    std::future::pending().await
}

/// What is kept of a peer besides its chain.
#[derive(Debug)]
pub(crate) struct Known {
    identity: PeerIdentity,
    /// The list of roots under which its chain passed last.
    roots: AtomicU64,
}

/// Notes a connection of the peer that `proof` is about, which has just been permitted.
pub(crate) fn join(shared: &Shared, proof: PeerProof) -> Option<Member<Known>> {
    let PeerProof { identity, chain, roots_generation } = proof;
    shared.book.join(chain, Known { identity, roots: roots_generation.into() })
}

/// Judges the open connections of a sidecar until it is dropped.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let (book, changes) = (shared.book.clone(), shared.authorizer.changes());
    let deciding = Arc::new(AtomicBool::new(true));
    walk(&book, changes, |peer| judge(shared.clone(), peer, deciding.clone())).await;
}

/// Judges one peer. `deciding` is whether the last question had a decision for its answer.
async fn judge(shared: Arc<Shared>, peer: Arc<Peer<Known>>, deciding: Arc<AtomicBool>) -> Option<End> {
    let Known { identity, roots } = &peer.of;
    let count = |outcome| shared.metrics.rejudged(outcome).add(1);
    let serving = shared.live.serving()?;
    let own = ExpectedPeer::ClientOf(serving.material.leaf.identity().clone());
    match shared.live.judge_later(own, &serving, identity, &peer.chain, roots.load(Ordering::Relaxed)) {
        Ok(generation) => roots.store(generation, Ordering::Relaxed),
        Err(reason) => {
            count(Rejudged::Lapsed);
            tracing::warn!(peer.identity = identity.uri(), peer.serial = %identity.serial(), reason = reason.name(), "a certificate no longer counts; its open connections are ended");
            return Some((EndReason::PeerLapsed, reason.name().to_owned()));
        }
    }
    let question = Inbound { target: &shared.service, peer: identity, within: WITHIN };
    let answer = timeout(WITHIN + WITHIN / 4, shared.authorizer.authorize(&question)).await;
    let silent = || Refusal { kind: RefusalKind::Timeout, detail: "the authorizer did not answer".to_owned() };
    match answer.unwrap_or_else(|_| Err(silent())) {
        Ok(_) => {
            count(Rejudged::Permitted);
            if !deciding.swap(true, Ordering::Relaxed) {
                tracing::info!("open connections are judged again");
            }
            None
        }
        Err(Refusal { kind: RefusalKind::Denied, detail }) => {
            count(Rejudged::Revoked);
            deciding.store(true, Ordering::Relaxed);
            tracing::warn!(peer.identity = identity.uri(), peer.serial = %identity.serial(), reason = %detail, "a peer is no longer permitted; its open connections are ended");
            Some((EndReason::Revoked, detail))
        }
        Err(Refusal { kind, detail }) => {
            count(Rejudged::Undecided);
            if deciding.swap(false, Ordering::Relaxed) {
                tracing::warn!(
                    reason = kind.name(),
                    detail,
                    "open connections cannot be judged again; they live on until they can"
                );
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    fn chain(name: &str) -> Vec<CertificateDer<'static>> {
        vec![name.as_bytes().to_vec().into()]
    }

    fn book() -> Arc<Book<()>> {
        let book = Arc::new(Book::default());
        book.set_period(Some(PERIOD));
        book
    }

    fn revoked() -> Option<End> {
        Some((EndReason::Revoked, "turned".to_owned()))
    }

    /// Walks for `time`; how often each chain was judged, by a judge that ends those that `ends` accepts.
    async fn walked(book: &Arc<Book<()>>, time: Duration, ends: fn(&str) -> bool) -> HashMap<String, usize> {
        let asked: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let count = asked.clone();
        let judge = move |peer: Arc<Peer<()>>| {
            let name = String::from_utf8_lossy(&peer.chain[0]).into_owned();
            let end = ends(&name);
            *count.lock().entry(name).or_default() += 1;
            async move { if end { revoked() } else { None } }
        };
        let _ = timeout(time, walk(book, None, judge)).await;
        asked.lock().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_one_chain_are_one_question_a_period() {
        let book = book();
        let members: Vec<_> = ["web", "web", "web", "shop"].map(|name| book.join(chain(name), ())).into();
        let asked = walked(&book, PERIOD * 10, |_| false).await;
        for name in ["web", "shop"] {
            assert!((10..=11).contains(&asked[name]), "{asked:?}");
        }
        drop(members);
        assert!(walked(&book, PERIOD * 2, |_| false).await.is_empty(), "who is gone is not asked about");
        let state = book.state.lock();
        assert!(state.peers.is_empty() && state.due.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_denied_ends_within_the_period_and_its_neighbours_do_not() {
        let book = book();
        let web = [book.join(chain("web"), ()).unwrap(), book.join(chain("web"), ()).unwrap()];
        let shop = book.join(chain("shop"), ()).unwrap();
        let begun = Instant::now();
        let walking = walked(&book, PERIOD * 3, |name| name == "web");
        let ends = async {
            for member in &web {
                assert_eq!(member.ended().await.0, EndReason::Revoked);
            }
            assert!(begun.elapsed() <= PERIOD + Duration::from_secs(1), "{:?}", begun.elapsed());
        };
        let (asked, ()) = tokio::join!(walking, ends);
        assert_eq!(asked["web"], 1, "who is out of the book is not judged again");
        assert!(asked["shop"] >= 2);
        assert!(futures_util::FutureExt::now_or_never(shop.ended()).is_none());
        let again = book.join(chain("web"), ()).unwrap();
        assert!(futures_util::FutureExt::now_or_never(again.ended()).is_none(), "who comes later was permitted later");
        drop(web);
        assert_eq!(book.state.lock().peers.len(), 2, "the end of the old ones takes nothing from the new one");
    }

    #[tokio::test]
    async fn a_connection_that_is_judged_again_costs_a_hundred_bytes_or_so() {
        let member = book().join(chain("web"), ()).unwrap();
        let bytes = size_of_val(&member) + size_of_val(&member.ended());
        assert!(bytes <= 160, "{bytes} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_period_nothing_is_kept_and_nobody_asked() {
        let book = Arc::new(Book::default());
        assert!(book.join(chain("web"), ()).is_none());
        assert!(walked(&book, PERIOD, |_| true).await.is_empty());
        book.set_period(Some(PERIOD));
        let member = book.join(chain("web"), ()).unwrap();
        book.set_period(None);
        assert!(walked(&book, PERIOD * 5, |_| true).await.is_empty());
        book.set_period(Some(PERIOD / 10));
        assert_eq!(walked(&book, PERIOD / 5, |_| true).await["web"], 1, "it was kept and is judged when it may be");
        drop(member);
    }

    #[tokio::test(start_paused = true)]
    async fn many_peers_are_asked_about_at_a_bounded_pace_and_a_few_at_once() {
        let book = book();
        book.set_period(Some(Duration::from_secs(1)));
        let members: Vec<_> = (0..500).map(|number| book.join(chain(&number.to_string()), ())).collect();
        let (now, most, all) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (count, peak, total) = (now, most.clone(), all.clone());
        let judge = move |_| {
            let (now, most, all) = (count.clone(), peak.clone(), total.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                all.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(15)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                None
            }
        };
        let _ = timeout(Duration::from_secs(4), walk(&book, None, judge)).await;
        let (most, all) = (most.load(Ordering::SeqCst), all.load(Ordering::SeqCst));
        assert!(most <= IN_FLIGHT, "{most} at once");
        assert!((200..=400).contains(&all), "{all} in 4 s");
        drop(members);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_decisions_is_followed_at_once() {
        let book = book();
        book.set_period(Some(PERIOD * 60));
        let member = book.join(chain("web"), ()).unwrap();
        let (tell, changes) = watch::channel(0);
        tell.send_replace(1);
        let walking = walk(&book, Some(changes), |_| async { revoked() });
        let begun = Instant::now();
        tokio::select! {
            () = walking => unreachable!("it never ends"),
            end = member.ended() => assert_eq!(end.0, EndReason::Revoked),
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}
