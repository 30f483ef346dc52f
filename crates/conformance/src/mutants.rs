//! Certificates that nobody thought of: good chains changed at random, held against an oracle.
//!
//! Two kinds. Changed *bytes* break the signature, so whatever passes must have its leaf untouched. Changed *trees* are
//! signed again by the CA, so nothing but the rules stands between them and an identity; what the verifier accepts
//! is read once more here, by a reader that shares no code with it, which must find every rule kept.

use std::collections::BTreeSet;

use lictor_core::{PeerIdentity, RejectReason, SignatureAlgorithms, verify_peer};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustls_pki_types::CertificateDer;

use crate::{
    certs::{Mesh, id, purpose, service_uri},
    der,
    report::Report,
    rows::Case,
    verifier::{Side, judge},
};

/// How many mutants of each kind are made.
const ROUNDS: usize = 3000;

/// Runs both kinds.
#[must_use]
pub fn run(backend: &str, algorithms: &SignatureAlgorithms, seed: u64) -> Report {
    let mut report = Report::new("mutants", backend, seed);
    let mesh = Mesh::new(seed);
    for side in Side::BOTH {
        let mut random = StdRng::seed_from_u64(seed);
        report.add("bytes of a chain changed", side, changed_bytes(&mesh, side, algorithms, &mut random));
        report.add("leaves changed and signed again", side, changed_leaves(&mesh, side, algorithms, &mut random));
        report.add("CAs changed and signed again", side, changed_cas(&mesh, side, algorithms, &mut random));
    }
    report
}

fn changed_bytes(
    mesh: &Mesh,
    side: Side,
    algorithms: &SignatureAlgorithms,
    random: &mut StdRng,
) -> Result<String, String> {
    let upper = mesh.intermediate("Upper");
    let lower = upper.intermediate(&mesh.ca("Lower"));
    let good = Case::issued(&mesh.leaf(), &lower, &[&lower, &upper, &mesh.root], &[&mesh.root]);
    let judge = judge(mesh, &good, side);
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let mut chain = good.chain.clone();
        let index = random.random_range(0..chain.len());
        let mut bytes = chain[index].to_vec();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..5) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes[at] = random.random(),
                2 => bytes.insert(at, random.random()),
                3 => bytes.truncate(at.max(1)),
                _ if bytes.len() > 1 => _ = bytes.remove(at),
                _ => {}
            }
        }
        chain[index] = bytes.into();
        if let Ok(proof) = verify_peer(&judge, &chain, algorithms) {
            accepted += 1;
            // The root is not needed, so it may be anything; the others are signed.
            if chain[..3] != good.chain[..3] || proof.identity.uri() != good.uri {
                return Err(format!("accepted as {} with a changed certificate {index}", proof.identity.uri()));
            }
        }
    }
    Ok(format!("{accepted} of {ROUNDS} accepted, all with the path untouched"))
}

fn changed_leaves(
    mesh: &Mesh,
    side: Side,
    algorithms: &SignatureAlgorithms,
    random: &mut StdRng,
) -> Result<String, String> {
    let good = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let judge = judge(mesh, &good, side);
    changed_trees(mesh, &good.chain[0], random, |leaf, signed| match verify_peer(&judge, &[leaf], algorithms) {
        Ok(proof) => Oracle { mesh, side }.check_leaf(signed, &proof.identity).map(|()| None),
        Err(RejectReason::BadSignature) => Err("a good signature was refused".to_owned()),
        Err(reason) => Ok(Some(reason)),
    })
}

fn changed_cas(
    mesh: &Mesh,
    side: Side,
    algorithms: &SignatureAlgorithms,
    random: &mut StdRng,
) -> Result<String, String> {
    let ca = mesh.intermediate("Intermediate");
    let good = Case::issued(&mesh.leaf(), &ca, &[], &[&mesh.root]);
    let judge = judge(mesh, &good, side);
    changed_trees(mesh, &ca.certificate, random, |changed, signed| {
        match verify_peer(&judge, &[good.chain[0].clone(), changed], algorithms) {
            Ok(_) => Oracle { mesh, side }.check_ca(signed, &ca.name).map(|()| None),
            Err(reason) => Ok(Some(reason)),
        }
    })
}

/// Changes the tree of a certificate of the root's, signs it again, and has each judged: `None` is accepted, an error
/// is a rule that was broken and yet accepted.
fn changed_trees(
    mesh: &Mesh,
    original: &CertificateDer<'_>,
    random: &mut StdRng,
    judged: impl Fn(CertificateDer<'static>, &[u8]) -> Result<Option<RejectReason>, String>,
) -> Result<String, String> {
    let (certificate, _) = der::read(original);
    let signed = &certificate[..certificate.len() - der::read(certificate).1.len()];
    let tree = Node::parse_all(signed).ok_or("our own certificate cannot be read")?;
    let (mut accepted, mut reasons) = (0, BTreeSet::new());
    for _ in 0..ROUNDS {
        let mut mutant = tree.clone();
        for _ in 0..random.random_range(1..4) {
            mutate(&mut mutant, random);
        }
        let signed: Vec<u8> = mutant.iter().flat_map(Node::der).collect();
        let signature = mesh.root.key.usual_signature();
        let value = mesh.root.key.sign(&signed, signature);
        let certificate = der::seq(&[&signed, &signature.identifier(), &der::bits(&value)]);
        match judged(certificate.into(), &signed).map_err(|rule| format!("{rule}: {}", hex(&signed)))? {
            None => accepted += 1,
            Some(reason) => _ = reasons.insert(reason.name()),
        }
    }
    if accepted == 0 || reasons.len() < 5 {
        return Err(format!("the mutants are all alike: {accepted} accepted, {reasons:?}"));
    }
    Ok(format!("{accepted} of {ROUNDS} accepted, all by the rules; {} reasons", reasons.len()))
}

/// A DER element. The content of an OCTET STRING that is DER itself, as an extension's, is read as well.
#[derive(Clone, Debug)]
struct Node {
    tag: u8,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Nodes(Vec<Node>),
}

impl Node {
    fn parse_all(mut input: &[u8]) -> Option<Vec<Self>> {
        let mut nodes = Vec::new();
        while !input.is_empty() {
            let (tag, content, rest) = element(input)?;
            let inside = (tag & 0x20 != 0 || tag == 0x04).then(|| Self::parse_all(content)).flatten();
            let content = match inside {
                Some(nodes) if tag & 0x20 != 0 || !nodes.is_empty() => Content::Nodes(nodes),
                _ => Content::Bytes(content.to_vec()),
            };
            nodes.push(Self { tag, content });
            input = rest;
        }
        Some(nodes)
    }

    fn der(&self) -> Vec<u8> {
        match &self.content {
            Content::Bytes(bytes) => der::tlv(self.tag, bytes),
            Content::Nodes(nodes) => der::tlv(self.tag, &nodes.iter().flat_map(Self::der).collect::<Vec<_>>()),
        }
    }

    fn count(&self) -> usize {
        match &self.content {
            Content::Bytes(_) => 1,
            Content::Nodes(nodes) => 1 + nodes.iter().map(Self::count).sum::<usize>(),
        }
    }
}

/// Changes one element, or the order or number of the elements inside one.
fn mutate(nodes: &mut [Node], random: &mut StdRng) {
    let count = nodes.iter().map(Node::count).sum::<usize>();
    let mut index = random.random_range(0..count);
    if let Some(node) = nth(nodes, &mut index) {
        change(node, random);
    }
}

fn nth<'a>(nodes: &'a mut [Node], index: &mut usize) -> Option<&'a mut Node> {
    for node in nodes {
        if *index == 0 {
            return Some(node);
        }
        *index -= 1;
        let below = node.count() - 1;
        if *index < below {
            let Content::Nodes(children) = &mut node.content else { return None };
            return nth(children, index);
        }
        *index -= below;
    }
    None
}

fn change(node: &mut Node, random: &mut StdRng) {
    if random.random_range(0..12) == 0 {
        node.tag ^= 1 << random.random_range(0..8);
        return;
    }
    match &mut node.content {
        Content::Bytes(bytes) => {
            let at = random.random_range(0..=bytes.len());
            match random.random_range(0..4) {
                0 => bytes.insert(at, random.random()),
                1 => bytes.truncate(at),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << random.random_range(0..8);
                    }
                }
            }
        }
        Content::Nodes(children) if children.is_empty() => {
            children.push(Node { tag: 0x05, content: Content::Bytes(Vec::new()) });
        }
        Content::Nodes(children) => {
            let (one, other) = (random.random_range(0..children.len()), random.random_range(0..children.len()));
            match random.random_range(0..3) {
                0 => _ = children.remove(one),
                1 => children.insert(other, children[one].clone()),
                _ => children.swap(one, other),
            }
        }
    }
}

/// The tag and content of the first element, and what stands behind it. Lengths must be DER.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first().filter(|byte| **byte >= 0x80)?), &rest[1..]),
        0x82 => {
            let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
            (Some(length).filter(|length| *length >= 0x100)?, &rest[2..])
        }
        _ => return None,
    };
    (length <= rest.len()).then(|| (tag, &rest[..length], &rest[length..]))
}

/// Reads an accepted certificate by itself, and names the first rule that it finds broken.
struct Oracle<'a> {
    mesh: &'a Mesh,
    side: Side,
}

impl Oracle<'_> {
    fn check_leaf(&self, signed: &[u8], identity: &PeerIdentity) -> Result<(), String> {
        let fields = self.check_frame(signed)?;
        let serial = fields.serial.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
        expect(fields.serial[0] < 0x80 && (1..=20).contains(&serial.len()), "the serial is out of bounds")?;
        let written = serial.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
        expect(written == identity.serial().as_str(), "the serial is another")?;
        expect(fields.begins <= self.mesh.now, "not valid yet")?;
        expect(!fields.ca, "a CA")?;
        let usage = fields.usage.ok_or("no key usage")?;
        expect(usage & 0x80 != 0 && usage & 0x06 == 0, "the key usage is not a leaf's")?;
        let [uri] = &fields.uris[..] else { return Err(format!("{} URIs", fields.uris.len())) };
        expect(*uri == identity.uri().as_bytes(), "the URI is another")?;
        let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(byte);
        expect(uri.starts_with(b"spiffe://") && uri.iter().all(legal), "the URI is out of the grammar")?;
        let right = self.side == Side::Inbound || *uri == service_uri("web").as_bytes();
        expect(right, "the server is another")
    }

    fn check_ca(&self, signed: &[u8], name: &[u8]) -> Result<(), String> {
        let fields = self.check_frame(signed)?;
        expect(fields.subject == name, "the subject is not the leaf's issuer")?;
        expect(fields.begins <= self.mesh.now + 60, "not valid yet")?;
        expect(fields.ca, "no CA")?;
        expect(fields.usage.is_none_or(|usage| usage & 0x04 != 0), "the key usage is not a CA's")?;
        expect(!fields.constrained, "a name constraint out of nothing")
    }

    /// What holds for leaves and CAs alike.
    fn check_frame<'d>(&self, signed: &'d [u8]) -> Result<Fields<'d>, String> {
        let fields = elements(element(signed).ok_or("no DER")?.1).ok_or("the signed part is no DER")?;
        let [version, serial, _, issuer, validity, subject, _, rest @ ..] = &fields[..] else {
            return Err("fields are missing".to_owned());
        };
        expect(*version == (0xa0, &[0x02, 0x01, 0x02][..]), "the version is not 3")?;
        expect(serial.0 == 0x02 && !serial.1.is_empty(), "the serial is no integer")?;
        expect(der::tlv(issuer.0, issuer.1) == self.mesh.root.name, "the issuer is another")?;
        let times = elements(validity.1).ok_or("the validity is no DER")?;
        let [begin, end] = &times[..] else { return Err("the validity has not two ends".to_owned()) };
        let (begins, end) = (moment(*begin).ok_or("a bad beginning")?, moment(*end).ok_or("a bad end")?);
        expect(self.mesh.now <= end && begins <= end, "expired")?;
        let extensions = rest.iter().find(|field| field.0 == 0xa3).ok_or("no extensions")?;
        let mut read = Fields {
            serial: serial.1,
            subject: der::tlv(subject.0, subject.1),
            begins,
            ca: false,
            usage: None,
            uris: Vec::new(),
            constrained: false,
        };
        self.read_extensions(element(extensions.1).ok_or("the extensions are no DER")?.1, &mut read)?;
        Ok(read)
    }

    fn read_extensions<'d>(&self, list: &'d [u8], fields: &mut Fields<'d>) -> Result<(), String> {
        let mut seen = Vec::new();
        for (_, extension) in elements(list).ok_or("an extension is no DER")? {
            let parts = elements(extension).ok_or("an extension's parts are no DER")?;
            let [(0x06, oid), middle @ .., (0x04, value)] = &parts[..] else {
                return Err("an extension has other parts".to_owned());
            };
            let critical = middle.contains(&(0x01, &[0xff]));
            expect(!seen.contains(oid), "an extension stands twice")?;
            seen.push(*oid);
            let is = |id: &str| der::tlv(0x06, oid) == der::oid(id);
            let inside = element(value).map(|(_, inside, _)| inside);
            if is(id::ALT_NAMES) {
                let names = inside.and_then(elements).ok_or("the names are no DER")?;
                fields.uris = names.iter().filter(|name| name.0 == 0x86).map(|name| name.1).collect();
            } else if is(id::KEY_USAGE) {
                fields.usage = Some(inside.and_then(|bits| bits.get(1).copied()).ok_or("no bits of key usage")?);
            } else if is(id::BASIC_CONSTRAINTS) {
                let parts = inside.and_then(elements).ok_or("the basic constraints are no DER")?;
                fields.ca = parts.contains(&(0x01, &[0xff]));
            } else if is(id::EXTENDED_KEY_USAGE) {
                let wanted = if self.side == Side::Inbound { purpose::CLIENT } else { purpose::SERVER };
                let purposes = inside.and_then(elements).ok_or("the purposes are no DER")?;
                let allowed = purposes.iter().any(|purpose| der::tlv(purpose.0, purpose.1) == der::oid(wanted));
                expect(allowed, "the purpose is missing")?;
            } else if is(id::NAME_CONSTRAINTS) {
                fields.constrained = true;
            } else if !is(id::SUBJECT_KEY) && !is(id::AUTHORITY_KEY) {
                expect(!critical, "an unknown critical extension")?;
            }
        }
        Ok(())
    }
}

/// What the oracle read of a certificate.
struct Fields<'d> {
    serial: &'d [u8],
    subject: Vec<u8>,
    begins: i64,
    ca: bool,
    usage: Option<u8>,
    uris: Vec<&'d [u8]>,
    constrained: bool,
}

fn expect(kept: bool, rule: &str) -> Result<(), String> {
    if kept { Ok(()) } else { Err(rule.to_owned()) }
}

fn elements(mut input: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while !input.is_empty() {
        let (tag, content, rest) = element(input)?;
        all.push((tag, content));
        input = rest;
    }
    Some(all)
}

/// A Time in seconds since 1970.
fn moment((tag, text): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        0x17 => text.split_at_checked(2).and_then(|(year, rest)| {
            let year: i32 = year.parse().ok()?;
            Some((if year < 50 { 2000 + year } else { 1900 + year }, rest))
        })?,
        0x18 => text.split_at_checked(4).and_then(|(year, rest)| Some((year.parse().ok()?, rest)))?,
        _ => return None,
    };
    let two = |at: usize| rest.get(at..at + 2)?.parse::<u8>().ok();
    let date = time::Date::from_calendar_date(year, time::Month::try_from(two(0)?).ok()?, two(2)?).ok()?;
    Some(date.with_hms(two(4)?, two(6)?, two(8)?).ok()?.assume_utc().unix_timestamp())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
