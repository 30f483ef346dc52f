//! Where it is measured: which cores, which network, which files; and the processes in it.

use std::{
    cell::Cell,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use procfs::process::all_processes;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process_group};

use super::{Figures, candidates::fill};
use crate::{setup::on_path, workspace::root};

/// Connections that the measurement of memory opens where the limit of open files allows it.
const CONNECTIONS: u64 = 10_000;

/// Below the ports that the kernel gives to connections.
const FIRST_PORT: u16 = 20_100;

/// Congestion controls that do not pace, in the order in which they are tried.
const UNPACED: [&str; 2] = ["cubic", "reno"];

const CONGESTION: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// The place of one run.
pub(crate) struct Place {
    /// Everything of this run is below it.
    pub(crate) folder: tempfile::TempDir,
    /// The load generator.
    load: PathBuf,
    /// The cores of the proxies and of all else; without them nothing is pinned.
    cores: Option<(usize, usize)>,
    port: Cell<u16>,
}

impl Place {
    pub(crate) fn new(load: &Path, proxy_core: usize, load_core: usize) -> Result<Self> {
        let there = thread::available_parallelism().map_or(1, usize::from);
        let pinned = on_path("taskset") && proxy_core < there && load_core < there && proxy_core != load_core;
        let folder = tempfile::Builder::new().prefix("lictor-peers-").tempdir().context("cannot make a folder")?;
        // Some peers change to a user of their own before they write their logs.
        Command::new("chmod").arg("755").arg(folder.path()).status().context("cannot open the folder to the peers")?;
        Ok(Self {
            folder,
            load: load.to_owned(),
            cores: pinned.then_some((proxy_core, load_core)),
            port: Cell::new(FIRST_PORT),
        })
    }

    /// What a reader of the figures must know about the place.
    pub(crate) fn words(&self, namespace: bool) -> String {
        let pins = match self.cores {
            Some((proxy, load)) => format!("proxies on core {proxy}; load, application and agent on core {load}"),
            None => "NOTHING PINNED (two cores and taskset are needed)".to_owned(),
        };
        let control = fs::read_to_string(CONGESTION).unwrap_or_else(|_| "unknown".to_owned());
        let network = if namespace { "a network namespace of its own" } else { "NO network namespace of its own" };
        let paced = if UNPACED.contains(&control.trim()) { "" } else { ", WHICH DISTORTS LOOPBACK" };
        format!("{pins}; {network}; TCP congestion control {}{paced}", control.trim())
    }

    /// How many connections the measurement of memory holds: a proxy has two sockets for each.
    pub(crate) fn connections() -> u64 {
        connections(getrlimit(Resource::Nofile).current)
    }

    /// A free port.
    pub(crate) fn port(&self) -> Result<u16> {
        loop {
            let port = self.port.get();
            ensure!(port < 32_000, "no port is free any more");
            self.port.set(port + 1);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
    }

    /// A new folder.
    pub(crate) fn room(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Command::new("chmod").arg("777").arg(&folder).status().context("cannot open the folder to the peers")?;
        Ok(folder)
    }

    /// Starts a proxy; its output goes to a file.
    pub(crate) fn proxy(
        &self,
        program: &Path,
        arguments: &[String],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Process> {
        let mut command = self.on_core(true);
        command.arg(program).args(arguments).envs(environment.iter().copied());
        Process::start(&mut command, log)
    }

    /// The words before a proxy's own, for the measurement that starts it.
    pub(crate) fn prefix(&self) -> Vec<String> {
        self.cores.iter().flat_map(|(proxy, _)| ["taskset".into(), "-c".into(), proxy.to_string()]).collect()
    }

    /// Starts something that the proxies need.
    pub(crate) fn helper(&self, program: &Path, arguments: &[String], log: &Path) -> Result<Process> {
        let mut command = self.on_core(false);
        command.arg(program).args(arguments);
        Process::start(&mut command, log)
    }

    /// Starts the application behind the proxies.
    pub(crate) fn application(&self) -> Result<(Process, u16)> {
        let port = self.port()?;
        let arguments = ["application".to_owned(), format!("127.0.0.1:{port}")];
        let process = self.helper(&self.load, &arguments, &self.folder.path().join("application.log"))?;
        Ok((process, port))
    }

    /// Runs one measurement.
    pub(crate) fn load(&self, arguments: &[String]) -> Result<Figures> {
        let output = self.on_core(false).arg(&self.load).args(arguments).stdin(Stdio::null()).output();
        let output = output.context("cannot run the load generator")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("{}", words.lines().last().unwrap_or("the load generator failed and does not say why"));
        }
        serde_json::from_slice(&output.stdout).context("the load generator's figures are not JSON")
    }

    /// Brings a proxy's processes back to their core: some pin their workers themselves.
    pub(crate) fn gather(&self, process: &Process) -> Result<()> {
        let Some((core, _)) = self.cores else { return Ok(()) };
        let mut family = vec![process.id()?];
        let everyone: Vec<_> = all_processes()?.flatten().filter_map(|process| process.stat().ok()).collect();
        let mut next = 0;
        while let Some(&parent) = family.get(next) {
            family.extend(everyone.iter().filter(|stat| stat.ppid == parent).map(|stat| stat.pid));
            next += 1;
        }
        for id in family {
            let mut command = Command::new("taskset");
            command.args(["-a", "-c", "-p", &core.to_string(), &id.to_string()]);
            // One that has ended meanwhile needs no core.
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().context("cannot run taskset")?;
        }
        Ok(())
    }

    fn on_core(&self, proxy: bool) -> Command {
        let mut command = Command::new("setpriv");
        // Nothing outlives this program, however it ends.
        command.args(["--pdeathsig", "TERM"]);
        if let Some((proxies, others)) = self.cores {
            command.args(["taskset", "-c", &(if proxy { proxies } else { others }).to_string()]);
        }
        command
    }
}

/// Writes a template out.
pub(crate) fn write_config(name: &str, values: &[(&str, String)], into: &Path) -> Result<()> {
    let text = fill(&template(name)?, values).with_context(|| format!("benches/peers/{name}"))?;
    fs::write(into, text).with_context(|| format!("cannot write {}", into.display()))
}

/// The text of a template.
pub(crate) fn template(name: &str) -> Result<String> {
    let path = root().join("benches/peers").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A command that runs what follows in a network namespace of its own, where this machine lets us.
pub(crate) fn namespace() -> Option<Command> {
    let mut attempt = Command::new("unshare");
    attempt.args(["-n", "ip", "link", "set", "lo", "up"]);
    attempt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    attempt.status().is_ok_and(|status| status.success()).then(|| {
        let mut command = Command::new("unshare");
        command.arg("-n");
        command
    })
}

/// Makes a new namespace ready; says what it cannot.
pub(crate) fn furnish_namespace() -> Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    ensure!(status.success(), "loopback does not come up in the new network namespace");
    if !UNPACED.iter().any(|control| fs::write(CONGESTION, control).is_ok()) {
        eprintln!(
            "peers: neither {} can be chosen; another congestion control distorts loopback",
            UNPACED.join(" nor ")
        );
    }
    Ok(())
}

/// A process group that ends with this value.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    pub(crate) fn id(&self) -> Result<i32> {
        i32::try_from(self.child.id()).context("a process number")
    }

    /// An error with its last words, when it has ended.
    pub(crate) fn must_live(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended at once ({status}): {}", self.last_words()),
        }
    }

    /// The beginning and the end of what it has logged.
    pub(crate) fn last_words(&self) -> String {
        const EACH: usize = 200;
        let bytes = fs::read(&self.log).unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\n', " ").trim().to_owned();
        if bytes.len() <= 2 * EACH {
            return text(&bytes);
        }
        format!("{} … {}", text(&bytes[..EACH]), text(&bytes[bytes.len() - EACH..]))
    }

    fn end(&mut self, signal: Signal, patience: Duration) -> bool {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
        let begun = Instant::now();
        while begun.elapsed() < patience {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.end(Signal::TERM, Duration::from_secs(3)) {
            self.end(Signal::KILL, Duration::from_secs(3));
        }
    }
}

fn connections(open_files: Option<u64>) -> u64 {
    let Some(limit) = open_files else { return CONNECTIONS };
    (limit.saturating_sub(400) / 2 / 100 * 100).min(CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_connections_as_two_sockets_each_leave_room_for() {
        assert_eq!(connections(Some(20_000)), 9_800);
        assert_eq!(connections(Some(1_024)), 300);
        assert_eq!(connections(Some(100)), 0);
        assert_eq!(connections(Some(1 << 20)), CONNECTIONS);
        assert_eq!(connections(None), CONNECTIONS);
    }
}
