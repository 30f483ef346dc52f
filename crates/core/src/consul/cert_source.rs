//! Leaf and roots from the agent, as a [`CertSource`].

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    client::AgentClient,
    leaf::{ExpectedDatacenter, LeafWatch},
    roots::RootsWatch,
    task::Task,
    watch::{self as watching, Nudge, Trouble},
};
use crate::{
    cert_source::{CertSource, SourceState},
    material::Material,
    rotation::{Clock, Rotation},
};

/// Keeps a [`Rotation`] fed with what the agent says, until it is dropped.
#[derive(Debug)]
pub struct ConsulCertSource {
    rotation: Arc<Rotation>,
    nudge_roots: Nudge,
    datacenter: ExpectedDatacenter,
    leaf_trouble: Trouble,
    content_trouble: Trouble,
    roots_trouble: Trouble,
    _watches: [Task; 2],
}

impl ConsulCertSource {
    /// Starts the watches of leaf and roots on the client's runtime. `clock` is the one that `rotation` has.
    #[must_use]
    pub fn start(client: &AgentClient, rotation: Arc<Rotation>, clock: Clock) -> Self {
        let (nudge_roots, datacenter) = (Nudge::default(), ExpectedDatacenter::default());
        let [leaf_trouble, content_trouble, roots_trouble] = std::array::from_fn(|_| Trouble::default());
        let leaf = LeafWatch::new(
            client.clone(),
            rotation.clone(),
            clock,
            nudge_roots.clone(),
            datacenter.clone(),
            content_trouble.clone(),
        );
        let roots = RootsWatch { rotation: rotation.clone() };
        let watches = [
            Task::spawn(
                client.runtime(),
                watching::watch(client.clone(), leaf, Nudge::default(), leaf_trouble.clone()),
            ),
            Task::spawn(
                client.runtime(),
                watching::watch(client.clone(), roots, nudge_roots.clone(), roots_trouble.clone()),
            ),
        ];
        Self { rotation, nudge_roots, datacenter, leaf_trouble, content_trouble, roots_trouble, _watches: watches }
    }

    /// Says which datacenter we are in, once our registration told, so that a leaf of another one is refused. An
    /// agent can hold such a leaf when somebody else asked it for one.
    pub fn expect_datacenter(&self, datacenter: String) {
        self.datacenter.set(datacenter);
    }
}

impl CertSource for ConsulCertSource {
    fn watch(&self) -> watch::Receiver<Option<Arc<Material>>> {
        self.rotation.watch()
    }

    fn state(&self) -> SourceState {
        let mut state = self.rotation.state();
        let troubles = [("leaf", &self.leaf_trouble), ("leaf", &self.content_trouble), ("roots", &self.roots_trouble)];
        for (what, trouble) in troubles {
            state.problems.extend(trouble.get().map(|trouble| format!("{what}: {trouble}")));
        }
        state
    }

    fn suspect_stale_roots(&self) {
        self.nudge_roots.nudge();
    }
}
