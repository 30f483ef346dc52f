//! What the benches share: the backends under test, and two sessions of one backend joined in memory.

#![forbid(unsafe_code)]

pub mod backends;
pub mod canned;
pub mod ends;
pub mod usage;

use std::sync::Arc;

use lictor_conformance::{
    certs::{Mesh, pem, service_uri},
    keys::{Key, KeyKind},
    verifier::service,
};
use lictor_core::{
    Buf, ExpectedPeer, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, PeerPolicy, Roots, TlsBackend, TlsFacts,
    TlsPolicy, identity::Grammar,
};

pub use backends::{Contender, backends};

/// A mesh with a leaf for `web` and one for `db`, both issued by its root, as Consul's own CA does.
pub struct Scene {
    /// The mesh.
    pub mesh: Mesh,
}

impl Scene {
    /// A new mesh; its keys differ from run to run.
    #[must_use]
    pub fn new() -> Self {
        Self { mesh: Mesh::new(1) }
    }

    /// The leaf of a service.
    ///
    /// # Panics
    /// Never: the leaf is good.
    #[must_use]
    pub fn leaf(&self, name: &str) -> Leaf {
        let key = Key::generate(KeyKind::P256);
        let spec = self.mesh.leaf_of(name).uri(&service_uri(name));
        let certificate = pem("CERTIFICATE", &self.mesh.root.issue(&spec, &key));
        let key = pem("PRIVATE KEY", key.pkcs8().expect("a key of the library"));
        Leaf::from_pem(&certificate, &key, Grammar::Spiffe).expect("a good leaf")
    }

    /// The contexts of `web`, which dials, and `db`, which is dialled.
    ///
    /// # Panics
    /// When the backend refuses good material.
    #[must_use]
    pub fn contexts(
        &self,
        backend: &dyn TlsBackend,
        policy: &TlsPolicy,
    ) -> (Arc<dyn MeshContext>, Arc<dyn MeshContext>) {
        let context = |name| backend.mesh_context(&self.leaf(name), policy).expect("a context");
        (context("web"), context("db"))
    }

    /// What `web` demands of the server, and what `db` demands of the client, with a list of roots that has met
    /// nobody yet.
    ///
    /// # Panics
    /// Never: the root is good.
    #[must_use]
    pub fn judges(&self) -> (Judge, Judge) {
        let domain = lictor_conformance::certs::TRUST_DOMAIN;
        let roots = Arc::new(Roots::from_pem(1, domain, [self.mesh.root.pem().as_str()]).expect("a list of roots"));
        let judge = |expected| Judge {
            expected,
            roots: roots.clone(),
            policy: Arc::new(PeerPolicy::default()),
            now: self.mesh.time(),
        };
        let db = Arc::new(service("db"));
        (judge(ExpectedPeer::Server(db.clone())), judge(ExpectedPeer::ClientOf(db)))
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

/// A client and a server joined in memory.
pub struct Pair {
    /// The client's session.
    pub client: Box<dyn MeshSession>,
    /// The server's session.
    pub server: Box<dyn MeshSession>,
    /// What they agreed.
    pub facts: TlsFacts,
}

impl Pair {
    /// A full handshake, both sides verified.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn shake_hands(contexts: &(Arc<dyn MeshContext>, Arc<dyn MeshContext>), judges: &(Judge, Judge)) -> Self {
        let name = service("db").server_name();
        let mut client = contexts.0.connect(name.as_deref()).expect("a client session");
        let mut server = contexts.1.accept().expect("a server session");
        let (mut to_server, mut to_client) = (Buf::default(), Buf::default());
        let (mut agreed, mut server_done) = (None, false);
        loop {
            if agreed.is_none()
                && let HandshakeStep::Done(established) =
                    client.handshake(&judges.0, &mut to_client, &mut to_server).expect("the client goes on")
            {
                agreed = Some(established.facts);
            }
            if !server_done {
                let step = server.handshake(&judges.1, &mut to_server, &mut to_client).expect("the server goes on");
                server_done = matches!(step, HandshakeStep::Done(_));
            }
            if server_done && let Some(facts) = agreed {
                return Self { client, server, facts };
            }
        }
    }
}
