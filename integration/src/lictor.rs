//! The binary under test as a child process.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    agent::Agent,
    ports,
    process::{Output, Process},
    wait::{self, SOON},
    world::{Outputs, World},
};

/// The binary: `LICTOR_BIN`, or what cargo has built, or is made to build.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LICTOR_BIN").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "LICTOR_BIN names no file: {}", path.display());
        return Ok(path);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = std::process::Command::new(cargo);
    build.current_dir(root).args(["build", "--locked", "-p", "lictor", "--profile", "checked"]).stdin(Stdio::null());
    ensure!(build.status().context("cannot run cargo")?.success(), "the binary under test does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("checked").join("lictor"))
}

/// A command line in the making.
pub(crate) struct Setup {
    name: String,
    binary: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    admin: Option<SocketAddr>,
    folder: PathBuf,
    /// A shell's `ulimit -n`, before the binary starts.
    descriptors: Option<u64>,
    outputs: Outputs,
}

impl Setup {
    pub(crate) fn new(world: &World, name: &str, args: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            binary: world.binary().to_owned(),
            args: args.iter().map(Into::into).collect(),
            env: Vec::new(),
            admin: None,
            folder: world.folder().to_owned(),
            descriptors: None,
            outputs: world.outputs(),
        }
    }

    /// `lictor proxy`, which finds its agent by a variable and has an admin listener.
    pub(crate) fn proxy(world: &World, name: &str, agent: &Agent) -> Result<Self> {
        let admin = ports::free()?;
        let mut setup = Self::new(world, name, &["proxy", "-log-level", "debug"]);
        setup.admin = Some(admin);
        Ok(setup.arg("-admin").arg(admin.to_string()).env("CONSUL_HTTP_ADDR", agent.address().to_string()))
    }

    /// Another binary than the one under test.
    #[must_use]
    pub(crate) fn binary(mut self, binary: &Path) -> Self {
        binary.clone_into(&mut self.binary);
        self
    }

    #[must_use]
    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(Into::into));
        self
    }

    #[must_use]
    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub(crate) fn descriptors(mut self, most: u64) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// Starts it.
    pub(crate) fn start(self) -> Result<Lictor> {
        let mut command = match self.descriptors {
            None => Command::new(&self.binary),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -n {most} && exec \"$0\" \"$@\"")).arg(&self.binary);
                shell
            }
        };
        command.args(&self.args).current_dir(&self.folder).env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.envs(self.env);
        let process = Process::start(&self.name, &mut command)?;
        self.outputs.lock().push((self.name, process.output().clone()));
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        Ok(Lictor { process, admin: self.admin, client })
    }

    /// Starts it and waits for its end: exit code and output. For command lines that are refused.
    pub(crate) async fn ends(self) -> Result<(i32, String)> {
        let mut lictor = self.start()?;
        let status = lictor.process.wait(SOON).await?;
        lictor.process.all_read(SOON).await?;
        let code = status.code().with_context(|| format!("ended by a signal: {status}"))?;
        Ok((code, lictor.output().text()))
    }
}

/// The running binary.
pub(crate) struct Lictor {
    process: Process,
    admin: Option<SocketAddr>,
    client: reqwest::Client,
}

impl Lictor {
    pub(crate) fn output(&self) -> &Output {
        self.process.output()
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn exit(&mut self, deadline: Duration) -> Result<i32> {
        let status: ExitStatus = self.process.wait(deadline).await?;
        status.code().with_context(|| format!("ended by a signal: {status}"))
    }

    /// It has not ended.
    pub(crate) fn lives(&mut self) -> Result<()> {
        match self.process.ended() {
            None => Ok(()),
            Some(status) => bail!("the binary ended: {status}"),
        }
    }

    /// Sets how many descriptors it may have open, while it runs; its hard limit is kept.
    pub(crate) fn limit_descriptors(&self, most: u64) -> Result<()> {
        let hard = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(self.process.pid()), Resource::Nofile, Rlimit { current: Some(most), maximum: hard })
            .context("cannot set the descriptor limit of the binary under test")?;
        Ok(())
    }

    // ---- the admin listener -------------------------------------------------------------------------------------

    /// A page of the admin listener: status and text.
    pub(crate) async fn page(&self, path: &str) -> Result<(u16, String)> {
        let admin = self.admin.context("no admin listener was asked for")?;
        let answer = self.client.get(format!("http://{admin}{path}")).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await?))
    }

    pub(crate) async fn json(&self, path: &str) -> Result<Value> {
        let (status, text) = self.page(path).await?;
        ensure!(status == 200, "{path}: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("{path} is not JSON: {text}"))
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        self.ready_within(Duration::from_secs(15)).await
    }

    pub(crate) async fn ready_within(&mut self, deadline: Duration) -> Result<()> {
        let begun = std::time::Instant::now();
        loop {
            self.lives()?;
            let word = match self.page("/ready").await {
                Ok((200, _)) => return Ok(()),
                Ok((status, text)) => format!("{status} {text}"),
                Err(error) => format!("{error:#}"),
            };
            ensure!(begun.elapsed() < deadline, "not ready within {deadline:?}: {word}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it does not serve; what it says is missing.
    pub(crate) async fn not_ready(&self) -> Result<String> {
        wait::until("a red /ready", SOON, || async {
            let (status, text) = self.page("/ready").await?;
            ensure!(status == 503, "{status} {text}");
            Ok(text)
        })
        .await
    }

    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.page("/metrics").await?;
        ensure!(status == 200, "/metrics: {status}");
        Ok(Metrics::parse(&text))
    }

    /// Waits until the counters with this label stand at `wanted`.
    pub(crate) async fn counted(&self, label: &str, wanted: u64) -> Result<()> {
        wait::until(&format!("{wanted} × {label}"), SOON, || async {
            let metrics = self.metrics().await?;
            let count = metrics.label(label);
            ensure!(count == wanted, "{count}; all that is counted: {}", metrics.not_zero());
            Ok(())
        })
        .await
    }

    /// Waits until the metric stands at `wanted`, summed over its labels.
    pub(crate) async fn measures(&self, name: &str, wanted: u64) -> Result<()> {
        wait::until(&format!("{name} = {wanted}"), SOON, || async {
            let value = self.metrics().await?.sum(name);
            ensure!(value == wanted, "{value}");
            Ok(())
        })
        .await
    }

    /// Waits for a line of the log; the line.
    pub(crate) async fn says(&self, part: &str) -> Result<String> {
        self.output().line(0, part, SOON, |line| line.contains(part)).await
    }
}

/// A page of metrics.
pub(crate) struct Metrics(Vec<Sample>);

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (head, value) = line.rsplit_once(' ')?;
            let (name, labels) = match head.split_once('{') {
                Some((name, labels)) => (name, labels.trim_end_matches('}')),
                None => (head, ""),
            };
            let labels = labels.split("\",").filter_map(|pair| {
                let (key, value) = pair.split_once("=\"")?;
                Some((key.to_owned(), value.trim_end_matches('"').to_owned()))
            });
            Some(Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
        });
        Self(samples.collect())
    }

    /// The sum of all samples of a metric, `_total` or not.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        self.total(|sample| sample.name.trim_end_matches("_total") == format!("lictor_{name}"))
    }

    /// The sum of all counters that have this label, whatever they are called.
    pub(crate) fn label(&self, value: &str) -> u64 {
        self.total(|sample| sample.name.ends_with("_total") && has(sample, value))
    }

    /// All counters with a reason that are not zero, for messages.
    pub(crate) fn not_zero(&self) -> String {
        let counted = self.0.iter().filter(|sample| sample.value != 0.0 && sample.name.ends_with("_total"));
        let words = counted.filter_map(|sample| {
            let (key, value) = sample.labels.last()?;
            ["reason", "kind", "limit", "failure"].contains(&key.as_str()).then(|| format!("{value}={}", sample.value))
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are whole and not negative")]
    fn total(&self, wanted: impl Fn(&Sample) -> bool) -> u64 {
        self.0.iter().filter(|sample| wanted(sample)).map(|sample| sample.value).sum::<f64>() as u64
    }
}

fn has(sample: &Sample, wanted: &str) -> bool {
    sample.labels.iter().any(|(_, value)| value == wanted)
}
