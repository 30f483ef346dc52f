//! The environment as a value: Consul's variables and our own, turned into layers of the configuration.
//!
//! An empty variable counts as not set, which managed proxies of old agents rely on: they are started with
//! `CONSUL_HTTP_TOKEN=` and more of that kind.

use std::collections::BTreeMap;

use crate::{
    cli::go,
    config::{Layer, Problem, Value},
};

/// Prefix of our own variables: `LICTOR_TLS__MIN_VERSION` is `min_version` in `tls`.
const PREFIX: &str = "LICTOR_";

/// The variables of the process.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// What the process was started with. A variable that is not UTF-8 is taken as if it were not there.
    pub(crate) fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        )
    }

    /// The variable `name`, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Our own variables about TLS alone, for commands that read no other settings.
    pub(crate) fn only_tls(&self) -> Self {
        let about_tls = |name: &str| name.starts_with("LICTOR_TLS__");
        Self(self.0.iter().filter(|(name, _)| about_tls(name)).map(|(n, v)| (n.clone(), v.clone())).collect())
    }

    /// What Consul's own variables say. `CONNECT_PROXY_ID` and `CONNECT_SIDECAR_FOR` are not among them: they choose
    /// the mode and are looked at there.
    pub(crate) fn consul(&self) -> Result<Layer, Problem> {
        let mut values = Vec::new();
        let mut put = |name: &str, path: &str, value: Value| values.push((name.to_owned(), path_of(path), value));
        for (name, path) in [
            ("CONSUL_HTTP_ADDR", "agent.address"),
            ("CONSUL_HTTP_AUTH", "agent.auth"),
            ("CONSUL_CACERT", "agent.tls.ca_file"),
            ("CONSUL_CAPATH", "agent.tls.ca_path"),
            ("CONSUL_CLIENT_CERT", "agent.tls.client_cert"),
            ("CONSUL_CLIENT_KEY", "agent.tls.client_key"),
            ("CONSUL_TLS_SERVER_NAME", "agent.tls.server_name"),
            ("CONSUL_NAMESPACE", "agent.namespace"),
            ("CONSUL_PARTITION", "agent.partition"),
        ] {
            if let Some(value) = self.get(name) {
                put(name, path, Value::Text(value.to_owned()));
            }
        }
        for (name, path) in [("CONSUL_HTTP_SSL", "agent.tls.enabled"), ("CONSUL_HTTP_SSL_VERIFY", "agent.tls.verify")] {
            if let Some(text) = self.get(name) {
                let value = go::parse_bool(text).map_err(|what| {
                    Problem::new(what).instead("write true or false, or leave the variable unset").said_by(name)
                })?;
                put(name, path, Value::Bool(value));
            }
        }
        // The token of a managed proxy rules over the others, a file over a value.
        let token = ["CONNECT_PROXY_TOKEN", "CONSUL_PROXY_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_HTTP_TOKEN"]
            .into_iter()
            .find_map(|name| Some((name, self.get(name)?)));
        if let Some((name, value)) = token {
            let (path, other) = if name.ends_with("_FILE") {
                ("agent.token_file", "agent.token")
            } else {
                ("agent.token", "agent.token_file")
            };
            put(name, other, Value::Null);
            put(name, path, Value::Text(value.to_owned()));
        }
        Layer::texts("environment", values)
    }

    /// What our own variables say, and the names of those that are no key.
    ///
    /// Those are told and passed over, not refused: a container platform makes variables from the names of services,
    /// and one called `lictor` would stop every sidecar.
    pub(crate) fn own(&self) -> Result<(Layer, Vec<String>), Problem> {
        let (mut values, mut unknown) = (Vec::new(), Vec::new());
        for (name, value) in &self.0 {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            if value.is_empty() {
                continue;
            }
            let path: Vec<String> = key.to_lowercase().split("__").map(str::to_owned).collect();
            let entry = (name.clone(), path.clone(), Value::Text(value.clone()));
            match Layer::texts("environment", vec![entry.clone()]) {
                Ok(_) => {}
                Err(problem) if problem.is_unknown_key() => {
                    unknown.push(format!("{problem}"));
                    continue;
                }
                Err(problem) => return Err(problem),
            }
            match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                ["agent", "token"] => values.push((name.clone(), path_of("agent.token_file"), Value::Null)),
                ["agent", "token_file"] => values.push((name.clone(), path_of("agent.token"), Value::Null)),
                _ => {}
            }
            values.push(entry);
        }
        Ok((Layer::texts("environment", values)?, unknown))
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// A key written with dots.
pub(crate) fn path_of(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}
