//! From a certificate that has a good path to the identity that it carries.

use std::fmt;

use x509_parser::{
    asn1_rs::{Class, FromDer, Header, Tag},
    oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    prelude::X509Certificate,
};

use super::{PeerIdentity, PeerPolicy, RejectReason};
use crate::{
    identity::SpiffeId,
    judgement::ExpectedPeer,
    material::{Roots, validity},
};

/// The context-specific tag of a URI among general names (RFC 5280, section 4.2.1.6).
const URI_TAG: Tag = Tag(6);

/// Reads who the peer is and whether that is who it must be.
pub(super) fn identify(
    leaf: &X509Certificate<'_>,
    expected: &ExpectedPeer,
    roots: &Roots,
    policy: &PeerPolicy,
) -> Result<PeerIdentity, RejectReason> {
    let uri = single_uri(leaf)?;
    let service = match SpiffeId::parse(uri, policy.grammar) {
        Ok(SpiffeId::Service(service)) => service,
        Ok(_) => return Err(RejectReason::NotAService),
        Err(_) => return Err(RejectReason::BadSpiffeId),
    };
    let domain = service.trust_domain();
    if domain != roots.trust_domain() && !policy.extra_trust_domains.contains(domain) {
        return Err(RejectReason::TrustDomain);
    }
    match expected {
        ExpectedPeer::Server(server) if **server != service => {
            return Err(RejectReason::WrongService);
        }
        ExpectedPeer::Server(_) => {}
        ExpectedPeer::ClientOf(own) => {
            if !policy.allow_remote_datacenters && own.datacenter() != service.datacenter() {
                return Err(RejectReason::RemoteDatacenter);
            }
        }
    }
    let uri = std::str::from_utf8(uri).map_err(|_| RejectReason::BadSpiffeId)?.to_owned();
    let (_, not_after) = validity(leaf);
    Ok(PeerIdentity { service, uri, serial: Serial::parse(leaf.raw_serial())?, not_after })
}

/// The bytes of the one URI in the one extension of subject alternative names.
///
/// Read from the extension's own bytes: the parser knows a name by the number of its tag alone, and would take a
/// constructed or private element for a URI that another reader does not see.
pub(crate) fn single_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a [u8], RejectReason> {
    // The parser says whether there is one such extension, and whether it can be read at all.
    certificate.subject_alternative_name().map_err(|_| RejectReason::Malformed)?.ok_or(RejectReason::NoUri)?;
    let extension = certificate.extensions().iter().find(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let (list, mut names, rest) = element(extension.ok_or(RejectReason::NoUri)?.value)?;
    if list.class() != Class::Universal || list.tag() != Tag::Sequence || !rest.is_empty() {
        return Err(RejectReason::Malformed);
    }
    let mut uri = None;
    while !names.is_empty() {
        let (name, content, rest) = element(names)?;
        if name.tag() == URI_TAG {
            if name.class() != Class::ContextSpecific || name.constructed() {
                return Err(RejectReason::Malformed);
            }
            if uri.replace(content).is_some() {
                return Err(RejectReason::ManyUris);
            }
        }
        names = rest;
    }
    uri.ok_or(RejectReason::NoUri)
}

/// The header and the content of the first DER element, and what stands behind it.
fn element(input: &[u8]) -> Result<(Header<'_>, &[u8], &[u8]), RejectReason> {
    let (rest, header) = Header::from_der(input).map_err(|_| RejectReason::Malformed)?;
    let length = header.length().definite().map_err(|_| RejectReason::Malformed)?;
    let (content, rest) = rest.split_at_checked(length).ok_or(RejectReason::Malformed)?;
    Ok((header, content, rest))
}

/// The serial number of a certificate in the form that Consul uses: lower-case hexadecimal bytes of the magnitude,
/// joined by colons, without a leading zero byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serial(String);

impl Serial {
    /// Reads the content bytes of a DER integer.
    ///
    /// # Errors
    /// [`RejectReason::BadSerial`] when it is zero, negative or longer than 20 bytes (RFC 5280, section 4.1.2.2).
    pub fn parse(der: &[u8]) -> Result<Self, RejectReason> {
        let first = *der.first().ok_or(RejectReason::BadSerial)?;
        let magnitude = &der[der.iter().take_while(|byte| **byte == 0).count()..];
        if first & 0x80 != 0 || magnitude.is_empty() || magnitude.len() > 20 {
            return Err(RejectReason::BadSerial);
        }
        let hex: Vec<String> = magnitude.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(hex.join(":")))
    }

    /// The serial as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_written_as_consul_writes_it() {
        for (der, text) in [(&[0x0d][..], "0d"), (&[0x00, 0xf3, 0x01], "f3:01"), (&[0x7f, 0x00], "7f:00")] {
            assert_eq!(Serial::parse(der).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_serial_that_is_zero_negative_or_too_long_is_refused() {
        let mut longest = vec![0x00];
        longest.extend([0xff; 20]);
        assert!(Serial::parse(&longest).is_ok());
        for der in [&[][..], &[0], &[0, 0], &[0x80], &[0xff, 0x01], &[1; 21]] {
            assert_eq!(Serial::parse(der), Err(RejectReason::BadSerial), "{der:?}");
        }
    }
}
