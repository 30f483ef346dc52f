//! Bytes changed on the way, and keys that change.

use lictor_core::{SessionError, TlsBackend};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{Scene, Stage};
use crate::{
    handshake::kept_promises,
    pair::{Version, talk, ways},
    records::{self, Sealer},
    report::Report,
    verifier::Side,
};

/// Bytes changed on the way, and keys that change.
#[must_use]
pub fn damage(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("damage", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    let mut random = StdRng::seed_from_u64(seed);
    for (side, version, way) in ways() {
        report.add("a byte of the handshake changed", way, damaged_handshake(&stage, side, version, &mut random));
        report.add("a byte of the data changed", way, damaged_data(&stage, side, version));
        if version == Version::Tls13 {
            report.add("KeyUpdate, a hundred times", way, key_updates(&stage, side));
            report.add("KeyUpdate in two records, sealing between", way, key_update_in_pieces(&stage, side));
        }
    }
    report
}

/// Changes one byte of what the peer sends: the handshake fails, hangs, or is as good as without the change.
fn damaged_handshake(stage: &Stage, side: Side, version: Version, random: &mut StdRng) -> Scene {
    let (mut failed, mut hung, mut good) = (0, 0, 0);
    let length = bytes_of_a_handshake(stage, side, version);
    for _ in 0..150 {
        let (mut ours, mut peer) = stage.pair(side, version);
        let mut at = random.random_range(0..length);
        let flip = 1 << random.random_range(0..8);
        loop {
            let mut theirs = peer.sent();
            match theirs.get_mut(at) {
                Some(byte) => {
                    *byte ^= flip;
                    at = usize::MAX;
                }
                None => at = at.saturating_sub(theirs.len()),
            }
            ours.take(&theirs);
            let sent = ours.sent();
            peer.take(&sent);
            if theirs.is_empty() && sent.is_empty() {
                break;
            }
        }
        kept_promises(&ours)?;
        match (&ours.established, &ours.failed) {
            (_, Some(SessionError::Internal(why))) => return Err(format!("blamed on ourselves: {why}")),
            (Some(established), _) if established.peer.chain != stage.case.chain => {
                return Err("a changed certificate was accepted".to_owned());
            }
            (Some(_), _) => good += 1,
            (None, Some(_)) => failed += 1,
            (None, None) => hung += 1,
        }
    }
    // All that a change may leave unharmed is the version that stands in the header of each record.
    if good > 10 {
        return Err(format!("{good} of 150 changes were not noticed"));
    }
    Ok(format!("{failed} failed, {hung} wait, {good} unharmed"))
}

/// How many bytes a peer sends in a good handshake.
fn bytes_of_a_handshake(stage: &Stage, side: Side, version: Version) -> usize {
    let (mut ours, mut peer) = stage.pair(side, version);
    let mut length = 0;
    while ours.established.is_none() {
        let theirs = peer.sent();
        length += theirs.len();
        ours.take(&theirs);
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            break;
        }
    }
    length
}

fn damaged_data(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    peer.send(b"whole");
    let whole = peer.sent();
    ours.take(&whole);
    peer.send(b"damaged");
    let mut damaged = peer.sent();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    ours.take(&damaged);
    let sent = ours.sent();
    peer.take(&sent);
    kept_promises(&ours)?;
    match (&ours.failed, peer.alert) {
        (Some(SessionError::BadRecord), Some(20)) if ours.received() == b"whole" => Ok("bad_record_mac".to_owned()),
        other => Err(format!("{other:?}, {:?}", ours.received())),
    }
}

fn key_updates(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, Version::Tls13)?;
    let mut wanted = Vec::new();
    for round in 0..100_u8 {
        peer.connection.refresh_traffic_keys().map_err(|error| error.to_string())?;
        peer.send(&[round]);
        ours.send(&[round]);
        wanted.push(round);
        talk(&mut ours, &mut peer, usize::MAX);
        if let Some(error) = &ours.failed {
            return Err(format!("update {round}: {error}"));
        }
    }
    kept_promises(&ours)?;
    if ours.received() != wanted || peer.received != wanted {
        return Err("data was lost between the keys".to_owned());
    }
    Ok("data passes between them".to_owned())
}

/// Half of a KeyUpdate is there when we seal, which one library answered with a panic.
fn key_update_in_pieces(stage: &Stage, side: Side) -> Scene {
    let (mut ours, peer) = stage.joined(side, Version::Tls13)?;
    let mut sealer = Sealer::take_over(peer.connection, Version::Tls13);
    let update = records::message(24, &[1]);
    ours.take(&sealer.seal(records::HANDSHAKE, &update[..2]));
    ours.send(b"between");
    let before = ours.sent().len();
    ours.take(&sealer.seal(records::HANDSHAKE, &update[2..]));
    ours.send(b"behind");
    let behind = ours.sent();
    kept_promises(&ours)?;
    if let Some(error) = &ours.failed {
        return Err(format!("{error}"));
    }
    // The answer to the update goes before the data: one record of 5 bytes, and the data's.
    let sizes: Vec<usize> = records::split(&behind).iter().map(|record| record.len()).collect();
    if sizes != [5 + 5 + 1 + 16, 5 + 6 + 1 + 16] || before != 5 + 7 + 1 + 16 {
        return Err(format!("records of {sizes:?} bytes, before them {before}"));
    }
    Ok("answered, and sealing goes on".to_owned())
}
