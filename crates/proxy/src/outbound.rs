//! One connection of our application into the mesh: find an instance, dial, prove it, then bytes.
//!
//! Not one byte of the application is read before the server is proven, so a failed attempt can be repeated on another
//! instance; once a byte was sent nothing is ever repeated.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use lictor_core::{
    Destination, DestinationKind, DiscoveryError, ExpectedPeer, Instance, MeshSession, PeerProof, SpiffeService,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    balancer::Balancer,
    config::UpstreamConfig,
    handshake::{Shaken, Unshaken, shake},
    limits::Slot,
    live::Serving,
    metrics::PathMetrics,
    record::{
        ByteCounts, ConnectionCount, Direction, EndReason, HandshakeFailure, InFlightGuard, LiveConnection, LiveEntry,
        next_id,
    },
    relay::{Leave, Relay},
    shared::Shared,
    socket::Plain,
};

/// How long an application waits for the first material after a start before it is turned away.
const WAIT_FOR_MATERIAL: Duration = Duration::from_secs(2);

/// The least that one attempt is given, as long as the whole allows it.
const LEAST_ATTEMPT: Duration = Duration::from_millis(250);

/// How many instances one connection tries at most.
const MOST_ATTEMPTS: usize = 3;

/// An upstream as its listener serves it.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: Arc<str>,
    pub(crate) config: UpstreamConfig,
    pub(crate) balancer: Arc<Balancer>,
    pub(crate) metrics: Arc<PathMetrics>,
}

/// A server that is proven.
struct Proven {
    stream: TcpStream,
    shaken: Shaken,
    instance: Instance,
    own_identity: String,
    handshake: Duration,
}

/// What a connection holds from accept to end: its slot, and its count among those that a drain waits for.
type Place = (Slot, InFlightGuard);

/// Serves one connection of the application to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    application: Plain,
    opener: Option<std::net::SocketAddr>,
    place: Place,
) {
    application.arm();
    // Boxed both, so that what comes before the bytes is gone when the long life of the connection begins.
    if let Some(ready) = Box::pin(prepare(shared, upstream, application, opener, place)).await {
        Box::pin(ready.carry()).await;
    }
}

/// A connection that may carry bytes.
struct Ready {
    shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    stream: TcpStream,
    application: Plain,
    session: Option<Box<dyn MeshSession>>,
    early: Vec<u8>,
    server: Option<Box<PeerProof>>,
    instance: Box<Instance>,
    entry: LiveEntry,
    _place: Place,
}

/// Everything before the first byte; `None` when there will be none.
async fn prepare(
    shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    application: Plain,
    opener: Option<std::net::SocketAddr>,
    place: Place,
) -> Option<Ready> {
    let began = std::time::Instant::now();
    let metrics = &upstream.metrics;
    let proven = tokio::select! {
        proven = connect(&shared, &upstream) => proven,
        () = shared.cut.cancelled() => Err((EndReason::Cut, String::new())),
    };
    let proven = match proven {
        Ok(proven) => proven,
        Err((reason, detail)) => {
            metrics.ended(reason);
            if let Some(held) = shared.lines.admit(std::time::Instant::now()) {
                tracing::warn!(
                    connection.upstream = &*upstream.name,
                    connection.reason = reason.name(),
                    detail,
                    lines.held_back = held,
                    "outbound connection failed"
                );
            }
            return None;
        }
    };
    let Proven { stream, shaken: Shaken { session, established, early }, instance, own_identity, handshake } = proven;
    let (peer_identity, peer_serial) = LiveConnection::identify(&established.peer.identity);
    let entry = shared.table.insert(LiveConnection {
        id: next_id(),
        direction: Direction::Outbound,
        upstream: Some(upstream.name.clone()),
        opener,
        instance: Some(format!("{} ({}:{})", instance.id, instance.host, instance.port).into()),
        own_identity: own_identity.into(),
        peer_identity,
        peer_serial,
        rule: None,
        tls: established.facts,
        started: SystemTime::now(),
        began,
        handshake,
        bytes: ByteCounts::default(),
    });
    Some(Ready {
        shared,
        upstream,
        stream,
        application,
        session: Some(session),
        early,
        server: Some(Box::new(established.peer)),
        instance: Box::new(instance),
        entry,
        _place: place,
    })
}

impl Ready {
    /// Moves bytes to the end of the connection.
    async fn carry(mut self) {
        let (Some(session), Some(server)) = (self.session.take(), self.server.take()) else { return };
        let metrics = self.upstream.metrics.clone();
        metrics.established.add(1);
        metrics.open.up();
        let open = self.upstream.balancer.open(&self.instance);
        let idle = self.shared.limits.read().idle;
        let count = ConnectionCount::new(self.entry.connection.clone(), metrics.clone());
        let (leave, early) = (Leave::Outbound(server), std::mem::take(&mut self.early));
        let budget = &self.shared.budget;
        let relay = Relay::new(leave, &mut self.stream, session, &mut self.application, early, budget, count);
        let (reason, detail) = tokio::select! {
            end = relay.run(idle) => end,
            () = self.shared.cut.cancelled() => (EndReason::Cut, String::new()),
        };
        drop(open);
        let of_the_server =
            [EndReason::Truncated, EndReason::PeerReset, EndReason::PeerAlert, EndReason::BadRecord].contains(&reason);
        if reason == EndReason::Finished {
            self.application.end_cleanly();
        } else if of_the_server && self.entry.connection.nothing_came_from_the_server() {
            // It accepted, proved itself and gave nothing: a server that refuses us after its handshake looks like
            // this, and so does one that is about to fall over.
            self.upstream.balancer.failed(&self.instance, std::time::Instant::now());
        }
        metrics.open.down();
        metrics.ended(reason);
        self.entry.connection.write(reason, &detail);
    }
}

async fn connect(shared: &Arc<Shared>, upstream: &Upstream) -> Result<Proven, (EndReason, String)> {
    let deadline = Instant::now() + upstream.config.connect_timeout;
    let wait = WAIT_FOR_MATERIAL.min(upstream.config.connect_timeout);
    let serving =
        shared.live.wait(wait).await.ok_or_else(|| (EndReason::NoMaterial, "no certificate yet".to_owned()))?;
    let destination = &upstream.config.destination;
    let asked = AssertUnwindSafe(shared.discovery.instances(destination)).catch_unwind();
    let lost = |_| Err(DiscoveryError::Unavailable("the question was not answered: a panic".to_owned()));
    let asked = async { asked.await.unwrap_or_else(lost) };
    let instances = match timeout_at(deadline, asked).await {
        Ok(Ok(instances)) => instances,
        Ok(Err(error)) => return Err((EndReason::NoDiscovery, error.to_string())),
        Err(_) => return Err((EndReason::NoDiscovery, "no list of instances in time".to_owned())),
    };
    let mut excluded = Vec::new();
    let mut last = (EndReason::NoInstance, "there is no healthy instance".to_owned());
    while excluded.len() < MOST_ATTEMPTS {
        let now = Instant::now();
        if now >= deadline {
            break;
        }
        let Some(index) = upstream.balancer.pick(&instances, &excluded, now.into_std()) else { break };
        excluded.push(index);
        let instance = &instances[index];
        // Each attempt gets its share of the time, so that one silent instance does not use up that of the next.
        let others = instances.len().saturating_sub(excluded.len()).min(MOST_ATTEMPTS - excluded.len());
        let share = deadline.saturating_duration_since(now) / u32::try_from(others + 1).unwrap_or(1);
        let until = (now + share.max(LEAST_ATTEMPT)).min(deadline);
        let attempt = timeout_at(until, attempt(shared, &serving, destination, instance, until)).await;
        let (reason, detail) = match attempt {
            Ok(Ok(proven)) => return Ok(proven),
            Ok(Err(failure)) => failure,
            Err(_) => (EndReason::Handshake(HandshakeFailure::Timeout), "no answer in time".to_owned()),
        };
        upstream.balancer.failed(instance, std::time::Instant::now());
        let detail = format!("{} ({}:{}): {detail}", instance.id, instance.host, instance.port);
        tracing::debug!(
            connection.upstream = &*upstream.name,
            connection.reason = reason.name(),
            detail,
            "attempt failed"
        );
        last = (reason, detail);
    }
    Err(last)
}

async fn attempt(
    shared: &Arc<Shared>,
    serving: &Arc<Serving>,
    destination: &Destination,
    instance: &Instance,
    until: Instant,
) -> Result<Proven, (EndReason, String)> {
    let expected = expect(shared, serving, destination, instance)?;
    let mut stream = (shared.dialler.tcp(&instance.host, instance.port, until).await)
        .map_err(|error| (EndReason::UpstreamUnreachable, error.to_string()))?;
    let began = Instant::now();
    let session = (serving.context.connect(expected.server_name().as_deref()))
        .map_err(|error| (EndReason::Internal, error.to_string()))?;
    let judge = || shared.live.judge(ExpectedPeer::Server(expected.clone()), serving);
    match shake(&mut stream, session, judge, || {}).await {
        Ok(shaken) => {
            let handshake = began.elapsed();
            // The server may have drawn its handshake out behind its certificate.
            (shared.live.judge_again(ExpectedPeer::Server(expected), serving, &shaken.established.peer))
                .map_err(|reason| (EndReason::Rejected(reason), "roots changed".to_owned()))?;
            let own_identity = serving.material.leaf.identity().to_string();
            Ok(Proven { stream, shaken, instance: instance.clone(), own_identity, handshake })
        }
        Err(Unshaken::BareOpen) => {
            Err((EndReason::Handshake(HandshakeFailure::Closed), "it closed at once".to_owned()))
        }
        Err(Unshaken::Refused(reason, detail) | Unshaken::Failed(reason, detail)) => {
            if let EndReason::Rejected(reason) = reason {
                shared.live.rejected(reason);
            }
            Err((reason, format!("{detail}; expected {expected}")))
        }
    }
}

/// Who must answer at `instance`.
fn expect(
    shared: &Shared,
    serving: &Serving,
    destination: &Destination,
    instance: &Instance,
) -> Result<Arc<SpiffeService>, (EndReason, String)> {
    let wrong = |detail: String| (EndReason::UpstreamUnreachable, detail);
    // What the agent lists under a service's name must be that service; a query may lead to another.
    if destination.kind == DestinationKind::Service && !instance.service.eq_ignore_ascii_case(&destination.name) {
        return Err(wrong(format!("the agent lists {} as an instance of {}", instance.service, destination.name)));
    }
    let roots = shared.live.roots().unwrap_or_else(|| serving.material.roots.clone());
    let Instance { partition, namespace, datacenter, service, .. } = instance;
    let grammar = shared.live.policy().grammar;
    SpiffeService::expect(roots.trust_domain().clone(), partition, namespace, datacenter, service, grammar)
        .map(Arc::new)
        .map_err(|error| wrong(format!("no certificate can name {service}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function makes, without making one.
    fn size<A, F: Future>(_: impl Fn(A) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_five<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_costs_little_besides_its_session() {
        let bytes = size_of_five(serve) + size(Ready::carry);
        assert!(bytes <= 1600, "{bytes} bytes");
    }
}
