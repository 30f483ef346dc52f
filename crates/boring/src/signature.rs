//! Signatures: what peers may sign with, and the P-256 keys that we make.

use std::sync::LazyLock;

use boring::{
    bn::BigNumContext,
    ec::{EcGroup, EcKey, EcPoint, PointConversionForm},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private, Public},
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Signer, Verifier},
};
use boring_sys as ffi;
use foreign_types::ForeignType;
use lictor_core::{
    SignatureAlgorithms,
    tls::{BuildError, SigningKey},
    verify::{Curve, Hash, Scheme, SignatureLibrary},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::{done, no_errors_left, refused};

/// The sizes that an RSA key may have, in bits.
pub(crate) const RSA_BITS: std::ops::RangeInclusive<i32> = 2048..=8192;

/// What the mesh verifies certificates with.
pub(crate) fn algorithms() -> &'static SignatureAlgorithms {
    static ALGORITHMS: LazyLock<SignatureAlgorithms> = LazyLock::new(SignatureAlgorithms::over::<Boring>);
    &ALGORITHMS
}

/// BoringSSL as a verifier of signatures; in a FIPS build, its module.
#[derive(Debug)]
struct Boring;

impl SignatureLibrary for Boring {
    fn is_good(scheme: Scheme, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        no_errors_left(|| verify(scheme, public_key, message, signature)).unwrap_or(false)
    }
}

fn verify(scheme: Scheme, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
    let (key, hash) = match scheme {
        Scheme::Ecdsa(curve, hash) => (point(curve, public_key)?, hash),
        Scheme::RsaPkcs1(hash) | Scheme::RsaPss(hash) => (modulus(public_key)?, hash),
    };
    let Some(key) = key else { return Ok(false) };
    let mut verifier = Verifier::new(digest(hash), &key)?;
    if matches!(scheme, Scheme::RsaPss(_)) {
        verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
        verifier.set_rsa_mgf1_md(digest(hash))?;
        verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
    }
    verifier.verify_oneshot(signature, message)
}

/// The key of an uncompressed point, which BoringSSL checks to lie on the curve.
fn point(curve: Curve, public_key: &[u8]) -> Result<Option<PKey<Public>>, ErrorStack> {
    const UNCOMPRESSED: u8 = 4;
    if public_key.first() != Some(&UNCOMPRESSED) {
        return Ok(None);
    }
    let group = EcGroup::from_curve_name(match curve {
        Curve::P256 => Nid::X9_62_PRIME256V1,
        Curve::P384 => Nid::SECP384R1,
        Curve::P521 => Nid::SECP521R1,
    })?;
    let point = EcPoint::from_bytes(&group, public_key, &mut *BigNumContext::new()?)?;
    PKey::from_ec_key(EcKey::from_public_key(&group, &point)?).map(Some)
}

/// The key of an RSAPublicKey, if it is one that all libraries take. BoringSSL itself takes no exponent of more than 33
/// bits, and no signature of another length than the modulus.
fn modulus(public_key: &[u8]) -> Result<Option<PKey<Public>>, ErrorStack> {
    let key = Rsa::public_key_from_der_pkcs1(public_key)?;
    // BoringSSL would read past what follows.
    let taken = key.public_key_to_der_pkcs1()? == public_key && RSA_BITS.contains(&key.n().num_bits());
    if taken { PKey::from_rsa(key).map(Some) } else { Ok(None) }
}

fn digest(hash: Hash) -> MessageDigest {
    match hash {
        Hash::Sha256 => MessageDigest::sha256(),
        Hash::Sha384 => MessageDigest::sha384(),
        Hash::Sha512 => MessageDigest::sha512(),
    }
}

/// A P-256 key that BoringSSL made.
pub(crate) struct P256 {
    key: PKey<Private>,
    public_point: Vec<u8>,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl P256 {
    /// Makes a new one.
    pub(crate) fn generate() -> Result<Self, BuildError> {
        Self::make().map_err(refused("key"))
    }

    fn make() -> Result<Self, ErrorStack> {
        let pair = tried_pair()?;
        let form = PointConversionForm::UNCOMPRESSED;
        let public_point = pair.public_key().to_bytes(pair.group(), form, &mut *BigNumContext::new()?)?;
        let key = PKey::from_ec_key(pair)?;
        let pkcs8 = Zeroizing::new(key.private_key_to_der_pkcs8()?);
        Ok(Self { key, public_point, pkcs8 })
    }
}

/// A new pair that was tried before it is used, which a FIPS module must do, so it is done in every build.
#[expect(unsafe_code, reason = "the crate knows only the call that leaves the trial out")]
fn tried_pair() -> Result<EcKey<Private>, ErrorStack> {
    let key = EcKey::from_curve_name(Nid::X9_62_PRIME256V1)?;
    // SAFETY: the pointer is that of a live key with a group, which nobody else knows of.
    done(unsafe { ffi::EC_KEY_generate_key_fips(key.as_ptr()) })?;
    // SAFETY: the pointer is the one that `key` owned and gave up; the key holds a private half by now, which is all
    // that the type promises.
    Ok(unsafe { EcKey::from_ptr(key.into_ptr()) })
}

impl SigningKey for P256 {
    fn public_point(&self) -> &[u8] {
        &self.public_point
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, BuildError> {
        no_errors_left(|| {
            let mut signer = Signer::new(MessageDigest::sha256(), &self.key)?;
            signer.sign_oneshot_to_vec(message)
        })
        .map_err(refused("key"))
    }

    fn pkcs8(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

impl std::fmt::Debug for P256 {
    /// The public half alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("P256").field("public_point", &self.public_point).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use boring::bn::{BigNum, BigNumRef};
    use lictor_conformance::keys::{Key, KeyKind, SignatureKind};

    use super::*;

    const MESSAGE: &[u8] = b"what was signed";
    const ECDSA: Scheme = Scheme::Ecdsa(Curve::P256, Hash::Sha256);

    #[test]
    fn a_point_is_taken_in_one_form_and_on_its_curve() {
        let key = Key::generate(KeyKind::P256);
        let (mut point, signature) = (key.public().to_vec(), key.sign(MESSAGE, SignatureKind::EcdsaSha256));
        let is_good = |point: &[u8]| Boring::is_good(ECDSA, point, MESSAGE, &signature);
        assert!(is_good(&point));
        let is_odd = point[64] & 1;
        assert!(!is_good(&[&[2 + is_odd], &point[1..33]].concat()), "compressed");
        assert!(!is_good(&[&[6 + is_odd], &point[1..]].concat()), "hybrid");
        assert!(!is_good(&[0]), "the point at infinity");
        assert!(!is_good(&[&point[..], &[0]].concat()), "a byte behind it");
        point[64] ^= 1;
        assert!(!is_good(&point), "beside the curve");
    }

    #[test]
    fn an_rsa_key_has_the_size_and_the_exponent_that_all_libraries_take() {
        let key = Key::generate(KeyKind::Rsa2048);
        let n = Rsa::public_key_from_der_pkcs1(key.public()).unwrap().n().to_owned().unwrap();
        let taken = |n: &BigNumRef, e: u64| {
            let e = BigNum::from_slice(&e.to_be_bytes()).unwrap();
            let key = Rsa::from_public_components(n.to_owned().unwrap(), e)?;
            modulus(&key.public_key_to_der_pkcs1()?).map(|key| key.is_some())
        };
        for e in [3, 65_537, (1 << 33) - 1] {
            assert_eq!(taken(&n, e).ok(), Some(true), "{e}");
        }
        for e in [0, 1, 2, 65_536, (1 << 33) + 1, u64::MAX] {
            assert_ne!(taken(&n, e).ok(), Some(true), "{e}");
        }
        let mut too_long = n.to_owned().unwrap();
        too_long.set_bit(8192).unwrap();
        assert_ne!(taken(&too_long, 3).ok(), Some(true));
        let signature = key.sign(MESSAGE, SignatureKind::RsaSha256);
        let is_good = |key: &[u8]| Boring::is_good(Scheme::RsaPkcs1(Hash::Sha256), key, MESSAGE, &signature);
        assert!(is_good(key.public()));
        assert!(!is_good(&[key.public(), &[0]].concat()), "a byte behind it");
    }

    #[test]
    fn the_salt_of_pss_is_as_long_as_the_hash() {
        let key = Key::generate(KeyKind::Rsa2048);
        let private = PKey::private_key_from_pkcs8(key.pkcs8().unwrap()).unwrap();
        for (salt, good) in [(32, true), (20, false), (0, false), (48, false)] {
            let mut signer = Signer::new(MessageDigest::sha256(), &private).unwrap();
            signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
            signer.set_rsa_pss_saltlen(RsaPssSaltlen::custom(salt)).unwrap();
            let signature = signer.sign_oneshot_to_vec(MESSAGE).unwrap();
            let is_good = Boring::is_good(Scheme::RsaPss(Hash::Sha256), key.public(), MESSAGE, &signature);
            assert_eq!(is_good, good, "{salt} bytes of salt");
        }
    }

    #[test]
    fn a_key_that_we_make_signs_and_shows_its_public_half_alone() {
        let key = P256::generate().unwrap();
        let signature = key.sign_sha256(MESSAGE).unwrap();
        assert!(Boring::is_good(ECDSA, key.public_point(), MESSAGE, &signature));
        let again = PKey::private_key_from_pkcs8(key.pkcs8().secret_der()).unwrap();
        assert!(again.public_eq(&key.key));
        let shown = format!("{key:?}");
        let secret = again.ec_key().unwrap().private_key().to_vec();
        assert!(!shown.contains(&format!("{secret:?}")[1..20]), "{shown}");
    }
}
