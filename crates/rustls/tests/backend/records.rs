//! Records after the handshake: data, KeyUpdate, closing, damage, and what a peer with good keys may try.

use lictor_core::{MeshSession, Progress, RejectReason, SessionError};
use proptest::prelude::*;

use crate::{
    peers::{BYTE_BY_BYTE, End, Forger, Ours, Plain, TLS12, TLS13, VERSIONS, WHOLE, pump},
    pki::Ca,
};

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// A server of ours with an honest client, after their handshake.
fn connected(version: &'static rustls::SupportedProtocolVersion) -> (Plain, Ours<dyn MeshSession>) {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let (mut client, mut server) = (Plain::client(version, Some(&db)), Ours::server(&web, &ca));
    pump(&mut client, &mut server, WHOLE);
    assert!(server.done && server.error.is_none());
    (client, server)
}

fn attacked(version: &'static rustls::SupportedProtocolVersion) -> (Forger, Ours<dyn MeshSession>) {
    let (client, server) = connected(version);
    (Forger::from(client, version), server)
}

#[test]
fn data_of_any_size_passes_both_ways() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version);
        for size in [0, 1, 16_383, 16_384, 16_385, 100_000, 1_000_000] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            server.seal(&data).unwrap();
            // The buffered peer takes 64 KiB at a time.
            for piece in data.chunks(60_000) {
                client.write(piece);
                pump(&mut client, &mut server, WHOLE);
            }
            pump(&mut client, &mut server, WHOLE);
            assert_eq!((client.plain == data, server.plain.data() == data), (true, true), "{size} bytes");
            client.plain.clear();
            server.plain.clear();
        }
    }
}

#[test]
fn sealing_needs_no_more_room_than_its_records() {
    for version in VERSIONS {
        let (_client, mut server) = connected(version);
        server.out = lictor_core::Buf::with_capacity(65_536 + 4 * 32 + 64);
        let before = server.out.capacity();
        server.seal(&[7; 65_536]).unwrap();
        assert_eq!(server.out.capacity(), before);
    }
}

#[test]
fn a_key_update_is_followed_and_answered() {
    for cuts in [WHOLE, BYTE_BY_BYTE] {
        let (mut client, mut server) = connected(TLS13);
        client.connection.refresh_traffic_keys().unwrap();
        client.write(b"under the new key");
        pump(&mut client, &mut server, cuts);
        server.seal(b"so is the answer").unwrap();
        pump(&mut client, &mut server, cuts);
        assert_eq!((&server.error, &client.error), (&None, &None));
        assert_eq!(server.plain.data(), b"under the new key");
        assert_eq!(client.plain, b"so is the answer");
    }
}

#[test]
fn a_key_update_that_asks_for_none_is_not_answered() {
    let (mut forger, mut server) = attacked(TLS13);
    server.feed(&forger.seal(HANDSHAKE, &KEY_UPDATE));
    server.seal(b"data").unwrap();
    assert_eq!(forger.open(&server.sent()), b"data\x17");
}

#[test]
fn an_answer_to_a_key_update_comes_before_a_close() {
    let (mut forger, mut server) = attacked(TLS13);
    server.feed(&forger.seal(HANDSHAKE, &KEY_UPDATE_REQUESTED));
    server.session.close(&mut server.out).unwrap();
    assert_eq!(forger.open(&server.sent()), [&KEY_UPDATE[..], &[HANDSHAKE]].concat());
}

#[test]
fn a_key_update_in_fragments_does_not_stop_the_session_from_sealing() {
    for cut in 1..KEY_UPDATE_REQUESTED.len() {
        let (mut forger, mut server) = attacked(TLS13);
        let (first, second) = KEY_UPDATE_REQUESTED.split_at(cut);
        server.feed(&forger.seal(HANDSHAKE, first));
        assert!(server.wire.is_empty(), "a whole record does not stay in the wire");
        server.seal(b"between").unwrap();
        let second = forger.seal(HANDSHAKE, second);
        server.feed(&second[..10]);
        assert_eq!(server.wire.len(), 10);
        server.seal(b"between").unwrap();
        server.feed(&second[10..]);
        assert_eq!((&server.error, server.wire.len()), (&None, 0));
        let sent = server.sent();
        assert_eq!(forger.open(&sent), b"between\x17");
        assert_eq!(forger.open(&sent[sent.len() / 2..]), b"between\x17");
        server.seal(b"after").unwrap();
        assert_eq!(forger.open(&server.sent()), [&KEY_UPDATE[..], &[HANDSHAKE]].concat());
    }
}

#[test]
fn data_between_the_fragments_of_a_message_is_refused() {
    let (mut forger, mut server) = attacked(TLS13);
    server.feed(&[forger.seal(HANDSHAKE, &[24]), forger.seal(DATA, b"x")].concat());
    assert!(matches!(server.error, Some(SessionError::Protocol(_))), "{:?}", server.error);
    assert!(server.plain.is_empty());
}

#[test]
fn empty_handshake_records_do_not_lead_the_session_astray() {
    for version in VERSIONS {
        for at_once in [true, false] {
            let (mut forger, mut server) = attacked(version);
            let records: Vec<_> = [(HANDSHAKE, &b""[..]), (DATA, b"one"), (HANDSHAKE, b""), (DATA, b"two, and longer")]
                .into_iter()
                .map(|(kind, content)| forger.seal(kind, content))
                .collect();
            if at_once {
                server.feed(&records.concat());
            } else {
                records.iter().for_each(|record| server.feed(record));
            }
            let next = forger.seal(DATA, b"!");
            server.feed(&next[..7]);
            assert_ne!(server.error, Some(SessionError::Internal("rustls panicked".to_owned())));
            if server.error.is_none() {
                assert_eq!(server.wire.data(), &next[..7], "what is left is part of a record");
                server.seal(b"answer").unwrap();
                server.feed(&next[7..]);
                assert_eq!(server.plain.data(), b"onetwo, and longer!");
            }
        }
    }
}

#[test]
fn messages_in_fragments_cannot_pile_up() {
    let (mut forger, mut server) = attacked(TLS13);
    let mut fed = 0;
    for byte in [4, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0)) {
        let record = forger.seal(HANDSHAKE, &[byte]);
        fed += record.len();
        server.feed(&record);
        if server.error.is_some() {
            break;
        }
    }
    assert!(matches!(server.error, Some(SessionError::Protocol(_))));
    assert!(fed <= 64 * 1024 + 23, "{fed} bytes were taken");
}

#[test]
fn after_our_close_the_peer_may_still_speak() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version);
        server.session.close(&mut server.out).unwrap();
        server.session.close(&mut server.out).unwrap();
        pump(&mut client, &mut server, WHOLE);
        assert!(client.peer_closed && !server.peer_closed);
        assert!(matches!(server.seal(b"x"), Err(SessionError::Internal(_))), "nothing is sealed after a close");
        client.write(b"late answer");
        pump(&mut client, &mut server, WHOLE);
        assert_eq!(server.plain.data(), b"late answer");
        client.connection.send_close_notify();
        pump(&mut client, &mut server, WHOLE);
        assert_eq!((server.peer_closed, server.error), (true, None));
    }
}

#[test]
fn after_the_peer_has_closed_we_may_still_speak() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version);
        client.write(b"last words");
        client.connection.send_close_notify();
        pump(&mut client, &mut server, BYTE_BY_BYTE);
        assert_eq!(server.plain.data(), b"last words");
        for _ in 0..2 {
            assert_eq!(server.open(), Ok(Progress::PeerClosed), "said by each call");
        }
        server.seal(b"late answer").unwrap();
        server.session.close(&mut server.out).unwrap();
        pump(&mut client, &mut server, WHOLE);
        assert_eq!(client.plain, b"late answer");
        assert!(client.peer_closed);
        assert_eq!(server.open(), Ok(Progress::PeerClosed));
    }
}

#[test]
fn what_follows_a_close_is_not_opened() {
    let (mut forger, mut server) = attacked(TLS13);
    server.feed(&[forger.seal(21, &[1, 0]), forger.seal(DATA, b"x")].concat());
    assert!(server.peer_closed && server.plain.is_empty());
}

#[test]
fn part_of_a_record_stays_in_the_wire() {
    for version in VERSIONS {
        let (mut forger, mut server) = attacked(version);
        let record = forger.seal(DATA, b"whole");
        for cut in 0..record.len() {
            server.feed(&record[server.wire.len()..cut]);
            assert_eq!((server.wire.len(), server.plain.len(), &server.error), (cut, 0, &None));
        }
        server.feed(&record[record.len() - 1..]);
        assert_eq!((server.wire.len(), server.plain.data()), (0, &b"whole"[..]));
    }
}

#[test]
fn a_damaged_record_is_told_from_a_broken_protocol_and_ends_the_session() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version);
        client.write(b"data");
        let mut record = client.sent();
        *record.last_mut().unwrap() ^= 1;
        server.feed(&record);
        assert_eq!(server.error, Some(SessionError::BadRecord));
        client.feed(&server.sent());
        assert_eq!(client.alert(), Some(20), "bad_record_mac");
        for _ in 0..2 {
            assert_eq!(server.open(), Err(SessionError::BadRecord));
            assert_eq!(server.seal(b"x"), Err(SessionError::BadRecord));
            assert_eq!(server.session.close(&mut server.out), Err(SessionError::BadRecord));
            assert!(server.out.is_empty(), "one alert is enough");
        }
    }
}

#[test]
fn damage_after_our_close_is_an_error_without_a_second_farewell() {
    for version in VERSIONS {
        let (mut forger, mut server) = attacked(version);
        server.session.close(&mut server.out).unwrap();
        server.sent();
        let mut record = forger.seal(DATA, b"data");
        *record.last_mut().unwrap() ^= 1;
        server.feed(&record);
        // In builds with debug assertions rustls panics here, which the session turns into an error.
        assert_eq!(server.error.as_ref().unwrap().reject_reason(), Some(RejectReason::BadMessage));
        assert!(server.sent().is_empty());
    }
}

#[test]
fn garbage_after_the_handshake_ends_the_session() {
    for version in VERSIONS {
        let (_client, mut server) = connected(version);
        server.feed(b"GET / HTTP/1.1\r\n");
        assert!(matches!(server.error, Some(SessionError::Protocol(_))), "{:?}", server.error);
        assert!(!server.sent().is_empty(), "with an alert");
    }
}

#[test]
fn a_fatal_alert_of_the_peer_is_passed_on_by_its_number() {
    for version in VERSIONS {
        let (mut forger, mut server) = attacked(version);
        server.feed(&forger.seal(21, &[2, 49]));
        assert_eq!(server.error, Some(SessionError::PeerAlert(49)));
        assert!(server.sent().is_empty());
    }
}

#[test]
fn opening_with_nothing_new_is_legal() {
    let (_client, mut server) = connected(TLS12);
    assert_eq!(server.open(), Ok(Progress::NeedInput));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_peer_with_good_keys_can_end_its_session_and_nothing_more(
        records in prop::collection::vec(
            (prop::sample::select(vec![20u8, 21, 22, 22, 22, 23, 23, 24]), prop::collection::vec(any::<u8>(), 0..12)),
            1..12,
        ),
        updates in prop::collection::vec(1usize..4, 0..4),
        cut in 1usize..80,
        is_tls13: bool,
    ) {
        let (mut forger, mut server) = attacked(VERSIONS[usize::from(is_tls13)]);
        let mut wire = Vec::new();
        for (kind, content) in records {
            wire.extend(forger.seal(kind, &content));
        }
        for at in updates {
            let (first, second) = KEY_UPDATE_REQUESTED.split_at(at);
            wire.extend(forger.seal(HANDSHAKE, first));
            wire.extend(forger.seal(HANDSHAKE, second));
        }
        for piece in wire.chunks(cut) {
            server.feed(piece);
            let sealed = server.seal(b"between");
            prop_assert_eq!(sealed.err(), server.error.clone());
        }
        prop_assert!(!matches!(server.error, Some(SessionError::Internal(_))), "{:?}", server.error);
    }
}
