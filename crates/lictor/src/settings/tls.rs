//! Which TLS library, and what it is held to: the part of the settings that every command with TLS in it shares.

use std::path::Path;

use lictor_core::TlsPolicy;

use crate::{
    backends::{self, Backend},
    cli::Setting,
    config::{
        self, Layer, Problem,
        schema::{self, MinVersion},
        values::Text,
    },
    env::Environment,
    exit::Failure,
};

/// TLS in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) backend: &'static Backend,
    pub(crate) policy: TlsPolicy,
    /// Start only where the library says that it is in FIPS mode (default: false).
    pub(crate) require_fips: bool,
}

impl Tls {
    /// What flags and variables say, for commands that have no file; and what of the variables is no key.
    ///
    /// # Errors
    /// [`Failure`] with the exit code of usage or of configuration, also when several libraries are linked and none
    /// is named.
    #[cfg(feature = "dev")]
    pub(crate) fn resolve(flags: &[Setting], environment: &Environment) -> Result<(Self, Vec<String>), Failure> {
        let (layers, warnings) = layers(None, flags, environment)?;
        let written = config::merge(&layers)?.tls;
        let tls = Self::of(&written).map_err(|problem| config::locate(&layers, problem))?;
        Ok((tls, warnings))
    }

    pub(super) fn of(written: &schema::Tls) -> Result<Self, Problem> {
        let backend = backends::choose(written.backend.as_ref().map(|Text(name)| name.as_str()))?;
        Ok(Self { backend, policy: policy(written), require_fips: require_fips(written) })
    }
}

/// What may run under a file, variables and flags, where the library need not be named yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// The one that is named, or the only one that is linked, or else all that are.
    pub(crate) backends: Vec<&'static Backend>,
    pub(crate) policy: TlsPolicy,
    pub(crate) require_fips: bool,
    /// What of the variables is no key.
    pub(crate) warnings: Vec<String>,
}

impl Candidates {
    /// # Errors
    /// [`Failure`] with the exit code of usage or of configuration.
    pub(crate) fn resolve(file: Option<&Path>, flags: &[Setting], environment: &Environment) -> Result<Self, Failure> {
        let (layers, warnings) = layers(file, flags, environment)?;
        let written = config::merge(&layers)?.tls;
        let backends = match &written.backend {
            None => backends::linked().iter().collect(),
            Some(Text(name)) => {
                vec![backends::choose(Some(name)).map_err(|problem| config::locate(&layers, problem))?]
            }
        };
        Ok(Self { backends, policy: policy(&written), require_fips: require_fips(&written), warnings })
    }
}

fn policy(written: &schema::Tls) -> TlsPolicy {
    TlsPolicy {
        tls12: written.min_version != Some(MinVersion::Tls13),
        hybrid_first: written.hybrid.is_none_or(|switch| switch.0),
    }
}

fn require_fips(written: &schema::Tls) -> bool {
    written.require_fips.is_some_and(|switch| switch.0)
}

fn layers(
    file: Option<&Path>,
    flags: &[Setting],
    environment: &Environment,
) -> Result<(Vec<Layer>, Vec<String>), Failure> {
    let mut layers = Vec::new();
    if let Some(path) = file {
        layers.push(Layer::file(path)?);
    }
    let (own, warnings) = environment.only_tls().own()?;
    layers.push(own);
    layers.push(super::settings_layer(flags)?);
    Ok((layers, warnings))
}
