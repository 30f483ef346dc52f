//! Where the repository is, and how commands are run in it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::prebuilt;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// The directory that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command in the repository, which finds what [`prebuilt`] has made.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = plain_cargo(arguments);
    command.envs(prebuilt::environment().iter().map(|(name, value)| (name, value)));
    command
}

/// A cargo command in the repository.
pub(crate) fn plain_cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// Runs a step of the gate under a heading, and says how long it took.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("\n== {name}");
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{name}: cannot run {command:?}"))?;
    println!("== {name}: {} after {:.0?}", if status.success() { "good" } else { "FAILED" }, begun.elapsed());
    if !status.success() {
        bail!("{name} failed ({status}); to repeat it: {command:?}");
    }
    Ok(())
}

/// What a command prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed ({})", output.status);
    }
    String::from_utf8(output.stdout).context("its output is not UTF-8")
}
