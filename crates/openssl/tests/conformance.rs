//! The conformance suite over the OpenSSL backend, one test for each family.

use lictor_openssl::OpensslBackend;

lictor_conformance::conformance!(OpensslBackend::new().expect("the library starts"));
