//! What is taken as a key of ours.

use lictor_conformance::{
    certs::{Mesh, pem},
    keys::{Key, KeyKind},
};
use lictor_core::{Leaf, TlsBackend, TlsPolicy, identity::Grammar, tls::BuildError};
use lictor_openssl::OpensslBackend;
use openssl::pkey::{PKey, Private};

use crate::queue::nothing_is_left;

fn pkey(key: &Key) -> PKey<Private> {
    PKey::private_key_from_pkcs8(key.pkcs8().unwrap()).unwrap()
}

fn leaf(mesh: &Mesh, subject: &Key, key_pem: &str) -> Leaf {
    let certificate = mesh.root.issue(&mesh.leaf(), subject);
    Leaf::from_pem(&pem("CERTIFICATE", &certificate), key_pem, Grammar::Spiffe).unwrap()
}

fn outcome(leaf: &Leaf) -> Result<(), BuildError> {
    let backend = OpensslBackend::new().unwrap();
    let checked = backend.check_key(leaf);
    nothing_is_left();
    let built = backend.mesh_context(leaf, &TlsPolicy::default()).map(|_| ());
    nothing_is_left();
    assert_eq!(checked, built, "what is checked is what is built");
    checked
}

#[test]
fn a_key_may_come_as_pkcs8_sec1_or_pkcs1() {
    let mesh = Mesh::new(1);
    for kind in [KeyKind::P256, KeyKind::P384, KeyKind::P521] {
        let key = Key::generate(kind);
        let sec1 = pkey(&key).ec_key().unwrap().private_key_to_der().unwrap();
        for key_pem in [pem("EC PRIVATE KEY", &sec1), pem("PRIVATE KEY", key.pkcs8().unwrap())] {
            assert_eq!(outcome(&leaf(&mesh, &key, &key_pem)), Ok(()), "{kind:?}");
        }
    }
    let key = Key::generate(KeyKind::Rsa2048);
    let pkcs1 = pkey(&key).rsa().unwrap().private_key_to_der().unwrap();
    for key_pem in [pem("RSA PRIVATE KEY", &pkcs1), pem("PRIVATE KEY", key.pkcs8().unwrap())] {
        assert_eq!(outcome(&leaf(&mesh, &key, &key_pem)), Ok(()));
    }
}

#[test]
fn a_key_that_claims_the_right_public_half_does_not_match_by_that() {
    let mesh = Mesh::new(2);
    let (ours, other) = (Key::generate(KeyKind::P256), Key::generate(KeyKind::P256));
    let (ours_ec, other_ec) = (pkey(&ours).ec_key().unwrap(), pkey(&other).ec_key().unwrap());
    let mut sec1 = other_ec.private_key_to_der().unwrap();
    let public = |key: &Key| key.spki()[key.spki().len() - 65..].to_vec();
    let at = sec1.windows(65).position(|bytes| bytes == public(&other)).unwrap();
    sec1[at..at + 65].copy_from_slice(&public(&ours));
    assert_ne!(sec1, ours_ec.private_key_to_der().unwrap());
    let made_up = outcome(&leaf(&mesh, &ours, &pem("EC PRIVATE KEY", &sec1)));
    assert!(made_up.is_err(), "{made_up:?}");
    let others = outcome(&leaf(&mesh, &ours, &pem("PRIVATE KEY", other.pkcs8().unwrap())));
    assert_eq!(others, Err(BuildError::KeyMismatch));
    let of_another_kind = Key::generate(KeyKind::Rsa2048);
    let others = outcome(&leaf(&mesh, &ours, &pem("PRIVATE KEY", of_another_kind.pkcs8().unwrap())));
    assert_eq!(others, Err(BuildError::KeyMismatch));
}

#[test]
fn a_key_that_no_peer_takes_or_that_is_none_is_refused() {
    let mesh = Mesh::new(3);
    for kind in [KeyKind::Ed25519, KeyKind::Secp256k1] {
        let key = Key::generate(kind);
        let refused = outcome(&leaf(&mesh, &key, &pem("PRIVATE KEY", key.pkcs8().unwrap())));
        assert!(matches!(refused, Err(BuildError::Refused { what: "key", .. })), "{kind:?}: {refused:?}");
    }
    let key = Key::generate(KeyKind::P256);
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
        let refused = outcome(&leaf(&mesh, &key, &pem(label, &[0x30, 3, 2, 1, 0])));
        assert!(matches!(refused, Err(BuildError::Refused { what: "key", .. })), "{label}: {refused:?}");
    }
}
