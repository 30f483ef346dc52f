//! Keys, signatures, and what the backend says about itself.

use lictor_core::{Leaf, TlsBackend, identity::Grammar, tls::BuildError};
use lictor_rustls::RustlsBackend;
use rcgen::KeyPair;
use rustls_pki_types::SignatureVerificationAlgorithm;
use webpki::aws_lc_rs::{
    ECDSA_P256_SHA256, ECDSA_P384_SHA256, ECDSA_P521_SHA256, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
};

use crate::pki::Ca;

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let (ca, backend) = (Ca::new(), RustlsBackend::new().unwrap());
    let (own, other) = (ca.leaf("web"), ca.leaf("web"));
    assert_eq!(backend.check_key(&own.leaf()), Ok(()));
    let mixed = Leaf::from_pem(&own.pem, &other.key.serialize_pem(), Grammar::default()).unwrap();
    assert_eq!(backend.check_key(&mixed), Err(BuildError::KeyMismatch));
    assert_eq!(backend.mesh_context(&mixed, &Default::default()).err(), Some(BuildError::KeyMismatch));
}

#[test]
fn a_key_that_was_made_signs_and_can_be_stored() {
    let key = RustlsBackend::new().unwrap().generate_p256().unwrap();
    let signature = key.sign_sha256(b"message").unwrap();
    assert_eq!((key.public_point().len(), key.public_point()[0]), (65, 4));
    ECDSA_P256_SHA256.verify_signature(key.public_point(), b"message", &signature).unwrap();
    assert!(ECDSA_P256_SHA256.verify_signature(key.public_point(), b"another", &signature).is_err());
    let stored = KeyPair::try_from(key.pkcs8().secret_der()).unwrap();
    assert_eq!(stored.public_key_raw(), key.public_point());
    let second = RustlsBackend::new().unwrap().generate_p256().unwrap();
    assert_ne!(second.public_point(), key.public_point());
}

#[test]
fn the_list_of_signatures_is_that_of_the_mesh() {
    let backend = RustlsBackend::new().unwrap();
    let has = |wanted: &dyn SignatureVerificationAlgorithm| {
        backend.signature_algorithms().all().iter().any(|known| {
            known.public_key_alg_id() == wanted.public_key_alg_id()
                && known.signature_alg_id() == wanted.signature_alg_id()
        })
    };
    // Consul signs with SHA-256 whatever the curve of its CA.
    for wanted in [
        ECDSA_P256_SHA256,
        ECDSA_P384_SHA256,
        ECDSA_P521_SHA256,
        RSA_PKCS1_2048_8192_SHA256,
        RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    ] {
        assert!(has(wanted), "{wanted:?}");
    }
    assert!(!has(ED25519), "not on all backends, and Consul cannot issue it");
}

#[test]
fn the_library_names_itself_with_both_versions() {
    let backend = RustlsBackend::new().unwrap();
    assert_eq!(backend.name(), "rustls");
    let library = backend.library();
    assert!(library.starts_with("rustls 0.23.") && library.contains("AWS-LC "), "{library}");
}
