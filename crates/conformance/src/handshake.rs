//! The rows at the level of the handshake: real sessions of the backend against a peer that sends any certificate.
//!
//! A TLS 1.3 client has finished its handshake before the server judges it, so a row is judged by our side: its
//! error, the alert that the peer was sent, no identity, and no byte of the data that such a client sends at once.

use std::sync::Arc;

use lictor_core::{MeshContext, RejectReason, SessionError, TlsBackend, TlsPolicy};
use rustls_pki_types::CertificateDer;

use crate::{
    certs::{Extension, Mesh, id},
    keys::{Key, KeyKind},
    pair::{Instead, Ours, Peer, PeerSettings, Version, our_context, our_leaf, talk, ways},
    report::Report,
    rows::{Build, Case, Row, Want, rows},
    verifier::{Side, check_identity, judge},
};

/// What a peer sends as soon as it may.
const GREETING: &[u8] = b"data of the peer";

/// Runs every row on both sides over both versions.
#[must_use]
pub fn run(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("handshake", backend.name(), seed);
    let mesh = Mesh::new(seed);
    let context = our_context(backend, &mesh, &TlsPolicy::default());
    for row in rows() {
        let Build::Chain(build) = row.build else {
            run_elsewhere(&mut report, context.as_ref(), &mesh, &row);
            continue;
        };
        let case = build(&mesh);
        for (side, version, way) in ways() {
            let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
            let want = side.want(&row);
            report.add_wanted(&row.title(), way, want, check(context.as_ref(), &mesh, &case, &settings, side, want));
        }
    }
    for (side, version, way) in ways() {
        for (row, instead, only) in SIGNED_INSTEAD {
            if only.is_none_or(|only| only == version) {
                report.add_wanted(
                    row,
                    way,
                    "reject bad_message",
                    signs_instead(context.as_ref(), &mesh, *instead, side, version),
                );
            }
        }
        report.add("what we send", way, what_we_send(backend, &mesh, side, version));
    }
    report
}

/// The rows that need a peer that misbehaves beyond its certificate.
fn run_elsewhere(report: &mut Report, context: &dyn MeshContext, mesh: &Mesh, row: &Row) {
    for (side, version, way) in ways() {
        let result = match (row.id, side) {
            ("N81", _) => wrong_certificate_verify(context, mesh, side, version),
            ("N84", _) => no_certificate(context, mesh, side, version),
            ("N89", _) => oversized_certificate_list(context, mesh, side, version),
            // The family that is about sessions runs the others.
            _ => continue,
        };
        report.add_wanted(&row.title(), way, side.want(row), result);
    }
}

/// Runs one case, and checks all that the two sides saw.
///
/// # Errors
/// What is not as wanted.
pub fn check(
    context: &dyn MeshContext,
    mesh: &Mesh,
    case: &Case,
    settings: &PeerSettings,
    side: Side,
    want: Want,
) -> Result<String, String> {
    let mut ours = Ours::new(context, judge(mesh, case, side), side);
    let mut peer = Peer::new(settings, side);
    talk(&mut ours, &mut peer, usize::MAX);
    if peer.is_done() && peer.alert.is_none() && peer.error.is_none() {
        peer.send(GREETING);
        talk(&mut ours, &mut peer, usize::MAX);
    }
    match want {
        Want::Accept => accepted(&mut ours, &mut peer, case, settings.version),
        Want::Reject(reason) => refused(&ours, &peer, reason),
    }
}

/// Checks that our side took the peer in, as who it is, and that data flows both ways.
///
/// # Errors
/// What is not so.
pub fn accepted(ours: &mut Ours, peer: &mut Peer, case: &Case, version: Version) -> Result<String, String> {
    kept_promises(ours)?;
    let Some(established) = &ours.established else {
        return Err(format!("not accepted: {:?}, peer {:?} {:?}", ours.failed, peer.alert, peer.error));
    };
    check_identity(case, &established.peer.identity)?;
    if established.peer.chain != case.chain {
        return Err("the proof holds another chain than was sent".to_owned());
    }
    let facts = established.facts;
    if facts.version != version.name() {
        return Err(format!("{} was agreed, reported is {}", version.name(), facts.version));
    }
    let suite = peer.connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
    if suite.as_deref().map(iana_name).as_deref() != Some(facts.suite) {
        return Err(format!("{suite:?} was agreed, reported is {}", facts.suite));
    }
    if ours.received() != GREETING {
        return Err(format!("{:?} arrived of the peer's data; {:?}", ours.received(), ours.failed));
    }
    ours.send(b"our answer");
    talk(ours, peer, usize::MAX);
    if peer.received != b"our answer" {
        return Err(format!("our answer did not arrive: {:?} {:?}", peer.alert, peer.error));
    }
    Ok(format!("accepted, {} {}", facts.suite, facts.group))
}

/// Checks that our side refused the peer, and what the peer saw of that.
fn refused(ours: &Ours, peer: &Peer, reason: RejectReason) -> Result<String, String> {
    kept_promises(ours)?;
    nothing_left(ours)?;
    match &ours.failed {
        Some(SessionError::Rejected(seen)) if *seen == reason => match peer.alert {
            Some(alert) if alert == reason.alert() => Ok(format!("{reason}, alert {alert}")),
            Some(alert) if said_by_library(reason, alert) => {
                Ok(format!("{reason}, said by the library, alert {alert}"))
            }
            other => Err(format!("{reason}, alert {other:?} instead of {}: {:?}", reason.alert(), peer.error)),
        },
        Some(error) => Err(otherwise(error, reason, peer.alert)),
        None => Err(format!("not refused, wanted {reason}; peer: {:?} {:?}", peer.alert, peer.error)),
    }
}

/// Refused, and under another name than is wanted: the one fault of a refusal that [`crate::gaps`] may list.
fn otherwise(error: &SessionError, wanted: RejectReason, alert: Option<u8>) -> String {
    let seen = error.reject_reason().map_or("no reason", RejectReason::name);
    format!("{seen} instead of {wanted}: {error}, {}", alert_name(alert))
}

/// Whether a library refuses for this reason with this alert while it reads the message, before it asks for a verdict:
/// illegal_parameter or decode_error.
pub(crate) fn said_by_library(reason: RejectReason, alert: u8) -> bool {
    use RejectReason as R;
    matches!(reason, R::Malformed | R::UnsupportedAlgorithm | R::KeyUsage) && matches!(alert, 47 | 50)
}

/// Checks that neither an identity nor a byte of data left our session.
///
/// # Errors
/// What left it.
pub fn nothing_left(ours: &Ours) -> Result<(), String> {
    if let Some(established) = &ours.established {
        return Err(format!("accepted as {}", established.peer.identity.uri()));
    }
    if !ours.received().is_empty() {
        return Err("data of a refused peer was given out".to_owned());
    }
    Ok(())
}

/// Checks the promises of the session trait.
///
/// # Errors
/// The one that was broken.
pub fn kept_promises(ours: &Ours) -> Result<(), String> {
    ours.broken_promise.clone().map_or(Ok(()), Err)
}

/// The name of a suite in the IANA registry, from rustls's name of it.
pub(crate) fn iana_name(rustls: &str) -> String {
    rustls.replacen("TLS13_", "TLS_", 1)
}

/// The peers that misbehave beyond their certificate: by what they are judged, and what they do.
pub(crate) fn misbehaving(mesh: &Mesh, id: &str) -> Option<(Case, PeerSettings)> {
    let mut case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let mut settings = PeerSettings::new(case.chain.clone(), case.key.clone(), Version::Tls13);
    match id {
        "N81" => settings.key = Arc::new(Key::generate(KeyKind::P256)),
        "N84" => settings.chain = Vec::new(),
        "N89" => {
            let large = Extension { id: id::UNKNOWN, critical: false, value: vec![0; 45 * 1024] };
            for index in 0..9 {
                let ca = mesh.root.intermediate(&mesh.ca(&format!("Large {index}")).with(large.clone()));
                case.chain.push(ca.certificate);
            }
            case.chain.push(CertificateDer::from(vec![0x30; 40 * 1024]));
            settings.chain.clone_from(&case.chain);
        }
        _ => return None,
    }
    Some((case, settings))
}

/// Our side and such a peer.
fn misbehaving_pair(
    context: &dyn MeshContext,
    mesh: &Mesh,
    id: &str,
    side: Side,
    version: Version,
) -> Result<(Ours, Peer), String> {
    let (case, settings) = misbehaving(mesh, id).ok_or_else(|| format!("{id} is not about a peer"))?;
    let settings = PeerSettings { version, ..settings };
    Ok((Ours::new(context, judge(mesh, &case, side), side), Peer::new(&settings, side)))
}

/// N81: a good certificate whose key the peer does not have.
fn wrong_certificate_verify(
    context: &dyn MeshContext,
    mesh: &Mesh,
    side: Side,
    version: Version,
) -> Result<String, String> {
    let (mut ours, mut peer) = misbehaving_pair(context, mesh, "N81", side, version)?;
    talk(&mut ours, &mut peer, usize::MAX);
    bad_signature(&ours, &peer)
}

/// What a peer signs with its own good key in place of this handshake, and in which version alone.
type SignedInstead = (&'static str, Instead, Option<Version>);

const SIGNED_INSTEAD: &[SignedInstead] = &[
    ("N81 a signature of another handshake", |message| [message, &[0]].concat(), None),
    // RFC 8446, section 4.4.3: what a server signed must not pass as a client's, and the other way round.
    ("N81 a signature for the other role", for_the_other_role, Some(Version::Tls13)),
];

fn for_the_other_role(message: &[u8]) -> Vec<u8> {
    let (client, server): (&[u8], &[u8]) = (b"client CertificateVerify", b"server CertificateVerify");
    let mut other = message.to_vec();
    for (from, to) in [(client, server), (server, client)] {
        if let Some(at) = message.windows(from.len()).position(|window| window == from) {
            other[at..at + to.len()].copy_from_slice(to);
            break;
        }
    }
    other
}

fn signs_instead(
    context: &dyn MeshContext,
    mesh: &Mesh,
    instead: Instead,
    side: Side,
    version: Version,
) -> Result<String, String> {
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let mut settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
    settings.signs_instead = Some(instead);
    let mut ours = Ours::new(context, judge(mesh, &case, side), side);
    let mut peer = Peer::new(&settings, side);
    talk(&mut ours, &mut peer, usize::MAX);
    bad_signature(&ours, &peer)
}

/// Refused for the signature, with an alert.
fn bad_signature(ours: &Ours, peer: &Peer) -> Result<String, String> {
    kept_promises(ours)?;
    nothing_left(ours)?;
    match (&ours.failed, peer.alert) {
        (Some(error), Some(alert)) if error.reject_reason() == Some(RejectReason::BadMessage) => {
            Ok(format!("{error}, alert {alert}"))
        }
        other => Err(format!("{other:?}")),
    }
}

/// N84: a peer that sends an empty list.
fn no_certificate(context: &dyn MeshContext, mesh: &Mesh, side: Side, version: Version) -> Result<String, String> {
    let (mut ours, mut peer) = misbehaving_pair(context, mesh, "N84", side, version)?;
    talk(&mut ours, &mut peer, usize::MAX);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    match (&ours.failed, peer.alert, side) {
        // handshake_failure (TLS 1.2) or certificate_required (TLS 1.3); rustls sends the latter in both.
        (Some(SessionError::Rejected(RejectReason::NoCertificate)), Some(alert @ (40 | 116)), Side::Inbound) => {
            Ok(format!("no_certificate, alert {alert}"))
        }
        // No server may send an empty list (RFC 8446, section 4.4.2), so a library may also refuse the message as such;
        // rustls sends no alert to such a server.
        (Some(SessionError::Rejected(RejectReason::NoCertificate)), alert, Side::Outbound) => {
            Ok(format!("no_certificate, {}", alert_name(alert)))
        }
        (Some(error), alert, _) => Err(otherwise(error, RejectReason::NoCertificate, alert)),
        other => Err(format!("{other:?}")),
    }
}

/// N89: a list of 450 KB, of which a session may take 64 KiB and one record before it refuses.
fn oversized_certificate_list(
    context: &dyn MeshContext,
    mesh: &Mesh,
    side: Side,
    version: Version,
) -> Result<String, String> {
    let (mut ours, mut peer) = misbehaving_pair(context, mesh, "N89", side, version)?;
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
            break;
        }
    }
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    let Some(error) = &ours.failed else { return Err(format!("not refused after {taken} bytes")) };
    // 64 KiB of the message, one whole record that goes beyond them, and what the peer said before.
    if taken > (64 + 16 + 4) * 1024 {
        return Err(format!("refused only after {taken} bytes: {error}"));
    }
    if error.reject_reason() != Some(RejectReason::BadMessage) {
        return Err(otherwise(error, RejectReason::BadMessage, peer.alert));
    }
    // Our own bound on unfinished messages may end it before the library knows, so there is not always an alert.
    Ok(format!("{error} after {taken} bytes, {}", alert_name(peer.alert)))
}

fn alert_name(alert: Option<u8>) -> String {
    alert.map_or_else(|| "no alert".to_owned(), |alert| format!("alert {alert}"))
}

/// Checks what the peer sees of us: our chain whole and in order, no names of authorities, our server name, no ALPN.
fn what_we_send(backend: &dyn TlsBackend, mesh: &Mesh, side: Side, version: Version) -> Result<String, String> {
    let leaf = our_leaf(mesh);
    let context = backend.mesh_context(&leaf, &TlsPolicy::default()).map_err(|error| error.to_string())?;
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
    let mut ours = Ours::new(context.as_ref(), judge(mesh, &case, side), side);
    let mut peer = Peer::new(&settings, side);
    talk(&mut ours, &mut peer, usize::MAX);
    let seen = peer.witness.seen();
    if seen.chain != leaf.chain() {
        return Err(format!("{} certificates were sent instead of {}", seen.chain.len(), leaf.chain().len()));
    }
    match side {
        Side::Inbound if !seen.asked => Err("the client was not asked for a certificate".to_owned()),
        Side::Inbound if seen.authorities > 0 => Err(format!("{} names of authorities were sent", seen.authorities)),
        Side::Outbound if seen.alpn => Err("an application protocol was offered".to_owned()),
        Side::Outbound if seen.server_name != crate::verifier::service("web").server_name() => {
            Err(format!("the server name was {:?}", seen.server_name))
        }
        _ => Ok("the whole chain in order".to_owned()),
    }
}
