//! Everything a person does to this repository: `cargo xtask test`, and its relatives by `cargo xtask help`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool that talks to a person at a terminal")]

mod conformance;
mod consul;
mod features;
mod gate;
mod instructions;
mod peers;
mod prebuilt;
mod setup;
mod symbols;
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
    /// Link the binary of every legal feature set and look whose cryptography it carries.
    Sets,
    /// Build and test the FIPS builds in full.
    Fips,
    /// Install what the gate needs and the machine lacks, saying what and why; compile BoringSSL once.
    Setup,
    /// Check the rules of the house that no compiler checks.
    Tidy,
    /// Run the end-to-end tests alone, against the embedded agent and a real `consul` where there is one.
    Integration {
        /// Arguments for the test harness: names of tests, `--nocapture`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the end-to-end tests against every real `consul` there is, and print one table: case × agent.
    ///
    /// Real ones are the binaries that CONSUL_BIN=PATH[,PATH…] names, else the `consul` on the PATH, and a container of
    /// LICTOR_CONSUL_IMAGE where that names an image and a Docker daemon answers. LICTOR_BIN names another binary to
    /// test than the default features' one. Fails where a case fails, and where no real consul is found.
    Consul(consul::Arguments),
    /// Run the conformance suite over all TLS libraries and print the table row × side × version × library.
    Conformance,
    /// Run the drills that need minutes: outages in real time, many idle connections, large transfers.
    Drills,
    /// Measure with criterion; arguments after `--` go to criterion.
    Bench {
        /// The TLS library to measure: rustls, openssl or boring.
        #[arg(long, default_value = "rustls")]
        backend: String,
        /// Arguments for criterion: a filter, `--save-baseline NAME`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure Lictor beside the peers that are installed, and print how it stands to the best of them.
    ///
    /// Envoy, HAProxy, nginx, stunnel, hitch, ghostunnel and Consul's own proxy are looked for on the PATH; ENVOY,
    /// HAPROXY, NGINX, NGINX_STREAM_MODULE, STUNNEL, HITCH, GHOSTUNNEL and CONSUL name files. See benches/README.md.
    Peers(peers::Arguments),
    /// Count instructions, allocations and socket calls of the hot paths, and compare them with what is expected.
    Instructions {
        /// Write down what is counted as what is expected.
        #[arg(long)]
        update: bool,
    },
    /// Run the conformance suite of the backends on C libraries under valgrind.
    Sanitize {
        /// Of these alone.
        #[arg(default_values = ["openssl", "boring"], value_parser = ["openssl", "boring"])]
        backends: Vec<String>,
    },
    /// Many handshakes with each TLS library, failing when the process has grown.
    Soak {
        /// How many for each library.
        #[arg(default_value_t = 1_000_000)]
        handshakes: u64,
    },
    /// Build the release binary of each legal feature set into `target/dist`.
    Dist,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test => setup::run().and_then(|()| gate::test()),
        Task::Sets => setup::run().and_then(|()| gate::sets()),
        Task::Fips => setup::run().and_then(|()| gate::fips()),
        Task::Setup => setup::run(),
        Task::Tidy => tidy::run(),
        Task::Integration { arguments } => gate::integration(&arguments),
        Task::Consul(arguments) => consul::run(&arguments),
        Task::Conformance => setup::run().and_then(|()| conformance::run()),
        Task::Drills => gate::drills(),
        Task::Bench { backend, arguments } => gate::bench(&backend, &arguments),
        Task::Peers(arguments) => peers::run(&arguments),
        Task::Instructions { update } => instructions::run(update),
        Task::Sanitize { backends } => gate::sanitize(&backends),
        Task::Soak { handshakes } => gate::soak(handshakes),
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
