//! The conformance suite over the BoringSSL backend, one test for each family.

use lictor_boring::BoringBackend;

lictor_conformance::conformance!(BoringBackend::new().expect("the library starts"));
