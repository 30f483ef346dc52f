//! The policy in rustls's terms: what of it is served, and what is said about that.
//!
//! The lists of core are looked up here by name. So what `lictor crypto` reports is read from the very provider that
//! the contexts are built on, and a name that rustls does not know shows up as a difference.

use aws_lc_rs::awslc_version;
use lictor_core::{
    Crypto, Fips, TlsPolicy,
    tls::{BuildError, TlsFacts},
};
use rustls::{
    CipherSuite, CommonState, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms, aws_lc_rs as library},
    version::{TLS12, TLS13},
};

use crate::signature::MESH_ALGORITHMS;

/// Whether this build promises a FIPS module and keeps to what FIPS approves.
pub(crate) const FIPS: bool = cfg!(feature = "fips");

/// What rustls has of the suites, by the names of the IANA registry.
static SUITES: &[(&str, SupportedCipherSuite)] = &[
    ("TLS_AES_128_GCM_SHA256", library::cipher_suite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", library::cipher_suite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", library::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", library::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", library::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", library::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", library::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        library::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", library::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// What rustls has of the groups.
static GROUPS: &[(&str, &dyn SupportedKxGroup)] = &[
    ("X25519MLKEM768", library::kx_group::X25519MLKEM768),
    ("x25519", library::kx_group::X25519),
    ("secp256r1", library::kx_group::SECP256R1),
    ("secp384r1", library::kx_group::SECP384R1),
];

static SCHEMES: &[(&str, SignatureScheme)] = &[
    ("ecdsa_secp256r1_sha256", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("ecdsa_secp384r1_sha384", SignatureScheme::ECDSA_NISTP384_SHA384),
    ("ecdsa_secp521r1_sha512", SignatureScheme::ECDSA_NISTP521_SHA512),
    ("rsa_pss_rsae_sha256", SignatureScheme::RSA_PSS_SHA256),
    ("rsa_pss_rsae_sha384", SignatureScheme::RSA_PSS_SHA384),
    ("rsa_pss_rsae_sha512", SignatureScheme::RSA_PSS_SHA512),
    ("rsa_pkcs1_sha256", SignatureScheme::RSA_PKCS1_SHA256),
    ("rsa_pkcs1_sha384", SignatureScheme::RSA_PKCS1_SHA384),
    ("rsa_pkcs1_sha512", SignatureScheme::RSA_PKCS1_SHA512),
];

static VERSIONS: &[(&str, &SupportedProtocolVersion)] = &[("TLSv1.3", &TLS13), ("TLSv1.2", &TLS12)];

/// The provider that serves `policy` and verifies handshakes by `signatures`.
///
/// In a FIPS build it has only what rustls counts as approved. Of the groups that leaves out X25519 alone, which
/// SP 800-56A does not know; behind an approved secret, as in X25519MLKEM768, it may stand (SP 800-56C, section 2).
pub(crate) fn provider(policy: &TlsPolicy, signatures: WebPkiSupportedAlgorithms) -> CryptoProvider {
    CryptoProvider {
        cipher_suites: known(SUITES, &policy.suites()).filter(|suite| !FIPS || suite.fips()).collect(),
        kx_groups: known(GROUPS, &policy.groups()).filter(|group| !FIPS || group.fips()).collect(),
        signature_verification_algorithms: signatures,
        ..library::default_provider()
    }
}

/// The versions of `policy`.
pub(crate) fn versions(policy: &TlsPolicy) -> Vec<&'static SupportedProtocolVersion> {
    known(VERSIONS, &policy.versions()).collect()
}

/// Refuses what a FIPS build may not use; `is_fips` is what rustls says of a provider or of a whole configuration.
///
/// # Errors
/// [`BuildError::Refused`] when this is a FIPS build and rustls says no.
pub(crate) fn must_be_fips(is_fips: bool) -> Result<(), BuildError> {
    if is_fips || !FIPS {
        return Ok(());
    }
    let why =
        "this is a FIPS build, and rustls says that the FIPS module or its rules would not be in force".to_owned();
    Err(BuildError::Refused { what: "policy", why })
}

/// What is made of `policy`, read from the provider that serves it.
pub(crate) fn crypto(backend: &'static str, library: String, policy: &TlsPolicy) -> Crypto {
    let provider = provider(policy, MESH_ALGORITHMS);
    let versions = versions(policy).iter().map(|version| version_name(version.version)).collect();
    let suites: Vec<_> = provider.cipher_suites.iter().map(|suite| suite_name(suite.suite())).collect();
    let groups: Vec<_> = provider.kx_groups.iter().map(|group| group_name(group.name())).collect();
    let schemes = provider.signature_verification_algorithms.mapping.iter().map(|(scheme, _)| scheme_name(*scheme));
    Crypto {
        backend,
        library,
        fips: fips(provider.fips()),
        versions,
        differs: differences(policy, &suites, &groups),
        suites,
        groups,
        signature_schemes: schemes.collect(),
    }
}

/// What was agreed, by the names of the IANA registry.
pub(crate) fn facts(state: &CommonState) -> TlsFacts {
    TlsFacts {
        version: state.protocol_version().map_or(UNKNOWN, version_name),
        suite: state.negotiated_cipher_suite().map_or(UNKNOWN, |suite| suite_name(suite.suite())),
        group: state.negotiated_key_exchange_group().map_or(UNKNOWN, |group| group_name(group.name())),
    }
}

/// What is not on any of the lists cannot be agreed.
const UNKNOWN: &str = "unknown";

fn fips(enabled: bool) -> Fips {
    if !enabled {
        return Fips { enabled, means: "not a FIPS module", self_test: "none" };
    }
    // The branch decides what can be said of it, and what is linked is asked: a dependency may be pinned to another.
    let means = if awslc_version().starts_with("4.") {
        "FIPS-mode AWS-LC of branch 4: by its makers' word tested by an accredited laboratory and submitted to NIST; \
         not a certified snapshot"
    } else {
        "FIPS-mode AWS-LC: whether a certificate names this version, NIST's list tells"
    };
    // Had it failed, there would be no process to ask.
    let self_test = "passed: the module checks its own integrity when the process starts, and ends it otherwise";
    Fips { enabled, means, self_test }
}

fn differences(policy: &TlsPolicy, suites: &[&str], groups: &[&str]) -> Vec<String> {
    let missing = |asked: Vec<&'static str>, served: &[&str]| {
        asked.into_iter().filter(|name| !served.contains(name)).collect::<Vec<_>>().join(", ")
    };
    let why = if FIPS { "FIPS does not approve of it" } else { "rustls does not have it" };
    let mut differs: Vec<String> = [missing(policy.suites(), suites), missing(policy.groups(), groups)]
        .into_iter()
        .filter(|missing| !missing.is_empty())
        .map(|missing| format!("not served, because {why}: {missing}"))
        .collect();
    if FIPS && policy.tls12 {
        differs.push("a TLS 1.2 peer without the extended master secret (RFC 7627) is refused".to_owned());
    }
    differs
}

/// What `table` has of `names`, in their order.
fn known<T: Copy>(table: &[(&str, T)], names: &[&str]) -> impl Iterator<Item = T> {
    names.iter().filter_map(|wanted| table.iter().find(|(name, _)| name == wanted).map(|(_, what)| *what))
}

fn name<T>(table: &'static [(&str, T)], is_it: impl Fn(&T) -> bool) -> &'static str {
    table.iter().find(|(_, what)| is_it(what)).map_or(UNKNOWN, |(name, _)| name)
}

fn version_name(version: ProtocolVersion) -> &'static str {
    name(VERSIONS, |supported| supported.version == version)
}

fn suite_name(suite: CipherSuite) -> &'static str {
    name(SUITES, |supported| supported.suite() == suite)
}

fn group_name(group: NamedGroup) -> &'static str {
    name(GROUPS, |supported| supported.name() == group)
}

fn scheme_name(scheme: SignatureScheme) -> &'static str {
    name(SCHEMES, |known| *known == scheme)
}

#[cfg(test)]
mod tests {
    use lictor_core::policy::{SIGNATURE_SCHEMES, SUITES};

    use super::*;

    fn told(policy: &TlsPolicy) -> Crypto {
        crypto("rustls", String::new(), policy)
    }

    #[test]
    fn all_that_the_policy_asks_for_is_served_in_its_order_or_said_to_be_left_out() {
        for (tls12, hybrid_first) in [(true, true), (true, false), (false, true), (false, false)] {
            let policy = TlsPolicy { tls12, hybrid_first };
            let told = told(&policy);
            let left_out = |name: &&str| told.differs.iter().any(|sentence| sentence.contains(*name));
            let but = |asked: Vec<&'static str>| asked.into_iter().filter(|name| !left_out(name)).collect::<Vec<_>>();
            assert_eq!(told.versions, policy.versions());
            assert_eq!(told.suites, but(policy.suites()));
            assert_eq!(told.groups, but(policy.groups()));
            assert_eq!(told.signature_schemes, SIGNATURE_SCHEMES);
        }
    }

    #[cfg(not(feature = "fips"))]
    #[test]
    fn the_ordinary_build_does_all_of_the_policy_and_claims_no_fips() {
        let told = told(&TlsPolicy::default());
        assert_eq!(told.differs, Vec::<String>::new());
        assert_eq!(told.suites, SUITES);
        assert_eq!(told.groups, TlsPolicy::default().groups());
        assert_eq!(told.fips, Fips { enabled: false, means: "not a FIPS module", self_test: "none" });
        assert_eq!(must_be_fips(false), Ok(()));
    }

    #[cfg(feature = "fips")]
    #[test]
    fn the_fips_build_serves_what_fips_approves_of_and_nothing_else() {
        let told = told(&TlsPolicy::default());
        assert!(told.fips.enabled);
        assert!(!told.fips.means.contains("validated"), "nobody has validated this version: {}", told.fips.means);
        assert_eq!(told.suites, SUITES.into_iter().filter(|suite| suite.contains("_GCM_")).collect::<Vec<_>>());
        assert_eq!(told.groups, ["X25519MLKEM768", "secp256r1", "secp384r1"]);
        assert_eq!(told.differs.len(), 3, "suites, groups and the extended master secret: {:?}", told.differs);
        let classical = self::told(&TlsPolicy { hybrid_first: false, tls12: false });
        assert_eq!(classical.groups, ["secp256r1", "secp384r1"]);
        assert!(classical.fips.enabled);
    }

    #[cfg(feature = "fips")]
    #[test]
    fn a_fips_build_refuses_a_provider_that_rustls_does_not_count_as_fips() {
        let mut provider = provider(&TlsPolicy::default(), MESH_ALGORITHMS);
        assert_eq!(must_be_fips(provider.fips()), Ok(()));
        provider.kx_groups.push(library::kx_group::X25519);
        assert!(matches!(must_be_fips(provider.fips()), Err(BuildError::Refused { what: "policy", .. })));
    }
}
