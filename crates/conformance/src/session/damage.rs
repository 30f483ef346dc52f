//! Bytes changed on the way.

use lictor_core::{SessionError, TlsBackend};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{Scene, Stage};
use crate::{
    handshake::kept_promises,
    pair::{Version, ways},
    report::Report,
    verifier::Side,
};

/// Bytes changed on the way.
#[must_use]
pub fn damage(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("damage", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    let mut random = StdRng::seed_from_u64(seed);
    for (side, version, way) in ways() {
        report.add("a byte of the handshake changed", way, damaged_handshake(&stage, side, version, &mut random));
        report.add("a byte of the data changed", way, damaged_data(&stage, side, version));
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
