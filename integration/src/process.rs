//! Child processes: their output is kept, within a limit, and they die with whoever holds them.

use std::{
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinSet,
};

use crate::wait;

/// What is kept of a child's output.
const MOST: usize = 4 << 20;

/// A running child.
pub(crate) struct Process {
    name: String,
    child: Child,
    pid: Pid,
    output: Output,
    /// What reads its output, to the end of both pipes.
    readers: JoinSet<()>,
}

/// What a child has written so far, both streams line by line.
#[derive(Clone)]
pub(crate) struct Output {
    text: Arc<Mutex<String>>,
    grown: watch::Sender<u64>,
}

impl Output {
    fn new() -> Self {
        Self { text: Arc::default(), grown: watch::Sender::new(0) }
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        self.text.lock().clone()
    }

    /// The last lines, for the report of a failure.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The first line, from byte `from` on, that `wanted` accepts.
    pub(crate) async fn line(
        &self,
        from: usize,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let mut grown = self.grown.subscribe();
        let found = wait::within(&format!("a line about {what}"), deadline, async {
            loop {
                if let Some(line) = self.text().get(from..).and_then(|text| text.lines().find(|line| wanted(line))) {
                    return Some(line.to_owned());
                }
                if grown.changed().await.is_err() {
                    return None;
                }
            }
        })
        .await?;
        found.with_context(|| format!("the output ended without a line about {what}"))
    }

    /// How many bytes there are: pass it to [`Self::line`] to look at what comes after.
    pub(crate) fn len(&self) -> usize {
        self.text.lock().len()
    }

    fn take(&self, stream: impl AsyncRead + Unpin + Send + 'static) -> impl Future<Output = ()> + Send + 'static {
        let output = self.clone();
        async move {
            let mut lines = BufReader::new(stream).split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                let mut text = output.text.lock();
                if text.len() < MOST {
                    text.push_str(&String::from_utf8_lossy(&line));
                    text.push('\n');
                }
                drop(text);
                output.grown.send_modify(|count| *count += 1);
            }
        }
    }
}

impl Process {
    /// Starts `command`; `name` is for messages.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        let (output, mut readers) = (Output::new(), JoinSet::new());
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(output.take(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(output.take(stderr));
        }
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.with_context(|| format!("{name} has no process ID"))?;
        Ok(Self { name: name.to_owned(), child, pid, output, readers })
    }

    pub(crate) fn output(&self) -> &Output {
        &self.output
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot send {signal:?} to {}", self.name))
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = format!("the end of {}", self.name);
        Ok(wait::within(&name, deadline, self.child.wait()).await??)
    }

    /// Waits until all that it wrote is read, which is a little after its end.
    pub(crate) async fn all_read(&mut self, deadline: Duration) -> Result<()> {
        let name = format!("the end of the output of {}", self.name);
        wait::within(&name, deadline, async { while self.readers.join_next().await.is_some() {} }).await
    }

    /// Kills it without notice and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// A number from `/proc/PID/status`, in bytes where the kernel gives kB.
    pub(crate) fn status(&self, key: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        for line in text.lines() {
            if let Some(value) = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(':')) {
                let mut words = value.split_whitespace();
                let number: u64 = words.next().context("no number")?.parse()?;
                return Ok(if words.next() == Some("kB") { number * 1024 } else { number });
            }
        }
        bail!("no {key} in {path}")
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_nonzero()))?.count())
    }
}
