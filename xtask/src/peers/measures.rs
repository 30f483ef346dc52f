//! What is measured, and what of it is judged how: the rows of the table.

use super::{Figures, instance::Role};

/// One run of the load generator for each candidate and round, and the rows that come of it.
pub(crate) struct Measurement {
    /// By this name it is chosen on the command line; several may share one.
    pub(crate) key: &'static str,
    pub(crate) role: Role,
    pub(crate) work: Work,
    pub(crate) rows: &'static [Row],
}

/// What is done.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Load on proxies that run all the time: arguments of the load generator.
    Load(&'static str),
    /// Many connections on a proxy that has just been started.
    Memory,
    /// The start of a proxy.
    Start,
    /// The length of its file.
    Size,
}

/// A line of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) figure: Figure,
    /// What the figure is multiplied with to be in its unit.
    pub(crate) scale: f64,
    pub(crate) rule: Rule,
}

/// How a row's figure is made of those of the load generator.
#[derive(Clone, Copy)]
pub(crate) enum Figure {
    /// One of them, over what was done.
    PerUnit(&'static str),
    /// One of them.
    Plain(&'static str),
}

impl Figure {
    pub(crate) fn of(self, figures: &Figures) -> Option<f64> {
        let value = match self {
            Self::Plain(name) => *figures.get(name)?,
            Self::PerUnit(name) => figures.get(name)? / figures.get("units").filter(|units| **units > 0.0)?,
        };
        value.is_finite().then_some(value)
    }
}

/// What is asked of Lictor.
#[derive(Clone, Copy)]
pub(crate) enum Rule {
    /// At most so many times the cost of the best of these peers; of all where none is named.
    Ratio { must: f64, aim: f64, against: &'static [&'static str] },
    /// At least so much.
    AtLeast { must: f64, aim: f64 },
    /// At most so much; it is aimed at and not demanded.
    AimAtMost(f64),
    /// Nothing; it is told for its own sake.
    Told,
}

const fn ratio(must: f64, aim: f64) -> Rule {
    Rule::Ratio { must, aim, against: &[] }
}

const fn cpu(name: &'static str, unit: &'static str, scale: f64, rule: Rule) -> Row {
    Row { name, unit, figure: Figure::PerUnit("cpu"), scale, rule }
}

/// Latencies of the best of many peers would mostly say who was lucky: these are compared with.
const QUICK: &[&str] = &["Envoy"];
const FAIR: &[&str] = &["Envoy", "nginx", "HAProxy"];

const fn latency(
    name: &'static str,
    figure: &'static str,
    must: f64,
    aim: f64,
    against: &'static [&'static str],
) -> Row {
    Row { name, unit: "µs", figure: Figure::Plain(figure), scale: 1e6, rule: Rule::Ratio { must, aim, against } }
}

/// All of it, in the order of the table.
pub(crate) const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        key: "handshake",
        role: Role::Inbound,
        work: Work::Load("handshakes --connections=16"),
        rows: &[
            cpu("inbound handshake, 16 at once", "CPU ms", 1e3, ratio(0.90, 0.70)),
            Row {
                name: "the same, the agent's part apart",
                unit: "CPU ms",
                figure: Figure::PerUnit("agent_cpu"),
                scale: 1e3,
                rule: Rule::Told,
            },
        ],
    },
    Measurement {
        key: "chain-handshake",
        role: Role::Chain,
        work: Work::Load("handshakes --connections=16"),
        rows: &[cpu("chain handshake, 16 at once", "CPU ms", 1e3, ratio(0.90, 0.63))],
    },
    Measurement {
        key: "bulk",
        role: Role::Inbound,
        work: Work::Load("bulk --connections=1 --direction=down"),
        rows: &[cpu("bulk down, 1 stream", "CPU s/GB", 1.0, ratio(0.72, 0.55))],
    },
    Measurement {
        key: "bulk",
        role: Role::Inbound,
        work: Work::Load("bulk --connections=1 --direction=up"),
        rows: &[cpu("bulk up, 1 stream", "CPU s/GB", 1.0, ratio(0.92, 0.80))],
    },
    Measurement {
        key: "bulk",
        role: Role::Inbound,
        work: Work::Load("bulk --connections=8 --direction=down"),
        rows: &[cpu("bulk down, 8 streams", "CPU s/GB", 1.0, ratio(0.60, 0.45))],
    },
    Measurement {
        key: "bulk",
        role: Role::Inbound,
        work: Work::Load("bulk --connections=8 --direction=up"),
        rows: &[cpu("bulk up, 8 streams", "CPU s/GB", 1.0, ratio(0.85, 0.65))],
    },
    Measurement {
        key: "chain-bulk",
        role: Role::Chain,
        work: Work::Load("bulk --connections=1 --direction=down"),
        rows: &[cpu("chain bulk down, 1 stream", "CPU s/GB", 1.0, ratio(0.99, 0.85))],
    },
    Measurement {
        key: "chain-bulk",
        role: Role::Chain,
        work: Work::Load("bulk --connections=1 --direction=up"),
        rows: &[cpu("chain bulk up, 1 stream", "CPU s/GB", 1.0, ratio(0.99, 0.85))],
    },
    Measurement {
        key: "closed-loop",
        role: Role::Inbound,
        work: Work::Load("exchange --connections=64 --size=64"),
        rows: &[cpu("64 B there and back, 64 connections, closed loop", "CPU s/100k", 1e5, ratio(0.88, 0.80))],
    },
    Measurement {
        key: "rate",
        role: Role::Inbound,
        work: Work::Load("exchange --connections=64 --size=64 --rate=5000"),
        rows: &[
            latency("64 B at 5,000/s, p50", "p50", 1.05, 0.95, QUICK),
            latency("64 B at 5,000/s, p99", "p99", 1.2, 1.0, QUICK),
        ],
    },
    Measurement {
        key: "rate",
        role: Role::Inbound,
        work: Work::Load("exchange --connections=64 --size=16384 --rate=2500"),
        rows: &[
            latency("16 KiB at 2,500/s, p50", "p50", 1.05, 0.95, QUICK),
            latency("16 KiB at 2,500/s, p99", "p99", 1.2, 1.0, QUICK),
        ],
    },
    Measurement {
        key: "beside",
        role: Role::Inbound,
        work: Work::Load("exchange --connections=16 --size=64 --rate=1000 --beside=8"),
        rows: &[
            latency("64 B at 1,000/s beside 8 bulk streams, p50", "p50", 1.0, 0.7, FAIR),
            latency("64 B at 1,000/s beside 8 bulk streams, p99", "p99", 1.0, 0.7, FAIR),
        ],
    },
    Measurement {
        key: "memory",
        role: Role::Inbound,
        work: Work::Memory,
        rows: &[
            Row {
                name: "idle connection, new",
                unit: "bytes",
                figure: Figure::Plain("idle"),
                scale: 1.0,
                rule: ratio(0.50, 0.25),
            },
            Row {
                name: "idle connection, after 64 KiB each way",
                unit: "bytes",
                figure: Figure::Plain("idle_after"),
                scale: 1.0,
                rule: ratio(0.50, 0.25),
            },
            Row {
                name: "memory given back 10 s after all were closed",
                unit: "%",
                figure: Figure::Plain("given_back"),
                scale: 100.0,
                rule: Rule::AtLeast { must: 50.0, aim: 80.0 },
            },
            Row { name: "memory at rest", unit: "MB", figure: Figure::Plain("base"), scale: 1e-6, rule: Rule::Told },
        ],
    },
    Measurement {
        key: "start",
        role: Role::Inbound,
        work: Work::Start,
        rows: &[
            Row {
                name: "start to first connection",
                unit: "ms",
                figure: Figure::Plain("start"),
                scale: 1e3,
                rule: ratio(1.0, 0.7),
            },
            Row { name: "the same", unit: "CPU ms", figure: Figure::Plain("cpu"), scale: 1e3, rule: Rule::Told },
        ],
    },
    Measurement {
        key: "size",
        role: Role::Inbound,
        work: Work::Size,
        rows: &[Row {
            name: "the binary, stripped (shared libraries not counted)",
            unit: "MB",
            figure: Figure::Plain("size"),
            scale: 1e-6,
            rule: Rule::AimAtMost(10.0),
        }],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_taken_over_the_work_that_was_done() {
        let figures = Figures::from([("cpu".into(), 3.0), ("units".into(), 2.0), ("p50".into(), 0.5)]);
        assert_eq!(Figure::PerUnit("cpu").of(&figures), Some(1.5));
        assert_eq!(Figure::Plain("p50").of(&figures), Some(0.5));
        assert_eq!(Figure::Plain("p99").of(&figures), None);
    }

    #[test]
    fn a_figure_over_no_work_is_none() {
        let figures = Figures::from([("cpu".into(), 3.0), ("units".into(), 0.0)]);
        assert_eq!(Figure::PerUnit("cpu").of(&figures), None);
    }
}
