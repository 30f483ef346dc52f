//! Keys come from outside: this crate links no cryptography of its own.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;

/// Makes P-256 keys for the certificate authority and for leaves.
///
/// The binary implements this over its TLS backend, so that a build that carries the embedded agent carries
/// one cryptographic library and no more.
pub trait KeyMaker: Send + Sync + 'static {
    /// Makes a fresh key on the curve P-256 (secp256r1).
    ///
    /// # Errors
    ///
    /// When the library behind it refuses, for example for want of entropy.
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError>;
}

/// One P-256 key pair.
pub trait CaKey: Send + Sync + 'static {
    /// The public point, uncompressed: `0x04`, then x and y, 65 bytes in all (SEC 1 §2.3.3).
    fn public_point(&self) -> &[u8];

    /// Signs `message` with ECDSA over its SHA-256; the answer is the DER `Ecdsa-Sig-Value` (RFC 3279 §2.2.3).
    ///
    /// # Errors
    ///
    /// When the library behind it refuses.
    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;

    /// The private key as a PKCS#8 `PrivateKeyInfo` in DER (RFC 5208, RFC 5958).
    ///
    /// # Errors
    ///
    /// When the key cannot be exported.
    fn pkcs8_der(&self) -> Result<Vec<u8>, KeyError>;
}

/// Why a key could not be made, used or exported.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub String);

/// Lets rcgen sign with a key from outside.
#[derive(Clone)]
pub(crate) struct Signer(pub(crate) Arc<dyn CaKey>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl rcgen::PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Signer {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign_sha256(msg).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The private key the way Consul sends it: PEM of a SEC 1 `ECPrivateKey` (RFC 5915).
pub(crate) fn sec1_pem(key: &dyn CaKey) -> Result<String, KeyError> {
    let pkcs8 = key.pkcs8_der()?;
    let scalar =
        scalar_of_pkcs8(&pkcs8).ok_or_else(|| KeyError("the exported key is no P-256 PKCS#8 key".to_owned()))?;
    Ok(pem("EC PRIVATE KEY", &sec1_der(scalar, key.public_point())))
}

/// A PEM block with lines of 64 characters, ending in a newline.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Finds the 32-byte private scalar in `PrivateKeyInfo ::= { version, algorithm, OCTET STRING { ECPrivateKey } }`.
fn scalar_of_pkcs8(der: &[u8]) -> Option<&[u8]> {
    let (body, _) = element(der, 0x30)?;
    let (_version, rest) = element(body, 0x02)?;
    let (_algorithm, rest) = element(rest, 0x30)?;
    let (inner, _) = element(rest, 0x04)?;
    let (inner, _) = element(inner, 0x30)?;
    let (_version, rest) = element(inner, 0x02)?;
    let (scalar, _) = element(rest, 0x04)?;
    (scalar.len() == 32).then_some(scalar)
}

/// Splits one DER element with the given tag off the front; short and one- or two-byte long lengths only,
/// which is all that keys of this size need.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    if first != tag {
        return None;
    }
    let (&len, rest) = rest.split_first()?;
    let (len, rest) = match len {
        0..=0x7f => (usize::from(len), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(*rest.first()?) << 8 | usize::from(*rest.get(1)?), rest.get(2..)?),
        _ => return None,
    };
    rest.split_at_checked(len)
}

/// `ECPrivateKey ::= { 1, privateKey, [0] secp256r1, [1] BIT STRING publicKey }`, as Go writes it. All lengths
/// are fixed, so the headers are literals.
fn sec1_der(scalar: &[u8], point: &[u8]) -> Vec<u8> {
    let mut der = vec![0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
    der.extend_from_slice(scalar);
    der.extend_from_slice(&[0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]);
    der.extend_from_slice(&[0xa1, 0x44, 0x03, 0x42, 0x00]);
    der.extend_from_slice(point);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_longer_than_the_input_is_refused() {
        assert!(element(&[0x30, 0x05, 0x00], 0x30).is_none());
    }

    #[test]
    fn a_sec1_key_has_the_length_that_its_header_says() {
        let der = sec1_der(&[7; 32], &[4; 65]);
        assert_eq!(der.len(), 0x77 + 2);
    }

    #[test]
    fn pem_lines_are_64_characters_long() {
        let text = pem("X", &[0; 100]);
        let longest = text.lines().map(str::len).max();
        assert_eq!(longest, Some(64));
    }
}
