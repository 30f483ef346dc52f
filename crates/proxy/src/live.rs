//! The newest material as the data plane uses it: a context for new sessions, and the roots that judge.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use lictor_core::{
    CertSource, ExpectedPeer, Judge, Material, MeshContext, PeerIdentity, PeerPolicy, PeerProof, RejectReason, Roots,
    TlsBackend, TlsPolicy, rotation::Clock, verify_peer,
};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

/// What serves at one moment.
pub(crate) struct Serving {
    /// Leaf and roots.
    pub(crate) material: Arc<Material>,
    /// Made of the leaf; that of an older one when the backend refused the newest.
    pub(crate) context: Arc<dyn MeshContext>,
}

/// Follows a certificate source.
pub(crate) struct Live {
    source: Arc<dyn CertSource>,
    backend: Arc<dyn TlsBackend>,
    tls_policy: TlsPolicy,
    peer_policy: Arc<PeerPolicy>,
    clock: Clock,
    serving: ArcSwapOption<Serving>,
    ready: watch::Sender<bool>,
    problem: Mutex<Option<String>>,
}

impl Live {
    pub(crate) fn new(
        source: Arc<dyn CertSource>,
        backend: Arc<dyn TlsBackend>,
        tls_policy: TlsPolicy,
        peer_policy: Arc<PeerPolicy>,
        clock: Clock,
    ) -> Arc<Self> {
        let (ready, _) = watch::channel(false);
        let live = Self {
            source,
            backend,
            tls_policy,
            peer_policy,
            clock,
            serving: ArcSwapOption::empty(),
            ready,
            problem: Mutex::default(),
        };
        let newest = live.source.watch().borrow().clone();
        live.take(newest);
        Arc::new(live)
    }

    /// Follows the source until it ends.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut watch = self.source.watch();
        loop {
            let newest = watch.borrow_and_update().clone();
            self.take(newest);
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// What serves now; `None` until there has been material.
    pub(crate) fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Waits for the first material, at most `limit`.
    pub(crate) async fn wait(&self, limit: Duration) -> Option<Arc<Serving>> {
        if self.serving.load().is_none() {
            let mut ready = self.ready.subscribe();
            let _ = tokio::time::timeout(limit, ready.wait_for(|ready| *ready)).await;
        }
        self.serving()
    }

    /// A judge with the newest roots at this moment.
    pub(crate) fn judge(&self, expected: ExpectedPeer, serving: &Serving) -> Judge {
        let roots = self.roots().unwrap_or_else(|| serving.material.roots.clone());
        Judge { expected, roots, policy: self.peer_policy.clone(), now: (self.clock)() }
    }

    /// The newest roots.
    pub(crate) fn roots(&self) -> Option<Arc<Roots>> {
        // Asked of the source and not of what serves: a removed root must not count until a task has run.
        self.source.watch().borrow().as_ref().map(|material| material.roots.clone())
    }

    /// Judges a proven peer once more when the roots have changed since: whoever draws a handshake out must not be
    /// let through by a root that was removed meanwhile.
    pub(crate) fn judge_again(
        &self,
        expected: ExpectedPeer,
        serving: &Serving,
        peer: &PeerProof,
    ) -> Result<(), RejectReason> {
        self.judge_later(expected, serving, &peer.identity, &peer.chain, peer.roots_generation).map(drop)
    }

    /// Judges a peer once more whose connection is open: by time, and by the newest roots where they are others than
    /// those of `generation`. The list by which it passed.
    pub(crate) fn judge_later(
        &self,
        expected: ExpectedPeer,
        serving: &Serving,
        identity: &PeerIdentity,
        chain: &[CertificateDer<'static>],
        generation: u64,
    ) -> Result<u64, RejectReason> {
        let judge = self.judge(expected, serving);
        if judge.now > identity.not_after() {
            return Err(RejectReason::Expired);
        }
        if judge.roots.generation() == generation {
            return Ok(generation);
        }
        let again = verify_peer(&judge, chain, self.backend.signature_algorithms())?;
        if again.identity == *identity { Ok(again.roots_generation) } else { Err(RejectReason::Unjudged) }
    }

    /// Why the newest leaf is not in use, where that is so.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }

    /// What identities may look like.
    pub(crate) fn policy(&self) -> &PeerPolicy {
        &self.peer_policy
    }

    /// Passes on that our roots may be out of date: a peer did not chain to them, or to one of the same name with
    /// another key, which is how a rotation of Consul's own CA looks to whoever has not heard of it.
    pub(crate) fn rejected(&self, reason: RejectReason) {
        if matches!(reason, RejectReason::UnknownIssuer | RejectReason::BadSignature) {
            self.source.suspect_stale_roots();
        }
    }

    fn take(&self, newest: Option<Arc<Material>>) {
        let Some(material) = newest else { return };
        let old = self.serving.load_full();
        let context = match &old {
            Some(old) if Arc::ptr_eq(&old.material.leaf, &material.leaf) => Ok(old.context.clone()),
            _ => self.backend.mesh_context(&material.leaf, &self.tls_policy),
        };
        *self.problem.lock() = context.as_ref().err().map(ToString::to_string);
        match (context, old) {
            (Ok(context), _) => {
                let (generation, serial) = (material.generation, material.leaf.serial().to_string());
                self.serving.store(Some(Arc::new(Serving { material, context })));
                tracing::info!(material.generation = generation, leaf.serial = %serial, "material in use");
            }
            (Err(error), old) => {
                tracing::error!(%error, "the TLS library refuses the newest leaf; the last one serves on");
                let Some(old) = old else { return };
                self.serving.store(Some(Arc::new(Serving { material, context: old.context.clone() })));
            }
        }
        self.ready.send_replace(true);
    }
}
