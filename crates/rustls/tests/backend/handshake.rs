//! Handshakes with the mesh: who gets through, what is agreed, and what the other side is told.

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use lictor_core::{
    MeshSession, RejectReason, SessionError, TlsBackend, TlsPolicy,
    judgement::{decide, judging},
};
use lictor_rustls::RustlsBackend;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyUsagePurpose, SanType, date_time_ymd};
use rustls::{HandshakeKind, SignatureScheme, client::ResolvesClientCert, server::Acceptor, sign::CertifiedKey};
use rustls_pki_types::CertificateDer;

use crate::{
    peers::{
        Anybody, BYTE_BY_BYTE, End, Forger, Ours, Plain, TLS12, TLS13, VERSIONS, WHOLE, client_config,
        client_config_of, pump, server_config, server_config_of,
    },
    pki::{Ca, TRUST_DOMAIN, uri},
};

#[test]
fn two_of_us_meet_and_know_each_other() {
    for cuts in [WHOLE, BYTE_BY_BYTE] {
        let ca = Ca::new();
        let (web, db) = (ca.leaf("web"), ca.leaf("db"));
        let (mut client, mut server) = (Ours::client(&db, &ca), Ours::server(&web, &ca));
        pump(&mut client, &mut server, cuts);
        let (seen_by_client, seen_by_server) = (client.established.unwrap(), server.established.unwrap());
        assert_eq!(seen_by_client.peer.identity.uri(), uri(TRUST_DOMAIN, "web"));
        assert_eq!(seen_by_server.peer.identity.uri(), uri(TRUST_DOMAIN, "db"));
        assert_eq!(seen_by_client.peer.chain, web.chain);
        assert_eq!(seen_by_client.facts, seen_by_server.facts);
        assert_eq!(seen_by_client.facts.version, "TLSv1.3");
        assert_eq!(seen_by_client.facts.suite, "TLS_AES_128_GCM_SHA256");
        assert_eq!(seen_by_client.facts.group, "X25519MLKEM768", "the hybrid group comes first by default");
    }
}

#[test]
fn both_versions_work_in_both_roles_whole_and_byte_by_byte() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for version in VERSIONS {
        for cuts in [WHOLE, BYTE_BY_BYTE] {
            let (mut client, mut server) = (Plain::client(version, Some(&db)), Ours::server(&web, &ca));
            pump(&mut client, &mut server, cuts);
            assert_eq!((&server.error, &client.error), (&None, &None));
            let inbound = server.established.unwrap();
            assert_eq!(inbound.peer.identity.uri(), uri(TRUST_DOMAIN, "db"));
            assert_eq!(client.connection.peer_certificates().unwrap(), web.chain, "the chain goes as it was given");

            let (mut client, mut server) = (Ours::client(&db, &ca), Plain::server(version, &web));
            pump(&mut client, &mut server, cuts);
            assert_eq!((&server.error, &client.error), (&None, &None));
            let outbound = client.established.unwrap();
            assert_eq!(server.connection.peer_certificates().unwrap(), db.chain);

            let expected = if version == TLS13 {
                ("TLSv1.3", "TLS_AES_128_GCM_SHA256")
            } else {
                ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
            };
            for facts in [inbound.facts, outbound.facts] {
                assert_eq!((facts.version, facts.suite), expected);
            }
        }
    }
}

#[test]
fn the_policy_leaves_out_the_hybrid_group_and_tls_1_2() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let policy = TlsPolicy { tls12: false, hybrid_first: false };
    let context = web.context(&policy);
    let serve = || Ours::<dyn MeshSession>::new(context.accept().unwrap(), Some(ca.judge_clients()));

    let (mut client, mut server) = (Ours::client(&db, &ca), serve());
    pump(&mut client, &mut server, WHOLE);
    let first = RustlsBackend::new().unwrap().crypto(&policy).groups[0];
    assert_eq!(server.established.unwrap().facts.group, first);

    let (mut client, mut server) = (Plain::client(TLS12, Some(&db)), serve());
    pump(&mut client, &mut server, WHOLE);
    assert!(matches!(server.error, Some(SessionError::NothingInCommon(_))), "{:?}", server.error);
    assert_eq!(client.alert(), Some(70), "protocol_version");
}

#[test]
fn a_refused_peer_is_told_by_the_alert_of_its_reason() {
    type Change = fn(&mut CertificateParams);
    let rows: [(RejectReason, u8, Change); 4] = [
        (RejectReason::ManyUris, 42, |leaf| {
            let second = uri(TRUST_DOMAIN, "admin").try_into().unwrap();
            leaf.subject_alt_names.push(SanType::URI(second));
        }),
        (RejectReason::KeyUsage, 43, |leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        (RejectReason::Expired, 45, |leaf| leaf.not_after = date_time_ymd(2020, 1, 1)),
        (RejectReason::TrustDomain, 46, |leaf| {
            leaf.subject_alt_names = vec![SanType::URI(uri("elsewhere.consul", "web").try_into().unwrap())];
        }),
    ];
    let (ca, foreign) = (Ca::new(), Ca::foreign());
    let good = ca.leaf("web");
    let mut peers: Vec<_> =
        rows.iter().map(|(reason, alert, change)| (*reason, *alert, ca.issue("web", change))).collect();
    peers.push((RejectReason::UnknownIssuer, 48, foreign.leaf("web")));
    for version in VERSIONS {
        for (reason, alert, bad) in &peers {
            let (mut client, mut server) = (Plain::client(version, Some(bad)), Ours::server(&good, &ca));
            pump(&mut client, &mut server, WHOLE);
            assert_eq!(server.error, Some(SessionError::Rejected(*reason)), "inbound, {version:?}");
            assert_eq!(client.alert(), Some(*alert), "inbound, {reason}, {version:?}");

            let (mut client, mut server) = (Ours::client(&good, &ca), Plain::server(version, bad));
            pump(&mut client, &mut server, WHOLE);
            assert_eq!(client.error, Some(SessionError::Rejected(*reason)), "outbound, {version:?}");
            assert_eq!(server.alert(), Some(*alert), "outbound, {reason}, {version:?}");
            assert!(client.established.is_none());
        }
    }
}

#[test]
fn a_server_that_is_another_service_is_refused() {
    let ca = Ca::new();
    let (mut client, mut server) = (Ours::client(&ca.leaf("db"), &ca), Ours::server(&ca.leaf("api"), &ca));
    pump(&mut client, &mut server, WHOLE);
    assert_eq!(client.error, Some(SessionError::Rejected(RejectReason::WrongService)));
    assert_eq!(server.error, Some(SessionError::PeerAlert(46)));
}

#[test]
fn a_client_that_is_refused_in_tls_1_3_learns_it_when_it_opens() {
    let (ca, foreign) = (Ca::new(), Ca::foreign());
    let (mut client, mut server) = (Ours::client(&foreign.leaf("db"), &ca), Ours::server(&ca.leaf("web"), &ca));
    pump(&mut client, &mut server, WHOLE);
    assert!(client.done);
    assert_eq!(client.error, Some(SessionError::PeerAlert(48)));
    assert_eq!(client.open(), Err(SessionError::PeerAlert(48)));
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let web = ca.leaf("web");
    for version in VERSIONS {
        let (mut client, mut server) = (Plain::client(version, None), Ours::server(&web, &ca));
        pump(&mut client, &mut server, WHOLE);
        assert_eq!(server.error, Some(SessionError::Rejected(RejectReason::NoCertificate)));
        assert_eq!(client.alert(), Some(116), "certificate_required");
    }
}

#[test]
fn a_peer_that_cannot_sign_for_its_chain_is_refused() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&ca.leaf("thief").key_der()).unwrap();
    for version in VERSIONS {
        // The chain of db is public; the key is another.
        let stolen = Arc::new(CertifiedKey::new(db.chain.clone(), key.clone()));
        let mut config = client_config(version, None);
        config.client_auth_cert_resolver = Arc::new(Resolver { stolen, hints: Mutex::default() });
        let (mut client, mut server) = (Plain::client_of(&Arc::new(config)), Ours::server(&web, &ca));
        pump(&mut client, &mut server, WHOLE);
        assert_eq!(server.error.as_ref().unwrap().reject_reason(), Some(RejectReason::BadMessage));
        assert!(server.established.is_none());
        assert_eq!(client.alert(), Some(51), "decrypt_error");
    }
}

#[test]
fn a_client_that_takes_no_signature_of_our_key_has_nothing_in_common_with_us() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for version in VERSIONS {
        let mut config = client_config(version, Some(&db));
        let anybody = Anybody { schemes: vec![SignatureScheme::ECDSA_NISTP384_SHA384] };
        config.dangerous().set_certificate_verifier(Arc::new(anybody));
        let (mut client, mut server) = (Plain::client_of(&Arc::new(config)), Ours::server(&web, &ca));
        pump(&mut client, &mut server, WHOLE);
        assert!(matches!(server.error, Some(SessionError::NothingInCommon(_))), "{:?}", server.error);
    }
}

#[test]
fn no_ca_names_are_sent_to_clients() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for version in VERSIONS {
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&db.key_der()).unwrap();
        let resolver =
            Arc::new(Resolver { stolen: Arc::new(CertifiedKey::new(db.chain.clone(), key)), hints: Mutex::default() });
        let mut config = client_config(version, None);
        config.client_auth_cert_resolver = resolver.clone();
        let (mut client, mut server) = (Plain::client_of(&Arc::new(config)), Ours::server(&web, &ca));
        pump(&mut client, &mut server, WHOLE);
        assert!(server.done);
        assert_eq!(*resolver.hints.lock().unwrap(), [0], "asked once, with no name");
    }
}

#[test]
fn alpn_of_a_client_is_ignored() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for version in VERSIONS {
        let mut config = client_config(version, Some(&db));
        config.alpn_protocols = vec![b"h2".to_vec(), b"foo".to_vec()];
        let (mut client, mut server) = (Plain::client_of(&Arc::new(config)), Ours::server(&web, &ca));
        pump(&mut client, &mut server, WHOLE);
        assert!(server.done);
        assert_eq!((client.connection.alpn_protocol(), &client.error), (None, &None));
    }
}

#[test]
fn a_client_sends_the_name_it_is_given_and_no_alpn() {
    let ca = Ca::new();
    let context = ca.leaf("db").context(&TlsPolicy::default());
    let long = "x".repeat(300);
    let sni = format!("web.default.dc1.internal.{TRUST_DOMAIN}");
    let names = [
        (Some(sni.as_str()), Some(sni.as_str())),
        (None, None),
        (Some("10.0.0.1"), None),
        (Some("::1"), None),
        (Some("not a name"), None),
        (Some(""), None),
        (Some(&long), None),
    ];
    for (given, sent) in names {
        let mut client = Ours::<dyn MeshSession>::new(context.connect(given).unwrap(), Some(ca.judge_server("web")));
        client.feed(&[]);
        let mut acceptor = Acceptor::default();
        acceptor.read_tls(&mut &client.sent()[..]).unwrap();
        let accepted = acceptor.accept().unwrap().unwrap();
        let hello = accepted.client_hello();
        assert_eq!(hello.server_name(), sent, "{given:?}");
        assert!(hello.alpn().is_none());
    }
}

#[test]
fn nothing_is_resumed_in_either_role() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for version in VERSIONS {
        // A client that would resume, and keeps sessions by server name as rustls does by default.
        let (context, config) = (web.context(&TlsPolicy::default()), Arc::new(client_config(version, Some(&db))));
        for _ in 0..2 {
            let mut server = Ours::<dyn MeshSession>::new(context.accept().unwrap(), Some(ca.judge_clients()));
            let mut client = Plain::client_of(&config);
            pump(&mut client, &mut server, WHOLE);
            assert!(server.done);
            assert_eq!(client.connection.handshake_kind(), Some(HandshakeKind::Full));
            if let rustls::Connection::Client(client) = &client.connection {
                assert_eq!(client.tls13_tickets_received(), 0);
            }
        }

        // A server that hands out tickets and remembers sessions.
        let mut config = server_config(version, &web);
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let (context, config) = (db.context(&TlsPolicy::default()), Arc::new(config));
        for _ in 0..2 {
            let mut client =
                Ours::<dyn MeshSession>::new(context.connect(Some("web")).unwrap(), Some(ca.judge_server("web")));
            let mut server = Plain::server_of(&config);
            pump(&mut client, &mut server, WHOLE);
            assert!(client.done && client.error.is_none());
            assert_eq!(server.connection.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}

#[test]
fn early_data_of_a_client_with_a_ticket_from_elsewhere_is_skipped() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let mut elsewhere = server_config(TLS13, &web);
    elsewhere.max_early_data_size = 1_000;
    let mut config = client_config(TLS13, Some(&db));
    config.enable_early_data = true;
    let config = Arc::new(config);
    pump(&mut Plain::client_of(&config), &mut Plain::server_of(&Arc::new(elsewhere)), WHOLE);

    for cuts in [WHOLE, BYTE_BY_BYTE] {
        let mut client = Plain::client_of(&config);
        let rustls::Connection::Client(connection) = &mut client.connection else { unreachable!() };
        connection.early_data().expect("the ticket allows it").write_all(b"too early").unwrap();
        let mut server = Ours::server(&web, &ca);
        pump(&mut client, &mut server, cuts);
        assert_eq!((&server.error, &client.error, server.done), (&None, &None, true));
        assert_eq!(client.connection.handshake_kind(), Some(HandshakeKind::Full));
        client.write(b"in time");
        pump(&mut client, &mut server, cuts);
        assert_eq!(server.plain.data(), b"in time");
    }
}

#[test]
fn a_handshake_with_a_retry_of_the_hello_is_a_full_one() {
    use rustls::crypto::aws_lc_rs::kx_group;
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for cuts in [WHOLE, BYTE_BY_BYTE] {
        let groups = vec![kx_group::MLKEM1024, kx_group::SECP384R1];
        let mut client = Plain::client_of(&Arc::new(client_config_of(groups, &db)));
        let mut server = Ours::server(&web, &ca);
        pump(&mut client, &mut server, cuts);
        assert_eq!(client.connection.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
        assert_eq!(server.established.unwrap().facts.group, "secp384r1");

        let mut client = Ours::client(&db, &ca);
        let mut server = Plain::server_of(&Arc::new(server_config_of(vec![kx_group::SECP384R1], &web)));
        pump(&mut client, &mut server, cuts);
        assert_eq!(server.connection.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
        assert_eq!(client.established.unwrap().facts.group, "secp384r1");
    }
}

#[test]
fn data_behind_the_last_flight_stays_in_the_wire_until_it_is_opened() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    // TLS 1.3: the client's Finished and its first data in one piece.
    let (mut client, mut server) = (Plain::client(TLS13, Some(&db)), Ours::server(&web, &ca));
    server.feed(&client.sent());
    client.feed(&server.sent());
    client.write(b"early bird");
    server.wire.append(&client.sent());
    assert!(matches!(server.handshake(), Ok(lictor_core::HandshakeStep::Done(_))));
    assert!(server.plain.is_empty() && !server.wire.is_empty());
    server.open().unwrap();
    assert_eq!(server.plain.data(), b"early bird");

    // TLS 1.2: the server speaks last.
    let (mut client, mut server) = (Ours::client(&db, &ca), Plain::server(TLS12, &web));
    client.feed(&[]);
    for _ in 0..2 {
        server.feed(&client.sent());
        if !server.connection.is_handshaking() {
            server.write(b"early bird");
        }
        client.wire.append(&server.sent());
        let _ = client.handshake().unwrap();
    }
    assert!(client.plain.is_empty() && !client.wire.is_empty());
    client.open().unwrap();
    assert_eq!(client.plain.data(), b"early bird");
}

#[test]
fn other_protocols_are_refused_at_once_and_for_good() {
    let ca = Ca::new();
    let web = ca.leaf("web");
    for greeting in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"G", b"SSH-2.0-OpenSSH\r\n", &[22, 3, 1, 0xff, 0xff, 1]] {
        let mut server = Ours::server(&web, &ca);
        server.feed(greeting);
        assert_eq!(server.error, Some(SessionError::NotTls), "{greeting:?}");
        assert!(server.out.is_empty());
        assert_eq!(server.handshake().unwrap_err(), SessionError::NotTls);
        assert_eq!(server.seal(b"x"), Err(SessionError::NotTls));

        let mut client = Ours::client(&web, &ca);
        client.feed(&[]);
        client.feed(greeting);
        assert_eq!(client.error, Some(SessionError::NotTls));
    }
}

#[test]
fn garbage_behind_a_good_record_is_a_broken_protocol_with_an_alert() {
    let ca = Ca::new();
    let mut server = Ours::server(&ca.leaf("web"), &ca);
    // The beginning of a message, then no record.
    server.feed(&[22, 3, 1, 0, 4, 1, 0, 0, 9]);
    assert_eq!(server.error, None);
    server.feed(b"GET / HTTP/1.1\r\n");
    assert!(matches!(server.error, Some(SessionError::Protocol(_))), "{:?}", server.error);
    assert_eq!(server.sent(), [21, 3, 3, 0, 2, 2, 50], "decode_error");
    let error = server.error.clone().unwrap();
    for _ in 0..2 {
        assert_eq!(server.handshake().unwrap_err(), error);
        assert!(server.out.is_empty(), "one alert is enough");
    }
}

#[test]
fn a_peer_that_only_says_goodbye_is_not_waited_for() {
    let ca = Ca::new();
    for cuts in [WHOLE, BYTE_BY_BYTE] {
        let mut server = Ours::server(&ca.leaf("web"), &ca);
        for piece in [21, 3, 1, 0, 2, 1, 0].chunks(cuts[0].min(7)) {
            server.feed(piece);
        }
        assert_eq!(server.error, Some(SessionError::PeerAlert(0)));
    }
}

#[test]
fn a_session_closed_in_its_handshake_says_nothing_and_ends() {
    let ca = Ca::new();
    let mut server = Ours::server(&ca.leaf("web"), &ca);
    server.session.close(&mut server.out).unwrap();
    assert!(server.out.is_empty());
    assert!(matches!(server.handshake(), Err(SessionError::Internal(_))));
}

#[test]
fn a_message_in_crumbs_is_refused_before_it_costs_memory() {
    let ca = Ca::new();
    let mut server = Ours::server(&ca.leaf("web"), &ca);
    let mut fed = 0;
    // A ClientHello of 65 535 bytes, one byte a record.
    for byte in [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0)) {
        server.feed(&[22, 3, 1, 0, 1, byte]);
        fed += 6;
        if server.error.is_some() {
            break;
        }
    }
    assert!(matches!(server.error, Some(SessionError::Protocol(_))));
    assert!(fed <= 64 * 1024 + 6, "{fed} bytes were taken");
}

#[test]
fn a_certificate_message_beyond_measure_is_refused_within_64_kib() {
    let ca = Ca::new();
    let web = ca.leaf("web");
    for version in VERSIONS {
        let mut bloated = ca.leaf("web");
        bloated.chain.extend((0..45).map(|_| CertificateDer::from(vec![0x30; 10_000])));
        let (mut client, mut server) = (Ours::client(&web, &ca), Plain::server(version, &bloated));
        client.feed(&[]);
        server.feed(&client.sent());
        let flight = server.sent();
        assert!(flight.len() > 450_000);
        let mut fed = 0;
        for piece in flight.chunks(1_000) {
            client.feed(piece);
            fed += piece.len();
            if client.error.is_some() {
                break;
            }
        }
        assert!(matches!(client.error, Some(SessionError::Protocol(_))), "{:?}", client.error);
        assert!(fed <= 64 * 1024, "{fed} bytes were taken");
    }
}

#[test]
fn a_chain_of_many_certificates_is_refused_as_too_large() {
    let ca = Ca::new();
    let web = ca.leaf("web");
    for version in VERSIONS {
        let mut long = ca.leaf("web");
        long.chain.extend((0..5_000).map(|_| CertificateDer::from(vec![0x30, 0])));
        let (mut client, mut server) = (Ours::client(&web, &ca), Plain::server(version, &long));
        pump(&mut client, &mut server, WHOLE);
        assert_eq!(client.error, Some(SessionError::Rejected(RejectReason::ChainTooLarge)));
    }
}

#[test]
fn a_second_client_hello_ends_the_session() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let (mut client, mut server) = (Plain::client(TLS12, Some(&db)), Ours::server(&web, &ca));
    let hello = client.sent();
    server.feed(&hello);
    pump(&mut client, &mut server, WHOLE);
    let mut forger = Forger::from(client, TLS12);
    server.feed(&forger.seal(22, &hello[5..]));
    assert!(matches!(server.error, Some(SessionError::Protocol(_))), "{:?}", server.error);
    server.feed(&forger.seal(23, b"still here"));
    assert_eq!(server.plain.data(), b"");
}

#[test]
fn a_second_certificate_is_refused_in_either_role() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    for version in VERSIONS {
        let (mut client, mut server) = (Plain::client(version, Some(&db)), Ours::server(&web, &ca));
        pump(&mut client, &mut server, WHOLE);
        // An empty Certificate message: context and list in 1.3, list in 1.2.
        let certificate: &[u8] = if version == TLS13 { &[11, 0, 0, 4, 0, 0, 0, 0] } else { &[11, 0, 0, 3, 0, 0, 0] };
        server.feed(&Forger::from(client, version).seal(22, certificate));
        assert!(matches!(server.error, Some(SessionError::Protocol(_))), "{:?}", server.error);
    }
    // Post-handshake authentication is never offered, so the question for it is a fault.
    let (mut client, mut server) = (Ours::client(&db, &ca), Plain::server(TLS13, &web));
    pump(&mut client, &mut server, WHOLE);
    let mut request = vec![13, 0, 0, 11, 0, 0, 8, 0, 13, 0, 4, 0, 2];
    request.extend(u16::from(SignatureScheme::ECDSA_NISTP256_SHA256).to_be_bytes());
    client.feed(&Forger::from(server, TLS13).seal(22, &request));
    assert!(matches!(client.error, Some(SessionError::Protocol(_))), "{:?}", client.error);
}

#[test]
fn a_panic_inside_a_call_leaves_the_slot_empty_for_the_next_session() {
    let ca = Ca::new();
    let backend = RustlsBackend::new().unwrap();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        judging(&ca.judge_clients(), &mut None, || panic!("in the middle of a call"));
    }));
    assert!(panicked.is_err());
    assert_eq!(decide(&db.chain, backend.signature_algorithms()), Err(RejectReason::SecondCertificate));
    let (mut client, mut server) = (Ours::client(&db, &ca), Ours::server(&web, &ca));
    pump(&mut client, &mut server, WHOLE);
    assert!(client.done && server.done);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn where_the_stream_is_cut_makes_no_difference(
        cuts in prop::collection::vec(1usize..2_000, 1..20),
        up in prop::collection::vec(any::<u8>(), 0..40_000),
        down in prop::collection::vec(any::<u8>(), 0..40_000),
        is_tls13: bool,
    ) {
        let version = VERSIONS[usize::from(is_tls13)];
        let ca = Ca::new();
        let (web, db) = (ca.leaf("web"), ca.leaf("db"));
        let (mut client, mut server) = (Plain::client(version, Some(&db)), Ours::server(&web, &ca));
        // Written before the handshake, so it travels right behind the last flight.
        client.write(&up);
        pump(&mut client, &mut server, &cuts);
        prop_assert!(server.done);
        server.seal(&down).unwrap();
        pump(&mut client, &mut server, &cuts);
        prop_assert_eq!((&server.error, &client.error), (&None, &None));
        prop_assert_eq!(server.plain.data(), &up);
        prop_assert_eq!(client.plain, down);
        prop_assert!(server.wire.is_empty());
    }

    #[test]
    fn changed_bytes_end_in_an_error_or_nowhere_and_never_in_a_panic(
        changes in prop::collection::vec((0usize..4_000, 1u8..=255), 1..4),
        cut in 1usize..3_000,
        is_tls13: bool,
        from_client: bool,
    ) {
        let version = VERSIONS[usize::from(is_tls13)];
        let ca = Ca::new();
        let (web, db) = (ca.leaf("web"), ca.leaf("db"));
        let mangle = |position: &mut usize, mut bytes: Vec<u8>| {
            for (at, mask) in &changes {
                if let Some(byte) = at.checked_sub(*position).and_then(|at| bytes.get_mut(at)) {
                    *byte ^= mask;
                }
            }
            *position += bytes.len();
            bytes
        };
        let (mut position, mut ours, mut peer) = if from_client {
            (0, Ours::server(&web, &ca), Plain::client(version, Some(&db)))
        } else {
            (0, Ours::client(&db, &ca), Plain::server(version, &web))
        };
        ours.feed(&[]);
        for _ in 0..4 {
            if peer.error.is_none() && !peer.connection.is_handshaking() {
                peer.write(b"payload");
            }
            for piece in mangle(&mut position, peer.sent()).chunks(cut) {
                ours.feed(piece);
            }
            peer.feed(&ours.sent());
        }
        prop_assert!(!matches!(ours.error, Some(SessionError::Internal(_))), "{:?}", ours.error);
        prop_assert!(b"payloadpayloadpayloadpayload".starts_with(ours.plain.data()));
    }
}

/// Shows a chain with any key, and counts the CA names it was asked by.
#[derive(Debug)]
struct Resolver {
    stolen: Arc<CertifiedKey>,
    hints: Mutex<Vec<usize>>,
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.hints.lock().unwrap().push(hints.len());
        Some(self.stolen.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
