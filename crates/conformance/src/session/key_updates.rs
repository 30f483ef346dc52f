//! KeyUpdate (RFC 8446, section 4.6.3): followed, answered where that was asked, and never worth more than it costs.

use lictor_core::{RejectReason, TlsBackend};

use super::{Scene, Stage};
use crate::{
    handshake::kept_promises,
    hello::message,
    pair::{Ours, Version, talk},
    records::{self, ALERT, APPLICATION_DATA, Forger, HANDSHAKE},
    report::Report,
    verifier::Side,
};

/// KeyUpdate in every form.
#[must_use]
pub fn key_updates(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("key updates", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for side in Side::BOTH {
        let way = (side, Version::Tls13);
        report.add("a hundred, with data between", way, with_data(&stage, side, usize::MAX));
        report.add("a hundred, with data between, byte by byte", way, with_data(&stage, side, 1));
        report.add("one that asks for nothing is not answered", way, unasked(&stage, side));
        report.add("one that asks is answered once, before data", way, asked(&stage, side));
        report.add("our close behind one that asks", way, close_behind_one_that_asks(&stage, side));
        report.add("after our close it is followed and not answered", way, after_our_close(&stage, side));
        report.add("in two records, cut anywhere, sealing between", way, in_pieces(&stage, side));
        report.add("a thousand that ask get no more answers", way, many(&stage, side, true));
        report.add("a thousand that ask for nothing get none", way, many(&stage, side, false));
        report.add("one of another form is refused", way, malformed(&stage, side));
        report.add("fragments without end are refused", way, without_end(&stage, side));
        report.add("none exists before TLS 1.3", (side, Version::Tls12), in_tls12(&stage, side));
    }
    report
}

fn update(request: u8) -> Vec<u8> {
    records::message(message::KEY_UPDATE, &[request])
}

fn forged(stage: &Stage, side: Side) -> Result<(Ours, Forger), String> {
    let (ours, peer) = stage.joined(side, Version::Tls13)?;
    Ok((ours, Forger::take_over(peer, Version::Tls13)))
}

/// Whether what we sent is exactly these records.
fn sent_is(ours: &mut Ours, forger: &mut Forger, wanted: &[(u8, &[u8])]) -> Result<(), String> {
    let sent = ours.sent();
    let opened = forger.open(&sent)?;
    let same = opened.iter().map(|(kind, content)| (*kind, &content[..])).eq(wanted.iter().copied());
    if same { Ok(()) } else { Err(format!("{opened:?} was sent, wanted {wanted:?}; {:?}", ours.failed)) }
}

fn with_data(stage: &Stage, side: Side, piece: usize) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, Version::Tls13)?;
    let mut wanted = Vec::new();
    for round in 0..100_u8 {
        peer.connection.refresh_traffic_keys().map_err(|error| error.to_string())?;
        peer.send(&[round]);
        ours.send(&[round]);
        wanted.push(round);
        talk(&mut ours, &mut peer, piece);
        if let Some(error) = &ours.failed {
            return Err(format!("update {round}: {error}"));
        }
    }
    kept_promises(&ours)?;
    if ours.received() != wanted || peer.received != wanted {
        return Err(format!("data was lost between the keys: {:?} {:?}", ours.failed, peer.error));
    }
    Ok("data passes between them".to_owned())
}

fn unasked(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut forger) = forged(stage, side)?;
    ours.take(&forger.update_keys(0));
    ours.send(b"data");
    sent_is(&mut ours, &mut forger, &[(APPLICATION_DATA, b"data")])?;
    kept_promises(&ours)?;
    Ok("followed".to_owned())
}

fn asked(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut forger) = forged(stage, side)?;
    ours.take(&forger.update_keys(1));
    ours.send(b"data");
    // The forger follows the update, so the data opens under the new key alone.
    sent_is(&mut ours, &mut forger, &[(HANDSHAKE, &update(0)), (APPLICATION_DATA, b"data")])?;
    ours.take(&forger.seal(APPLICATION_DATA, b"more"));
    kept_promises(&ours)?;
    if ours.received() == b"more" { Ok("the answer, then data".to_owned()) } else { Err(format!("{:?}", ours.failed)) }
}

fn close_behind_one_that_asks(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut forger) = forged(stage, side)?;
    ours.take(&forger.update_keys(1));
    ours.close();
    let sent = ours.sent();
    let opened = forger.open(&sent)?;
    kept_promises(&ours)?;
    // Only data must not go before the answer (RFC 8446, section 4.6.3), so it may be left out here; behind
    // close_notify it must not come.
    let farewell = (ALERT, vec![1, 0]);
    match &opened[..] {
        [answer, last] if *answer == (HANDSHAKE, update(0)) && *last == farewell => Ok("answered first".to_owned()),
        [last] if *last == farewell => Ok("not answered any more".to_owned()),
        _ => Err(format!("{opened:?} was sent")),
    }
}

/// Behind our close_notify nothing may follow, and the peer's data still must be read.
fn after_our_close(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, Version::Tls13)?;
    ours.close();
    let farewell = ours.sent();
    peer.connection.refresh_traffic_keys().map_err(|error| error.to_string())?;
    peer.send(b"under the new key");
    let theirs = peer.sent();
    ours.take(&theirs);
    kept_promises(&ours)?;
    if ours.received() != b"under the new key" {
        return Err(format!("{:?} arrived: {:?}", ours.received(), ours.failed));
    }
    let late = ours.sent();
    if late.is_empty() {
        return Ok(format!("nothing behind {} bytes of close_notify", farewell.len()));
    }
    Err(format!("{} bytes are sent behind close_notify", late.len()))
}

fn in_pieces(stage: &Stage, side: Side) -> Scene {
    let message = update(1);
    for cut in 1..message.len() {
        let (mut ours, mut forger) = forged(stage, side)?;
        let (first, second) = message.split_at(cut);
        ours.take(&forger.seal(HANDSHAKE, first));
        if ours.waiting() != 0 {
            return Err(format!("cut at {cut}: a whole record stays in the wire"));
        }
        ours.try_send(b"between").map_err(|error| format!("cut at {cut}: {error}"))?;
        let second = forger.seal(HANDSHAKE, second);
        ours.take(&second[..10]);
        if ours.waiting() != 10 {
            return Err(format!("cut at {cut}: {} bytes wait where 10 do", ours.waiting()));
        }
        ours.send(b"between");
        sent_is(&mut ours, &mut forger, &[(APPLICATION_DATA, b"between"), (APPLICATION_DATA, b"between")])
            .map_err(|error| format!("cut at {cut}: {error}"))?;
        ours.take(&second[10..]);
        ours.send(b"behind");
        kept_promises(&ours)?;
        sent_is(&mut ours, &mut forger, &[(HANDSHAKE, &update(0)), (APPLICATION_DATA, b"behind")])
            .map_err(|error| format!("cut at {cut}: {error}"))?;
    }
    Ok("answered, and sealing goes on".to_owned())
}

/// A peer that asks without end gets at most as much as it pays, or is sent away; what it does not ask for it does not
/// get.
fn many(stage: &Stage, side: Side, asks: bool) -> Scene {
    let (mut ours, mut forger) = forged(stage, side)?;
    let wire: Vec<u8> = (0..1000).flat_map(|_| forger.update_keys(u8::from(asks))).collect();
    ours.take(&wire);
    kept_promises(&ours)?;
    let answers = ours.sent();
    match &ours.failed {
        None => {
            ours.take(&forger.seal(APPLICATION_DATA, b"at last"));
            ours.send(b"data");
            if ours.received() != b"at last" {
                return Err(format!("{:?} arrived behind them: {:?}", ours.received(), ours.failed));
            }
            // One answer is enough for all, and it may wait for the next data.
            let mut opened = forger.open(&[answers, ours.sent()].concat())?;
            let data = opened.pop();
            let are_answers = opened.iter().all(|record| *record == (HANDSHAKE, update(0)));
            let most = if asks { 1000 } else { 0 };
            if data != Some((APPLICATION_DATA, b"data".to_vec())) || !are_answers || opened.len() > most {
                return Err(format!("{} answers, {opened:?}, then {data:?}", opened.len()));
            }
            Ok(format!("{} answers", opened.len()))
        }
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => Ok(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}

fn malformed(stage: &Stage, side: Side) -> Scene {
    let bodies: [&[u8]; 3] = [&[], &[2], &[0, 0]];
    for body in bodies {
        let (mut ours, mut forger) = forged(stage, side)?;
        ours.take(&forger.seal(HANDSHAKE, &records::message(message::KEY_UPDATE, body)));
        kept_promises(&ours)?;
        match &ours.failed {
            Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => {}
            other => return Err(format!("{body:?}: {other:?}")),
        }
    }
    Ok("a broken protocol".to_owned())
}

/// A message said to be 65 535 bytes long, of which each byte costs a record.
fn without_end(stage: &Stage, side: Side) -> Scene {
    let (mut ours, mut forger) = forged(stage, side)?;
    ours.take(&forger.seal(HANDSHAKE, &[message::KEY_UPDATE, 0, 0xff, 0xff]));
    let mut taken = 26;
    while ours.failed.is_none() && taken <= 128 * 1024 {
        ours.take(&forger.seal(HANDSHAKE, &[0]));
        taken += 23;
    }
    kept_promises(&ours)?;
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => {
            Ok(format!("{error}, after {taken} bytes"))
        }
        other => Err(format!("{other:?} after {taken} bytes")),
    }
}

fn in_tls12(stage: &Stage, side: Side) -> Scene {
    let (mut ours, peer) = stage.joined(side, Version::Tls12)?;
    let mut forger = Forger::take_over(peer, Version::Tls12);
    ours.take(&forger.seal(HANDSHAKE, &update(1)));
    kept_promises(&ours)?;
    let sent = ours.sent();
    if records::split(&sent).iter().any(|record| record[0] != ALERT) {
        return Err("it is answered".to_owned());
    }
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => Ok(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}
