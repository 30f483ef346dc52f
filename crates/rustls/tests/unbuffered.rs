//! What is true of rustls's unbuffered connections alone. All else is in the conformance suite.

use lictor_conformance::{
    certs::Mesh,
    pair::{Ours, Peer, PeerSettings, Version, our_context, talk},
    records::{self, Forger, HANDSHAKE},
    rows::Case,
    seed,
    verifier::{Side, judge},
};
use lictor_core::{SessionError, TlsBackend, TlsPolicy};
use lictor_rustls::RustlsBackend;

/// rustls leaves fragments with its caller until their message is whole; this is what the session holds of them.
const MOST_HELD: usize = 64 * 1024;

fn meeting() -> (Ours, Peer) {
    let mesh = Mesh::new(seed());
    let backend = RustlsBackend::new().expect("the library starts");
    let context = our_context(&backend, &mesh, &TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), Version::Tls13);
    (
        Ours::new(context.as_ref(), judge(&mesh, &case, Side::Inbound), Side::Inbound),
        Peer::new(&settings, Side::Inbound),
    )
}

/// Feeds a message that is said to be long, one byte a record, until it is refused; how many bytes that took.
fn fed_in_crumbs(ours: &mut Ours, kind: u8, mut record: impl FnMut(u8) -> Vec<u8>) -> usize {
    let mut fed = 0;
    for byte in [kind, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0)) {
        let record = record(byte);
        fed += record.len();
        ours.take(&record);
        if ours.failed.is_some() || fed > 2 * MOST_HELD {
            break;
        }
    }
    assert!(matches!(ours.failed, Some(SessionError::Protocol(_))), "{:?}", ours.failed);
    fed
}

#[test]
fn a_hello_in_crumbs_is_held_within_its_bound() {
    let (mut server, _) = meeting();
    let fed = fed_in_crumbs(&mut server, 1, |byte| records::plain(HANDSHAKE, &[byte]));
    assert!(fed <= MOST_HELD + 6, "{fed} bytes were taken");
}

#[test]
fn a_message_in_crumbs_after_the_handshake_is_held_within_its_bound() {
    let (mut server, mut client) = meeting();
    talk(&mut server, &mut client, usize::MAX);
    let mut forger = Forger::take_over(client, Version::Tls13);
    let fed = fed_in_crumbs(&mut server, 4, |byte| forger.seal(HANDSHAKE, &[byte]));
    assert!(fed <= MOST_HELD + 23, "{fed} bytes were taken");
}

#[test]
fn the_library_names_itself_with_both_versions() {
    let backend = RustlsBackend::new().expect("the library starts");
    let library = backend.library();
    assert!(library.starts_with("rustls 0.23.") && library.contains("AWS-LC "), "{library}");
}
