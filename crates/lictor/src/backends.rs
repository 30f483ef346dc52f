//! The TLS libraries that are linked: the only file of the binary that knows their features.

use std::sync::Arc;

use lictor_core::{TlsBackend, tls::BuildError};

use crate::{
    config::{Problem, nearest},
    exit::{Exit, Failure},
};

#[cfg(all(feature = "openssl", feature = "boring"))]
compile_error!(
    "OpenSSL and BoringSSL define the same symbols and cannot be in one binary: build one binary for each, as in `cargo \
     build -p lictor --no-default-features --features openssl,dev`; either may be linked beside rustls"
);
#[cfg(not(any(feature = "rustls", feature = "openssl", feature = "boring")))]
compile_error!(
    "lictor needs a TLS library: build it with the default features, or choose one by name, as in `cargo build -p \
     lictor --no-default-features --features rustls,dev`"
);

/// A TLS library that is linked.
#[derive(Debug)]
pub(crate) struct Backend {
    /// The name in `tls.backend`.
    pub(crate) name: &'static str,
    start: fn() -> Result<Arc<dyn TlsBackend>, String>,
    /// How to get it into FIPS mode, where that takes no other build.
    pub(crate) fips: Option<&'static str>,
}

impl Backend {
    /// Makes it ready for use.
    ///
    /// # Errors
    /// [`Failure`] in the words of the library.
    pub(crate) fn start(&self) -> Result<Arc<dyn TlsBackend>, Failure> {
        (self.start)().map_err(|why| {
            Failure::new(Exit::Failed, format!("the TLS library \"{}\" does not start: {why}", self.name))
        })
    }
}

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Backend {}

/// All that are linked.
const LINKED: &[Backend] = &[
    #[cfg(feature = "rustls")]
    Backend { name: "rustls", start: || started(lictor_rustls::RustlsBackend::new()), fips: None },
    #[cfg(feature = "openssl")]
    Backend {
        name: "openssl",
        start: || started(lictor_openssl::OpensslBackend::new()),
        // Providers belong to the OpenSSL that they were made with: the one inside the binary has none.
        fips: if cfg!(feature = "openssl-vendored") {
            None
        } else {
            Some("let the machine's OpenSSL configuration load its FIPS provider and ask for it")
        },
    },
    #[cfg(feature = "boring")]
    Backend { name: "boring", start: || started(lictor_boring::BoringBackend::new()), fips: None },
];

/// All there are, linked or not.
const KNOWN: [&str; 3] = ["rustls", "openssl", "boring"];

/// The features that bring a library in FIPS mode, for people who ask for one.
pub(crate) const FIPS_BUILDS: [&str; 2] = ["rustls-fips", "boring-fips"];

/// What a library made of its start, in the terms of this file.
fn started<B: TlsBackend>(backend: Result<B, BuildError>) -> Result<Arc<dyn TlsBackend>, String> {
    backend.map(|backend| Arc::new(backend) as Arc<dyn TlsBackend>).map_err(|error| error.to_string())
}

/// The backend called `name`, or the only one.
///
/// When several are linked, one must be named: whoever adds a library to the default features and says no more would
/// otherwise run without knowing on the one that was there already.
///
/// # Errors
/// [`Problem`] for a name that is not linked, and for no name where several are; both list what is.
pub(crate) fn choose(name: Option<&str>) -> Result<&'static Backend, Problem> {
    let Some(name) = name else {
        return match LINKED {
            [only] => Ok(only),
            _ => Err(Problem::new(format!("several TLS libraries are linked: {}", names()))
                .instead("name the one to use with backend in tls, -tls-backend or LICTOR_TLS__BACKEND")
                .key("backend")
                .key("tls")),
        };
    };
    if let Some(backend) = LINKED.iter().find(|backend| backend.name == name) {
        return Ok(backend);
    }
    let what = if KNOWN.contains(&name) {
        format!("this binary is built without \"{name}\"")
    } else {
        format!("there is no TLS library \"{name}\"")
    };
    let instead = match nearest(name, &KNOWN).filter(|near| *near != name && LINKED.iter().any(|b| b.name == *near)) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("linked here: {}", names()),
    };
    Err(Problem::new(what).instead(instead).key("backend").key("tls"))
}

/// The linked backends.
pub(crate) fn linked() -> &'static [Backend] {
    LINKED
}

/// The names of the linked backends, for messages.
pub(crate) fn names() -> String {
    LINKED.iter().map(|backend| backend.name).collect::<Vec<_>>().join(", ")
}

/// A library that exists and is not linked. There always is one, since OpenSSL and BoringSSL exclude each other.
#[cfg(test)]
pub(crate) fn not_linked() -> &'static str {
    KNOWN.into_iter().find(|name| !LINKED.iter().any(|backend| backend.name == *name)).expect("one is not linked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_need_not_be_named_only_where_it_is_the_only_one() {
        match choose(None) {
            Ok(only) => assert!(LINKED.len() == 1 && LINKED[0] == *only),
            Err(problem) => {
                assert!(LINKED.len() > 1, "{problem}");
                let message = problem.to_string();
                assert!(message.starts_with("tls.backend: several TLS libraries are linked: "), "{message}");
                assert!(message.contains(&names()), "{message}");
            }
        }
        for backend in LINKED {
            assert_eq!(choose(Some(backend.name)).expect("it is linked"), backend);
        }
    }

    #[test]
    fn a_library_that_is_not_linked_is_refused_with_the_list_of_those_that_are() {
        let name = not_linked();
        let (message, linked) = (choose(Some(name)).expect_err("not linked").to_string(), names());
        assert_eq!(message, format!("tls.backend: this binary is built without \"{name}\"; linked here: {linked}"));
    }

    #[test]
    fn a_name_that_is_spelt_wrong_is_answered_with_the_nearest() {
        for Backend { name, .. } in LINKED {
            let wrong = format!("{name}s");
            assert_eq!(
                choose(Some(&wrong)).expect_err("no such").to_string(),
                format!("tls.backend: there is no TLS library \"{wrong}\"; did you mean \"{name}\"?")
            );
        }
    }

    #[test]
    fn every_linked_library_starts_under_its_own_name() {
        for backend in LINKED {
            let started = backend.start().unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(started.name(), backend.name);
            assert_eq!(started.crypto(&lictor_core::TlsPolicy::default()).backend, backend.name);
        }
    }
}
