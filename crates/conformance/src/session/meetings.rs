//! Who meets whom, what they agree on, and what each is told when they do not.

use std::sync::Arc;

use lictor_core::{Buf, ExpectedPeer, HandshakeStep, SessionError, TlsBackend, TlsPolicy};
use rustls::{HandshakeKind, SignatureScheme, crypto::aws_lc_rs::kx_group};

use super::{Scene, Stage};
use crate::{
    certs::TRUST_DOMAIN,
    handshake::{accepted, kept_promises, nothing_left},
    hello::{ClientHello, extension},
    pair::{Ours, Peer, Version, our_context, talk, talk_to_each_other, ways},
    report::{Report, Way},
    rows::Case,
    verifier::{Side, judge, service},
};

/// What is agreed, and what each side is told when nothing is.
#[must_use]
pub fn meetings(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("meetings", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for (what, policy, piece) in [
        ("two of us meet", TlsPolicy::default(), usize::MAX),
        ("two of us meet, byte by byte", TlsPolicy::default(), 1),
        ("two of us meet by another policy", TlsPolicy { tls12: false, hybrid_first: false }, usize::MAX),
    ] {
        report.add(what, Way::NONE, two_of_us(backend, &stage, &policy, piece));
    }
    report.add("server names are sent where they are legal", Side::Outbound, server_names(&stage));
    for side in Side::BOTH {
        for (what, piece) in
            [("a hello that is asked for twice", usize::MAX), ("a hello that is asked for twice, byte by byte", 1)]
        {
            report.add(what, (side, Version::Tls13), second_hello(backend, &stage, side, piece));
        }
        report.add("a session closed in its handshake is silent and ends", side, closed_in_handshake(&stage, side));
        report.add("a session before its handshake neither seals nor opens", side, not_begun(&stage, side));
    }
    for (side, version, way) in ways() {
        report.add("a peer that refuses us is heard", way, refuses_us(&stage, side, version));
        report.add("a handshake ends once", way, ends_once(&stage, side, version));
    }
    for version in Version::BOTH {
        let way = (Side::Inbound, version);
        report.add("a client that takes no signature of our key", way, no_signature_in_common(&stage, version));
    }
    report
}

/// Both ends by the backend, each as the other one's peer.
fn two_of_us(backend: &dyn TlsBackend, stage: &Stage, policy: &TlsPolicy, piece: usize) -> Scene {
    let context = our_context(backend, &stage.mesh, policy);
    let crypto = backend.crypto(policy);
    // The leaf of our context is that of `db`, so the client dials `db`.
    let case = Case::issued(&stage.mesh.leaf_of("db"), &stage.mesh.root, &[], &[&stage.mesh.root]);
    let mut judge_of_client = judge(&stage.mesh, &case, Side::Outbound);
    judge_of_client.expected = ExpectedPeer::Server(Arc::new(service("db")));
    let mut server = Ours::new(context.as_ref(), judge(&stage.mesh, &case, Side::Inbound), Side::Inbound);
    let mut client = Ours::new(context.as_ref(), judge_of_client, Side::Outbound);
    talk_to_each_other(&mut client, &mut server, piece);
    kept_promises(&client)?;
    kept_promises(&server)?;
    let (Some(seen), Some(by)) = (&client.established, &server.established) else {
        return Err(format!("no handshake: {:?} {:?}", client.failed, server.failed));
    };
    if seen.peer.chain != by.peer.chain || *seen.peer.identity.service() != service("db") {
        return Err(format!("{} met {}", by.peer.identity.uri(), seen.peer.identity.uri()));
    }
    let first = (crypto.versions.first(), crypto.suites.first(), crypto.groups.first());
    let facts = seen.facts;
    if facts != by.facts || first != (Some(&facts.version), Some(&facts.suite), Some(&facts.group)) {
        return Err(format!("{facts:?} and {:?}, wanted {first:?}", by.facts));
    }
    client.send(b"question");
    server.send(b"answer");
    talk_to_each_other(&mut client, &mut server, piece);
    if (client.received(), server.received()) != (b"answer", b"question") {
        return Err(format!("{:?} and {:?} arrived", client.received(), server.received()));
    }
    Ok(format!("{} {} {}", facts.version, facts.suite, facts.group))
}

/// The name that is given is sent where it is a DNS name (RFC 6066, section 3), otherwise none, and never ALPN.
fn server_names(stage: &Stage) -> Scene {
    let long = "x".repeat(300);
    let sni = format!("web.default.dc1.internal.{TRUST_DOMAIN}");
    let names = [
        (Some(sni.as_str()), true),
        (Some("web"), true),
        (None, false),
        (Some("10.0.0.1"), false),
        (Some("::1"), false),
        (Some("not a name"), false),
        (Some(""), false),
        (Some(&long), false),
    ];
    for (given, is_legal) in names {
        let mut session = stage.context.connect(given).map_err(|error| format!("{given:?}: {error}"))?;
        let mut out = Buf::default();
        let step = session.handshake(&stage.judge(Side::Outbound), &mut Buf::default(), &mut out);
        if !matches!(step, Ok(HandshakeStep::NeedInput)) {
            return Err(format!("{given:?}: {step:?}"));
        }
        let hello = ClientHello::read(out.data())?;
        // A list of one entry of type host_name.
        let sent = hello.extension(extension::SERVER_NAME).map(|content| content.get(5..).unwrap_or_default());
        let wanted = given.filter(|_| is_legal).map(str::as_bytes);
        if sent != wanted {
            return Err(format!("given {given:?}, sent {:?}", sent.map(String::from_utf8_lossy)));
        }
    }
    Ok("one name or none".to_owned())
}

/// A peer that knows none of the groups whose shares come first, and one of the others.
fn second_hello(backend: &dyn TlsBackend, stage: &Stage, side: Side, piece: usize) -> Scene {
    let mut settings = stage.settings(Version::Tls13);
    settings.groups = Some(match side {
        // A client sends the share of its first group, which we do not have.
        Side::Inbound => vec![kx_group::MLKEM1024, kx_group::SECP384R1],
        // Nobody sends a share of the last group.
        Side::Outbound => vec![kx_group::SECP384R1],
    });
    let (mut ours, mut peer) = (stage.ours(side), Peer::new(&settings, side));
    talk(&mut ours, &mut peer, piece);
    if peer.connection.handshake_kind() != Some(HandshakeKind::FullWithHelloRetryRequest) {
        return Err(format!("{:?}; {:?} {:?}", peer.connection.handshake_kind(), ours.failed, peer.error));
    }
    peer.send(b"data of the peer");
    talk(&mut ours, &mut peer, piece);
    let seen = accepted(&mut ours, &mut peer, &stage.case, Version::Tls13)?;
    match ours.established {
        Some(established) if established.facts.group == "secp384r1" => Ok(seen),
        other => Err(format!("{other:?} over {}", backend.name())),
    }
}

/// Before a handshake is done there is nothing to end.
fn closed_in_handshake(stage: &Stage, side: Side) -> Scene {
    let mut ours = stage.ours(side);
    let _hello = ours.sent();
    ours.close();
    if !ours.sent().is_empty() {
        return Err("something is said".to_owned());
    }
    ours.take(&[]);
    match &ours.failed {
        Some(SessionError::Internal(why)) => Ok(why.clone()),
        other => Err(format!("{other:?}")),
    }
}

/// Nobody is to be served before the handshake is done, by a mistake of ours either.
fn not_begun(stage: &Stage, side: Side) -> Scene {
    for opens in [true, false] {
        let session = match side {
            Side::Inbound => stage.context.accept(),
            Side::Outbound => stage.context.connect(Some("web")),
        };
        let mut session = session.map_err(|error| error.to_string())?;
        let (mut wire, mut plain, mut out) = (Buf::default(), Buf::default(), Buf::default());
        let result = if opens {
            session.open(&mut wire, &mut plain, &mut out).map(|progress| format!("{progress:?}"))
        } else {
            session.seal(b"too early", &mut out).map(|()| "sealed".to_owned())
        };
        if !matches!(result, Err(SessionError::Internal(_))) || !plain.is_empty() {
            return Err(format!("{result:?}, {} bytes of plaintext", plain.len()));
        }
    }
    Ok("both are errors".to_owned())
}

/// Who was refused learns it: in its handshake, or as a client of TLS 1.3 when it opens.
fn refuses_us(stage: &Stage, side: Side, version: Version) -> Scene {
    let mut settings = stage.settings(version);
    settings.refuses_us = true;
    let (mut ours, mut peer) = (stage.ours(side), Peer::new(&settings, side));
    talk(&mut ours, &mut peer, usize::MAX);
    kept_promises(&ours)?;
    let is_late = (side, version) == (Side::Outbound, Version::Tls13);
    if ours.failed != Some(SessionError::PeerAlert(48)) || ours.established.is_some() != is_late {
        return Err(format!("{:?}, done: {}", ours.failed, ours.established.is_some()));
    }
    if !ours.received().is_empty() {
        return Err("data was given out".to_owned());
    }
    Ok(format!("alert 48, {}", if is_late { "when it opens" } else { "in the handshake" }))
}

/// A finished handshake cannot be gone on with.
fn ends_once(stage: &Stage, side: Side, version: Version) -> Scene {
    let (mut ours, mut peer) = stage.joined(side, version)?;
    let again = ours.handshake_again();
    if !matches!(again, Err(SessionError::Internal(_))) {
        return Err(again.map_or_else(|error| format!("{error:?}"), |step| format!("{step:?}")));
    }
    let sent = ours.sent();
    peer.take(&sent);
    Ok("an error of our own".to_owned())
}

fn no_signature_in_common(stage: &Stage, version: Version) -> Scene {
    let mut settings = stage.settings(version);
    // Of another kind than any key of ours: in TLS 1.2 a scheme names no curve (RFC 8446, section 4.2.3).
    settings.takes = Some(vec![SignatureScheme::ED25519]);
    let (mut ours, mut peer) = (stage.ours(Side::Inbound), Peer::new(&settings, Side::Inbound));
    talk(&mut ours, &mut peer, usize::MAX);
    kept_promises(&ours)?;
    nothing_left(&ours)?;
    match &ours.failed {
        Some(error @ SessionError::NothingInCommon(_)) => Ok(error.to_string()),
        other => Err(format!("{other:?}")),
    }
}
