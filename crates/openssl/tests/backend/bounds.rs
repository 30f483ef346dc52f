//! What a peer that nobody knows yet can make the library hold.

use lictor_conformance::{
    certs::Mesh,
    pair::{Ours, Peer, PeerSettings, our_context, talk, ways},
    rows::Case,
    verifier::judge,
};
use lictor_core::{RejectReason, SessionError, TlsPolicy, policy::MAX_CERTIFICATE_LIST};
use lictor_openssl::OpensslBackend;
use rustls_pki_types::CertificateDer;

#[test]
fn a_list_of_certificates_beyond_the_policys_bound_is_not_read() {
    let mesh = Mesh::new(1);
    let context = our_context(&OpensslBackend::new().unwrap(), &mesh, &TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let root = &mesh.root.certificate;
    for (side, version, way) in ways() {
        let outcome = |bytes: usize| {
            let mut chain = case.chain.clone();
            let copies: Vec<CertificateDer<'static>> = vec![root.clone(); bytes / root.len()];
            chain.extend(copies);
            let mut ours = Ours::new(context.as_ref(), judge(&mesh, &case, side), side);
            let mut peer = Peer::new(&PeerSettings::new(chain, case.key.clone(), version), side);
            talk(&mut ours, &mut peer, usize::MAX);
            ours.failed
        };
        let read = outcome(MAX_CERTIFICATE_LIST * 9 / 10);
        assert_eq!(read, Some(SessionError::Rejected(RejectReason::ChainTooLarge)), "{way}");
        let unread = outcome(MAX_CERTIFICATE_LIST * 11 / 10);
        assert!(matches!(unread, Some(SessionError::Protocol(_))), "{way}: {unread:?}");
    }
}
