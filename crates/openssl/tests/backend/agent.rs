//! HTTPS to the agent, whom OpenSSL judges.

use std::sync::Arc;

use lictor_conformance::{
    certs::{AltName, Authority, Extension, Mesh, Spec, id, purpose},
    keys::{Key, KeyKind, SignatureKind},
    pair::{Peer, PeerSettings, Version},
    verifier::Side,
};
use lictor_core::{
    AgentTls, Buf, Progress, RejectReason, SessionError, TlsBackend,
    tls::{AgentSession, AgentVerification, BuildError},
};
use lictor_openssl::OpensslBackend;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{keys::pkcs8, queue::nothing_is_left};

const NAMES: [&str; 2] = ["server.dc1.consul", "127.0.0.1"];

/// The certificate of an agent.
fn agent(mesh: &Mesh) -> Spec {
    let names = [AltName::Dns(NAMES[0]), AltName::Ip([127, 0, 0, 1])];
    mesh.leaf().with(Extension::alt_names(&names)).subject("agent.consul")
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
        let context = OpensslBackend::new().unwrap().agent_context(settings).unwrap();
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

/// What becomes of an agent that has this certificate of the mesh's root.
fn judged(mesh: &Mesh, root: &Authority, spec: &Spec, name: &str, version: Version) -> (Client, Peer) {
    let key = Key::generate(KeyKind::P256);
    let settings = AgentTls { client: Some(operator(mesh)), ..settings(root) };
    let chain = vec![mesh.root.issue(spec, &key)];
    meet(&settings, name, chain, key, version)
}

#[test]
fn the_agent_is_known_by_dns_name_or_address_and_asks_for_our_certificate() {
    let mesh = Mesh::new(1);
    for version in Version::BOTH {
        for name in NAMES.into_iter().chain(["SERVER.DC1.CONSUL", "server.dc1.consul."]) {
            let (mut client, mut peer) = judged(&mesh, &mesh.root, &agent(&mesh), name, version);
            assert_eq!((&client.error, client.done), (&None, true), "{name}");
            let seen = peer.witness.seen();
            assert_eq!(seen.chain.len(), 1);
            assert_eq!(
                seen.server_name.map(|name| name.to_lowercase()),
                (!name.starts_with('1')).then(|| NAMES[0].to_owned())
            );
            assert!(!seen.alpn);
            client.session.seal(b"GET /v1/agent/self", &mut client.out).unwrap();
            peer.send(b"200");
            client.talk(&mut peer);
            assert_eq!((&peer.received[..], client.plain.data()), (&b"GET /v1/agent/self"[..], &b"200"[..]));
        }
    }
}

#[test]
fn an_agent_of_another_name_is_refused_in_words() {
    let mesh = Mesh::new(2);
    let common_name_alone = agent(&mesh).without(id::ALT_NAMES).subject(NAMES[0]);
    for version in Version::BOTH {
        for (spec, name) in [
            (agent(&mesh), "other.consul"),
            (agent(&mesh), "x.server.dc1.consul"),
            (agent(&mesh), "10.0.0.1"),
            (common_name_alone.clone(), NAMES[0]),
        ] {
            let (client, peer) = judged(&mesh, &mesh.root, &spec, name, version);
            assert!(matches!(client.error, Some(SessionError::Protocol(_))), "{name}: {:?}", client.error);
            assert!(!client.done && peer.alert.is_some(), "{name}");
        }
    }
}

#[test]
fn what_is_wrong_with_an_agents_certificate_has_a_reason() {
    let mesh = Mesh::new(3);
    let (good, now) = (agent(&mesh), mesh.now);
    let foreign = mesh.other_root("Another CA");
    for version in Version::BOTH {
        for (spec, root, reason, alert) in [
            (good.clone(), &foreign, RejectReason::UnknownIssuer, 48),
            (good.clone().valid(now - 100, now - 50), &mesh.root, RejectReason::Expired, 45),
            (good.clone().valid(now + 500, now + 900), &mesh.root, RejectReason::NotYetValid, 42),
        ] {
            let (client, peer) = judged(&mesh, root, &spec, NAMES[0], version);
            assert_eq!(client.error, Some(SessionError::Rejected(reason)));
            assert_eq!(peer.alert, Some(alert), "{reason}");
        }
        for spec in [
            good.clone().with(Extension::extended_key_usage(&[purpose::CLIENT])),
            good.clone().signed(SignatureKind::EcdsaSha1),
        ] {
            let (client, _) = judged(&mesh, &mesh.root, &spec, NAMES[0], version);
            assert!(matches!(client.error, Some(SessionError::Protocol(_))), "{:?}", client.error);
        }
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
        let (client, _) = meet(&settings, NAMES[0], chain, key, Version::Tls13);
        assert_eq!((&client.error, client.done), (&None, true));
    }
    // What an anchor has signed must be in date all the same, be it the agent's own certificate or on the way to it.
    let late = old.intermediate(&mesh.ca("Late").valid(mesh.now - 1000, mesh.now - 10));
    let key = Key::generate(KeyKind::P256);
    let chain = vec![late.issue(&agent(&mesh), &key), late.certificate.clone()];
    let (client, _) = meet(&settings(&old), NAMES[0], chain, key, Version::Tls13);
    assert_eq!(client.error, Some(SessionError::Rejected(RejectReason::Expired)));
}

#[test]
fn an_agent_and_its_operator_may_have_any_key_of_today() {
    let mesh = Mesh::new(5);
    for kind in [KeyKind::P384, KeyKind::P521, KeyKind::Rsa2048, KeyKind::Ed25519] {
        for version in Version::BOTH {
            let key = Key::generate(kind);
            let settings = AgentTls { client: Some(operator_with(&mesh, kind)), ..settings(&mesh.root) };
            let chain = vec![mesh.root.issue(&agent(&mesh), &key)];
            let (client, _) = meet(&settings, NAMES[0], chain, key, version);
            assert_eq!((&client.error, client.done), (&None, true), "{kind:?} {version:?}");
        }
    }
}

#[test]
fn a_certificate_of_ours_with_the_key_of_another_is_refused() {
    let mesh = Mesh::new(10);
    let (chain, _) = operator(&mesh);
    for kind in [KeyKind::P256, KeyKind::Ed25519, KeyKind::Rsa2048] {
        let client = Some((chain.clone(), operator_with(&mesh, kind).1));
        let refused = OpensslBackend::new().unwrap().agent_context(&AgentTls { client, ..settings(&mesh.root) });
        assert_eq!(refused.err(), Some(BuildError::KeyMismatch));
        nothing_is_left();
    }
}

#[test]
fn verification_is_off_only_when_the_operator_says_so() {
    let mesh = Mesh::new(6);
    for version in Version::BOTH {
        let settings =
            AgentTls { roots: Vec::new(), client: Some(operator(&mesh)), verification: AgentVerification::Off };
        let key = Key::generate(KeyKind::P256);
        let chain = vec![mesh.other_root("Anybody").issue(&agent(&mesh).valid(0, 1), &key)];
        let (client, _) = meet(&settings, "anything", chain.clone(), key, version);
        assert_eq!((&client.error, client.done), (&None, true));

        // The handshake must still be signed by the key of the certificate.
        let (client, _) = meet(&settings, "anything", chain, Key::generate(KeyKind::P256), version);
        assert!(matches!(client.error, Some(SessionError::Protocol(_))), "{:?}", client.error);
    }
}

#[test]
fn one_bad_entry_among_the_roots_does_not_take_the_others_along() {
    let mesh = Mesh::new(7);
    let backend = OpensslBackend::new().unwrap();
    let bad = [vec![], vec![1, 2, 3], mesh.root.certificate[..100].to_vec()];
    let mut roots: Vec<CertificateDer<'static>> = bad.into_iter().map(CertificateDer::from).collect();
    let nothing = AgentTls { roots: roots.clone(), client: None, verification: AgentVerification::Full };
    assert!(matches!(backend.agent_context(&nothing).err(), Some(BuildError::Refused { what: "roots", .. })));
    nothing_is_left();

    // The good one twice, as a bundle may have it.
    roots.extend([mesh.root.certificate.clone(), mesh.root.certificate.clone()]);
    let key = Key::generate(KeyKind::P256);
    let settings = AgentTls { roots, client: Some(operator(&mesh)), verification: AgentVerification::Full };
    let (client, _) = meet(&settings, NAMES[0], vec![mesh.root.issue(&agent(&mesh), &key)], key, Version::Tls13);
    assert_eq!((&client.error, client.done), (&None, true));
}

#[test]
fn an_agent_that_wants_a_certificate_we_do_not_have_refuses_us() {
    let mesh = Mesh::new(8);
    for version in Version::BOTH {
        let key = Key::generate(KeyKind::P256);
        let chain = vec![mesh.root.issue(&agent(&mesh), &key)];
        let (client, _) = meet(&settings(&mesh.root), NAMES[0], chain, key, version);
        assert_eq!(client.error, Some(SessionError::PeerAlert(116)));
    }
}

#[test]
fn what_is_no_name_is_an_error() {
    let mesh = Mesh::new(9);
    let context = OpensslBackend::new().unwrap().agent_context(&settings(&mesh.root)).unwrap();
    for name in ["not a name", "", "a\0b.consul"] {
        assert!(matches!(context.connect(name).err(), Some(SessionError::Internal(_))), "{name:?}");
        nothing_is_left();
    }
}
