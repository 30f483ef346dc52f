//! The TLS libraries that are linked: the only file of the binary that knows their features.

use std::sync::Arc;

use lictor_core::TlsBackend;

use crate::config::{Problem, nearest};

#[cfg(not(any(feature = "rustls")))]
compile_error!(
    "lictor needs a TLS library: build it with the default features, or with one of them by name, \
     as in `cargo build -p lictor --no-default-features --features rustls`"
);

/// A TLS library that is linked.
#[derive(Debug)]
pub(crate) struct Backend {
    /// The name in `tls.backend`.
    pub(crate) name: &'static str,
    /// Makes it ready for use.
    pub(crate) start: fn() -> Result<Arc<dyn TlsBackend>, String>,
}

/// All that are linked, the preferred one first.
const LINKED: &[Backend] = &[
    #[cfg(feature = "rustls")]
    Backend { name: "rustls", start: start_rustls },
];

/// All there are, linked or not.
const KNOWN: [&str; 3] = ["rustls", "openssl", "boring"];

#[cfg(feature = "rustls")]
fn start_rustls() -> Result<Arc<dyn TlsBackend>, String> {
    lictor_rustls::RustlsBackend::new()
        .map(|backend| Arc::new(backend) as Arc<dyn TlsBackend>)
        .map_err(|error| error.to_string())
}

/// The backend called `name`, or the only one.
///
/// # Errors
/// [`Problem`] for a name that is not linked; it lists what is.
pub(crate) fn choose(name: Option<&str>) -> Result<&'static Backend, Problem> {
    let linked = || LINKED.iter().map(|backend| backend.name).collect::<Vec<_>>().join(", ");
    let Some(name) = name else {
        return match LINKED {
            [only] => Ok(only),
            [] => Err(Problem::new("no TLS library is linked")),
            _ => Err(Problem::new("several TLS libraries are linked")
                .instead(format!("say which one to use: {}", linked()))
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
        None => format!("linked here: {}", linked()),
    };
    Err(Problem::new(what).instead(instead).key("backend").key("tls"))
}

/// The names of the linked backends, for `lictor version`.
pub(crate) fn linked() -> impl Iterator<Item = &'static Backend> {
    LINKED.iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_linked_library_need_not_be_named() {
        assert_eq!(choose(None).expect("one is linked").name, "rustls");
    }

    #[test]
    fn a_library_that_is_not_linked_is_refused_with_the_list_of_those_that_are() {
        assert_eq!(
            choose(Some("openssl")).expect_err("not linked").to_string(),
            "tls.backend: this binary is built without \"openssl\"; linked here: rustls"
        );
        assert_eq!(
            choose(Some("rusttls")).expect_err("no such").to_string(),
            "tls.backend: there is no TLS library \"rusttls\"; did you mean \"rustls\"?"
        );
    }
}
