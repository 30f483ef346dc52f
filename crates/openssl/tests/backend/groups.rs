//! What was agreed, said in the names of the registry: against OpenSSL itself, held to one group.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::Arc,
};

use lictor_conformance::{
    certs::{Mesh, pem},
    keys::{Key, KeyKind},
    pair::{Ours, Version, ways},
    rows::Case,
    verifier::{Side, judge},
};
use lictor_core::{Leaf, MeshContext, TlsBackend, TlsFacts, TlsPolicy, identity::Grammar, policy::HYBRID_GROUP};
use lictor_openssl::OpensslBackend;
use openssl::{
    pkey::PKey,
    ssl::{ErrorCode, Ssl, SslContext, SslMethod, SslStream, SslVerifyMode, SslVersion},
    x509::X509,
};

/// Our context for the service `web`, and a peer that has the same certificate.
fn twins(backend: &OpensslBackend, mesh: &Mesh, kind: KeyKind) -> (Arc<dyn MeshContext>, Case) {
    let key = Arc::new(Key::generate(kind));
    let certificate = mesh.root.issue(&mesh.leaf(), &key);
    let pems = (pem("CERTIFICATE", &certificate), pem("PRIVATE KEY", key.pkcs8().unwrap()));
    let leaf = Leaf::from_pem(&pems.0, &pems.1, Grammar::Spiffe).unwrap();
    let context = backend.mesh_context(&leaf, &TlsPolicy::default()).unwrap();
    (context, Case::new(vec![certificate], key, &[&mesh.root]))
}

#[test]
fn the_facts_name_what_was_agreed() {
    let (mesh, backend) = (Mesh::new(1), OpensslBackend::new().unwrap());
    // RSA, because in TLS 1.2 a peer that knows but one curve takes no certificate of another.
    let (context, case) = twins(&backend, &mesh, KeyKind::Rsa2048);
    let groups = backend.crypto(&TlsPolicy::default()).groups;
    assert!(groups.ends_with(&["x25519", "secp256r1", "secp384r1"]), "{groups:?}");
    for (side, version, way) in ways() {
        for group in groups.iter().filter(|group| **group != HYBRID_GROUP || version == Version::Tls13) {
            let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, side), side);
            let mut peer = Peer::new(&case, side, version, group);
            while peer.take(&ours.sent()) {
                ours.take(&peer.sent());
            }
            let suite = match version {
                Version::Tls12 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                Version::Tls13 => "TLS_AES_128_GCM_SHA256",
            };
            let facts = ours.established.as_ref().map(|established| established.facts);
            assert_eq!(facts, Some(TlsFacts { version: version.name(), suite, group }), "{way}: {:?}", ours.failed);
        }
    }
}

#[test]
fn the_hybrid_group_comes_first_where_the_library_has_it() {
    let (mesh, backend) = (Mesh::new(2), OpensslBackend::new().unwrap());
    let told = backend.crypto(&TlsPolicy::default());
    let has_it = SslContext::builder(SslMethod::tls()).unwrap().set_groups_list(HYBRID_GROUP).is_ok();
    assert_eq!(told.groups.first() == Some(&HYBRID_GROUP), has_it);
    assert_eq!(told.differs.iter().any(|sentence| sentence.contains(HYBRID_GROUP)), !has_it);

    let (context, case) = twins(&backend, &mesh, KeyKind::P256);
    let [mut server, mut client] =
        [Side::Inbound, Side::Outbound].map(|side| Ours::new(context.as_ref(), judge(&mesh, &case, side), side));
    while server.established.is_none() {
        assert_eq!((&server.failed, &client.failed), (&None, &None));
        server.take(&client.sent());
        client.take(&server.sent());
    }
    assert_eq!(server.established.map(|established| established.facts.group), Some(told.groups[0]));
}

#[test]
fn a_server_without_the_hybrid_group_need_not_ask_for_another_share() {
    let (mesh, backend) = (Mesh::new(3), OpensslBackend::new().unwrap());
    let (context, case) = twins(&backend, &mesh, KeyKind::P256);
    let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, Side::Outbound), Side::Outbound);
    let mut peer = Peer::new(&case, Side::Outbound, Version::Tls13, "x25519");
    peer.take(&ours.sent());
    ours.take(&peer.sent());
    let group = ours.established.map(|established| established.facts.group);
    assert_eq!(group, Some("x25519"), "after the first answer: {:?}", ours.failed);
}

/// A peer that knows one version and one group.
struct Peer(SslStream<Wire>);

impl Peer {
    fn new(case: &Case, side: Side, version: Version, group: &str) -> Self {
        let mut builder = SslContext::builder(SslMethod::tls()).unwrap();
        let version = match version {
            Version::Tls12 => SslVersion::TLS1_2,
            Version::Tls13 => SslVersion::TLS1_3,
        };
        builder.set_min_proto_version(Some(version)).unwrap();
        builder.set_max_proto_version(Some(version)).unwrap();
        builder.set_groups_list(group).unwrap();
        builder.set_ciphersuites("TLS_AES_128_GCM_SHA256").unwrap();
        builder.set_cipher_list("ECDHE-RSA-AES128-GCM-SHA256").unwrap();
        builder.set_certificate(&X509::from_der(&case.chain[0]).unwrap()).unwrap();
        builder.set_private_key(&PKey::private_key_from_pkcs8(case.key.pkcs8().unwrap()).unwrap()).unwrap();
        builder.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
        let mut ssl = Ssl::new(&builder.build()).unwrap();
        match side {
            Side::Inbound => ssl.set_connect_state(),
            Side::Outbound => ssl.set_accept_state(),
        }
        let mut peer = Self(SslStream::new(ssl, Wire::default()).unwrap());
        peer.go_on();
        peer
    }

    /// Takes what the other side has sent; false when that is nothing and there is nothing to answer.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.0.get_mut().came.extend(bytes);
        self.go_on();
        !bytes.is_empty() || !self.0.get_ref().to_send.is_empty()
    }

    fn sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0.get_mut().to_send)
    }

    fn go_on(&mut self) {
        match self.0.do_handshake() {
            Ok(()) => {}
            Err(error) => assert_eq!(error.code(), ErrorCode::WANT_READ, "{error}"),
        }
    }
}

#[derive(Default)]
struct Wire {
    came: VecDeque<u8>,
    to_send: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.came.read(into) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to_send.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
