//! The FIPS build, as its peers see it, as far as the conformance suite does not hold it to that already.

#![cfg(feature = "fips")]

use lictor_conformance::{
    certs::Mesh,
    handshake::nothing_left,
    pair::{Ours, Peer, PeerSettings, Version, our_context},
    rows::Case,
    seed,
    verifier::{Side, judge},
};
use lictor_core::{SessionError, TlsBackend, TlsPolicy};
use lictor_rustls::RustlsBackend;

#[test]
fn the_module_is_in_use_and_says_so() {
    let told = RustlsBackend::new().expect("the module is there").crypto(&TlsPolicy::default());
    assert!(told.fips.enabled);
    assert!(told.library.contains("AWS-LC FIPS "), "{}", told.library);
}

#[test]
fn a_tls_1_2_peer_without_the_extended_master_secret_is_refused() {
    let mesh = Mesh::new(seed());
    let backend = RustlsBackend::new().expect("the module is there");
    let context = our_context(&backend, &mesh, &TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), Version::Tls12);
    let mut hello = Peer::new(&settings, Side::Inbound).sent();
    // The extension is empty: type 23, length 0. Under a type that nobody knows it is as good as not there.
    let at = hello.windows(4).position(|bytes| bytes == [0, 23, 0, 0]).expect("rustls offers it");
    hello[at..at + 2].copy_from_slice(&[0x5a, 0x5a]);
    let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, Side::Inbound), Side::Inbound);
    ours.take(&hello);
    assert!(matches!(ours.failed, Some(SessionError::NothingInCommon(_))), "{:?}", ours.failed);
    assert_eq!(nothing_left(&ours), Ok(()));
}
