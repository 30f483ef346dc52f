//! Foreign peers: Consul's own proxy, and Envoy as Consul drives it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::{
    agent::{Agent, Kind, Options},
    app::{self, App},
    envoy,
    lictor::Lictor,
    ports,
    process::Process,
    runner::{Case, case},
    wait::{self, LONG},
    world::{NotRun, Sidecar, World, upstream},
};

const NO_BINARY: &str = "Consul's own proxy comes with a real consul";

const NO_ENVOY: &str = "a real consul drives Envoy";

pub(crate) const CASES: &[Case] = &[
    case!(interop_consuls_proxy_calls_us_and_a_deny_stops_it).real(NO_BINARY),
    case!(interop_we_call_consuls_proxy_and_a_deny_stops_us).real(NO_BINARY),
    case!(interop_consuls_proxy_calls_us_while_the_root_rotates).real(NO_BINARY).heavy(),
    case!(interop_we_call_consuls_proxy_while_the_root_rotates).real(NO_BINARY).heavy(),
    case!(interop_envoy_calls_us_and_a_deny_stops_it).since(1, 10).real(NO_ENVOY),
    case!(interop_we_call_envoy_and_a_deny_stops_us).since(1, 10).real(NO_ENVOY),
    case!(interop_envoy_calls_us_while_the_root_rotates).since(1, 10).real(NO_ENVOY).heavy(),
    case!(interop_we_call_envoy_while_the_root_rotates).since(1, 10).real(NO_ENVOY).heavy(),
];

/// Consul's own proxy for a registered sidecar.
fn consuls_proxy(world: &World, agent: &Agent, service_id: &str) -> Result<Process> {
    let Kind::Consul(consul) = &world.kind else {
        bail!(NotRun("the binary of the consul in the container is not at hand".to_owned()));
    };
    let mut command = Command::new(&consul.path);
    command.args(["connect", "proxy", "-log-level", "debug", "-sidecar-for", service_id]);
    command.env("CONSUL_HTTP_ADDR", agent.address().to_string()).env_remove("CONSUL_HTTP_TOKEN");
    let process = Process::start("consul connect proxy", &mut command)?;
    world.outputs().lock().push(("consul connect proxy".to_owned(), process.output().clone()));
    Ok(process)
}

/// `web` and `api` registered; where the application of `web` finds `api`, and the application of `api`.
async fn two_services(agent: &Agent) -> Result<(SocketAddr, App)> {
    let app = App::echo().await?;
    Sidecar::new("api", app.address())?.register(agent).await?;
    let mut web = Sidecar::new("web", ports::free()?)?;
    let local = ports::free()?;
    web.upstreams.push(upstream("api", local.port()));
    web.register(agent).await?;
    Ok((local, app))
}

async fn works(local: SocketAddr) -> Result<()> {
    app::echoes(&mut app::connect(local).await?, b"through two sidecars").await
}

async fn allow_and_deny(agent: &Agent, local: SocketAddr, app: &App) -> Result<()> {
    agent.allow("web", "api").await?;
    wait::until("a way to api", LONG, || works(local)).await?;
    agent.deny("web", "api").await?;
    wait::until("the deny", LONG, || async {
        let before = app.bytes();
        ensure!(works(local).await.is_err(), "still served");
        ensure!(app.bytes() == before, "bytes arrived");
        Ok(())
    })
    .await?;
    agent.allow("web", "api").await?;
    wait::until("a way to api again", LONG, || works(local)).await
}

async fn interop_consuls_proxy_calls_us_and_a_deny_stops_it(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, app) = two_services(&agent).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _theirs = consuls_proxy(&world, &agent, "web-1")?;
    allow_and_deny(&agent, local, &app).await?;
    ensure!(ours.metrics().await?.label("denied") > 0);
    Ok(())
}

async fn interop_we_call_consuls_proxy_and_a_deny_stops_us(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, app) = two_services(&agent).await?;
    let _theirs = consuls_proxy(&world, &agent, "api-1")?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    ours.ready().await?;
    allow_and_deny(&agent, local, &app).await
}

async fn interop_consuls_proxy_calls_us_while_the_root_rotates(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, _app) = two_services(&agent).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _theirs = consuls_proxy(&world, &agent, "web-1")?;
    through_a_rotation(&agent, &ours, local).await
}

async fn interop_we_call_consuls_proxy_while_the_root_rotates(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, _app) = two_services(&agent).await?;
    let _theirs = consuls_proxy(&world, &agent, "api-1")?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    ours.ready().await?;
    through_a_rotation(&agent, &ours, local).await
}

/// Calls go on without a loss, and an open connection lives on, until both sides have leaves of the new root.
async fn through_a_rotation(agent: &Agent, ours: &Lictor, local: SocketAddr) -> Result<()> {
    wait::until("a way to api", LONG, || works(local)).await?;
    let mut lasting = app::connect(local).await?;
    app::echoes(&mut lasting, b"before").await?;
    let before = ours.metrics().await?.sum("material_generation");
    agent.rotate_root().await?;
    let made = AtomicU64::new(0);
    wait::until("the new leaf in use", Duration::from_secs(45), || async {
        // A failure here ends the case at once, since only the last word may be an error.
        let attempt = works(local).await;
        made.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = attempt {
            return Ok(Err(error));
        }
        let now = ours.metrics().await?.sum("material_generation");
        ensure!(now > before + 1, "generation {now}");
        Ok(Ok(()))
    })
    .await?
    .context("a connection was lost while the root rotated")?;
    // Their leaf follows within the agent's half minute.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        works(local).await.context("a connection was lost after the root rotated")?;
        wait::pass(Duration::from_millis(100)).await;
    }
    app::echoes(&mut lasting, b"after").await?;
    ensure!(made.load(Ordering::Relaxed) > 0);
    Ok(())
}

/// An agent that gives Envoys their configuration, and where it does.
async fn agent_for_envoy(world: &World) -> Result<(Agent, SocketAddr)> {
    envoy::is_there()?;
    let grpc = ports::free()?;
    let more = json!({ "ports": { "grpc": grpc.port() } });
    Ok((world.agent_with(Options { more, ..Options::default() }).await?, grpc))
}

async fn interop_envoy_calls_us_and_a_deny_stops_it(world: Arc<World>) -> Result<()> {
    let (agent, grpc) = agent_for_envoy(&world).await?;
    let (local, app) = two_services(&agent).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _theirs = envoy::start(&world, &agent, grpc, "envoy of web", &["-sidecar-for", "web-1"]).await?;
    allow_and_deny(&agent, local, &app).await?;
    ensure!(ours.metrics().await?.label("denied") > 0);
    Ok(())
}

async fn interop_we_call_envoy_and_a_deny_stops_us(world: Arc<World>) -> Result<()> {
    let (agent, grpc) = agent_for_envoy(&world).await?;
    let (local, app) = two_services(&agent).await?;
    let _theirs = envoy::start(&world, &agent, grpc, "envoy of api", &["-sidecar-for", "api-1"]).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    ours.ready().await?;
    allow_and_deny(&agent, local, &app).await
}

async fn interop_envoy_calls_us_while_the_root_rotates(world: Arc<World>) -> Result<()> {
    let (agent, grpc) = agent_for_envoy(&world).await?;
    let (local, _app) = two_services(&agent).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _theirs = envoy::start(&world, &agent, grpc, "envoy of web", &["-sidecar-for", "web-1"]).await?;
    through_a_rotation(&agent, &ours, local).await
}

async fn interop_we_call_envoy_while_the_root_rotates(world: Arc<World>) -> Result<()> {
    let (agent, grpc) = agent_for_envoy(&world).await?;
    let (local, _app) = two_services(&agent).await?;
    let _theirs = envoy::start(&world, &agent, grpc, "envoy of api", &["-sidecar-for", "api-1"]).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    ours.ready().await?;
    through_a_rotation(&agent, &ours, local).await
}
