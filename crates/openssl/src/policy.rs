//! The policy in OpenSSL's terms: what of it is served, and what is said about that.
//!
//! What OpenSSL reads from the machine's configuration, or has as its own default, is overwritten throughout. Whether
//! it has a group or a scheme is tried, since neither its version nor its name says what a build and a configuration
//! leave of it.

use std::{ffi::CString, ptr};

use foreign_types::ForeignTypeRef as _;
use libc::{c_int, c_long};
use lictor_core::{
    Crypto, Fips, TlsPolicy,
    policy::{HYBRID_GROUP, MAX_CERTIFICATE_LIST, SIGNATURE_SCHEMES, SUITES},
    tls::{BuildError, TlsFacts},
};
use openssl::{
    error::ErrorStack,
    md::Md,
    ssl::{
        SslCipher, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
        SslVersion, cipher_name,
    },
    stack::StackRef,
    version::version,
};
use openssl_sys as ffi;

use crate::error::refused;

/// `SSL_OP_NO_TX_CERTIFICATE_COMPRESSION` and `SSL_OP_NO_RX_CERTIFICATE_COMPRESSION`, which 3.0 does not know: a
/// compressed chain could unpack to far more than the verifier's bound.
const NO_COMPRESSED_CERTIFICATES: SslOptions = SslOptions::from_bits_retain(1 << 32 | 1 << 33);

/// What is not on any of the lists cannot be agreed.
const UNKNOWN: &str = "unknown";

/// What the mesh is met with, but for a certificate.
pub(crate) fn for_the_mesh(policy: &TlsPolicy) -> Result<SslContextBuilder, BuildError> {
    /// The lists of the policy name all that is allowed, and the verifier judges every certificate, so a level of
    /// OpenSSL's own has nothing to add but one thing: below this one OpenSSL takes a handshake signed over SHA-1 in
    /// TLS 1.2, whatever was offered. Higher ones would refuse what the other libraries accept.
    const NO_SHA1: u32 = 1;
    let settled = || {
        let mut builder = settle(policy)?;
        builder.set_security_level(NO_SHA1);
        Ok(builder)
    };
    settled().map_err(refused("policy"))
}

/// What the agent is met with. Its certificate is whatever the operator made for it, so it may have keys that the mesh
/// does not know.
pub(crate) fn for_the_agent() -> Result<SslContextBuilder, BuildError> {
    /// 112 bits, which is RSA from 2048 bits, and nothing signed over SHA-1.
    const LEVEL_OF_TODAY: u32 = 2;
    let policy = TlsPolicy::default();
    let settled = || {
        let mut builder = settle(&policy)?;
        builder.set_security_level(LEVEL_OF_TODAY);
        set_schemes(&mut builder, &["ed25519"])?;
        // In TLS 1.2 this is the list of the curves of certificates, too.
        let mut groups = known_groups(&mut builder, &policy);
        groups.push("secp521r1");
        set_groups(&mut builder, &groups)?;
        Ok(builder)
    };
    settled().map_err(refused("policy"))
}

/// What is made of `policy`, read from the settings that the contexts are built on.
pub(crate) fn crypto(backend: &'static str, library: String, policy: &TlsPolicy) -> Crypto {
    let (mut suites, mut groups, mut signature_schemes) = (Vec::new(), Vec::new(), Vec::new());
    if let Ok(mut builder) = settle(policy) {
        suites = served_suites(&builder, &policy.suites());
        groups = known_groups(&mut builder, policy);
        signature_schemes = known_schemes(&mut builder, &[]);
    }
    let missing = |asked: Vec<&'static str>, served: &[&str]| {
        asked.into_iter().filter(|name| !served.contains(name)).collect::<Vec<_>>().join(", ")
    };
    let differs = [
        missing(policy.suites(), &suites),
        missing(policy.groups(), &groups),
        missing(SIGNATURE_SCHEMES.to_vec(), &signature_schemes),
    ]
    .into_iter()
    .filter(|missing| !missing.is_empty())
    .map(|missing| format!("not served, because {library} does not have it: {missing}"))
    .collect();
    Crypto { backend, library, fips: fips(), versions: policy.versions(), suites, groups, signature_schemes, differs }
}

/// The library that runs, which need not be the one that was built against.
pub(crate) fn library() -> String {
    version().to_owned()
}

/// What was agreed, by the names of the IANA registry.
pub(crate) fn facts(ssl: &SslRef) -> TlsFacts {
    let suite = ssl.current_cipher().and_then(|cipher| cipher.standard_name());
    TlsFacts {
        version: match ssl.version2() {
            Some(SslVersion::TLS1_2) => "TLSv1.2",
            Some(SslVersion::TLS1_3) => "TLSv1.3",
            _ => UNKNOWN,
        },
        suite: SUITES.into_iter().find(|name| suite == Some(*name)).unwrap_or(UNKNOWN),
        group: group_name(negotiated_group(ssl)),
    }
}

fn settle(policy: &TlsPolicy) -> Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContext::builder(SslMethod::tls())?;
    builder.set_min_proto_version(Some(if policy.tls12 { SslVersion::TLS1_2 } else { SslVersion::TLS1_3 }))?;
    builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
    let (tls12, tls13): (Vec<_>, Vec<_>) = SUITES.into_iter().partition(|suite| suite.starts_with("TLS_ECDHE_"));
    builder.set_ciphersuites(&tls13.join(":"))?;
    builder.set_cipher_list(&tls12.into_iter().map(cipher_name).collect::<Vec<_>>().join(":"))?;
    let groups = known_groups(&mut builder, policy);
    set_groups(&mut builder, &groups)?;
    set_schemes(&mut builder, &[])?;

    builder.clear_options(SslOptions::from_bits_retain(u64::MAX));
    builder.set_options(
        // Our order of suites, not the client's.
        SslOptions::CIPHER_SERVER_PREFERENCE
            | SslOptions::ENABLE_MIDDLEBOX_COMPAT
            | SslOptions::NO_COMPRESSION
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_TICKET
            | NO_COMPRESSED_CERTIFICATES
            // Nothing is negotiated anew, so a server need not say how it would do that.
            | SslOptions::from_bits_retain(ffi::SSL_OP_LEGACY_SERVER_CONNECT),
    );
    builder.set_num_tickets(0)?;
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::NO_AUTO_CHAIN | SslMode::RELEASE_BUFFERS);
    set_the_rest(&mut builder);
    Ok(builder)
}

/// Sets the groups and, with the hybrid one among them, has a client send the share of the next one besides, as the
/// other libraries do: a server without the hybrid group need not ask again then.
fn set_groups(builder: &mut SslContextBuilder, groups: &[&str]) -> Result<(), ErrorStack> {
    if let [HYBRID_GROUP, classical, others @ ..] = groups {
        let mut with_shares = vec![format!("*{HYBRID_GROUP}"), format!("*{classical}")];
        with_shares.extend(others.iter().map(|group| (*group).to_owned()));
        if builder.set_groups_list(&with_shares.join(":")).is_ok() {
            return Ok(());
        }
    }
    builder.set_groups_list(&groups.join(":"))
}

/// Sets what may be signed with, by us, by peers, and by clients of ours, which OpenSSL keeps apart: the schemes of
/// the mesh, and `more`.
fn set_schemes(builder: &mut SslContextBuilder, more: &[&'static str]) -> Result<(), ErrorStack> {
    let list = known_schemes(builder, more).join(":");
    builder.set_sigalgs_list(&list)?;
    let list = CString::new(list).unwrap_or_default();
    // SAFETY: the context lives, and OpenSSL reads the list, a string that ends with zero, within the call.
    #[expect(unsafe_code, reason = "the crate has no call for it")]
    let done =
        unsafe { ffi::SSL_CTX_ctrl(builder.as_ptr(), SET_CLIENT_SIGALGS_LIST, 0, list.as_ptr().cast_mut().cast()) };
    if done == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

fn known_groups(builder: &mut SslContextBuilder, policy: &TlsPolicy) -> Vec<&'static str> {
    policy.groups().into_iter().filter(|group| builder.set_groups_list(group).is_ok()).collect()
}

fn known_schemes(builder: &mut SslContextBuilder, more: &[&'static str]) -> Vec<&'static str> {
    let schemes = SIGNATURE_SCHEMES.iter().chain(more).copied();
    schemes.filter(|scheme| builder.set_sigalgs_list(scheme).is_ok()).collect()
}

/// Those of `wanted` that `builder` serves, in the order in which it does.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn served_suites(builder: &SslContextBuilder, wanted: &[&'static str]) -> Vec<&'static str> {
    // SAFETY: the context lives. The list belongs to it and is not kept beyond this function; null is left out.
    let served = unsafe {
        let list = SSL_CTX_get_ciphers(builder.as_ptr());
        if list.is_null() {
            return Vec::new();
        }
        StackRef::<SslCipher>::from_ptr(list)
    };
    let names = served.iter().filter_map(|cipher| cipher.standard_name());
    names.filter_map(|name| wanted.iter().copied().find(|wanted| *wanted == name)).collect()
}

/// The bound of a peer's Certificate message, and no padding of records.
#[expect(unsafe_code, reason = "the crate has no calls for it")]
fn set_the_rest(builder: &mut SslContextBuilder) {
    const BOUND: c_long = MAX_CERTIFICATE_LIST as c_long;
    // SAFETY: the context lives, and what else is given to the two calls are numbers.
    unsafe {
        ffi::SSL_CTX_ctrl(builder.as_ptr(), SET_MAX_CERT_LIST, BOUND, ptr::null_mut());
        SSL_CTX_set_block_padding(builder.as_ptr(), 0);
    }
}

/// What OpenSSL says of its FIPS provider. Whether that is used is for the machine's configuration to decide.
fn fips() -> Fips {
    let asked_for = asks_for_fips();
    let there = Md::fetch(None, "SHA256", Some("provider=fips")).is_ok();
    match (asked_for, there) {
        (true, true) => Fips {
            enabled: true,
            means: "OpenSSL's FIPS provider, in use by the machine's OpenSSL configuration: whether a certificate names \
                    this version of the provider, its maker and NIST's list tell",
            self_test: "passed: the provider checks itself when it is loaded, and is not there otherwise",
        },
        (false, true) => Fips {
            enabled: false,
            means: "not a FIPS module: OpenSSL's FIPS provider is loaded, but the machine's OpenSSL configuration does \
                    not ask for it",
            self_test: "none that counts: the provider passed its own and is not used",
        },
        (true, false) => Fips {
            enabled: false,
            means: "not a FIPS module: the machine's OpenSSL configuration asks for the FIPS provider, which is not there",
            self_test: "none",
        },
        (false, false) => Fips { enabled: false, means: "not a FIPS module", self_test: "none" },
    }
}

/// Whether all that nobody asks for by name comes from a FIPS provider.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn asks_for_fips() -> bool {
    // SAFETY: null stands for the default library context, which is never freed.
    unsafe { ffi::EVP_default_properties_is_fips_enabled(ptr::null_mut()) == 1 }
}

/// The group of the key exchange in OpenSSL's numbers, which has its own for most and says others in the registry's.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn negotiated_group(ssl: &SslRef) -> c_long {
    // SAFETY: the connection lives, and this command reads neither of the last two arguments.
    unsafe { ffi::SSL_ctrl(ssl.as_ptr(), GET_NEGOTIATED_GROUP, 0, ptr::null_mut()) }
}

fn group_name(group: c_long) -> &'static str {
    /// `TLSEXT_nid_unknown`, and X25519MLKEM768 in the IANA registry.
    const HYBRID: c_long = 0x0100_0000 | 0x11ec;
    const X25519: c_long = ffi::NID_X25519 as c_long;
    const SECP256R1: c_long = ffi::NID_X9_62_prime256v1 as c_long;
    const SECP384R1: c_long = ffi::NID_secp384r1 as c_long;
    match group {
        HYBRID => HYBRID_GROUP,
        X25519 => "x25519",
        SECP256R1 => "secp256r1",
        SECP384R1 => "secp384r1",
        _ => UNKNOWN,
    }
}

/// `SSL_CTRL_SET_MAX_CERT_LIST`.
const SET_MAX_CERT_LIST: c_int = 51;

/// `SSL_CTRL_SET_CLIENT_SIGALGS_LIST`.
const SET_CLIENT_SIGALGS_LIST: c_int = 102;

/// `SSL_CTRL_GET_NEGOTIATED_GROUP`.
const GET_NEGOTIATED_GROUP: c_int = 134;

#[expect(unsafe_code, reason = "functions of OpenSSL that neither crate declares")]
unsafe extern "C" {
    fn SSL_CTX_get_ciphers(ctx: *const ffi::SSL_CTX) -> *mut ffi::stack_st_SSL_CIPHER;
    fn SSL_CTX_set_block_padding(ctx: *mut ffi::SSL_CTX, block_size: usize) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_policy_asks_for_is_served_in_its_order_or_said_to_be_left_out() {
        for (tls12, hybrid_first) in [(true, true), (true, false), (false, true), (false, false)] {
            let policy = TlsPolicy { tls12, hybrid_first };
            let told = crypto("openssl", library(), &policy);
            let left_out = |name: &&str| told.differs.iter().any(|sentence| sentence.contains(*name));
            let but = |asked: Vec<&'static str>| asked.into_iter().filter(|name| !left_out(name)).collect::<Vec<_>>();
            assert_eq!(told.versions, policy.versions());
            assert_eq!(told.suites, policy.suites());
            assert_eq!(told.groups, but(policy.groups()));
            assert_eq!(told.signature_schemes, SIGNATURE_SCHEMES);
            assert!(told.differs.len() <= 1, "nothing but the hybrid group may be missing: {:?}", told.differs);
        }
    }

    #[test]
    fn a_library_without_a_fips_provider_claims_none() {
        if Md::fetch(None, "SHA256", Some("provider=fips")).is_err() {
            assert_eq!(fips(), Fips { enabled: false, means: "not a FIPS module", self_test: "none" });
        }
        drop(ErrorStack::get());
    }
}
