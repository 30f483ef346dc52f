//! One connection from the mesh: handshake and authorization under one deadline, then the application, then bytes.
//!
//! The application is dialled with the permit in hand and not before. A peer that is refused by its certificate gets
//! an alert; one that is denied afterwards is reset without close_notify, since nothing ended cleanly.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use lictor_core::{ExpectedPeer, Inbound, MeshSession, PeerIdentity, Permit, Refusal, RefusalKind};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    config::InboundConfig,
    handshake::{Shaken, Unshaken, shake},
    limits::{Handshake, Slot, Slots},
    live::Serving,
    record::{
        ByteCounts, ConnectionCount, Direction, EndReason, HandshakeFailure, InFlightGuard, LimitName, LiveConnection,
        LiveEntry, next_id,
    },
    rejudge::{Known, Member, join},
    relay::{End, Leave, Relay},
    shared::Shared,
    socket::{Plain, reset, reset_on_drop},
};

/// A peer that may reach the application: who, by which rule, over which session.
struct Admitted {
    shaken: Shaken,
    permit: Permit,
    handshake: Duration,
}

/// What a connection holds from accept to end, and where it takes its place at the application.
pub(crate) struct Place {
    /// Of the sidecar's.
    pub(crate) slot: Slot,
    /// Its count among those that a drain waits for.
    pub(crate) in_flight: InFlightGuard,
    /// The listener's own bound. One of these is taken with the permit and not before, so that nobody who has proven
    /// nothing can use up what may be a handful.
    pub(crate) of_listener: Arc<Slots>,
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    config: Arc<InboundConfig>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
) {
    // Boxed both, so that what comes before the bytes is gone when the long life of the connection begins.
    if let Some(ready) = Box::pin(prepare(shared, config, stream, peer, place)).await {
        Box::pin(ready.carry()).await;
    }
}

/// A connection that may carry bytes.
struct Ready {
    shared: Arc<Shared>,
    stream: TcpStream,
    application: Plain,
    session: Option<Box<dyn MeshSession>>,
    early: Vec<u8>,
    permit: Option<Permit>,
    entry: LiveEntry,
    /// Its place among those that are judged again, where they are.
    member: Option<Member<Known>>,
    _place: (Slot, Slot, InFlightGuard),
}

/// Everything before the first byte; `None` when there will be none.
async fn prepare(
    shared: Arc<Shared>,
    config: Arc<InboundConfig>,
    mut stream: TcpStream,
    peer: SocketAddr,
    place: Place,
) -> Option<Ready> {
    let metrics = shared.metrics.inbound.clone();
    let began = std::time::Instant::now();
    let outcome = tokio::select! {
        outcome = admit(&shared, &config, &mut stream, peer) => outcome,
        () = shared.cut.cancelled() => Err(Unshaken::Failed(EndReason::Cut, String::new())),
    };
    let Admitted { shaken, permit, handshake } = match outcome {
        Ok(admitted) => admitted,
        Err(Unshaken::BareOpen) => {
            metrics.bare_opens.add(1);
            return None;
        }
        Err(Unshaken::Refused(reason, detail)) => {
            metrics.ended(reason);
            note_refusal(&shared, peer, reason, &detail);
            return None;
        }
        Err(Unshaken::Failed(reason, detail)) => {
            metrics.ended(reason);
            note_refusal(&shared, peer, reason, &detail);
            reset(stream);
            return None;
        }
    };
    let Some(of_listener) = place.of_listener.take() else {
        metrics.ended(EndReason::Limit(LimitName::InboundConnections));
        reset(stream);
        return None;
    };
    let deadline = Instant::now() + config.connect_timeout;
    let application = tokio::select! {
        biased;
        () = shared.cut.cancelled() => None,
        dialled = shared.dialler.application(&config.application, deadline) => Some(dialled),
    };
    let application = match application {
        Some(Ok(application)) => application,
        None => {
            metrics.ended(EndReason::Cut);
            reset(stream);
            return None;
        }
        Some(Err(error)) => {
            metrics.ended(EndReason::ApplicationUnreachable);
            if let Some(held) = shared.lines.admit(std::time::Instant::now()) {
                let application = &config.application;
                tracing::warn!(%application, %error, lines.held_back = held, "the application does not accept; is it running?");
            }
            reset(stream);
            return None;
        }
    };
    let Shaken { session, established, early } = shaken;
    let (peer_identity, peer_serial) = LiveConnection::identify(&established.peer.identity);
    let own_identity = shared.live.serving().map_or_else(String::new, |s| s.material.leaf.identity().to_string());
    let entry = shared.table.insert(LiveConnection {
        id: next_id(),
        direction: Direction::Inbound,
        upstream: None,
        opener: Some(peer),
        instance: None,
        own_identity: own_identity.into(),
        peer_identity,
        peer_serial,
        rule: Some((permit.rule().into(), permit.decided_at())),
        tls: established.facts,
        started: SystemTime::now(),
        began,
        handshake,
        bytes: ByteCounts::default(),
    });
    let member = join(&shared, established.peer);
    Some(Ready {
        shared,
        stream,
        application,
        session: Some(session),
        early,
        permit: Some(permit),
        entry,
        member,
        _place: (place.slot, of_listener, place.in_flight),
    })
}

impl Ready {
    /// Moves bytes to the end of the connection.
    async fn carry(mut self) {
        let (Some(session), Some(permit)) = (self.session.take(), self.permit.take()) else { return };
        let metrics = self.shared.metrics.inbound.clone();
        metrics.established.add(1);
        metrics.open.up();
        let idle = self.shared.limits.read().idle;
        let count = ConnectionCount::new(self.entry.connection.clone(), metrics.clone());
        let (leave, early) = (Leave::Inbound(permit), std::mem::take(&mut self.early));
        let budget = &self.shared.budget;
        let relay = Relay::new(leave, &mut self.stream, session, &mut self.application, early, budget, count);
        let (reason, detail) = tokio::select! {
            end = relay.run(idle) => end,
            () = self.shared.cut.cancelled() => (EndReason::Cut, String::new()),
            end = no_longer_permitted(&self.member) => end,
        };
        match reason {
            EndReason::Finished => self.application.end_cleanly(),
            // Nothing more may pass, not even what is on its way.
            EndReason::Revoked | EndReason::PeerLapsed => reset_on_drop(&self.stream),
            _ => {}
        }
        metrics.open.down();
        metrics.ended(reason);
        self.entry.connection.write(reason, &detail);
    }
}

/// Returns when the connection has to end before its time. Boxed, so that those that are not judged again do not carry
/// its room.
async fn no_longer_permitted(member: &Option<Member<Known>>) -> End {
    match member {
        Some(member) => Box::pin(member.ended()).await,
        None => std::future::pending().await,
    }
}

/// Handshake and authorization under one deadline.
async fn admit(
    shared: &Arc<Shared>,
    config: &InboundConfig,
    stream: &mut TcpStream,
    peer: SocketAddr,
) -> Result<Admitted, Unshaken> {
    let failed = |reason, detail: &str| Unshaken::Failed(reason, detail.to_owned());
    let place = shared.handshakes.begin(peer.ip()).map_err(|limit| failed(EndReason::Limit(limit), ""))?;
    let serving = shared.live.serving().ok_or_else(|| failed(EndReason::NoMaterial, "no certificate yet"))?;
    let deadline = Instant::now() + config.handshake_timeout;
    let timeout = |_| failed(EndReason::Handshake(HandshakeFailure::Timeout), "");
    tokio::select! {
        biased;
        () = place.given_up() => Err(failed(EndReason::Handshake(HandshakeFailure::GivenUp), "")),
        admitted = timeout_at(deadline, prove_and_permit(shared, &serving, stream, deadline, &place)) => {
            admitted.map_err(timeout)?
        }
    }
}

async fn prove_and_permit(
    shared: &Arc<Shared>,
    serving: &Arc<Serving>,
    stream: &mut TcpStream,
    deadline: Instant,
    place: &Handshake,
) -> Result<Admitted, Unshaken> {
    let failed = |reason, detail: String| Unshaken::Failed(reason, detail);
    let internal = |error: lictor_core::SessionError| failed(EndReason::Internal, error.to_string());
    let metrics = &shared.metrics.inbound;
    let began = Instant::now();
    let own = serving.material.leaf.identity();
    let session = serving.context.accept().map_err(internal)?;
    let judge = || shared.live.judge(ExpectedPeer::ClientOf(own.clone()), serving);
    let shaken = shake(stream, session, judge, || place.greeted()).await;
    if let Err(Unshaken::Refused(EndReason::Rejected(reason), _)) = &shaken {
        shared.live.rejected(*reason);
    }
    let shaken = shaken?;
    place.proven();
    let handshake = began.elapsed();
    metrics.handshake.record(handshake);
    let peer = &shaken.established.peer;
    let asked = Instant::now();
    let answer = ask(shared, &peer.identity, deadline.saturating_duration_since(asked)).await;
    metrics.authorize.record(asked.elapsed());
    let permit = answer.map_err(|refusal| failed(EndReason::Refused(refusal.kind), refusal.detail))?;
    (shared.live.judge_again(ExpectedPeer::ClientOf(own.clone()), serving, peer))
        .map_err(|reason| failed(EndReason::Rejected(reason), "roots changed".into()))?;
    Ok(Admitted { shaken, permit, handshake })
}

/// Asks the authorizer. One that panics has not decided, so it refuses.
async fn ask(shared: &Arc<Shared>, peer: &PeerIdentity, left: Duration) -> Result<Permit, Refusal> {
    // A little less than there is, so that the answer is the authorizer's own reason and not our deadline.
    let question = Inbound { target: &shared.service, peer, within: left - left / 8 };
    let answer = AssertUnwindSafe(shared.authorizer.authorize(&question)).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        Err(Refusal { kind: RefusalKind::AgentError, detail: "the question was not answered: a panic".to_owned() })
    })
}

/// A line about a peer that proved nothing or may not: at a bounded rate, since anybody can cause them.
fn note_refusal(shared: &Shared, peer: SocketAddr, reason: EndReason, detail: &str) {
    let Some(held) = shared.lines.admit(std::time::Instant::now()) else { return };
    let detail = (!detail.is_empty()).then_some(detail);
    match reason {
        EndReason::Handshake(HandshakeFailure::Closed | HandshakeFailure::NotTls | HandshakeFailure::GivenUp) => {
            tracing::debug!(connection.opener = %peer, connection.reason = reason.name(), detail, lines.held_back = held, "inbound connection given up");
        }
        _ => {
            tracing::warn!(connection.opener = %peer, connection.reason = reason.name(), detail, lines.held_back = held, "inbound connection refused");
        }
    }
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
