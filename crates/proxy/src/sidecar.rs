//! One service identity with its listeners: started once, changed by difference, drained at the end.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use lictor_core::{Authorizer, CertSource, Discovery, PeerPolicy, TlsBackend, TlsPolicy, rotation::system_clock};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    balancer::Balancer,
    config::{BindPolicy, Clamp, InboundConfig, Limits, SidecarConfig, UpstreamConfig},
    dial::Dialler,
    inbound,
    limits::{Handshakes, Slots, connections_for, descriptor_limit},
    listener::{Accepted, Bound, Loops},
    live::Live,
    metrics::{Metrics, MetricsSnapshot, PathMetrics},
    outbound::{self, Upstream},
    record::{ConnectionInfo, EndReason, LimitName, LiveTable, RateLimit},
    rejudge,
    relay::Budget,
    shared::Shared,
    socket::{Plain, reset},
    workers::Workers,
};

/// Lines a second about peers that have proven nothing.
const LINES: u32 = 10;

/// The first and the longest pause between two tries to bind an address.
const REBIND: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long cut connections may take to be gone.
const CUT: Duration = Duration::from_secs(2);

/// What a sidecar works with.
#[derive(Clone)]
pub struct Deps {
    /// Where certificate and roots come from.
    pub certs: Arc<dyn CertSource>,
    /// Who decides about inbound connections.
    pub authorizer: Arc<dyn Authorizer>,
    /// Where upstreams are.
    pub discovery: Arc<dyn Discovery>,
    /// The TLS library.
    pub backend: Arc<dyn TlsBackend>,
    /// What is agreed with peers.
    pub tls_policy: TlsPolicy,
    /// What operators allow of peers.
    pub peer_policy: Arc<PeerPolicy>,
    /// The data threads.
    pub workers: Arc<Workers>,
    /// The runtime of everything that is not a connection: questions to the agent, following certificates, binding
    /// again.
    pub control: Handle,
}

/// One service identity with its listeners. A process may run several.
pub struct Sidecar {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    state: Mutex<State>,
    board: Arc<Board>,
    stop: CancellationToken,
    /// How many connections were cut.
    forced: AtomicU64,
}

struct State {
    config: SidecarConfig,
    inbound: Option<InboundListener>,
    upstreams: BTreeMap<String, UpstreamListener>,
    draining: bool,
}

struct InboundListener {
    config: Arc<ArcSwap<InboundConfig>>,
    slots: Arc<Slots>,
    opening: Opening,
}

struct UpstreamListener {
    upstream: Arc<ArcSwap<Upstream>>,
    opening: Opening,
}

/// A listener that is open, or on its way to be.
struct Opening {
    loops: Arc<Mutex<Option<Loops>>>,
    /// Ends the task that tries to bind, on whatever way the opening goes.
    given_up: DropGuard,
}

impl Opening {
    /// Closes it; who waits in its queue is still served.
    async fn close(self) {
        drop(self.given_up);
        let loops = self.loops.lock().take();
        if let Some(loops) = loops {
            loops.stop().await;
        }
    }
}

/// Where one listener stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// `None` for the inbound listener, otherwise the name of the upstream.
    pub upstream: Option<String>,
    /// Where it is to listen, as configured.
    pub bind: String,
    /// Where it stands.
    pub state: ListenerState,
}

/// Where a listener stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// It opens when there is material.
    WaitingForMaterial,
    /// It is open, at this address where it is a TCP one (a configured port 0 is replaced by the real one).
    Listening(Option<SocketAddr>),
    /// It could not be bound.
    Failed {
        /// The system's words.
        error: String,
        /// Whether it is tried again.
        retrying: bool,
    },
    /// It has been closed by a drain.
    Closed,
}

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {bind} for {}: {source}", whose(.upstream))]
pub struct BindError {
    /// `None` for the inbound listener, otherwise the name of the upstream.
    pub upstream: Option<String>,
    /// Where it was to listen.
    pub bind: String,
    /// What the system said; `AddrInUse` is the one that has an exit code of its own.
    pub source: io::Error,
}

/// What [`Sidecar::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Upstreams that are new.
    pub added: Vec<String>,
    /// Upstreams whose listener or target changed.
    pub changed: Vec<String>,
    /// Upstreams that are gone; their connections go on until they end.
    pub removed: Vec<String>,
    /// The inbound listener came, went, moved, or has another target.
    pub inbound_changed: bool,
    /// Listeners of [`BindPolicy::Fail`] that could not be bound; all others serve.
    pub failed: Vec<BindError>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// How many connections had not finished by the deadline and were cut.
    pub forced: u64,
}

/// Where the listeners stand, the inbound one first.
#[derive(Debug, Default)]
struct Board(Mutex<BTreeMap<Option<String>, ListenerStatus>>);

impl Board {
    fn tell(&self, upstream: Option<&str>, bind: &str, state: ListenerState) {
        let key = upstream.map(str::to_owned);
        let new = ListenerStatus { upstream: key.clone(), bind: bind.to_owned(), state };
        let mut board = self.0.lock();
        if board.get(&key) == Some(&new) {
            return;
        }
        let listener = whose(&new.upstream);
        match &new.state {
            ListenerState::WaitingForMaterial => tracing::info!(listener, bind, "waiting for the first certificate"),
            ListenerState::Listening(_) => tracing::info!(listener, bind, "listening"),
            ListenerState::Failed { error, retrying } => {
                tracing::error!(listener, bind, error, retrying, "cannot listen; the others serve");
            }
            ListenerState::Closed => tracing::info!(listener, bind, "closed"),
        }
        board.insert(key, new);
    }

    fn retain(&self, keep: impl Fn(Option<&str>) -> bool) {
        self.0.lock().retain(|upstream, _| keep(upstream.as_deref()));
    }

    fn forget(&self, upstream: Option<&str>) {
        self.0.lock().remove(&upstream.map(str::to_owned));
    }
}

fn whose(upstream: &Option<String>) -> String {
    upstream.as_deref().map_or_else(|| "the mesh".to_owned(), |name| format!("upstream {name}"))
}

impl Sidecar {
    /// Opens the listeners of `config`; the inbound one as soon as there is material.
    ///
    /// # Errors
    /// The first listener of [`BindPolicy::Fail`] that cannot be bound; then none is open.
    pub fn start(deps: Deps, config: SidecarConfig) -> Result<Self, BindError> {
        let config = config.clamped();
        let live = Live::new(deps.certs, deps.backend, deps.tls_policy, deps.peer_policy, system_clock());
        let (inbound, outbound) = shares(&config.limits);
        let shared = Arc::new(Shared {
            service: config.service.clone(),
            live: live.clone(),
            authorizer: deps.authorizer,
            discovery: deps.discovery,
            control: deps.control,
            dialler: Dialler::new(),
            inbound_slots: Slots::new(inbound),
            outbound_slots: Slots::new(outbound),
            handshakes: Handshakes::new(handshakes(&config.limits, inbound), config.limits.handshakes_per_source),
            budget: Budget::new(config.limits.held_bytes),
            limits: parking_lot::RwLock::new(config.limits.clone()),
            metrics: Metrics::default(),
            table: Arc::new(LiveTable::default()),
            book: Arc::default(),
            inbound_in_flight: Arc::default(),
            outbound_in_flight: Arc::default(),
            lines: RateLimit::per_second(LINES),
            cut: CancellationToken::new(),
        });
        let stop = CancellationToken::new();
        let (stopped, judged) = (stop.clone(), shared.clone());
        shared.control.spawn(async move {
            tokio::select! {
                () = live.follow() => {}
                () = rejudge::follow(judged) => {}
                () = stopped.cancelled() => {}
            }
        });
        let nothing = SidecarConfig { inbound: None, upstreams: BTreeMap::new(), ..config.clone() };
        let state = State { config: nothing, inbound: None, upstreams: BTreeMap::new(), draining: false };
        let sidecar = Self {
            shared,
            workers: deps.workers,
            state: state.into(),
            board: Arc::default(),
            stop,
            forced: AtomicU64::default(),
        };
        let failed = sidecar.apply(config).failed;
        failed.into_iter().next().map_or(Ok(sidecar), Err)
    }

    /// Brings the listeners to what `config` says and leaves alone what is the same. The service cannot change.
    ///
    /// During a drain nothing changes.
    pub fn apply(&self, config: SidecarConfig) -> Applied {
        let config = config.clamped();
        let mut applied = Applied::default();
        let mut state = self.state.lock();
        if state.draining || state.config == config {
            return applied;
        }
        self.apply_limits(&config.limits);
        // A listener that has just been told to close holds its address a moment longer, so an address that another
        // one takes over is tried again instead of failing.
        let mut closing = false;

        let moved = match (&state.inbound, &config.inbound) {
            (Some(open), Some(wanted)) => open.config.load().bind != wanted.bind,
            (open, wanted) => open.is_some() != wanted.is_some(),
        };
        applied.inbound_changed = state.config.inbound != config.inbound;
        if moved && let Some(old) = state.inbound.take() {
            closing = true;
            self.shared.control.spawn(old.opening.close());
            self.board.forget(None);
        }
        let gone: Vec<String> = (state.upstreams.iter())
            .filter(|(name, open)| {
                let wanted = config.upstreams.get(*name);
                wanted.is_none_or(|wanted| wanted.bind != open.upstream.load().config.bind)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some(old) = state.upstreams.remove(&name) else { continue };
            closing = true;
            self.forget(&old.upstream.load().config, &config);
            self.shared.control.spawn(old.opening.close());
            self.board.forget(Some(&name));
            let kind = if config.upstreams.contains_key(&name) { &mut applied.changed } else { &mut applied.removed };
            kind.push(name);
        }

        self.shared.book.set_period(config.inbound.as_ref().and_then(|inbound| inbound.reauthorize));
        let policy = |asked| if closing { BindPolicy::Retry } else { asked };
        match (&state.inbound, &config.inbound) {
            (Some(open), Some(wanted)) => {
                open.slots.set_most(wanted.max_connections.unwrap_or(usize::MAX));
                open.config.store(Arc::new(wanted.clone()));
            }
            (None, Some(wanted)) => match self.open_inbound(wanted, policy(wanted.bind_policy)) {
                Ok(listener) => state.inbound = Some(listener),
                Err(error) => applied.failed.push(error),
            },
            (_, None) => {}
        }
        for (name, wanted) in &config.upstreams {
            if let Some(open) = state.upstreams.get(name) {
                let old = open.upstream.load_full();
                if old.config != *wanted {
                    let same = old.config.destination == wanted.destination;
                    let balancer = if same { old.balancer.clone() } else { Arc::default() };
                    open.upstream.store(Arc::new(self.upstream(name, wanted, balancer)));
                    self.forget(&old.config, &config);
                    applied.changed.push(name.clone());
                }
                continue;
            }
            match self.open_upstream(name, wanted, policy(wanted.bind_policy)) {
                Ok(listener) => {
                    state.upstreams.insert(name.clone(), listener);
                    if !applied.changed.contains(name) {
                        applied.added.push(name.clone());
                    }
                }
                Err(error) => applied.failed.push(error),
            }
        }
        // One that could not be bound has no entry above.
        self.board.retain(|upstream| match upstream {
            Some(name) => config.upstreams.contains_key(name),
            None => config.inbound.is_some(),
        });
        state.config = config;
        applied
    }

    /// Where each listener stands, the inbound one first.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.board.0.lock().values().cloned().collect()
    }

    /// Why the newest leaf is not in use, where that is so.
    #[must_use]
    pub fn material_problem(&self) -> Option<String> {
        self.shared.live.problem()
    }

    /// The numbers as they are now.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        let shared = &self.shared;
        MetricsSnapshot {
            held_bytes: shared.budget.held() as u64,
            connections_in_use: (shared.inbound_slots.used() + shared.outbound_slots.used()) as u64,
            handshakes_in_flight: shared.handshakes.under_way() as u64,
            material_generation: shared.live.serving().map(|serving| serving.material.generation),
            ..shared.metrics.snapshot()
        }
    }

    /// The connections that are proven and open, by number.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.table.list()
    }

    /// Ends the sidecar: accepts what waits, closes the inbound listener, lets inbound connections finish while the
    /// application may still dial, then outbound ones; what is left after `limit` is cut with resets.
    ///
    /// The caller deregisters first and gives the mesh a second or two to notice.
    pub async fn drain(&self, limit: Duration) -> Drained {
        let deadline = Instant::now() + limit;
        let (inbound, upstreams) = {
            let mut state = self.state.lock();
            state.draining = true;
            (state.inbound.take(), std::mem::take(&mut state.upstreams))
        };
        let aborted = self.shared.cut.cancelled();
        let drained = async {
            if let Some(inbound) = inbound {
                let bind = inbound.config.load().bind.to_string();
                inbound.opening.close().await;
                self.board.tell(None, &bind, ListenerState::Closed);
            }
            let _ = timeout_at(deadline, self.shared.inbound_in_flight.wait_none()).await;
            for (name, upstream) in upstreams {
                let bind = upstream.upstream.load().config.bind.to_string();
                upstream.opening.close().await;
                self.board.tell(Some(&name), &bind, ListenerState::Closed);
            }
            let _ = timeout_at(deadline, self.shared.outbound_in_flight.wait_none()).await;
        };
        tokio::select! {
            () = drained => {}
            () = aborted => {}
        }
        self.abort();
        let gone = async {
            self.shared.inbound_in_flight.wait_none().await;
            self.shared.outbound_in_flight.wait_none().await;
        };
        let _ = tokio::time::timeout(CUT, gone).await;
        Drained { forced: self.forced.load(Ordering::Acquire) }
    }

    /// Cuts everything at once, as on a second signal; a [`drain`](Self::drain) under way returns.
    pub fn abort(&self) {
        if !self.shared.cut.is_cancelled() {
            // Counted before they are told, since some would be gone before they are counted.
            let forced = self.shared.inbound_in_flight.count() + self.shared.outbound_in_flight.count();
            self.forced.fetch_max(forced, Ordering::AcqRel);
        }
        self.shared.cut.cancel();
        self.stop.cancel();
        let mut state = self.state.lock();
        state.draining = true;
        // Dropping them stops their loops.
        for opening in (state.inbound.take().into_iter().map(|inbound| inbound.opening))
            .chain(std::mem::take(&mut state.upstreams).into_values().map(|upstream| upstream.opening))
        {
            drop(opening.loops.lock().take());
        }
        self.board.0.lock().values_mut().for_each(|listener| listener.state = ListenerState::Closed);
    }

    fn apply_limits(&self, limits: &Limits) {
        let (inbound, outbound) = shares(limits);
        self.shared.inbound_slots.set_most(inbound);
        self.shared.outbound_slots.set_most(outbound);
        self.shared.handshakes.set_most(handshakes(limits, inbound), limits.handshakes_per_source);
        self.shared.budget.set_most(limits.held_bytes);
        *self.shared.limits.write() = limits.clone();
    }

    /// Tells discovery that nobody asks for the destination of `old` any more.
    fn forget(&self, old: &UpstreamConfig, config: &SidecarConfig) {
        if config.upstreams.values().all(|upstream| upstream.destination != old.destination) {
            self.shared.discovery.forget(&old.destination);
        }
    }

    fn upstream(&self, name: &str, config: &UpstreamConfig, balancer: Arc<Balancer>) -> Upstream {
        Upstream { name: name.into(), config: config.clone(), balancer, metrics: self.shared.metrics.upstream(name) }
    }

    fn open_inbound(&self, wanted: &InboundConfig, policy: BindPolicy) -> Result<InboundListener, BindError> {
        let config = Arc::new(ArcSwap::from_pointee(wanted.clone()));
        let slots = Slots::new(wanted.max_connections.unwrap_or(usize::MAX));
        let (shared, current, own_slots) = (self.shared.clone(), config.clone(), slots.clone());
        let serve = move |accepted: Accepted| {
            let Accepted::Tcp(stream, peer) = accepted else { return };
            // Over a limit a peer is reset before any cryptography.
            let Some(slot) = shared.inbound_slots.take() else {
                shared.metrics.inbound.ended(EndReason::Limit(LimitName::Connections));
                return reset(stream);
            };
            if own_slots.are_taken() {
                shared.metrics.inbound.ended(EndReason::Limit(LimitName::InboundConnections));
                return reset(stream);
            }
            let (shared, config) = (shared.clone(), current.load_full());
            // Counted here and not by the task, which a drain that has just closed the listener would not wait for.
            let in_flight = shared.inbound_in_flight.enter();
            let place = inbound::Place { slot, in_flight, of_listener: own_slots.clone() };
            tokio::spawn(inbound::serve(shared, config, stream, peer, place));
        };
        let address = wanted.bind;
        let bind = Bind { upstream: None, address: address.to_string(), policy, waits: true };
        let opening = self.open(bind, move || Bound::tcp(address), self.shared.metrics.inbound.clone(), serve)?;
        Ok(InboundListener { config, slots, opening })
    }

    fn open_upstream(
        &self,
        name: &str,
        wanted: &UpstreamConfig,
        policy: BindPolicy,
    ) -> Result<UpstreamListener, BindError> {
        let upstream = Arc::new(ArcSwap::from_pointee(self.upstream(name, wanted, Arc::default())));
        let (shared, current) = (self.shared.clone(), upstream.clone());
        let serve = move |accepted: Accepted| {
            let (plain, opener) = match accepted {
                Accepted::Tcp(stream, peer) => (Plain::Tcp(stream), Some(peer)),
                Accepted::Unix(stream) => (Plain::Unix(stream), None),
            };
            let upstream = current.load_full();
            let Some(slot) = shared.outbound_slots.take() else {
                upstream.metrics.ended(EndReason::Limit(LimitName::Connections));
                return plain.arm();
            };
            let in_flight = shared.outbound_in_flight.enter();
            tokio::spawn(outbound::serve(shared.clone(), upstream, plain, opener, (slot, in_flight)));
        };
        let bind = wanted.bind.clone();
        let metrics = upstream.load().metrics.clone();
        let address = bind.to_string();
        let listener = Bind { upstream: Some(name.to_owned()), address, policy, waits: false };
        let opening = self.open(listener, move || Bound::upstream(&bind), metrics, serve)?;
        Ok(UpstreamListener { upstream, opening })
    }

    /// Binds at once, or fails at once where the policy says so; listens when there is material, if it waits for it.
    fn open<B, F>(&self, listener: Bind, bind: B, metrics: Arc<PathMetrics>, serve: F) -> Result<Opening, BindError>
    where
        B: Fn() -> io::Result<Bound> + Send + Sync + 'static,
        F: Fn(Accepted) + Clone + Send + Sync + 'static,
    {
        let Bind { upstream, address, policy, waits } = listener;
        let mut bound = None;
        let start = |bound: Bound, workers: &Workers| -> io::Result<(Loops, Option<SocketAddr>)> {
            let listening = bound.listen()?;
            let local = listening.local_address();
            Ok((Loops::start(listening, workers, &metrics, serve.clone())?, local))
        };
        let given_up = CancellationToken::new();
        let opening = Opening { loops: Arc::default(), given_up: given_up.clone().drop_guard() };
        let tried = bind().and_then(|reserved| {
            if waits {
                bound = Some(reserved);
                return Ok(None);
            }
            start(reserved, &self.workers).map(Some)
        });
        match tried {
            Ok(Some((loops, local))) => {
                *opening.loops.lock() = Some(loops);
                self.board.tell(upstream.as_deref(), &address, ListenerState::Listening(local));
                return Ok(opening);
            }
            Ok(None) => self.board.tell(upstream.as_deref(), &address, ListenerState::WaitingForMaterial),
            Err(source) if policy == BindPolicy::Fail => {
                let state = ListenerState::Failed { error: source.to_string(), retrying: false };
                self.board.tell(upstream.as_deref(), &address, state);
                return Err(BindError { upstream, bind: address, source });
            }
            Err(error) => {
                let state = ListenerState::Failed { error: error.to_string(), retrying: true };
                self.board.tell(upstream.as_deref(), &address, state);
            }
        }
        let loops = opening.loops.clone();
        let (live, workers, board) = (self.shared.live.clone(), self.workers.clone(), self.board.clone());
        self.shared.control.spawn(async move {
            let start = |bound: Bound| -> io::Result<(Loops, Option<SocketAddr>)> {
                let listening = bound.listen()?;
                let local = listening.local_address();
                Ok((Loops::start(listening, &workers, &metrics, serve.clone())?, local))
            };
            let open = async {
                while waits && live.wait(Duration::from_secs(3600)).await.is_none() {}
                let mut pause = REBIND.0;
                loop {
                    match bound.take().map_or_else(&bind, Ok).and_then(&start) {
                        Ok((started, local)) => {
                            *loops.lock() = Some(started);
                            board.tell(upstream.as_deref(), &address, ListenerState::Listening(local));
                            return;
                        }
                        Err(error) => {
                            let state = ListenerState::Failed { error: error.to_string(), retrying: true };
                            board.tell(upstream.as_deref(), &address, state);
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(REBIND.1);
                        }
                    }
                }
            };
            tokio::select! {
                () = given_up.cancelled() => {}
                () = open => {}
            }
        });
        Ok(opening)
    }
}

/// A listener that is wanted.
struct Bind {
    upstream: Option<String>,
    address: String,
    policy: BindPolicy,
    /// Whether it listens only when there is material.
    waits: bool,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("service", &self.shared.service).finish_non_exhaustive()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.abort();
    }
}

/// How the connections are shared out: a quarter is kept for outbound, so that a flood from the mesh cannot cut the
/// application off.
fn shares(limits: &Limits) -> (usize, usize) {
    let all = limits.connections.unwrap_or_else(|| connections_for(descriptor_limit()));
    let outbound = (all / 4).max(1);
    (all.saturating_sub(outbound).max(1), outbound)
}

/// Handshakes never take more than a quarter of the inbound slots.
fn handshakes(limits: &Limits, inbound: usize) -> usize {
    limits.handshakes.min((inbound / 4).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_kept_for_outbound_and_handshakes_take_a_quarter_of_the_rest() {
        let limits = |connections| Limits { connections: Some(connections), ..Limits::default() };
        assert_eq!(shares(&limits(400)), (300, 100));
        assert_eq!(handshakes(&limits(400), 300), 75);
        assert_eq!((shares(&limits(4)), handshakes(&limits(4), 3)), ((3, 1), 1), "nobody is left without");
        let of_the_process = shares(&Limits::default());
        assert_eq!(of_the_process.0 + of_the_process.1, connections_for(descriptor_limit()));
    }
}
