//! `lictor crypto`: what would encrypt, and how, without starting anything.

use crate::{
    cli::CryptoFlags,
    crypto::{self, Report},
    env::Environment,
    exit::{Exit, Failure},
    output,
    settings::Candidates,
};

/// Prints the facts of the library that `lictor proxy` would run with under the same file, variables and flags, or of
/// all that are linked when nothing chooses among them.
///
/// # Errors
/// [`Failure`] when the settings are wrong or a library does not start; with [`Exit::NoFips`], after the facts, when
/// FIPS is required and absent.
pub(crate) fn run(flags: &CryptoFlags) -> Result<Exit, Failure> {
    let Candidates { backends, policy, require_fips, warnings } =
        Candidates::resolve(flags.config.as_deref(), &flags.settings, &Environment::of_process())?;
    for warning in &warnings {
        output::note(warning);
    }
    let mut libraries = Vec::new();
    for backend in backends {
        libraries.push(backend.start()?.crypto(&policy));
    }
    // Of several that may still be chosen, one with FIPS is enough.
    let checked = libraries
        .iter()
        .map(|crypto| crypto::check(require_fips, crypto))
        .reduce(|one, other| if one.is_ok() { one } else { other });
    let report = Report::new(&policy, require_fips, libraries);
    if flags.json {
        output::line(&serde_json::json!(report));
    } else {
        output::line(&report);
    }
    checked.unwrap_or(Ok(())).map(|()| Exit::Clean)
}
