//! The policy in BoringSSL's terms: what of it is served, and what is said about that.
//!
//! What is not set is off in BoringSSL until it is asked for: renegotiation, early data, compressed certificates and
//! application protocols. So are GREASE and shuffled extensions, with which browsers keep their peers honest; here they
//! would only make each hello another one.

use std::ptr;

use boring::{
    error::ErrorStack,
    fips,
    ssl::{
        ClientHello, ExtensionType, SelectCertError, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions,
        SslRef, SslSessionCacheMode, SslVersion,
    },
    version::version,
};
use boring_sys as ffi;
use lictor_core::{
    Crypto, Fips, TlsPolicy,
    policy::{HYBRID_GROUP, MAX_CERTIFICATE_LIST, SIGNATURE_SCHEMES, SUITES},
    tls::{BuildError, TlsFacts},
};

use crate::error::{done, refused};

/// The groups by their names in the registry, and what BoringSSL calls them.
const GROUPS: [(&str, &str); 5] = [
    (HYBRID_GROUP, "X25519MLKEM768"),
    ("x25519", "X25519"),
    ("secp256r1", "P-256"),
    ("secp384r1", "P-384"),
    ("secp521r1", "P-521"),
];

/// The suites of TLS 1.3 by their names and numbers in the registry.
const TLS13_SUITES: [(&str, u16); 3] =
    [("TLS_AES_128_GCM_SHA256", 0x1301), ("TLS_AES_256_GCM_SHA384", 0x1302), ("TLS_CHACHA20_POLY1305_SHA256", 0x1303)];

/// What BoringSSL's FIPS policy of 2026-09 leaves out of ours.
const NOT_IN_FIPS: [&str; 5] = [
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    // It stands behind an approved secret in X25519MLKEM768, and only there.
    "x25519",
    "ecdsa_secp521r1_sha512",
];

/// What is not on any of the lists cannot be agreed.
const UNKNOWN: &str = "unknown";

/// What the mesh is met with, but for a certificate.
pub(crate) fn for_the_mesh(policy: &TlsPolicy) -> Result<SslContextBuilder, BuildError> {
    settle(certificates_as_bytes(), policy).map_err(refused("policy"))
}

/// What the agent is met with. Its certificate is whatever the operator made for it, so it may have keys that the mesh
/// does not know.
pub(crate) fn for_the_agent() -> Result<SslContextBuilder, BuildError> {
    let settled = || {
        let mut builder = settle(SslMethod::tls(), &TlsPolicy::default())?;
        if !fips::enabled() {
            set_schemes(&mut builder, &["ed25519"])?;
            // In TLS 1.2 this is the list of the curves of certificates, too.
            let mut groups = served(TlsPolicy::default().groups());
            groups.push("secp521r1");
            set_groups(&mut builder, &groups)?;
        }
        Ok(builder)
    };
    settled().map_err(refused("policy"))
}

/// Certificates as the bytes that come, in place of X.509 objects.
///
/// Of what a peer sends BoringSSL then reads no more than the public key and the key usage of the leaf, so no parser of
/// its own stands before our verifier, and nothing is kept twice.
#[expect(unsafe_code, reason = "the crate leaves it to its users that nobody asks for an object")]
pub(crate) fn certificates_as_bytes() -> SslMethod {
    // SAFETY: nothing that deals in X.509 objects may be called on a context of this method, or on its connections.
    // Nothing is: `CertifiedKey::serve` and `ask_core` deal in bytes, `error::stop` looks before it asks, and `Session`
    // shows its connection to nobody.
    unsafe { SslMethod::tls_with_buffer() }
}

/// What is made of `policy`.
pub(crate) fn crypto(backend: &'static str, library: String, policy: &TlsPolicy) -> Crypto {
    let (suites, groups) = (served(policy.suites()), served(policy.groups()));
    let signature_schemes = served(SIGNATURE_SCHEMES.to_vec());
    let missing = |asked: Vec<&'static str>, served: &[&str]| {
        asked.into_iter().filter(|name| !served.contains(name)).collect::<Vec<_>>().join(", ")
    };
    let mut differs: Vec<String> = [
        missing(policy.suites(), &suites),
        missing(policy.groups(), &groups),
        missing(SIGNATURE_SCHEMES.to_vec(), &signature_schemes),
    ]
    .into_iter()
    .filter(|missing| !missing.is_empty())
    .map(|missing| format!("not served, because BoringSSL's FIPS policy leaves it out: {missing}"))
    .collect();
    if fips::enabled() && policy.tls12 {
        differs.push("a TLS 1.2 peer without the extended master secret (RFC 7627) is refused".to_owned());
    }
    Crypto { backend, library, fips: fips(), versions: policy.versions(), suites, groups, signature_schemes, differs }
}

/// The library, which has no releases: what tells one from another is the version of its interface, and that of the
/// package which its sources come with.
pub(crate) fn library() -> String {
    let package = option_env!("LICTOR_BORING_VERSION").unwrap_or("of an unrecorded version");
    format!("{} {} of boring-sys {package}", version(), ffi::BORINGSSL_API_VERSION)
}

/// Refuses to go on without the module in a build that was made for it.
///
/// # Errors
/// [`BuildError::Refused`] when this is a FIPS build and BoringSSL says no. A module that fails its self-test ends the
/// process before anybody can ask.
pub(crate) fn must_be_fips() -> Result<(), BuildError> {
    if fips::enabled() || !cfg!(feature = "fips") {
        return Ok(());
    }
    let why = "this is a FIPS build, and BoringSSL says that it is not in FIPS mode".to_owned();
    Err(BuildError::Refused { what: "policy", why })
}

/// What was agreed, by the names of the IANA registry.
pub(crate) fn facts(ssl: &SslRef) -> TlsFacts {
    let suite = ssl.current_cipher().and_then(|cipher| cipher.standard_name());
    let group = ssl.curve_name();
    TlsFacts {
        version: match ssl.version2() {
            Some(SslVersion::TLS1_2) => "TLSv1.2",
            Some(SslVersion::TLS1_3) => "TLSv1.3",
            _ => UNKNOWN,
        },
        suite: SUITES.into_iter().find(|name| suite == Some(*name)).unwrap_or(UNKNOWN),
        group: GROUPS.into_iter().find(|(_, called)| group == Some(*called)).map_or(UNKNOWN, |(name, _)| name),
    }
}

fn settle(method: SslMethod, policy: &TlsPolicy) -> Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContext::builder(method)?;
    if fips::enabled() {
        comply(&mut builder)?;
    }
    builder.set_min_proto_version(Some(if policy.tls12 { SslVersion::TLS1_2 } else { SslVersion::TLS1_3 }))?;
    builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    set_suites(&mut builder, &served(SUITES.to_vec()))?;
    set_groups(&mut builder, &served(policy.groups()))?;
    set_schemes(&mut builder, &[])?;
    // Our order of suites and groups, not the client's.
    builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_TICKET);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::NO_AUTO_CHAIN);
    set_the_rest(&mut builder);
    Ok(builder)
}

/// Sets BoringSSL's FIPS policy of 2026-09, and refuses what it lets pass although FIPS does not approve of it: keys of
/// TLS 1.2 that do not come of the whole handshake (RFC 7627). What is set after it takes away and adds nothing.
#[expect(unsafe_code, reason = "the crate has no name for the policy that admits X25519MLKEM768")]
fn comply(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    let policy = ffi::ssl_compliance_policy_t::ssl_compliance_policy_fips_202609;
    // SAFETY: the context lives.
    done(unsafe { ffi::SSL_CTX_set_compliance_policy(builder.as_ptr(), policy) })?;
    builder.set_select_certificate_callback(|hello| {
        let has_the_extension = hello.get_extension(ExtensionType::EXTENDED_MASTER_SECRET).is_some();
        if has_the_extension || offers_tls13(&hello) { Ok(()) } else { Err(SelectCertError::ERROR) }
    });
    Ok(())
}

/// Whether TLS 1.3 is on the list of versions, which stands behind its length (RFC 8446, section 4.2.1).
fn offers_tls13(hello: &ClientHello<'_>) -> bool {
    const TLS13: [u8; 2] = [3, 4];
    let versions = hello.get_extension(ExtensionType::SUPPORTED_VERSIONS).and_then(|list| list.get(1..));
    versions.is_some_and(|versions| versions.chunks(2).any(|version| version == TLS13))
}

/// Sets the suites of both versions, in their order.
#[expect(unsafe_code, reason = "the crate has no call for those of TLS 1.3")]
fn set_suites(builder: &mut SslContextBuilder, suites: &[&str]) -> Result<(), ErrorStack> {
    let (tls12, tls13): (Vec<&str>, Vec<&str>) = suites.iter().partition(|suite| suite.starts_with("TLS_ECDHE_"));
    let known = TLS13_SUITES.into_iter().filter(|(name, _)| tls13.contains(name));
    let numbers: Vec<u16> = known.map(|(_, number)| number).collect();
    // SAFETY: the context lives, and BoringSSL reads the numbers, as many as it is told of, within the call. Null says
    // that none of them is as good as another.
    done(unsafe { ffi::SSL_CTX_set1_tls13_ciphers(builder.as_ptr(), numbers.as_ptr(), ptr::null(), numbers.len()) })?;
    builder.set_strict_cipher_list(&tls12.join(":"))
}

fn set_groups(builder: &mut SslContextBuilder, groups: &[&str]) -> Result<(), ErrorStack> {
    let known = GROUPS.into_iter().filter(|(name, _)| groups.contains(name));
    builder.set_curves_list(&known.map(|(_, called)| called).collect::<Vec<_>>().join(":"))
}

/// Sets what may be signed with, by us and by peers: the schemes of the mesh, and `more`.
fn set_schemes(builder: &mut SslContextBuilder, more: &[&'static str]) -> Result<(), ErrorStack> {
    builder.set_sigalgs_list(&[&served(SIGNATURE_SCHEMES.to_vec()), more].concat().join(":"))
}

/// What of a list of the policy is served.
fn served(mut list: Vec<&'static str>) -> Vec<&'static str> {
    list.retain(|name| !fips::enabled() || !NOT_IN_FIPS.contains(name));
    list
}

/// The bound of a peer's Certificate message.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn set_the_rest(builder: &mut SslContextBuilder) {
    // SAFETY: the context lives, and what else is given to the call is a number.
    unsafe { ffi::SSL_CTX_set_max_cert_list(builder.as_ptr(), MAX_CERTIFICATE_LIST) }
}

/// What BoringSSL says of its module.
fn fips() -> Fips {
    if !fips::enabled() {
        return Fips { enabled: false, means: "not a FIPS module", self_test: "none" };
    }
    Fips {
        enabled: true,
        means: "FIPS-mode BoringCrypto of the update stream, which is BoringSSL as it is today; not a certified snapshot",
        // Had it failed, there would be no process to ask.
        self_test: "passed: the module checks its own integrity when the process starts, and ends it otherwise",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(policy: &TlsPolicy) -> Crypto {
        crypto("boring", library(), policy)
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
            assert_eq!(told.signature_schemes, but(SIGNATURE_SCHEMES.to_vec()));
        }
    }

    #[test]
    fn the_lists_of_the_policy_are_all_known_here() {
        for group in TlsPolicy::default().groups() {
            assert!(GROUPS.iter().any(|(name, _)| *name == group), "{group}");
        }
        for suite in SUITES.iter().filter(|suite| !suite.starts_with("TLS_ECDHE_")) {
            assert!(TLS13_SUITES.iter().any(|(name, _)| name == suite), "{suite}");
        }
        let order = |list: &[&str], of: &[&str]| {
            of.iter().filter(|name| list.contains(name)).eq(list.iter().filter(|name| of.contains(name)))
        };
        assert!(order(&GROUPS.map(|(name, _)| name), &TlsPolicy::default().groups()));
        assert!(order(&TLS13_SUITES.map(|(name, _)| name), &SUITES));
    }

    #[test]
    fn the_library_says_which_one_it_is() {
        let library = library();
        assert!(library.starts_with("BoringSSL ") && library.contains(" of boring-sys 5."), "{library}");
    }

    #[cfg(not(feature = "fips"))]
    #[test]
    fn the_ordinary_build_does_all_of_the_policy_and_claims_no_fips() {
        let told = told(&TlsPolicy::default());
        assert_eq!(told.differs, Vec::<String>::new());
        assert_eq!(told.suites, SUITES);
        assert_eq!(told.groups, TlsPolicy::default().groups());
        assert_eq!(told.fips, Fips { enabled: false, means: "not a FIPS module", self_test: "none" });
        assert_eq!(must_be_fips(), Ok(()));
    }

    #[cfg(feature = "fips")]
    #[test]
    fn the_fips_build_serves_what_the_librarys_policy_admits_and_nothing_else() {
        assert_eq!(must_be_fips(), Ok(()), "the module is in use");
        let told = told(&TlsPolicy::default());
        assert!(told.fips.enabled);
        assert!(!told.fips.means.contains("validated"), "nobody has validated this version: {}", told.fips.means);
        assert_eq!(told.suites, SUITES.into_iter().filter(|suite| suite.contains("_GCM_")).collect::<Vec<_>>());
        assert_eq!(told.groups, ["X25519MLKEM768", "secp256r1", "secp384r1"]);
        assert_eq!(told.differs.len(), 4, "suites, groups, schemes, the master secret: {:?}", told.differs);
        let classical = self::told(&TlsPolicy { hybrid_first: false, tls12: false });
        assert_eq!(classical.groups, ["secp256r1", "secp384r1"]);
    }
}
