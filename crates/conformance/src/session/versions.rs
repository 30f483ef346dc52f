//! Versions, protocols, and what is no TLS at all.

use lictor_core::{SessionError, TlsBackend, TlsPolicy};

use super::{Scene, Stage};
use crate::{
    handshake::{accepted, kept_promises, nothing_left},
    hello::message,
    pair::{Ours, Peer, Version, our_context, talk},
    records,
    report::Report,
    verifier::Side,
};

/// Versions, protocols, and what is no TLS at all.
#[must_use]
pub fn versions(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("versions", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for side in Side::BOTH {
        report.add("TLS 1.1 is refused with alert 70", side, old_version(&stage, side, true));
        report.add("TLS 1.2 is refused where it is off", side, without_tls12(backend, &stage, side));
    }
    report.add(
        "TLS 1.1 that names no signatures is refused with alert 70",
        Side::Inbound,
        old_version(&stage, Side::Inbound, false),
    );
    for version in Version::BOTH {
        let way = (Side::Inbound, version);
        report.add("ALPN offered is not taken up", way, alpn_offered(&stage, version));
    }
    for side in Side::BOTH {
        report.add("junk behind the beginning of a hello", side, junk_behind(&stage, side));
        report.add("something else than a hello", side, no_hello(&stage, side));
    }
    let claims: [(&str, &[u8]); 5] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("one byte of HTTP", b"G"),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
        ("zeros", &[0; 64]),
        ("a record larger than any", &[22, 3, 1, 0xff, 0xff, 1, 2, 3]),
    ];
    for (what, bytes) in claims {
        for side in Side::BOTH {
            report.add(&format!("{what} instead of TLS"), side, no_tls(&stage, side, bytes));
        }
    }
    report
}

/// A hello of TLS 1.1, written by hand, and the alert that answers it. A client of that age need not name signature
/// algorithms; it must hear of the version and not of those.
fn old_version(stage: &Stage, side: Side, names_signatures: bool) -> Scene {
    let mut ours = stage.ours(side);
    let _hello = ours.sent();
    let suites = [0xc0, 0x09, 0xc0, 0x13, 0x00, 0x2f];
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    body.push(0);
    match side {
        Side::Inbound => {
            body.extend([0, 6]);
            body.extend(suites);
            body.extend([1, 0]);
            // supported_groups and ec_point_formats (RFC 8422, section 5.1), signature_algorithms (RFC 5246, 7.4.1.4.1).
            let mut extensions = vec![0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0];
            if names_signatures {
                extensions.extend([0, 13, 0, 4, 0, 2, 4, 3]);
            }
            body.extend([0, u8::try_from(extensions.len()).unwrap_or_default()]);
            body.extend(extensions);
        }
        Side::Outbound => body.extend([suites[0], suites[1], 0]),
    }
    let hello = if side == Side::Inbound { 1 } else { 2 };
    let mut record = records::plain(records::HANDSHAKE, &records::message(hello, &body));
    record[2] = 2;
    ours.take(&record);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    let sent = ours.sent();
    match (&ours.failed, sent.get(..1), sent.get(3..)) {
        (Some(error), Some(&[records::ALERT]), Some(&[0, 2, 2, alert])) if alert == 70 => {
            Ok(format!("{error}, alert {alert}"))
        }
        other => Err(format!("{other:?}")),
    }
}

fn without_tls12(backend: &dyn TlsBackend, stage: &Stage, side: Side) -> Scene {
    let policy = TlsPolicy { tls12: false, ..TlsPolicy::default() };
    let context = our_context(backend, &stage.mesh, &policy);
    let mut outcomes = Vec::new();
    for version in Version::BOTH {
        let mut ours = Ours::new(context.as_ref(), stage.judge(side), side);
        let mut peer = Peer::new(&stage.settings(version), side);
        talk(&mut ours, &mut peer, usize::MAX);
        kept_promises(&ours)?;
        outcomes.push((ours.established.is_some(), ours.failed.clone(), peer.alert));
    }
    match &outcomes[..] {
        // As a client we offer 1.3 alone, so it is the peer that gives up, and we who are told.
        [(false, Some(SessionError::NothingInCommon(_)), Some(70)), (true, None, None)]
        | [(false, Some(SessionError::PeerAlert(_)), None), (true, None, None)] => {
            Ok("1.3 passes, 1.2 does not".to_owned())
        }
        other => Err(format!("{other:?}")),
    }
}

fn alpn_offered(stage: &Stage, version: Version) -> Scene {
    let mut settings = stage.settings(version);
    settings.alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (mut ours, mut peer) = (stage.ours(Side::Inbound), Peer::new(&settings, Side::Inbound));
    talk(&mut ours, &mut peer, usize::MAX);
    if let Some(protocol) = peer.connection.alpn_protocol() {
        return Err(format!("{protocol:?} was taken up"));
    }
    peer.send(b"data of the peer");
    talk(&mut ours, &mut peer, usize::MAX);
    accepted(&mut ours, &mut peer, &stage.case, version)
}

/// Something else than TLS is refused before the size of a record has come, let alone waited for without end.
fn no_tls(stage: &Stage, side: Side, bytes: &[u8]) -> Scene {
    let mut ours = stage.ours(side);
    let _hello = ours.sent();
    ours.take(bytes);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    let sent = ours.sent();
    match &ours.failed {
        Some(error @ SessionError::NotTls) if sent.is_empty() => Ok(error.to_string()),
        Some(error) => Err(format!("{error:?}, {} bytes answer it", sent.len())),
        None => Err(format!("{} bytes wait for more", ours.waiting())),
    }
}

/// Whoever spoke TLS at first and then no longer has broken the protocol.
fn junk_behind(stage: &Stage, side: Side) -> Scene {
    let mut ours = stage.ours(side);
    let _hello = ours.sent();
    // The beginning of a hello, then no record.
    let kind = if side == Side::Inbound { message::CLIENT_HELLO } else { message::SERVER_HELLO };
    ours.take(&records::plain(records::HANDSHAKE, &[kind, 0, 0, 9]));
    if let Some(error) = &ours.failed {
        return Err(format!("the beginning alone: {error}"));
    }
    ours.take(b"GET / HTTP/1.1\r\n");
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    match &ours.failed {
        Some(error @ SessionError::Protocol(_)) => Ok(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}

/// Alerts, data and changes of keys where a hello must be.
fn no_hello(stage: &Stage, side: Side) -> Scene {
    let fatal = records::plain(records::ALERT, &[2, 40]);
    let mut ours = stage.ours(side);
    let _hello = ours.sent();
    ours.take(&fatal);
    kept_promises(&ours)?;
    // A client that begins with an alert gives up what it never began; one library calls that unexpected.
    match (&ours.failed, side) {
        (Some(SessionError::PeerAlert(40)), _) | (Some(SessionError::Protocol(_)), Side::Inbound) => {}
        other => return Err(format!("an alert: {other:?}")),
    }
    let data = records::plain(records::APPLICATION_DATA, &[9; 40]);
    let message = records::plain(records::HANDSHAKE, &records::message(message::CERTIFICATE, &[0, 0, 0]));
    for (what, bytes) in [("data", data), ("another message", message)] {
        let mut ours = stage.ours(side);
        let _hello = ours.sent();
        ours.take(&bytes);
        kept_promises(&ours)?;
        nothing_left(&ours)?;
        if !matches!(ours.failed, Some(SessionError::Protocol(_))) {
            return Err(format!("{what}: {:?}", ours.failed));
        }
    }
    Ok("each by its own name".to_owned())
}
