//! A real `consul` as a child process.

use std::{fmt, fs, net::SocketAddr, path::PathBuf, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{MANAGEMENT, Options};
use crate::{
    ports,
    process::Process,
    world::{Outputs, World, merge},
};

/// A version of Consul, as far as the tests look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A `consul` binary.
#[derive(Clone, Debug)]
pub(crate) struct Consul {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
    /// The first line of `consul version`.
    pub(crate) banner: String,
}

impl Consul {
    /// The binary that `CONSUL_BIN` names, or the one on the `PATH`.
    pub(crate) fn find() -> Result<Option<Self>> {
        let named = std::env::var_os("CONSUL_BIN").filter(|name| !name.is_empty());
        if let Some(path) = named.map(PathBuf::from) {
            ensure!(
                path.is_file() || !path.to_string_lossy().contains(','),
                "CONSUL_BIN lists several, which `cargo xtask consul` takes one after another"
            );
            return Self::at(path).map(Some);
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders).map(|folder| folder.join("consul")).find(|path| path.is_file());
        found.map(Self::at).transpose()
    }

    fn at(path: PathBuf) -> Result<Self> {
        let run = std::process::Command::new(&path).arg("version").stdin(Stdio::null()).output();
        let output = run.with_context(|| format!("cannot run {} version", path.display()))?;
        let banner = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned();
        let Some(version) = version_of(&banner) else {
            bail!("{} does not say a version but {banner:?}", path.display());
        };
        Ok(Self { path, version, banner })
    }
}

/// The version in a banner, `Consul v1.22.0`.
pub(super) fn version_of(banner: &str) -> Option<Version> {
    // Builds of old versions that are no releases say it without the v.
    let text = banner.strip_prefix("Consul ")?.trim_start_matches('v');
    let mut parts = text.split(['.', '-', '+']);
    Some(Version(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// One agent, up or down.
pub(crate) struct Running {
    consul: Consul,
    config: PathBuf,
    config_folder: Option<PathBuf>,
    persistent: bool,
    api: SocketAddr,
    https: Option<SocketAddr>,
    process: Option<Process>,
    outputs: Outputs,
}

impl Running {
    /// Writes the configuration; starts nothing yet.
    pub(crate) fn new(consul: &Consul, world: &World, options: &Options) -> Result<Self> {
        let api = ports::free()?;
        let https = options.https.as_ref().map(|_| ports::free()).transpose()?;
        let folder = world.folder().join(format!("consul-{}", api.port()));
        fs::create_dir_all(&folder)?;
        let mut config = config(options, consul.version, api)?;
        if let (Some(https), Some(files)) = (https, &options.https) {
            config["ports"]["https"] = json!(https.port());
            if consul.version >= Version(1, 12) {
                config["tls"] = json!({
                    "https": { "ca_file": files.ca, "cert_file": files.cert, "key_file": files.key, "verify_incoming": true },
                });
            } else {
                config["ca_file"] = json!(files.ca);
                config["cert_file"] = json!(files.cert);
                config["key_file"] = json!(files.key);
                config["verify_incoming_https"] = json!(true);
            }
        }
        if options.persistent {
            config["data_dir"] = json!(folder.join("data"));
            config["server"] = json!(true);
            config["bootstrap_expect"] = json!(1);
            config["connect"] = json!({ "enabled": true });
            config["performance"] = json!({ "raft_multiplier": 1 });
        }
        deepen(&mut config, &options.more);
        let path = folder.join("agent.json");
        fs::write(&path, config.to_string())?;
        Ok(Self {
            consul: consul.clone(),
            config: path,
            config_folder: options.config_folder.clone(),
            persistent: options.persistent,
            api,
            https,
            process: None,
            outputs: world.outputs(),
        })
    }

    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    pub(crate) fn https(&self) -> Option<SocketAddr> {
        self.https
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.consul.path);
        command.arg("agent").arg("-config-file").arg(&self.config);
        // Agents of the age of managed proxies write these proxies' output to where they run.
        if let Some(folder) = self.config.parent() {
            command.current_dir(folder);
        }
        if let Some(folder) = &self.config_folder {
            command.arg("-config-dir").arg(folder);
        }
        // Whoever runs the tests may have set these for another agent.
        command.env_remove("CONSUL_HTTP_TOKEN").env_remove("CONSUL_HTTP_ADDR");
        if !self.persistent {
            command.arg("-dev");
        }
        let process = Process::start("consul", &mut command)?;
        self.outputs.lock().push(("consul".to_owned(), process.output().clone()));
        self.process = Some(process);
        Ok(())
    }

    pub(crate) async fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the agent is down")?.signal(signal)
    }
}

/// The configuration that process and container share.
pub(crate) fn config(options: &Options, version: Version, api: SocketAddr) -> Result<Value> {
    let mut config = json!({
        "ports": {
            "http": api.port(), "dns": -1, "serf_wan": -1,
            "server": ports::free()?.port(), "serf_lan": ports::free()?.port(),
        },
        "bind_addr": "127.0.0.1",
        "client_addr": "127.0.0.1",
        "node_name": "tests",
        "log_level": "warn",
    });
    if version >= Version(1, 3) {
        config["ports"]["grpc"] = json!(-1);
    }
    if version >= Version(1, 14) {
        config["ports"]["grpc_tls"] = json!(-1);
    }
    if let Some(socket) = &options.unix_socket {
        config["addresses"] = json!({ "http": format!("127.0.0.1 unix://{}", socket.display()) });
    }
    if let Some(default) = options.acl
        && version < Version(1, 4)
    {
        // The keys from before 1.4, when tokens and policies were one thing.
        merge(
            &mut config,
            json!({
                "acl_datacenter": "dc1", "acl_default_policy": default,
                "acl_master_token": MANAGEMENT, "acl_agent_token": MANAGEMENT,
            }),
        );
    } else if let Some(default) = options.acl {
        let first = if version >= Version(1, 11) { "initial_management" } else { "master" };
        config["acl"] =
            json!({ "enabled": true, "default_policy": default, "tokens": { first: MANAGEMENT, "agent": MANAGEMENT } });
    }
    if let Some(limit) = options.connection_limit {
        config["limits"] = json!({ "http_max_conns_per_client": limit });
    }
    if version < Version(1, 9) && version >= Version(1, 6) {
        config["enable_central_service_config"] = json!(true);
    }
    if version < Version(1, 6) {
        config["connect"] =
            json!({ "enabled": true, "proxy": { "allow_managed_api_registration": true, "allow_managed_root": true } });
    }
    Ok(config)
}

/// Puts the keys of one object into another, object by object.
fn deepen(into: &mut Value, from: &Value) {
    let Some(from) = from.as_object() else { return };
    for (key, value) in from {
        if value.is_object() && into[key.as_str()].is_object() {
            deepen(&mut into[key.as_str()], value);
        } else {
            into[key.as_str()] = value.clone();
        }
    }
}
