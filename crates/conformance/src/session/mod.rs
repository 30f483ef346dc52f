//! What a session must bear: pieces of any size, ends at any moment, keys that change, peers that break the protocol.

mod damage;
mod ends;
mod key_updates;
mod material;
mod meetings;
mod pieces;
mod records;
mod resumption;
mod sizes;
mod verdicts;
mod versions;

use std::sync::Arc;

use lictor_core::{Judge, MeshContext, TlsBackend, TlsPolicy};

pub use self::{
    damage::damage, ends::ends, ends::records_of_a_handshake, key_updates::key_updates, material::material,
    meetings::meetings, pieces::pieces, records::records, resumption::resumption, sizes::sizes,
    verdicts::second_handshake, verdicts::verdicts, versions::versions,
};
use crate::{
    certs::Mesh,
    pair::{Ours, Peer, PeerSettings, Version, our_context, talk},
    rows::Case,
    verifier::{Side, judge},
};

/// All that the scenes below need.
struct Stage {
    mesh: Mesh,
    context: Arc<dyn MeshContext>,
    case: Case,
}

impl Stage {
    fn new(backend: &dyn TlsBackend, seed: u64) -> Self {
        let mesh = Mesh::new(seed);
        let context = our_context(backend, &mesh, &TlsPolicy::default());
        let case = Case::issued(&mesh.leaf(), &mesh.root, &[&mesh.root], &[&mesh.root]);
        Self { mesh, context, case }
    }

    fn settings(&self, version: Version) -> PeerSettings {
        PeerSettings::new(self.case.chain.clone(), self.case.key.clone(), version)
    }

    fn judge(&self, side: Side) -> Judge {
        judge(&self.mesh, &self.case, side)
    }

    /// The judge after the root was replaced by another.
    fn judge_without_the_root(&self, side: Side) -> Judge {
        let other = self.mesh.other_root("Consul CA 2");
        judge(&self.mesh, &Case { roots: vec![other.pem()], ..self.good() }, side)
    }

    fn good(&self) -> Case {
        Case::new(self.case.chain.clone(), self.case.key.clone(), &[&self.mesh.root])
    }

    fn ours(&self, side: Side) -> Ours {
        Ours::new(self.context.as_ref(), self.judge(side), side)
    }

    fn pair(&self, side: Side, version: Version) -> (Ours, Peer) {
        (self.ours(side), Peer::new(&self.settings(version), side))
    }

    /// A pair whose handshake is done.
    fn joined(&self, side: Side, version: Version) -> Result<(Ours, Peer), String> {
        let (mut ours, mut peer) = self.pair(side, version);
        talk(&mut ours, &mut peer, usize::MAX);
        match ours.established {
            Some(_) => Ok((ours, peer)),
            None => Err(format!("no handshake: {:?} {:?} {:?}", ours.failed, peer.alert, peer.error)),
        }
    }
}

type Scene = Result<String, String>;
