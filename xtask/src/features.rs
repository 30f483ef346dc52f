//! The one table of feature sets in which the binary may be built.

/// A legal set of features of the `lictor` package.
pub(crate) struct FeatureSet {
    /// What the packed binary is called.
    pub(crate) name: &'static str,
    /// As cargo's `--features` takes them, together with `--no-default-features`.
    pub(crate) features: &'static str,
    /// The packages that carry cryptography and may be in the tree of this set; no other of [`CRYPTOGRAPHY`] may.
    pub(crate) cryptography: &'static [&'static str],
}

/// Every legal set. The gate walks it, and so does `dist`.
pub(crate) const LEGAL: &[FeatureSet] = &[
    FeatureSet { name: "lictor", features: "rustls,dev", cryptography: &["aws-lc-rs", "aws-lc-sys", "rustls"] },
    FeatureSet { name: "lictor-lean", features: "rustls", cryptography: &["aws-lc-rs", "aws-lc-sys", "rustls"] },
];

/// Packages that carry the cryptography of a TLS library, or a TLS library.
pub(crate) const CRYPTOGRAPHY: &[&str] = &[
    "aws-lc-fips-sys",
    "aws-lc-rs",
    "aws-lc-sys",
    "boring",
    "boring-sys",
    "native-tls",
    "openssl",
    "openssl-sys",
    "ring",
    "rustls",
];
