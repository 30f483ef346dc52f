//! Group H: managed proxies of Consul 1.2 to 1.5, against the embedded agent. The variables are set by hand; the real
//! agents of that age start the binary themselves, see `h_old_agents`.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use lictor_agent::{Endpoint, Fault, ManagedProxy};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Options},
    app::{self, App},
    lictor::Lictor,
    peer::{Client, Server, ServerOptions},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Sidecar, World, add_instance, merge},
};

const STARTS_IT: &str = "a real agent of that age starts the binary itself, which other cases of this number see";

pub(crate) const CASES: &[Case] = &[
    case!(h1_a_managed_proxy_serves_with_what_its_agent_gives_it).embedded(STARTS_IT),
    case!(h2_the_documented_variables_are_read_too).embedded(STARTS_IT),
    case!(h3_upstreams_are_read_in_both_places).embedded(STARTS_IT),
    case!(h4_bind_and_local_service_addresses_are_honoured).embedded(STARTS_IT),
    case!(h5_an_empty_token_variable_is_no_token).embedded(STARTS_IT),
    case!(h6_a_changed_configuration_is_applied).embedded(STARTS_IT),
    case!(h7_without_the_old_endpoint_the_registration_is_followed),
    case!(h8_a_proxy_token_that_authorize_refuses_is_told).embedded(STARTS_IT),
];

const TOKEN: &str = "55555555-5555-5555-5555-555555555555";

/// A managed proxy of `api`.
pub(crate) struct Managed {
    pub(crate) agent: Agent,
    pub(crate) app: App,
    pub(crate) public: SocketAddr,
    pub(crate) lictor: Lictor,
    pub(crate) config: Value,
}

/// Starts it as an agent would, and waits until it serves.
pub(crate) async fn start(world: &World, extra: Value, upstreams: &[Value], env: &[(&str, &str)]) -> Result<Managed> {
    let agent = world.agent_with(Options { old_dialect: true, ..Options::default() }).await?;
    let app = App::echo().await?;
    let public = ports::free()?;
    let mut config = json!({
        "bind_address": "127.0.0.1", "bind_port": public.port(), "local_service_address": app.address().to_string(),
    });
    merge(&mut config, extra);
    agent.register(json!({ "ID": "api-1", "Name": "api", "Port": app.port() })).await?;
    agent.handle()?.set_managed_proxy(proxy(&config, upstreams)?);
    let mut setup = world.proxy(&agent)?;
    if env.is_empty() {
        setup = setup.env("CONNECT_PROXY_ID", "api-1-proxy").env("CONNECT_PROXY_TOKEN", TOKEN);
    }
    for (name, value) in env {
        setup = setup.env(name, value);
    }
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    Ok(Managed { agent, app, public, lictor, config })
}

fn proxy(config: &Value, upstreams: &[Value]) -> Result<ManagedProxy> {
    Ok(ManagedProxy {
        target_id: "api-1".to_owned(),
        target_name: "api".to_owned(),
        token: TOKEN.to_owned(),
        config: config.as_object().context("an object")?.clone(),
        upstreams: upstreams.to_vec(),
    })
}

impl Managed {
    async fn serves(&self) -> Result<()> {
        let client = Client::new(self.agent.identity("web").await?);
        app::echoes(&mut client.connect(self.public).await?, b"managed").await
    }
}

async fn h1_a_managed_proxy_serves_with_what_its_agent_gives_it(world: Arc<World>) -> Result<()> {
    let mut managed = start(&world, json!({}), &[], &[]).await?;
    managed.serves().await?;
    ensure!(managed.app.accepted() == 1);
    let asked = managed.agent.requests("/v1/agent/connect/proxy/api-1-proxy");
    ensure!(asked.iter().any(|head| head.contains(TOKEN)), "the proxy's token was not sent: {asked:?}");
    managed.lictor.lives()
}

async fn h2_the_documented_variables_are_read_too(world: Arc<World>) -> Result<()> {
    let env = [("CONSUL_PROXY_ID", "api-1-proxy"), ("CONSUL_PROXY_TOKEN", TOKEN)];
    start(&world, json!({}), &[], &env).await?.serves().await
}

async fn h3_upstreams_are_read_in_both_places(world: Arc<World>) -> Result<()> {
    let local = ports::free()?;
    let flat = json!({ "upstreams": [{ "destination_name": "db", "local_bind_port": local.port() }] });
    let top = json!({ "DestinationType": "service", "DestinationName": "db", "LocalBindPort": local.port() });
    for (extra, upstreams) in [(flat, vec![]), (json!({}), vec![top])] {
        let mut managed = start(&world, extra, &upstreams, &[]).await?;
        let options = ServerOptions::new(managed.agent.identity("db").await?, managed.agent.roots().await?);
        let server = Server::start(&options).await?;
        add_instance(&managed.agent, "db", "db-1", server.address()).await?;
        wait::until("a way to db", SOON, || async { app::echoes(&mut app::connect(local).await?, b"db").await })
            .await?;
        managed.lictor.kill().await?;
    }
    Ok(())
}

async fn h4_bind_and_local_service_addresses_are_honoured(world: Arc<World>) -> Result<()> {
    let elsewhere = App::start_at(format!("127.0.0.33:{}", ports::free()?.port()).parse()?, app::Manner::Echo).await?;
    let extra = json!({ "bind_address": "127.0.0.44", "local_service_address": elsewhere.address().to_string() });
    let mut managed = start(&world, extra, &[], &[]).await?;
    managed.public = SocketAddr::from(([127, 0, 0, 44], managed.public.port()));
    managed.serves().await?;
    ensure!(elsewhere.accepted() == 1 && managed.app.accepted() == 0, "another application was dialled");
    Ok(())
}

async fn h5_an_empty_token_variable_is_no_token(world: Arc<World>) -> Result<()> {
    let env = [
        ("CONNECT_PROXY_ID", "api-1-proxy"),
        ("CONNECT_PROXY_TOKEN", TOKEN),
        ("CONSUL_HTTP_TOKEN", ""),
        ("CONSUL_HTTP_TOKEN_FILE", ""),
        ("CONSUL_CACERT", ""),
        ("CONSUL_CLIENT_CERT", ""),
        ("CONSUL_HTTP_SSL", "false"),
        ("CONSUL_HTTP_SSL_VERIFY", "false"),
        ("CONSUL_HTTP_AUTH", ""),
    ];
    let managed = start(&world, json!({}), &[], &env).await?;
    managed.serves().await?;
    let all = managed.agent.requests("/v1/");
    let without = all.iter().find(|head| !head.contains(TOKEN));
    ensure!(without.is_none(), "a call without the proxy's token: {without:?}");
    Ok(())
}

async fn h6_a_changed_configuration_is_applied(world: Arc<World>) -> Result<()> {
    let mut managed = start(&world, json!({}), &[], &[]).await?;
    managed.serves().await?;
    let moved = App::echo().await?;
    managed.config["local_service_address"] = json!(moved.address().to_string());
    managed.agent.handle()?.set_managed_proxy(proxy(&managed.config, &[])?);
    wait::until("connections at the new address", SOON, || async {
        managed.serves().await?;
        ensure!(moved.accepted() > 0, "not yet");
        Ok(())
    })
    .await?;
    managed.lictor.lives()
}

async fn h7_without_the_old_endpoint_the_registration_is_followed(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    let setup = world.proxy(&agent)?.env("CONNECT_PROXY_ID", sidecar.proxy_id()).env("CONNECT_PROXY_TOKEN", TOKEN);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    let client = Client::new(agent.identity("web").await?);
    app::echoes(&mut client.connect(sidecar.public).await?, b"followed").await?;
    lictor.lives()
}

async fn h8_a_proxy_token_that_authorize_refuses_is_told(world: Arc<World>) -> Result<()> {
    let managed = start(&world, json!({}), &[], &[]).await?;
    let fault = Fault::Status { status: 403, body: "ACL not found".to_owned() };
    managed.agent.handle()?.misbehave(Endpoint::Authorize, fault);
    let client = Client::new(managed.agent.identity("web").await?);
    client.is_refused(managed.public).await?;
    managed.app.untouched()?;
    managed.lictor.counted("authorize_forbidden", 1).await?;
    let line = managed.lictor.output().line(0, "the refused token", SOON, |line| {
        line.contains("token") && (line.contains("authorize") || line.contains("403"))
    });
    let line = line.await?;
    ensure!(!line.contains(TOKEN), "the token is printed");
    Ok(())
}
