//! Where the repository is, and how commands are run in it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
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
    // What is built once and thrown away gains nothing from what incremental compilation writes down for the next time.
    command.env("CARGO_INCREMENTAL", "0");
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

/// Runs steps at the same time, so many of them, and prints what each said when it ends. The longest should come first.
pub(crate) fn side_by_side(at_once: usize, steps: Vec<(String, Command)>) -> Result<()> {
    // A folder of this process: one of the steps may be a test that comes here, too.
    let folder = target().join("steps").join(std::process::id().to_string());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let left = Mutex::new(steps.into_iter().enumerate());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some((index, (name, mut command))) = next() {
                    let begun = Instant::now();
                    let outcome = heard(&mut command, &folder.join(index.to_string()));
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    let (word, said) = match &outcome {
                        Ok((true, said)) => ("good", said.as_str()),
                        Ok((false, said)) => ("FAILED", said.as_str()),
                        Err(_) => ("FAILED", ""),
                    };
                    println!("\n== {name}\n{said}== {name}: {word} after {:.0?}", begun.elapsed());
                    match outcome {
                        Ok((true, _)) => {}
                        Ok((false, _)) => failed.push(format!("{name} failed; to repeat it: {command:?}")),
                        Err(error) => failed.push(format!("{name}: {error:#}")),
                    }
                }
            });
        }
    });
    let _ = fs::remove_dir_all(&folder);
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

/// Whether a command succeeds, and what it says at both its ends, in the order in which it says it.
fn heard(command: &mut Command, file: &Path) -> Result<(bool, String)> {
    let out = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    let errors = out.try_clone().context("one file for both outputs")?;
    let status = command.stdin(Stdio::null()).stdout(out).stderr(errors).status().context("cannot be run")?;
    Ok((status.success(), String::from_utf8_lossy(&fs::read(file)?).into_owned()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn all_steps_side_by_side_are_run_and_those_that_fail_are_named() {
        let steps = |scripts: &[&str]| scripts.iter().map(|script| ((*script).to_owned(), shell(script))).collect();
        assert!(side_by_side(2, steps(&["true", "echo said", "true"])).is_ok());
        let error = side_by_side(2, steps(&["exit 3", "true", "exit 4"])).unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.contains("exit 4") && !error.contains("true"), "{error}");
    }
}
