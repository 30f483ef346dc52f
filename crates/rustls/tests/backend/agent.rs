//! HTTPS to the agent.

use std::net::{IpAddr, Ipv4Addr};

use lictor_core::{
    AgentTls, RejectReason, SessionError, TlsBackend,
    tls::{AgentSession, AgentVerification, BuildError},
};
use lictor_rustls::RustlsBackend;
use rcgen::SanType;
use rustls_pki_types::CertificateDer;

use crate::{
    peers::{Ours, Plain, VERSIONS, WHOLE, pump},
    pki::{Ca, Own},
};

fn agent(ca: &Ca) -> Own {
    ca.issue("agent", |leaf| {
        leaf.subject_alt_names = vec![
            SanType::DnsName("server.dc1.consul".try_into().unwrap()),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ];
    })
}

fn settings(ca: &Ca) -> AgentTls {
    AgentTls { roots: vec![ca.der.clone()], client: None, verification: AgentVerification::Full }
}

fn meet(settings: &AgentTls, name: &str, server: &mut Plain) -> Ours<dyn AgentSession> {
    let context = RustlsBackend::new().unwrap().agent_context(settings).unwrap();
    let mut client = Ours::new(context.connect(name).unwrap(), None);
    pump(&mut client, server, WHOLE);
    client
}

#[test]
fn the_agent_is_known_by_dns_name_or_address() {
    let ca = Ca::new();
    let own = agent(&ca);
    for version in VERSIONS {
        for name in ["server.dc1.consul", "127.0.0.1"] {
            let mut server = Plain::server(version, &own);
            let mut settings = settings(&ca);
            let identity = ca.leaf("operator");
            settings.client = Some((identity.chain.clone(), identity.key_der()));
            let mut client = meet(&settings, name, &mut server);
            assert_eq!((&client.error, client.done), (&None, true), "{name}");
            assert_eq!(server.connection.peer_certificates().unwrap(), identity.chain);
            client.seal(b"GET /v1/agent/self").unwrap();
            server.write(b"200");
            pump(&mut client, &mut server, WHOLE);
            assert_eq!((&server.plain[..], client.plain.data()), (&b"GET /v1/agent/self"[..], &b"200"[..]));
        }
    }
}

#[test]
fn an_agent_of_another_name_or_authority_is_refused() {
    let ca = Ca::new();
    let own = agent(&ca);
    for version in VERSIONS {
        for name in ["other.consul", "10.0.0.1"] {
            let client = meet(&settings(&ca), name, &mut Plain::server(version, &own));
            let Some(SessionError::Protocol(why)) = client.error else { panic!("{:?}", client.error) };
            assert!(why.contains("not valid for name"), "{why}");
        }
        let mut server = Plain::server(version, &own);
        let client = meet(&settings(&Ca::foreign()), "server.dc1.consul", &mut server);
        assert_eq!(client.error, Some(SessionError::Rejected(RejectReason::UnknownIssuer)));
        assert_eq!(server.alert(), Some(48));
    }
}

#[test]
fn verification_is_off_only_when_the_operator_says_so() {
    let own = agent(&Ca::new());
    for version in VERSIONS {
        let settings = AgentTls { roots: Vec::new(), client: None, verification: AgentVerification::Off };
        let mut server = Plain::server(version, &own);
        // The server of the test asks for a certificate, so in TLS 1.2 it ends the handshake by itself.
        let client = meet(&settings, "anything", &mut server);
        assert_eq!(client.error, Some(SessionError::PeerAlert(116)), "the client itself had no objection");
    }
}

#[test]
fn no_usable_root_is_an_error_of_the_context() {
    let backend = RustlsBackend::new().unwrap();
    for roots in [vec![], vec![CertificateDer::from(vec![1, 2, 3])]] {
        let settings = AgentTls { roots, client: None, verification: AgentVerification::Full };
        assert!(matches!(backend.agent_context(&settings).err(), Some(BuildError::Refused { what: "roots", .. })));
    }
}

#[test]
fn what_is_no_name_is_an_error() {
    let ca = Ca::new();
    let context = RustlsBackend::new().unwrap().agent_context(&settings(&ca)).unwrap();
    assert!(matches!(context.connect("not a name").err(), Some(SessionError::Internal(_))));
}
