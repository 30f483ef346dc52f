//! Which backends this binary measures: the one place that knows their features.

use std::sync::Arc;

use lictor_core::{TlsBackend, tls::BuildError};

#[cfg(not(any(feature = "rustls", feature = "openssl", feature = "boring")))]
compile_error!("the benches need a TLS library: `--no-default-features --features openssl`, for example");

#[cfg(all(feature = "openssl", feature = "boring"))]
compile_error!("OpenSSL and BoringSSL define the same symbols: measure them in two runs, one feature each");

/// A backend, and what its figures are filed under.
pub struct Contender {
    /// The feature that brought it here, as `boring-fips`.
    pub name: &'static str,
    /// The backend itself.
    pub backend: Arc<dyn TlsBackend>,
}

/// All that are linked.
///
/// # Panics
/// When one does not start.
#[must_use]
pub fn backends() -> Vec<Contender> {
    vec![
        #[cfg(feature = "rustls")]
        contender(
            if cfg!(feature = "rustls-fips") { "rustls-fips" } else { "rustls" },
            lictor_rustls::RustlsBackend::new(),
        ),
        #[cfg(feature = "openssl")]
        contender(
            if cfg!(feature = "openssl-vendored") { "openssl-vendored" } else { "openssl" },
            lictor_openssl::OpensslBackend::new(),
        ),
        #[cfg(feature = "boring")]
        contender(
            if cfg!(feature = "boring-fips") { "boring-fips" } else { "boring" },
            lictor_boring::BoringBackend::new(),
        ),
    ]
}

fn contender<B: TlsBackend>(name: &'static str, backend: Result<B, BuildError>) -> Contender {
    let backend = backend.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
    Contender { name, backend: Arc::new(backend) }
}
