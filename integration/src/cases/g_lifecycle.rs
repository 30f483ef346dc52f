//! Group G: registration, readiness, shutdown.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    agent::{Agent, Options, Tamper, leaf_path},
    app::{self, App, End, Manner},
    lictor::{Lictor, Setup},
    peer::Client,
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::World,
};

pub(crate) const CASES: &[Case] = &[
    case!(g1_register_makes_a_proxy_with_a_passing_check),
    case!(g2_the_check_does_not_pass_before_there_are_certificates),
    case!(g3_a_deregistered_proxy_is_registered_again),
    case!(g4_a_check_failed_by_hand_passes_again),
    case!(g5_a_register_id_is_a_suffix),
    case!(g6_the_end_deregisters_first_and_then_drains),
    case!(g7_the_end_lets_open_connections_finish),
    case!(g7_a_drain_past_its_deadline_resets_what_is_left),
    case!(g8_a_second_signal_ends_at_once),
    case!(g9_a_managed_proxy_ends_within_five_seconds).embedded("managed proxies are of Consul 1.2 to 1.5, see h1"),
];

/// `-service api -register` in front of an application.
struct Registered {
    agent: Agent,
    app: App,
    public: SocketAddr,
    lictor: Lictor,
}

async fn registered(world: &World, extra: &[&str], env: &[(&str, &str)]) -> Result<Registered> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let public = ports::free()?;
    let mut lictor = registering(world, &agent, &app, public, env)?.args(extra).start()?;
    lictor.ready().await?;
    Ok(Registered { agent, app, public, lictor })
}

fn registering(world: &World, agent: &Agent, app: &App, public: SocketAddr, env: &[(&str, &str)]) -> Result<Setup> {
    let mut setup = world.proxy(agent)?.args(&["-service", "api", "-register"]);
    setup = setup.args(&["-service-addr", &app.address().to_string(), "-listen", &public.to_string()]);
    for (name, value) in env {
        setup = setup.env(name, value);
    }
    Ok(setup)
}

async fn passing(agent: &Agent, id: &str) -> Result<()> {
    wait::until("a passing check", Duration::from_secs(35), || async {
        let status = agent.check_of(id).await?;
        ensure!(status == "passing", "{status}");
        Ok(())
    })
    .await
}

async fn g1_register_makes_a_proxy_with_a_passing_check(world: Arc<World>) -> Result<()> {
    let api = registered(&world, &[], &[]).await?;
    passing(&api.agent, "api-proxy").await?;
    let service = api.agent.get("/v1/agent/service/api-proxy").await?;
    ensure!(service["Kind"] == "connect-proxy" && service["Service"] == "api-proxy", "{service}");
    ensure!(service["Port"] == json!(api.public.port()), "{service}");
    ensure!(service["Proxy"]["DestinationServiceName"] == "api", "{service}");
    let client = Client::new(api.agent.identity("web").await?);
    app::echoes(&mut client.connect(api.public).await?, b"hello").await?;
    ensure!(api.app.accepted() == 1);
    Ok(())
}

async fn g2_the_check_does_not_pass_before_there_are_certificates(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let leaf = leaf_path("api");
    agent.tamper(&leaf, Tamper::status(500));
    let app = App::echo().await?;
    let lictor = registering(&world, &agent, &app, ports::free()?, &[])?.start()?;
    lictor.not_ready().await?;
    wait::until("four refusals", SOON, || async {
        ensure!(agent.requests(&leaf).len() > 4, "not yet");
        Ok(())
    })
    .await?;
    if agent.has_service("api-proxy").await? {
        let status = agent.check_of("api-proxy").await?;
        ensure!(status != "passing", "the check passes without a certificate");
    }
    agent.behave(&leaf);
    passing(&agent, "api-proxy").await
}

async fn g3_a_deregistered_proxy_is_registered_again(world: Arc<World>) -> Result<()> {
    let api = registered(&world, &[], &[]).await?;
    passing(&api.agent, "api-proxy").await?;
    api.agent.deregister("api-proxy").await?;
    wait::until("the registration", Duration::from_secs(32), || async {
        ensure!(api.agent.has_service("api-proxy").await?, "gone");
        Ok(())
    })
    .await?;
    passing(&api.agent, "api-proxy").await
}

async fn g4_a_check_failed_by_hand_passes_again(world: Arc<World>) -> Result<()> {
    let api = registered(&world, &[], &[]).await?;
    passing(&api.agent, "api-proxy").await?;
    let checks = api.agent.get("/v1/agent/checks").await?;
    let id = checks.as_object().and_then(|checks| checks.keys().find(|id| id.contains("api-proxy"))).cloned();
    api.agent.set_check(&id.context("no check")?, "critical").await?;
    wait::until("a passing check", Duration::from_secs(12), || async {
        let status = api.agent.check_of("api-proxy").await?;
        ensure!(status == "passing", "{status}");
        Ok(())
    })
    .await
}

async fn g5_a_register_id_is_a_suffix(world: Arc<World>) -> Result<()> {
    let api = registered(&world, &["-register-id", "x1"], &[]).await?;
    passing(&api.agent, "api-proxy-x1").await?;
    let service = api.agent.get("/v1/agent/service/api-proxy-x1").await?;
    ensure!(service["Service"] == "api-proxy", "{service}");
    Ok(())
}

async fn g6_the_end_deregisters_first_and_then_drains(world: Arc<World>) -> Result<()> {
    let mut api = registered(&world, &[], &[("LICTOR_DRAIN__SETTLE", "1s")]).await?;
    passing(&api.agent, "api-proxy").await?;
    let client = Client::new(api.agent.identity("web").await?);
    let mut open = client.connect(api.public).await?;
    app::echoes(&mut open, b"before").await?;
    api.lictor.signal(Signal::TERM)?;
    wait::until("the deregistration", SOON, || async {
        ensure!(!api.agent.has_service("api-proxy").await?, "still there");
        Ok(())
    })
    .await?;
    // Peers that still have the old list are served for a moment.
    app::echoes(&mut client.connect(api.public).await?, b"just in time").await?;
    app::not_listening(api.public).await?;
    app::echoes(&mut open, b"draining").await?;
    api.lictor.lives()?;
    open.shutdown().await?;
    let code = api.lictor.exit(SOON).await?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

async fn g7_the_end_lets_open_connections_finish(world: Arc<World>) -> Result<()> {
    let env = [("LICTOR_DRAIN__SETTLE", "100ms")];
    let mut api = world.inbound_with(Manner::Echo, Options::default(), json!({}), &env).await?;
    let mut open = api.client("web").await?.connect(api.public()).await?;
    app::echoes(&mut open, b"before").await?;
    api.lictor.signal(Signal::TERM)?;
    app::not_listening(api.public()).await?;
    for _ in 0..10 {
        app::echoes(&mut open, b"meanwhile").await?;
    }
    open.shutdown().await?;
    let (_, end) = app::read_to_end(&mut open).await?;
    ensure!(end == End::Clean);
    let code = api.lictor.exit(SOON).await?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

async fn g7_a_drain_past_its_deadline_resets_what_is_left(world: Arc<World>) -> Result<()> {
    let env = [("LICTOR_DRAIN__SETTLE", "100ms"), ("LICTOR_DRAIN__TIMEOUT", "1s")];
    let mut api = world.inbound_with(Manner::Hand, Options::default(), json!({}), &env).await?;
    let mut open = api.client("web").await?.connect(api.public()).await?;
    open.write_all(b"x").await?;
    open.flush().await?;
    let mut app = api.app.next().await?;
    api.lictor.signal(Signal::TERM)?;
    app::is_reset(&mut app).await?;
    let code = api.lictor.exit(SOON).await?;
    ensure!(code == 1, "exit code {code}");
    Ok(())
}

async fn g8_a_second_signal_ends_at_once(world: Arc<World>) -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let mut api = world.inbound(Manner::Hand).await?;
        let mut open = api.client("web").await?.connect(api.public()).await?;
        open.write_all(b"x").await?;
        open.flush().await?;
        let mut app = api.app.next().await?;
        api.lictor.signal(Signal::TERM)?;
        api.lictor.not_ready().await?;
        let begun = Instant::now();
        api.lictor.signal(signal)?;
        let code = api.lictor.exit(Duration::from_secs(3)).await?;
        ensure!(code == 1, "exit code {code}");
        ensure!(begun.elapsed() < Duration::from_secs(2), "took {:?}", begun.elapsed());
        app::is_reset(&mut app).await?;
    }
    Ok(())
}

async fn g9_a_managed_proxy_ends_within_five_seconds(world: Arc<World>) -> Result<()> {
    let mut managed = super::h_managed::start(&world, json!({}), &[], &[]).await?;
    let client = Client::new(managed.agent.identity("web").await?);
    let mut open = client.connect(managed.public).await?;
    app::echoes(&mut open, b"open").await?;
    let begun = Instant::now();
    managed.lictor.signal(Signal::INT)?;
    managed.lictor.exit(Duration::from_secs(5)).await?;
    ensure!(begun.elapsed() < Duration::from_secs(5));
    Ok(())
}
