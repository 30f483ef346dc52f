//! The conformance suite over the rustls backend, one test for each family.

use std::sync::Arc;

use lictor_conformance::{bounds, handshake, mutants, paths, seed, session, verifier};
use lictor_core::TlsBackend;
use lictor_rustls::RustlsBackend;

fn backend() -> RustlsBackend {
    RustlsBackend::new().expect("the library starts")
}

#[test]
fn every_row_gets_its_verdict_from_the_verifier() {
    verifier::run(backend().signature_algorithms(), seed()).conclude();
}

#[test]
fn the_search_for_a_path_stays_within_its_counted_bounds() {
    bounds::run(backend().signature_algorithms(), seed()).conclude();
}

#[test]
fn what_is_accepted_of_a_mutant_keeps_every_rule() {
    mutants::run(backend().signature_algorithms(), seed()).conclude();
}

#[test]
fn every_row_gets_its_verdict_in_a_handshake() {
    handshake::run(&backend(), seed()).conclude();
}

#[test]
fn every_row_gets_its_verdict_in_the_data_plane() {
    let backend: Arc<dyn TlsBackend> = Arc::new(backend());
    paths::run(&backend, seed()).conclude();
}

#[test]
fn handshakes_and_data_arrive_in_pieces_of_any_size() {
    session::pieces(&backend(), seed()).conclude();
}

#[test]
fn connections_end_at_any_moment() {
    session::ends(&backend(), seed()).conclude();
}

#[test]
fn old_versions_and_other_protocols_are_refused() {
    session::versions(&backend(), seed()).conclude();
}

#[test]
fn each_handshake_gets_one_verdict_of_its_own_by_the_newest_roots() {
    session::verdicts(&backend(), seed()).conclude();
}

#[test]
fn damage_is_noticed_and_keys_may_change() {
    session::damage(&backend(), seed()).conclude();
}

#[test]
fn bad_material_is_refused_and_good_material_serves() {
    session::material(&backend(), seed()).conclude();
}
