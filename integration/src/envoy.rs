//! Envoy as Consul drives it: the agent writes its bootstrap and gives it everything else over gRPC.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::{
    agent::{Agent, Kind},
    ports,
    process::Process,
    world::{NotRun, World},
};

/// The binary that `ENVOY_BIN` names, or the one on the `PATH`.
fn binary() -> Result<PathBuf> {
    let named = std::env::var_os("ENVOY_BIN").filter(|name| !name.is_empty()).map(PathBuf::from);
    if let Some(path) = named {
        ensure!(path.is_file(), "ENVOY_BIN names no file: {}", path.display());
        return Ok(path);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("envoy")).find(|path| path.is_file());
    found.ok_or_else(|| NotRun("no envoy on the PATH".to_owned()).into())
}

/// Says why there is no Envoy to run, before anything else is started.
pub(crate) fn is_there() -> Result<()> {
    binary().map(drop)
}

/// A running Envoy.
pub(crate) struct Envoy {
    _process: Process,
    admin: SocketAddr,
}

impl Envoy {
    /// The sum of the counters whose names hold both parts.
    pub(crate) async fn counted(&self, part: &str, end: &str) -> Result<u64> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let text = client.get(format!("http://{}/stats", self.admin)).send().await?.text().await?;
        let counters = text.lines().filter_map(|line| line.split_once(": "));
        let wanted = counters.filter(|(name, _)| name.contains(part) && name.ends_with(end));
        Ok(wanted.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
    }
}

/// Starts Envoy with what `consul connect envoy` makes of these arguments.
///
/// The bootstrap is written to a file and Envoy started with it, since Consul itself refuses to start an Envoy that is
/// newer than the ones it was tested with.
pub(crate) async fn start(world: &World, agent: &Agent, grpc: SocketAddr, name: &str, args: &[&str]) -> Result<Envoy> {
    let envoy = binary()?;
    let Kind::Consul(consul) = &world.kind else {
        bail!(NotRun("the binary of the consul in the container is not at hand".to_owned()));
    };
    let admin = ports::free()?;
    let mut command = Command::new(&consul.path);
    command.args(["connect", "envoy", "-bootstrap", "-grpc-addr", &grpc.to_string()]);
    command.args(["-admin-bind", &admin.to_string()]).args(args);
    command.env("CONSUL_HTTP_ADDR", agent.target().to_string()).env_remove("CONSUL_HTTP_TOKEN");
    command.env("PATH", path_with(&envoy)?).stdin(Stdio::null()).kill_on_drop(true);
    let made = command.output().await.context("cannot run consul connect envoy")?;
    ensure!(made.status.success(), "consul connect envoy {args:?}: {}", String::from_utf8_lossy(&made.stderr));
    let bootstrap = world.file(&format!("envoy-{}.json", admin.port()), &String::from_utf8_lossy(&made.stdout))?;
    let mut command = Command::new(envoy);
    command.arg("-c").arg(bootstrap).args(["--concurrency", "1", "--disable-hot-restart", "-l", "info"]);
    let process = Process::start(name, &mut command)?;
    world.outputs().lock().push((name.to_owned(), process.output().clone()));
    Ok(Envoy { _process: process, admin })
}

/// Some versions of `consul connect envoy` look for Envoy even where they only write the bootstrap.
fn path_with(envoy: &std::path::Path) -> Result<std::ffi::OsString> {
    let mut folders = vec![envoy.parent().context("an envoy without a folder")?.to_owned()];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    Ok(std::env::join_paths(folders)?)
}
