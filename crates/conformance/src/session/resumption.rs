//! Nothing is resumed: neither what a peer brings from elsewhere, nor what a peer says that we have.

use std::{io::Write as _, sync::Arc};

use lictor_core::{RejectReason, TlsBackend};
use rustls::{ClientConfig, HandshakeKind};

use super::{Scene, Stage};
use crate::{
    handshake::{accepted, kept_promises, nothing_left},
    hello::{ClientHello, ServerFlight, extension, long, message, number, short},
    keys::{Key, KeyKind},
    pair::{Peer, PeerSettings, Version, Witness, talk},
    records::{self, HANDSHAKE},
    report::Report,
    verifier::Side,
};

/// What a peer remembers, or says that it does.
#[must_use]
pub fn resumption(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("resumption", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for version in Version::BOTH {
        let way = (Side::Inbound, version);
        report.add("a ticket from elsewhere leads to a full handshake", way, from_elsewhere(&stage, version, true));
    }
    let (new, old) = ((Side::Inbound, Version::Tls13), (Side::Inbound, Version::Tls12));
    report.add(
        "an identifier from elsewhere leads to a full handshake",
        old,
        from_elsewhere(&stage, Version::Tls12, false),
    );
    for (what, piece) in [("early data is skipped", usize::MAX), ("early data is skipped, byte by byte", 1)] {
        report.add(what, new, early_data(&stage, piece));
    }
    report.add("our server names no session", old, names_no_session(&stage));
    report.add("a server that chose a key that was never shared", (Side::Outbound, Version::Tls13), chosen_key(&stage));
    report.add(
        "a server that goes on with a session of none",
        (Side::Outbound, Version::Tls12),
        echoed_session(&stage),
    );
    report
}

/// A client that has been somewhere else and would resume there.
fn travelled(settings: &PeerSettings, early_data: bool) -> Arc<ClientConfig> {
    let witness = Arc::default();
    let (mut client, mut server) = (settings.client(&witness), settings.server(&witness));
    if early_data {
        client.enable_early_data = true;
        server.max_early_data_size = 1000;
    }
    let client = Arc::new(client);
    let mut there = Peer::server(Arc::new(server), witness.clone());
    let mut traveller = Peer::client(client.clone(), witness);
    loop {
        let (out, back) = (traveller.sent(), there.sent());
        there.take(&out);
        traveller.take(&back);
        if out.is_empty() && back.is_empty() {
            return client;
        }
    }
}

fn is_full(peer: &Peer) -> Result<(), String> {
    match peer.connection.handshake_kind() {
        Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => Ok(()),
        other => Err(format!("the handshake was {other:?}")),
    }
}

fn from_elsewhere(stage: &Stage, version: Version, ticket: bool) -> Scene {
    let mut settings = stage.settings(version);
    settings.hands_out_tickets = ticket;
    let config = travelled(&settings, false);
    let mut peer = Peer::client(config, Arc::default());
    let hello = peer.sent();
    let offered = ClientHello::read(&hello)?;
    let offers = match version {
        Version::Tls13 => offered.extension(extension::PRE_SHARED_KEY).is_some(),
        Version::Tls12 if ticket => offered.extension(extension::SESSION_TICKET).is_some_and(|it| !it.is_empty()),
        Version::Tls12 => !offered.session_id.is_empty(),
    };
    if !offers {
        return Err("the peer of the suite offers nothing to resume".to_owned());
    }
    let mut ours = stage.ours(Side::Inbound);
    ours.take(&hello);
    talk(&mut ours, &mut peer, usize::MAX);
    is_full(&peer)?;
    peer.send(b"data of the peer");
    talk(&mut ours, &mut peer, usize::MAX);
    accepted(&mut ours, &mut peer, &stage.case, version)
}

/// Data sent before we have said a word can be skipped (RFC 8446, section 4.2.10), and never is any of ours to give out.
fn early_data(stage: &Stage, piece: usize) -> Scene {
    // rustls remembers what early data it promised only where it keeps its sessions itself.
    let mut settings = stage.settings(Version::Tls13);
    settings.hands_out_tickets = false;
    let config = travelled(&settings, true);
    let mut peer = Peer::client(config, Arc::<Witness>::default());
    let rustls::Connection::Client(connection) = &mut peer.connection else {
        return Err("the peer is no client".to_owned());
    };
    let mut early = connection.early_data().ok_or("the peer of the suite sends no early data")?;
    early.write_all(b"too early").map_err(|error| error.to_string())?;
    let mut ours = stage.ours(Side::Inbound);
    talk(&mut ours, &mut peer, piece);
    is_full(&peer)?;
    peer.send(b"data of the peer");
    talk(&mut ours, &mut peer, piece);
    accepted(&mut ours, &mut peer, &stage.case, Version::Tls13)
}

/// A server that will not resume has nothing to name (RFC 5246, section 7.4.1.3), and hands out no ticket.
fn names_no_session(stage: &Stage) -> Scene {
    let mut settings = stage.settings(Version::Tls12);
    settings.hands_out_tickets = false;
    let mut peer = Peer::client(travelled(&settings, false), Arc::default());
    let mut ours = stage.ours(Side::Inbound);
    ours.take(&peer.sent());
    let flight = ServerFlight::read(&ours.sent())?;
    if !flight.session_id.is_empty() {
        return Err(format!("an identifier of {} bytes", flight.session_id.len()));
    }
    if flight.extensions.iter().any(|(kind, _)| *kind == extension::SESSION_TICKET) {
        return Err("a ticket is promised".to_owned());
    }
    Ok("neither identifier nor ticket".to_owned())
}

/// A hello of a server of TLS 1.3 with the key exchange that our client began.
fn server_hello(hello: &ClientHello, more: &[(u16, Vec<u8>)]) -> Result<Vec<u8>, String> {
    let shares = hello.key_shares()?;
    let (group, _) = shares.first().ok_or("no key share")?;
    let x25519 = [9; 32];
    let share = match *group {
        group if number("x25519") == Some(group) => x25519.to_vec(),
        group if number("secp256r1") == Some(group) => Key::generate(KeyKind::P256).public().to_vec(),
        group if number("secp384r1") == Some(group) => Key::generate(KeyKind::P384).public().to_vec(),
        // A ciphertext of ML-KEM-768 may be any bytes; who decapsulates it finds a secret that nobody else has.
        group if number("X25519MLKEM768") == Some(group) => [&[7; 1088], &x25519[..]].concat(),
        other => return Err(format!("a share of group {other:#06x}")),
    };
    let mut extensions = vec![
        (extension::VERSIONS, vec![3, 4]),
        (extension::KEY_SHARE, [&group.to_be_bytes()[..], &long(&share)].concat()),
    ];
    extensions.extend_from_slice(more);
    Ok(plain_server_hello(hello, 0x1301, &extensions))
}

fn plain_server_hello(hello: &ClientHello, suite: u16, extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let extensions: Vec<u8> =
        extensions.iter().flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &long(content)].concat()).collect();
    let body =
        [&[3, 3][..], &[5; 32], &short(&hello.session_id), &suite.to_be_bytes(), &[0], &long(&extensions)].concat();
    records::plain(HANDSHAKE, &records::message(message::SERVER_HELLO, &body))
}

fn chosen_key(stage: &Stage) -> Scene {
    let mut waits = stage.ours(Side::Outbound);
    let hello = ClientHello::read(&waits.sent())?;
    waits.take(&server_hello(&hello, &[])?);
    if let Some(error) = &waits.failed {
        return Err(format!("the same without that key is refused: {error}"));
    }
    let mut ours = stage.ours(Side::Outbound);
    let hello = ClientHello::read(&ours.sent())?;
    ours.take(&server_hello(&hello, &[(extension::PRE_SHARED_KEY, vec![0, 0])])?);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => Ok(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}

/// A server of TLS 1.2 that sends our own identifier back says with it that it resumes, and skips its certificate.
fn echoed_session(stage: &Stage) -> Scene {
    let mut ours = stage.ours(Side::Outbound);
    let hello = ClientHello::read(&ours.sent())?;
    let suite = number("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256").unwrap_or_default();
    let extensions = [(extension::RENEGOTIATION, vec![0]), (extension::EXTENDED_MASTER_SECRET, Vec::new())];
    ours.take(&plain_server_hello(&hello, suite, &extensions));
    ours.take(&records::plain(20, &[1]));
    ours.take(&records::plain(HANDSHAKE, &[7; 40]));
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => Ok(error.to_string()),
        other => Err(format!("{other:?}, an identifier of {} bytes", hello.session_id.len())),
    }
}
