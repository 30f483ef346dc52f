//! How long a proxy takes from its start to the first connection that it carries.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Figures, target::Target, usage};

/// How often it is tried.
const STEP: Duration = Duration::from_micros(200);

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn run(target: &Target, command: &[String]) -> Result<Figures> {
    let (program, arguments) = command.split_first().context("no command")?;
    target.warm_up()?;
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let outcome = wait(target, &mut child, begun);
    let cpu = i32::try_from(child.id()).context("a process number").and_then(|id| usage::cpu(&[id]));
    end(&mut child)?;
    Ok(Figures::from([("start", outcome?.as_secs_f64()), ("cpu", cpu?)]))
}

fn wait(target: &Target, child: &mut Child, begun: Instant) -> Result<Duration> {
    loop {
        let outcome = target.touch();
        let elapsed = begun.elapsed();
        match outcome {
            Ok(()) => return Ok(elapsed),
            Err(error) if elapsed > PATIENCE => return Err(error.context("nothing came through the proxy in 20 s")),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("the proxy ended at once: {status}");
        }
        thread::sleep(STEP);
    }
}

/// Ends the group that the child leads.
fn end(child: &mut Child) -> Result<()> {
    let group = Pid::from_child(child);
    // It may have ended by itself.
    let _ = kill_process_group(group, Signal::TERM);
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > Duration::from_secs(3) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
