//! Group I: protection of the agent, and what can be seen from outside.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    agent::{MANAGEMENT, Options, Tamper},
    app::{self, Manner},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{World, upstream},
};

pub(crate) const CASES: &[Case] = &[
    case!(i1_thirty_upstreams_take_a_handful_of_connections_to_the_agent),
    case!(i2_the_agents_connection_limit_refuses_and_is_recovered_from).since(1, 7),
    case!(i3_many_connections_are_authorized_over_few_to_the_agent).heavy(),
    case!(i4_fast_changing_roots_are_followed_at_a_bounded_pace),
    case!(i5_bytes_and_connections_are_counted),
    case!(i6_neither_keys_nor_tokens_are_printed),
    case!(i7_no_known_leader_from_streaming_is_no_error),
];

/// 3 × services + 13.
const MOST: usize = 16;

async fn i1_thirty_upstreams_take_a_handful_of_connections_to_the_agent(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound().await?;
    let mut locals = Vec::new();
    for number in 0..30 {
        let local = ports::free()?;
        web.sidecar.upstreams.push(upstream(&format!("db-{number}"), local.port()));
        locals.push(local);
    }
    web.sidecar.update(&web.agent).await?;
    for local in &locals {
        app::listening(*local).await?;
    }
    // Each is used once, so that each has been looked up.
    for local in &locals {
        app::is_closed(*local).await?;
    }
    wait::pass(Duration::from_secs(2)).await;
    let (open, most) = web.agent.connections();
    ensure!(open <= MOST && most <= MOST, "{open} connections open, {most} at the most");
    Ok(())
}

async fn i2_the_agents_connection_limit_refuses_and_is_recovered_from(world: Arc<World>) -> Result<()> {
    const LIMIT: usize = 40;
    let options = Options { connection_limit: Some(LIMIT), persistent: true, ..Options::default() };
    let api = world.inbound_with(Manner::Greet, options, json!({}), &[]).await?;
    let client = api.client("web").await?;
    // Everything that the agent lets in is taken by neighbours, then the sidecar has to connect anew.
    let mut neighbours = Vec::new();
    for _ in 0..LIMIT + 10 {
        neighbours.push(TcpStream::connect(api.agent.target()).await?);
    }
    api.agent.cut().await?;
    for _ in 0..LIMIT {
        neighbours.push(TcpStream::connect(api.agent.target()).await?);
    }
    wait::until("a refusal for want of connections", SOON, || async {
        let before = api.app.accepted();
        let refused = client.is_refused(api.public()).await;
        ensure!(refused.is_ok() && api.app.accepted() == before, "served");
        let metrics = api.lictor.metrics().await?;
        let counted = metrics.label("authorize_overloaded") + metrics.label("authorize_unreachable");
        ensure!(counted > 0, "counted: {}", metrics.not_zero());
        Ok(())
    })
    .await?;
    drop(neighbours);
    wait::until("service again", SOON, || async {
        let mut stream = client.connect(api.public()).await?;
        let mut greeting = [0; 9];
        wait::within("the greeting", SOON, tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting)).await??;
        Ok(())
    })
    .await
}

async fn i3_many_connections_are_authorized_over_few_to_the_agent(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let before = api.agent.opened();
    let begun = Instant::now();
    for _ in 0..20 {
        let batch = (0..25).map(|_| async {
            let mut stream = client.connect(api.public()).await?;
            app::echoes(&mut stream, b"x").await
        });
        futures_util::future::try_join_all(batch).await?;
    }
    let (_, most) = api.agent.connections();
    let opened = api.agent.opened() - before;
    ensure!(most <= MOST, "{most} connections to the agent at once");
    ensure!(opened <= 2 * MOST, "{opened} connections to the agent for 500 questions in {:?}", begun.elapsed());
    Ok(())
}

async fn i4_fast_changing_roots_are_followed_at_a_bounded_pace(world: Arc<World>) -> Result<()> {
    const ROOTS: &str = "/v1/agent/connect/ca/roots";
    let api = world.inbound(Manner::Echo).await?;
    let before = api.agent.requests(ROOTS).len();
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..300 {
        ticks.tick().await;
        // The same list under a new index, for whoever waits or comes next.
        api.agent.behave(ROOTS);
        api.agent.tamper_once(ROOTS, Tamper::json(|_| {}));
    }
    api.agent.behave(ROOTS);
    let asked = api.agent.requests(ROOTS).len() - before;
    ensure!((1..=60).contains(&asked), "asked {asked} times in three seconds");
    api.agent.rotate_root().await?;
    let newest = api.client("web").await?;
    wait::until("the newest root", Duration::from_secs(20), || async {
        app::echoes(&mut newest.connect(api.public()).await?, b"newest").await
    })
    .await
}

async fn i5_bytes_and_connections_are_counted(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Hand).await?;
    let mut client = api.client("web").await?.connect(api.public()).await?;
    client.write_all(&[7; 300]).await?;
    client.flush().await?;
    let mut app = api.app.next().await?;
    let mut came = [0; 300];
    tokio::io::AsyncReadExt::read_exact(&mut app, &mut came).await?;
    app.write_all(&[8; 10]).await?;
    let mut back = [0; 10];
    tokio::io::AsyncReadExt::read_exact(&mut client, &mut back).await?;
    api.lictor.measures("connections_open", 1).await?;
    let shown = api.lictor.json("/connections").await?.to_string();
    ensure!(shown.contains("svc/web"), "/connections does not show the peer: {shown}");
    app.shutdown().await?;
    client.shutdown().await?;
    api.lictor.measures("connections_open", 0).await?;
    api.lictor.measures("rx_bytes", 300).await?;
    api.lictor.measures("tx_bytes", 10).await
}

async fn i6_neither_keys_nor_tokens_are_printed(world: Arc<World>) -> Result<()> {
    let options = Options { acl: Some("allow"), ..Options::default() };
    let env = [("LICTOR_LOG__LEVEL", "trace")];
    let mut api = world.inbound_with(Manner::Echo, options, json!({}), &env).await?;
    api.serves().await?;
    api.agent.deny("web", "api").await?;
    api.refuses(&api.client("web").await?).await?;
    let leaf = api.agent.get("/v1/agent/connect/ca/leaf/api").await?;
    let key = leaf["PrivateKeyPEM"].as_str().context("no key")?;
    let lines: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let mut shown = api.lictor.output().text();
    for page in ["/ready", "/metrics", "/certs", "/connections", "/live"] {
        shown.push_str(&api.lictor.page(page).await?.1);
    }
    api.lictor.signal(rustix::process::Signal::HUP)?;
    api.lictor.lives()?;
    ensure!(!shown.contains("PRIVATE KEY"), "a private key is shown");
    ensure!(lines.iter().all(|line| !shown.contains(line)), "a part of the private key is shown");
    ensure!(!shown.contains(MANAGEMENT), "the token is shown");
    Ok(())
}

async fn i7_no_known_leader_from_streaming_is_no_error(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let _server = web.server().await?;
    // Past the age of a list, so that it has been asked for more than once.
    for _ in 0..3 {
        web.works_soon().await?;
        wait::pass(Duration::from_millis(1100)).await;
    }
    let text = web.lictor.output().text();
    ensure!(!text.contains("ERROR") && !text.to_lowercase().contains("leader"), "{text}");
    Ok(())
}
