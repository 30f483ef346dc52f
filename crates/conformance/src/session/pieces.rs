//! Everything arrives in pieces.

use lictor_core::{RejectReason, TlsBackend};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{Scene, Stage};
use crate::{
    handshake::{accepted, kept_promises, nothing_left},
    pair::{Ours, Peer, Version, talk, ways},
    records,
    report::Report,
    verifier::Side,
};

/// Everything arrives in pieces: flights, records and messages cut anywhere.
#[must_use]
pub fn pieces(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("pieces", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    let mut random = StdRng::seed_from_u64(seed);
    for (side, version, way) in ways() {
        report.add("byte by byte", way, in_pieces(&stage, side, version, None, |_| 1, &mut random));
        report.add(
            "in random pieces",
            way,
            in_pieces(&stage, side, version, None, |r| r.random_range(1..400), &mut random),
        );
        for fragment in [32, 100] {
            let what = format!("records of {fragment} bytes");
            report.add(&what, way, in_pieces(&stage, side, version, Some(fragment), |_| usize::MAX, &mut random));
            let what = format!("records of {fragment} bytes, byte by byte");
            report.add(&what, way, in_pieces(&stage, side, version, Some(fragment), |_| 1, &mut random));
        }
        report.add("cut in two at every place that matters", way, cut_in_two(&stage, side, version, &mut random));
        report.add("data behind the last flight", way, data_behind_finished(&stage, side, version));
        report.add("a megabyte each way", way, bulk(&stage, side, version, &mut random));
    }
    for piece in [1, 3, 50] {
        let what = format!("ClientHello in records of {piece}");
        for version in Version::BOTH {
            report.add(&what, (Side::Inbound, version), cut_hello(&stage, version, piece));
        }
    }
    for version in Version::BOTH {
        report.add("ClientHello in two records, cut anywhere", (Side::Inbound, version), hello_in_two(&stage, version));
    }
    report.add("a hello of 16 MiB in crumbs", Side::Inbound, endless_fragments(&stage, [0xff, 0xff, 0xff], PATIENCE));
    // Within what a hello may have, so it may be taken as a whole; after that it is junk.
    let whole = 6 * (4 + 0xffff);
    report.add("a hello of 64 KiB in crumbs", Side::Inbound, endless_fragments(&stage, [0, 0xff, 0xff], whole));
    report
}

fn in_pieces(
    stage: &Stage,
    side: Side,
    version: Version,
    fragment: Option<usize>,
    size: impl Fn(&mut StdRng) -> usize,
    random: &mut StdRng,
) -> Scene {
    let mut settings = stage.settings(version);
    settings.max_fragment = fragment;
    let (mut ours, mut peer) = (stage.ours(side), Peer::new(&settings, side));
    let mut greeted = false;
    loop {
        let theirs = peer.sent();
        let mut rest = &theirs[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(size(random).min(rest.len()));
            ours.take(piece);
            rest = behind;
        }
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            if greeted {
                break;
            }
            greeted = true;
            peer.send(b"data of the peer");
        }
    }
    accepted(&mut ours, &mut peer, &stage.case, version)
}

/// Every stream of the peer cut in two: within and around the header of each record, and anywhere.
fn cut_in_two(stage: &Stage, side: Side, version: Version, random: &mut StdRng) -> Scene {
    let (mut ours, mut peer) = stage.pair(side, version);
    let mut flights = Vec::new();
    loop {
        let theirs = peer.sent();
        ours.take(&theirs);
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            break;
        }
        flights.push(theirs);
    }
    let mut cuts = Vec::new();
    for (flight, bytes) in flights.iter().enumerate() {
        let mut begin = 0;
        for record in records::split(bytes) {
            cuts.extend((begin..begin + 7).map(|at| (flight, at)));
            begin += record.len();
        }
        cuts.extend((0..12).filter(|_| !bytes.is_empty()).map(|_| (flight, random.random_range(0..bytes.len()))));
    }
    for (flight, at) in &cuts {
        let (mut ours, mut peer) = stage.pair(side, version);
        for round in 0.. {
            let theirs = peer.sent();
            // Signatures differ in length from one handshake to the next, so the place is only nearly the same.
            let (now, later) = theirs.split_at(if round == *flight { (*at).min(theirs.len()) } else { 0 });
            ours.take(now);
            ours.take(later);
            let sent = ours.sent();
            peer.take(&sent);
            if theirs.is_empty() && sent.is_empty() {
                break;
            }
        }
        kept_promises(&ours)?;
        if ours.established.is_none() {
            return Err(format!("flight {flight} cut at {at}: {:?} {:?}", ours.failed, peer.error));
        }
    }
    Ok(format!("{} cuts", cuts.len()))
}

/// The peer's last flight and its data arrive as one: no byte is lost, and none is given out before the verdict.
fn data_behind_finished(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.pair(side, version);
    let mut greeted = false;
    loop {
        let mut theirs = peer.sent();
        if peer.is_done() && !greeted {
            greeted = true;
            peer.send(b"data of the peer");
            theirs.extend(peer.sent());
        }
        ours.take(&theirs);
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            break;
        }
    }
    // The side that hears the last flight finds the data behind it, and leaves it where it is until it is asked.
    let speaks_last = (side == Side::Inbound) == (version == Version::Tls13);
    if speaks_last && ours.waited_behind.unwrap_or_default() == 0 {
        return Err("the handshake took the data in".to_owned());
    }
    accepted(&mut ours, &mut peer, &stage.case, version)
}

fn bulk(stage: &Stage, side: Side, version: Version, random: &mut StdRng) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    let data: Vec<u8> = (0..1 << 20).map(|_| random.random()).collect();
    let mut rest = &data[..];
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(random.random_range(1..100_000).min(rest.len()));
        ours.send(piece);
        peer.send(piece);
        talk(&mut ours, &mut peer, random.random_range(1000..70_000));
        rest = behind;
    }
    kept_promises(&ours)?;
    if ours.received() != data || peer.received != data {
        return Err(format!("{} and {} bytes arrived, or not the same", ours.received().len(), peer.received.len()));
    }
    Ok("whole".to_owned())
}

/// The first message in records of a few bytes each, which is legal, if odd (RFC 8446, section 5.1).
fn cut_hello(stage: &Stage, version: Version, piece: usize) -> Scene {
    let (mut ours, mut peer) = stage.pair(Side::Inbound, version);
    let hello = peer.sent();
    for fragment in hello[5..].chunks(piece) {
        ours.take(&records::plain(records::HANDSHAKE, fragment));
    }
    let sent = ours.sent();
    peer.take(&sent);
    talk(&mut ours, &mut peer, usize::MAX);
    peer.send(b"data of the peer");
    talk(&mut ours, &mut peer, usize::MAX);
    accepted(&mut ours, &mut peer, &stage.case, version)
}

/// The most that one who is not known yet may make a session take before it gives up.
const PATIENCE: usize = 128 * 1024;

/// Each place in turn where the message may be cut; enough of the handshake to see that it was understood.
fn hello_in_two(stage: &Stage, version: Version) -> Scene {
    let mut cuts = 0;
    loop {
        let (mut ours, mut peer) = stage.pair(Side::Inbound, version);
        let hello = peer.sent();
        let message = &hello[5..];
        cuts += 1;
        if cuts == message.len() {
            return Ok(format!("{} cuts", cuts - 1));
        }
        ours.take(&records::plain(records::HANDSHAKE, &message[..cuts]));
        if ours.failed.is_some() || !ours.sent().is_empty() {
            return Err(format!("cut at {cuts}: answered before it was whole, or {:?}", ours.failed));
        }
        ours.take(&records::plain(records::HANDSHAKE, &message[cuts..]));
        let sent = ours.sent();
        peer.take(&sent);
        kept_promises(&ours)?;
        if sent.is_empty() || ours.failed.is_some() || peer.error.is_some() || peer.alert.is_some() {
            return Err(format!("cut at {cuts}: {:?} {:?} {:?}", ours.failed, peer.error, peer.alert));
        }
    }
}

/// A ClientHello of this length, one byte a record, which is refused before `patience` bytes have come.
fn endless_fragments(stage: &Stage, length: [u8; 3], patience: usize) -> Scene {
    let mut ours = stage.ours(Side::Inbound);
    ours.take(&records::plain(records::HANDSHAKE, &[&[1][..], &length].concat()));
    let mut taken = 9;
    while ours.failed.is_none() && taken <= patience {
        ours.take(&records::plain(records::HANDSHAKE, &[3]));
        taken += 6;
    }
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    refused_as_bad(&ours, taken)
}

fn refused_as_bad(ours: &Ours, taken: usize) -> Scene {
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => {
            Ok(format!("{error}, after {taken} bytes"))
        }
        other => Err(format!("{other:?} after {taken} bytes")),
    }
}
