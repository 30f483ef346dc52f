//! What the mesh side of every TLS library is held to, and what a library says that it makes of it.
//!
//! The lists are in the names of the IANA registry. A backend serves all of a list, in its order, or says in
//! [`Crypto::differs`] what it leaves out or cannot order; the conformance suite reads its hellos and holds it to that.

use serde::Serialize;

/// The cipher suites, the preferred one first.
///
/// ECDHE and AEAD alone. AES-128-GCM comes first: it is the fastest on every machine with AES instructions, and
/// nothing in the mesh asks for a longer key. The server's order counts.
pub const SUITES: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// The hybrid group: safe against recordings that are broken by a quantum computer later.
pub const HYBRID_GROUP: &str = "X25519MLKEM768";

/// The other groups of the key exchange, the preferred one first.
pub const GROUPS: [&str; 3] = ["x25519", "secp256r1", "secp384r1"];

/// The signature schemes that a peer may sign its handshake with, the preferred one first.
///
/// Ed25519 and ML-DSA are off everywhere, since Consul cannot issue them and not all libraries have them.
pub const SIGNATURE_SCHEMES: [&str; 9] = [
    "ecdsa_secp256r1_sha256",
    "ecdsa_secp384r1_sha384",
    "ecdsa_secp521r1_sha512",
    "rsa_pss_rsae_sha256",
    "rsa_pss_rsae_sha384",
    "rsa_pss_rsae_sha512",
    "rsa_pkcs1_sha256",
    "rsa_pkcs1_sha384",
    "rsa_pkcs1_sha512",
];

/// What is off in both roles, whatever the configuration says.
///
/// Each would let a peer through without the whole check of today, or take bytes before it.
pub const OFF: [&str; 5] =
    ["session tickets", "session resumption", "renegotiation", "early data", "certificate compression"];

/// The most bytes that a peer's Certificate message may have before the library refuses it unread.
///
/// The verifier's own bound is [`crate::verify::MAX_CHAIN_BYTES`]; this one keeps a peer that nobody knows yet from
/// making a library hold more.
pub const MAX_CERTIFICATE_LIST: usize = 64 * 1024;

/// What the mesh side of a library is held to, the same for all three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPolicy {
    /// Speak TLS 1.2 besides 1.3 (default: true, since Consul's own proxies may be that old).
    pub tls12: bool,
    /// Offer [`HYBRID_GROUP`] first where the library has it (default: true). When it is false the group is left
    /// out, since one that comes last is never chosen.
    pub hybrid_first: bool,
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self { tls12: true, hybrid_first: true }
    }
}

impl TlsPolicy {
    /// The versions that this policy asks for, the newest first.
    #[must_use]
    pub fn versions(&self) -> Vec<&'static str> {
        if self.tls12 { vec!["TLSv1.3", "TLSv1.2"] } else { vec!["TLSv1.3"] }
    }

    /// The suites that this policy asks for: of [`SUITES`] those of its versions.
    #[must_use]
    pub fn suites(&self) -> Vec<&'static str> {
        SUITES.into_iter().filter(|suite| self.tls12 || !suite.starts_with("TLS_ECDHE_")).collect()
    }

    /// The groups that this policy asks for.
    #[must_use]
    pub fn groups(&self) -> Vec<&'static str> {
        let hybrid = self.hybrid_first.then_some(HYBRID_GROUP);
        hybrid.into_iter().chain(GROUPS).collect()
    }
}

/// What a library is, and what it makes of a [`TlsPolicy`]: the facts of `lictor crypto`, the metrics and the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Crypto {
    /// The name that the configuration uses: `rustls`, `openssl`, `boring`.
    pub backend: &'static str,
    /// The library and its version in words, as it reports itself when it runs.
    pub library: String,
    /// Whether the cryptography is a FIPS module.
    pub fips: Fips,
    /// The versions that are spoken, the newest first.
    pub versions: Vec<&'static str>,
    /// The suites that are served and offered, the preferred one first.
    pub suites: Vec<&'static str>,
    /// The groups that are served and offered, the preferred one first.
    pub groups: Vec<&'static str>,
    /// The signature schemes that a peer may use, the preferred one first.
    pub signature_schemes: Vec<&'static str>,
    /// What the policy asks for and this library does otherwise, one sentence each. Empty when it does all of it.
    pub differs: Vec<String>,
}

/// Whether the cryptography is a FIPS module, and what that honestly means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fips {
    /// True when the library itself says at run time that its FIPS module is in use.
    pub enabled: bool,
    /// Which module, and whether there is a certificate for it, in words that an auditor can check.
    pub means: &'static str,
    /// What is known of its integrity self-test in this process.
    pub self_test: &'static str,
}
