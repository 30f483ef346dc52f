//! What this process has used, as the system counts it.

use std::{fs, time::Duration};

/// CPU time of a measured part of this process's life, and what was done in it.
#[derive(Debug, Default)]
pub struct Spent {
    cpu: Duration,
    units: f64,
}

impl Spent {
    /// Runs `work`, which does `units` of something, and counts the CPU time of all threads meanwhile.
    pub fn on<R>(&mut self, units: f64, work: impl FnOnce() -> R) -> R {
        let before = cpu_time();
        let done = work();
        self.cpu += cpu_time().saturating_sub(before);
        self.units += units;
        done
    }

    /// Says what a unit cost, under the name of the bench; in a brief run, whose figures mean nothing, not.
    #[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
    pub fn report(&self, bench: &str, unit: &str) {
        if !is_brief() && self.units > 0.0 {
            println!("{bench}: CPU of this process {:.3e} s per {unit}\n", self.cpu.as_secs_f64() / self.units);
        }
    }
}

/// Whether the benches are only to be tried, as by `cargo test --benches`: the rule is criterion's.
#[must_use]
pub fn is_brief() -> bool {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    !has("--bench") || has("--test")
}

/// Memory that this process holds, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident, with its share of what other processes map too.
    pub proportional: u64,
    /// Resident in all.
    pub resident: u64,
}

impl Memory {
    /// What is held now.
    ///
    /// # Panics
    /// Where the system does not tell.
    #[must_use]
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux tells the memory of a process");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field of every kernel");
            line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
        };
        Self { proportional: field("Pss:"), resident: field("Rss:") }
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}
