//! The sidecar.

mod backends;
mod cli;
mod config;
mod env;
mod exit;
mod settings;

fn main() {}
