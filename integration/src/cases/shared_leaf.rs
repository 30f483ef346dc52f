//! From 1.16 on an agent keeps one leaf per service for all its callers: what that hands out, and what one caller's token
//! does to the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Options},
    app::{self, App},
    lictor::Lictor,
    peer::Client,
    ports,
    runner::{Case, case},
    wait,
    world::{Sidecar, World},
};

const REAL: &str = "the embedded agent keeps a leaf for each token, as agents before 1.16 do";

pub(crate) const CASES: &[Case] = &[
    case!(shared_leaf_a_deleted_token_of_the_registration_does_not_keep_the_new_leaf_away).real(REAL).since(1, 16),
    case!(shared_leaf_a_bad_callers_refusal_does_not_keep_the_new_leaf_away).real(REAL).since(1, 16),
];

const GOOD: &str = "77777777-7777-7777-7777-777777777777";
const REGISTERS: &str = "88888888-8888-8888-8888-888888888888";
const UNKNOWN: &str = "99999999-9999-9999-9999-999999999999";

/// A call with a token of its own, past the tap: status, index and text.
async fn call(
    agent: &Agent,
    method: Method,
    path: &str,
    token: &str,
    body: Option<Value>,
) -> Result<(u16, u64, String)> {
    let url = format!("http://{}{path}", agent.target());
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(110)).build()?;
    let mut request = client.request(method, url);
    if !token.is_empty() {
        request = request.header("X-Consul-Token", token);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await?;
    let index = answer.headers().get("X-Consul-Index").and_then(|index| index.to_str().ok()?.parse().ok());
    let status = answer.status().as_u16();
    Ok((status, index.unwrap_or(0), answer.text().await?))
}

/// Makes a token with the identity of `web`; its accessor is its secret with other digits at the end.
async fn grant(agent: &Agent, secret: &str) -> Result<()> {
    let body = json!({
        "SecretID": secret, "AccessorID": accessor(secret), "ServiceIdentities": [{ "ServiceName": "web" }],
    });
    agent.put("/v1/acl/token", body).await.map(drop)
}

fn accessor(secret: &str) -> String {
    format!("{}-0000-0000-0000-000000000000", &secret[..8])
}

const LEAF: &str = "/v1/agent/connect/ca/leaf/web";

/// Rotates the root and waits for the new leaf, with a new connection at each moment: how long it took, and what the
/// log says of refusals meanwhile.
async fn rotated(agent: &Agent, lictor: &Lictor, public: std::net::SocketAddr) -> Result<()> {
    let serial = || async {
        let certs = lictor.json("/certs").await?;
        Ok::<_, anyhow::Error>(certs["leaf"]["serial"].as_str().context("no serial")?.to_owned())
    };
    let (before, read) = (serial().await?, lictor.output().len());
    let client = Client::new(agent.identity("shop").await?);
    agent.rotate_root().await?;
    let begun = Instant::now();
    wait::until("the new leaf", Duration::from_secs(90), || async {
        app::echoes(&mut client.connect(public).await?, b"meanwhile").await?;
        ensure!(serial().await? != before, "still the old one");
        Ok(())
    })
    .await?;
    let took = begun.elapsed();
    let text = lictor.output().text();
    let refused = text[read..].lines().find(|line| line.contains("watch=\"leaf\"") && line.contains("403"));
    println!("the new leaf came {took:?} after the rotation; the log: {refused:?}");
    ensure!(refused.is_some(), "the agent refused nobody, so there was nothing to survive");
    app::echoes(&mut client.connect(public).await?, b"after").await?;
    let (status, _) = lictor.page("/ready").await?;
    ensure!(status == 200, "/ready: {status}");
    Ok(())
}

async fn shared_leaf_a_deleted_token_of_the_registration_does_not_keep_the_new_leaf_away(
    world: Arc<World>,
) -> Result<()> {
    let agent = world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?;
    grant(&agent, REGISTERS).await?;
    grant(&agent, GOOD).await?;
    agent.allow("shop", "web").await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("web", app.address())?;
    let service = json!({ "ID": "web-1", "Name": "web", "Address": "127.0.0.1", "Port": app.port() });
    for body in [service, sidecar.body()] {
        let path = "/v1/agent/service/register";
        let (status, _, text) = call(&agent, Method::PUT, path, REGISTERS, Some(body)).await?;
        ensure!(status == 200, "register: {status} {text}");
    }
    let setup = world.proxy(&agent)?.env("CONSUL_HTTP_TOKEN", GOOD).args(&["-sidecar-for", "web-1"]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;

    // What the docs warn of: the agent gives the key to whoever asks.
    for token in ["", UNKNOWN] {
        let (status, _, text) = call(&agent, Method::GET, LEAF, token, None).await?;
        ensure!(status == StatusCode::OK && text.contains("PRIVATE KEY"), "the agent guards the key: {status}");
    }
    let (status, text) = agent.call(Method::DELETE, &format!("/v1/acl/token/{}", accessor(REGISTERS)), None).await?;
    ensure!(status == 200, "DELETE token: {status} {text}");
    rotated(&agent, &lictor, sidecar.public).await
}

async fn shared_leaf_a_bad_callers_refusal_does_not_keep_the_new_leaf_away(world: Arc<World>) -> Result<()> {
    let agent = Arc::new(world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?);
    grant(&agent, GOOD).await?;
    agent.allow("shop", "web").await?;
    let app = App::echo().await?;
    let public = ports::free()?;
    // The leaf is made by somebody who may, and then waited on by somebody who may not, before the sidecar comes.
    let (status, index, text) = call(&agent, Method::GET, LEAF, GOOD, None).await?;
    ensure!(status == 200, "{status} {text}");
    let waits = tokio::spawn({
        let agent = agent.clone();
        async move { call(&agent, Method::GET, &format!("{LEAF}?index={index}&wait=10m"), UNKNOWN, None).await }
    });
    // It must be there first; a call that is answered after it was sent shows that the agent has had time to read it.
    wait::pass(Duration::from_millis(500)).await;
    let (listen, service) = (public.to_string(), app.address().to_string());
    let setup = world.proxy(&agent)?.env("CONSUL_HTTP_TOKEN", GOOD);
    let mut lictor = setup.args(&["-service", "web", "-service-addr", &service, "-listen", &listen]).start()?;
    lictor.ready().await?;
    let outcome = rotated(&agent, &lictor, public).await;
    // What the bad caller gets is the agent's affair: a 403, or the leaf that the good one has had made.
    waits.abort();
    outcome
}
