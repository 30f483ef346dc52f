//! The signature verification that a backend hands in: the list is whole, holds nothing else, and each entry of it
//! takes a good signature and no other.

use std::collections::BTreeSet;

use lictor_core::TlsBackend;
use rustls_pki_types::SignatureVerificationAlgorithm;

use crate::{
    der,
    keys::{Key, KeyKind, SignatureKind},
    report::{Report, Way},
};

/// Runs every entry of the list.
#[must_use]
pub fn run(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("signatures", backend.name(), seed);
    let (p256, p384, p521) = (Key::generate(KeyKind::P256), Key::generate(KeyKind::P384), Key::generate(KeyKind::P521));
    let rsa = Key::generate(KeyKind::Rsa2048);
    let (large, largest) = (Key::generate(KeyKind::RsaByHand(4096)), Key::generate(KeyKind::RsaByHand(8192)));
    use SignatureKind as S;
    let wanted: [(&Key, S); 21] = [
        (&p256, S::EcdsaSha256),
        (&p256, S::EcdsaSha384),
        (&p256, S::EcdsaSha512),
        (&p384, S::EcdsaSha256),
        (&p384, S::EcdsaSha384),
        (&p384, S::EcdsaSha512),
        (&p521, S::EcdsaSha256),
        (&p521, S::EcdsaSha384),
        (&p521, S::EcdsaSha512),
        (&rsa, S::RsaSha256),
        (&rsa, S::RsaSha384),
        (&rsa, S::RsaSha512),
        (&rsa, S::RsaPssSha256),
        (&rsa, S::RsaPssSha384),
        (&rsa, S::RsaPssSha512),
        (&large, S::RsaSha256),
        (&large, S::RsaSha384),
        (&large, S::RsaSha512),
        (&largest, S::RsaSha256),
        (&largest, S::RsaSha384),
        (&largest, S::RsaSha512),
    ];
    for (key, kind) in wanted {
        let row = format!("{kind:?} by {:?}", key.kind());
        let result = entry(backend, key, &kind.identifier()).and_then(|entry| takes_good_ones_alone(entry, key, kind));
        report.add(&row, Way::NONE, result);
    }
    for kind in [S::RsaSha256, S::RsaSha384, S::RsaSha512] {
        // RFC 4055, section 5: what leaves out the NULL must be accepted, too.
        let without = der::seq(&[&der::read(&kind.identifier()).0[..11]]);
        let result = entry(backend, &rsa, &without).and_then(|entry| takes_good_ones_alone(entry, &rsa, kind));
        report.add(&format!("{kind:?} without parameters"), Way::NONE, result);
    }
    let small = Key::generate(KeyKind::RsaByHand(1024));
    report.add("RSA of 1024 bits is refused", Way::NONE, refuses_key(backend, &small, S::RsaSha256));
    report.add("nothing else is on the list", Way::NONE, nothing_else(backend, &wanted));
    report.add("keys that are none are refused", Way::NONE, keys_that_are_none(backend));
    report
}

/// The one entry of the list for this key and this AlgorithmIdentifier.
fn entry(
    backend: &dyn TlsBackend,
    key: &Key,
    algorithm: &[u8],
) -> Result<&'static dyn SignatureVerificationAlgorithm, String> {
    let (key, algorithm) = (key_algorithm(key), der::read(algorithm).0);
    let all = backend.signature_algorithms().all().iter();
    let found: Vec<_> = all
        .filter(|entry| entry.public_key_alg_id().as_ref() == key && entry.signature_alg_id().as_ref() == algorithm)
        .collect();
    match found[..] {
        [entry] => Ok(*entry),
        _ => Err(format!("{} entries for it", found.len())),
    }
}

/// What stands inside the AlgorithmIdentifier of a key.
fn key_algorithm(key: &Key) -> &[u8] {
    der::read(der::read(key.spki()).0).0
}

fn takes_good_ones_alone(
    entry: &dyn SignatureVerificationAlgorithm,
    key: &Key,
    kind: SignatureKind,
) -> Result<String, String> {
    let message = b"what is signed";
    let signature = key.sign(message, kind);
    if entry.verify_signature(key.public(), message, &signature).is_err() {
        return Err("a good signature was refused".to_owned());
    }
    let mut changed = signature.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    let longer = [&signature[..], &[0]].concat();
    let other = Key::generate(match key.kind() {
        KeyKind::RsaByHand(_) => KeyKind::Rsa2048,
        kind => kind,
    });
    let by_other = other.sign(message, kind);
    type Bad<'a> = (&'a str, &'a [u8], &'a [u8], &'a [u8]);
    let bad: [Bad<'_>; 9] = [
        ("of another message", key.public(), b"what is not", &signature),
        ("of a longer message", key.public(), b"what is signed.", &signature),
        ("with its last bit changed", key.public(), message, &changed),
        ("cut short", key.public(), message, &signature[..last]),
        ("with a byte behind it", key.public(), message, &longer),
        ("of nothing", key.public(), message, &[]),
        ("of zeros", key.public(), message, &vec![0; signature.len()]),
        ("by another key", key.public(), message, &by_other),
        ("for another key", other.public(), message, &signature),
    ];
    for (what, public, message, signature) in bad {
        if entry.verify_signature(public, message, signature).is_ok() {
            return Err(format!("a signature {what} was taken"));
        }
    }
    if !matches!(key.kind(), KeyKind::Rsa2048 | KeyKind::RsaByHand(_)) {
        // r and s of zero, which a careless verifier takes for any message.
        let zeros = der::seq(&[&der::integer(&[0]), &der::integer(&[0])]);
        if entry.verify_signature(key.public(), message, &zeros).is_ok() {
            return Err("a signature of r = s = 0 was taken".to_owned());
        }
    }
    Ok("a good one and no other".to_owned())
}

fn refuses_key(backend: &dyn TlsBackend, key: &Key, kind: SignatureKind) -> Result<String, String> {
    let entry = entry(backend, key, &kind.identifier())?;
    match entry.verify_signature(key.public(), b"message", &key.sign(b"message", kind)) {
        Err(_) => Ok("though the signature is good".to_owned()),
        Ok(()) => Err("it was taken".to_owned()),
    }
}

fn nothing_else(backend: &dyn TlsBackend, wanted: &[(&Key, SignatureKind)]) -> Result<String, String> {
    let wanted: BTreeSet<(Vec<u8>, Vec<u8>)> = wanted
        .iter()
        .flat_map(|(key, kind)| {
            let key = key_algorithm(key).to_vec();
            let identifier = der::read(&kind.identifier()).0.to_vec();
            let without = identifier.strip_suffix(der::NULL).map(|without| (key.clone(), without.to_vec()));
            [Some((key, identifier)), without]
        })
        .flatten()
        .collect();
    let all = backend.signature_algorithms().all();
    let has: BTreeSet<(Vec<u8>, Vec<u8>)> = all
        .iter()
        .map(|entry| (entry.public_key_alg_id().as_ref().to_vec(), entry.signature_alg_id().as_ref().to_vec()))
        .collect();
    if has.len() != all.len() {
        return Err("an entry stands twice".to_owned());
    }
    if has == wanted {
        return Ok(format!("{} entries", has.len()));
    }
    Err(format!("too many: {:02x?}, missing: {:02x?}", &has - &wanted, &wanted - &has))
}

/// Bytes that are no key verify nothing, and end no process.
fn keys_that_are_none(backend: &dyn TlsBackend) -> Result<String, String> {
    let p256 = Key::generate(KeyKind::P256);
    let mut off_the_curve = p256.public().to_vec();
    off_the_curve[40] ^= 1;
    let signature = p256.sign(b"message", SignatureKind::EcdsaSha256);
    let no_modulus = der::seq(&[&der::unsigned(&[0]), &der::unsigned(&[3])]);
    let no_exponent = der::seq(&[&der::unsigned(&[0xff; 256]), &der::unsigned(&[0])]);
    let keys: [&[u8]; 8] =
        [&[], &[0], &[4], &[4; 65], &[0x30, 0x82, 0xff, 0xff], &off_the_curve, &no_modulus, &no_exponent];
    for entry in backend.signature_algorithms().all() {
        for key in keys {
            for signature in [&signature[..], &[0; 256]] {
                if entry.verify_signature(key, b"message", signature).is_ok() {
                    return Err(format!("{entry:?} takes a signature by {key:02x?}"));
                }
            }
        }
    }
    Ok("each by each entry".to_owned())
}
