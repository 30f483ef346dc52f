//! HTTPS to the agent, whom BoringSSL judges.

use std::sync::Arc;

use lictor_boring::BoringBackend;
use lictor_conformance::{
    certs::{AltName, Authority, Extension, Mesh, Spec},
    keys::{Key, KeyKind, SignatureKind},
    pair::{Peer, PeerSettings, Version},
    verifier::Side,
};
use lictor_core::{
    AgentTls, Buf, Progress, RejectReason, SessionError, TlsBackend,
    tls::{AgentSession, AgentVerification, BuildError},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{keys::pkcs8, queue::nothing_is_left};

const NAME: &str = "server.dc1.consul";

/// The certificate of an agent.
fn agent(mesh: &Mesh) -> Spec {
    mesh.leaf().with(Extension::alt_names(&[AltName::Dns(NAME)])).subject("agent.consul")
}

fn settings(root: &Authority) -> AgentTls {
    AgentTls { roots: vec![root.certificate.clone()], client: None, verification: AgentVerification::Full }
}

/// Our certificate, so that the peer, which asks for one, has nothing to object.
fn operator(mesh: &Mesh) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    operator_with(mesh, KeyKind::P256)
}

fn operator_with(mesh: &Mesh, kind: KeyKind) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = Key::generate(kind);
    let certificate = mesh.root.issue(&mesh.leaf_of("operator"), &key);
    (vec![certificate], PrivatePkcs8KeyDer::from(pkcs8(&key)).into())
}

struct Client {
    session: Box<dyn AgentSession>,
    wire: Buf,
    out: Buf,
    plain: Buf,
    done: bool,
    error: Option<SessionError>,
}

impl Client {
    fn new(settings: &AgentTls, name: &str) -> Self {
        let context = BoringBackend::new().unwrap().agent_context(settings).unwrap();
        let session = context.connect(name).unwrap();
        Self { session, wire: Buf::default(), out: Buf::default(), plain: Buf::default(), done: false, error: None }
    }

    fn talk(&mut self, peer: &mut Peer) {
        loop {
            let theirs = peer.sent();
            self.wire.append(&theirs);
            self.step();
            nothing_is_left();
            let ours = self.out.take();
            peer.take(&ours);
            if theirs.is_empty() && ours.is_empty() {
                return;
            }
        }
    }

    fn step(&mut self) {
        if self.error.is_some() {
            return;
        }
        if !self.done {
            match self.session.handshake(&mut self.wire, &mut self.out) {
                Ok(done) => self.done = done,
                Err(error) => self.error = Some(error),
            }
        }
        if self.done {
            match self.session.open(&mut self.wire, &mut self.plain, &mut self.out) {
                Ok(Progress::NeedInput | Progress::PeerClosed) => {}
                Err(error) => self.error = Some(error),
            }
        }
    }
}

fn meet(
    settings: &AgentTls,
    name: &str,
    chain: Vec<CertificateDer<'static>>,
    key: Key,
    version: Version,
) -> (Client, Peer) {
    let mut peer = Peer::new(&PeerSettings::new(chain, Arc::new(key), version), Side::Outbound);
    let mut client = Client::new(settings, name);
    client.talk(&mut peer);
    (client, peer)
}

#[test]
fn an_absolute_name_is_the_same_name_and_goes_without_its_dot() {
    let mesh = Mesh::new(1);
    for name in [NAME.to_uppercase(), format!("{NAME}.")] {
        let key = Key::generate(KeyKind::P256);
        let settings = AgentTls { client: Some(operator(&mesh)), ..settings(&mesh.root) };
        let chain = vec![mesh.root.issue(&agent(&mesh), &key)];
        let (client, peer) = meet(&settings, &name, chain, key, Version::Tls13);
        assert_eq!((&client.error, client.done), (&None, true), "{name}");
        assert_eq!(peer.witness.seen().server_name.map(|name| name.to_lowercase()).as_deref(), Some(NAME));
    }
}

#[test]
fn an_anchor_need_be_neither_a_root_nor_in_date() {
    let mesh = Mesh::new(4);
    let old = Authority::root(&mesh.ca("Old CA").valid(mesh.now - 1000, mesh.now - 10), KeyKind::P256);
    let middle = mesh.intermediate("Intermediate");
    for anchor in [&old, &middle] {
        let key = Key::generate(KeyKind::P256);
        let settings = AgentTls { client: Some(operator(&mesh)), ..settings(anchor) };
        let chain = vec![anchor.issue(&agent(&mesh), &key)];
        let (client, _) = meet(&settings, NAME, chain, key, Version::Tls13);
        assert_eq!((&client.error, client.done), (&None, true));
    }
    // What an anchor has signed must be in date all the same, be it the agent's own certificate or on the way to it.
    let late = old.intermediate(&mesh.ca("Late").valid(mesh.now - 1000, mesh.now - 10));
    let key = Key::generate(KeyKind::P256);
    let chain = vec![late.issue(&agent(&mesh), &key), late.certificate.clone()];
    let (client, _) = meet(&settings(&old), NAME, chain, key, Version::Tls13);
    assert_eq!(client.error, Some(SessionError::Rejected(RejectReason::Expired)));
}

#[test]
fn an_agent_and_its_operator_may_have_any_key_of_today() {
    let mesh = Mesh::new(5);
    let not_in_fips = [KeyKind::P521, KeyKind::Ed25519];
    for kind in [KeyKind::P384, KeyKind::Rsa2048].into_iter().chain(not_in_fips) {
        for version in Version::BOTH {
            let key = Key::generate(kind);
            let settings = AgentTls { client: Some(operator_with(&mesh, kind)), ..settings(&mesh.root) };
            let chain = vec![mesh.root.issue(&agent(&mesh), &key)];
            let (client, _) = meet(&settings, NAME, chain, key, version);
            let met = !(cfg!(feature = "fips") && not_in_fips.contains(&kind));
            assert_eq!((client.error.is_none(), client.done), (met, met), "{kind:?} {version:?}: {:?}", client.error);
        }
    }
}

#[test]
fn what_the_other_libraries_no_longer_take_is_not_taken_here() {
    let mesh = Mesh::new(6);
    let roots = [(1024, false), (2048, true)].map(|(bits, good)| {
        (Authority::root(&mesh.ca("A CA of this size"), KeyKind::RsaByHand(bits)), SignatureKind::RsaSha256, good)
    });
    let over_sha1 = [
        (Authority::root(&mesh.ca("Of RSA"), KeyKind::RsaByHand(2048)), SignatureKind::RsaSha1, false),
        (Authority::root(&mesh.ca("Of P-256"), KeyKind::P256), SignatureKind::EcdsaSha1, false),
        (Authority::root(&mesh.ca("Of P-256"), KeyKind::P256), SignatureKind::EcdsaSha512, true),
        (Authority::root(&mesh.ca("Of PSS"), KeyKind::Rsa2048), SignatureKind::RsaPssSha256, true),
    ];
    for (root, signature, good) in roots.into_iter().chain(over_sha1) {
        let key = Key::generate(KeyKind::P256);
        let settings = AgentTls { client: Some(operator(&mesh)), ..settings(&root) };
        let chain = vec![root.issue(&agent(&mesh).signed(signature), &key)];
        let (client, _) = meet(&settings, NAME, chain, key, Version::Tls13);
        let refused = matches!(client.error, Some(SessionError::Protocol(_)));
        assert_eq!((client.done, refused), (good, !good), "{signature:?}: {:?}", client.error);
    }
    // A root's own signature proves nothing, whatever it is made over.
    let old = Authority::root(&mesh.ca("Old").signed(SignatureKind::EcdsaSha1), KeyKind::P256);
    let key = Key::generate(KeyKind::P256);
    let settings = AgentTls { client: Some(operator(&mesh)), ..settings(&old) };
    let (client, _) = meet(&settings, NAME, vec![old.issue(&agent(&mesh), &key)], key, Version::Tls12);
    assert_eq!((&client.error, client.done), (&None, true));
}

#[test]
fn one_bad_entry_among_the_roots_does_not_take_the_others_along() {
    let mesh = Mesh::new(7);
    let backend = BoringBackend::new().unwrap();
    let bad = [vec![], vec![1, 2, 3], mesh.root.certificate[..100].to_vec()];
    let mut roots: Vec<CertificateDer<'static>> = bad.into_iter().map(CertificateDer::from).collect();
    let nothing = AgentTls { roots: roots.clone(), client: None, verification: AgentVerification::Full };
    assert!(matches!(backend.agent_context(&nothing).err(), Some(BuildError::Refused { what: "roots", .. })));
    nothing_is_left();

    // The good one twice, as a bundle may have it.
    roots.extend([mesh.root.certificate.clone(), mesh.root.certificate.clone()]);
    let key = Key::generate(KeyKind::P256);
    let settings = AgentTls { roots, client: Some(operator(&mesh)), verification: AgentVerification::Full };
    let (client, _) = meet(&settings, NAME, vec![mesh.root.issue(&agent(&mesh), &key)], key, Version::Tls13);
    assert_eq!((&client.error, client.done), (&None, true));
}
