//! The certificate factory: a mesh of authorities, and leaves and CAs with every knob that a row turns.
//!
//! Everything is made when the suite runs and nothing is kept. The factory writes the certificates itself
//! ([`crate::der`]), since half of the rows are certificates that no library would write; that it writes the good
//! ones well is checked against rcgen's and x509-parser's reading at the bottom of this file.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{
    der,
    keys::{Key, KeyKind, SignatureKind},
};

/// The trust domain of the mesh, of the form that Consul gives to it.
pub const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

/// Another trust domain.
pub const OTHER_TRUST_DOMAIN: &str = "99999999-8888-7777-6666-555555555555.consul";

/// A minute, an hour, a day and a year in seconds.
pub const MINUTE: i64 = 60;
/// An hour.
pub const HOUR: i64 = 60 * MINUTE;
/// A day.
pub const DAY: i64 = 24 * HOUR;
/// A year without a leap day.
pub const YEAR: i64 = 365 * DAY;

/// Object identifiers of extensions.
pub mod id {
    /// subjectKeyIdentifier.
    pub const SUBJECT_KEY: &str = "2.5.29.14";
    /// keyUsage.
    pub const KEY_USAGE: &str = "2.5.29.15";
    /// subjectAltName.
    pub const ALT_NAMES: &str = "2.5.29.17";
    /// basicConstraints.
    pub const BASIC_CONSTRAINTS: &str = "2.5.29.19";
    /// nameConstraints.
    pub const NAME_CONSTRAINTS: &str = "2.5.29.30";
    /// authorityKeyIdentifier.
    pub const AUTHORITY_KEY: &str = "2.5.29.35";
    /// extKeyUsage.
    pub const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
    /// An extension that nobody knows (a private arc).
    pub const UNKNOWN: &str = "1.3.6.1.4.1.55555.1";
}

/// Purposes of an extended key usage.
pub mod purpose {
    /// id-kp-serverAuth.
    pub const SERVER: &str = "1.3.6.1.5.5.7.3.1";
    /// id-kp-clientAuth.
    pub const CLIENT: &str = "1.3.6.1.5.5.7.3.2";
    /// id-kp-emailProtection.
    pub const EMAIL: &str = "1.3.6.1.5.5.7.3.4";
    /// anyExtendedKeyUsage.
    pub const ANY: &str = "2.5.29.37.0";
}

/// Bits of a key usage (RFC 5280, section 4.2.1.3), bit 0 being the highest of the first byte.
pub mod usage {
    /// digitalSignature.
    pub const DIGITAL_SIGNATURE: u16 = 0x80;
    /// keyEncipherment.
    pub const KEY_ENCIPHERMENT: u16 = 0x20;
    /// dataEncipherment.
    pub const DATA_ENCIPHERMENT: u16 = 0x10;
    /// keyAgreement.
    pub const KEY_AGREEMENT: u16 = 0x08;
    /// keyCertSign.
    pub const CERT_SIGN: u16 = 0x04;
    /// cRLSign.
    pub const CRL_SIGN: u16 = 0x02;
    /// What Consul sets on leaves.
    pub const LEAF: u16 = DIGITAL_SIGNATURE | KEY_ENCIPHERMENT | DATA_ENCIPHERMENT | KEY_AGREEMENT;
    /// What Consul sets on CAs.
    pub const CA: u16 = DIGITAL_SIGNATURE | CERT_SIGN | CRL_SIGN;
}

/// An extension of a certificate.
#[derive(Clone, Debug)]
pub struct Extension {
    /// Its object identifier, dotted.
    pub id: &'static str,
    /// Whether who does not understand it must refuse the certificate.
    pub critical: bool,
    /// What stands inside its OCTET STRING.
    pub value: Vec<u8>,
}

impl Extension {
    /// basicConstraints.
    #[must_use]
    pub fn basic_constraints(ca: bool, path_length: Option<u8>) -> Self {
        let length = path_length.map(|length| der::unsigned(&[length])).unwrap_or_default();
        let value = der::seq(&[if ca { der::TRUE } else { &[] }, &length]);
        Self { id: id::BASIC_CONSTRAINTS, critical: true, value }
    }

    /// keyUsage of these [`usage`] bits.
    #[must_use]
    pub fn key_usage(bits: u16) -> Self {
        let byte = u8::try_from(bits).unwrap_or_default();
        let unused = u8::try_from(byte.trailing_zeros().min(7)).unwrap_or_default();
        Self { id: id::KEY_USAGE, critical: true, value: der::tlv(0x03, &[unused, byte]) }
    }

    /// extKeyUsage of these [`purpose`]s.
    #[must_use]
    pub fn extended_key_usage(purposes: &[&str]) -> Self {
        let purposes: Vec<Vec<u8>> = purposes.iter().map(|purpose| der::oid(purpose)).collect();
        Self { id: id::EXTENDED_KEY_USAGE, critical: false, value: der::tlv(0x30, &purposes.concat()) }
    }

    /// subjectAltName.
    #[must_use]
    pub fn alt_names(names: &[AltName<'_>]) -> Self {
        let names: Vec<Vec<u8>> = names.iter().map(AltName::der).collect();
        Self { id: id::ALT_NAMES, critical: false, value: der::tlv(0x30, &names.concat()) }
    }

    /// nameConstraints with permitted and excluded names.
    #[must_use]
    pub fn name_constraints(permitted: &[AltName<'_>], excluded: &[AltName<'_>]) -> Self {
        let subtrees = |tag: u8, names: &[AltName<'_>]| {
            let subtrees: Vec<Vec<u8>> = names.iter().map(|name| der::seq(&[&name.der()])).collect();
            if names.is_empty() { Vec::new() } else { der::tlv(tag, &subtrees.concat()) }
        };
        let value = der::seq(&[&subtrees(0xa0, permitted), &subtrees(0xa1, excluded)]);
        Self { id: id::NAME_CONSTRAINTS, critical: true, value }
    }

    /// subjectKeyIdentifier.
    #[must_use]
    pub fn subject_key(identifier: &[u8]) -> Self {
        Self { id: id::SUBJECT_KEY, critical: false, value: der::octets(identifier) }
    }

    /// authorityKeyIdentifier.
    #[must_use]
    pub fn authority_key(identifier: &[u8]) -> Self {
        Self { id: id::AUTHORITY_KEY, critical: false, value: der::seq(&[&der::tlv(0x80, identifier)]) }
    }

    /// An extension that nobody knows.
    #[must_use]
    pub fn unknown(critical: bool) -> Self {
        Self { id: id::UNKNOWN, critical, value: der::NULL.to_vec() }
    }

    fn der(&self) -> Vec<u8> {
        der::seq(&[&der::oid(self.id), if self.critical { der::TRUE } else { &[] }, &der::octets(&self.value)])
    }
}

/// A name of a subjectAltName or a nameConstraints extension.
#[derive(Clone, Copy, Debug)]
pub enum AltName<'a> {
    /// uniformResourceIdentifier, whatever the bytes.
    Uri(&'a [u8]),
    /// dNSName.
    Dns(&'a str),
    /// iPAddress.
    Ip([u8; 4]),
    /// rfc822Name.
    Email(&'a str),
    /// Anything, under this tag.
    Tagged(u8, &'a [u8]),
}

impl AltName<'_> {
    fn der(&self) -> Vec<u8> {
        match self {
            Self::Email(name) => der::tlv(0x81, name.as_bytes()),
            Self::Dns(name) => der::tlv(0x82, name.as_bytes()),
            Self::Uri(uri) => der::tlv(0x86, uri),
            Self::Ip(address) => der::tlv(0x87, address),
            Self::Tagged(tag, content) => der::tlv(*tag, content),
        }
    }
}

/// What goes into a certificate. It begins as a good one, and a row turns one knob.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The version as it is written: 2 means X.509 v3, 0 is left out.
    pub version: u8,
    /// The content bytes of the serial number.
    pub serial: Vec<u8>,
    /// The issuer's Name, where it is not that of the authority that signs.
    pub issuer: Option<Vec<u8>>,
    /// The subject's Name.
    pub subject: Vec<u8>,
    /// The first moment of validity, in seconds since 1970.
    pub not_before: i64,
    /// The last moment of validity.
    pub not_after: i64,
    /// The extensions in their order. Key identifiers are added behind them unless [`Self::plain`] is set or an
    /// extension of that kind is here already.
    pub extensions: Vec<Extension>,
    /// Add no key identifiers.
    pub plain: bool,
    /// The signature, where it is not the authority's usual one.
    pub signature: Option<SignatureKind>,
    /// The algorithm that the signed part names, where it is not that of the signature.
    pub inner_algorithm: Option<SignatureKind>,
}

impl Spec {
    /// Puts `extension` in the place of the one with the same identifier, or at the end.
    #[must_use]
    pub fn with(mut self, extension: Extension) -> Self {
        match self.extensions.iter_mut().find(|known| known.id == extension.id) {
            Some(known) => *known = extension,
            None => self.extensions.push(extension),
        }
        self
    }

    /// Takes the extension with this identifier out.
    #[must_use]
    pub fn without(mut self, id: &str) -> Self {
        self.extensions.retain(|extension| extension.id != id);
        self
    }

    /// With this URI as the only alternative name.
    #[must_use]
    pub fn uri(self, uri: &str) -> Self {
        self.with(Extension::alt_names(&[AltName::Uri(uri.as_bytes())]))
    }

    /// With this subject.
    #[must_use]
    pub fn subject(mut self, common: &str) -> Self {
        self.subject = der::name(common);
        self
    }

    /// Valid from and to these moments.
    #[must_use]
    pub fn valid(mut self, not_before: i64, not_after: i64) -> Self {
        (self.not_before, self.not_after) = (not_before, not_after);
        self
    }

    /// With this serial number.
    #[must_use]
    pub fn serial(mut self, content: &[u8]) -> Self {
        self.serial = content.to_vec();
        self
    }

    /// Signed like this.
    #[must_use]
    pub fn signed(mut self, signature: SignatureKind) -> Self {
        self.signature = Some(signature);
        self
    }

    /// Without key identifiers.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }
}

/// A certificate authority: a name, a key, and the certificate that joins them.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its Name.
    pub name: Vec<u8>,
    /// Its key.
    pub key: Arc<Key>,
    /// Its certificate: self-signed for a root, its issuer's work for an intermediate.
    pub certificate: CertificateDer<'static>,
}

impl Authority {
    /// A root made after `spec` with a key of its own.
    #[must_use]
    pub fn root(spec: &Spec, kind: KeyKind) -> Self {
        Self::root_with(spec, Arc::new(Key::generate(kind)))
    }

    /// A root made after `spec` with `key`.
    #[must_use]
    pub fn root_with(spec: &Spec, key: Arc<Key>) -> Self {
        let name = spec.subject.clone();
        let certificate = sign(spec, &name, &key, &key);
        Self { name, key, certificate }
    }

    /// Issues a certificate made after `spec` for the public half of `subject`.
    #[must_use]
    pub fn issue(&self, spec: &Spec, subject: &Key) -> CertificateDer<'static> {
        sign(spec, &self.name, &self.key, subject)
    }

    /// Issues a CA certificate made after `spec` with a P-256 key of its own.
    #[must_use]
    pub fn intermediate(&self, spec: &Spec) -> Self {
        self.intermediate_with(spec, Arc::new(Key::generate(KeyKind::P256)))
    }

    /// Issues a CA certificate made after `spec` for `key`.
    #[must_use]
    pub fn intermediate_with(&self, spec: &Spec, key: Arc<Key>) -> Self {
        Self { name: spec.subject.clone(), certificate: self.issue(spec, &key), key }
    }

    /// Signs the name and key of `other`, as Consul does with a new root when it rotates.
    #[must_use]
    pub fn cross_sign(&self, spec: &Spec, other: &Self) -> CertificateDer<'static> {
        let mut spec = spec.clone();
        spec.subject.clone_from(&other.name);
        self.issue(&spec, &other.key)
    }

    /// The certificate as PEM text.
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }
}

/// A mesh: one trust domain, one root, and the moment of the run.
pub struct Mesh {
    /// The moment that counts as now, in seconds since 1970.
    pub now: i64,
    /// The root that is trusted.
    pub root: Authority,
    seed: u64,
    serial: AtomicU64,
}

impl Mesh {
    /// A mesh with a P-256 root at the present moment; serial numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::at(seed, i64::try_from(UnixTime::now().as_secs()).unwrap_or_default())
    }

    /// A mesh at another moment.
    #[must_use]
    pub fn at(seed: u64, now: i64) -> Self {
        let root = Authority::root(&ca_spec(now, "Consul CA 1", &[0x01]), KeyKind::P256);
        Self { now, root, seed, serial: AtomicU64::new(1) }
    }

    /// The moment that counts as now.
    #[must_use]
    pub fn time(&self) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(self.now).unwrap_or_default()))
    }

    /// A good leaf for the service `web`, as Consul issues it.
    #[must_use]
    pub fn leaf(&self) -> Spec {
        self.leaf_of("web")
    }

    /// A good leaf for a service of the default namespace in dc1.
    #[must_use]
    pub fn leaf_of(&self, service: &str) -> Spec {
        let spec = Spec {
            version: 2,
            serial: self.next_serial(),
            issuer: None,
            subject: der::name(&format!("{service}.svc.default.11111111.consul")),
            not_before: self.now - MINUTE,
            not_after: self.now + 3 * DAY,
            extensions: vec![
                Extension::key_usage(usage::LEAF),
                Extension::extended_key_usage(&[purpose::CLIENT, purpose::SERVER]),
                Extension::basic_constraints(false, None),
            ],
            plain: false,
            signature: None,
            inner_algorithm: None,
        };
        spec.uri(&service_uri(service))
    }

    /// A good CA of this common name, as Consul makes roots and intermediates.
    #[must_use]
    pub fn ca(&self, common: &str) -> Spec {
        ca_spec(self.now, common, &self.next_serial())
    }

    /// A root of its own name and a P-256 key.
    #[must_use]
    pub fn other_root(&self, common: &str) -> Authority {
        Authority::root(&self.ca(common), KeyKind::P256)
    }

    /// An intermediate under the mesh's root.
    #[must_use]
    pub fn intermediate(&self, common: &str) -> Authority {
        self.root.intermediate(&self.ca(common))
    }

    /// A positive serial number of eight bytes that no other certificate of this mesh has.
    fn next_serial(&self) -> Vec<u8> {
        let count = self.serial.fetch_add(1, Ordering::Relaxed);
        let mixed = (self.seed ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes();
        [&[0x40 | mixed[0] & 0x3f], &mixed[1..]].concat()
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh(seed {}, now {})", self.seed, self.now)
    }
}

/// The URI of a service in the default namespace of dc1.
#[must_use]
pub fn service_uri(service: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{service}")
}

/// DER as PEM text (RFC 7468).
#[must_use]
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

fn ca_spec(now: i64, common: &str, serial: &[u8]) -> Spec {
    Spec {
        version: 2,
        serial: serial.to_vec(),
        issuer: None,
        subject: der::name(common),
        not_before: now - MINUTE,
        not_after: now + 10 * YEAR,
        extensions: vec![
            Extension::key_usage(usage::CA),
            Extension::basic_constraints(true, None),
            Extension::alt_names(&[AltName::Uri(format!("spiffe://{TRUST_DOMAIN}").as_bytes())]),
        ],
        plain: false,
        signature: None,
        inner_algorithm: None,
    }
}

/// Writes and signs a certificate.
fn sign(spec: &Spec, issuer_name: &[u8], issuer: &Key, subject: &Key) -> CertificateDer<'static> {
    let signature = spec.signature.unwrap_or_else(|| issuer.usual_signature());
    let mut extensions = spec.extensions.clone();
    if !spec.plain {
        let has = |id| spec.extensions.iter().any(|extension| extension.id == id);
        if !has(id::SUBJECT_KEY) {
            extensions.push(Extension::subject_key(&subject.identifier()));
        }
        if !has(id::AUTHORITY_KEY) {
            extensions.push(Extension::authority_key(&issuer.identifier()));
        }
    }
    let extensions: Vec<Vec<u8>> = extensions.iter().map(Extension::der).collect();
    let extensions = der::tlv(0xa3, &der::tlv(0x30, &extensions.concat()));
    let version = der::tlv(0xa0, &der::integer(&[spec.version]));
    let signed = der::seq(&[
        if spec.version == 0 { &[] } else { &version },
        &der::integer(&spec.serial),
        &spec.inner_algorithm.unwrap_or(signature).identifier(),
        spec.issuer.as_deref().unwrap_or(issuer_name),
        &der::seq(&[&der::time(spec.not_before), &der::time(spec.not_after)]),
        &spec.subject,
        subject.spki(),
        if spec.version == 2 { &extensions } else { &[] },
    ]);
    let value = issuer.sign(&signed, signature);
    der::seq(&[&signed, &signature.identifier(), &der::bits(&value)]).into()
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    #[test]
    fn a_good_leaf_reads_as_consuls_do() {
        let mesh = Mesh::new(1);
        let leaf = mesh.root.issue(&mesh.leaf(), &Key::generate(KeyKind::P256));
        let (rest, leaf) = X509Certificate::from_der(&leaf).unwrap();
        assert!(rest.is_empty());
        assert_eq!(leaf.version().0, 2);
        assert_eq!(leaf.issuer().as_raw(), mesh.root.name);
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && usage.value.key_agreement());
        assert!(!usage.value.key_cert_sign());
        let extended = leaf.extended_key_usage().unwrap().unwrap();
        assert!(extended.value.client_auth && extended.value.server_auth);
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(format!("{names:?}"), format!("[URI({:?})]", service_uri("web")));
    }

    #[test]
    fn serial_numbers_differ_and_follow_from_the_seed() {
        let serials = |seed| {
            let mesh = Mesh::at(seed, 1_700_000_000);
            (0..100).map(|_| mesh.leaf().serial).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(serials(7).len(), 100);
        assert_eq!(serials(7), serials(7));
        assert_ne!(serials(7), serials(8));
    }

    #[test]
    fn the_public_key_is_written_as_rcgen_writes_it() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::P521, KeyKind::Ed25519, KeyKind::Rsa2048] {
            let key = Key::generate(kind);
            let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(key.pkcs8().unwrap());
            let pair = rcgen::KeyPair::try_from(&pkcs8).unwrap();
            assert_eq!(key.spki(), rcgen::PublicKeyData::subject_public_key_info(&pair), "{kind:?}");
        }
    }
}
