//! The one peer verifier: which certificates pass, the same for every TLS library.
//!
//! The libraries disagree about certificates, so none of them decides: this function does, called inside the
//! handshake, over signature verification that the library hands in. Core chooses the path itself and counts its
//! steps (`path.rs`), because the search of a library can be made to cost seconds with a few kilobytes; then webpki
//! checks that one path, and the rules of this module check what webpki does not.

mod identity;
mod memory;
mod path;
mod reason;
mod rules;
mod signature;

use std::{fmt, time::Duration};

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::{
    identity::Serial,
    path::{MAX_CANDIDATE_PATHS, MAX_INTERMEDIATES, MAX_PATH_STEPS},
    reason::RejectReason,
    signature::{Curve, Hash, MAX_SIGNATURE_CHECKS, Scheme, SignatureAlgorithms, SignatureLibrary},
};
pub(crate) use self::{
    identity::single_uri,
    memory::GoodSignatures,
    rules::{subject_key_id, unusable_anchor_key},
};
use crate::{
    identity::{Grammar, SpiffeService, TrustDomain},
    judgement::{ExpectedPeer, Judge},
};

/// The most certificates that a peer may send.
pub const MAX_CHAIN_CERTIFICATES: usize = 10;

/// The most bytes that a peer's certificates may have together.
pub const MAX_CHAIN_BYTES: usize = 16 * 1024;

/// How far into the future a CA's validity may begin. Consul does not back-date roots, so a clock that is a little
/// behind must not refuse them.
pub const CA_SKEW: Duration = Duration::from_secs(60);

/// The most that an operator may allow a leaf's validity to begin in the future.
pub const MAX_LEAF_SKEW: Duration = Duration::from_secs(120);

/// What an operator allows beyond the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Trust domains that pass besides that of the roots: while a secondary datacenter adopts the domain of the
    /// primary, and for peered meshes. Default: none.
    pub extra_trust_domains: Vec<TrustDomain>,
    /// The characters that identities may hold. Default: the SPIFFE standard's.
    pub grammar: Grammar,
    /// How far into the future a leaf's validity may begin, at most [`MAX_LEAF_SKEW`]. Default: zero, since Consul
    /// back-dates leaves by a minute.
    pub leaf_not_before_skew: Duration,
    /// The longest validity that a leaf may have. Default: any.
    pub max_leaf_ttl: Option<Duration>,
    /// Require a SPIFFE ID of the same trust domain on each CA of the path. Default: no, since Consul documents that
    /// some CA providers do not set it.
    pub strict_ca_spiffe: bool,
    /// Let clients of other datacenters in, for intentions to decide about. Default: yes.
    pub allow_remote_datacenters: bool,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        Self {
            extra_trust_domains: Vec::new(),
            grammar: Grammar::default(),
            leaf_not_before_skew: Duration::ZERO,
            max_leaf_ttl: None,
            strict_ca_spiffe: false,
            allow_remote_datacenters: true,
        }
    }
}

/// A peer that presented a good certificate: who it is, in the certificate's own bytes.
///
/// Only the verifier makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    service: SpiffeService,
    uri: String,
    serial: Serial,
    not_after: UnixTime,
}

impl PeerIdentity {
    /// The identity, parsed.
    #[must_use]
    pub fn service(&self) -> &SpiffeService {
        &self.service
    }

    /// The URI as it stands in the certificate, for the authorizer and for logs: never a decoded form.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The serial number of the certificate.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The last moment at which the certificate is valid.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

/// A verified peer with what is needed to judge it again.
#[derive(Clone)]
pub struct PeerProof {
    /// Who it is.
    pub identity: PeerIdentity,
    /// The chain as it was sent, to judge it again when the roots change before the application is dialled.
    pub chain: Vec<CertificateDer<'static>>,
    /// The list of roots under which it passed.
    pub roots_generation: u64,
}

impl fmt::Debug for PeerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerProof")
            .field("identity", &self.identity)
            .field("chain", &self.chain.len())
            .field("roots_generation", &self.roots_generation)
            .finish()
    }
}

/// Verifies the chain that a peer sent, its own certificate first.
///
/// # Errors
/// [`RejectReason`]: the first rule that the chain breaks. What it is judged by is in `judge`; how signatures are
/// verified in `algorithms`.
pub fn verify_peer(
    judge: &Judge,
    chain: &[CertificateDer<'_>],
    algorithms: &SignatureAlgorithms,
) -> Result<PeerProof, RejectReason> {
    let Judge { expected, roots, policy, now } = judge;
    let leaf_der = chain.first().ok_or(RejectReason::NoCertificate)?;
    if chain.len() > MAX_CHAIN_CERTIFICATES || chain.iter().map(|c| c.len()).sum::<usize>() > MAX_CHAIN_BYTES {
        return Err(RejectReason::ChainTooLarge);
    }
    let (rest, leaf) = X509Certificate::from_der(leaf_der).map_err(|_| RejectReason::Malformed)?;
    if !rest.is_empty() {
        return Err(RejectReason::Malformed);
    }
    rules::check_leaf(&leaf, expected, policy, *now)?;
    let trusted_path = path::find(&leaf, leaf_der, &chain[1..], expected, roots, *now, algorithms)?;
    let identity = identity::identify(&leaf, expected, roots, policy)?;
    if policy.strict_ca_spiffe {
        rules::check_ca_identities(&trusted_path, identity.service.trust_domain(), policy)?;
    }
    Ok(PeerProof {
        identity,
        chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
        roots_generation: roots.generation(),
    })
}

impl ExpectedPeer {
    /// The extended key usage that the peer must have.
    fn usage(&self) -> webpki::KeyUsage {
        match self {
            Self::ClientOf(_) => webpki::KeyUsage::client_auth(),
            Self::Server(_) => webpki::KeyUsage::server_auth(),
        }
    }
}
