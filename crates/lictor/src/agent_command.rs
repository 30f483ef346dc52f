//! `lictor agent`: the embedded development agent alone.

use std::sync::Arc;

use lictor_agent::{Agent, Dialect, Options, StartError};
use lictor_core::TlsBackend;

use crate::{
    cli::AgentFlags,
    crypto,
    env::Environment,
    exit::{Exit, Failure},
    keys::BackendKeys,
    logging::Logging,
    output,
    settings::{Log, Tls},
    signals::Signals,
};

/// Runs the agent until a signal comes.
///
/// # Errors
/// [`Failure`] when it cannot start.
pub(crate) fn run(flags: &AgentFlags) -> Result<Exit, Failure> {
    let _logging = Logging::start(Log::default());
    let (tls, warnings) = Tls::resolve(&flags.settings, &Environment::of_process())?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("the runtime could not be made: {error}")))?;
    let (backend, _) = crypto::start(&tls)?;
    runtime.block_on(async {
        let mut signals = Signals::listen().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let options = Options {
            address: flags.address,
            unix_socket: flags.unix_socket.clone(),
            control: flags.control,
            dialect: if flags.classic { Dialect::Old } else { Dialect::Today },
            datacenter: flags.datacenter.clone(),
            leaf_ttl: flags.leaf_ttl,
            ..Options::default()
        };
        let agent = start(options, backend).await?;
        let handle = agent.handle();
        if flags.json {
            output::line(&serde_json::json!({
                "ready": true,
                "agent": handle.url(),
                "control": handle.control_address().map(|address| address.to_string()),
                "trust_domain": handle.trust_domain(),
            }));
        }
        tracing::info!(address = handle.url(), "the development agent listens; it is not for production");
        signals.stop().await;
        agent.stop().await;
        Ok(Exit::Clean)
    })
}

/// Starts an agent whose keys come from `backend`.
pub(crate) async fn start(options: Options, backend: Arc<dyn TlsBackend>) -> Result<Agent, Failure> {
    Agent::start(options, Arc::new(BackendKeys(backend))).await.map_err(|error| match &error {
        StartError::Listen { error: cause, .. } if cause.kind() == std::io::ErrorKind::AddrInUse => {
            Failure::new(Exit::AddressInUse, format!("{error}; stop what listens there, or choose another -http-addr"))
        }
        _ => Failure::new(Exit::Failed, error.to_string()),
    })
}
