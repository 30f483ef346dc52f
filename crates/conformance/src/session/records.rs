//! Records after the handshake: data of any size, and what a peer with good keys may try.

use lictor_core::{Buf, RejectReason, SessionError, TlsBackend};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{Scene, Stage};
use crate::{
    handshake::kept_promises,
    hello::message,
    pair::{Ours, Version, talk, ways},
    records::{self, ALERT, APPLICATION_DATA, Forger, HANDSHAKE},
    report::Report,
    verifier::Side,
};

/// Data of any size, and what a peer with good keys may try.
#[must_use]
pub fn records(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("records", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    let mut random = StdRng::seed_from_u64(seed);
    for (side, version, way) in ways() {
        report.add("data of any size both ways", way, any_size(&stage, side, version));
        report.add("sealing needs no more room than its records", way, room(&stage, side, version));
        report.add("empty records of data", way, empty_records(&stage, side, version));
        report.add("part of a record stays where it is", way, part_of_a_record(&stage, side, version));
        report.add("every fatal alert is passed on by its number", way, alerts(&stage, side, version));
        report.add("a warning that is no close", way, warning(&stage, side, version));
        report.add("junk after the handshake", way, junk(&stage, side, version));
        report.add("a record longer than any", way, too_long(&stage, side, version));
        report.add("damage after our close is told to nobody", way, damage_after_close(&stage, side, version));
        report.add("empty records of handshake", way, empty_handshake_records(&stage, side, version));
        report.add("a good peer's odd records", way, odd_records(&stage, side, version, &mut random));
        report.add("a message that has no place there", way, misplaced(&stage, side, version));
        if version == Version::Tls13 {
            report.add("data between the fragments of a message", way, data_between_fragments(&stage, side));
            report.add("a record of plaintext", way, plaintext(&stage, side));
            report.add("padding is taken off", way, padding(&stage, side));
        }
    }
    report
}

fn forged(stage: &Stage, side: Side, version: Version) -> Result<(Ours, Forger), String> {
    let (ours, peer) = stage.joined(side, version)?;
    Ok((ours, Forger::take_over(peer, version)))
}

fn any_size(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    let mut wanted = Vec::new();
    for size in [0, 1, 16_383, 16_384, 16_385, 32_768, 100_000] {
        let data: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
        ours.send(&data);
        peer.send(&data);
        talk(&mut ours, &mut peer, usize::MAX);
        wanted.extend(data);
        if ours.received() != wanted || peer.received != wanted {
            return Err(format!("{size} bytes did not arrive: {:?} {:?}", ours.failed, peer.error));
        }
    }
    kept_promises(&ours)?;
    Ok("whole".to_owned())
}

/// The relay lends a buffer that is large enough for what it seals, and it must not grow: it belongs to the thread.
fn room(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, _peer) = stage.joined(side, version)?;
    let _rest = ours.sent();
    ours.lend_out(Buf::with_capacity(65_536 + 4 * 32 + 64));
    let before = ours.room_to_send();
    ours.send(&[7; 65_536]);
    if ours.room_to_send() != before {
        return Err(format!("the buffer grew from {before} to {} bytes", ours.room_to_send()));
    }
    Ok(format!("{before} bytes suffice for 65536"))
}

/// Legal (RFC 8446, section 5.1), and nothing to give out.
fn empty_records(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut forger) = forged(stage, side, version)?;
    ours.take(&[forger.seal(APPLICATION_DATA, b""), forger.seal(APPLICATION_DATA, b"behind")].concat());
    kept_promises(&ours)?;
    match (ours.received(), &ours.failed) {
        (b"behind", None) => Ok("passed over".to_owned()),
        other => Err(format!("{other:?}")),
    }
}

fn part_of_a_record(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut forger) = forged(stage, side, version)?;
    let record = forger.seal(APPLICATION_DATA, b"whole");
    for (taken, byte) in record.iter().enumerate() {
        if (ours.waiting(), ours.received(), &ours.failed) != (taken, b"", &None) {
            return Err(format!("after {taken} bytes {} wait, {:?}", ours.waiting(), ours.failed));
        }
        ours.take(&[*byte]);
    }
    kept_promises(&ours)?;
    match (ours.waiting(), ours.received()) {
        (0, b"whole") => Ok("given out with its last byte".to_owned()),
        other => Err(format!("{other:?}, {:?}", ours.failed)),
    }
}

fn alerts(stage: &Stage, side: Side, version: Version) -> Scene {
    // Not 90: user_canceled is a warning whatever its level says (RFC 8446, section 6.1).
    for alert in [10, 20, 40, 42, 46, 48, 49, 50, 51, 80, 109, 116, 120] {
        let (mut ours, mut forger) = forged(stage, side, version)?;
        ours.take(&forger.seal(ALERT, &[2, alert]));
        kept_promises(&ours)?;
        if ours.failed != Some(SessionError::PeerAlert(alert)) {
            return Err(format!("alert {alert} is {:?}", ours.failed));
        }
        if !ours.sent().is_empty() {
            return Err(format!("alert {alert} is answered"));
        }
    }
    Ok("each, unanswered".to_owned())
}

/// A warning other than close_notify ends nothing, or it ends the connection for one of two reasons; it is never
/// data, and never a clean end.
fn warning(stage: &Stage, side: Side, version: Version) -> Scene {
    const UNRECOGNIZED_NAME: u8 = 112;
    let (mut ours, mut forger) = forged(stage, side, version)?;
    ours.take(&[forger.seal(ALERT, &[1, UNRECOGNIZED_NAME]), forger.seal(APPLICATION_DATA, b"behind")].concat());
    kept_promises(&ours)?;
    match (&ours.failed, ours.received(), ours.closed) {
        (None, b"behind", false) => Ok("passed over".to_owned()),
        (Some(error @ (SessionError::PeerAlert(UNRECOGNIZED_NAME) | SessionError::Protocol(_))), b"", false) => {
            Ok(error.to_string())
        }
        other => Err(format!("{other:?}")),
    }
}

fn junk(stage: &Stage, side: Side, version: Version) -> Scene {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0; 64], &[22, 2, 3, 0, 1, 0], &[23, 3, 3, 0xff, 0xff, 0]] {
        let (mut ours, _peer) = stage.joined(side, version)?;
        ours.take(bytes);
        kept_promises(&ours)?;
        if !matches!(ours.failed, Some(SessionError::Protocol(_))) || !ours.received().is_empty() {
            return Err(format!("{bytes:?}: {:?}", ours.failed));
        }
    }
    Ok("a broken protocol".to_owned())
}

/// One byte of plaintext more than a record may hold, well sealed (RFC 8446, section 5.2; RFC 5246, section 6.2.1).
fn too_long(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut forger) = forged(stage, side, version)?;
    ours.take(&forger.seal(APPLICATION_DATA, &[7; 16_384]));
    if ours.received().len() != 16_384 {
        return Err(format!("the longest legal record: {:?}", ours.failed));
    }
    ours.take(&forger.seal(APPLICATION_DATA, &[7; 16_385]));
    kept_promises(&ours)?;
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) && ours.received().len() == 16_384 => {
            Ok(error.to_string())
        }
        other => Err(format!("{other:?}, {} bytes were given out", ours.received().len())),
    }
}

fn damage_after_close(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut forger) = forged(stage, side, version)?;
    ours.close();
    let _farewell = ours.sent();
    let mut record = forger.seal(APPLICATION_DATA, b"data");
    if let Some(last) = record.last_mut() {
        *last ^= 1;
    }
    ours.take(&record);
    kept_promises(&ours)?;
    let sent = ours.sent();
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) && sent.is_empty() => {
            Ok(error.to_string())
        }
        other => Err(format!("{other:?}, {} bytes were sent behind close_notify", sent.len())),
    }
}

/// Illegal (RFC 8446, section 5.1), and yet no reason for a library to lose its place: either it ends the session,
/// or all data arrives.
fn empty_handshake_records(stage: &Stage, side: Side, version: Version) -> Scene {
    let mut seen = Vec::new();
    for at_once in [true, false] {
        let (mut ours, mut forger) = forged(stage, side, version)?;
        let contents =
            [(HANDSHAKE, &b""[..]), (APPLICATION_DATA, b"one"), (HANDSHAKE, b""), (APPLICATION_DATA, b"two")];
        let records: Vec<Vec<u8>> = contents.into_iter().map(|(kind, content)| forger.seal(kind, content)).collect();
        if at_once {
            ours.take(&records.concat());
        } else {
            records.iter().for_each(|record| ours.take(record));
        }
        let next = forger.seal(APPLICATION_DATA, b"!");
        ours.take(&next[..7]);
        kept_promises(&ours)?;
        match &ours.failed {
            Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => seen.push(error.to_string()),
            Some(error) => return Err(format!("{error:?}")),
            None => {
                if ours.waiting() != 7 {
                    return Err(format!("{} bytes wait where 7 do", ours.waiting()));
                }
                ours.send(b"answer");
                ours.take(&next[7..]);
                if ours.received() != b"onetwo!" {
                    return Err(format!("{:?} arrived", ours.received()));
                }
                seen.push("passed over".to_owned());
            }
        }
    }
    seen.dedup();
    Ok(seen.join("; "))
}

/// Whatever records a peer with good keys strings together, it can end its session and nothing more.
fn odd_records(stage: &Stage, side: Side, version: Version, random: &mut StdRng) -> Scene {
    let (mut ended, mut went_on) = (0, 0);
    for round in 0..100 {
        let (mut ours, mut forger) = forged(stage, side, version)?;
        let mut wire = Vec::new();
        for _ in 0..random.random_range(1..12) {
            let kind = *[20, 21, 22, 22, 22, 23, 23, 24].choose(random).unwrap_or(&23);
            let content: Vec<u8> = (0..random.random_range(0..12)).map(|_| random.random()).collect();
            wire.extend(forger.seal(kind, &content));
        }
        for _ in 0..random.random_range(0..4) {
            let update = records::message(message::KEY_UPDATE, &[1]);
            let (first, second) = update.split_at(random.random_range(1..update.len()));
            wire.extend(forger.seal(HANDSHAKE, first));
            wire.extend(forger.seal(HANDSHAKE, second));
        }
        for piece in wire.chunks(random.random_range(1..80)) {
            ours.take(piece);
            let sealed = ours.try_send(b"between");
            if sealed.as_ref().err() != ours.failed.as_ref() {
                return Err(format!("round {round}: sealing says {sealed:?}, opening {:?}", ours.failed));
            }
        }
        kept_promises(&ours)?;
        match &ours.failed {
            Some(SessionError::Internal(why)) => return Err(format!("round {round}: blamed on ourselves: {why}")),
            Some(_) => ended += 1,
            None => went_on += 1,
        }
    }
    Ok(format!("{ended} ended, {went_on} went on"))
}

/// Messages of a handshake where none may be (RFC 8446, sections 4 and 4.6; RFC 5246, section 7.4).
fn misplaced(stage: &Stage, side: Side, version: Version) -> Scene {
    let finished = records::message(20, &[7; 32]);
    let verify = records::message(15, &[4, 3, 0, 2, 0x30, 0]);
    let ticket_for_a_server = records::message(4, &[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0]);
    let unknown = records::message(99, &[]);
    let mut messages = vec![finished, verify, unknown];
    if side == Side::Inbound {
        messages.push(ticket_for_a_server);
    }
    for bytes in messages {
        let (mut ours, mut forger) = forged(stage, side, version)?;
        ours.take(&forger.seal(HANDSHAKE, &bytes));
        kept_promises(&ours)?;
        if !matches!(ours.failed, Some(SessionError::Protocol(_))) {
            return Err(format!("a message of type {}: {:?}", bytes[0], ours.failed));
        }
    }
    Ok("a broken protocol".to_owned())
}

/// RFC 8446, section 5.1: nothing may stand between the records of one message.
fn data_between_fragments(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut forger) = forged(stage, side, Version::Tls13)?;
    ours.take(&[forger.seal(HANDSHAKE, &[message::KEY_UPDATE]), forger.seal(APPLICATION_DATA, b"x")].concat());
    kept_promises(&ours)?;
    match &ours.failed {
        Some(error @ SessionError::Protocol(_)) if ours.received().is_empty() => Ok(error.to_string()),
        other => Err(format!("{other:?}, {:?}", ours.received())),
    }
}

/// After the keys have changed nothing comes in plain.
fn plaintext(stage: &Stage, side: Side) -> Scene {
    let update = records::message(message::KEY_UPDATE, &[0]);
    for (kind, content) in [(HANDSHAKE, &update[..]), (ALERT, &[2, 40]), (ALERT, &[1, 0]), (APPLICATION_DATA, b"data")]
    {
        let (mut ours, _peer) = stage.joined(side, Version::Tls13)?;
        ours.take(&records::plain(kind, content));
        kept_promises(&ours)?;
        match &ours.failed {
            Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) && !ours.closed => {}
            other => return Err(format!("a record of type {kind}: {other:?}, closed: {}", ours.closed)),
        }
    }
    Ok("refused".to_owned())
}

fn padding(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut forger) = forged(stage, side, Version::Tls13)?;
    // The forger's own type byte becomes padding behind the one that we put before it.
    ours.take(&forger.seal(0, &[b"padded", &[APPLICATION_DATA][..], &[0; 100]].concat()));
    kept_promises(&ours)?;
    match (ours.received(), &ours.failed) {
        (b"padded", None) => Ok("taken off".to_owned()),
        other => Err(format!("{other:?}")),
    }
}
