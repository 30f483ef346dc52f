//! Everything a person does to this repository: `cargo xtask test`, `setup`, `tidy`, `drills`, `bench`, `dist`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool that talks to a person at a terminal")]

mod features;
mod gate;
mod setup;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and packs Lictor.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Set up what is missing, then run the whole gate: format, lints, tidiness, tests, docs, benches in brief.
    Test,
    /// Install what the gate needs and the machine lacks, saying what and why.
    Setup,
    /// Check the rules of the house that no compiler checks.
    Tidy,
    /// Run the end-to-end tests alone, against the embedded agent and a real `consul` where there is one.
    Integration {
        /// Arguments for the test harness: names of tests, `--nocapture`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the drills that need minutes: outages in real time, many idle connections, large transfers.
    Drills,
    /// Measure with criterion; arguments after `--` go to criterion.
    Bench {
        /// Arguments for criterion: a filter, `--save-baseline NAME`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the release binary of each legal feature set into `target/dist`.
    Dist,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test => setup::run().and_then(|()| gate::test()),
        Task::Setup => setup::run(),
        Task::Tidy => tidy::run(),
        Task::Integration { arguments } => gate::integration(&arguments),
        Task::Drills => gate::drills(),
        Task::Bench { arguments } => gate::bench(&arguments),
        Task::Dist => gate::dist(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
