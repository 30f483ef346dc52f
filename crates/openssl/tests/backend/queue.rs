//! OpenSSL keeps a queue of errors for each thread, and asks it what the last call has come to. What one call leaves
//! there is the failure of the next, on whatever connection: so none may leave anything.

use std::panic::catch_unwind;

use lictor_conformance::{seed, suite, watched::watched};
use lictor_openssl::OpensslBackend;
use openssl::{error::ErrorStack, x509::X509};

/// Asserts it, and empties the queue for what follows.
pub(crate) fn nothing_is_left() {
    let left = ErrorStack::get();
    assert!(left.errors().is_empty(), "a call left behind: {left:?}");
}

#[test]
fn no_call_leaves_an_error_for_the_next_one_whatever_it_came_to() {
    let backend = watched(OpensslBackend::new().unwrap(), nothing_is_left);
    // These work in other threads, or on no session at all.
    let elsewhere = ["bounds", "mutants", "paths"];
    for family in suite::families().iter().filter(|family| !elsewhere.contains(&family.name)) {
        family.run(&backend, seed()).judge();
    }
}

#[test]
fn what_is_left_is_seen() {
    X509::from_der(b"none").map(|_| ()).unwrap_err().put();
    assert!(catch_unwind(nothing_is_left).is_err());
    nothing_is_left();
}
