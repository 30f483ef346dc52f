//! End-to-end tests over the built binary: `cargo xtask integration`, see `integration/README.md`.
//!
//! Each case is written once, over an agent that is the embedded one, or a real `consul` where there is one. The
//! binary under test runs as a child process; whoever talks to it is made here: applications, peers of the mesh with
//! good and bad certificates, and the agent.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner talks to a person at a terminal")]

mod agent;
mod app;
mod cases;
mod envoy;
mod forge;
mod helper;
mod libraries;
mod lictor;
mod peer;
mod ports;
mod process;
mod report;
mod runner;
mod wait;
mod world;

pub use crate::{helper::run_if_asked as run_helper_if_asked, runner::run};
