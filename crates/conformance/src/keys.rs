//! Keys of every kind that a certificate might hold, and signatures of every kind that one might bear.
//!
//! aws-lc makes the keys that a peer must really own to finish a handshake. What it declines to make is made here
//! by hand: RSA of any size (many primes of 512 bits, so that even 8192 bits are found at once), RSA over MD5 and
//! SHA-1, ECDSA over the hash of another curve. None of these keys is fit for anything but a test.

use std::sync::OnceLock;

use aws_lc_rs::{
    digest,
    encoding::AsDer as _,
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256K1_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
        ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
        RsaEncoding,
    },
};
use md5::{Digest as _, Md5};
use num_bigint::BigUint;
use rand::{RngCore, SeedableRng, rngs::StdRng};

use crate::der;

/// The kinds of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256: what Consul's leaves have.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// ECDSA on secp256k1, which nobody here supports.
    Secp256k1,
    /// A point on P-224 whose secret nobody knows: it can be named by a certificate and sign nothing.
    P224,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 bits from the library, for leaves.
    Rsa2048,
    /// RSA of a multiple of 512 bits made by hand: it signs certificates, and no handshake.
    RsaByHand(usize),
}

/// How a certificate is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureKind {
    /// ecdsa-with-SHA1.
    EcdsaSha1,
    /// ecdsa-with-SHA256: what Consul signs with, whatever the curve.
    EcdsaSha256,
    /// ecdsa-with-SHA384.
    EcdsaSha384,
    /// ecdsa-with-SHA512.
    EcdsaSha512,
    /// md5WithRSAEncryption.
    RsaMd5,
    /// sha1WithRSAEncryption.
    RsaSha1,
    /// sha256WithRSAEncryption.
    RsaSha256,
    /// sha384WithRSAEncryption.
    RsaSha384,
    /// sha512WithRSAEncryption.
    RsaSha512,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of 32 bytes; by library keys only.
    RsaPssSha256,
    /// The same with SHA-384 and 48 bytes.
    RsaPssSha384,
    /// The same with SHA-512 and 64 bytes.
    RsaPssSha512,
    /// Ed25519.
    Ed25519,
}

impl SignatureKind {
    /// The AlgorithmIdentifier.
    #[must_use]
    pub fn identifier(self) -> Vec<u8> {
        let (oid, null) = match self {
            Self::RsaPssSha256 => return pss("2.16.840.1.101.3.4.2.1", 32),
            Self::RsaPssSha384 => return pss("2.16.840.1.101.3.4.2.2", 48),
            Self::RsaPssSha512 => return pss("2.16.840.1.101.3.4.2.3", 64),
            Self::EcdsaSha1 => ("1.2.840.10045.4.1", false),
            Self::EcdsaSha256 => ("1.2.840.10045.4.3.2", false),
            Self::EcdsaSha384 => ("1.2.840.10045.4.3.3", false),
            Self::EcdsaSha512 => ("1.2.840.10045.4.3.4", false),
            Self::RsaMd5 => ("1.2.840.113549.1.1.4", true),
            Self::RsaSha1 => ("1.2.840.113549.1.1.5", true),
            Self::RsaSha256 => ("1.2.840.113549.1.1.11", true),
            Self::RsaSha384 => ("1.2.840.113549.1.1.12", true),
            Self::RsaSha512 => ("1.2.840.113549.1.1.13", true),
            Self::Ed25519 => ("1.3.101.112", false),
        };
        der::seq(&[&der::oid(oid), if null { der::NULL } else { &[] }])
    }

    /// The digest of `message`, and the DigestInfo's object identifier where PKCS#1 asks for one.
    fn digest(self, message: &[u8]) -> (Vec<u8>, &'static str) {
        let (algorithm, oid) = match self {
            Self::RsaMd5 => return (Md5::digest(message).to_vec(), "1.2.840.113549.2.5"),
            Self::EcdsaSha1 | Self::RsaSha1 => (&digest::SHA1_FOR_LEGACY_USE_ONLY, "1.3.14.3.2.26"),
            Self::EcdsaSha256 | Self::RsaSha256 | Self::RsaPssSha256 => (&digest::SHA256, "2.16.840.1.101.3.4.2.1"),
            Self::EcdsaSha384 | Self::RsaSha384 | Self::RsaPssSha384 => (&digest::SHA384, "2.16.840.1.101.3.4.2.2"),
            Self::EcdsaSha512 | Self::RsaSha512 | Self::RsaPssSha512 | Self::Ed25519 => {
                (&digest::SHA512, "2.16.840.1.101.3.4.2.3")
            }
        };
        (digest::digest(algorithm, message).as_ref().to_vec(), oid)
    }
}

/// A key pair, or the public half of one.
pub struct Key {
    kind: KeyKind,
    spki: Vec<u8>,
    signer: Signer,
    pkcs8: Option<Vec<u8>>,
}

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    RsaLibrary(rsa::KeyPair),
    Rsa(RsaByHand),
    None,
}

impl Key {
    /// A new key.
    ///
    /// # Panics
    /// When the library has no randomness.
    #[must_use]
    pub fn generate(kind: KeyKind) -> Self {
        let ec = |algorithm: &'static EcdsaSigningAlgorithm, curve| {
            let pair = EcdsaKeyPair::generate(algorithm).expect("randomness for a key");
            let pkcs8 = pair.to_pkcs8v1().expect("a key can be written").as_ref().to_vec();
            (ec_spki(curve, pair.public_key().as_ref()), Signer::Ecdsa(pair), Some(pkcs8))
        };
        let (spki, signer, pkcs8) = match kind {
            KeyKind::P256 => ec(&ECDSA_P256_SHA256_ASN1_SIGNING, "1.2.840.10045.3.1.7"),
            KeyKind::P384 => ec(&ECDSA_P384_SHA384_ASN1_SIGNING, "1.3.132.0.34"),
            KeyKind::P521 => ec(&ECDSA_P521_SHA512_ASN1_SIGNING, "1.3.132.0.35"),
            KeyKind::Secp256k1 => ec(&ECDSA_P256K1_SHA256_ASN1_SIGNING, "1.3.132.0.10"),
            KeyKind::P224 => (ec_spki("1.3.132.0.33", &P224_BASE_POINT), Signer::None, None),
            KeyKind::Ed25519 => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("randomness for a key");
                let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key just written");
                let algorithm = SignatureKind::Ed25519.identifier();
                let spki = der::seq(&[&algorithm, &der::bits(pair.public_key().as_ref())]);
                // Written as Go and OpenSSL do. What was generated is of the second version, which OpenSSL and BoringSSL do
                // not read (RFC 5958).
                let pkcs8 = pair.to_pkcs8v1().expect("a key in memory");
                (spki, Signer::Ed25519(pair), Some(pkcs8.as_ref().to_vec()))
            }
            KeyKind::Rsa2048 => {
                let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("randomness for a key");
                let pkcs8 = pair.as_der().expect("a key can be written").as_ref().to_vec();
                (rsa_spki(pair.public_key().as_ref()), Signer::RsaLibrary(pair), Some(pkcs8))
            }
            KeyKind::RsaByHand(bits) => {
                let rsa = RsaByHand::generate(bits);
                let public = der::seq(&[&der::unsigned(&rsa.modulus.to_bytes_be()), &der::unsigned(&[1, 0, 1])]);
                (rsa_spki(&public), Signer::Rsa(rsa), None)
            }
        };
        Self { kind, spki, signer, pkcs8 }
    }

    /// What kind of key it is.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The SubjectPublicKeyInfo.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The public key as it lies inside the SubjectPublicKeyInfo, which is what libraries verify with: a point, or an
    /// RSAPublicKey.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        let (info, _) = der::read(&self.spki);
        let (_algorithm, rest) = der::read(info);
        // The bit string begins with the number of its unused bits.
        &der::read(rest).0[1..]
    }

    /// The private key as PKCS#8, where there is one with which a handshake can be signed.
    #[must_use]
    pub fn pkcs8(&self) -> Option<&[u8]> {
        self.pkcs8.as_deref()
    }

    /// An identifier of 20 bytes, as RFC 5280 (section 4.2.1.2) proposes but over SHA-256.
    #[must_use]
    pub fn identifier(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, &self.spki).as_ref()[..20].to_vec()
    }

    /// The signature with which a CA of this key signs when nothing else is asked: SHA-256, as Consul does.
    #[must_use]
    pub fn usual_signature(&self) -> SignatureKind {
        match self.kind {
            KeyKind::Ed25519 => SignatureKind::Ed25519,
            KeyKind::Rsa2048 | KeyKind::RsaByHand(_) => SignatureKind::RsaSha256,
            _ => SignatureKind::EcdsaSha256,
        }
    }

    /// Signs `message`.
    ///
    /// # Panics
    /// When the key is of another family than the signature, or has no private half here.
    #[must_use]
    pub fn sign(&self, message: &[u8], kind: SignatureKind) -> Vec<u8> {
        let (digest, oid) = kind.digest(message);
        match &self.signer {
            Signer::Ecdsa(pair) => {
                // The library signs with one hash for each curve. ECDSA takes the leftmost bits of the hash as a
                // number (FIPS 186-5, section 6.4.1), so the hash wanted is cut or padded to the size of that one.
                let (algorithm, size) = match self.kind {
                    KeyKind::P384 => (&digest::SHA384, 48),
                    KeyKind::P521 => (&digest::SHA512, 64),
                    _ => (&digest::SHA256, 32),
                };
                let mut number = vec![0; size - digest.len().min(size)];
                number.extend_from_slice(&digest[..digest.len().min(size)]);
                let number = digest::Digest::import_less_safe(&number, algorithm).expect("a hash of the right size");
                pair.sign_digest(&number).expect("a signature").as_ref().to_vec()
            }
            Signer::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Signer::RsaLibrary(pair) => {
                let padding: &'static dyn RsaEncoding = match kind {
                    SignatureKind::RsaPssSha256 => &RSA_PSS_SHA256,
                    SignatureKind::RsaPssSha384 => &RSA_PSS_SHA384,
                    SignatureKind::RsaPssSha512 => &RSA_PSS_SHA512,
                    SignatureKind::RsaSha384 => &RSA_PKCS1_SHA384,
                    SignatureKind::RsaSha512 => &RSA_PKCS1_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), message, &mut signature).expect("a signature");
                signature
            }
            Signer::Rsa(rsa) => {
                let info = der::seq(&[&der::seq(&[&der::oid(oid), der::NULL]), &der::octets(&digest)]);
                rsa.sign_pkcs1(&info)
            }
            Signer::None => panic!("a {:?} key signs nothing here", self.kind),
        }
    }
}

impl std::fmt::Debug for Key {
    /// Without the private half.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?})", self.kind)
    }
}

/// The base point of P-224 (FIPS 186-4, D.1.2.2): a public key whose secret, one, is not worth keeping.
const P224_BASE_POINT: [u8; 57] = [
    0x04, 0xb7, 0x0e, 0x0c, 0xbd, 0x6b, 0xb4, 0xbf, 0x7f, 0x32, 0x13, 0x90, 0xb9, 0x4a, 0x03, 0xc1, 0xd3, 0x56, 0xc2,
    0x11, 0x22, 0x34, 0x32, 0x80, 0xd6, 0x11, 0x5c, 0x1d, 0x21, 0xbd, 0x37, 0x63, 0x88, 0xb5, 0xf7, 0x23, 0xfb, 0x4c,
    0x22, 0xdf, 0xe6, 0xcd, 0x43, 0x75, 0xa0, 0x5a, 0x07, 0x47, 0x64, 0x44, 0xd5, 0x81, 0x99, 0x85, 0x00, 0x7e, 0x34,
];

/// RSASSA-PSS over this hash and the same in MGF1 (RFC 4055, section 3.1).
fn pss(hash: &str, salt: u8) -> Vec<u8> {
    let hash = der::seq(&[&der::oid(hash), der::NULL]);
    let mgf1 = der::seq(&[&der::oid("1.2.840.113549.1.1.8"), &hash]);
    let parameters =
        der::seq(&[&der::tlv(0xa0, &hash), &der::tlv(0xa1, &mgf1), &der::tlv(0xa2, &der::integer(&[salt]))]);
    der::seq(&[&der::oid("1.2.840.113549.1.1.10"), &parameters])
}

fn ec_spki(curve: &str, point: &[u8]) -> Vec<u8> {
    der::seq(&[&der::seq(&[&der::oid("1.2.840.10045.2.1"), &der::oid(curve)]), &der::bits(point)])
}

fn rsa_spki(public: &[u8]) -> Vec<u8> {
    der::seq(&[&der::seq(&[&der::oid("1.2.840.113549.1.1.1"), der::NULL]), &der::bits(public)])
}

/// RSA with as many primes of 512 bits as the size asks for.
struct RsaByHand {
    primes: Vec<BigUint>,
    modulus: BigUint,
}

impl RsaByHand {
    fn generate(bits: usize) -> Self {
        assert!(bits.is_multiple_of(512) && bits / 512 <= POOL, "{bits} bits are not made here");
        // Keys of one size need not differ from each other, only sign; so all come from one pool of primes.
        static PRIMES: OnceLock<Vec<BigUint>> = OnceLock::new();
        let pool = PRIMES.get_or_init(|| {
            let mut random = StdRng::from_os_rng();
            let mut primes: Vec<BigUint> = Vec::new();
            while primes.len() < POOL {
                let prime = random_prime(&mut random);
                if !primes.contains(&prime) {
                    primes.push(prime);
                }
            }
            primes
        });
        let primes = pool[..bits / 512].to_vec();
        let modulus: BigUint = primes.iter().product();
        assert_eq!(modulus.bits(), bits as u64);
        Self { primes, modulus }
    }

    /// RSASSA-PKCS1-v1_5 (RFC 8017, section 8.2.1) over a ready DigestInfo.
    fn sign_pkcs1(&self, info: &[u8]) -> Vec<u8> {
        let size = self.modulus.to_bytes_be().len();
        let mut padded = vec![0x00, 0x01];
        padded.resize(size - info.len() - 1, 0xff);
        padded.push(0x00);
        padded.extend_from_slice(info);
        let message = BigUint::from_bytes_be(&padded);
        let mut signature = BigUint::ZERO;
        for prime in &self.primes {
            let exponent = BigUint::from(EXPONENT).modinv(&(prime - 1u8)).expect("the primes were chosen so");
            let share = (&message % prime).modpow(&exponent, prime);
            let others = &self.modulus / prime;
            let weight = others.modinv(prime).expect("the primes differ");
            signature += share * weight * others;
        }
        let signature = (signature % &self.modulus).to_bytes_be();
        [vec![0; size - signature.len()], signature].concat()
    }
}

const EXPONENT: u32 = 65537;

/// Enough primes for 8192 bits.
const POOL: usize = 16;

/// A probable prime of 512 bits of which the five highest are set, so that products have full length.
fn random_prime(random: &mut StdRng) -> BigUint {
    let sieve: Vec<u32> =
        (3u32..2000).step_by(2).filter(|n| (3..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).collect();
    loop {
        let mut bytes = [0; 64];
        random.fill_bytes(&mut bytes);
        bytes[0] |= 0xf8;
        bytes[63] |= 1;
        let candidate = BigUint::from_bytes_be(&bytes);
        let zero = BigUint::ZERO;
        if sieve.iter().any(|prime| &candidate % prime == zero) || (&candidate - 1u8) % EXPONENT == zero {
            continue;
        }
        if (0..8).all(|_| passes_miller_rabin(&candidate, random)) {
            return candidate;
        }
    }
}

fn passes_miller_rabin(candidate: &BigUint, random: &mut StdRng) -> bool {
    let one = BigUint::from(1u8);
    let minus_one = candidate - &one;
    let twos = minus_one.trailing_zeros().unwrap_or_default();
    let odd = &minus_one >> twos;
    let mut witness = [0; 63];
    random.fill_bytes(&mut witness);
    let mut power = (BigUint::from_bytes_be(&witness) + 2u8).modpow(&odd, candidate);
    if power == one || power == minus_one {
        return true;
    }
    for _ in 1..twos {
        power = &power * &power % candidate;
        if power == minus_one {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};

    use super::*;

    #[test]
    fn signatures_made_by_hand_are_good_in_the_eyes_of_the_library() {
        use SignatureKind as S;
        let cases: [(KeyKind, S, &'static dyn VerificationAlgorithm); 13] = [
            (KeyKind::P256, S::EcdsaSha1, &signature::ECDSA_P256_SHA1_ASN1),
            (KeyKind::P256, S::EcdsaSha256, &signature::ECDSA_P256_SHA256_ASN1),
            (KeyKind::P256, S::EcdsaSha384, &signature::ECDSA_P256_SHA384_ASN1),
            (KeyKind::P256, S::EcdsaSha512, &signature::ECDSA_P256_SHA512_ASN1),
            (KeyKind::P384, S::EcdsaSha256, &signature::ECDSA_P384_SHA256_ASN1),
            (KeyKind::P384, S::EcdsaSha384, &signature::ECDSA_P384_SHA384_ASN1),
            (KeyKind::P521, S::EcdsaSha256, &signature::ECDSA_P521_SHA256_ASN1),
            (KeyKind::P521, S::EcdsaSha512, &signature::ECDSA_P521_SHA512_ASN1),
            (KeyKind::Secp256k1, S::EcdsaSha256, &signature::ECDSA_P256K1_SHA256_ASN1),
            (KeyKind::RsaByHand(1024), S::RsaSha256, &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY),
            (KeyKind::RsaByHand(2048), S::RsaSha1, &signature::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY),
            (KeyKind::RsaByHand(4096), S::RsaSha384, &signature::RSA_PKCS1_2048_8192_SHA384),
            (KeyKind::RsaByHand(8192), S::RsaSha512, &signature::RSA_PKCS1_2048_8192_SHA512),
        ];
        for (kind, signature_kind, algorithm) in cases {
            let key = Key::generate(kind);
            let signature = key.sign(b"message", signature_kind);
            let verified = UnparsedPublicKey::new(algorithm, key.public()).verify(b"message", &signature);
            assert!(verified.is_ok(), "{kind:?} {signature_kind:?}");
        }
    }

    #[test]
    fn a_signature_over_md5_is_the_padded_digest_raised_to_the_private_exponent() {
        let key = Key::generate(KeyKind::RsaByHand(2048));
        let Signer::Rsa(rsa) = &key.signer else { panic!("it is RSA") };
        let signature = BigUint::from_bytes_be(&key.sign(b"message", SignatureKind::RsaMd5));
        let opened = signature.modpow(&BigUint::from(EXPONENT), &rsa.modulus).to_bytes_be();
        assert!(opened.ends_with(&Md5::digest(b"message")), "{opened:02x?}");
    }
}
