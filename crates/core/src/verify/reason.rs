//! Why a peer is refused.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $alert:expr;)*) => {
        /// Why a peer is refused: the metric label and the log field.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum RejectReason {
            $($(#[$doc])* $variant,)*
        }

        impl RejectReason {
            /// All reasons, for tables of counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name used as metric label and log field.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The TLS alert that tells the peer (RFC 8446, section 6.2): one of 42, 43, 45, 46 and 48, which all
            /// three libraries can send.
            #[must_use]
            pub fn alert(self) -> u8 {
                match self { $(Self::$variant => $alert,)* }
            }
        }
    };
}

const BAD_CERTIFICATE: u8 = 42;
const UNSUPPORTED_CERTIFICATE: u8 = 43;
const CERTIFICATE_EXPIRED: u8 = 45;
const CERTIFICATE_UNKNOWN: u8 = 46;
const UNKNOWN_CA: u8 = 48;

reasons! {
    /// The peer sent no certificate.
    NoCertificate = "no_certificate", BAD_CERTIFICATE;
    /// The TLS library could not decode what the peer sent, or a signature of the handshake is wrong.
    BadMessage = "bad_message", BAD_CERTIFICATE;
    /// More certificates or bytes than are looked at.
    ChainTooLarge = "chain_too_large", BAD_CERTIFICATE;
    /// The search for a path went beyond its counted bounds.
    PathTooComplex = "path_too_complex", BAD_CERTIFICATE;
    /// A certificate that is needed is not well-formed, or not X.509 version 3.
    Malformed = "malformed", BAD_CERTIFICATE;
    /// A signature on the path is wrong.
    BadSignature = "bad_signature", BAD_CERTIFICATE;
    /// A key or signature algorithm that is not on the list, or a key too small or too large.
    UnsupportedAlgorithm = "unsupported_algorithm", UNSUPPORTED_CERTIFICATE;
    /// No path leads to a root of the mesh.
    UnknownIssuer = "unknown_issuer", UNKNOWN_CA;
    /// The only path leads over a CA certificate or a root that has expired.
    CaExpired = "ca_expired", CERTIFICATE_EXPIRED;
    /// The only path leads over a CA certificate or a root that is not valid yet.
    CaNotYetValid = "ca_not_yet_valid", BAD_CERTIFICATE;
    /// The peer's certificate has expired.
    Expired = "expired", CERTIFICATE_EXPIRED;
    /// The peer's certificate is not valid yet.
    NotYetValid = "not_yet_valid", BAD_CERTIFICATE;
    /// The peer's certificate is valid for longer than the operator allows.
    TtlTooLong = "ttl_too_long", BAD_CERTIFICATE;
    /// The peer presented a CA certificate as its own.
    CaAsLeaf = "ca_as_leaf", UNSUPPORTED_CERTIFICATE;
    /// The key usage does not allow what the certificate is used for.
    KeyUsage = "key_usage", UNSUPPORTED_CERTIFICATE;
    /// The extended key usage does not allow the peer's role.
    ExtendedKeyUsage = "extended_key_usage", UNSUPPORTED_CERTIFICATE;
    /// A certificate on the path is no CA.
    NotACa = "not_a_ca", BAD_CERTIFICATE;
    /// The path is longer than one of its CAs allows.
    PathLength = "path_length", BAD_CERTIFICATE;
    /// A name constraint forbids the name.
    NameConstraint = "name_constraint", BAD_CERTIFICATE;
    /// A CA on the path has a URI name constraint, which is refused as such: the libraries disagree about them.
    UriNameConstraintUnsupported = "uri_name_constraint_unsupported", UNSUPPORTED_CERTIFICATE;
    /// A critical extension that is not understood.
    CriticalExtension = "critical_extension", UNSUPPORTED_CERTIFICATE;
    /// The serial number is zero, negative or longer than 20 bytes.
    BadSerial = "bad_serial", BAD_CERTIFICATE;
    /// No URI among the subject alternative names.
    NoUri = "no_uri", BAD_CERTIFICATE;
    /// More than one URI among the subject alternative names.
    ManyUris = "many_uris", BAD_CERTIFICATE;
    /// The URI is not a well-formed SPIFFE ID.
    BadSpiffeId = "bad_spiffe_id", BAD_CERTIFICATE;
    /// The identity is that of an agent, a gateway, a server or a signer.
    NotAService = "not_a_service", CERTIFICATE_UNKNOWN;
    /// The identity is of another trust domain.
    TrustDomain = "trust_domain", CERTIFICATE_UNKNOWN;
    /// The identity is of another datacenter, and the operator does not allow that.
    RemoteDatacenter = "remote_datacenter", CERTIFICATE_UNKNOWN;
    /// The server is another service than the one that was dialled.
    WrongService = "wrong_service", CERTIFICATE_UNKNOWN;
    /// A CA on the path does not carry the trust domain's own SPIFFE ID, and the operator asks for it.
    CaIdentity = "ca_identity", CERTIFICATE_UNKNOWN;
    /// A second certificate on one connection, or a question outside a handshake.
    SecondCertificate = "second_certificate", CERTIFICATE_UNKNOWN;
    /// The handshake ended without a verdict about the peer.
    Unjudged = "unjudged", CERTIFICATE_UNKNOWN;
    /// The session was resumed, which this side never offers.
    Resumed = "resumed", CERTIFICATE_UNKNOWN;
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_name_of_its_own_and_an_alert_that_all_libraries_send() {
        let names: HashSet<_> = RejectReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), RejectReason::ALL.len());
        for reason in RejectReason::ALL {
            assert!(matches!(reason.alert(), 42 | 43 | 45 | 46 | 48), "{reason}");
        }
    }
}
