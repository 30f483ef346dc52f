//! The verifier's rows over the algorithms that webpki brings for aws-lc, so that they run without any backend.

use lictor_conformance::{bounds, mutants, seed, verifier};
use lictor_core::SignatureAlgorithms;

fn algorithms() -> SignatureAlgorithms {
    use webpki::aws_lc_rs as algorithms;
    SignatureAlgorithms::new(vec![
        algorithms::ECDSA_P256_SHA256,
        algorithms::ECDSA_P256_SHA384,
        algorithms::ECDSA_P256_SHA512,
        algorithms::ECDSA_P384_SHA256,
        algorithms::ECDSA_P384_SHA384,
        algorithms::ECDSA_P384_SHA512,
        algorithms::ECDSA_P521_SHA256,
        algorithms::ECDSA_P521_SHA384,
        algorithms::ECDSA_P521_SHA512,
        algorithms::RSA_PKCS1_2048_8192_SHA256,
        algorithms::RSA_PKCS1_2048_8192_SHA384,
        algorithms::RSA_PKCS1_2048_8192_SHA512,
        algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    ])
}

#[test]
fn every_row_gets_its_verdict_from_the_verifier() {
    verifier::run("webpki", &algorithms(), seed()).conclude();
}

#[test]
fn the_search_for_a_path_stays_within_its_counted_bounds() {
    bounds::run("webpki", &algorithms(), seed()).conclude();
}

#[test]
fn what_is_accepted_of_a_mutant_keeps_every_rule() {
    mutants::run("webpki", &algorithms(), seed()).conclude();
}
