//! Group F: the registration changes while the sidecar runs.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    app::{self, App, Manner},
    peer::{Client, Server, ServerOptions},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Sidecar, World, add_instance, upstream},
};

pub(crate) const CASES: &[Case] = &[
    case!(f1_an_added_upstream_opens_within_a_second_beside_the_others),
    case!(f2_a_removed_upstream_closes_and_its_connections_go_on),
    case!(f3_an_upstream_can_change_its_target_and_keep_its_port),
    case!(f4_a_changed_application_address_holds_for_new_connections),
    case!(f5_a_changed_service_port_moves_the_listener),
    case!(f6_the_same_registration_again_changes_nothing),
    case!(f7_unknown_keys_of_central_configuration_are_ignored).since(1, 9),
    case!(f8_a_key_of_the_wrong_type_falls_to_its_default_alone),
    case!(f9_a_deregistered_sidecar_goes_on_and_picks_the_new_one_up),
    case!(f10_an_agent_that_comes_back_empty_is_followed_in_seconds),
    case!(f11_an_upstream_whose_port_is_taken_does_not_stop_the_others),
];

async fn f1_an_added_upstream_opens_within_a_second_beside_the_others(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound().await?;
    let _server = web.server().await?;
    web.works_soon().await?;
    let mut old = app::connect(web.local).await?;
    app::echoes(&mut old, b"before").await?;
    let added = ports::free()?;
    web.sidecar.upstreams.push(upstream("db", added.port()));
    web.sidecar.update(&web.agent).await?;
    wait::until("the new listener", Duration::from_secs(1), || async { app::listens(added).await }).await?;
    app::echoes(&mut old, b"after").await?;
    web.works().await?;
    web.lictor.lives()
}

async fn f2_a_removed_upstream_closes_and_its_connections_go_on(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound().await?;
    let _server = web.server().await?;
    web.works_soon().await?;
    let mut old = app::connect(web.local).await?;
    app::echoes(&mut old, b"before").await?;
    web.sidecar.upstreams.clear();
    web.sidecar.update(&web.agent).await?;
    app::not_listening(web.local).await?;
    app::echoes(&mut old, b"after").await
}

async fn f3_an_upstream_can_change_its_target_and_keep_its_port(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound().await?;
    let _api = web.server().await?;
    let options = ServerOptions::new(web.agent.identity("db").await?, web.agent.roots().await?);
    let db = Server::start(&options).await?;
    add_instance(&web.agent, "db", "db-1", db.address()).await?;
    web.works_soon().await?;
    let mut old = app::connect(web.local).await?;
    app::echoes(&mut old, b"to api").await?;
    web.sidecar.upstreams = vec![upstream("db", web.local.port())];
    web.sidecar.update(&web.agent).await?;
    wait::until("connections to the new target", SOON, || async {
        web.works().await?;
        ensure!(db.shaken() > 0, "not yet");
        Ok(())
    })
    .await?;
    app::echoes(&mut old, b"still to api").await?;
    // A changed time-out is taken without closing the port, too.
    web.sidecar.upstreams[0]["Config"] = json!({ "connect_timeout_ms": 900 });
    web.sidecar.update(&web.agent).await?;
    for _ in 0..20 {
        web.works().await?;
    }
    Ok(())
}

async fn f4_a_changed_application_address_holds_for_new_connections(world: Arc<World>) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let mut old = client.connect(api.public()).await?;
    app::echoes(&mut old, b"old").await?;
    let moved = App::echo().await?;
    api.sidecar.app = moved.address();
    api.sidecar.config = json!({ "local_connect_timeout_ms": 400 });
    api.sidecar.update(&api.agent).await?;
    wait::until("a connection at the new address", SOON, || async {
        app::echoes(&mut client.connect(api.public()).await?, b"new").await?;
        ensure!(moved.accepted() > 0, "not yet");
        Ok(())
    })
    .await?;
    app::echoes(&mut old, b"old").await
}

async fn f5_a_changed_service_port_moves_the_listener(world: Arc<World>) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let before = api.public();
    let mut old = client.connect(before).await?;
    app::echoes(&mut old, b"old").await?;
    api.sidecar.public = ports::free()?;
    api.sidecar.update(&api.agent).await?;
    app::listening(api.public()).await?;
    app::not_listening(before).await?;
    api.serves().await?;
    app::echoes(&mut old, b"old").await
}

async fn f6_the_same_registration_again_changes_nothing(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let _server = web.server().await?;
    web.works_soon().await?;
    let mut old = app::connect(web.local).await?;
    app::echoes(&mut old, b"before").await?;
    let before = web.lictor.output().len();
    for _ in 0..5 {
        web.sidecar.update(&web.agent).await?;
        web.works().await?;
    }
    app::echoes(&mut old, b"after").await?;
    let said = web.lictor.output().text();
    let said = said.get(before..).unwrap_or_default();
    ensure!(!said.contains("in use") && !said.contains("ERROR"), "{said}");
    Ok(())
}

async fn f7_unknown_keys_of_central_configuration_are_ignored(world: Arc<World>) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let mut old = client.connect(api.public()).await?;
    app::echoes(&mut old, b"before").await?;
    let before = api.lictor.output().len();
    let asked = api.agent.requests("/v1/agent/service/").len();
    let entry = json!({
        "Kind": "proxy-defaults", "Name": "global",
        "Config": { "envoy_prometheus_bind_addr": "0.0.0.0:9102", "something_else": { "a": [1, 2] }, "protocol": "tcp" },
    });
    api.agent.config_entry(entry).await?;
    wait::until("the definition to be read again", SOON, || async {
        ensure!(api.agent.requests("/v1/agent/service/").len() > asked, "not yet");
        Ok(())
    })
    .await?;
    api.serves().await?;
    app::echoes(&mut old, b"after").await?;
    let said = api.lictor.output().text();
    let said = said.get(before..).unwrap_or_default();
    ensure!(!said.contains("ERROR") && !said.contains("in use"), "{said}");
    api.lictor.lives()
}

async fn f8_a_key_of_the_wrong_type_falls_to_its_default_alone(world: Arc<World>) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    api.sidecar.config = json!({ "local_connect_timeout_ms": { "seconds": 5 }, "handshake_timeout_ms": 1000 });
    api.sidecar.update(&api.agent).await?;
    api.lictor.says("local_connect_timeout_ms").await?;
    api.serves().await?;
    // The key beside it holds.
    let mut idle = app::connect(api.public()).await?;
    let begun = std::time::Instant::now();
    app::ends_without_a_byte(&mut idle).await?;
    ensure!(begun.elapsed() < Duration::from_secs(4), "the key beside it is lost: closed after {:?}", begun.elapsed());
    api.lictor.lives()
}

async fn f9_a_deregistered_sidecar_goes_on_and_picks_the_new_one_up(world: Arc<World>) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    let asked = api.agent.requests("/v1/agent/service/").len();
    api.agent.deregister(&api.sidecar.proxy_id()).await?;
    wait::until("the loss to be noticed", SOON, || async {
        ensure!(api.agent.requests("/v1/agent/service/").len() > asked + 1, "not yet");
        Ok(())
    })
    .await?;
    api.serves().await.context("after the deregistration")?;
    api.lictor.lives()?;
    api.sidecar.public = ports::free()?;
    api.sidecar.update(&api.agent).await?;
    app::listening(api.public()).await?;
    api.serves().await
}

async fn f10_an_agent_that_comes_back_empty_is_followed_in_seconds(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let td = agent.trust_domain().await?;
    agent.restart_wiped().await?;
    ensure!(agent.trust_domain().await? != td, "the CA is still the old one");
    sidecar.register(&agent).await?;
    let client = Client::new(agent.identity("web").await?);
    wait::until("service under the new CA", SOON, || async {
        app::echoes(&mut client.connect(sidecar.public).await?, b"new").await
    })
    .await?;
    lictor.ready().await
}

async fn f11_an_upstream_whose_port_is_taken_does_not_stop_the_others(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound().await?;
    let _server = web.server().await?;
    web.works_soon().await?;
    // Two upstreams on one port are refused by today's agents, so another process has the port.
    let taken = App::start_at(ports::free()?, Manner::Echo).await?;
    let good = ports::free()?;
    web.sidecar.upstreams.push(upstream("db", taken.port()));
    web.sidecar.upstreams.push(upstream("cache", good.port()));
    web.sidecar.update(&web.agent).await?;
    app::listening(good).await?;
    web.lictor.says(&taken.port().to_string()).await?;
    let missing = web.lictor.not_ready().await?;
    ensure!(missing.contains("db") || missing.contains(&taken.port().to_string()), "/ready says {missing}");
    web.works().await?;
    drop(taken);
    web.lictor.ready().await
}
