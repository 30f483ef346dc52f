//! One service identity with its listeners: started once, changed by difference, drained at the end.

use std::{collections::BTreeMap, fmt, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use lictor_core::{Authorizer, CertSource, Discovery, PeerPolicy, TlsBackend, TlsPolicy, rotation::Clock};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    balancer::Balancer,
    config::{BindPolicy, Clamp, InboundConfig, Limits, SidecarConfig, UpstreamBind, UpstreamConfig},
    dial::Dialler,
    inbound,
    limits::{Handshakes, Slots, connections_for, descriptor_limit},
    listener::{Accepted, Bound, Loops},
    live::Live,
    metrics::{Metrics, MetricsSnapshot},
    outbound::{self, Upstream},
    record::{ConnectionInfo, EndReason, LimitName, LiveTable, RateLimit},
    relay::Budget,
    shared::Shared,
    socket::{Plain, reset},
    workers::Workers,
};

/// Lines a second about peers that have proven nothing.
const LINES: u32 = 10;

/// The pause between two tries to bind an address that the registration asks for.
const REBIND: Duration = Duration::from_secs(1);

/// How long cut connections may take to be gone.
const CUT: Duration = Duration::from_secs(2);

/// What a sidecar is built on.
pub struct Parts {
    /// Our certificate and the roots.
    pub source: Arc<dyn CertSource>,
    /// Who may connect.
    pub authorizer: Arc<dyn Authorizer>,
    /// Where upstreams are.
    pub discovery: Arc<dyn Discovery>,
    /// The TLS library.
    pub backend: Arc<dyn TlsBackend>,
    /// What it is held to.
    pub tls_policy: TlsPolicy,
    /// Which peers pass.
    pub peer_policy: Arc<PeerPolicy>,
    /// The time by which certificates are judged.
    pub clock: Clock,
    /// The data threads.
    pub workers: Arc<Workers>,
}

/// A running sidecar.
pub struct Sidecar {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    state: tokio::sync::Mutex<State>,
    status: Arc<Mutex<BTreeMap<String, ListenerStatus>>>,
    stop: CancellationToken,
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
    loops: Arc<tokio::sync::Mutex<Option<Loops>>>,
    given_up: CancellationToken,
    remove: Option<std::path::PathBuf>,
}

impl Opening {
    /// Closes it; who waits in its queue is still served.
    async fn close(&self) {
        self.given_up.cancel();
        if let Some(loops) = self.loops.lock().await.take() {
            loops.stop().await;
        }
        if let Some(path) = &self.remove {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where a listener stands, for `/ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStatus {
    /// Its address.
    pub address: String,
    /// Whether it accepts.
    pub state: ListenerState,
}

/// See [`ListenerStatus`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerState {
    /// Bound, and waiting for the first certificate.
    Waiting,
    /// Accepting.
    Open,
    /// The address cannot be had, in the system's words; tried again and again.
    Failed(String),
}

/// An address that the operator asked for and that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({listener}): {error}")]
pub struct BindError {
    /// `inbound`, or `upstream NAME`.
    pub listener: String,
    /// The address.
    pub address: String,
    /// The system's words; [`io::ErrorKind::AddrInUse`] has an exit code of its own.
    pub error: io::Error,
}

impl Sidecar {
    /// Starts a sidecar. Must be called on a runtime that outlives it; data moves on the workers'.
    ///
    /// # Errors
    /// [`BindError`] for a listener whose policy is [`BindPolicy::Fail`]; nothing listens then.
    pub async fn start(parts: Parts, config: SidecarConfig) -> Result<Self, BindError> {
        let config = config.clamped();
        let live = Live::new(parts.source, parts.backend, parts.tls_policy, parts.peer_policy, parts.clock);
        let (inbound, outbound) = shares(&config.limits);
        let shared = Arc::new(Shared {
            service: config.service.clone(),
            live: live.clone(),
            authorizer: parts.authorizer,
            discovery: parts.discovery,
            dialler: Dialler::new(),
            inbound_slots: Slots::new(inbound),
            outbound_slots: Slots::new(outbound),
            handshakes: Handshakes::new(handshakes(&config.limits, inbound), config.limits.handshakes_per_source),
            budget: Budget::new(config.limits.held_bytes),
            limits: parking_lot::RwLock::new(config.limits.clone()),
            metrics: Metrics::default(),
            table: Arc::new(LiveTable::default()),
            inbound_in_flight: Arc::default(),
            outbound_in_flight: Arc::default(),
            lines: RateLimit::per_second(LINES),
            cut: CancellationToken::new(),
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = live.follow() => {}
                () = stopped.cancelled() => {}
            }
        });
        let nothing = SidecarConfig { inbound: None, upstreams: BTreeMap::new(), ..config.clone() };
        let state = State { config: nothing, inbound: None, upstreams: BTreeMap::new(), draining: false };
        let sidecar = Self { shared, workers: parts.workers, state: state.into(), status: Arc::default(), stop };
        sidecar.apply(config).await?;
        Ok(sidecar)
    }

    /// Brings the listeners to what `config` says, and leaves alone what stays as it is.
    ///
    /// # Errors
    /// The first [`BindError`] of a listener whose policy is [`BindPolicy::Fail`]; the others are in place.
    pub async fn apply(&self, config: SidecarConfig) -> Result<(), BindError> {
        let config = config.clamped();
        let mut state = self.state.lock().await;
        if state.draining || state.config == config {
            return Ok(());
        }
        let mut first_error = None;
        self.apply_limits(&config.limits);

        let moved = match (&state.inbound, &config.inbound) {
            (Some(open), Some(wanted)) => open.config.load().bind != wanted.bind,
            (open, wanted) => open.is_some() != wanted.is_some(),
        };
        if moved && let Some(old) = state.inbound.take() {
            old.opening.close().await;
            self.status.lock().remove(INBOUND);
        }
        match (&state.inbound, &config.inbound) {
            (Some(open), Some(wanted)) => {
                open.slots.set_most(wanted.max_connections.unwrap_or(usize::MAX));
                open.config.store(Arc::new(wanted.clone()));
            }
            (None, Some(wanted)) => match self.open_inbound(wanted) {
                Ok(listener) => state.inbound = Some(listener),
                Err(error) => first_error = Some(error),
            },
            (_, None) => {}
        }

        let gone: Vec<String> = (state.upstreams.iter())
            .filter(|(name, open)| {
                config.upstreams.get(*name).is_none_or(|wanted| wanted.bind != open.upstream.load().config.bind)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(old) = state.upstreams.remove(&name) {
                old.opening.close().await;
                self.status.lock().remove(&label(&name));
                self.forget(&old.upstream.load().config, &config);
            }
        }
        for (name, wanted) in &config.upstreams {
            if let Some(open) = state.upstreams.get(name) {
                let old = open.upstream.load_full();
                if old.config != *wanted {
                    let same = old.config.destination == wanted.destination;
                    let balancer = if same { old.balancer.clone() } else { Arc::default() };
                    open.upstream.store(Arc::new(self.upstream(name, wanted, balancer)));
                    self.forget(&old.config, &config);
                }
                continue;
            }
            match self.open_upstream(name, wanted) {
                Ok(listener) => {
                    state.upstreams.insert(name.clone(), listener);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        state.config = config;
        first_error.map_or(Ok(()), Err)
    }

    /// Where each listener stands: `inbound`, and `upstream NAME`.
    #[must_use]
    pub fn status(&self) -> BTreeMap<String, ListenerStatus> {
        self.status.lock().clone()
    }

    /// The numbers at this moment.
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

    /// The connections that are open and proven.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.table.list()
    }

    /// Stops accepting from the mesh, lets connections finish for at most `limit`, then cuts what is left by resets.
    /// The application's ways out stay open until inbound is drained, since requests under way need them.
    ///
    /// Deregister first, so that nobody new is sent here. True when nothing had to be cut.
    pub async fn drain(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().await;
        state.draining = true;
        if let Some(inbound) = &state.inbound {
            inbound.opening.close().await;
        }
        let inbound_done = tokio::time::timeout_at(deadline, self.shared.inbound_in_flight.wait_none()).await.is_ok();
        for upstream in state.upstreams.values() {
            upstream.opening.close().await;
        }
        let outbound_done = tokio::time::timeout_at(deadline, self.shared.outbound_in_flight.wait_none()).await.is_ok();
        drop(state);
        self.abort().await;
        inbound_done && outbound_done
    }

    /// Cuts every connection by a reset, at once.
    pub async fn abort(&self) {
        self.shared.cut.cancel();
        let gone = async {
            self.shared.inbound_in_flight.wait_none().await;
            self.shared.outbound_in_flight.wait_none().await;
        };
        let _ = tokio::time::timeout(CUT, gone).await;
        self.stop.cancel();
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

    fn open_inbound(&self, wanted: &InboundConfig) -> Result<InboundListener, BindError> {
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
            let Some(own_slot) = own_slots.take() else {
                shared.metrics.inbound.ended(EndReason::Limit(LimitName::InboundConnections));
                return reset(stream);
            };
            let (shared, config) = (shared.clone(), current.load_full());
            tokio::spawn(async move {
                inbound::serve(shared, config, stream, peer, slot).await;
                drop(own_slot);
            });
        };
        let address = wanted.bind;
        let opening = self.open(
            INBOUND,
            address.to_string(),
            wanted.bind_policy,
            true,
            None,
            move || Bound::tcp(address),
            self.shared.metrics.inbound.clone(),
            serve,
        )?;
        Ok(InboundListener { config, slots, opening })
    }

    fn open_upstream(&self, name: &str, wanted: &UpstreamConfig) -> Result<UpstreamListener, BindError> {
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
            tokio::spawn(outbound::serve(shared.clone(), upstream, plain, opener, slot));
        };
        let bind = wanted.bind.clone();
        let remove = match &bind {
            UpstreamBind::Unix { path, .. } => Some(path.clone()),
            UpstreamBind::Tcp(_) => None,
        };
        let metrics = upstream.load().metrics.clone();
        let opening = self.open(
            &label(name),
            bind.to_string(),
            wanted.bind_policy,
            false,
            remove,
            move || Bound::upstream(&bind),
            metrics,
            serve,
        )?;
        Ok(UpstreamListener { upstream, opening })
    }

    /// Binds at once, or fails at once where the policy says so; listens when there is material, if it waits for it.
    #[expect(
        clippy::too_many_arguments,
        reason = "the two kinds of listener differ in each of these and in nothing else"
    )]
    fn open<B, F>(
        &self,
        name: &str,
        address: String,
        policy: BindPolicy,
        waits: bool,
        remove: Option<std::path::PathBuf>,
        bind: B,
        metrics: Arc<crate::metrics::PathMetrics>,
        serve: F,
    ) -> Result<Opening, BindError>
    where
        B: Fn() -> io::Result<Bound> + Send + Sync + 'static,
        F: Fn(Accepted) + Clone + Send + Sync + 'static,
    {
        let mut bound = match bind() {
            Ok(bound) => Some(bound),
            Err(error) if policy == BindPolicy::Fail => {
                return Err(BindError { listener: name.to_owned(), address, error });
            }
            Err(error) => {
                self.tell(name, &address, ListenerState::Failed(error.to_string()));
                None
            }
        };
        if !waits && let Some(now) = bound.take() {
            match now.listen().and_then(|listening| Loops::start(listening, &self.workers, &metrics, serve.clone())) {
                Ok(loops) => {
                    self.tell(name, &address, ListenerState::Open);
                    let loops = Arc::new(tokio::sync::Mutex::new(Some(loops)));
                    return Ok(Opening { loops, given_up: CancellationToken::new(), remove });
                }
                Err(error) if policy == BindPolicy::Fail => {
                    return Err(BindError { listener: name.to_owned(), address, error });
                }
                Err(error) => self.tell(name, &address, ListenerState::Failed(error.to_string())),
            }
        }
        if bound.is_some() {
            self.tell(name, &address, ListenerState::Waiting);
        }
        let opening = Opening { loops: Arc::default(), given_up: CancellationToken::new(), remove };
        let (loops, given_up) = (opening.loops.clone(), opening.given_up.clone());
        let (live, workers, status) = (self.shared.live.clone(), self.workers.clone(), self.status.clone());
        let name = name.to_owned();
        tokio::spawn(async move {
            let open = async {
                while waits && live.wait(Duration::from_secs(3600)).await.is_none() {}
                loop {
                    let tried = bound.take().map_or_else(&bind, Ok).and_then(Bound::listen);
                    match tried.and_then(|listening| Loops::start(listening, &workers, &metrics, serve.clone())) {
                        Ok(started) => {
                            *loops.lock().await = Some(started);
                            tell(&status, &name, &address, ListenerState::Open);
                            return;
                        }
                        Err(error) => {
                            tell(&status, &name, &address, ListenerState::Failed(error.to_string()));
                            tokio::time::sleep(REBIND).await;
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

    fn tell(&self, name: &str, address: &str, state: ListenerState) {
        tell(&self.status, name, address, state);
    }
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("service", &self.shared.service).finish_non_exhaustive()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.shared.cut.cancel();
        self.stop.cancel();
    }
}

const INBOUND: &str = "inbound";

fn label(upstream: &str) -> String {
    format!("upstream {upstream}")
}

fn tell(status: &Mutex<BTreeMap<String, ListenerStatus>>, name: &str, address: &str, state: ListenerState) {
    let mut status = status.lock();
    let new = ListenerStatus { address: address.to_owned(), state };
    if status.get(name) == Some(&new) {
        return;
    }
    match &new.state {
        ListenerState::Waiting => tracing::info!(listener = name, address, "waiting for the first certificate"),
        ListenerState::Open => tracing::info!(listener = name, address, "listening"),
        ListenerState::Failed(error) => {
            tracing::error!(listener = name, address, error, "cannot listen; trying again, the others serve");
        }
    }
    status.insert(name.to_owned(), new);
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
