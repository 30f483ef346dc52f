//! What we hold of the mesh: our leaf, the roots, and the pair of the newest good ones.

use std::{fmt, sync::Arc, time::Duration};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    identity::{Grammar, SpiffeId, SpiffeService, TrustDomain},
    verify::{GoodSignatures, MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, RejectReason, Serial, single_uri},
};

/// The most roots that are taken from one list.
pub const MAX_ROOTS: usize = 128;

/// Our certificate chain as the agent gave it, with its key.
pub struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    identity: Arc<SpiffeService>,
    serial: Serial,
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Leaf {
    /// Parses the PEM texts of an agent's answer: the leaf first in `certificates`, then its issuers in any order;
    /// `key` as SEC1, PKCS#8 or PKCS#1.
    ///
    /// Whether the key matches is for the backend to say ([`crate::TlsBackend::check_key`]), whether the chain is
    /// good for [`crate::rotation`].
    ///
    /// # Errors
    /// [`LeafError`] naming what is wrong with the texts.
    pub fn from_pem(certificates: &str, key: &str, grammar: Grammar) -> Result<Self, LeafError> {
        let chain = CertificateDer::pem_slice_iter(certificates.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| LeafError::CertificatePem(error.to_string()))?;
        // The key's own parser may quote what it read, so its words are not passed on.
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| LeafError::KeyPem)?;
        if chain.len() > MAX_CHAIN_CERTIFICATES || chain.iter().map(|c| c.len()).sum::<usize>() > MAX_CHAIN_BYTES {
            return Err(LeafError::TooLarge);
        }
        let first = chain.first().ok_or_else(|| LeafError::CertificatePem("no certificate in it".to_owned()))?;
        let (rest, leaf) = X509Certificate::from_der(first).map_err(|_| LeafError::Certificate)?;
        if !rest.is_empty() {
            return Err(LeafError::Certificate);
        }
        let uri = single_uri(&leaf).map_err(LeafError::Identity)?;
        let identity = match SpiffeId::parse(uri, grammar) {
            Ok(SpiffeId::Service(service)) => service,
            Ok(_) => return Err(LeafError::Identity(RejectReason::NotAService)),
            Err(_) => return Err(LeafError::Identity(RejectReason::BadSpiffeId)),
        };
        let serial = Serial::parse(leaf.raw_serial()).map_err(LeafError::Identity)?;
        let (not_before, not_after) = validity(&leaf);
        Ok(Self { identity: Arc::new(identity), serial, not_before, not_after, key, chain })
    }

    /// The chain exactly as the agent gave it, the leaf first; sent to peers as it is.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &Arc<SpiffeService> {
        &self.identity
    }

    /// The serial number.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The first moment at which the leaf is valid.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// The last moment at which the leaf is valid.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Whether the leaf is the same certificate as `other`.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

impl fmt::Debug for Leaf {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("identity", &self.identity.to_string())
            .field("serial", &self.serial)
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Leaf {
    /// Wipes the key's bytes.
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.key);
    }
}

/// What is wrong with a leaf's texts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// The certificates are no PEM.
    #[error("the certificates are not PEM: {0}")]
    CertificatePem(String),
    /// The key is no PEM of a kind that is known.
    #[error("the private key is not a PEM block of a known kind")]
    KeyPem,
    /// More certificates or bytes than any peer would take from us.
    #[error("more than {MAX_CHAIN_CERTIFICATES} certificates or {MAX_CHAIN_BYTES} bytes, which peers would refuse")]
    TooLarge,
    /// The first certificate is no X.509.
    #[error("the first certificate is not X.509")]
    Certificate,
    /// The certificate does not say who we are in a form that peers accept.
    #[error("peers would refuse its identity: {0}")]
    Identity(RejectReason),
}

/// A root of the mesh that can be an anchor.
#[derive(Clone)]
pub struct Root {
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) subject: Vec<u8>,
    pub(crate) key_id: Option<Vec<u8>>,
    pub(crate) serial: String,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl Root {
    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The serial number as a decimal number, as `SerialNumber` has it in Consul's lists of roots.
    ///
    /// Roots are not held to the rules for serials of leaves: what an authority calls itself is its own business.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The subject's key identifier in hexadecimal, as `SigningKeyID` has it there; `None` without one.
    #[must_use]
    pub fn key_id(&self) -> Option<String> {
        let id = self.key_id.as_deref()?;
        Some(id.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
    }

    /// The subject as text, such as `CN=pri-1181b9n.consul.ca.d8bf0c7e.consul`; empty where the certificate has none.
    #[must_use]
    pub fn subject(&self) -> String {
        X509Certificate::from_der(&self.der).map(|(_, root)| root.subject().to_string()).unwrap_or_default()
    }

    /// The first and the last moment at which the root is valid.
    #[must_use]
    pub fn validity(&self) -> (UnixTime, UnixTime) {
        (self.not_before, self.not_after)
    }
}

/// The roots of the mesh, active and inactive, as one list of the agent gave them.
#[derive(Clone)]
pub struct Roots {
    generation: u64,
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    ignored: Vec<String>,
    good_signatures: Arc<GoodSignatures>,
}

impl Roots {
    /// Parses a list of PEM texts, each of which may hold several certificates.
    ///
    /// An entry that cannot be an anchor is left out and listed in [`ignored`](Self::ignored); validity is judged at
    /// use, never here. A list in which nothing is usable is still a list: then nobody passes.
    ///
    /// # Errors
    /// [`RootsError`] for an empty list, a list beyond all measure, or a trust domain that cannot be one. Such a list
    /// replaces nothing.
    pub fn from_pem<'a>(
        generation: u64,
        trust_domain: &str,
        list: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RootsError> {
        let trust_domain = TrustDomain::parse(trust_domain).map_err(|_| RootsError::TrustDomain)?;
        let (mut roots, mut ignored, mut entries) = (Vec::new(), Vec::new(), 0usize);
        for (index, pem) in list.into_iter().enumerate() {
            entries += 1;
            let before = roots.len() + ignored.len();
            for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                if roots.len() >= MAX_ROOTS || entries > MAX_ROOTS {
                    return Err(RootsError::TooMany);
                }
                let root = match der {
                    Ok(der) => anchor(der),
                    Err(error) => Err(format!("not PEM: {error}")),
                };
                match root {
                    Ok(root) => roots.push(root),
                    Err(why) if ignored.len() < MAX_ROOTS => ignored.push(format!("root {index}: {why}")),
                    Err(_) => return Err(RootsError::TooMany),
                }
            }
            if roots.len() + ignored.len() == before && ignored.len() < MAX_ROOTS {
                ignored.push(format!("root {index}: no certificate in it"));
            }
        }
        if entries == 0 {
            return Err(RootsError::Empty);
        }
        Ok(Self { generation, trust_domain, roots, ignored, good_signatures: Arc::default() })
    }

    /// Counts up with each list that is taken over.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Signatures that are known to be good on paths to these roots.
    pub(crate) fn good_signatures(&self) -> &GoodSignatures {
        &self.good_signatures
    }

    /// The same roots as list number `generation`.
    #[must_use]
    pub fn with_generation(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// The trust domain of the mesh.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The usable roots.
    #[must_use]
    pub fn anchors(&self) -> &[Root] {
        &self.roots
    }

    /// What was left out and why, in words for the log and the status page.
    #[must_use]
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Whether the list says the same as `other`, whatever its number.
    #[must_use]
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.ignored == other.ignored
            && self.roots.len() == other.roots.len()
            && self.roots.iter().zip(&other.roots).all(|(a, b)| a.der == b.der)
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roots")
            .field("generation", &self.generation)
            .field("trust_domain", &self.trust_domain.as_str())
            .field("anchors", &self.roots.len())
            .field("ignored", &self.ignored)
            .finish()
    }
}

/// Why a list of roots is refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// There is nothing in it: the certificate authority has not started yet.
    #[error("the list of roots is empty")]
    Empty,
    /// More than [`MAX_ROOTS`] certificates.
    #[error("the list holds more than {MAX_ROOTS} roots")]
    TooMany,
    /// The trust domain is none.
    #[error("the trust domain is not a legal one")]
    TrustDomain,
}

/// The newest good leaf and the newest good roots, as one value.
///
/// The two are kept apart until here: a new list of roots counts at once for the judging of peers, even while our
/// own leaf still chains to an older one.
#[derive(Clone, Debug)]
pub struct Material {
    /// Counts up with each change; logs, metrics and the status page name it.
    pub generation: u64,
    /// Our certificate and key.
    pub leaf: Arc<Leaf>,
    /// Whom we trust.
    pub roots: Arc<Roots>,
}

/// Reads a certificate as an anchor.
fn anchor(der: CertificateDer<'static>) -> Result<Root, String> {
    let (rest, certificate) = X509Certificate::from_der(&der).map_err(|_| "not an X.509 certificate".to_owned())?;
    if !rest.is_empty() {
        return Err("bytes behind the certificate".to_owned());
    }
    if let Some(why) = crate::verify::unusable_anchor_key(&certificate) {
        return Err(why);
    }
    let anchor =
        webpki::anchor_from_trusted_cert(&der).map_err(|error| format!("cannot be an anchor: {error}"))?.to_owned();
    let (not_before, not_after) = validity(&certificate);
    let subject = certificate.subject().as_raw().to_vec();
    let key_id = crate::verify::subject_key_id(&certificate).map(<[u8]>::to_vec);
    let serial = certificate.tbs_certificate.serial.to_string();
    Ok(Root { anchor, subject, key_id, serial, not_before, not_after, der })
}

/// The validity of a certificate; moments before 1970 count as 1970.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (UnixTime, UnixTime) {
    let moment = |time: x509_parser::time::ASN1Time| {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default()))
    };
    (moment(certificate.validity().not_before), moment(certificate.validity().not_after))
}
