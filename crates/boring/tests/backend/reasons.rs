//! BoringSSL reads the key and the key usage of a leaf before it asks for a verdict. The suite lets a library say of
//! such rows merely that the message was bad; this one has the row's own reason for each.

use lictor_boring::BoringBackend;
use lictor_conformance::{
    certs::Mesh,
    pair::{Ours, Peer, PeerSettings, our_context, talk, ways},
    rows::{Build, Want, rows},
    verifier::judge,
};
use lictor_core::{SessionError, TlsPolicy};

#[test]
fn every_row_that_is_refused_has_its_own_reason_whoever_said_it_first() {
    let (backend, mesh) = (BoringBackend::new().unwrap(), Mesh::new(1));
    let context = our_context(&backend, &mesh, &TlsPolicy::default());
    for row in rows() {
        let Build::Chain(build) = row.build else { continue };
        let case = build(&mesh);
        for (side, version, way) in ways() {
            let Want::Reject(reason) = side.want(&row) else { continue };
            let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
            let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, side), side);
            let mut peer = Peer::new(&settings, side);
            talk(&mut ours, &mut peer, usize::MAX);
            assert_eq!(ours.failed, Some(SessionError::Rejected(reason)), "{} {way}", row.title());
            assert!(peer.alert.is_some(), "{} {way}", row.title());
        }
    }
}
