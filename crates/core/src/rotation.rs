//! Takes in new leaves and roots, and never lets a broken one replace a good one.
//!
//! Roots and leaf arrive apart and are judged apart:
//! * a well-formed list of roots that is not empty counts at once, even if our own leaf no longer chains to it,
//!   because a root that was removed must stop being trusted now and not when the next leaf comes;
//! * a leaf replaces the last one only when it is whole, ours, valid and chains to the newest roots; one that comes
//!   before its root is held until the roots come.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use crate::{
    cert_source::{CertSource, SourceState},
    identity::ServiceName,
    judgement::{ExpectedPeer, Judge},
    material::{Leaf, Material, Roots},
    policy::TlsPolicy,
    tls::{BuildError, TlsBackend},
    verify::{PeerPolicy, RejectReason, verify_peer},
};

/// Tells the time; passed in so that tests can choose it.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// The clock of the system.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(UnixTime::now)
}

/// Whose leaf is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnService {
    /// The service's name.
    pub name: ServiceName,
    /// The namespace that was asked for; any when absent.
    pub namespace: Option<String>,
    /// The admin partition that was asked for; any when absent.
    pub partition: Option<String>,
}

impl From<ServiceName> for OwnService {
    fn from(name: ServiceName) -> Self {
        Self { name, namespace: None, partition: None }
    }
}

/// What an accepted update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It says what we had.
    Nothing,
    /// It counts from now on.
    Applied,
    /// A leaf that does not chain to the newest roots, or is not valid yet: kept aside until it does.
    Held(RejectReason),
    /// A leaf that came before any roots: kept aside until the first ones come, as every leaf is.
    HeldForRoots,
}

/// Why an update changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefused {
    /// The leaf is another service's.
    #[error("the leaf is that of {0}, not ours")]
    NotOurs(String),
    /// Key and certificate do not belong together, or the library cannot use them.
    #[error("the leaf cannot be used: {0}")]
    Unusable(#[from] BuildError),
    /// Peers would refuse the leaf whatever the roots.
    #[error("peers would refuse the leaf: {0}")]
    PeersWouldRefuse(RejectReason),
    /// The leaf is older than the one that serves, and that one is still good.
    #[error("the leaf is older than the one that serves")]
    Stale,
}

/// Keeps the newest good leaf and roots of one service.
pub struct Rotation {
    service: OwnService,
    backend: Arc<dyn TlsBackend>,
    tls_policy: TlsPolicy,
    policy: Arc<PeerPolicy>,
    clock: Clock,
    state: Mutex<State>,
    material: watch::Sender<Option<Arc<Material>>>,
}

#[derive(Default)]
struct State {
    roots: Option<Arc<Roots>>,
    leaf: Option<Arc<Leaf>>,
    held: Option<(Arc<Leaf>, RejectReason)>,
    generation: u64,
    last_refusal: Option<String>,
}

impl Rotation {
    /// A rotation with nothing in it yet.
    #[must_use]
    pub fn new(
        service: OwnService,
        backend: Arc<dyn TlsBackend>,
        tls_policy: TlsPolicy,
        policy: Arc<PeerPolicy>,
        clock: Clock,
    ) -> Self {
        let (material, _) = watch::channel(None);
        Self { service, backend, tls_policy, policy, clock, state: Mutex::default(), material }
    }

    /// The service whose leaf this is.
    #[must_use]
    pub fn service(&self) -> &OwnService {
        &self.service
    }

    /// What identities may look like, for whoever parses leaves.
    #[must_use]
    pub fn policy(&self) -> &Arc<PeerPolicy> {
        &self.policy
    }

    /// Takes over a list of roots. Its own number is replaced by the next one here.
    ///
    /// A list in which nothing is usable is taken over too: then nobody passes, and [`state`](CertSource::state) says
    /// why. Errors and empty lists never come this far ([`Roots::from_pem`]).
    pub fn offer_roots(&self, roots: Roots) -> Changed {
        let mut state = self.lock();
        let newest = state.roots.as_ref().map_or(0, |roots| roots.generation());
        if state.roots.as_ref().is_some_and(|old| old.says_the_same_as(&roots)) {
            return Changed::Nothing;
        }
        state.roots = Some(Arc::new(roots.with_generation(newest + 1)));
        if let Some((held, _)) = state.held.take() {
            match self.judge(&state, &held) {
                Ok(()) => state.leaf = Some(held),
                Err(reason) => state.held = Some((held, reason)),
            }
        }
        self.publish(&mut state);
        Changed::Applied
    }

    /// Takes over a leaf, holds it back, or refuses it.
    ///
    /// # Errors
    /// [`UpdateRefused`]; the leaf that serves goes on serving.
    pub fn offer_leaf(&self, leaf: Leaf) -> Result<Changed, UpdateRefused> {
        let mut state = self.lock();
        if state.leaf.as_ref().is_some_and(|old| old.is_same_as(&leaf)) {
            // The agent is back at what serves: whatever was held or refused in between is history.
            state.held = None;
            state.last_refusal = None;
            return Ok(Changed::Nothing);
        }
        let outcome = self.take(&mut state, Arc::new(leaf));
        state.last_refusal = match &outcome {
            Err(UpdateRefused::Stale) | Ok(_) => None,
            Err(refused) => Some(refused.to_string()),
        };
        outcome
    }

    fn take(&self, state: &mut State, leaf: Arc<Leaf>) -> Result<Changed, UpdateRefused> {
        let identity = leaf.identity();
        let asked = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(has));
        if !identity.is_named(&self.service.name)
            || !asked(&self.service.namespace, identity.namespace())
            || !asked(&self.service.partition, identity.partition())
        {
            return Err(UpdateRefused::NotOurs(identity.to_string()));
        }
        self.backend.check_key(&leaf)?;
        self.backend.mesh_context(&leaf, &self.tls_policy)?;
        match self.judge(state, &leaf) {
            Ok(()) => {}
            Err(reason) if may_become_good(reason) => {
                state.held = Some((leaf, reason));
                // Told by the state that judged: the roots may be there by the time that the caller looks.
                return Ok(if state.roots.is_some() { Changed::Held(reason) } else { Changed::HeldForRoots });
            }
            Err(reason) => return Err(UpdateRefused::PeersWouldRefuse(reason)),
        }
        let newer_serves = state.leaf.as_ref().is_some_and(|serving| {
            serving.not_before().as_secs() > leaf.not_before().as_secs() && self.judge(state, serving).is_ok()
        });
        if newer_serves {
            return Err(UpdateRefused::Stale);
        }
        state.leaf = Some(leaf);
        state.held = None;
        self.publish(state);
        Ok(Changed::Applied)
    }

    /// Judges our own leaf as peers will, in both roles.
    fn judge(&self, state: &State, leaf: &Leaf) -> Result<(), RejectReason> {
        let roots = state.roots.as_ref().ok_or(RejectReason::UnknownIssuer)?;
        let identity = leaf.identity();
        for expected in [ExpectedPeer::Server(identity.clone()), ExpectedPeer::ClientOf(identity.clone())] {
            let judge = Judge { expected, roots: roots.clone(), policy: self.policy.clone(), now: (self.clock)() };
            verify_peer(&judge, leaf.chain(), self.backend.signature_algorithms())?;
        }
        Ok(())
    }

    fn publish(&self, state: &mut State) {
        let (Some(leaf), Some(roots)) = (&state.leaf, &state.roots) else { return };
        state.generation += 1;
        let material = Material { generation: state.generation, leaf: leaf.clone(), roots: roots.clone() };
        self.material.send_replace(Some(Arc::new(material)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one assignment of a whole value, so a panic elsewhere leaves it sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CertSource for Rotation {
    fn watch(&self) -> watch::Receiver<Option<Arc<Material>>> {
        self.material.subscribe()
    }

    fn state(&self) -> SourceState {
        let state = self.lock();
        let mut told = SourceState::default();
        match &state.roots {
            None => told.pending.push("roots".to_owned()),
            Some(roots) => {
                if roots.anchors().is_empty() {
                    told.problems.push("no usable root in the agent's list, so no peer can pass".to_owned());
                }
                told.problems.extend(roots.ignored().iter().map(|why| format!("ignored {why}")));
            }
        }
        match &state.leaf {
            None => told.pending.push("leaf".to_owned()),
            Some(leaf) => {
                if let Err(reason) = self.judge(&state, leaf) {
                    told.problems.push(format!("peers refuse our leaf: {reason}"));
                }
            }
        }
        if let Some((held, reason)) = &state.held {
            told.problems.push(format!("a newer leaf (serial {}) is held back: {reason}", held.serial()));
        }
        told.problems.extend(state.last_refusal.iter().map(|why| format!("the agent's last leaf was refused: {why}")));
        let usable = |leaf: &Arc<Leaf>| self.judge(&state, leaf).is_ok();
        told.usable = state.leaf.as_ref().is_some_and(usable);
        told
    }
}

impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotation").field("service", &self.service).finish_non_exhaustive()
    }
}

/// Whether a leaf that is refused for this reason may pass later, when other roots or another moment come.
fn may_become_good(reason: RejectReason) -> bool {
    matches!(
        reason,
        RejectReason::UnknownIssuer
            | RejectReason::BadSignature
            | RejectReason::CaExpired
            | RejectReason::CaNotYetValid
            | RejectReason::NotYetValid
            | RejectReason::TrustDomain
            | RejectReason::PathTooComplex
    )
}
