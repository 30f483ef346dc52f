//! The suite that every backend passes.

use lictor_conformance::{bounds, handshake, seed, verifier};
use lictor_core::TlsBackend as _;
use lictor_rustls::RustlsBackend;

#[test]
fn every_row_gets_its_verdict_over_our_signatures() {
    let backend = RustlsBackend::new().unwrap();
    verifier::run(backend.signature_algorithms(), seed()).conclude();
}

#[test]
fn the_search_for_a_path_stays_within_its_counted_bounds() {
    let backend = RustlsBackend::new().unwrap();
    bounds::run(backend.signature_algorithms(), seed()).conclude();
}

#[test]
fn every_row_gets_its_verdict_in_a_handshake() {
    handshake::run(&RustlsBackend::new().unwrap(), seed()).conclude();
}
