//! BoringSSL keeps a queue of errors for each thread, and asks it what the last call has come to. What one call leaves
//! there is the failure of the next, on whatever connection: so none may leave anything.

use std::panic::catch_unwind;

use boring::{error::ErrorStack, rsa::Rsa};
use lictor_boring::BoringBackend;
use lictor_conformance::{seed, suite, watched::watched};

/// Asserts it, and empties the queue for what follows.
pub(crate) fn nothing_is_left() {
    let left = ErrorStack::get();
    assert!(left.errors().is_empty(), "a call left behind: {left:?}");
}

#[test]
fn no_call_leaves_an_error_for_the_next_one_whatever_it_came_to() {
    let backend = watched(BoringBackend::new().unwrap(), nothing_is_left);
    // These work in other threads, or on no session at all.
    let elsewhere = ["bounds", "mutants", "paths"];
    for family in suite::families().iter().filter(|family| !elsewhere.contains(&family.name)) {
        family.run(&backend, seed()).judge();
    }
}

#[test]
fn what_is_left_is_seen() {
    Rsa::public_key_from_der_pkcs1(&[1, 2, 3]).unwrap_err().put();
    assert!(catch_unwind(nothing_is_left).is_err());
    nothing_is_left();
}
