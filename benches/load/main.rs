//! The load that `cargo xtask peers` puts on a proxy, and the application behind it.
//!
//! One process is one role: the application, or one measurement, which prints one line of JSON with its figures and
//! fails when anything went wrong on a connection, so that no figure comes from half of the work.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool that is read by another one")]

mod application;
mod bulk;
mod certificates;
mod exchange;
mod handshakes;
mod memory;
mod start;
mod target;
mod usage;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{target::Target, usage::Parties};

/// What was measured, by name.
type Figures = BTreeMap<&'static str, f64>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Write a root and the leaves of `web` and `echo` into a folder.
    Certificates { folder: PathBuf },
    /// Be the application behind the proxy until killed.
    Application { listen: SocketAddr },
    /// Connect, send a byte, get it back, close; again and again.
    Handshakes {
        #[command(flatten)]
        target: target::Arguments,
        #[command(flatten)]
        time: Time,
        #[command(flatten)]
        parties: Parties,
        /// How many at once.
        #[arg(long)]
        connections: usize,
    },
    /// Long streams in one direction.
    Bulk {
        #[command(flatten)]
        target: target::Arguments,
        #[command(flatten)]
        time: Time,
        #[command(flatten)]
        parties: Parties,
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        direction: bulk::Direction,
    },
    /// Requests, each answered by as many bytes.
    Exchange {
        #[command(flatten)]
        target: target::Arguments,
        #[command(flatten)]
        time: Time,
        #[command(flatten)]
        parties: Parties,
        #[command(flatten)]
        load: exchange::Load,
    },
    /// Memory of the proxy with many connections: quiet, after traffic, and after they have been closed.
    Memory {
        #[command(flatten)]
        target: target::Arguments,
        #[command(flatten)]
        parties: Parties,
        #[command(flatten)]
        load: memory::Load,
    },
    /// From the start of a proxy to the first byte that comes back through it.
    Start {
        #[command(flatten)]
        target: target::Arguments,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// How long a measurement takes.
#[derive(Clone, Copy, clap::Args)]
struct Time {
    /// Seconds of the same load before anything is counted.
    #[arg(long, default_value_t = 0.5)]
    warm: f64,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

impl Time {
    fn warm(self) -> Duration {
        Duration::from_secs_f64(self.warm.clamp(0.0, 60.0))
    }

    fn counted(self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.1, 120.0))
    }
}

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(Arguments::parse().role)));
    match outcome {
        Ok(figures) => {
            match serde_json::to_string(&figures) {
                Ok(line) => println!("{line}"),
                Err(error) => {
                    eprintln!("load: {error}");
                    return ExitCode::FAILURE;
                }
            }
            // Streams that still run on threads of their own end with the process.
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(role: Role) -> Result<Figures> {
    match role {
        Role::Certificates { folder } => certificates::write(&folder).map(|()| Figures::new()),
        Role::Application { listen } => application::run(listen).await,
        Role::Handshakes { target, time, parties, connections } => {
            handshakes::run(&Target::new(&target)?, time, &parties, connections).await
        }
        Role::Bulk { target, time, parties, connections, direction } => {
            bulk::run(&*Target::new(&target)?, time, &parties, connections, direction).await
        }
        Role::Exchange { target, time, parties, load } => {
            exchange::run(&Target::new(&target)?, time, &parties, &load).await
        }
        Role::Memory { target, parties, load } => memory::run(&Target::new(&target)?, &parties, &load).await,
        Role::Start { target, command } => start::run(&*Target::new(&target)?, &command),
    }
}
