//! Connections that end at any moment, or never.

use lictor_core::{SessionError, TlsBackend, TlsPolicy};

use super::{Scene, Stage};
use crate::{
    certs::Mesh,
    handshake::{kept_promises, nothing_left},
    pair::{Ours, Peer, PeerSettings, Version, our_context, talk, ways},
    records::{self, PLAIN_CLOSE_NOTIFY},
    report::Report,
    rows::Case,
    verifier::{Side, judge},
};

/// Ends at every moment: close_notify, half-closed connections, truncation, peers that stall.
#[must_use]
pub fn ends(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("ends", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for (side, version, way) in ways() {
        report.add("close_notify in every state of the handshake", way, closed_early(&stage, side, version));
        report.add("a farewell as the first word, byte by byte", way, closed_early_in_bytes(&stage, side));
        report.add("a peer that stalls in every state", way, stalled(&stage, side, version));
        report.add("the peer closes, we go on", way, peer_closes(&stage, side, version));
        report.add("we close, the peer goes on", way, we_close(&stage, side, version));
        report.add("a record cut short gives nothing", way, truncated(&stage, side, version));
        report.add("junk behind close_notify means nothing", way, junk_behind_close(&stage, side, version));
    }
    report
}

/// How many records of such a peer a handshake of ours needs.
///
/// # Errors
/// When it never ends.
pub fn records_of_a_handshake(
    backend: &dyn TlsBackend,
    mesh: &Mesh,
    settings: &PeerSettings,
    side: Side,
) -> Result<usize, String> {
    let context = our_context(backend, mesh, &TlsPolicy::default());
    let case = Case::new(settings.chain.clone(), settings.key.clone(), &[&mesh.root]);
    needed(settings, side, || Ours::new(context.as_ref(), judge(mesh, &case, side), side))
}

fn needed(settings: &PeerSettings, side: Side, ours: impl Fn() -> Ours) -> Result<usize, String> {
    for count in 1..40 {
        let (mut ours, mut peer) = (ours(), Peer::new(settings, side));
        talk_records(&mut ours, &mut peer, count);
        if ours.established.is_some() {
            return Ok(count);
        }
    }
    Err("no handshake in 40 records".to_owned())
}

fn closed_early(stage: &Stage, side: Side, version: Version) -> Scene {
    let needed = needed(&stage.settings(version), side, || stage.ours(side))?;
    for count in 0..needed {
        let (mut ours, mut peer) = stage.pair(side, version);
        let rest = talk_records(&mut ours, &mut peer, count);
        ours.take(PLAIN_CLOSE_NOTIFY);
        // What the peer had left to say comes too late.
        ours.take(&rest);
        talk(&mut ours, &mut peer, usize::MAX);
        kept_promises(&ours)?;
        nothing_left(&ours).map_err(|error| format!("after {count} records: {error}"))?;
        if ours.failed != Some(SessionError::PeerAlert(0)) {
            return Err(format!("after {count} records: {:?}", ours.failed));
        }
    }
    Ok(format!("told in each of {needed} states"))
}

/// The first word is a farewell.
fn closed_early_in_bytes(stage: &Stage, side: Side) -> Scene {
    let mut ours = stage.ours(side);
    let _hello = ours.sent();
    for byte in PLAIN_CLOSE_NOTIFY {
        ours.take(&[*byte]);
    }
    kept_promises(&ours)?;
    match &ours.failed {
        Some(error @ SessionError::PeerAlert(0)) => Ok(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}

fn stalled(stage: &Stage, side: Side, version: Version) -> Scene {
    let needed = needed(&stage.settings(version), side, || stage.ours(side))?;
    for count in 0..needed {
        let (mut ours, mut peer) = stage.pair(side, version);
        talk_records(&mut ours, &mut peer, count);
        let _flight = ours.sent();
        for _ in 0..3 {
            ours.take(&[]);
        }
        kept_promises(&ours)?;
        nothing_left(&ours)?;
        if let Some(error) = &ours.failed {
            return Err(format!("after {count} records: {error}"));
        }
        if !ours.sent().is_empty() {
            return Err(format!("after {count} records something is sent without cause"));
        }
    }
    Ok(format!("waits in each of {needed} states"))
}

fn peer_closes(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    peer.send(b"last words");
    peer.connection.send_close_notify();
    talk(&mut ours, &mut peer, usize::MAX);
    if !ours.closed || ours.received() != b"last words" {
        return Err(format!("closed: {}, {:?}", ours.closed, ours.failed));
    }
    ours.take(&[]);
    ours.send(b"still here");
    ours.close();
    let sent = ours.sent();
    peer.take(&sent);
    kept_promises(&ours)?;
    if peer.received != b"still here" || peer.alert.is_some() || peer.error.is_some() {
        return Err(format!("the peer got {:?} {:?} {:?}", peer.received, peer.alert, peer.error));
    }
    closes_cleanly(&mut peer)
}

/// Whether the peer has seen our close_notify: its reader then ends without an error.
fn closes_cleanly(peer: &mut Peer) -> Scene {
    let mut byte = [0; 1];
    match std::io::Read::read(&mut peer.connection.reader(), &mut byte) {
        Ok(0) => Ok("both directions end cleanly".to_owned()),
        other => Err(format!("our close_notify did not arrive: {other:?}")),
    }
}

fn we_close(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    ours.send(b"last words");
    ours.close();
    let sent = ours.sent();
    peer.take(&sent);
    closes_cleanly(&mut peer)?;
    peer.send(b"still here");
    talk(&mut ours, &mut peer, usize::MAX);
    if ours.received() != b"still here" || ours.closed {
        return Err(format!("{:?} arrived after our close; {:?}", ours.received(), ours.failed));
    }
    ours.close();
    if !ours.sent().is_empty() {
        return Err("a second close_notify was sent".to_owned());
    }
    peer.connection.send_close_notify();
    talk(&mut ours, &mut peer, usize::MAX);
    kept_promises(&ours)?;
    if ours.closed { Ok("opening goes on".to_owned()) } else { Err(format!("not closed: {:?}", ours.failed)) }
}

fn truncated(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    peer.send(b"whole");
    let whole = peer.sent();
    ours.take(&whole);
    peer.send(b"cut");
    let cut = peer.sent();
    for end in [1, 4, 5, 6, cut.len() - 1] {
        ours.take(&cut[ours.waiting()..end]);
        if ours.received() != b"whole" || ours.closed || ours.failed.is_some() {
            return Err(format!("after {end} bytes: {:?} {:?}", ours.received(), ours.failed));
        }
        if ours.waiting() != end {
            return Err(format!("after {end} bytes of a record {} wait", ours.waiting()));
        }
    }
    kept_promises(&ours)?;
    Ok("no close is reported, and no part of the record".to_owned())
}

fn junk_behind_close(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    peer.connection.send_close_notify();
    let mut sent = peer.sent();
    sent.extend_from_slice(&records::plain(records::APPLICATION_DATA, &[9; 40]));
    ours.take(&sent);
    ours.take(&records::plain(records::HANDSHAKE, &[9; 40]));
    kept_promises(&ours)?;
    if !ours.closed || !ours.received().is_empty() || ours.failed.is_some() {
        return Err(format!("{:?} {:?}", ours.received(), ours.failed));
    }
    ours.send(b"still here");
    let sent = ours.sent();
    peer.take(&sent);
    if peer.received == b"still here" {
        Ok("dropped, and sealing goes on".to_owned())
    } else {
        Err("sealing ended".to_owned())
    }
}

/// Hands over the first `limit` of the peer's records one by one; what the peer had sent beyond them.
fn talk_records(ours: &mut Ours, peer: &mut Peer, limit: usize) -> Vec<u8> {
    let mut handed = 0;
    loop {
        let theirs = peer.sent();
        let records = records::split(&theirs);
        let (now, later) = records.split_at((limit - handed).min(records.len()));
        for record in now {
            ours.take(record);
        }
        handed += now.len();
        if handed == limit {
            return later.concat();
        }
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            return Vec::new();
        }
    }
}
