//! `lictor dev`: an agent with a certificate authority, two services and their sidecars in one process.
//!
//! The sidecars are those of `lictor proxy`: they find the agent by its address, read their registrations from it and
//! know nothing of the process they share.

mod ports;
mod services;

use std::{sync::Arc, time::Duration};

use lictor_agent::{Handle, Options};
use lictor_core::Crypto;
use serde_json::json;
use tokio::net::TcpListener;

use self::ports::Ports;
use crate::{
    agent_command,
    cli::{DevFlags, ProxyFlags},
    config::schema::Level,
    env::Environment,
    exit::{Exit, Failure},
    logging::Logging,
    mesh::{Mesh, Process},
    output,
    settings::{Log, Settings},
    signals::Signals,
};

/// How long the sidecars may take to be ready. They need two certificates from a process that is this one.
const READY: Duration = Duration::from_secs(20);

/// How long connections may take to finish: nobody's data is at stake.
const DRAIN: &str = "1s";

/// Runs everything until a signal comes.
///
/// # Errors
/// [`Failure`] when something does not start.
pub(crate) fn run(flags: DevFlags) -> Result<Exit, Failure> {
    let level = if flags.verbose { Level::Debug } else { Level::Warn };
    let logging = Logging::start(Log { level, json: false });
    let ports = Ports::choose(flags.port_base).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Failure::new(Exit::AddressInUse, format!("{error}; choose another -port-base, or 0 for free ports"))
        }
        _ => Failure::new(Exit::Failed, error.to_string()),
    })?;
    // One process for all: the settings of the first sidecar say how many threads carry data.
    let settings = settings(ports, "web", &flags)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let process = Process::start(&settings, &logging)?;
    process.block_on(serve(&process, ports, flags))
}

async fn serve(process: &Process, ports: Ports, flags: DevFlags) -> Result<Exit, Failure> {
    let mut signals = Signals::listen().map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let options = Options {
        address: ports.agent,
        control: Some(ports.control),
        sidecar_check_interval: Duration::from_secs(2),
        ..Options::default()
    };
    let agent = agent_command::start(options, process.backend()).await?;
    register(&agent.handle(), ports)?;

    let web = Mesh::start(process, settings(ports, "web", &flags)?).await?;
    let api = Mesh::start(process, settings(ports, "api", &flags)?).await?;
    let listen = |address: std::net::SocketAddr| async move {
        TcpListener::bind(address)
            .await
            .map_err(|error| Failure::new(Exit::AddressInUse, format!("{address}: {error}")))
    };
    let status = api.status();
    let callers: services::Callers = Arc::new(move || status.callers());
    let applications = [
        tokio::spawn(services::web(listen(ports.web).await?, ports.upstream)),
        tokio::spawn(services::api(listen(ports.api).await?, callers)),
    ];

    let ready = async {
        web.wait_ready().await;
        api.wait_ready().await;
        healthy(ports).await;
    };
    let stopped = tokio::select! {
        () = signals.stop() => true,
        ready = tokio::time::timeout(READY, ready) => {
            if ready.is_err() {
                return Err(Failure::new(Exit::Failed, format!(
                    "the sidecars are not ready after {} s; start again with -verbose to see why", READY.as_secs()
                )));
            }
            false
        }
    };
    if !stopped {
        if flags.json {
            output::line(&as_json(ports, &agent.handle(), process.crypto()));
        } else {
            output::line(&guide(ports, process.crypto()));
        }
        signals.stop().await;
    }
    let end = async {
        // The one that dials first, so that what is under way can finish.
        let web = web.stop().await;
        let api = api.stop().await;
        if web == Exit::Clean { api } else { web }
    };
    let exit = tokio::select! {
        exit = end => exit,
        () = signals.stop() => Exit::Failed,
    };
    for application in applications {
        application.abort();
    }
    agent.stop().await;
    Ok(exit)
}

/// Registers both services with their sidecars, as a person would.
fn register(agent: &Handle, ports: Ports) -> Result<(), Failure> {
    let api = json!({
        "Name": "api", "ID": "api", "Address": "127.0.0.1", "Port": ports.api.port(),
        "Connect": {"SidecarService": {"Port": ports.api_sidecar.port()}},
    });
    let web = json!({
        "Name": "web", "ID": "web", "Address": "127.0.0.1", "Port": ports.web.port(),
        "Connect": {"SidecarService": {"Port": ports.web_sidecar.port(), "Proxy": {"Upstreams": [
            {"DestinationType": "service", "DestinationName": "api", "LocalBindPort": ports.upstream.port()},
        ]}}},
    });
    for service in [api, web] {
        agent.register(service).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    }
    Ok(())
}

/// Waits until the agent's check has found the sidecar of `api`, so that the first `curl` works.
async fn healthy(ports: Ports) {
    loop {
        let instances = services::call(ports.agent, "/v1/health/connect/api?passing").await;
        if instances.is_ok_and(|list| list.trim().len() > "[]".len()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What `lictor proxy -sidecar-for NAME` would be told. Of the variables only those about TLS count: the others are
/// meant for another agent.
fn settings(ports: Ports, name: &str, flags: &DevFlags) -> Result<Settings, Failure> {
    let admin = if name == "web" { ports.web_admin } else { ports.api_admin };
    let flags = ProxyFlags {
        sidecar_for: Some(name.to_owned()),
        settings: [
            ("http-addr", "agent.address", ports.agent.to_string()),
            ("admin", "admin.address", admin.to_string()),
            ("drain-timeout", "drain.timeout", DRAIN.to_owned()),
        ]
        .into_iter()
        .chain(flags.settings.clone())
        .collect(),
        ..ProxyFlags::default()
    };
    Settings::resolve(&flags, &Environment::of_process().only_tls())
}

fn as_json(ports: Ports, agent: &Handle, crypto: &Crypto) -> serde_json::Value {
    json!({
        "ready": true,
        "agent": format!("http://{}", ports.agent),
        "control": format!("http://{}", ports.control),
        "trust_domain": agent.trust_domain(),
        "tls": crypto.library,
        "web": format!("http://{}", ports.web),
        "api": format!("http://{}", ports.api),
        "upstream": format!("http://{}", ports.upstream),
        "sidecars": {"web": ports.web_sidecar.to_string(), "api": ports.api_sidecar.to_string()},
        "admin": {"web": format!("http://{}", ports.web_admin), "api": format!("http://{}", ports.api_admin)},
    })
}

fn guide(ports: Ports, crypto: &Crypto) -> String {
    let Ports { agent, control, web, api, upstream, web_sidecar, api_sidecar, web_admin, api_admin } = ports;
    let library = &crypto.library;
    format!(
        "\
A mesh of two services runs on this machine, all on loopback, with TLS by {library}.

  web            http://{web}   calls api at http://{upstream}, a port of its sidecar
  sidecar of web {web_sidecar}          admin http://{web_admin}
  sidecar of api {api_sidecar}          admin http://{api_admin}
  api            http://{api}   speaks plain HTTP
  agent          http://{agent}    a Consul agent for development, with a certificate authority

Try, in another terminal:

  1. Call web, which calls api: web → sidecar → mutual TLS → sidecar → api. The answer shows who called.
     curl http://{web}/

  2. Deny web to call api, call again, then allow it again. It takes effect at once.
     curl -X PUT -d '{{\"Action\": \"deny\"}}' 'http://{agent}/v1/connect/intentions/exact?source=web&destination=api'
     curl http://{web}/
     curl -X PUT -d '{{\"Action\": \"allow\"}}' 'http://{agent}/v1/connect/intentions/exact?source=web&destination=api'

  3. Rotate the root of the certificate authority while calls go on; both sidecars follow without a restart.
     curl -X POST http://{control}/lictor/control/rotate-root
     curl http://{api_admin}/certs

  4. See who is and was connected to api, what the sidecar counts, and what its TLS library does.
     curl http://{api_admin}/connections
     curl http://{api_admin}/metrics
     curl http://{api_admin}/crypto

  5. Go round the sidecar: without a certificate of the mesh nobody gets in.
     curl -k https://{api_sidecar}/

Ctrl-C stops everything.
"
    )
}
