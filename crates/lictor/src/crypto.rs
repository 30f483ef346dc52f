//! What the TLS library is and what it makes of the policy: the same facts for `lictor crypto`, the log, the metrics
//! and the admin listener. And the refusal to start without FIPS where it is required.

use std::{fmt, sync::Arc};

use lictor_core::{
    Crypto, TlsBackend, TlsPolicy,
    policy::{OFF, SIGNATURE_SCHEMES},
};
use serde::Serialize;

use crate::{
    backends::{self, FIPS_BUILDS},
    exit::{Exit, Failure},
    settings::Tls,
};

/// Starts the library that the settings choose.
///
/// # Errors
/// [`Failure`] when it does not start, and with [`Exit::NoFips`] when FIPS is required and absent.
pub(crate) fn start(tls: &Tls) -> Result<(Arc<dyn TlsBackend>, Crypto), Failure> {
    let backend = tls.backend.start()?;
    let crypto = backend.crypto(&tls.policy);
    check(tls.require_fips, &crypto)?;
    Ok((backend, crypto))
}

/// Refuses a library without FIPS where it is required.
///
/// # Errors
/// [`Failure`] with [`Exit::NoFips`].
pub(crate) fn check(require_fips: bool, crypto: &Crypto) -> Result<(), Failure> {
    if !require_fips || crypto.fips.enabled {
        return Ok(());
    }
    let here = backends::choose(Some(crypto.backend)).ok().and_then(|backend| backend.fips);
    Err(Failure::new(
        Exit::NoFips,
        format!(
            "tls.require_fips: FIPS is required, and {} is not in FIPS mode: {} ({})\n    Linked here: {}. Install a \
             lictor that was built with the feature {}, or build one:\n    cargo build --release -p lictor \
             --no-default-features --features {},dev{}",
            crypto.backend,
            crypto.library,
            crypto.fips.means,
            backends::names(),
            FIPS_BUILDS.join(" or "),
            FIPS_BUILDS[0],
            here.map(|how| format!("\n    Or {how}.")).unwrap_or_default(),
        ),
    ))
}

/// Logs the facts: one line, and one for each point in which the library differs from the policy.
///
/// Those are information and no warnings: they hold as long as this build does, and whoever runs it can do nothing
/// about them but choose another.
pub(crate) fn log(crypto: &Crypto, require_fips: bool) {
    let Crypto { backend, library, fips, versions, suites, groups, signature_schemes, differs } = crypto;
    tracing::info!(
        backend,
        library,
        fips = fips.enabled,
        fips_means = fips.means,
        self_test = fips.self_test,
        require_fips,
        versions = versions.join(","),
        groups = groups.join(","),
        suites = suites.join(","),
        signature_schemes = signature_schemes.join(","),
        "TLS library"
    );
    for difference in differs {
        tracing::info!(backend, "differs from the TLS policy: {difference}");
    }
}

/// The facts, together with what was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The version of this program.
    lictor: &'static str,
    /// The library that runs, or would; none where several are linked and nothing names one of them.
    chosen: Option<&'static str>,
    linked: Vec<&'static str>,
    require_fips: bool,
    policy: Asked,
    libraries: Vec<Crypto>,
}

/// What every library is asked for.
#[derive(Clone, Debug, Serialize)]
struct Asked {
    versions: Vec<&'static str>,
    suites: Vec<&'static str>,
    groups: Vec<&'static str>,
    signature_schemes: &'static [&'static str],
    off: &'static [&'static str],
}

impl Report {
    /// About one library, which is then the chosen one, or about several when nothing chooses among them.
    pub(crate) fn new(policy: &TlsPolicy, require_fips: bool, libraries: Vec<Crypto>) -> Self {
        Self {
            lictor: env!("CARGO_PKG_VERSION"),
            chosen: if let [only] = libraries.as_slice() { Some(only.backend) } else { None },
            linked: backends::linked().iter().map(|backend| backend.name).collect(),
            require_fips,
            policy: Asked {
                versions: policy.versions(),
                suites: policy.suites(),
                groups: policy.groups(),
                signature_schemes: &SIGNATURE_SCHEMES,
                off: &OFF,
            },
            libraries,
        }
    }
}

/// How wide the page for people is.
const WIDTH: usize = 100;

/// Where its second column begins.
const COLUMN: usize = 20;

impl fmt::Display for Report {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        for (number, crypto) in self.libraries.iter().enumerate() {
            if number > 0 {
                f.write_str("\n\n")?;
            }
            let Crypto { backend, library, fips, versions, suites, groups, signature_schemes, differs } = crypto;
            writeln!(f, "{backend}: {library}")?;
            row(f, "FIPS mode", [format!("{}: {}", yes(fips.enabled), fips.means)])?;
            row(f, "FIPS required", [yes(self.require_fips)])?;
            row(f, "self-test", [fips.self_test])?;
            row(f, "versions", [versions.join(", ")])?;
            row(f, "suites", suites)?;
            row(f, "groups", groups)?;
            row(f, "signature schemes", signature_schemes)?;
            match differs.as_slice() {
                [] => row(f, "differs", ["in nothing: all that the policy asks for is so"])?,
                differs => row(f, "differs", differs)?,
            }
            row(f, "off", [self.policy.off.join(", ")])?;
        }
        if self.chosen.is_none() {
            write!(
                f,
                "\n\nSeveral libraries are linked and none is chosen: name one with tls.backend in the file, \
                 -tls-backend\nor LICTOR_TLS__BACKEND."
            )?;
        }
        Ok(())
    }
}

/// One fact: its name, and lines that are wrapped in a column of their own.
fn row(f: &mut fmt::Formatter<'_>, name: &str, values: impl IntoIterator<Item = impl AsRef<str>>) -> fmt::Result {
    let mut name = name;
    for value in values {
        let mut line = String::new();
        for word in value.as_ref().split(' ') {
            if !line.trim().is_empty() && COLUMN + line.len() + word.len() >= WIDTH {
                write!(f, "\n  {name:<width$}{line}", width = COLUMN - 2)?;
                // Further in than the next value, so that two long ones can be told apart.
                (name, line) = ("", "  ".to_owned());
            } else if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        write!(f, "\n  {name:<width$}{line}", width = COLUMN - 2)?;
        name = "";
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lictor_core::Fips;

    use super::*;

    fn crypto(fips: bool, differs: &[&str]) -> Crypto {
        let policy = TlsPolicy::default();
        Crypto {
            backend: "rustls",
            library: "a library 1.2.3".to_owned(),
            fips: Fips { enabled: fips, means: "what it means", self_test: "passed" },
            versions: policy.versions(),
            suites: policy.suites(),
            groups: policy.groups(),
            signature_schemes: SIGNATURE_SCHEMES.to_vec(),
            differs: differs.iter().map(|&sentence| sentence.to_owned()).collect(),
        }
    }

    fn report(libraries: Vec<Crypto>) -> Report {
        Report::new(&TlsPolicy::default(), false, libraries)
    }

    #[test]
    fn a_library_without_fips_is_refused_where_it_is_required_and_only_there() {
        assert!(check(false, &crypto(false, &[])).is_ok());
        assert!(check(true, &crypto(true, &[])).is_ok());
        let failure = check(true, &crypto(false, &[])).expect_err("there is no FIPS");
        assert_eq!(failure.exit, Exit::NoFips);
        let message = failure.to_string();
        for words in ["a library 1.2.3", "what it means", backends::linked()[0].name, "rustls-fips", "boring-fips"] {
            assert!(message.contains(words), "{words} is not in {message}");
        }
    }

    #[test]
    fn the_page_shows_every_fact_in_lines_that_fit() {
        let long = "It does one thing otherwise than the policy asks for, and this sentence about it is longer than a \
                    line of the page.";
        let page = report(vec![crypto(false, &[long, "And another."])]).to_string();
        for words in [
            "rustls: a library 1.2.3",
            "no: what it means",
            "passed",
            "TLSv1.3, TLSv1.2",
            "TLS_AES_128_GCM_SHA256",
            "X25519MLKEM768",
            "rsa_pkcs1_sha512",
            "And another.",
            "early data",
        ] {
            assert!(page.contains(words), "{words} is not in\n{page}");
        }
        assert!(page.lines().all(|line| line.len() <= WIDTH), "{page}");
        let words: String = page.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(long), "{page}");
    }

    #[test]
    fn without_a_choice_all_libraries_are_shown_and_how_to_choose() {
        let all = vec![crypto(true, &[]), crypto(false, &[])];
        let report = report(all);
        let page = report.to_string();
        assert_eq!(page.matches("FIPS mode").count(), 2, "{page}");
        assert!(page.contains("LICTOR_TLS__BACKEND"), "{page}");
        let json = serde_json::to_value(&report).expect("it can be written");
        assert_eq!(json["chosen"], serde_json::Value::Null);
        assert_eq!(json["libraries"][0]["fips"]["enabled"], true);
        assert_eq!(json["policy"]["off"][0], OFF[0]);
    }
}
