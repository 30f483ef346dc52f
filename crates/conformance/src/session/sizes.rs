//! How much of a certificate list is looked at, and how much is taken before it is refused.

use std::sync::Arc;

use lictor_core::{RejectReason, SessionError, TlsBackend, policy::MAX_CERTIFICATE_LIST};
use rustls_pki_types::CertificateDer;

use super::{Scene, Stage};
use crate::{
    certs::{Extension, id},
    handshake::{kept_promises, nothing_left},
    keys::{Key, KeyKind},
    pair::{Ours, Peer, PeerSettings, Version, ways},
    report::Report,
    verifier::Side,
};

/// What a session may take beyond the list: the record that goes beyond the bound, and what the peer said before.
const BESIDES: usize = (16 + 4) * 1024;

/// Certificate lists of every size.
#[must_use]
pub fn sizes(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("sizes", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for (side, version, way) in ways() {
        // Beyond what the verifier looks at, within what a library hands to it: one verdict, one alert.
        for kib in [17, 41, 61] {
            let row = format!("a certificate list of {kib} KiB");
            report.add_wanted(&row, way, "reject chain_too_large", judged(&stage, side, version, kib));
        }
        // Beyond what a library may hold for somebody whom nobody knows.
        for kib in [66, 100, 400] {
            let row = format!("a certificate list of {kib} KiB");
            report.add_wanted(&row, way, "reject bad_message", unread(&stage, side, version, kib));
        }
        let row = "five thousand certificates of two bytes";
        report.add_wanted(row, way, "reject chain_too_large", crumbs(&stage, side, version));
    }
    report
}

/// A good leaf and as many CA certificates of about 7 KiB as make up the size.
fn list(stage: &Stage, kib: usize) -> (Vec<CertificateDer<'static>>, Arc<Key>) {
    let (mesh, key) = (&stage.mesh, Arc::new(Key::generate(KeyKind::P256)));
    let mut chain = vec![mesh.root.issue(&mesh.leaf(), &key)];
    let subject = Key::generate(KeyKind::P256);
    let mut left = kib * 1024 - chain[0].len();
    while left > 0 {
        // A CA certificate is about 600 bytes without what fills it.
        let fill = left.min(7 * 1024).saturating_sub(600);
        let large = Extension { id: id::UNKNOWN, critical: false, value: vec![0; fill] };
        let certificate = mesh.root.issue(&mesh.ca(&format!("Large {left}")).with(large), &subject);
        left = left.saturating_sub(certificate.len());
        chain.push(certificate);
    }
    (chain, key)
}

/// Hands over in pieces what the peer says, until our session has had enough; how many bytes it took.
fn fed(stage: &Stage, side: Side, settings: &PeerSettings) -> (Ours, Peer, usize) {
    let (mut ours, mut peer) = (stage.ours(side), Peer::new(settings, side));
    let mut taken = 0;
    loop {
        let theirs = peer.sent();
        for piece in theirs.chunks(1024) {
            if ours.failed.is_none() {
                ours.take(piece);
                taken += piece.len();
            }
        }
        let sent = ours.sent();
        peer.take(&sent);
        if theirs.is_empty() && sent.is_empty() {
            return (ours, peer, taken);
        }
    }
}

fn judged(stage: &Stage, side: Side, version: Version, kib: usize) -> Scene {
    let (chain, key) = list(stage, kib);
    let (ours, peer, taken) = fed(stage, side, &PeerSettings::new(chain, key, version));
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    let wanted = RejectReason::ChainTooLarge;
    match (&ours.failed, peer.alert) {
        (Some(SessionError::Rejected(reason)), Some(alert)) if *reason == wanted && alert == wanted.alert() => {
            Ok(format!("alert {alert} after {taken} bytes"))
        }
        other => Err(format!("{other:?} after {taken} bytes")),
    }
}

fn unread(stage: &Stage, side: Side, version: Version, kib: usize) -> Scene {
    let (chain, key) = list(stage, kib);
    let (ours, peer, taken) = fed(stage, side, &PeerSettings::new(chain, key, version));
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    match &ours.failed {
        Some(error) if error.reject_reason() == Some(RejectReason::BadMessage) => {
            if taken > MAX_CERTIFICATE_LIST + BESIDES {
                return Err(format!("refused only after {taken} bytes: {error}"));
            }
            Ok(format!("{error}, after {taken} bytes, alert {:?}", peer.alert))
        }
        other => Err(format!("{other:?} after {taken} bytes")),
    }
}

/// Refused by their number, before what they are.
fn crumbs(stage: &Stage, side: Side, version: Version) -> Scene {
    let mut settings = stage.settings(version);
    settings.chain.extend((0..5000).map(|_| CertificateDer::from(vec![0x30, 0])));
    let (ours, peer, taken) = fed(stage, side, &settings);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    // The alert is 50 where the library has tried to parse one.
    match (&ours.failed, peer.alert) {
        (Some(SessionError::Rejected(RejectReason::ChainTooLarge)), Some(alert @ (42 | 50))) => {
            Ok(format!("alert {alert} after {taken} bytes"))
        }
        other => Err(format!("{other:?}")),
    }
}
