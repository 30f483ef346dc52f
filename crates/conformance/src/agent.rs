//! HTTPS to the agent: the agent is known by its name and the authorities that the operator names, in the ordinary way
//! of the library; the rules of the mesh have no part in it.
//!
//! What the library says about a certificate that it does not like is its own; that it does not like it, and whose
//! fault that is, must be the same.

use lictor_core::{
    AgentTls, Buf, Progress, RejectReason, SessionError, TlsBackend, TlsPolicy,
    tls::{AgentSession, AgentVerification, BuildError},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    certs::{AltName, Authority, DAY, Extension, HOUR, Mesh, Spec, id, purpose},
    hello::{ClientHello, extension},
    keys::{Key, KeyKind, SignatureKind},
    pair::{Peer, PeerSettings, Version},
    report::{Report, Way},
    verifier::Side,
};

const NAME: &str = "server.dc1.consul";

/// Who the agent is not.
const OTHERS: [(&str, &str); 4] = [
    ("name", "other.consul"),
    ("name below its own", "x.server.dc1.consul"),
    ("address", "10.0.0.1"),
    ("address of IPv6", "::2"),
];

type Scene = Result<String, String>;

/// Runs the family.
#[must_use]
pub fn run(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("agent", backend.name(), seed);
    let stage = Stage { backend, mesh: Mesh::new(seed) };
    for version in Version::BOTH {
        let way = (Side::Outbound, version);
        for (what, name) in [("DNS name", NAME), ("IPv4 address", "127.0.0.1"), ("IPv6 address", "::1")] {
            report.add(&format!("known by {what}"), way, stage.known(version, name));
        }
        report.add("the name in capitals is the same name", way, stage.spelled(version, &NAME.to_uppercase()));
        report.add("the absolute name goes without its dot", way, stage.spelled(version, &format!("{NAME}.")));
        report.add("known under a wildcard of one label", way, stage.wildcard(version, "*.dc1.consul", true));
        report.add("a wildcard within a label is none", way, stage.wildcard(version, "ser*.dc1.consul", false));
        report.add("a wildcard is not two labels", way, stage.wildcard(version, "*.consul", false));
        report.add("everything byte by byte", way, stage.byte_by_byte(version));
        report.add("our certificate is shown where the operator gave one", way, stage.shows_certificate(version));
        report.add("an agent that refuses our certificate is heard", way, stage.refused_by_agent(version));
        for (what, name) in OTHERS {
            report.add(&format!("an agent of another {what} is refused"), way, stage.other_name(version, name));
        }
        report.add("a name in the subject alone is no name", way, stage.common_name(version));
        report.add("an unknown authority is refused", way, stage.unknown_authority(version));
        report.add(
            "an expired certificate is refused",
            way,
            stage.out_of_time(version, -DAY, -1, RejectReason::Expired),
        );
        let later = stage.out_of_time(version, HOUR, DAY, RejectReason::NotYetValid);
        report.add("a certificate of tomorrow is refused", way, later);
        report.add("a certificate for clients is refused", way, stage.for_clients(version));
        report.add("an intermediate is sent along", way, stage.intermediate(version));
        report.add("an agent without the key of its certificate", way, stage.no_key(version));
        report.add("verification off takes any certificate", way, stage.unverified(version));
        report.add("verification off still wants the key", way, stage.unverified_without_key(version));
        report.add("both directions end cleanly", way, stage.ends(version));
        report.add("nothing is resumed", way, stage.nothing_is_resumed(version));
        report.add("an anchor may be out of its time", way, stage.expired_anchor(version));
        report.add("an anchor need be no root", way, stage.anchor_below_a_root(version));
        report.add("below an old anchor everything must be in its time", way, stage.late_below_expired_anchor(version));
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::P521, KeyKind::Rsa2048, KeyKind::Ed25519] {
            report.add(&format!("the agent and we have keys of {kind:?}"), way, stage.keys(version, kind));
        }
        for (what, root, signature, good) in signatures() {
            report.add(&format!("signed with {what}"), way, stage.signed(version, root, signature, good));
        }
        report.add("what signs a root proves nothing", way, stage.root_over_sha1(version));
    }
    report.add("an agent that speaks plain HTTP", Side::Outbound, stage.plain_http());
    report.add("the hello names the agent and no protocol", Side::Outbound, stage.hello());
    report.add("no usable authority is an error of the context", Way::NONE, stage.no_roots());
    report.add("what is no name is an error", Way::NONE, stage.no_name());
    report.add("a key that is another's is an error of the context", Way::NONE, stage.foreign_key());
    report
}

struct Stage<'a> {
    backend: &'a dyn TlsBackend,
    mesh: Mesh,
}

/// A session with the agent and its buffers.
struct End {
    session: Box<dyn AgentSession>,
    wire: Buf,
    plain: Buf,
    out: Buf,
    done: bool,
    closed: bool,
    failed: Option<SessionError>,
}

impl End {
    fn take(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.wire.append(bytes);
        if let Err(error) = self.step() {
            self.failed = Some(error);
        }
    }

    fn step(&mut self) -> Result<(), SessionError> {
        if !self.done {
            self.done = self.session.handshake(&mut self.wire, &mut self.out)?;
        }
        if self.done {
            self.closed = self.session.open(&mut self.wire, &mut self.plain, &mut self.out)? == Progress::PeerClosed;
        }
        Ok(())
    }

    fn talk(&mut self, peer: &mut Peer, piece: usize) {
        self.take(&[]);
        loop {
            let sent = self.out.take();
            peer.take(&sent);
            let theirs = peer.sent();
            theirs.chunks(piece).for_each(|bytes| self.take(bytes));
            if theirs.is_empty() && self.out.is_empty() {
                return;
            }
        }
    }

    fn seal(&mut self, data: &[u8]) -> Result<(), String> {
        self.session.seal(data, &mut self.out).map_err(|error| error.to_string())
    }

    /// A question and its answer.
    fn converses(&mut self, peer: &mut Peer, piece: usize) -> Scene {
        if !self.done || self.failed.is_some() {
            return Err(format!("no handshake: {:?}; {:?} {:?}", self.failed, peer.alert, peer.error));
        }
        self.seal(b"GET /v1/agent/self")?;
        peer.send(b"200");
        self.talk(peer, piece);
        match (&peer.received[..], self.plain.data(), &self.failed) {
            (b"GET /v1/agent/self", b"200", None) => Ok("asked and answered".to_owned()),
            other => Err(format!("{other:?}")),
        }
    }

    /// Refused for this, with nothing given out.
    fn refused(&self, wanted: impl Fn(&SessionError) -> bool) -> Scene {
        match &self.failed {
            Some(error) if wanted(error) && !self.done && self.plain.is_empty() => Ok(error.to_string()),
            other => Err(format!("{other:?}, done: {}", self.done)),
        }
    }
}

impl Stage<'_> {
    /// A server certificate, and the key of it.
    fn issue(&self, issuer: &Authority, change: impl FnOnce(Spec) -> Spec) -> (CertificateDer<'static>, Key) {
        let key = Key::generate(KeyKind::P256);
        let names = [AltName::Dns(NAME), AltName::Ip([127, 0, 0, 1]), AltName::Tagged(0x87, &LOOPBACK_V6)];
        let spec = change(self.mesh.leaf().with(Extension::alt_names(&names)));
        (issuer.issue(&spec, &key), key)
    }

    fn good_agent(&self, version: Version) -> PeerSettings {
        let (certificate, key) = self.issue(&self.mesh.root, |spec| spec);
        agent(vec![certificate], key, version)
    }

    fn trusting(&self, root: &Authority) -> AgentTls {
        AgentTls { roots: vec![root.certificate.clone()], client: None, verification: AgentVerification::Full }
    }

    /// Meets an agent under a name, by these settings.
    fn meet(&self, settings: &AgentTls, name: &str, agent: &PeerSettings, piece: usize) -> Result<(End, Peer), String> {
        let context = self.backend.agent_context(settings).map_err(|error| error.to_string())?;
        let session = context.connect(name).map_err(|error| error.to_string())?;
        let (wire, plain, out) = Default::default();
        let mut end = End { session, wire, plain, out, done: false, closed: false, failed: None };
        let mut peer = Peer::new(agent, Side::Outbound);
        end.talk(&mut peer, piece);
        Ok((end, peer))
    }

    fn meet_trusting(&self, name: &str, agent: &PeerSettings) -> Result<(End, Peer), String> {
        self.meet(&self.trusting(&self.mesh.root), name, agent, usize::MAX)
    }

    fn known(&self, version: Version, name: &str) -> Scene {
        let (mut end, mut peer) = self.meet_trusting(name, &self.good_agent(version))?;
        end.converses(&mut peer, usize::MAX)
    }

    fn spelled(&self, version: Version, name: &str) -> Scene {
        let (mut end, mut peer) = self.meet_trusting(name, &self.good_agent(version))?;
        let seen = end.converses(&mut peer, usize::MAX)?;
        match peer.witness.seen().server_name {
            Some(sent) if sent.eq_ignore_ascii_case(NAME) => Ok(seen),
            sent => Err(format!("the server name was {sent:?}")),
        }
    }

    fn wildcard(&self, version: Version, wildcard: &str, passes: bool) -> Scene {
        let names = Extension::alt_names(&[AltName::Dns(wildcard)]);
        let (certificate, key) = self.issue(&self.mesh.root, |spec| spec.with(names));
        let (mut end, mut peer) = self.meet_trusting(NAME, &agent(vec![certificate], key, version))?;
        if passes {
            return end.converses(&mut peer, usize::MAX);
        }
        end.refused(|error| matches!(error, SessionError::Protocol(_)))
    }

    fn byte_by_byte(&self, version: Version) -> Scene {
        let settings = self.trusting(&self.mesh.root);
        let (mut end, mut peer) = self.meet(&settings, NAME, &self.good_agent(version), 1)?;
        end.converses(&mut peer, 1)
    }

    fn shows_certificate(&self, version: Version) -> Scene {
        let ca = self.mesh.intermediate("Operator");
        let key = Key::generate(KeyKind::P256);
        let chain = vec![ca.issue(&self.mesh.leaf_of("operator"), &key), ca.certificate];
        let mut settings = self.trusting(&self.mesh.root);
        settings.client = Some((chain.clone(), private(&key)?));
        let mut good = self.good_agent(version);
        good.demands_certificate = true;
        let (mut end, mut peer) = self.meet(&settings, NAME, &good, usize::MAX)?;
        end.converses(&mut peer, usize::MAX)?;
        if peer.witness.seen().chain != chain {
            return Err(format!("{} certificates were shown", peer.witness.seen().chain.len()));
        }
        // Without one the agent that demands one ends it.
        let (end, _) = self.meet_trusting(NAME, &good)?;
        match end.failed {
            Some(SessionError::PeerAlert(116)) => Ok("the whole chain in order".to_owned()),
            other => Err(format!("without a certificate: {other:?}")),
        }
    }

    fn refused_by_agent(&self, version: Version) -> Scene {
        let key = Key::generate(KeyKind::P256);
        let mut settings = self.trusting(&self.mesh.root);
        settings.client = Some((vec![self.mesh.root.issue(&self.mesh.leaf_of("operator"), &key)], private(&key)?));
        let mut agent = self.good_agent(version);
        agent.refuses_us = true;
        let (end, _) = self.meet(&settings, NAME, &agent, usize::MAX)?;
        match end.failed {
            Some(SessionError::PeerAlert(48)) => Ok("alert 48".to_owned()),
            other => Err(format!("{other:?}")),
        }
    }

    fn other_name(&self, version: Version, name: &str) -> Scene {
        let (end, peer) = self.meet_trusting(name, &self.good_agent(version))?;
        let seen = end.refused(|error| matches!(error, SessionError::Protocol(_)))?;
        peer.alert.map(|_| seen).ok_or_else(|| "refused without an alert".to_owned())
    }

    fn common_name(&self, version: Version) -> Scene {
        for names in [None, Some(Extension::alt_names(&[AltName::Email("agent@dc1.consul")]))] {
            let (certificate, key) = self.issue(&self.mesh.root, |spec| {
                let spec = spec.subject(NAME).without(id::ALT_NAMES);
                match names {
                    Some(names) => spec.with(names),
                    None => spec,
                }
            });
            let (end, _) = self.meet_trusting(NAME, &agent(vec![certificate], key, version))?;
            end.refused(|error| matches!(error, SessionError::Protocol(_)))?;
        }
        Ok("refused".to_owned())
    }

    fn unknown_authority(&self, version: Version) -> Scene {
        let (certificate, key) = self.issue(&self.mesh.other_root("Somebody's CA"), |spec| spec);
        let (end, peer) = self.meet_trusting(NAME, &agent(vec![certificate], key, version))?;
        let seen = end.refused(|error| *error == SessionError::Rejected(RejectReason::UnknownIssuer))?;
        if peer.alert == Some(48) { Ok(seen) } else { Err(format!("{seen}, alert {:?}", peer.alert)) }
    }

    fn out_of_time(&self, version: Version, from: i64, to: i64, reason: RejectReason) -> Scene {
        let now = self.mesh.now;
        let (certificate, key) = self.issue(&self.mesh.root, |spec| spec.valid(now + from, now + to));
        let (end, peer) = self.meet_trusting(NAME, &agent(vec![certificate], key, version))?;
        let seen = end.refused(|error| *error == SessionError::Rejected(reason))?;
        // The alert is the library's own: OpenSSL has another one for what is not valid yet.
        let early_on_openssl = reason == RejectReason::NotYetValid && self.backend.name() == "openssl";
        let wanted = if early_on_openssl { 42 } else { 45 };
        if peer.alert == Some(wanted) { Ok(seen) } else { Err(format!("{seen}, alert {:?}", peer.alert)) }
    }

    fn for_clients(&self, version: Version) -> Scene {
        let usage = Extension::extended_key_usage(&[purpose::CLIENT]);
        let (certificate, key) = self.issue(&self.mesh.root, |spec| spec.with(usage));
        let (end, _) = self.meet_trusting(NAME, &agent(vec![certificate], key, version))?;
        end.refused(|error| matches!(error, SessionError::Protocol(_)))
    }

    fn intermediate(&self, version: Version) -> Scene {
        let ca = self.mesh.intermediate("Intermediate");
        let (certificate, key) = self.issue(&ca, |spec| spec);
        let mut settings = agent(vec![certificate, ca.certificate], key, version);
        let (mut end, mut peer) = self.meet_trusting(NAME, &settings)?;
        let seen = end.converses(&mut peer, usize::MAX)?;
        settings.chain.truncate(1);
        let (end, _) = self.meet_trusting(NAME, &settings)?;
        end.refused(|error| *error == SessionError::Rejected(RejectReason::UnknownIssuer))?;
        Ok(seen)
    }

    fn no_key(&self, version: Version) -> Scene {
        let (certificate, _) = self.issue(&self.mesh.root, |spec| spec);
        let thief = agent(vec![certificate], Key::generate(KeyKind::P256), version);
        let (end, _) = self.meet_trusting(NAME, &thief)?;
        end.refused(|error| error.reject_reason() == Some(RejectReason::BadMessage))
    }

    fn unverified(&self, version: Version) -> Scene {
        let now = self.mesh.now;
        let stranger = self.mesh.other_root("Somebody's CA");
        let expired = self.issue(&stranger, |spec| spec.valid(now - DAY, now - 1).without(id::ALT_NAMES));
        let settings = AgentTls { roots: Vec::new(), client: None, verification: AgentVerification::Off };
        let bad = agent(vec![expired.0], expired.1, version);
        let (mut end, mut peer) = self.meet(&settings, "anything", &bad, usize::MAX)?;
        end.converses(&mut peer, usize::MAX)
    }

    fn unverified_without_key(&self, version: Version) -> Scene {
        let (certificate, _) = self.issue(&self.mesh.root, |spec| spec);
        let thief = agent(vec![certificate], Key::generate(KeyKind::P256), version);
        let settings = AgentTls { roots: Vec::new(), client: None, verification: AgentVerification::Off };
        let (end, _) = self.meet(&settings, NAME, &thief, usize::MAX)?;
        end.refused(|error| error.reject_reason() == Some(RejectReason::BadMessage))
    }

    fn ends(&self, version: Version) -> Scene {
        let (mut end, mut peer) = self.meet_trusting(NAME, &self.good_agent(version))?;
        end.converses(&mut peer, usize::MAX)?;
        end.session.close(&mut end.out).map_err(|error| error.to_string())?;
        peer.connection.send_close_notify();
        end.talk(&mut peer, usize::MAX);
        let mut byte = [0; 1];
        match (std::io::Read::read(&mut peer.connection.reader(), &mut byte), end.closed, &end.failed) {
            (Ok(0), true, None) => Ok("close_notify both ways".to_owned()),
            other => Err(format!("{other:?}")),
        }
    }

    /// A server that hands out tickets and remembers sessions.
    fn nothing_is_resumed(&self, version: Version) -> Scene {
        let context = self.backend.agent_context(&self.trusting(&self.mesh.root)).map_err(|error| error.to_string())?;
        let witness = std::sync::Arc::default();
        let config = std::sync::Arc::new(self.good_agent(version).server(&witness));
        for round in 0..3 {
            let session = context.connect(NAME).map_err(|error| error.to_string())?;
            let (wire, plain, out) = Default::default();
            let mut end = End { session, wire, plain, out, done: false, closed: false, failed: None };
            let mut peer = Peer::server(config.clone(), witness.clone());
            end.talk(&mut peer, usize::MAX);
            end.converses(&mut peer, usize::MAX)?;
            match peer.connection.handshake_kind() {
                Some(rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest) => {}
                other => return Err(format!("handshake {round} was {other:?}")),
            }
        }
        Ok("full handshakes".to_owned())
    }

    fn old_root(&self) -> Authority {
        let now = self.mesh.now;
        Authority::root(&self.mesh.ca("Old CA").valid(now - DAY, now - HOUR), KeyKind::P256)
    }

    fn below(&self, version: Version, anchor: &Authority) -> Scene {
        let (certificate, key) = self.issue(anchor, |spec| spec);
        let agent = agent(vec![certificate], key, version);
        let (mut end, mut peer) = self.meet(&self.trusting(anchor), NAME, &agent, usize::MAX)?;
        end.converses(&mut peer, usize::MAX)
    }

    /// The operator has named it, and that is all an anchor is (RFC 5280, section 6.1.1).
    fn expired_anchor(&self, version: Version) -> Scene {
        self.below(version, &self.old_root())
    }

    fn anchor_below_a_root(&self, version: Version) -> Scene {
        self.below(version, &self.mesh.intermediate("Intermediate"))
    }

    fn late_below_expired_anchor(&self, version: Version) -> Scene {
        let (old, now) = (self.old_root(), self.mesh.now);
        let late = old.intermediate(&self.mesh.ca("Late").valid(now - DAY, now - HOUR));
        let (certificate, key) = self.issue(&late, |spec| spec);
        let agent = agent(vec![certificate, late.certificate], key, version);
        let (end, _) = self.meet(&self.trusting(&old), NAME, &agent, usize::MAX)?;
        end.refused(|error| *error == SessionError::Rejected(RejectReason::Expired))
    }

    /// Both the agent and we show a certificate of this kind.
    fn keys(&self, version: Version, kind: KeyKind) -> Scene {
        let (theirs, ours) = (Key::generate(kind), Key::generate(kind));
        let names = Extension::alt_names(&[AltName::Dns(NAME)]);
        let certificate = self.mesh.root.issue(&self.mesh.leaf().with(names), &theirs);
        let mut settings = self.trusting(&self.mesh.root);
        let operator = self.mesh.root.issue(&self.mesh.leaf_of("operator"), &ours);
        settings.client = Some((vec![operator.clone()], private(&ours)?));
        let mut agent = agent(vec![certificate], theirs, version);
        agent.demands_certificate = true;
        // FIPS 186-5 has both; the policy of BoringSSL's module has neither as a scheme of TLS.
        let fips = self.backend.crypto(&TlsPolicy::default()).fips.enabled;
        if fips && self.backend.name() == "boring" && matches!(kind, KeyKind::P521 | KeyKind::Ed25519) {
            let (end, _) = self.meet(&settings, NAME, &agent, usize::MAX)?;
            return match (&end.failed, end.done) {
                (Some(error), false) => Ok(format!("not in this FIPS module: {error}")),
                other => Err(format!("{other:?}")),
            };
        }
        let (mut end, mut peer) = self.meet(&settings, NAME, &agent, usize::MAX)?;
        let seen = end.converses(&mut peer, usize::MAX)?;
        match peer.witness.seen().chain == [operator] {
            true => Ok(seen),
            false => Err("our certificate was not shown".to_owned()),
        }
    }

    fn signed(&self, version: Version, root: KeyKind, signature: SignatureKind, good: bool) -> Scene {
        let root = Authority::root(&self.mesh.ca("A CA of this kind"), root);
        let (certificate, key) = self.issue(&root, |spec| spec.signed(signature));
        let agent = agent(vec![certificate], key, version);
        let (mut end, mut peer) = self.meet(&self.trusting(&root), NAME, &agent, usize::MAX)?;
        if good {
            return end.converses(&mut peer, usize::MAX);
        }
        end.refused(|error| matches!(error, SessionError::Protocol(_)))
    }

    fn root_over_sha1(&self, version: Version) -> Scene {
        let spec = self.mesh.ca("Old").signed(SignatureKind::EcdsaSha1);
        self.below(version, &Authority::root(&spec, KeyKind::P256))
    }

    fn plain_http(&self) -> Scene {
        let context = self.backend.agent_context(&self.trusting(&self.mesh.root)).map_err(|error| error.to_string())?;
        let session = context.connect(NAME).map_err(|error| error.to_string())?;
        let (wire, plain, out) = Default::default();
        let mut end = End { session, wire, plain, out, done: false, closed: false, failed: None };
        end.take(&[]);
        end.take(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n");
        end.refused(|error| *error == SessionError::NotTls)
    }

    fn hello(&self) -> Scene {
        let context = self.backend.agent_context(&self.trusting(&self.mesh.root)).map_err(|error| error.to_string())?;
        for (name, sent) in [(NAME, Some(NAME)), ("127.0.0.1", None), ("::1", None)] {
            let mut session = context.connect(name).map_err(|error| error.to_string())?;
            let mut out = Buf::default();
            session.handshake(&mut Buf::default(), &mut out).map_err(|error| error.to_string())?;
            let hello = ClientHello::read(out.data())?;
            let server_name = hello.extension(extension::SERVER_NAME).and_then(|content| content.get(5..));
            if server_name != sent.map(str::as_bytes) {
                return Err(format!("the server name for {name} was {server_name:?}"));
            }
            let unwanted = [extension::ALPN, extension::PRE_SHARED_KEY, extension::EARLY_DATA];
            if let Some(kind) = unwanted.into_iter().find(|kind| hello.extension(*kind).is_some()) {
                return Err(format!("extension {kind} was sent"));
            }
        }
        Ok("a name where it is one, no protocol".to_owned())
    }

    fn no_roots(&self) -> Scene {
        let cut = self.mesh.root.certificate[..100].to_vec();
        let junk: Vec<CertificateDer<'static>> =
            [vec![], vec![1, 2, 3], cut].into_iter().map(CertificateDer::from).collect();
        for roots in [vec![], junk.clone()] {
            let settings = AgentTls { roots, client: None, verification: AgentVerification::Full };
            match self.backend.agent_context(&settings).err() {
                Some(BuildError::Refused { what: "roots", .. }) => {}
                other => return Err(format!("{other:?}")),
            }
        }
        // The system's bundle may hold what nobody can read, and one twice; neither must take the others along.
        let mut settings = self.trusting(&self.mesh.root);
        settings.roots.extend(junk);
        settings.roots.reverse();
        settings.roots.push(self.mesh.root.certificate.clone());
        let (mut end, mut peer) = self.meet(&settings, NAME, &self.good_agent(Version::Tls13), usize::MAX)?;
        end.converses(&mut peer, usize::MAX)?;
        Ok("refused, and one good one is enough".to_owned())
    }

    fn no_name(&self) -> Scene {
        let context = self.backend.agent_context(&self.trusting(&self.mesh.root)).map_err(|error| error.to_string())?;
        for name in ["not a name", "", "256.0.0.1.", "a..b", "a\0b.consul"] {
            match context.connect(name).err() {
                Some(SessionError::Internal(_)) => {}
                other => return Err(format!("{name:?}: {other:?}")),
            }
        }
        Ok("refused".to_owned())
    }

    fn foreign_key(&self) -> Scene {
        let key = Key::generate(KeyKind::P256);
        let chain = vec![self.mesh.root.issue(&self.mesh.leaf(), &key)];
        for kind in [KeyKind::P256, KeyKind::Ed25519, KeyKind::Rsa2048] {
            let mut settings = self.trusting(&self.mesh.root);
            settings.client = Some((chain.clone(), private(&Key::generate(kind))?));
            match self.backend.agent_context(&settings).err() {
                Some(BuildError::KeyMismatch) => {}
                other => return Err(format!("{kind:?}: {other:?}")),
            }
        }
        Ok("refused as such".to_owned())
    }
}

/// `::1`.
const LOOPBACK_V6: [u8; 16] = std::net::Ipv6Addr::LOCALHOST.octets();

/// What the agent's certificate may be signed with, and what nobody takes any more: the root's key, the signature, and
/// whether it passes.
fn signatures() -> [(&'static str, KeyKind, SignatureKind, bool); 6] {
    use {KeyKind as K, SignatureKind as S};
    [
        ("RSA of 2048 bits", K::RsaByHand(2048), S::RsaSha256, true),
        ("RSA of 1024 bits", K::RsaByHand(1024), S::RsaSha256, false),
        ("RSA over SHA-1", K::RsaByHand(2048), S::RsaSha1, false),
        ("RSA-PSS", K::Rsa2048, S::RsaPssSha256, true),
        ("ECDSA over SHA-512 on P-256", K::P256, S::EcdsaSha512, true),
        ("ECDSA over SHA-1", K::P256, S::EcdsaSha1, false),
    ]
}

/// An agent that asks for a certificate and takes none for an answer.
fn agent(chain: Vec<CertificateDer<'static>>, key: Key, version: Version) -> PeerSettings {
    let mut settings = PeerSettings::new(chain, key.into(), version);
    settings.demands_certificate = false;
    settings
}

fn private(key: &Key) -> Result<PrivateKeyDer<'static>, String> {
    let pkcs8 = key.pkcs8().ok_or("no private key")?;
    Ok(PrivatePkcs8KeyDer::from(pkcs8.to_vec()).into())
}
