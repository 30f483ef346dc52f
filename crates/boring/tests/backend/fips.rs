//! The FIPS build, as its peers see it.

use std::sync::Arc;

use lictor_boring::BoringBackend;
use lictor_conformance::{
    certs::Mesh,
    handshake::nothing_left,
    hello::{ClientHello, extension, names},
    pair::{Ours, Peer, PeerSettings, Version, our_context, talk, ways},
    rows::Case,
    verifier::{Side, judge},
};
use lictor_core::{
    AgentTls, Buf, SessionError, TlsBackend, TlsPolicy,
    tls::{AgentSession, AgentVerification},
};
use rustls::{
    CipherSuite, SupportedCipherSuite,
    crypto::{aws_lc_rs, aws_lc_rs::kx_group},
};

#[test]
fn the_module_is_in_use_and_says_so() {
    let told = BoringBackend::new().expect("the module is there").crypto(&TlsPolicy::default());
    assert!(told.fips.enabled);
    assert!(told.fips.self_test.starts_with("passed"), "{}", told.fips.self_test);
}

#[test]
fn the_hellos_to_mesh_and_agent_offer_what_is_said_and_nothing_else() {
    let (backend, mesh) = (BoringBackend::new().unwrap(), Mesh::new(1));
    let told = backend.crypto(&TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let context = our_context(&backend, &mesh, &TlsPolicy::default());
    let to_mesh = Ours::new(context.as_ref(), judge(&mesh, &case, Side::Outbound), Side::Outbound).sent();
    let settings =
        AgentTls { roots: vec![mesh.root.certificate.clone()], client: None, verification: AgentVerification::Full };
    let mut session: Box<dyn AgentSession> = backend.agent_context(&settings).unwrap().connect("127.0.0.1").unwrap();
    let mut to_agent = Buf::default();
    session.handshake(&mut Buf::default(), &mut to_agent).unwrap();
    for hello in [&to_mesh[..], to_agent.data()] {
        let hello = ClientHello::read(hello).unwrap();
        assert_eq!(names(&hello.suites), told.suites);
        assert_eq!(listed(&hello, extension::GROUPS), told.groups);
        assert_eq!(listed(&hello, extension::SIGNATURES), told.signature_schemes);
    }
}

/// The names of an extension that holds one list of numbers behind its length.
fn listed(hello: &ClientHello, kind: u16) -> Vec<String> {
    let content = hello.extension(kind).expect("it is offered");
    names(&content[2..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect::<Vec<_>>())
}

#[test]
fn peers_that_know_only_what_fips_does_not_approve_of_are_refused() {
    let (backend, mesh) = (BoringBackend::new().unwrap(), Mesh::new(2));
    let context = our_context(&backend, &mesh, &TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let chacha: Vec<SupportedCipherSuite> = aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        .filter(|suite| {
            matches!(
                suite.suite(),
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                    | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            )
        })
        .copied()
        .collect();
    for (side, version, way) in ways() {
        let good = PeerSettings::new(case.chain.clone(), Arc::clone(&case.key), version);
        let mut x25519 = good.clone();
        x25519.groups = Some(vec![kx_group::X25519]);
        let mut no_aes = good.clone();
        no_aes.suites = Some(chacha.clone());
        for (what, settings, passes) in [("all", good, true), ("X25519", x25519, false), ("ChaCha20", no_aes, false)] {
            let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, side), side);
            let mut peer = Peer::new(&settings, side);
            talk(&mut ours, &mut peer, usize::MAX);
            assert_eq!(ours.established.is_some(), passes, "{what} {way}: {:?}", ours.failed);
            if !passes {
                assert_eq!(nothing_left(&ours), Ok(()));
                let told = match side {
                    Side::Inbound => matches!(ours.failed, Some(SessionError::NothingInCommon(_))),
                    Side::Outbound => matches!(ours.failed, Some(SessionError::PeerAlert(40))),
                };
                assert!(told, "{what} {way}: {:?}", ours.failed);
            }
        }
    }
}

#[test]
fn a_tls_1_2_client_without_the_extended_master_secret_is_refused() {
    let (backend, mesh) = (BoringBackend::new().unwrap(), Mesh::new(3));
    let context = our_context(&backend, &mesh, &TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let mut settings = PeerSettings::new(case.chain.clone(), case.key.clone(), Version::Tls12);
    for both_versions in [false, true] {
        settings.both_versions = both_versions;
        let mut hello = Peer::new(&settings, Side::Inbound).sent();
        // The extension is empty: type 23, length 0. Under a type that nobody knows it is as good as not there.
        let at = hello.windows(4).position(|bytes| bytes == [0, 23, 0, 0]).expect("rustls offers it");
        hello[at..at + 2].copy_from_slice(&[0x5a, 0x5a]);
        let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, Side::Inbound), Side::Inbound);
        ours.take(&hello);
        let refused = matches!(ours.failed, Some(SessionError::NothingInCommon(_)));
        assert_eq!(refused, !both_versions, "one that speaks TLS 1.3 goes on: {:?}", ours.failed);
        assert_eq!(nothing_left(&ours), Ok(()));
    }
}
