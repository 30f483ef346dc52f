//! Beyond loopback over IPv4: unix sockets and IPv6, on either side; namespaces and partitions, which no agent here has.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, UnixListener},
};

use crate::{
    app::{self, App, Manner},
    peer::{Client, Server, ServerOptions},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{NotRun, Sidecar, World, add_instance, upstream},
};

pub(crate) const CASES: &[Case] = &[
    case!(addresses_an_application_on_a_unix_socket_is_reached).since(1, 10),
    case!(addresses_of_ipv6_work_on_every_side),
    case!(d23_a_namespace_is_never_taken_for_the_default_one),
    case!(d23_a_partition_is_never_taken_for_the_default_one),
    case!(d23_a_peer_is_never_taken_for_our_own_cluster_by_an_agent_that_has_none),
    case!(d23_an_own_namespace_that_the_agent_does_not_know_is_told),
];

async fn addresses_an_application_on_a_unix_socket_is_reached(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let path = world.folder().join("app.sock");
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let echo = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let (mut from, mut to) = stream.into_split();
        tokio::io::copy(&mut from, &mut to).await
    });
    let sidecar = Sidecar::new("api", ports::free()?)?;
    let mut body = sidecar.body();
    body["Proxy"]["LocalServiceSocketPath"] = json!(path);
    if let Some(proxy) = body["Proxy"].as_object_mut() {
        proxy.remove("LocalServiceAddress");
        proxy.remove("LocalServicePort");
    }
    agent.register(json!({ "ID": "api-1", "Name": "api", "SocketPath": path })).await?;
    agent.register(body).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let client = Client::new(agent.identity("web").await?);
    let mut stream = client.connect(sidecar.public).await?;
    app::echoes(&mut stream, b"by a path").await?;
    stream.shutdown().await?;
    let (rest, _) = app::read_to_end(&mut stream).await?;
    ensure!(rest.is_empty() && echo.await?? == 9, "the half-close did not come through");
    Ok(())
}

async fn addresses_of_ipv6_work_on_every_side(world: Arc<World>) -> Result<()> {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        return Err(NotRun("this machine has no IPv6 loopback".to_owned()).into());
    };
    drop(listener);
    let on_v6 = || anyhow::Ok((std::net::Ipv6Addr::LOCALHOST, ports::free()?.port()).into());
    let agent = world.agent().await?;
    let app = App::start_at(on_v6()?, Manner::Echo).await?;
    let mut api = Sidecar::new("api", app.address())?;
    api.public = on_v6()?;
    api.register(&agent).await?;
    let mut of_api = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    let (mut web, local): (_, std::net::SocketAddr) = (Sidecar::new("web", ports::free()?)?, on_v6()?);
    let mut entry = upstream("api", local.port());
    entry["LocalBindAddress"] = json!("::1");
    web.upstreams.push(entry);
    web.register(&agent).await?;
    let mut of_web = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    of_api.ready().await?;
    of_web.ready().await?;
    wait::until("a way over IPv6", SOON, || async { app::echoes(&mut app::connect(local).await?, b"six").await })
        .await?;
    ensure!(app.accepted() >= 1, "another application was reached");
    Ok(())
}

async fn d23_a_namespace_is_never_taken_for_the_default_one(world: Arc<World>) -> Result<()> {
    elsewhere(&world, "namespace", "ns=team", &["Namespaces are", "in namespace"]).await
}

async fn d23_a_partition_is_never_taken_for_the_default_one(world: Arc<World>) -> Result<()> {
    elsewhere(&world, "partition", "partition=team", &["Partitions are", "in partition"]).await
}

async fn d23_a_peer_is_never_taken_for_our_own_cluster_by_an_agent_that_has_none(world: Arc<World>) -> Result<()> {
    elsewhere(&world, "peer", "peer=team", &["our own cluster", "no instance"]).await
}

/// An upstream in a place that is not ours, asked for with `asked` and failing with one of `told`, beside an instance
/// of the same name in our own.
async fn elsewhere(world: &World, key: &str, asked: &str, told: &[&str]) -> Result<()> {
    let agent = world.agent().await?;
    let own = Server::start(&ServerOptions::new(agent.identity("api").await?, agent.roots().await?)).await?;
    add_instance(&agent, "api", "api-1", own.address()).await?;
    let (plain, other) = (ports::free()?, ports::free()?);
    let text = format!(
        "service = \"web\"\n[upstream.plain]\nservice = \"api\"\nport = {}\n[upstream.other]\nservice = \"api\"\n\
         port = {}\n{key} = \"team\"\n",
        plain.port(),
        other.port(),
    );
    let file = world.file("lictor.toml", &text)?;
    let lictor = world.proxy(&agent)?.arg("-config").arg(&file).start()?;
    wait::until("the upstream next door", SOON, || async {
        app::echoes(&mut app::connect(plain).await?, b"own").await
    })
    .await?;
    let before = own.shaken();
    app::is_closed(other).await?;
    ensure!(own.shaken() == before, "an instance of our own was taken for the team's");
    ensure!(!agent.requests(asked).is_empty(), "the agent was not asked with {asked}");
    let failed = |line: &str| line.contains("connection failed") && line.contains("other");
    lictor.output().line(0, "the failure", SOON, failed).await?;
    // The agent's own words, or ours where it has answered for somebody else.
    let says = |line: &str| told.iter().any(|words| line.contains(words));
    lictor.output().line(0, "what is wrong", SOON, says).await.map(drop)
}

async fn d23_an_own_namespace_that_the_agent_does_not_know_is_told(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let sidecar = Sidecar::new("api", ports::free()?)?;
    sidecar.register(&agent).await?;
    let lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).env("CONSUL_NAMESPACE", "team").start()?;
    // From 1.7 on the agent refuses the namespace, and with it the start; an older one serves the default in its place.
    let told = |line: &str| line.contains("Namespaces are") || line.contains("in namespace team");
    lictor.output().line(0, "the namespace", SOON, told).await?;
    app::not_listening(sidecar.public).await
}
