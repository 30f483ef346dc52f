//! What a backend says about our own material.

use lictor_core::{Leaf, TlsBackend, TlsPolicy, identity::Grammar, tls::BuildError};

use super::Scene;
use crate::{
    certs::{Mesh, pem},
    handshake::accepted,
    keys::{Key, KeyKind},
    pair::{Ours, Peer, PeerSettings, talk, ways},
    report::{Report, Way},
    rows::Case,
    verifier::judge,
};

/// What a backend must say about material that is not good.
#[must_use]
pub fn material(backend: &dyn TlsBackend, seed: u64) -> Report {
    let mut report = Report::new("material", backend.name(), seed);
    let mesh = Mesh::new(seed);
    for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Rsa2048] {
        report.add(&format!("a {kind:?} leaf of ours"), Way::NONE, own_leaf(backend, &mesh, kind));
    }
    report.add("a key that is another's", Way::NONE, foreign_key(backend, &mesh));
    report.add("a P-256 key made by the backend", Way::NONE, made_key(backend));
    report
}

fn own_leaf(backend: &dyn TlsBackend, mesh: &Mesh, kind: KeyKind) -> Scene {
    let leaf = leaf_of(mesh, &Key::generate(kind), None)?;
    backend.check_key(&leaf).map_err(|error| error.to_string())?;
    let context = backend.mesh_context(&leaf, &TlsPolicy::default()).map_err(|error| error.to_string())?;
    for (side, version, way) in ways() {
        let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
        let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
        let mut ours = Ours::new(context.as_ref(), judge(mesh, &case, side), side);
        let mut peer = Peer::new(&settings, side);
        talk(&mut ours, &mut peer, usize::MAX);
        peer.send(b"data of the peer");
        talk(&mut ours, &mut peer, usize::MAX);
        accepted(&mut ours, &mut peer, &case, version).map_err(|error| format!("{way}: {error}"))?;
    }
    Ok("served on both sides and versions".to_owned())
}

fn foreign_key(backend: &dyn TlsBackend, mesh: &Mesh) -> Scene {
    for (kind, other) in
        [(KeyKind::P256, KeyKind::P256), (KeyKind::P256, KeyKind::P384), (KeyKind::P384, KeyKind::Rsa2048)]
    {
        let leaf = leaf_of(mesh, &Key::generate(kind), Some(&Key::generate(other)))?;
        for result in [backend.check_key(&leaf), backend.mesh_context(&leaf, &TlsPolicy::default()).map(|_| ())] {
            if result != Err(BuildError::KeyMismatch) {
                return Err(format!("a {kind:?} certificate with a {other:?} key: {result:?}"));
            }
        }
    }
    Ok("refused as such".to_owned())
}

/// The key signs, and its PKCS#8 is that of the same key: a certificate for it serves.
fn made_key(backend: &dyn TlsBackend) -> Scene {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    let key = backend.generate_p256().map_err(|error| error.to_string())?;
    let signature = key.sign_sha256(b"message").map_err(|error| error.to_string())?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.public_point())
        .verify(b"message", &signature)
        .map_err(|_| "its signature is not good".to_owned())?;
    let again = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
        key.pkcs8().secret_der(),
    );
    let again = again.map_err(|error| format!("its PKCS#8 cannot be read: {error}"))?;
    if aws_lc_rs::signature::KeyPair::public_key(&again).as_ref() != key.public_point() {
        return Err("its PKCS#8 is another key".to_owned());
    }
    let other = backend.generate_p256().map_err(|error| error.to_string())?;
    if other.public_point() == key.public_point() {
        return Err("two keys are the same".to_owned());
    }
    Ok("signs, and is what it says".to_owned())
}

fn leaf_of(mesh: &Mesh, key: &Key, private: Option<&Key>) -> Result<Leaf, String> {
    let chain = pem("CERTIFICATE", &mesh.root.issue(&mesh.leaf_of("db"), key));
    let private = private.unwrap_or(key).pkcs8().ok_or("no private key")?;
    Leaf::from_pem(&chain, &pem("PRIVATE KEY", private), Grammar::Spiffe).map_err(|error| error.to_string())
}
