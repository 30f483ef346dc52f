//! Signature verification that a backend hands in, and the bound on how often one handshake may use it.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

/// The most signature checks that one handshake may cost. An honest chain needs two to four.
pub const MAX_SIGNATURE_CHECKS: usize = 12;

/// The signature algorithms that one TLS library verifies with.
///
/// The list is the same on every backend: ECDSA on P-256, P-384 and P-521, and RSA PKCS#1 and PSS, each with SHA-256,
/// SHA-384 and SHA-512. Ed25519 is off everywhere, since Consul cannot issue it.
#[derive(Clone)]
pub struct SignatureAlgorithms(Vec<&'static dyn SignatureVerificationAlgorithm>);

impl SignatureAlgorithms {
    /// Takes the algorithms of a library.
    #[must_use]
    pub fn new(algorithms: Vec<&'static dyn SignatureVerificationAlgorithm>) -> Self {
        Self(algorithms)
    }

    /// The algorithms.
    #[must_use]
    pub fn all(&self) -> &[&'static dyn SignatureVerificationAlgorithm] {
        &self.0
    }
}

impl fmt::Debug for SignatureAlgorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureAlgorithms({})", self.0.len())
    }
}

/// Refuses the check that would be one too many.
#[derive(Debug)]
pub(super) struct Counted<'a> {
    pub(super) algorithm: &'static dyn SignatureVerificationAlgorithm,
    pub(super) budget: &'a Budget,
}

impl SignatureVerificationAlgorithm for Counted<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        if !self.budget.take() {
            return Err(InvalidSignature);
        }
        self.algorithm.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

/// How many signature checks are left to one handshake, and whether one was refused.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
    overdrawn: AtomicBool,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: AtomicUsize::new(MAX_SIGNATURE_CHECKS), overdrawn: AtomicBool::new(false) }
    }

    /// Whether a check was refused for want of budget, so the verdict is not about signatures.
    pub(super) fn overdrawn(&self) -> bool {
        self.overdrawn.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !taken {
            self.overdrawn.store(true, Ordering::Relaxed);
        }
        taken
    }
}
