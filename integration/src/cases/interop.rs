//! A foreign peer: Consul's own proxy.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use crate::{
    agent::{Agent, Kind},
    app::{self, App},
    ports,
    process::Process,
    runner::{Case, case},
    wait::{self, SOON},
    world::{NotRun, Sidecar, World, upstream},
};

const NO_BINARY: &str = "Consul's own proxy comes with a real consul";

pub(crate) const CASES: &[Case] = &[
    case!(interop_consuls_proxy_calls_us_and_a_deny_stops_it).real(NO_BINARY),
    case!(interop_we_call_consuls_proxy_and_a_deny_stops_us).real(NO_BINARY),
    case!(interop_consuls_proxy_calls_us_while_the_root_rotates).real(NO_BINARY).heavy(),
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
    wait::until("a way to api", SOON, || works(local)).await?;
    agent.deny("web", "api").await?;
    wait::until("the deny", SOON, || async {
        let before = app.bytes();
        ensure!(works(local).await.is_err(), "still served");
        ensure!(app.bytes() == before, "bytes arrived");
        Ok(())
    })
    .await?;
    agent.allow("web", "api").await?;
    wait::until("a way to api again", SOON, || works(local)).await
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
    wait::until("a way to api", SOON, || works(local)).await?;
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
    for _ in 0..300 {
        works(local).await.context("a connection was lost after the root rotated")?;
        wait::pass(Duration::from_millis(100)).await;
    }
    app::echoes(&mut lasting, b"after").await?;
    ensure!(made.load(Ordering::Relaxed) > 0);
    Ok(())
}
