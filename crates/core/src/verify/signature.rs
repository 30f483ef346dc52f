//! Signature verification that a backend hands in, and the bound on how often one handshake may use it.

use std::{
    fmt,
    marker::PhantomData,
    mem,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

use super::memory::{GoodSignatures, Signed};

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

    /// The whole list over a library that has no list of its own.
    #[must_use]
    pub fn over<L: SignatureLibrary>() -> Self {
        Self(Over::<L>::ALL.to_vec())
    }

    /// The algorithms.
    #[must_use]
    pub fn all(&self) -> &[&'static dyn SignatureVerificationAlgorithm] {
        &self.0
    }
}

/// A library that verifies one signature at a time, from which [`SignatureAlgorithms::over`] makes the list.
pub trait SignatureLibrary: fmt::Debug + Send + Sync + 'static {
    /// Whether `signature` over `message` is good under `public_key`.
    ///
    /// `public_key` is the content of SubjectPublicKeyInfo: an uncompressed point (SEC 1, section 2.3.3) or an
    /// RSAPublicKey (RFC 8017, appendix A.1.1). Whatever cannot be parsed is not good. RSA keys have from 2048 to 8192
    /// bits. Nothing is left in a queue of errors that the library keeps for the thread.
    fn is_good(scheme: Scheme, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool;
}

/// A way to sign: key, padding and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// ECDSA; the signature is DER (RFC 3279, section 2.2.3).
    Ecdsa(Curve, Hash),
    /// RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2).
    RsaPkcs1(Hash),
    /// RSASSA-PSS with MGF1 over the same hash and a salt as long as it (RFC 8446, section 4.2.3).
    RsaPss(Hash),
}

/// A curve of NIST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
    /// secp521r1.
    P521,
}

/// A hash of the SHA-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// One scheme of the list over a library, under the algorithm identifiers that name it in a certificate.
#[derive(Debug)]
struct Over<L> {
    scheme: Scheme,
    public_key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    library: PhantomData<L>,
}

impl<L: SignatureLibrary> Over<L> {
    const fn ecdsa(curve: Curve, hash: Hash) -> Self {
        let public_key = match curve {
            Curve::P256 => alg_id::ECDSA_P256,
            Curve::P384 => alg_id::ECDSA_P384,
            Curve::P521 => alg_id::ECDSA_P521,
        };
        let signature = match hash {
            Hash::Sha256 => alg_id::ECDSA_SHA256,
            Hash::Sha384 => alg_id::ECDSA_SHA384,
            Hash::Sha512 => alg_id::ECDSA_SHA512,
        };
        Self { scheme: Scheme::Ecdsa(curve, hash), public_key, signature, library: PhantomData }
    }

    const fn rsa(scheme: Scheme, signature: AlgorithmIdentifier) -> Self {
        Self { scheme, public_key: alg_id::RSA_ENCRYPTION, signature, library: PhantomData }
    }

    /// The identifiers without parameters stand beside those with NULL because RFC 4055 (section 5) says that they
    /// must be accepted.
    const ALL: &'static [&'static dyn SignatureVerificationAlgorithm] = &[
        &Self::ecdsa(Curve::P256, Hash::Sha256),
        &Self::ecdsa(Curve::P256, Hash::Sha384),
        &Self::ecdsa(Curve::P256, Hash::Sha512),
        &Self::ecdsa(Curve::P384, Hash::Sha256),
        &Self::ecdsa(Curve::P384, Hash::Sha384),
        &Self::ecdsa(Curve::P384, Hash::Sha512),
        &Self::ecdsa(Curve::P521, Hash::Sha256),
        &Self::ecdsa(Curve::P521, Hash::Sha384),
        &Self::ecdsa(Curve::P521, Hash::Sha512),
        &Self::rsa(Scheme::RsaPkcs1(Hash::Sha256), alg_id::RSA_PKCS1_SHA256),
        &Self::rsa(Scheme::RsaPkcs1(Hash::Sha384), alg_id::RSA_PKCS1_SHA384),
        &Self::rsa(Scheme::RsaPkcs1(Hash::Sha512), alg_id::RSA_PKCS1_SHA512),
        &Self::rsa(Scheme::RsaPkcs1(Hash::Sha256), RSA_PKCS1_SHA256_WITHOUT_PARAMETERS),
        &Self::rsa(Scheme::RsaPkcs1(Hash::Sha384), RSA_PKCS1_SHA384_WITHOUT_PARAMETERS),
        &Self::rsa(Scheme::RsaPkcs1(Hash::Sha512), RSA_PKCS1_SHA512_WITHOUT_PARAMETERS),
        &Self::rsa(Scheme::RsaPss(Hash::Sha256), alg_id::RSA_PSS_SHA256),
        &Self::rsa(Scheme::RsaPss(Hash::Sha384), alg_id::RSA_PSS_SHA384),
        &Self::rsa(Scheme::RsaPss(Hash::Sha512), alg_id::RSA_PSS_SHA512),
    ];
}

/// The object identifiers of RFC 4055 (section 5) with nothing behind them.
const RSA_PKCS1_SHA256_WITHOUT_PARAMETERS: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11]);
const RSA_PKCS1_SHA384_WITHOUT_PARAMETERS: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12]);
const RSA_PKCS1_SHA512_WITHOUT_PARAMETERS: AlgorithmIdentifier =
    AlgorithmIdentifier::from_slice(&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13]);

impl<L: SignatureLibrary> SignatureVerificationAlgorithm for Over<L> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        if L::is_good(self.scheme, public_key, message, signature) { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.public_key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

impl fmt::Debug for SignatureAlgorithms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureAlgorithms({})", self.0.len())
    }
}

/// Refuses the check that would be one too many, and makes none whose outcome is known.
///
/// A check that is not made counts all the same, so the verdict on a chain never depends on what came before it.
#[derive(Debug)]
pub(super) struct Counted<'a> {
    pub(super) algorithm: &'static dyn SignatureVerificationAlgorithm,
    pub(super) budget: &'a Budget,
    pub(super) known: &'a GoodSignatures,
}

impl SignatureVerificationAlgorithm for Counted<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        if !self.budget.take() {
            return Err(InvalidSignature);
        }
        let signed = Signed::new(self.algorithm, public_key, message, signature);
        if !self.known.knows(&signed) {
            self.algorithm.verify_signature(public_key, message, signature)?;
            self.budget.found_good(signed);
        }
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

/// How many signature checks are left to one handshake, whether one was refused, and what was found good.
pub(super) struct Budget {
    left: AtomicUsize,
    overdrawn: AtomicBool,
    /// On the path that is being checked.
    found: Mutex<Vec<Signed>>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            left: AtomicUsize::new(MAX_SIGNATURE_CHECKS),
            overdrawn: AtomicBool::new(false),
            found: Mutex::default(),
        }
    }

    /// Whether a check was refused for want of budget, so the verdict is not about signatures.
    pub(super) fn overdrawn(&self) -> bool {
        self.overdrawn.load(Ordering::Relaxed)
    }

    /// The signatures that were verified since the last call.
    pub(super) fn take_found(&self) -> Vec<Signed> {
        mem::take(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn found_good(&self, signed: Signed) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(signed);
    }

    fn take(&self) -> bool {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !taken {
            self.overdrawn.store(true, Ordering::Relaxed);
        }
        taken
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("left", &self.left).field("overdrawn", &self.overdrawn).finish_non_exhaustive()
    }
}
