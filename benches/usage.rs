//! What this process has used, as the system counts it.

use std::{fs, time::Duration};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// What criterion measures where one thread does all the work: its CPU time, into which neighbours on the machine
/// reach only through the caches.
#[derive(Debug)]
pub struct ThreadTime;

impl Measurement for ThreadTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        clock(ClockId::ThreadCPUTime)
    }

    fn end(&self, start: Duration) -> Duration {
        clock(ClockId::ThreadCPUTime).saturating_sub(start)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// CPU time of a measured part of this process's life, and what was done in it.
#[derive(Debug, Default)]
pub struct Spent {
    cpu: Duration,
    units: f64,
}

impl Spent {
    /// Runs `work`, which does `units` of something, and counts the CPU time of all threads meanwhile.
    pub fn on<R>(&mut self, units: f64, work: impl FnOnce() -> R) -> R {
        let before = clock(ClockId::ProcessCPUTime);
        let done = work();
        self.cpu += clock(ClockId::ProcessCPUTime).saturating_sub(before);
        self.units += units;
        done
    }

    /// Seconds of CPU for each unit; none where no unit was done.
    #[must_use]
    pub fn each(&self) -> f64 {
        if self.units > 0.0 { self.cpu.as_secs_f64() / self.units } else { 0.0 }
    }

    /// Says what a unit cost, under the name of the bench; in a brief run, whose figures mean nothing, not.
    #[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
    pub fn report(&self, bench: &str, unit: &str) {
        if !is_brief() && self.units > 0.0 {
            println!("{bench}: CPU of this process {:.3e} s per {unit}\n", self.each());
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

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}
