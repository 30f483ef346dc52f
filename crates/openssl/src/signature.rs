//! Signatures: what peers may sign with, and the P-256 keys that we make.

use std::sync::LazyLock;

use lictor_core::{
    SignatureAlgorithms,
    tls::{BuildError, SigningKey},
    verify::{Curve, Hash, Scheme, SignatureLibrary},
};
use openssl::{
    bn::BigNumContext,
    ec::{EcGroup, EcKey, EcPoint, PointConversionForm},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private, Public},
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Signer, Verifier},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::{no_errors_left, refused};

/// The sizes that an RSA key may have, in bits.
pub(crate) const RSA_BITS: std::ops::RangeInclusive<i32> = 2048..=8192;

/// The most bits of a public RSA exponent. OpenSSL would take one as long as the modulus, which makes a check as slow
/// as a signature.
const MAX_EXPONENT_BITS: i32 = 33;

/// What the mesh verifies certificates with.
pub(crate) fn algorithms() -> &'static SignatureAlgorithms {
    static ALGORITHMS: LazyLock<SignatureAlgorithms> = LazyLock::new(SignatureAlgorithms::over::<Openssl>);
    &ALGORITHMS
}

/// OpenSSL as a verifier of signatures.
#[derive(Debug)]
struct Openssl;

impl SignatureLibrary for Openssl {
    fn is_good(scheme: Scheme, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        no_errors_left(|| verify(scheme, public_key, message, signature)).unwrap_or(false)
    }
}

fn verify(scheme: Scheme, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<bool, ErrorStack> {
    let (key, hash) = match scheme {
        Scheme::Ecdsa(curve, hash) => (point(curve, public_key)?, hash),
        Scheme::RsaPkcs1(hash) | Scheme::RsaPss(hash) => (modulus(public_key, signature)?, hash),
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

/// The key of an uncompressed point, which OpenSSL checks to lie on the curve.
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

/// The key of an RSAPublicKey, if it is one that all libraries take, and if `signature` is as long as it must be.
fn modulus(public_key: &[u8], signature: &[u8]) -> Result<Option<PKey<Public>>, ErrorStack> {
    let key = Rsa::public_key_from_der_pkcs1(public_key)?;
    let exponent = key.e();
    // OpenSSL reads more than DER, and would read past what follows.
    let taken = key.public_key_to_der_pkcs1()? == public_key
        && RSA_BITS.contains(&key.n().num_bits())
        && (2..=MAX_EXPONENT_BITS).contains(&exponent.num_bits())
        && exponent.is_bit_set(0)
        && usize::try_from(key.size()) == Ok(signature.len());
    if taken { PKey::from_rsa(key).map(Some) } else { Ok(None) }
}

fn digest(hash: Hash) -> MessageDigest {
    match hash {
        Hash::Sha256 => MessageDigest::sha256(),
        Hash::Sha384 => MessageDigest::sha384(),
        Hash::Sha512 => MessageDigest::sha512(),
    }
}

/// A P-256 key that OpenSSL made.
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
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let pair = EcKey::generate(&group)?;
        let form = PointConversionForm::UNCOMPRESSED;
        let public_point = pair.public_key().to_bytes(&group, form, &mut *BigNumContext::new()?)?;
        let key = PKey::from_ec_key(pair)?;
        let pkcs8 = Zeroizing::new(key.private_key_to_pkcs8()?);
        Ok(Self { key, public_point, pkcs8 })
    }
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
    use lictor_conformance::keys::{Key, KeyKind, SignatureKind};
    use openssl::bn::{BigNum, BigNumRef};

    use super::*;

    const MESSAGE: &[u8] = b"what was signed";

    /// A key as a certificate has it, behind the bytes that say of which kind it is.
    fn key_bits(key: &Key) -> Vec<u8> {
        let key = PKey::public_key_from_der(key.spki()).unwrap();
        match key.rsa() {
            Ok(rsa) => rsa.public_key_to_der_pkcs1().unwrap(),
            Err(_) => {
                let ec = key.ec_key().unwrap();
                let mut context = BigNumContext::new().unwrap();
                ec.public_key().to_bytes(ec.group(), PointConversionForm::UNCOMPRESSED, &mut context).unwrap()
            }
        }
    }

    fn pkcs1(n: &BigNumRef, e: u64) -> Vec<u8> {
        let e = BigNum::from_slice(&e.to_be_bytes()).unwrap();
        Rsa::from_public_components(n.to_owned().unwrap(), e).unwrap().public_key_to_der_pkcs1().unwrap()
    }

    #[test]
    fn a_good_signature_is_good_under_its_own_scheme_alone() {
        let schemes = [
            (KeyKind::P256, SignatureKind::EcdsaSha256, Scheme::Ecdsa(Curve::P256, Hash::Sha256)),
            (KeyKind::P384, SignatureKind::EcdsaSha256, Scheme::Ecdsa(Curve::P384, Hash::Sha256)),
            (KeyKind::P384, SignatureKind::EcdsaSha384, Scheme::Ecdsa(Curve::P384, Hash::Sha384)),
            (KeyKind::P521, SignatureKind::EcdsaSha512, Scheme::Ecdsa(Curve::P521, Hash::Sha512)),
            (KeyKind::Rsa2048, SignatureKind::RsaSha256, Scheme::RsaPkcs1(Hash::Sha256)),
            (KeyKind::Rsa2048, SignatureKind::RsaPssSha256, Scheme::RsaPss(Hash::Sha256)),
        ];
        for (kind, signature, scheme) in schemes {
            let key = Key::generate(kind);
            let (public, signed) = (key_bits(&key), key.sign(MESSAGE, signature));
            for (_, _, other) in schemes {
                assert_eq!(
                    Openssl::is_good(other, &public, MESSAGE, &signed),
                    scheme == other,
                    "{scheme:?} as {other:?}"
                );
            }
            assert!(!Openssl::is_good(scheme, &public, b"another message", &signed));
            assert!(!Openssl::is_good(scheme, &public, MESSAGE, &signed[..signed.len() - 1]));
            assert!(!Openssl::is_good(scheme, &public, MESSAGE, &[&signed[..], &[0]].concat()));
            assert!(!Openssl::is_good(scheme, &public, MESSAGE, &[]));
            assert!(!Openssl::is_good(scheme, &[&public[..], &[0]].concat(), MESSAGE, &signed), "bytes behind the key");
            assert!(!Openssl::is_good(scheme, &public[..public.len() - 1], MESSAGE, &signed));
            assert!(!Openssl::is_good(scheme, &[], MESSAGE, &signed));
        }
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
            let is_good = Openssl::is_good(Scheme::RsaPss(Hash::Sha256), &key_bits(&key), MESSAGE, &signature);
            assert_eq!(is_good, good, "{salt} bytes of salt");
        }
    }

    #[test]
    fn a_point_is_taken_in_one_form_and_on_its_curve() {
        let key = Key::generate(KeyKind::P256);
        let (mut point, signature) = (key_bits(&key), key.sign(MESSAGE, SignatureKind::EcdsaSha256));
        let is_good =
            |point: &[u8]| Openssl::is_good(Scheme::Ecdsa(Curve::P256, Hash::Sha256), point, MESSAGE, &signature);
        assert!(is_good(&point));
        let is_odd = point[64] & 1;
        assert!(!is_good(&[&[2 + is_odd], &point[1..33]].concat()), "compressed");
        assert!(!is_good(&[&[6 + is_odd], &point[1..]].concat()), "hybrid");
        assert!(!is_good(&[0]), "the point at infinity");
        point[64] ^= 1;
        assert!(!is_good(&point), "beside the curve");
    }

    #[test]
    fn an_rsa_key_has_the_size_and_the_exponent_that_all_libraries_take() {
        for (bits, taken) in [(1024, false), (1536, false), (2048, true), (4096, true), (8192, true)] {
            let key = Key::generate(KeyKind::RsaByHand(bits));
            let signature = key.sign(MESSAGE, SignatureKind::RsaSha256);
            let is_good = Openssl::is_good(Scheme::RsaPkcs1(Hash::Sha256), &key_bits(&key), MESSAGE, &signature);
            assert_eq!(is_good, taken, "{bits} bits");
        }
        // Whatever it was signed with, what counts is whether the key is looked at.
        let n = PKey::public_key_from_der(Key::generate(KeyKind::Rsa2048).spki()).unwrap().rsa().unwrap();
        let n = n.n();
        let taken = |e: u64| modulus(&pkcs1(n, e), &[0; 256]).unwrap().is_some();
        assert!(taken(3) && taken(65_537) && taken((1 << 33) - 1));
        for e in [0, 1, 2, 65_536, (1 << 33) + 1, u64::MAX] {
            assert!(!taken(e), "{e}");
        }
        let mut too_long = n.to_owned().unwrap();
        too_long.set_bit(8192).unwrap();
        assert!(modulus(&pkcs1(&too_long, 3), &[0; 1025]).unwrap().is_none());
        assert!(modulus(&pkcs1(n, 3), &[0; 255]).unwrap().is_none(), "a signature shorter than the modulus");
    }

    #[test]
    fn a_key_that_we_make_signs_and_comes_out_whole() {
        let key = P256::generate().unwrap();
        let signature = key.sign_sha256(MESSAGE).unwrap();
        let scheme = Scheme::Ecdsa(Curve::P256, Hash::Sha256);
        assert_eq!(key.public_point().len(), 65);
        assert!(Openssl::is_good(scheme, key.public_point(), MESSAGE, &signature));
        let again = PKey::private_key_from_pkcs8(key.pkcs8().secret_der()).unwrap();
        assert!(again.public_eq(&key.key));
        let shown = format!("{key:?}");
        let secret = again.ec_key().unwrap().private_key().to_vec();
        assert!(!shown.contains(&format!("{secret:?}")[1..20]), "{shown}");
    }
}
