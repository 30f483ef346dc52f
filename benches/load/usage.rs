//! What the parties of a measurement use, as the system counts it.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use anyhow::{Context, Result};
use procfs::{
    CurrentSI, KernelStats,
    process::{Process, all_processes},
};

use crate::Figures;

/// Whose CPU time and memory counts as what; descendants count with their ancestors.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Parties {
    /// Processes of the proxy, separated by commas.
    #[arg(long, value_delimiter = ',')]
    proxy: Vec<i32>,
    /// Processes of the agent that the proxy asks.
    #[arg(long, value_delimiter = ',')]
    agent: Vec<i32>,
    /// Processes of the application.
    #[arg(long, value_delimiter = ',')]
    application: Vec<i32>,
    /// Where the application listens; it counts what goes up.
    #[arg(long)]
    pub(crate) application_at: Option<SocketAddr>,
}

impl Parties {
    /// Begins to count.
    pub(crate) fn window(&self) -> Result<Window<'_>> {
        Ok(Window { begun: Instant::now(), before: self.sample()?, parties: self })
    }

    /// Bytes that the proxy has resident, with its share of what other processes map too.
    pub(crate) fn memory(&self) -> Result<f64> {
        let mut bytes = 0;
        for process in family(&self.proxy)? {
            // One that has just ended holds nothing.
            let Ok(rollup) = process.smaps_rollup() else { continue };
            bytes += rollup.memory_map_rollup.0.iter().filter_map(|map| map.extension.map.get("Pss")).sum::<u64>();
        }
        #[expect(clippy::cast_precision_loss, reason = "no process has 2^52 bytes")]
        Ok(bytes as f64)
    }

    fn sample(&self) -> Result<Sample> {
        let me = i32::try_from(std::process::id()).context("a process number")?;
        let total = KernelStats::current()?.total;
        let busy = total.user + total.nice + total.system + total.irq.unwrap_or(0) + total.softirq.unwrap_or(0);
        Ok(Sample {
            proxy: cpu(&self.proxy)?,
            agent: cpu(&self.agent)?,
            load: cpu(&[me])? + cpu(&self.application)?,
            busy: seconds(busy),
            stolen: seconds(total.steal.unwrap_or(0)),
        })
    }
}

/// A stretch of time in which CPU time is counted.
pub(crate) struct Window<'a> {
    parties: &'a Parties,
    begun: Instant,
    before: Sample,
}

/// CPU seconds so far.
#[derive(Clone, Copy)]
struct Sample {
    proxy: f64,
    agent: f64,
    load: f64,
    busy: f64,
    stolen: f64,
}

impl Window<'_> {
    /// Ends it: its length, CPU seconds of the proxy, the agent and the load, and how much of a core strangers used.
    pub(crate) fn close(self) -> Result<Figures> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let (a, b) = (self.before, self.parties.sample()?);
        let (proxy, agent, load) = (b.proxy - a.proxy, b.agent - a.agent, b.load - a.load);
        let strangers = (b.busy - a.busy - proxy - agent - load).max(0.0) + b.stolen - a.stolen;
        Ok(Figures::from([
            ("seconds", seconds),
            ("cpu", proxy),
            ("agent_cpu", agent),
            ("load_cores", load / seconds),
            ("strangers", strangers / seconds),
        ]))
    }
}

/// CPU seconds of processes and all below them, those that have ended included.
pub(crate) fn cpu(roots: &[i32]) -> Result<f64> {
    let ticks = family(roots)?.into_iter().filter_map(|process| process.stat().ok()).map(|stat| {
        let ended = u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
        stat.utime + stat.stime + ended
    });
    Ok(seconds(ticks.sum()))
}

fn family(roots: &[i32]) -> Result<Vec<Process>> {
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in all_processes().context("cannot list processes")? {
        if let Ok(stat) = process.and_then(|process| process.stat()) {
            children.entry(stat.ppid).or_default().push(stat.pid);
        }
    }
    let mut found = Vec::new();
    let mut waiting = roots.to_vec();
    while let Some(id) = waiting.pop() {
        waiting.extend(children.remove(&id).unwrap_or_default());
        found.extend(Process::new(id).ok());
    }
    Ok(found)
}

#[expect(clippy::cast_precision_loss, reason = "ticks since the machine started are far below 2^52")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}
