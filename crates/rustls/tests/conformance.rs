//! The conformance suite over the rustls backend, one test for each family.

use lictor_rustls::RustlsBackend;

lictor_conformance::conformance!(RustlsBackend::new().expect("the library starts"));
