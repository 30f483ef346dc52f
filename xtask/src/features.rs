//! The one table of feature sets in which the binary may be built.

/// A legal set of features of the `lictor` package.
pub(crate) struct FeatureSet {
    /// What the packed binary is called.
    pub(crate) name: &'static str,
    /// As cargo's `--features` takes them, together with `--no-default-features`.
    pub(crate) features: &'static str,
    /// The packages that carry cryptography and are in the tree of this set; no other of [`CRYPTOGRAPHY`] is.
    pub(crate) packages: &'static [&'static str],
    /// Whose code or symbols are in the binary, by the names of [`crate::symbols`]; no other family's are.
    pub(crate) families: &'static [&'static str],
    /// How much of the gate it gets.
    pub(crate) gate: Gate,
}

/// How much of the gate a feature set gets; each includes the one before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gate {
    /// Its binary is linked, looked into, and asked for its cryptography.
    Linked,
    /// The backend passes the conformance suite in this build as well.
    Conformance,
    /// Lints, tests and the end-to-end tests.
    Full,
}

/// Every legal set. The gate walks it, and so does `dist`.
pub(crate) const LEGAL: &[FeatureSet] = &[
    FeatureSet {
        name: "lictor",
        features: "rustls,dev",
        packages: &["aws-lc-rs", "aws-lc-sys", "rustls"],
        families: &["AWS-LC", "rustls"],
        gate: Gate::Full,
    },
    FeatureSet {
        name: "lictor-openssl",
        features: "openssl,dev",
        packages: &["openssl", "openssl-sys"],
        families: &["OpenSSL, shared"],
        gate: Gate::Full,
    },
    FeatureSet {
        name: "lictor-boring",
        features: "boring,dev",
        packages: &["boring", "boring-sys"],
        families: &["BoringSSL"],
        gate: Gate::Full,
    },
    FeatureSet {
        name: "lictor-lean",
        features: "rustls",
        packages: &["aws-lc-rs", "aws-lc-sys", "rustls"],
        families: &["AWS-LC", "rustls"],
        gate: Gate::Linked,
    },
    FeatureSet {
        name: "lictor-rustls-openssl",
        features: "rustls,openssl,dev",
        packages: &["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "rustls"],
        families: &["AWS-LC", "OpenSSL, shared", "rustls"],
        gate: Gate::Linked,
    },
    FeatureSet {
        name: "lictor-rustls-boring",
        features: "rustls,boring,dev",
        packages: &["aws-lc-rs", "aws-lc-sys", "boring", "boring-sys", "rustls"],
        families: &["AWS-LC", "BoringSSL", "rustls"],
        gate: Gate::Linked,
    },
    FeatureSet {
        name: "lictor-openssl-vendored",
        features: "openssl-vendored,dev",
        packages: &["openssl", "openssl-sys"],
        families: &["OpenSSL, static"],
        gate: Gate::Conformance,
    },
    FeatureSet {
        name: "lictor-rustls-fips",
        features: "rustls-fips,dev",
        // The one exception: rustls's own feature brings both builds of AWS-LC into the tree.
        packages: &["aws-lc-fips-sys", "aws-lc-rs", "aws-lc-sys", "rustls"],
        families: &["AWS-LC FIPS", "rustls"],
        gate: Gate::Conformance,
    },
    FeatureSet {
        name: "lictor-boring-fips",
        features: "boring-fips,dev",
        packages: &["boring", "boring-sys"],
        families: &["BoringSSL"],
        gate: Gate::Conformance,
    },
];

/// Sets that must not build: what is asked for, and a word that the error must hold for the person who asked.
pub(crate) const ILLEGAL: &[(&str, &str)] = &[("openssl,boring", "one binary"), ("dev", "--features rustls")];

impl FeatureSet {
    /// The features of this set as an argument of cargo.
    pub(crate) fn argument(&self) -> String {
        format!("--features={}", self.features)
    }

    /// The backends that this set links, each with the feature of its crate that it is built with.
    pub(crate) fn backends(&self) -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
        self.features.split(',').filter(|feature| *feature != "dev").map(|feature| match feature.split_once('-') {
            Some((backend, variant)) => (backend, Some(variant)),
            None => (feature, None),
        })
    }

    /// Whether this build calls itself a FIPS build.
    pub(crate) fn is_fips(&self) -> bool {
        self.backends().any(|(_, variant)| variant == Some("fips"))
    }
}

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
