//! Signatures: what peers may sign with, and the P-256 keys that we make.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use lictor_core::{
    SignatureAlgorithms,
    tls::{BuildError, SigningKey},
};
use rustls::{SignatureScheme, crypto::WebPkiSupportedAlgorithms};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use webpki::aws_lc_rs as webpki_algorithms;
use zeroize::Zeroizing;

/// What the mesh verifies with, for certificates and for the handshake alike.
///
/// The library's own list has Ed25519 and ML-DSA besides, which not all backends have and Consul cannot issue.
/// RSA identifiers without parameters are on it because RFC 4055 (section 5) says that they must be accepted.
pub(crate) static MESH_ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        webpki_algorithms::ECDSA_P256_SHA256,
        webpki_algorithms::ECDSA_P256_SHA384,
        webpki_algorithms::ECDSA_P256_SHA512,
        webpki_algorithms::ECDSA_P384_SHA256,
        webpki_algorithms::ECDSA_P384_SHA384,
        webpki_algorithms::ECDSA_P384_SHA512,
        webpki_algorithms::ECDSA_P521_SHA256,
        webpki_algorithms::ECDSA_P521_SHA384,
        webpki_algorithms::ECDSA_P521_SHA512,
        webpki_algorithms::RSA_PKCS1_2048_8192_SHA256,
        webpki_algorithms::RSA_PKCS1_2048_8192_SHA384,
        webpki_algorithms::RSA_PKCS1_2048_8192_SHA512,
        webpki_algorithms::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        webpki_algorithms::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        webpki_algorithms::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
        webpki_algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        webpki_algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        webpki_algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    ],
    // In TLS 1.3 a scheme names its curve and only the first entry counts; in TLS 1.2 it names the hash alone.
    mapping: &[
        (
            SignatureScheme::ECDSA_NISTP256_SHA256,
            &[
                webpki_algorithms::ECDSA_P256_SHA256,
                webpki_algorithms::ECDSA_P384_SHA256,
                webpki_algorithms::ECDSA_P521_SHA256,
            ],
        ),
        (
            SignatureScheme::ECDSA_NISTP384_SHA384,
            &[
                webpki_algorithms::ECDSA_P384_SHA384,
                webpki_algorithms::ECDSA_P256_SHA384,
                webpki_algorithms::ECDSA_P521_SHA384,
            ],
        ),
        (
            SignatureScheme::ECDSA_NISTP521_SHA512,
            &[
                webpki_algorithms::ECDSA_P521_SHA512,
                webpki_algorithms::ECDSA_P384_SHA512,
                webpki_algorithms::ECDSA_P256_SHA512,
            ],
        ),
        (SignatureScheme::RSA_PSS_SHA256, &[webpki_algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[webpki_algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA512, &[webpki_algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[webpki_algorithms::RSA_PKCS1_2048_8192_SHA256]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[webpki_algorithms::RSA_PKCS1_2048_8192_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[webpki_algorithms::RSA_PKCS1_2048_8192_SHA512]),
    ],
};

/// The same list for the verifier in core.
pub(crate) fn algorithms() -> SignatureAlgorithms {
    SignatureAlgorithms::new(MESH_ALGORITHMS.all.to_vec())
}

/// A P-256 key that aws-lc made.
pub(crate) struct P256 {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    random: SystemRandom,
}

impl P256 {
    /// Makes a new one.
    pub(crate) fn generate() -> Result<Self, BuildError> {
        let failed = |why: &str| BuildError::Refused { what: "key", why: why.to_owned() };
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| failed("AWS-LC could not generate a P-256 key"))?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| failed("AWS-LC could not encode the key it made"))?;
        Ok(Self { pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()), pair, random: SystemRandom::new() })
    }
}

impl SigningKey for P256 {
    fn public_point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, BuildError> {
        let signature = self.pair.sign(&self.random, message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| BuildError::Refused { what: "key", why: "AWS-LC could not sign with it".to_owned() })
    }

    fn pkcs8(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

impl std::fmt::Debug for P256 {
    /// The public half alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("P256").field("public_point", &self.pair.public_key().as_ref()).finish_non_exhaustive()
    }
}
