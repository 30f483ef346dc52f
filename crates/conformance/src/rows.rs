//! The rows: which certificates pass and which do not, as data.
//!
//! A row names a chain, what our side must say to it as a server (inbound) and as a client (outbound), and why. The
//! same table is run at every level: the verifier alone, a handshake in memory, and the whole inbound path.
//!
//! Rows `P…` and `N…` are the ones that the specification of the verifier lists; the numbers that are missing there
//! are missing here. Rows `A…` are further examples of its rules. Rows without a chain ([`Build::Elsewhere`]) need
//! a peer that misbehaves beyond its certificate; they name the function that runs them.

use std::sync::Arc;

use lictor_core::{PeerPolicy, RejectReason, TrustDomain, identity::Grammar};
use rustls_pki_types::CertificateDer;

use crate::{
    certs::{
        AltName, Authority, DAY, Extension, HOUR, MINUTE, Mesh, OTHER_TRUST_DOMAIN, Spec, TRUST_DOMAIN, YEAR, id,
        purpose, service_uri, usage,
    },
    keys::{Key, KeyKind, SignatureKind},
};

/// What our side must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The peer passes, as the identity that the case names.
    Accept,
    /// The peer is refused for this reason.
    Reject(RejectReason),
}

impl std::fmt::Display for Want {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Reject(reason) => write!(f, "reject {reason}"),
        }
    }
}

/// A chain that a peer presents, and by what it is judged.
pub struct Case {
    /// What the peer sends, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the peer's certificate.
    pub key: Arc<Key>,
    /// The roots as PEM texts.
    pub roots: Vec<String>,
    /// How many of the roots cannot be used and must be listed as such.
    pub ignored_roots: usize,
    /// What the operator allows.
    pub policy: PeerPolicy,
    /// The URI of an accepted peer.
    pub uri: String,
    /// The serial number of an accepted peer, where the row is about it.
    pub serial: Option<&'static str>,
}

/// How a row comes to its chain.
#[derive(Clone, Copy)]
pub enum Build {
    /// By this function.
    Chain(fn(&Mesh) -> Case),
    /// It is not about a chain: this function runs it.
    Elsewhere(&'static str),
}

/// One row of the table.
#[derive(Clone, Copy)]
pub struct Row {
    /// Its name in the specification.
    pub id: &'static str,
    /// The certificate in words.
    pub what: &'static str,
    /// What we say to it as a client of ours.
    pub inbound: Want,
    /// What we say to it as the server that we dialled.
    pub outbound: Want,
    /// How it is made.
    pub build: Build,
}

impl Row {
    /// The row's name and words.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.id, self.what)
    }
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.title())
    }
}

impl Case {
    /// A chain for `key` under these trusted roots.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, key: Arc<Key>, roots: &[&Authority]) -> Self {
        Self {
            chain,
            key,
            roots: roots.iter().map(|root| root.pem()).collect(),
            ignored_roots: 0,
            policy: PeerPolicy::default(),
            uri: service_uri("web"),
            serial: None,
        }
    }

    /// A leaf made after `spec` by `issuer`, sent with `others`.
    #[must_use]
    pub fn issued(spec: &Spec, issuer: &Authority, others: &[&Authority], roots: &[&Authority]) -> Self {
        let key = Arc::new(Key::generate(KeyKind::P256));
        let mut chain = vec![issuer.issue(spec, &key)];
        chain.extend(others.iter().map(|other| other.certificate.clone()));
        Self::new(chain, key, roots)
    }

    fn with_uri(mut self, uri: &str) -> Self {
        uri.clone_into(&mut self.uri);
        self
    }

    fn with_policy(mut self, change: impl FnOnce(&mut PeerPolicy)) -> Self {
        change(&mut self.policy);
        self
    }

    fn sending(mut self, certificate: &CertificateDer<'static>) -> Self {
        self.chain.push(certificate.clone());
        self
    }
}

/// A leaf made after `spec` by the root.
fn leaf(mesh: &Mesh, spec: &Spec) -> Case {
    Case::issued(spec, &mesh.root, &[], &[&mesh.root])
}

/// A good leaf under a CA of this spec, which the root issued and the peer sends.
fn under(mesh: &Mesh, ca: &Spec) -> Case {
    let ca = mesh.root.intermediate(ca);
    Case::issued(&mesh.leaf(), &ca, &[&ca], &[&mesh.root])
}

/// A leaf of this URI.
fn named(mesh: &Mesh, uri: &str) -> Case {
    leaf(mesh, &mesh.leaf().uri(uri)).with_uri(uri)
}

/// A leaf of these alternative names.
fn names(mesh: &Mesh, names: &[AltName<'_>]) -> Case {
    leaf(mesh, &mesh.leaf().with(Extension::alt_names(names)))
}

/// A leaf of this kind of key.
fn keyed(mesh: &Mesh, kind: KeyKind) -> Case {
    let key = Arc::new(Key::generate(kind));
    Case::new(vec![mesh.root.issue(&mesh.leaf(), &key)], key, &[&mesh.root])
}

/// A good leaf under a root of this kind that signs like this.
fn rooted(mesh: &Mesh, kind: KeyKind, signature: SignatureKind) -> Case {
    let root = Authority::root(&mesh.ca("User root").signed(signature), kind);
    Case::issued(&mesh.leaf().signed(signature), &root, &[], &[&root])
}

/// A leaf of the newest of two roots, the older of which signed the newer.
fn rotated(mesh: &Mesh, trusted: impl Fn(&Authority) -> Vec<String>) -> Case {
    let new = mesh.other_root("Consul CA 2");
    let cross = mesh.root.cross_sign(&mesh.ca("").valid(mesh.now - MINUTE, mesh.now + 7 * DAY), &new);
    let mut case = Case::issued(&mesh.leaf(), &new, &[], &[]).sending(&cross);
    case.roots = trusted(&new);
    case
}

/// A chain of `count` intermediates.
fn deep(mesh: &Mesh, count: usize) -> Case {
    let mut cas = vec![mesh.intermediate("Intermediate 0")];
    for index in 1..count {
        let next = cas[0].intermediate(&mesh.ca(&format!("Intermediate {index}")));
        cas.insert(0, next);
    }
    Case::issued(&mesh.leaf(), &cas[0], &cas.iter().collect::<Vec<_>>(), &[&mesh.root])
}

/// The chain of a secondary datacenter: its intermediates have empty subjects, so issuers are empty, too.
fn secondary(mesh: &Mesh) -> Case {
    let upper = mesh.root.intermediate(&mesh.ca(""));
    let lower = upper.intermediate(&mesh.ca(""));
    Case::issued(&mesh.leaf(), &lower, &[&lower, &upper], &[&mesh.root])
}

/// Changes bytes of the first certificate.
fn patched(mut case: Case, patch: impl FnOnce(&mut Vec<u8>)) -> Case {
    let mut der = case.chain[0].to_vec();
    patch(&mut der);
    case.chain[0] = der.into();
    case
}

/// Nine CAs of one name with keys of their own, each issued by that name.
fn same_named(mesh: &Mesh, name: &str) -> Case {
    let cas: Vec<Authority> = (0..9).map(|_| mesh.other_root(name)).collect();
    Case::issued(&mesh.leaf().plain(), &cas[0], &cas.iter().collect::<Vec<_>>(), &[&mesh.root])
}

/// Three layers of three CAs, each of the names of its layer, with the last issued by `top`.
fn layered(mesh: &Mesh, top: &str) -> Case {
    let layer = |name: &str, issuer: &Authority| -> Vec<Authority> {
        (0..3).map(|_| issuer.intermediate(&mesh.ca(name).plain())).collect()
    };
    let third = layer("Layer 3", &mesh.other_root(top));
    let second = layer("Layer 2", &third[0]);
    let first = layer("Layer 1", &second[0]);
    let all: Vec<&Authority> = first.iter().chain(&second).chain(&third).collect();
    Case::issued(&mesh.leaf().plain(), &first[0], &all, &[&mesh.root])
}

macro_rules! rows {
    ($($id:literal $what:literal: $inbound:expr, $outbound:expr => $build:expr;)*) => {
        vec![$(Row { id: $id, what: $what, inbound: $inbound, outbound: $outbound, build: $build },)*]
    };
}

/// The table.
#[must_use]
pub fn rows() -> Vec<Row> {
    use Build::{Chain, Elsewhere};
    use RejectReason as R;
    use Want::{Accept, Reject};
    let mut rows = rows! {
        "P01" "P-256 leaf": Accept, Accept => Chain(|m| keyed(m, KeyKind::P256));
        "P02" "RSA-2048 leaf": Accept, Accept => Chain(|m| keyed(m, KeyKind::Rsa2048));
        "P03" "P-384 leaf": Accept, Accept => Chain(|m| keyed(m, KeyKind::P384));
        "P04" "one intermediate": Accept, Accept => Chain(|m| under(m, &m.ca("Intermediate")));
        "P05" "intermediate with an empty subject": Accept, Accept => Chain(|m| under(m, &m.ca("")));
        "P06" "new root cross-signed, old root trusted": Accept, Accept => Chain(|m| rotated(m, |_| vec![m.root.pem()]));
        "P07" "new root cross-signed, both trusted": Accept, Accept => Chain(|m| {
            rotated(m, |new| vec![m.root.pem(), new.pem()])
        });
        "P08" "root sent as well": Accept, Accept => Chain(|m| leaf(m, &m.leaf()).sending(&m.root.certificate));
        "P09" "serial with its top bit set": Accept, Accept => Chain(|m| {
            let mut case = leaf(m, &m.leaf().serial(&[0x00, 0xf3, 0x0d, 0x00, 0x7f]));
            case.serial = Some("f3:0d:00:7f");
            case
        });
        "P10" "empty subject, critical names": Accept, Accept => Chain(|m| {
            let mut spec = m.leaf().subject("");
            spec.extensions.iter_mut().filter(|e| e.id == id::ALT_NAMES).for_each(|e| e.critical = true);
            leaf(m, &spec)
        });
        "P11" "URI name constraint permitting the domain":
            Reject(R::UriNameConstraintUnsupported), Reject(R::UriNameConstraintUnsupported) => Chain(|m| {
            under(m, &m.ca("Constrained").with(Extension::name_constraints(&[AltName::Uri(TRUST_DOMAIN.as_bytes())], &[])))
        });
        "P13" "leaf under an RSA-2048 root": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::RsaByHand(2048), SignatureKind::RsaSha256)
        });
        "P14" "P-521 leaf": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            keyed(m, KeyKind::P521)
        });
        "P15" "Ed25519 leaf": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            keyed(m, KeyKind::Ed25519)
        });
        "P16" "CA without key usage": Accept, Accept => Chain(|m| under(m, &m.ca("Intermediate").without(id::KEY_USAGE)));
        "P17" "cross certificate of the same name, other key id": Accept, Accept => Chain(|m| {
            let new = m.other_root("Consul CA 1");
            let cross = m.root.cross_sign(&m.ca("").with(Extension::authority_key(&[7; 20])), &new);
            Case::issued(&m.leaf(), &new, &[], &[&m.root]).sending(&cross)
        });
        "P18" "expired cross certificate, not needed": Accept, Accept => Chain(|m| {
            let new = m.other_root("Consul CA 2");
            let cross = m.root.cross_sign(&m.ca("").valid(m.now - 9 * DAY, m.now - DAY), &new);
            Case::issued(&m.leaf(), &new, &[], &[&m.root, &new]).sending(&cross)
        });

        "N01" "no alternative names": Reject(R::NoUri), Reject(R::NoUri) => Chain(|m| {
            leaf(m, &m.leaf().without(id::ALT_NAMES))
        });
        "N02" "two URIs": Reject(R::ManyUris), Reject(R::ManyUris) => Chain(|m| {
            names(m, &[AltName::Uri(service_uri("web").as_bytes()), AltName::Uri(service_uri("admin").as_bytes())])
        });
        "N03" "an https URI before ours": Reject(R::ManyUris), Reject(R::ManyUris) => Chain(|m| {
            names(m, &[AltName::Uri(b"https://example.com/"), AltName::Uri(service_uri("web").as_bytes())])
        });
        "N04" "identity as DNS name": Reject(R::NoUri), Reject(R::NoUri) => Chain(|m| {
            names(m, &[AltName::Dns(&service_uri("web"))])
        });
        "N06" "identity in the common name": Reject(R::NoUri), Reject(R::NoUri) => Chain(|m| {
            leaf(m, &m.leaf().subject(&service_uri("web")).without(id::ALT_NAMES))
        });
        "N07" "foreign trust domain": Reject(R::TrustDomain), Reject(R::TrustDomain) => Chain(|m| {
            named(m, &format!("spiffe://{OTHER_TRUST_DOMAIN}/ns/default/dc/dc1/svc/web"))
        });
        "N08" "scheme in capitals": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web").replace("spiffe", "SPIFFE"))
        });
        "N10" "service in capitals": Accept, Reject(R::WrongService) => Chain(|m| named(m, &service_uri("WEB")));
        "N11" "percent-encoded name": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("%77eb"))
        });
        "N13" "slash at the end": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web/"))
        });
        "N14" "query": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| named(m, &service_uri("web?a=1")));
        "N15" "fragment": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| named(m, &service_uri("web#f")));
        "N16" "user information": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web").replace("//", "//u@"))
        });
        "N18" "empty authority": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web").replace(TRUST_DOMAIN, ""))
        });
        "N22" "bytes outside ASCII": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            names(m, &[AltName::Uri(&[service_uri("w").as_bytes(), &[0xe9, b'b']].concat())])
        });
        "N23" "URI of 2049 bytes": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri(&"w".repeat(2049 - service_uri("").len())))
        });
        "N25" "agent": Reject(R::NotAService), Reject(R::NotAService) => Chain(|m| {
            named(m, &format!("spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/node-1"))
        });
        "N26" "mesh gateway": Reject(R::NotAService), Reject(R::NotAService) => Chain(|m| {
            named(m, &format!("spiffe://{TRUST_DOMAIN}/gateway/mesh/dc/dc1"))
        });
        "N27" "signing identity": Reject(R::NotAService), Reject(R::NotAService) => Chain(|m| {
            named(m, &format!("spiffe://{TRUST_DOMAIN}"))
        });
        "N28" "other namespace": Accept, Reject(R::WrongService) => Chain(|m| {
            named(m, &service_uri("web").replace("/ns/default", "/ns/other"))
        });
        "N29" "other datacenter": Accept, Reject(R::WrongService) => Chain(|m| {
            named(m, &service_uri("web").replace("/dc/dc1", "/dc/dc2"))
        });
        "N31" "alternative names twice": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            let mut spec = m.leaf();
            spec.extensions.push(Extension::alt_names(&[AltName::Uri(service_uri("web").as_bytes())]));
            leaf(m, &spec)
        });
        "N32" "empty alternative names": Reject(R::NoUri), Reject(R::NoUri) => Chain(|m| names(m, &[]));
        "N34" "CA certificate with CA usage as leaf": Reject(R::CaAsLeaf), Reject(R::CaAsLeaf) => Chain(|m| {
            let spec = m.leaf().with(Extension::basic_constraints(true, None)).with(Extension::key_usage(usage::CA));
            leaf(m, &spec)
        });
        "N35" "CA certificate with leaf usage as leaf": Reject(R::CaAsLeaf), Reject(R::CaAsLeaf) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::basic_constraints(true, None)))
        });
        "N36" "no basic constraints": Accept, Accept => Chain(|m| leaf(m, &m.leaf().without(id::BASIC_CONSTRAINTS)));
        "N37" "leaf that may sign certificates": Reject(R::KeyUsage), Reject(R::KeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::key_usage(usage::LEAF | usage::CERT_SIGN)))
        });
        "N39" "leaf that may not sign": Reject(R::KeyUsage), Reject(R::KeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::key_usage(usage::LEAF & !usage::DIGITAL_SIGNATURE)))
        });
        "N40" "no key usage": Reject(R::KeyUsage), Reject(R::KeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().without(id::KEY_USAGE))
        });
        "N41" "key usage not critical": Accept, Accept => Chain(|m| {
            let mut spec = m.leaf();
            spec.extensions.iter_mut().filter(|e| e.id == id::KEY_USAGE).for_each(|e| e.critical = false);
            leaf(m, &spec)
        });
        "N42" "for servers only": Reject(R::ExtendedKeyUsage), Accept => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::extended_key_usage(&[purpose::SERVER])))
        });
        "N43" "for clients only": Accept, Reject(R::ExtendedKeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::extended_key_usage(&[purpose::CLIENT])))
        });
        "N44" "for e-mail": Reject(R::ExtendedKeyUsage), Reject(R::ExtendedKeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::extended_key_usage(&[purpose::EMAIL])))
        });
        "N45" "for any purpose": Reject(R::ExtendedKeyUsage), Reject(R::ExtendedKeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::extended_key_usage(&[purpose::ANY])))
        });
        "N46" "no extended key usage": Accept, Accept => Chain(|m| leaf(m, &m.leaf().without(id::EXTENDED_KEY_USAGE)));
        "N47" "expired a second ago": Reject(R::Expired), Reject(R::Expired) => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now - DAY, m.now - 1))
        });
        "N48" "valid in an hour": Reject(R::NotYetValid), Reject(R::NotYetValid) => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now + HOUR, m.now + DAY))
        });
        "N49" "ends before it begins": Reject(R::Expired), Reject(R::Expired) => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now - HOUR, m.now - 2 * HOUR))
        });
        "N50" "expired intermediate": Reject(R::CaExpired), Reject(R::CaExpired) => Chain(|m| {
            under(m, &m.ca("Intermediate").valid(m.now - DAY, m.now - 1))
        });
        "N51" "expired root": Reject(R::CaExpired), Reject(R::CaExpired) => Chain(|m| {
            let root = Authority::root(&m.ca("Old root").valid(m.now - YEAR, m.now - 1), KeyKind::P256);
            Case::issued(&m.leaf(), &root, &[], &[&root])
        });
        "N52" "self-signed leaf": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            let own = Authority::root(&m.leaf(), KeyKind::P256);
            Case::new(vec![own.certificate], own.key, &[&m.root])
        });
        "N53" "root of the same name, other key": Reject(R::BadSignature), Reject(R::BadSignature) => Chain(|m| {
            let fake = m.other_root("Consul CA 1");
            Case::issued(&m.leaf(), &fake, &[&fake], &[&m.root])
        });
        "N54" "untrusted CA": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            let other = m.other_root("Somebody's CA");
            Case::issued(&m.leaf(), &other, &[&other], &[&m.root])
        });
        "N55" "intermediate that is no CA": Reject(R::NotACa), Reject(R::NotACa) => Chain(|m| {
            under(m, &m.ca("Intermediate").with(Extension::basic_constraints(false, None)))
        });
        "N57" "intermediate without basic constraints": Reject(R::NotACa), Reject(R::NotACa) => Chain(|m| {
            under(m, &m.ca("Intermediate").without(id::BASIC_CONSTRAINTS))
        });
        "N58" "path length 0 exceeded": Reject(R::PathLength), Reject(R::PathLength) => Chain(|m| {
            let upper = m.root.intermediate(&m.ca("Upper").with(Extension::basic_constraints(true, Some(0))));
            let lower = upper.intermediate(&m.ca("Lower"));
            Case::issued(&m.leaf(), &lower, &[&lower, &upper], &[&m.root])
        });
        "N59" "intermediate not sent": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            Case::issued(&m.leaf(), &m.intermediate("Intermediate"), &[], &[&m.root])
        });
        "N60" "leaf issued by a service": Reject(R::NotACa), Reject(R::NotACa) => Chain(|m| {
            let service = m.root.intermediate(&m.leaf_of("evil"));
            Case::issued(&m.leaf(), &service, &[&service], &[&m.root])
        });
        "N61" "intermediate for e-mail": Reject(R::ExtendedKeyUsage), Reject(R::ExtendedKeyUsage) => Chain(|m| {
            under(m, &m.ca("Intermediate").with(Extension::extended_key_usage(&[purpose::EMAIL])))
        });
        "N62" "12 intermediates": Reject(R::ChainTooLarge), Reject(R::ChainTooLarge) => Chain(|m| deep(m, 12));
        "N64" "URI name constraint permitting another domain":
            Reject(R::UriNameConstraintUnsupported), Reject(R::UriNameConstraintUnsupported) => Chain(|m| {
            let constraint = Extension::name_constraints(&[AltName::Uri(OTHER_TRUST_DOMAIN.as_bytes())], &[]);
            under(m, &m.ca("Constrained").with(constraint))
        });
        "N65" "URI name constraint excluding the domain":
            Reject(R::UriNameConstraintUnsupported), Reject(R::UriNameConstraintUnsupported) => Chain(|m| {
            under(m, &m.ca("Constrained").with(Extension::name_constraints(&[], &[AltName::Uri(TRUST_DOMAIN.as_bytes())])))
        });
        "N66" "unknown critical extension": Reject(R::CriticalExtension), Reject(R::CriticalExtension) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::unknown(true)))
        });
        "N67" "unknown critical extension of a CA": Reject(R::CriticalExtension), Reject(R::CriticalExtension) => Chain(|m| {
            under(m, &m.ca("Intermediate").with(Extension::unknown(true)))
        });
        "N68" "RSA over SHA-1": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            rooted(m, KeyKind::RsaByHand(2048), SignatureKind::RsaSha1)
        });
        "N69" "RSA over MD5": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            rooted(m, KeyKind::RsaByHand(2048), SignatureKind::RsaMd5)
        });
        "N70" "ECDSA over SHA-1": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            rooted(m, KeyKind::P256, SignatureKind::EcdsaSha1)
        });
        "N71" "RSA-1024 leaf": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            keyed(m, KeyKind::RsaByHand(1024))
        });
        "N72" "RSA-1024 root": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            let mut case = rooted(m, KeyKind::RsaByHand(1024), SignatureKind::RsaSha256);
            case.ignored_roots = 1;
            case
        });
        "N73" "P-224 leaf": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            keyed(m, KeyKind::P224)
        });
        "N74" "secp256k1 leaf": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            keyed(m, KeyKind::Secp256k1)
        });
        "N75" "damaged signature": Reject(R::BadSignature), Reject(R::BadSignature) => Chain(|m| {
            patched(leaf(m, &m.leaf()), |der| if let Some(last) = der.last_mut() { *last ^= 1 })
        });
        "N76" "two algorithms": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            let mut spec = m.leaf();
            spec.inner_algorithm = Some(SignatureKind::EcdsaSha384);
            leaf(m, &spec)
        });
        "N78" "serial 0": Reject(R::BadSerial), Reject(R::BadSerial) => Chain(|m| leaf(m, &m.leaf().serial(&[0])));
        "N81" "wrong CertificateVerify": Reject(R::BadMessage), Reject(R::BadMessage) =>
            Elsewhere("handshake::run");
        "N83" "truncated certificate": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            patched(leaf(m, &m.leaf()), |der| der.truncate(der.len() - 10))
        });
        "N84" "empty certificate list": Reject(R::NoCertificate), Reject(R::NoCertificate) =>
            Elsewhere("handshake::run");
        "N85" "intermediate as the peer": Reject(R::CaAsLeaf), Reject(R::CaAsLeaf) => Chain(|m| {
            let ca = m.intermediate("Intermediate");
            Case::new(vec![ca.certificate], ca.key, &[&m.root])
        });
        "N87" "valid in five minutes": Reject(R::NotYetValid), Reject(R::NotYetValid) => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now + 5 * MINUTE, m.now + DAY))
        });
        "N89" "Certificate message of 450 KB": Reject(R::BadMessage), Reject(R::BadMessage) =>
            Elsewhere("handshake::run");
        "N90a" "nine CAs of one name, no root": Reject(R::PathTooComplex), Reject(R::PathTooComplex) => Chain(|m| {
            same_named(m, "Nobody's CA")
        });
        "N90b" "nine CAs named like the root": Reject(R::PathTooComplex), Reject(R::PathTooComplex) => Chain(|m| {
            same_named(m, "Consul CA 1")
        });
        "N90c" "three layers of three, no root": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            layered(m, "Nobody's CA")
        });
        "N90d" "three layers of three, named like the root": Reject(R::PathTooComplex), Reject(R::PathTooComplex) => Chain(|m| {
            layered(m, "Consul CA 1")
        });
        "N91" "RSA-8192 leaf": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            keyed(m, KeyKind::RsaByHand(8192))
        });
        "N92" "empty subject, names not critical": Accept, Accept => Chain(|m| leaf(m, &m.leaf().subject("")));
        "N93" "valid to the end of 9999": Accept, Accept => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now - MINUTE, 253_402_300_799))
        });
        "N94" "valid for 40 years": Accept, Accept => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now - MINUTE, m.now + 40 * YEAR))
        });
        "N95" "resumption": Reject(R::Resumed), Reject(R::Resumed) => Elsewhere("session::verdicts");
        "N96" "another certificate after the handshake": Reject(R::SecondCertificate), Reject(R::SecondCertificate) =>
            Elsewhere("session::verdicts");
    };
    rows.extend(further_rows());
    rows
}

/// Further examples of the rules.
fn further_rows() -> Vec<Row> {
    use Build::Chain;
    use RejectReason as R;
    use Want::{Accept, Reject};
    rows! {
        "A01" "P-384 root signing with SHA-256": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::P384, SignatureKind::EcdsaSha256)
        });
        "A02" "P-521 root signing with SHA-256": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::P521, SignatureKind::EcdsaSha256)
        });
        "A03" "P-384 root signing with SHA-384": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::P384, SignatureKind::EcdsaSha384)
        });
        "A04" "P-521 root signing with SHA-512": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::P521, SignatureKind::EcdsaSha512)
        });
        "A05" "P-256 root signing with SHA-512": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::P256, SignatureKind::EcdsaSha512)
        });
        "A06" "RSA-4096 root signing with SHA-256": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::RsaByHand(4096), SignatureKind::RsaSha256)
        });
        "A07" "RSA-8192 root signing with SHA-512": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::RsaByHand(8192), SignatureKind::RsaSha512)
        });
        "A08" "RSA root signing with PSS": Accept, Accept => Chain(|m| {
            rooted(m, KeyKind::Rsa2048, SignatureKind::RsaPssSha256)
        });
        "A09" "RSA-8192 intermediate": Reject(R::UnsupportedAlgorithm), Reject(R::UnsupportedAlgorithm) => Chain(|m| {
            let ca = m.root.intermediate_with(&m.ca("Large"), Arc::new(Key::generate(KeyKind::RsaByHand(8192))));
            Case::issued(&m.leaf(), &ca, &[&ca], &[&m.root])
        });
        "A10" "P-384 intermediate under a P-256 root": Accept, Accept => Chain(|m| {
            let ca = m.root.intermediate_with(&m.ca("Curved"), Arc::new(Key::generate(KeyKind::P384)));
            Case::issued(&m.leaf(), &ca, &[&ca], &[&m.root])
        });
        "A11" "Ed25519 root": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            let mut case = rooted(m, KeyKind::Ed25519, SignatureKind::Ed25519);
            case.ignored_roots = 1;
            case
        });
        "A12" "secondary datacenter, nearest issuer first": Accept, Accept => Chain(secondary);
        "A13" "secondary datacenter, nearest issuer last": Accept, Accept => Chain(|m| {
            let mut case = secondary(m);
            case.chain.swap(1, 2);
            case
        });
        "A14" "every certificate twice": Accept, Accept => Chain(|m| {
            let mut case = secondary(m);
            case.chain.extend_from_within(..);
            case
        });
        "A15" "an unrelated CA sent as well": Accept, Accept => Chain(|m| {
            let other = m.other_root("Somebody's CA");
            let ca = m.intermediate("Intermediate");
            Case::issued(&m.leaf(), &ca, &[&other, &ca], &[&m.root])
        });
        "A16" "four roots of one name with key ids": Accept, Accept => Chain(|m| {
            let twins: Vec<Authority> = (0..4).map(|_| m.other_root("Twin")).collect();
            Case::issued(&m.leaf(), &twins[3], &[], &twins.iter().collect::<Vec<_>>())
        });
        "A17" "four roots of one name without key ids": Accept, Accept => Chain(|m| {
            let root = || Authority::root(&m.ca("Twin").plain(), KeyKind::P256);
            let twins: Vec<Authority> = (0..4).map(|_| root()).collect();
            Case::issued(&m.leaf().plain(), &twins[3], &[], &twins.iter().collect::<Vec<_>>())
        });
        "A18" "twelve roots of one name with key ids": Accept, Accept => Chain(|m| {
            let twins: Vec<Authority> = (0..12).map(|_| m.other_root("Twin")).collect();
            Case::issued(&m.leaf(), &twins[11], &[], &twins.iter().collect::<Vec<_>>())
        });
        "A19" "old leaf, both roots trusted": Accept, Accept => Chain(|m| {
            let new = m.other_root("Consul CA 2");
            Case::issued(&m.leaf(), &m.root, &[], &[&new, &m.root])
        });
        "A20" "old leaf, old root removed": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            Case::issued(&m.leaf(), &m.root, &[], &[&m.other_root("Consul CA 2")])
        });
        "A21" "new leaf cross-signed, new root alone trusted": Accept, Accept => Chain(|m| {
            rotated(m, |new| vec![new.pem()])
        });
        "A22" "two rotations ahead of us": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            let (second, third) = (m.other_root("Consul CA 2"), m.other_root("Consul CA 3"));
            let cross = second.cross_sign(&m.ca(""), &third);
            Case::issued(&m.leaf(), &third, &[], &[&m.root]).sending(&cross)
        });
        "A23" "roots that signed each other": Accept, Accept => Chain(|m| {
            let new = m.other_root("Consul CA 2");
            let (there, back) = (m.root.cross_sign(&m.ca(""), &new), new.cross_sign(&m.ca(""), &m.root));
            Case::issued(&m.leaf(), &new, &[&new], &[&m.root]).sending(&back).sending(&there)
        });
        "A24" "leaf whose issuer key id matches nothing": Accept, Accept => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::authority_key(&[9; 20])))
        });
        "A25" "no key ids anywhere": Accept, Accept => Chain(|m| {
            let root = Authority::root(&m.ca("Plain").plain(), KeyKind::P256);
            let ca = root.intermediate(&m.ca("Plain intermediate").plain());
            Case::issued(&m.leaf().plain(), &ca, &[&ca], &[&root])
        });
        "A26" "expired cross certificate that is needed": Reject(R::CaExpired), Reject(R::CaExpired) => Chain(|m| {
            let new = m.other_root("Consul CA 2");
            let cross = m.root.cross_sign(&m.ca("").valid(m.now - 9 * DAY, m.now - DAY), &new);
            Case::issued(&m.leaf(), &new, &[], &[&m.root]).sending(&cross)
        });
        "A27" "expired certificate of the trusted key beside it": Accept, Accept => Chain(|m| {
            let old = Authority::root_with(&m.ca("Consul CA 1").valid(m.now - YEAR, m.now - 1), m.root.key.clone());
            Case::issued(&m.leaf(), &m.root, &[&old], &[&old, &m.root])
        });
        "A28" "root valid in 30 seconds": Accept, Accept => Chain(|m| {
            let root = Authority::root(&m.ca("Young").valid(m.now + 30, m.now + YEAR), KeyKind::P256);
            Case::issued(&m.leaf(), &root, &[], &[&root])
        });
        "A29" "root valid in two minutes": Reject(R::CaNotYetValid), Reject(R::CaNotYetValid) => Chain(|m| {
            let root = Authority::root(&m.ca("Young").valid(m.now + 2 * MINUTE, m.now + YEAR), KeyKind::P256);
            Case::issued(&m.leaf(), &root, &[], &[&root])
        });
        "A30" "intermediate valid in two minutes": Reject(R::CaNotYetValid), Reject(R::CaNotYetValid) => Chain(|m| {
            under(m, &m.ca("Young").valid(m.now + 2 * MINUTE, m.now + YEAR))
        });
        "A31" "leaf valid in a minute, skew of two allowed": Accept, Accept => Chain(|m| {
            let case = leaf(m, &m.leaf().valid(m.now + MINUTE, m.now + DAY));
            case.with_policy(|policy| policy.leaf_not_before_skew = std::time::Duration::from_secs(120))
        });
        "A32" "leaf valid in five minutes, skew of an hour asked": Reject(R::NotYetValid), Reject(R::NotYetValid) => Chain(|m| {
            let case = leaf(m, &m.leaf().valid(m.now + 5 * MINUTE, m.now + DAY));
            case.with_policy(|policy| policy.leaf_not_before_skew = std::time::Duration::from_secs(3600))
        });
        "A33" "X.509 v1": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            let mut spec = m.leaf();
            spec.version = 0;
            leaf(m, &spec)
        });
        "A34" "X.509 v1 intermediate": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            let mut spec = m.ca("Old");
            spec.version = 0;
            under(m, &spec)
        });
        "A35" "four intermediates": Accept, Accept => Chain(|m| deep(m, 4));
        "A36" "five intermediates": Reject(R::ChainTooLarge), Reject(R::ChainTooLarge) => Chain(|m| deep(m, 5));
        "A37" "ten certificates": Accept, Accept => Chain(|m| {
            let mut case = leaf(m, &m.leaf());
            for index in 0..9 {
                case = case.sending(&m.other_root(&format!("Somebody's CA {index}")).certificate);
            }
            case
        });
        "A38" "eleven certificates": Reject(R::ChainTooLarge), Reject(R::ChainTooLarge) => Chain(|m| {
            let mut case = leaf(m, &m.leaf());
            for index in 0..10 {
                case = case.sending(&m.other_root(&format!("Somebody's CA {index}")).certificate);
            }
            case
        });
        "A39" "17 KiB in two certificates": Reject(R::ChainTooLarge), Reject(R::ChainTooLarge) => Chain(|m| {
            let large = Extension { id: id::UNKNOWN, critical: false, value: vec![0; 8 * 1024] };
            let ca = m.root.intermediate(&m.ca("Large").with(large.clone()));
            Case::issued(&m.leaf().with(large), &ca, &[&ca], &[&m.root])
        });
        "A40" "negative serial": Reject(R::BadSerial), Reject(R::BadSerial) => Chain(|m| {
            leaf(m, &m.leaf().serial(&[0xf3, 0x0d]))
        });
        "A41" "serial of 20 bytes": Accept, Accept => Chain(|m| leaf(m, &m.leaf().serial(&[0x7f; 20])));
        "A42" "serial of 21 bytes": Reject(R::BadSerial), Reject(R::BadSerial) => Chain(|m| {
            leaf(m, &m.leaf().serial(&[0x7f; 21]))
        });
        "A43" "leaf that may sign revocation lists": Reject(R::KeyUsage), Reject(R::KeyUsage) => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::key_usage(usage::LEAF | usage::CRL_SIGN)))
        });
        "A44" "key usage twice": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            let mut spec = m.leaf();
            spec.extensions.push(Extension::key_usage(usage::LEAF));
            leaf(m, &spec)
        });
        "A45" "bytes behind the certificate": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            patched(leaf(m, &m.leaf()), |der| der.push(0))
        });
        "A46" "junk beside the leaf": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            leaf(m, &m.leaf()).sending(&CertificateDer::from(vec![0x30, 0x03, 0x01, 0x02, 0x03]))
        });
        "A47" "port in the authority": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web").replace(".consul", ".consul:443"))
        });
        "A48" "trust domain in capitals": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web").replace(".consul", ".CONSUL"))
        });
        "A49" "dots as path segments": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web").replace("/ns/default", "/ns/../ns/default"))
        });
        "A50" "other partition": Accept, Reject(R::WrongService) => Chain(|m| {
            named(m, &service_uri("web").replace("/ns/", "/ap/team/ns/"))
        });
        "A51" "default partition, written": Accept, Accept => Chain(|m| {
            named(m, &service_uri("web").replace("/ns/", "/ap/Default/ns/"))
        });
        "A52" "other service": Accept, Reject(R::WrongService) => Chain(|m| named(m, &service_uri("admin")));
        "A53" "URI among names of other kinds": Accept, Accept => Chain(|m| {
            let uri = service_uri("web");
            let names = [AltName::Dns("web.example"), AltName::Uri(uri.as_bytes()), AltName::Ip([127, 0, 0, 1])];
            leaf(m, &m.leaf().with(Extension::alt_names(&names)))
        });
        "A54" "URI of 2048 bytes": Accept, Reject(R::WrongService) => Chain(|m| {
            named(m, &service_uri(&"w".repeat(2048 - service_uri("").len())))
        });
        "A55" "NUL in the URI": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web\0admin"))
        });
        "A56" "foreign trust domain that the operator allows": Accept, Reject(R::WrongService) => Chain(|m| {
            named(m, &format!("spiffe://{OTHER_TRUST_DOMAIN}/ns/default/dc/dc1/svc/web")).with_policy(|policy| {
                policy.extra_trust_domains.extend(TrustDomain::parse(OTHER_TRUST_DOMAIN));
            })
        });
        "A57" "other datacenter that the operator refuses": Reject(R::RemoteDatacenter), Reject(R::WrongService) => Chain(|m| {
            named(m, &service_uri("web").replace("/dc/dc1", "/dc/dc2"))
                .with_policy(|policy| policy.allow_remote_datacenters = false)
        });
        "A58" "longer than the operator allows": Reject(R::TtlTooLong), Reject(R::TtlTooLong) => Chain(|m| {
            leaf(m, &m.leaf()).with_policy(|policy| policy.max_leaf_ttl = Some(std::time::Duration::from_secs(86_400)))
        });
        "A59" "CAs with their SPIFFE ID, which is asked for": Accept, Accept => Chain(|m| {
            under(m, &m.ca("Intermediate")).with_policy(|policy| policy.strict_ca_spiffe = true)
        });
        "A60" "intermediate without the SPIFFE ID asked for": Reject(R::CaIdentity), Reject(R::CaIdentity) => Chain(|m| {
            under(m, &m.ca("Intermediate").without(id::ALT_NAMES)).with_policy(|policy| policy.strict_ca_spiffe = true)
        });
        "A61" "CA without SPIFFE ID, which nobody asks for": Accept, Accept => Chain(|m| {
            under(m, &m.ca("Intermediate").without(id::ALT_NAMES))
        });
        "A62" "percent-encoded name that the operator allows": Accept, Reject(R::WrongService) => Chain(|m| {
            named(m, &service_uri("%77eb")).with_policy(|policy| policy.grammar = Grammar::PercentEncoding)
        });
        "A63" "encoded slash, encoding allowed": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("a%2Fb")).with_policy(|policy| policy.grammar = Grammar::PercentEncoding)
        });
        "A64" "encoded question mark, encoding allowed": Reject(R::BadSpiffeId), Reject(R::BadSpiffeId) => Chain(|m| {
            named(m, &service_uri("web%3Fx")).with_policy(|policy| policy.grammar = Grammar::PercentEncoding)
        });
        "A65" "CA that may not sign certificates": Reject(R::KeyUsage), Reject(R::KeyUsage) => Chain(|m| {
            under(m, &m.ca("Intermediate").with(Extension::key_usage(usage::DIGITAL_SIGNATURE)))
        });
        "A66" "CA whose key usage is not critical": Accept, Accept => Chain(|m| {
            let mut spec = m.ca("Intermediate");
            spec.extensions.iter_mut().filter(|e| e.id == id::KEY_USAGE).for_each(|e| e.critical = false);
            under(m, &spec)
        });
        "A67" "path length 0 kept": Accept, Accept => Chain(|m| {
            under(m, &m.ca("Intermediate").with(Extension::basic_constraints(true, Some(0))))
        });
        "A68" "DNS name outside a name constraint": Reject(R::NameConstraint), Reject(R::NameConstraint) => Chain(|m| {
            let constraint = Extension::name_constraints(&[AltName::Dns("inside.example")], &[]);
            let ca = m.root.intermediate(&m.ca("Constrained").with(constraint));
            let uri = service_uri("web");
            let names = [AltName::Dns("web.outside.example"), AltName::Uri(uri.as_bytes())];
            Case::issued(&m.leaf().with(Extension::alt_names(&names)), &ca, &[&ca], &[&m.root])
        });
        "A69" "URI name constraint of a root":
            Reject(R::UriNameConstraintUnsupported), Reject(R::UriNameConstraintUnsupported) => Chain(|m| {
            let constraint = Extension::name_constraints(&[AltName::Uri(TRUST_DOMAIN.as_bytes())], &[]);
            let root = Authority::root(&m.ca("Constrained root").with(constraint), KeyKind::P256);
            Case::issued(&m.leaf(), &root, &[], &[&root])
        });
        "A70" "unknown extension, not critical": Accept, Accept => Chain(|m| {
            leaf(m, &m.leaf().with(Extension::unknown(false)))
        });
        "A71" "root with an empty name": Accept, Accept => Chain(|m| {
            let root = m.other_root("");
            Case::issued(&m.leaf(), &root, &[], &[&root])
        });
        "A72" "valid from this second to this second": Accept, Accept => Chain(|m| {
            leaf(m, &m.leaf().valid(m.now, m.now))
        });
        "A73" "damaged signature of an intermediate": Reject(R::BadSignature), Reject(R::BadSignature) => Chain(|m| {
            let mut case = under(m, &m.ca("Intermediate"));
            let mut der = case.chain[1].to_vec();
            if let Some(last) = der.last_mut() { *last ^= 1 }
            case.chain[1] = der.into();
            case
        });
        "A74" "leaf of another mesh with the same trust domain": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            let other = m.other_root("Consul CA of a twin");
            let ca = other.intermediate(&m.ca("Intermediate"));
            Case::issued(&m.leaf(), &ca, &[&ca, &other], &[&m.root])
        });
        "A75" "server certificate that names another server first": Reject(R::UnknownIssuer), Reject(R::UnknownIssuer) => Chain(|m| {
            // The chain begins with a good leaf of somebody else's mesh and carries ours behind it: the first counts.
            let other = m.other_root("Somebody's CA");
            let good = m.root.issue(&m.leaf(), &Key::generate(KeyKind::P256));
            Case::issued(&m.leaf(), &other, &[], &[&m.root]).sending(&good)
        });
        "A76" "unusable root beside the good one": Accept, Accept => Chain(|m| {
            let mut case = leaf(m, &m.leaf());
            case.roots.insert(0, Authority::root(&m.ca("Weak"), KeyKind::RsaByHand(1024)).pem());
            case.roots.insert(1, "no certificate".to_owned());
            case.ignored_roots = 2;
            case
        });
        "A77" "URI under a constructed tag": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            names(m, &[AltName::Tagged(0xa6, service_uri("web").as_bytes())])
        });
        "A78" "URI under an application's tag": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            names(m, &[AltName::Tagged(0x46, service_uri("web").as_bytes())])
        });
        "A79" "a URI and another under a private tag": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            let (ours, other) = (service_uri("web"), service_uri("admin"));
            names(m, &[AltName::Uri(ours.as_bytes()), AltName::Tagged(0xc6, other.as_bytes())])
        });
        "A80" "CA whose serial has no bytes": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            under(m, &m.ca("Intermediate").serial(&[]))
        });
        "A81" "a length in more bytes than DER allows": Reject(R::Malformed), Reject(R::Malformed) => Chain(|m| {
            // Libraries that parse leniently and write the certificate anew would hand on a correct one.
            patched(leaf(m, &m.leaf()), |der| {
                der[1] = 0x83;
                der.insert(2, 0);
            })
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let ids: BTreeSet<&str> = rows().iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), rows().len());
    }
}
