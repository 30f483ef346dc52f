//! Chooses a path from the peer's certificate to a root, and counts what that costs.
//!
//! webpki searches by itself, but its budgets are private and about seconds: nine CAs of one name, 3.5 KB, cost it
//! 130 ms. So the search is done here, under bounds, and webpki is handed one path at a time with no choice left.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    RejectReason, SignatureAlgorithms, rules,
    signature::{Budget, Counted},
};
use crate::{
    judgement::ExpectedPeer,
    material::{Root, Roots, validity},
};

/// The most intermediates on a path.
pub const MAX_INTERMEDIATES: usize = 4;

/// The most candidates for an issuer that one search looks at.
pub const MAX_PATH_STEPS: usize = 64;

/// The most whole paths whose signatures one search checks.
pub const MAX_CANDIDATE_PATHS: usize = 4;

/// Finds a good path and returns its CAs, the issuer of the leaf first and the root last.
pub(super) fn find<'c>(
    leaf: &X509Certificate<'_>,
    leaf_der: &CertificateDer<'_>,
    others: &'c [CertificateDer<'_>],
    expected: &ExpectedPeer,
    roots: &'c Roots,
    now: UnixTime,
    algorithms: &SignatureAlgorithms,
) -> Result<Vec<X509Certificate<'c>>, RejectReason> {
    let mut sent: Vec<Sent<'c>> = Vec::with_capacity(others.len());
    for der in others {
        if der.as_ref() == leaf_der.as_ref() || sent.iter().any(|known| known.der == der) {
            continue;
        }
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| RejectReason::Malformed)?;
        if !rest.is_empty() {
            return Err(RejectReason::Malformed);
        }
        sent.push(Sent { der, parsed });
    }
    let budget = Budget::new();
    let known = roots.good_signatures();
    let counted: Vec<Counted<'_>> =
        algorithms.all().iter().map(|algorithm| Counted { algorithm: *algorithm, budget: &budget, known }).collect();
    let mut search = Search {
        leaf,
        leaf_der,
        sent: &sent,
        roots: roots.anchors(),
        usage: expected.usage(),
        now,
        algorithms: counted.iter().map(|algorithm| algorithm as &dyn SignatureVerificationAlgorithm).collect(),
        budget: &budget,
        steps: 0,
        tried: 0,
        reason: None,
    };
    let mut path = Vec::with_capacity(MAX_INTERMEDIATES);
    let root = search.extend(&mut path)?.ok_or_else(|| search.reason.unwrap_or(RejectReason::UnknownIssuer))?;
    known.remember(budget.take_found());
    let mut cas = Vec::with_capacity(path.len() + 1);
    for der in path.iter().map(|index| sent[*index].der).chain([root.certificate()]) {
        cas.push(X509Certificate::from_der(der).map_err(|_| RejectReason::Malformed)?.1);
    }
    Ok(cas)
}

/// A CA certificate that the peer sent.
struct Sent<'c> {
    der: &'c CertificateDer<'c>,
    parsed: X509Certificate<'c>,
}

struct Search<'a, 'c> {
    leaf: &'a X509Certificate<'a>,
    leaf_der: &'a CertificateDer<'a>,
    sent: &'a [Sent<'c>],
    roots: &'c [Root],
    usage: webpki::KeyUsage,
    now: UnixTime,
    algorithms: Vec<&'a dyn SignatureVerificationAlgorithm>,
    budget: &'a Budget,
    /// Candidates looked at so far.
    steps: usize,
    /// Whole paths checked so far.
    tried: usize,
    /// Why the most promising path so far is no good.
    reason: Option<RejectReason>,
}

impl<'c> Search<'_, 'c> {
    /// Extends `path` (indices of intermediates, the leaf's issuer first) to a root, depth first.
    ///
    /// `Ok(None)` when there is none from here; an error when a bound is reached.
    fn extend(&mut self, path: &mut Vec<usize>) -> Result<Option<&'c Root>, RejectReason> {
        let sent = self.sent;
        let child = path.last().map_or(self.leaf, |last| &sent[*last].parsed);
        let (issuer, key_id) = (child.issuer().as_raw(), rules::authority_key_id(child));

        let roots = self.roots;
        let mut anchors: Vec<&'c Root> = Vec::new();
        for root in roots.iter().filter(|root| root.subject == issuer) {
            self.step()?;
            match rules::check_ca_validity(root.validity(), self.now) {
                Ok(()) => anchors.push(root),
                Err(reason) => self.note(reason),
            }
        }
        anchors.sort_by_key(|root| order(key_id, root.key_id.as_deref()));
        for root in anchors {
            if self.check(path, root)? {
                return Ok(Some(root));
            }
        }

        let mut issuers: Vec<usize> = Vec::new();
        for (index, candidate) in sent.iter().enumerate() {
            if candidate.parsed.subject().as_raw() != issuer || path.contains(&index) {
                continue;
            }
            self.step()?;
            let usable = rules::check_ca_validity(validity(&candidate.parsed), self.now)
                .and_then(|()| rules::check_intermediate(&candidate.parsed));
            match usable {
                Ok(()) => issuers.push(index),
                Err(reason) => self.note(reason),
            }
        }
        issuers.sort_by_key(|index| order(key_id, rules::subject_key_id(&sent[*index].parsed)));
        if path.len() == MAX_INTERMEDIATES {
            if !issuers.is_empty() {
                self.note(RejectReason::ChainTooLarge);
            }
            return Ok(None);
        }
        for index in issuers {
            path.push(index);
            if let Some(root) = self.extend(path)? {
                return Ok(Some(root));
            }
            path.pop();
        }
        Ok(None)
    }

    fn step(&mut self) -> Result<(), RejectReason> {
        self.steps += 1;
        if self.steps > MAX_PATH_STEPS { Err(RejectReason::PathTooComplex) } else { Ok(()) }
    }

    /// Keeps the reason of a whole path that failed before one of a mere candidate, and the first of each.
    fn note(&mut self, reason: RejectReason) {
        self.reason.get_or_insert(reason);
    }

    /// Checks one whole path: signatures, names, lengths and usages by webpki, the rest by our rules.
    fn check(&mut self, path: &[usize], root: &Root) -> Result<bool, RejectReason> {
        if self.tried == MAX_CANDIDATE_PATHS {
            return Err(RejectReason::PathTooComplex);
        }
        self.tried += 1;
        let verdict = self.check_anchor(root).and_then(|()| self.check_signatures(path, root));
        if self.budget.overdrawn() {
            return Err(RejectReason::PathTooComplex);
        }
        match verdict {
            Ok(()) => Ok(true),
            Err(reason) => {
                // What this path had of good signatures leads nowhere.
                self.budget.take_found();
                self.note(reason);
                Ok(false)
            }
        }
    }

    fn check_anchor(&self, root: &Root) -> Result<(), RejectReason> {
        let (_, parsed) = X509Certificate::from_der(&root.der).map_err(|_| RejectReason::Malformed)?;
        rules::check_anchor(&parsed)
    }

    fn check_signatures(&self, path: &[usize], root: &Root) -> Result<(), RejectReason> {
        let leaf = webpki::EndEntityCert::try_from(self.leaf_der).map_err(reason_of)?;
        let intermediates: Vec<CertificateDer<'_>> =
            path.iter().map(|index| CertificateDer::from(self.sent[*index].der.as_ref())).collect();
        // Validity was judged above, with the skew that each kind of certificate is given. webpki knows one moment
        // for all, so it gets the first at which none of them is still to come.
        let begins = path.iter().map(|index| validity(&self.sent[*index].parsed).0).chain([validity(self.leaf).0]);
        let moment =
            begins.fold(self.now, |latest, begin| if begin.as_secs() > latest.as_secs() { begin } else { latest });
        leaf.verify_for_usage(
            &self.algorithms,
            std::slice::from_ref(&root.anchor),
            &intermediates,
            moment,
            self.usage,
            None,
            None,
        )
        .map(|_| ())
        .map_err(reason_of)
    }
}

/// Puts candidates whose key identifier matches first and those whose does not last. It never excludes one: a new
/// root under an old name leads to a cross certificate whose identifiers do not match, and the path is good.
fn order(wanted: Option<&[u8]>, has: Option<&[u8]>) -> u8 {
    match (wanted, has) {
        (Some(wanted), Some(has)) if wanted == has => 0,
        (Some(_), Some(_)) => 2,
        _ => 1,
    }
}

/// Maps webpki's words to ours.
fn reason_of(error: webpki::Error) -> RejectReason {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => RejectReason::CaExpired,
        E::CertNotValidYet { .. } => RejectReason::CaNotYetValid,
        E::InvalidSignatureForPublicKey => RejectReason::BadSignature,
        E::CaUsedAsEndEntity => RejectReason::CaAsLeaf,
        E::EndEntityUsedAsCa => RejectReason::NotACa,
        E::PathLenConstraintViolated => RejectReason::PathLength,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => RejectReason::ExtendedKeyUsage,
        E::NameConstraintViolation | E::MalformedNameConstraint => RejectReason::NameConstraint,
        E::UnsupportedCriticalExtension => RejectReason::CriticalExtension,
        E::UnknownIssuer => RejectReason::UnknownIssuer,
        E::MaximumSignatureChecksExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumNameConstraintComparisonsExceeded => RejectReason::PathTooComplex,
        E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            RejectReason::UnsupportedAlgorithm
        }
        // The list is open on webpki's side: what it may learn to refuse later is refused here too.
        _ => RejectReason::Malformed,
    }
}
