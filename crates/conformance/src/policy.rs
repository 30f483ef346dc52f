//! The policy on the wire: what a library offers, serves and asks for, read from its own messages and from what it
//! answers to peers that offer one thing each.
//!
//! Two lists are held against each other twice. What [`TlsBackend::crypto`] says must be what core's policy asks for;
//! whatever is missing, beyond it or in another place must be named in a sentence of `differs`. And what is on the wire
//! must be what [`TlsBackend::crypto`] says, exactly.

use std::sync::Arc;

use lictor_core::{Crypto, MeshContext, SessionError, TlsBackend, TlsPolicy, policy::SIGNATURE_SCHEMES};
use rustls::{
    SignatureScheme, SupportedCipherSuite,
    crypto::{
        SupportedKxGroup,
        aws_lc_rs::{ALL_CIPHER_SUITES, kx_group},
    },
};

use crate::{
    certs::Mesh,
    handshake::{accepted, iana_name, kept_promises, nothing_left},
    hello::{ClientHello, ServerFlight, extension, long, long_list, names, number, short},
    keys::{Key, KeyKind},
    pair::{Ours, Peer, PeerSettings, Version, our_leaf_of, talk},
    report::{Report, Way},
    rows::Case,
    verifier::{Side, judge},
};

type Scene = Result<String, String>;

/// Runs the family.
///
/// # Panics
/// When the backend refuses good material.
#[must_use]
pub fn run(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("policy", backend.name(), seed);
    let policies = [
        ("by default", TlsPolicy::default()),
        ("no TLS 1.2, no hybrid", TlsPolicy { tls12: false, hybrid_first: false }),
    ];
    report.add("what the library says of itself", Way::NONE, says_of_itself(backend));
    for (name, policy) in policies {
        Stage::new(backend, policy, seed).add_rows(&mut report, name);
    }
    report
}

struct Stage {
    mesh: Mesh,
    policy: TlsPolicy,
    /// What the backend says of the policy.
    crypto: Crypto,
    /// Contexts of ours with a key on P-256 and with an RSA key.
    ecdsa: Arc<dyn MeshContext>,
    rsa: Arc<dyn MeshContext>,
    /// Peers with such keys, in the same order, with one on P-384, and with an RSA key that signs whatever it is asked.
    peers: [Case; 4],
}

impl Stage {
    fn new(backend: &dyn TlsBackend, policy: TlsPolicy, seed: u64) -> Self {
        let mesh = Mesh::new(seed);
        let context =
            |kind| backend.mesh_context(&our_leaf_of(&mesh, kind), &policy).expect("good material builds a context");
        let (ecdsa, rsa) = (context(KeyKind::P256), context(KeyKind::Rsa2048));
        let peers = [KeyKind::P256, KeyKind::Rsa2048, KeyKind::P384, KeyKind::RsaByHand(2048)].map(|kind| {
            let key = Arc::new(Key::generate(kind));
            Case::new(vec![mesh.root.issue(&mesh.leaf(), &key)], key, &[&mesh.root])
        });
        Self { crypto: backend.crypto(&policy), policy, ecdsa, rsa, peers, mesh }
    }

    fn add_rows(&self, report: &mut Report, name: &str) {
        let row = |what: &str| format!("{name}: {what}");
        report.add(&row("what is said is what is asked for"), Way::NONE, self.said_as_asked());
        report.add(&row("a FIPS module serves what FIPS approves of"), Way::NONE, self.fips());
        report.add(&row("our hello offers what is said"), Side::Outbound, self.hello());
        report.add(&row("our hello offers nothing that is off"), Side::Outbound, self.nothing_off());
        report.add(&row("two hellos share nothing"), Side::Outbound, self.two_hellos());
        for version in Version::BOTH {
            let way = (Side::Inbound, version);
            report.add(&row("our request for a certificate"), way, self.request(version));
            report.add(&row("our order of suites counts"), way, self.order_of_suites(version));
            report.add(&row("suites of no list"), way, self.foreign_suites(version));
        }
        report.add(&row("the newest version is agreed"), Side::Inbound, self.newest_version(Side::Inbound));
        report.add(&row("the newest version is agreed"), Side::Outbound, self.newest_version(Side::Outbound));
        report.add(&row("our first group is chosen of all"), (Side::Inbound, Version::Tls13), self.first_group());
        report.add(&row("groups of no list"), (Side::Inbound, Version::Tls13), self.foreign_groups());
        for side in Side::BOTH {
            for suite in ALL_CIPHER_SUITES {
                let version = if suite.tls13().is_some() { Version::Tls13 } else { Version::Tls12 };
                let what = row(&format!("{} alone", suite_name(*suite)));
                report.add(&what, (side, version), self.suite_alone(*suite, side, version));
            }
            for (group, in_tls12) in groups() {
                let what = row(&format!("group {} alone", group_name(group)));
                report.add(&what, (side, Version::Tls13), self.group_alone(group, side, Version::Tls13));
                if in_tls12 {
                    report.add(&what, (side, Version::Tls12), self.group_alone(group, side, Version::Tls12));
                }
            }
            for (scheme, peer, versions) in self.schemes() {
                for version in Version::BOTH {
                    let what = row(&format!("a signature as {}", scheme_name(scheme)));
                    let legal = versions.contains(&version);
                    report.add(&what, (side, version), self.scheme(scheme, peer, legal, side, version));
                }
            }
        }
    }

    fn said_as_asked(&self) -> Scene {
        let (policy, crypto) = (&self.policy, &self.crypto);
        let schemes = SIGNATURE_SCHEMES.to_vec();
        let mut differences = 0;
        for (what, asked, said) in [
            ("versions", policy.versions(), &crypto.versions),
            ("suites", policy.suites(), &crypto.suites),
            ("groups", policy.groups(), &crypto.groups),
            ("schemes", schemes, &crypto.signature_schemes),
        ] {
            let known: Vec<&str> = asked.iter().copied().filter(|name| said.contains(name)).collect();
            let missing = asked.iter().filter(|name| !said.contains(name));
            let beyond = said.iter().filter(|name| !asked.contains(name));
            let in_place = said.iter().filter(|name| asked.contains(name)).zip(&known);
            let displaced = in_place.filter(|(said, known)| said != known).map(|(said, _)| said);
            for name in missing.chain(beyond).chain(displaced) {
                differences += 1;
                if !crypto.differs.iter().any(|sentence| sentence.contains(name)) {
                    return Err(format!("{what}: nothing is said about {name}: {said:?}, {:?}", crypto.differs));
                }
            }
        }
        match differences {
            0 => Ok("all, in order".to_owned()),
            _ => Ok(crypto.differs.join("; ")),
        }
    }

    fn fips(&self) -> Scene {
        let fips = &self.crypto.fips;
        if fips.means.is_empty() || fips.self_test.is_empty() {
            return Err(format!("{fips:?}"));
        }
        // SP 800-52 and SP 800-186 approve of neither; the hybrid group has its approval from ML-KEM.
        let unapproved = |name: &&&str| name.contains("CHACHA20") || **name == "x25519";
        match self.crypto.suites.iter().chain(&self.crypto.groups).find(unapproved) {
            Some(name) if fips.enabled => Err(format!("{name} is served")),
            _ => Ok(fips.means.to_owned()),
        }
    }

    /// The first flight of a client of ours.
    fn our_hello(&self) -> Result<ClientHello, String> {
        let judge = judge(&self.mesh, &self.peers[0], Side::Outbound);
        ClientHello::read(&Ours::new(self.ecdsa.as_ref(), judge, Side::Outbound).sent())
    }

    fn hello(&self) -> Scene {
        let hello = self.our_hello()?;
        for (what, offered, said) in [
            ("versions", hello.versions()?, &self.crypto.versions),
            ("suites", hello.suites.clone(), &self.crypto.suites),
            ("groups", hello.groups()?, &self.crypto.groups),
            ("schemes", hello.signatures()?, &self.crypto.signature_schemes),
        ] {
            if names(&offered) != *said {
                return Err(format!("{what}: {:?} are offered, said are {said:?}", names(&offered)));
            }
        }
        let shares: Vec<u16> = hello.key_shares()?.into_iter().map(|(group, _)| group).collect();
        match names(&shares).first() {
            Some(first) if Some(&first.as_str()) == self.crypto.groups.first() => {
                Ok(format!("shares of {}", names(&shares).join(" and ")))
            }
            other => Err(format!("the first share is one of {other:?}")),
        }
    }

    /// No way around the whole check of today, and nothing before it.
    fn nothing_off(&self) -> Scene {
        let hello = self.our_hello()?;
        if hello.compression != [0] {
            return Err(format!("compression {:?}", hello.compression));
        }
        let mut off = vec![
            extension::HEARTBEAT,
            extension::ALPN,
            extension::COMPRESS_CERTIFICATE,
            extension::SESSION_TICKET,
            extension::PRE_SHARED_KEY,
            extension::EARLY_DATA,
            extension::AUTHORITIES,
            extension::POST_HANDSHAKE_AUTH,
            extension::NEXT_PROTOCOL,
            extension::ENCRYPTED_HELLO,
        ];
        off.extend(extension::APPLICATION_SETTINGS);
        if let Some(kind) = off.into_iter().find(|kind| hello.extension(*kind).is_some()) {
            return Err(format!("extension {kind} is there"));
        }
        let kinds: Vec<String> = hello.extensions.iter().map(|(kind, _)| kind.to_string()).collect();
        Ok(format!("extensions {}", kinds.join(" ")))
    }

    /// One context serves for hours: what is random must be so for each connection, also after a server has handed out
    /// tickets.
    fn two_hellos(&self) -> Scene {
        let first = self.our_hello()?;
        let case = &self.peers[0];
        let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), Version::Tls13);
        let mut ours = Ours::new(self.ecdsa.as_ref(), judge(&self.mesh, case, Side::Outbound), Side::Outbound);
        let mut peer = Peer::new(&settings, Side::Outbound);
        talk(&mut ours, &mut peer, usize::MAX);
        if ours.established.is_none() {
            return Err(format!("no handshake between them: {:?}", ours.failed));
        }
        let second = self.our_hello()?;
        self.nothing_off()?;
        let shares = (first.key_shares()?, second.key_shares()?);
        let again = shares.0.iter().zip(&shares.1).any(|(first, second)| first.1 == second.1);
        let same_id = !first.session_id.is_empty() && first.session_id == second.session_id;
        if first.random == second.random || same_id || again {
            return Err(format!("the same again: identifier {same_id}, share {again}"));
        }
        Ok(format!("an identifier of {} bytes, new each time", first.session_id.len()))
    }

    /// A peer and a side of ours, with keys of these kinds.
    fn pair(&self, context: &dyn MeshContext, case: &Case, settings: &PeerSettings, side: Side) -> (Ours, Peer) {
        let mut ours = Ours::new(context, judge(&self.mesh, case, side), side);
        let mut peer = Peer::new(settings, side);
        talk(&mut ours, &mut peer, usize::MAX);
        if ours.established.is_some() && peer.is_done() && peer.error.is_none() {
            peer.send(b"data of the peer");
            talk(&mut ours, &mut peer, usize::MAX);
        }
        (ours, peer)
    }

    fn settings(&self, version: Version) -> PeerSettings {
        PeerSettings::new(self.peers[0].chain.clone(), self.peers[0].key.clone(), version)
    }

    fn is_spoken(&self, version: Version) -> bool {
        self.crypto.versions.contains(&version.name())
    }

    /// Checks that a handshake went as far as it should, and agreed on what it could only agree on.
    fn agreed(&self, (mut ours, mut peer): (Ours, Peer), case: &Case, side: Side, wanted: Option<Wanted<'_>>) -> Scene {
        let Some(Wanted { version, suite, group }) = wanted else { return nothing_in_common(&ours, &peer, side) };
        accepted(&mut ours, &mut peer, case, version)?;
        let facts = ours.established.map(|established| established.facts).ok_or("no handshake")?;
        if suite.is_some_and(|suite| suite != facts.suite) || group.is_some_and(|group| group != facts.group) {
            return Err(format!("agreed on {} and {}", facts.suite, facts.group));
        }
        Ok(format!("{} {} {}", facts.version, facts.suite, facts.group))
    }

    fn suite_alone(&self, suite: SupportedCipherSuite, side: Side, version: Version) -> Scene {
        let name = suite_name(suite);
        // In TLS 1.2 the suite names the kind of the server's key.
        let is_rsa = name.contains("_RSA_");
        let context = if is_rsa && side == Side::Inbound { &self.rsa } else { &self.ecdsa };
        let case = &self.peers[usize::from(is_rsa && side == Side::Outbound)];
        let mut settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
        settings.suites = Some(vec![suite]);
        let is_said = self.crypto.suites.contains(&name.as_str());
        let wanted = is_said.then_some(Wanted { version, suite: Some(&name), group: None });
        self.agreed(self.pair(context.as_ref(), case, &settings, side), case, side, wanted)
    }

    fn group_alone(&self, group: &'static dyn SupportedKxGroup, side: Side, version: Version) -> Scene {
        let name = group_name(group);
        // In TLS 1.2 the list of groups is that of the curves of certificates, too (RFC 8422, section 4), so it is with
        // RSA keys on both sides that any group may be agreed.
        let (context, case) = match version {
            Version::Tls12 => (&self.rsa, &self.peers[1]),
            Version::Tls13 => (&self.ecdsa, &self.peers[0]),
        };
        let mut settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
        settings.groups = Some(vec![group]);
        let is_said = self.crypto.groups.contains(&name.as_str()) && self.is_spoken(version);
        let wanted = is_said.then_some(Wanted { version, suite: None, group: Some(&name) });
        self.agreed(self.pair(context.as_ref(), case, &settings, side), case, side, wanted)
    }

    fn newest_version(&self, side: Side) -> Scene {
        let mut settings = self.settings(Version::Tls12);
        settings.both_versions = true;
        let wanted = Some(Wanted { version: Version::Tls13, suite: None, group: None });
        self.agreed(self.pair(self.ecdsa.as_ref(), &self.peers[0], &settings, side), &self.peers[0], side, wanted)
    }

    /// A client that prefers what we like least.
    fn order_of_suites(&self, version: Version) -> Scene {
        let is_of_version = |suite: &&SupportedCipherSuite| suite.tls13().is_some() == (version == Version::Tls13);
        let mut suites: Vec<SupportedCipherSuite> = ALL_CIPHER_SUITES.iter().filter(is_of_version).copied().collect();
        let place =
            |suite: &SupportedCipherSuite| self.crypto.suites.iter().position(|said| *said == suite_name(*suite));
        suites.sort_by_key(|suite| std::cmp::Reverse(place(suite)));
        let mut settings = self.settings(version);
        settings.suites = Some(suites);
        let is_usable = |name: &&&str| match version {
            Version::Tls13 => !name.contains("_WITH_"),
            Version::Tls12 => name.contains("_ECDSA_"),
        };
        let first = self.crypto.suites.iter().find(is_usable);
        let wanted = first.map(|suite| Wanted { version, suite: Some(suite), group: None });
        self.agreed(
            self.pair(self.ecdsa.as_ref(), &self.peers[0], &settings, Side::Inbound),
            &self.peers[0],
            Side::Inbound,
            wanted,
        )
    }

    /// What our server asks of its clients: the schemes that are said, and no names of authorities.
    fn request(&self, version: Version) -> Scene {
        let (ours, peer) = self.pair(self.ecdsa.as_ref(), &self.peers[0], &self.settings(version), Side::Inbound);
        if !self.is_spoken(version) {
            return nothing_in_common(&ours, &peer, Side::Inbound);
        }
        let seen = peer.witness.seen();
        let asked: Vec<u16> = seen.schemes.iter().map(|scheme| u16::from(*scheme)).collect();
        // rustls shows its resolver only what TLS 1.3 can sign a handshake with (RFC 8446, section 4.2.3).
        let is_shown = |name: &&&str| version == Version::Tls12 || !name.starts_with("rsa_pkcs1_");
        let said: Vec<&str> = self.crypto.signature_schemes.iter().filter(is_shown).copied().collect();
        match (seen.asked, seen.authorities, names(&asked) == said) {
            (true, 0, true) => Ok(format!("{} schemes, no names", asked.len())),
            _ => Err(format!("asked: {}, {} names, {:?}", seen.asked, seen.authorities, names(&asked))),
        }
    }

    /// A hello written by hand, which offers what no library would.
    fn odd_hello(&self, version: Version, suites: &[u16], groups: &[u16], shares: &[(u16, Vec<u8>)]) -> ClientHello {
        let schemes: Vec<u16> = SIGNATURE_SCHEMES.iter().filter_map(|name| number(name)).collect();
        let mut extensions = vec![
            (extension::GROUPS, long_list(groups)),
            (extension::SIGNATURES, long_list(&schemes)),
            (extension::EXTENDED_MASTER_SECRET, Vec::new()),
            (extension::RENEGOTIATION, vec![0]),
            (extension::POINT_FORMATS, short(&[0])),
        ];
        if version == Version::Tls13 {
            let shares: Vec<u8> =
                shares.iter().flat_map(|(group, share)| [&group.to_be_bytes()[..], &long(share)].concat()).collect();
            extensions.push((extension::VERSIONS, short(&[3, 4])));
            extensions.push((extension::KEY_SHARE, long(&shares)));
        }
        let (random, session_id) = (vec![7; 32], vec![9; 32]);
        ClientHello { version: 0x0303, random, session_id, suites: suites.to_vec(), compression: vec![0], extensions }
    }

    /// What our server answers to a hello.
    fn answered(&self, hello: &ClientHello) -> (Ours, Result<ServerFlight, String>) {
        let judge = judge(&self.mesh, &self.peers[0], Side::Inbound);
        let mut ours = Ours::new(self.ecdsa.as_ref(), judge, Side::Inbound);
        ours.take(&hello.record());
        let flight = ServerFlight::read(&ours.sent());
        (ours, flight)
    }

    fn foreign_suites(&self, version: Version) -> Scene {
        let p256 = [(0x0017, Key::generate(KeyKind::P256).public().to_vec())];
        let (good, foreign): (u16, &[u16]) = match version {
            // AES-CCM, and the suites of other countries (RFC 8998).
            Version::Tls13 => (0x1301, &[0x1304, 0x1305, 0x00c6, 0x00c7]),
            // AES-CBC with and without forward secrecy, RSA key exchange, finite fields, CCM, 3DES, RC4, none at all,
            // anonymous, pre-shared keys.
            Version::Tls12 => (
                0xc02b,
                &[
                    0xc009, 0xc00a, 0xc013, 0xc023, 0xc027, 0x002f, 0x0035, 0x009c, 0x009d, 0x009e, 0x009f, 0x0033,
                    0xc0ac, 0xc0ae, 0xccaa, 0x000a, 0xc008, 0x0005, 0xc006, 0x0001, 0xc018, 0x008c, 0xc035, 0xccac,
                ],
            ),
        };
        if self.is_spoken(version) {
            let (_, flight) = self.answered(&self.odd_hello(version, &[foreign, &[good]].concat(), &[0x0017], &p256));
            let flight = flight.map_err(|error| format!("with a good one among them: {error}"))?;
            if flight.suite != good {
                return Err(format!("{:#06x} was chosen", flight.suite));
            }
        }
        let (ours, flight) = self.answered(&self.odd_hello(version, foreign, &[0x0017], &p256));
        refused_hello(&ours, flight)
    }

    fn foreign_groups(&self) -> Scene {
        // secp521r1, x448, two of finite fields, ML-KEM alone, other hybrids, and the one that came before.
        let foreign = [0x0019, 0x001e, 0x0100, 0x0101, 0x0202, 0x11eb, 0x11ed, 0x6399];
        let p521 = [(0x0019, Key::generate(KeyKind::P521).public().to_vec())];
        let (ours, flight) = self.answered(&self.odd_hello(Version::Tls13, &[0x1301], &foreign, &p521));
        refused_hello(&ours, flight)
    }

    /// A client that has sent a share of each group, in our order.
    fn first_group(&self) -> Scene {
        let mut shares = Vec::new();
        let mut wanted = self.crypto.groups.clone();
        for name in &wanted {
            let (group, _) = groups().into_iter().find(|(group, _)| group_name(*group) == *name).ok_or("a group")?;
            let share = group.start().map_err(|error| error.to_string())?.pub_key().to_vec();
            shares.push((number(name).unwrap_or_default(), share));
        }
        let mut chosen = Vec::new();
        for _ in 0..2 {
            let groups: Vec<u16> = shares.iter().map(|(group, _)| *group).collect();
            let (ours, flight) = self.answered(&self.odd_hello(Version::Tls13, &[0x1301], &groups, &shares));
            let flight = flight.map_err(|error| format!("{error}, {:?}", ours.failed))?;
            if flight.retry {
                return Err("another hello is asked for".to_owned());
            }
            chosen.extend(names(&[flight.group]));
            // Then the same shares the other way round.
            shares.reverse();
        }
        wanted.truncate(1);
        if chosen[..1] != wanted {
            return Err(format!("{} is chosen of our own order", chosen[0]));
        }
        Ok(format!("{}; of the other order {}", chosen[0], chosen[1]))
    }

    /// Schemes by which a peer may say that it signs: the scheme, whose key it has, and where it is legal.
    fn schemes(&self) -> Vec<(SignatureScheme, usize, &'static [Version])> {
        use SignatureScheme as S;
        let (both, old, none): (&[Version], &[Version], &[Version]) = (&Version::BOTH, &[Version::Tls12], &[]);
        let (p256, rsa, p384, rsa_by_hand) = (0, 1, 2, 3);
        vec![
            (S::ECDSA_NISTP256_SHA256, p256, both),
            (S::ECDSA_NISTP384_SHA384, p384, both),
            (S::RSA_PSS_SHA256, rsa, both),
            (S::RSA_PSS_SHA384, rsa, both),
            (S::RSA_PSS_SHA512, rsa, both),
            // Of a handshake in TLS 1.3 these are illegal (RFC 8446, section 4.2.3).
            (S::RSA_PKCS1_SHA256, rsa, old),
            (S::RSA_PKCS1_SHA384, rsa, old),
            (S::RSA_PKCS1_SHA512, rsa, old),
            // Nobody offered them.
            (S::ECDSA_SHA1_Legacy, p256, none),
            (S::RSA_PKCS1_SHA1, rsa_by_hand, none),
            (S::ED25519, p256, none),
        ]
    }

    /// A peer that signs its handshake by this scheme, whatever was asked.
    fn scheme(&self, scheme: SignatureScheme, peer: usize, legal: bool, side: Side, version: Version) -> Scene {
        let case = &self.peers[peer];
        let mut settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
        settings.signs_as = Some(scheme);
        let (mut ours, mut peer) = self.pair(self.ecdsa.as_ref(), case, &settings, side);
        if !self.is_spoken(version) {
            return nothing_in_common(&ours, &peer, side);
        }
        if legal && self.crypto.signature_schemes.contains(&scheme_name(scheme).as_str()) {
            return accepted(&mut ours, &mut peer, case, version);
        }
        kept_promises(&ours)?;
        nothing_left(&ours)?;
        match &ours.failed {
            Some(error) if error.reject_reason() == Some(lictor_core::RejectReason::BadMessage) => {
                Ok(error.to_string())
            }
            // A scheme that was not asked for may also be taken for a lack of common ones.
            Some(error @ SessionError::NothingInCommon(_)) => Ok(error.to_string()),
            other => Err(format!("{other:?}, peer {:?} {:?}", peer.alert, peer.error)),
        }
    }
}

/// What a handshake must agree on, as far as it is not open.
struct Wanted<'a> {
    version: Version,
    suite: Option<&'a str>,
    group: Option<&'a str>,
}

fn says_of_itself(backend: &dyn TlsBackend) -> Scene {
    let (name, library) = (backend.name(), backend.library());
    let crypto = backend.crypto(&TlsPolicy::default());
    if crypto.backend != name || crypto.library != library {
        return Err(format!("{name} {library} says that it is {} {}", crypto.backend, crypto.library));
    }
    if !library.contains(|c: char| c.is_ascii_digit()) {
        return Err(format!("{library:?} tells no version"));
    }
    let mut sentences = crypto.differs.clone();
    sentences.sort();
    sentences.dedup();
    if sentences.len() != crypto.differs.len() || sentences.iter().any(|sentence| sentence.trim().len() < 10) {
        return Err(format!("{:?} are no sentences", crypto.differs));
    }
    Ok(library)
}

/// Checks that nothing was agreed: our server says so, our client hears it.
fn nothing_in_common(ours: &Ours, peer: &Peer, side: Side) -> Scene {
    kept_promises(ours)?;
    nothing_left(ours)?;
    match (&ours.failed, side) {
        (Some(error @ SessionError::NothingInCommon(_)), Side::Inbound)
        | (Some(error @ (SessionError::PeerAlert(_) | SessionError::NothingInCommon(_))), Side::Outbound) => {
            Ok(format!("{error}, alert {:?}", peer.alert))
        }
        other => Err(format!("{other:?}, peer {:?} {:?}", peer.alert, peer.error)),
    }
}

fn refused_hello(ours: &Ours, flight: Result<ServerFlight, String>) -> Scene {
    kept_promises(ours)?;
    nothing_left(ours)?;
    match (&ours.failed, flight) {
        (Some(error @ SessionError::NothingInCommon(_)), Err(alert)) => Ok(format!("{error}, {alert}")),
        other => Err(format!("{other:?}")),
    }
}

/// The groups of rustls, and whether TLS 1.2 has them.
fn groups() -> Vec<(&'static dyn SupportedKxGroup, bool)> {
    vec![
        (kx_group::X25519MLKEM768, false),
        (kx_group::X25519, true),
        (kx_group::SECP256R1, true),
        (kx_group::SECP384R1, true),
        (kx_group::SECP256R1MLKEM768, false),
        (kx_group::MLKEM768, false),
        (kx_group::MLKEM1024, false),
    ]
}

fn group_name(group: &dyn SupportedKxGroup) -> String {
    names(&[u16::from(group.name())]).concat()
}

fn scheme_name(scheme: SignatureScheme) -> String {
    names(&[u16::from(scheme)]).concat()
}

fn suite_name(suite: SupportedCipherSuite) -> String {
    iana_name(&format!("{:?}", suite.suite()))
}
