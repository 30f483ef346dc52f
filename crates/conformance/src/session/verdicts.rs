//! One verdict for one handshake.

use std::sync::Arc;

use lictor_core::{RejectReason, SessionError, TlsBackend, judgement};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustls::HandshakeKind;

use super::{Scene, Stage};
use crate::{
    handshake::{accepted, kept_promises, nothing_left},
    pair::{Ours, Peer, PeerSettings, Version, Witness, talk, ways},
    records::{self, Forger},
    report::Report,
    rows::Case,
    verifier::Side,
};

/// One verdict for one handshake, by the newest roots, and never another under the same connection.
#[must_use]
pub fn verdicts(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("verdicts", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    let mut random = StdRng::seed_from_u64(seed);
    for (side, version, way) in ways() {
        report.add("N95 resumption is neither offered nor used", way, nothing_is_resumed(&stage, side, version));
        report.add("N96 no other certificate after the handshake", way, no_second_handshake(&stage, side, version));
        report.add("a root removed while the handshake ran", way, root_removed(&stage, side, version));
        report.add("a root added while the handshake ran", way, root_added(&stage, side, version));
        report.add("a verifier that panics refuses, and the next goes on", way, panics(&stage, side, version));
        report.add("neighbours keep their own verdicts", way, neighbours(&stage, side, version, &mut random));
    }
    report
}

/// A peer that would resume meets a full handshake each time, and so a full verdict.
fn nothing_is_resumed(stage: &Stage, side: Side, version: Version) -> Scene {
    let settings = stage.settings(version);
    let witness = Arc::new(Witness::default());
    let (client, server) = (Arc::new(settings.client(&witness)), Arc::new(settings.server(&witness)));
    let peer = || match side {
        Side::Inbound => Peer::client(client.clone(), witness.clone()),
        Side::Outbound => Peer::server(server.clone(), witness.clone()),
    };
    for round in 0..3 {
        let (mut ours, mut peer) = (stage.ours(side), peer());
        talk(&mut ours, &mut peer, usize::MAX);
        peer.send(b"data of the peer");
        talk(&mut ours, &mut peer, usize::MAX);
        match peer.connection.handshake_kind() {
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => {}
            other => return Err(format!("handshake {round} was {other:?}")),
        }
        accepted(&mut ours, &mut peer, &stage.case, version)?;
        if let rustls::Connection::Client(client) = &peer.connection
            && client.tls13_tickets_received() > 0
        {
            return Err("tickets were sent".to_owned());
        }
    }
    // After the root was removed the peer that passed three times is refused; so is it after its leaf has expired.
    let mut later = stage.judge(side);
    later.now =
        rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(later.now.as_secs() + 4 * 86_400));
    let judges = [(stage.judge_without_the_root(side), RejectReason::UnknownIssuer), (later, RejectReason::Expired)];
    for (judge, wanted) in judges {
        let mut ours = Ours::new(stage.context.as_ref(), judge, side);
        let mut peer = peer();
        talk(&mut ours, &mut peer, usize::MAX);
        nothing_left(&ours)?;
        if ours.failed != Some(SessionError::Rejected(wanted)) || peer.alert != Some(wanted.alert()) {
            return Err(format!("{:?}, alert {:?}, wanted {wanted}", ours.failed, peer.alert));
        }
    }
    Ok("full handshakes, and a verdict each time".to_owned())
}

/// Renegotiation (TLS 1.2) and authentication after the handshake (TLS 1.3): the connection ends, and no message of a
/// handshake answers.
fn no_second_handshake(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, peer) = stage.joined(side, version)?;
    let mut forger = Forger::take_over(peer, version);
    ours.take(&forger.seal(records::HANDSHAKE, &second_handshake(&stage.case.chain[0], side, version)));
    kept_promises(&ours)?;
    let sent = ours.sent();
    let alerts = match version {
        Version::Tls12 => records::split(&sent).iter().all(|record| record[0] == records::ALERT),
        // Behind the same type for all: an alert of two bytes, its type and a tag make 24 with the header.
        Version::Tls13 => records::split(&sent).iter().all(|record| record.len() == 24),
    };
    if !alerts {
        return Err(format!("{} bytes that are no alert answer it", sent.len()));
    }
    match &ours.failed {
        Some(SessionError::Internal(why)) => Err(format!("blamed on ourselves: {why}")),
        Some(error) => Ok(format!("ended: {error}")),
        None => Err("the connection goes on".to_owned()),
    }
}

/// The message with which a peer begins another handshake, or shows another certificate, where none is due.
pub fn second_handshake(leaf: &[u8], side: Side, version: Version) -> Vec<u8> {
    let (kind, body): (u8, Vec<u8>) = match (side, version) {
        // A Certificate that nobody asked for: an empty context and one entry, without extensions.
        (Side::Inbound, Version::Tls13) => {
            let length = |n: usize| u32::try_from(n).unwrap_or_default().to_be_bytes();
            let entry = [&length(leaf.len())[1..], leaf, &[0, 0]].concat();
            (11, [&[0], &length(entry.len())[1..], &entry].concat())
        }
        // A CertificateRequest: a context, and the one extension that it must have.
        (Side::Outbound, Version::Tls13) => (13, vec![1, 7, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]),
        // A ClientHello, and the request for one.
        (Side::Inbound, Version::Tls12) => {
            let mut body = vec![3, 3];
            body.extend([7; 32]);
            body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 0]);
            (1, body)
        }
        (Side::Outbound, Version::Tls12) => (0, Vec::new()),
    };
    records::message(kind, &body)
}
/// No panic crosses a library, and none leaves anything behind on the thread.
fn panics(stage: &Stage, side: Side, version: Version) -> Scene {
    for _ in 0..2 {
        let (mut ours, mut peer) = stage.pair(side, version);
        judgement::faults::panic_in_next_verdict();
        talk(&mut ours, &mut peer, usize::MAX);
        kept_promises(&ours)?;
        nothing_left(&ours)?;
        let wanted = RejectReason::Unjudged;
        if ours.failed != Some(SessionError::Rejected(wanted)) || peer.alert != Some(wanted.alert()) {
            return Err(format!("{:?}, alert {:?}", ours.failed, peer.alert));
        }
        let (mut ours, mut peer) = stage.joined(side, version)?;
        peer.send(b"data of the peer");
        talk(&mut ours, &mut peer, usize::MAX);
        accepted(&mut ours, &mut peer, &stage.case, version)?;
    }
    Ok("unjudged, alert 46; the next handshake is good".to_owned())
}

fn root_removed(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.pair(side, version);
    begun(&mut ours, &mut peer, side);
    ours.judge = stage.judge_without_the_root(side);
    talk(&mut ours, &mut peer, usize::MAX);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    let wanted = RejectReason::UnknownIssuer;
    match (&ours.failed, peer.alert) {
        (Some(SessionError::Rejected(reason)), Some(48)) if *reason == wanted => {
            Ok("unknown_issuer, alert 48".to_owned())
        }
        other => Err(format!("{other:?}")),
    }
}

fn root_added(stage: &Stage, side: Side, version: Version) -> Scene {
    let mut ours = Ours::new(stage.context.as_ref(), stage.judge_without_the_root(side), side);
    let mut peer = Peer::new(&stage.settings(version), side);
    begun(&mut ours, &mut peer, side);
    ours.judge = stage.judge(side);
    talk(&mut ours, &mut peer, usize::MAX);
    peer.send(b"data of the peer");
    talk(&mut ours, &mut peer, usize::MAX);
    accepted(&mut ours, &mut peer, &stage.case, version)
}

/// Takes a handshake as far as it goes before the peer's certificate has come.
fn begun(ours: &mut Ours, peer: &mut Peer, side: Side) {
    if side == Side::Inbound {
        let hello = peer.sent();
        ours.take(&hello);
    }
    let sent = ours.sent();
    peer.take(&sent);
}

/// Sessions of good and bad peers take turns on one thread, one record at a time.
fn neighbours(stage: &Stage, side: Side, version: Version, random: &mut StdRng) -> Scene {
    let stranger = stage.mesh.other_root("Somebody's CA");
    let bad = Case::issued(&stage.mesh.leaf(), &stranger, &[], &[&stage.mesh.root]);
    let other = Case::issued(&stage.mesh.leaf().serial(&[0x55, 0x66]), &stage.mesh.root, &[], &[&stage.mesh.root]);
    for round in 0..10 {
        let mut pairs: Vec<(Ours, Peer, &Case, bool)> = Vec::new();
        for (case, good) in [(&stage.case, true), (&bad, false), (&other, true), (&bad, false)] {
            let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
            pairs.push((stage.ours(side), Peer::new(&settings, side), case, good));
        }
        let mut queues = vec![std::collections::VecDeque::new(); pairs.len()];
        let mut silent = 0;
        while silent < 200 {
            let index = random.random_range(0..pairs.len());
            let (ours, peer, ..) = &mut pairs[index];
            let theirs = peer.sent();
            queues[index].extend(records::split(&theirs).into_iter().map(<[u8]>::to_vec));
            silent += 1;
            if let Some(record) = queues[index].pop_front() {
                ours.take(&record);
                silent = 0;
            }
            let sent = ours.sent();
            if !sent.is_empty() {
                peer.take(&sent);
                silent = 0;
            }
        }
        for (index, (ours, _, case, good)) in pairs.iter().enumerate() {
            kept_promises(ours)?;
            let right = match (&ours.established, &ours.failed) {
                (Some(established), None) => *good && established.peer.chain == case.chain,
                (None, Some(SessionError::Rejected(RejectReason::UnknownIssuer))) => !good,
                _ => false,
            };
            if !right {
                return Err(format!("round {round}, session {index}: {:?}", ours.failed));
            }
        }
    }
    Ok("forty sessions in turns".to_owned())
}
