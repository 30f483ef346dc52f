//! The rules about single certificates that webpki does not check, or checks otherwise than we want.

use rustls_pki_types::UnixTime;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    },
    prelude::{ASN1Time, X509Certificate, X509Version},
    public_key::PublicKey,
};

use super::{CA_SKEW, MAX_LEAF_SKEW, PeerPolicy, RejectReason, Serial, identity::single_uri};
use crate::{
    identity::{SpiffeId, TrustDomain},
    judgement::ExpectedPeer,
    material::validity,
};

/// What a certificate is used as, where the list of keys differs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Leaf,
    Intermediate,
    Anchor,
}

/// Checks everything about the peer's own certificate that does not depend on its issuers.
pub(super) fn check_leaf(
    leaf: &X509Certificate<'_>,
    expected: &ExpectedPeer,
    policy: &PeerPolicy,
    now: UnixTime,
) -> Result<(), RejectReason> {
    check_form(leaf)?;
    Serial::parse(leaf.raw_serial())?;
    check_key(leaf, Use::Leaf).map_err(|_| RejectReason::UnsupportedAlgorithm)?;
    if leaf.basic_constraints().map_err(malformed)?.is_some_and(|basic| basic.value.ca) {
        return Err(RejectReason::CaAsLeaf);
    }
    let usage = leaf.key_usage().map_err(malformed)?.ok_or(RejectReason::KeyUsage)?.value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(RejectReason::KeyUsage);
    }
    if let Some(extended) = leaf.extended_key_usage().map_err(malformed)? {
        let allowed = match expected {
            ExpectedPeer::ClientOf(_) => extended.value.client_auth,
            ExpectedPeer::Server(_) => extended.value.server_auth,
        };
        if !allowed {
            return Err(RejectReason::ExtendedKeyUsage);
        }
    }
    let (not_before, not_after) = validity(leaf);
    let skew = policy.leaf_not_before_skew.min(MAX_LEAF_SKEW);
    if not_before.as_secs() > not_after.as_secs() || not_after.as_secs() < now.as_secs() {
        return Err(RejectReason::Expired);
    }
    if not_before.as_secs() > now.as_secs().saturating_add(skew.as_secs()) {
        return Err(RejectReason::NotYetValid);
    }
    if policy.max_leaf_ttl.is_some_and(|max| not_after.as_secs() - not_before.as_secs() > max.as_secs()) {
        return Err(RejectReason::TtlTooLong);
    }
    Ok(())
}

/// Checks a CA certificate that the path would go through.
pub(super) fn check_intermediate(ca: &X509Certificate<'_>) -> Result<(), RejectReason> {
    check_form(ca)?;
    check_key(ca, Use::Intermediate).map_err(|_| RejectReason::UnsupportedAlgorithm)?;
    if !ca.basic_constraints().map_err(malformed)?.is_some_and(|basic| basic.value.ca) {
        return Err(RejectReason::NotACa);
    }
    // User-made roots lead to cross certificates without key usage, so absence is accepted.
    if ca.key_usage().map_err(malformed)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(RejectReason::KeyUsage);
    }
    check_name_constraints(ca)
}

/// Checks what an anchor may restrict.
pub(super) fn check_anchor(anchor: &X509Certificate<'_>) -> Result<(), RejectReason> {
    check_name_constraints(anchor)
}

/// Whether a CA is valid at `now`, with the skew that CAs are given on the beginning.
pub(super) fn check_ca_validity(
    (not_before, not_after): (UnixTime, UnixTime),
    now: UnixTime,
) -> Result<(), RejectReason> {
    if not_after.as_secs() < now.as_secs() {
        return Err(RejectReason::CaExpired);
    }
    if not_before.as_secs() > now.as_secs().saturating_add(CA_SKEW.as_secs()) {
        return Err(RejectReason::CaNotYetValid);
    }
    Ok(())
}

/// Checks that each CA carries the trust domain's own SPIFFE ID.
pub(super) fn check_ca_identities(
    path: &[X509Certificate<'_>],
    trust_domain: &TrustDomain,
    policy: &PeerPolicy,
) -> Result<(), RejectReason> {
    for ca in path {
        let uri = single_uri(ca).map_err(|_| RejectReason::CaIdentity)?;
        match SpiffeId::parse(uri, policy.grammar) {
            Ok(SpiffeId::Signing(domain)) if domain == *trust_domain => {}
            _ => return Err(RejectReason::CaIdentity),
        }
    }
    Ok(())
}

/// Why the key of a root cannot verify anything, in words; `None` when it can.
pub(crate) fn unusable_anchor_key(root: &X509Certificate<'_>) -> Option<String> {
    check_key(root, Use::Anchor).err()
}

/// The subject key identifier, if there is one.
pub(crate) fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// The key identifier of the issuer, if there is one.
pub(super) fn authority_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

fn malformed<E>(_: E) -> RejectReason {
    RejectReason::Malformed
}

/// Version 3, a serial number of any value, no extension twice, none that could not be read, and a validity that does
/// not end before it begins.
fn check_form(certificate: &X509Certificate<'_>) -> Result<(), RejectReason> {
    if certificate.version() != X509Version::V3 || certificate.raw_serial().is_empty() {
        return Err(RejectReason::Malformed);
    }
    certificate.extensions_map().map_err(malformed)?;
    let unreadable = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::ParseError { .. });
    if certificate.extensions().iter().any(|extension| unreadable(extension.parsed_extension())) {
        return Err(RejectReason::Malformed);
    }
    let ends = |time: &ASN1Time| time.timestamp();
    if ends(&certificate.validity().not_after) < ends(&certificate.validity().not_before) {
        return Err(RejectReason::Expired);
    }
    Ok(())
}

/// The list of keys, the same on every backend.
fn check_key(certificate: &X509Certificate<'_>, used_as: Use) -> Result<(), String> {
    let key = certificate.public_key();
    let algorithm = &key.algorithm;
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        return match curve {
            Some(oid) if oid == OID_EC_P256 || oid == OID_NIST_EC_P384 => Ok(()),
            Some(oid) if oid == OID_NIST_EC_P521 && used_as != Use::Leaf => Ok(()),
            Some(oid) => {
                Err(format!("its elliptic curve {oid} is not supported here; use P-256, P-384 or P-521 (CAs only)"))
            }
            None => Err("its elliptic curve is not a named one".to_owned()),
        };
    }
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
            return Err("its RSA key cannot be read".to_owned());
        };
        let most = if used_as == Use::Anchor { 8192 } else { 4096 };
        let bits = significant_bits(rsa.modulus);
        if (2048..=most).contains(&bits) {
            return Ok(());
        }
        return Err(format!("its RSA key has {bits} bits; 2048 to {most} are supported here"));
    }
    Err(format!("its key algorithm {} is not supported", algorithm.algorithm))
}

/// The length of a big-endian number in bits, without leading zeros.
fn significant_bits(number: &[u8]) -> usize {
    let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// The libraries disagree about URI name constraints, so a CA that has one is refused under a name of its own.
fn check_name_constraints(ca: &X509Certificate<'_>) -> Result<(), RejectReason> {
    let Some(constraints) = ca.name_constraints().map_err(malformed)? else {
        return Ok(());
    };
    let subtrees = [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees];
    let is_uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(_) => true,
        GeneralName::Invalid(tag, _) => tag.0 == 6,
        _ => false,
    };
    if subtrees.into_iter().flatten().flatten().any(|subtree| is_uri(&subtree.base)) {
        return Err(RejectReason::UriNameConstraintUnsupported);
    }
    Ok(())
}
