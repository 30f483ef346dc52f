//! `lictor proxy`: one sidecar, from its settings to its exit code.

use std::time::Duration;

use crate::{
    cli::ProxyFlags,
    env::Environment,
    exit::{Exit, Failure},
    logging::Logging,
    mesh::{Mesh, Process},
    output,
    settings::Settings,
    signals::{Asked, Signals},
};

/// Runs the sidecar until a signal comes.
///
/// # Errors
/// [`Failure`] when it cannot start, or fails for good.
pub(crate) fn run(flags: &ProxyFlags) -> Result<Exit, Failure> {
    let settings = Settings::resolve(flags, &Environment::of_process())?;
    let logging = Logging::start(settings.log);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let process = Process::start(&settings, &logging)?;
    process.block_on(serve(&process, settings, flags))
}

async fn serve(process: &Process, settings: Settings, flags: &ProxyFlags) -> Result<Exit, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    // The lookup at the start can take a while; a signal ends it as well.
    let mesh = tokio::select! {
        mesh = Mesh::start(process, settings) => mesh?,
        () = signals.stop() => return Ok(Exit::Clean),
    };
    let mut announced = !flags.ready_json;
    loop {
        tokio::select! {
            () = mesh.wait_ready(), if !announced => {
                announced = true;
                output::line(&serde_json::json!({
                    "ready": true,
                    "service": mesh.status().service(),
                    "admin": mesh.admin_address().map(|address| format!("http://{address}")),
                }));
            }
            failure = mesh.failed() => return Err(failure),
            asked = signals.next() => match asked {
                Asked::Reload => mesh.reload(flags),
                Asked::Stop => break,
            },
        }
    }
    let began = std::time::Instant::now();
    let exit = tokio::select! {
        exit = mesh.stop() => exit,
        () = signals.stop() => {
            tracing::warn!("stopped at once by a second signal");
            Exit::Failed
        }
    };
    tracing::info!(took = ?Duration::from_millis(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)), "stopped");
    Ok(exit)
}
