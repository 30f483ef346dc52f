//! Tokens: what one must be able to do, and what happens when it cannot.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lictor_agent::{Access, Token};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, MANAGEMENT, Options},
    app::{self, App},
    lictor::{Lictor, Setup},
    peer::{Client, Server, ServerOptions},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Sidecar, World, add_instance, upstream},
};

const NO_POLICIES: &str = "the embedded agent has tokens and no policies";

pub(crate) const CASES: &[Case] = &[
    case!(acl_a_service_identity_is_enough_for_all_but_register).since(1, 4),
    case!(acl_a_second_identity_is_enough_for_register).since(1, 4),
    case!(acl_the_least_policy_is_enough_and_no_line_of_it_is_idle).since(1, 4).real(NO_POLICIES),
    case!(acl_no_token_and_an_unknown_one_are_told).since(1, 4),
    case!(acl_a_deleted_token_is_told_and_used_again_when_it_is_back).since(1, 4),
    case!(acl_a_replaced_token_file_is_read_without_a_restart).since(1, 4),
];

/// The secret and the accessor of a token that a case makes.
struct Key {
    secret: &'static str,
    accessor: &'static str,
}

const FIRST: Key =
    Key { secret: "55555555-5555-5555-5555-555555555555", accessor: "55555555-0000-0000-0000-000000000000" };
const SECOND: Key =
    Key { secret: "66666666-6666-6666-6666-666666666666", accessor: "66666666-0000-0000-0000-000000000000" };

/// An agent that denies by default, with the sidecar of `web` registered and an instance of `api` to call.
struct Scene {
    agent: Agent,
    app: App,
    sidecar: Sidecar,
    /// Where `web` reaches `api` by its name, and by a prepared query.
    ways: [SocketAddr; 2],
    _api: Server,
}

impl Scene {
    async fn set(world: &World) -> Result<Self> {
        let agent = world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?;
        let app = App::echo().await?;
        let api = Server::start(&ServerOptions::new(agent.identity("api").await?, agent.roots().await?)).await?;
        add_instance(&agent, "api", "api-1-sidecar-proxy", api.address()).await?;
        let definition = json!({ "Name": "find-api", "Service": { "Service": "api" } });
        let (status, text) = agent.call(Method::POST, "/v1/query", Some(definition)).await?;
        ensure!(status == 200, "POST /v1/query: {status} {text}");
        let mut sidecar = Sidecar::new("web", app.address())?;
        let ways = [ports::free()?, ports::free()?];
        let mut query = upstream("find-api", ways[1].port());
        query["DestinationType"] = json!("prepared_query");
        sidecar.upstreams = vec![upstream("api", ways[0].port()), query];
        sidecar.register(&agent).await?;
        agent.allow("shop", "web").await?;
        Ok(Self { agent, app, sidecar, ways, _api: api })
    }

    /// Makes a token with these service identities.
    async fn grant(&self, key: &Key, services: &[&str]) -> Result<()> {
        if let Ok(handle) = self.agent.handle() {
            let mut token = Token::service_identity("none");
            token.services = (services.iter())
                .flat_map(|name| [(*name).to_owned(), format!("{name}-sidecar-proxy")])
                .map(|name| (name, Access::Write))
                .collect();
            handle.add_token(key.secret, token);
            return Ok(());
        }
        let identities: Vec<Value> = services.iter().map(|name| json!({ "ServiceName": name })).collect();
        let body = json!({ "SecretID": key.secret, "AccessorID": key.accessor, "ServiceIdentities": identities });
        self.agent.put("/v1/acl/token", body).await.map(drop)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        if let Ok(handle) = self.agent.handle() {
            ensure!(handle.delete_token(key.secret), "no such token");
            return Ok(());
        }
        let (status, text) = self.agent.call(Method::DELETE, &format!("/v1/acl/token/{}", key.accessor), None).await?;
        ensure!(status == 200, "DELETE token: {status} {text}");
        Ok(())
    }

    /// Makes a token with these rules; its secret. Real agents only.
    async fn policy(&self, name: &str, rules: &str) -> Result<String> {
        self.agent.put("/v1/acl/policy", json!({ "Name": name, "Rules": rules })).await?;
        let made = self.agent.put("/v1/acl/token", json!({ "Policies": [{ "Name": name }] })).await?;
        Ok(made["SecretID"].as_str().context("no SecretID")?.to_owned())
    }

    /// `lictor proxy -sidecar-for web-1` with this token.
    fn follows(&self, world: &World, token: &str) -> Result<Setup> {
        Ok(world.proxy(&self.agent)?.env("CONSUL_HTTP_TOKEN", token).args(&["-sidecar-for", "web-1"]))
    }

    /// `lictor proxy -service web -register` with this token.
    fn registers(&self, world: &World, token: &str) -> Result<Setup> {
        let setup = world.proxy(&self.agent)?.env("CONSUL_HTTP_TOKEN", token);
        let (app, listen) = (self.app.address().to_string(), ports::free()?.to_string());
        Ok(setup.args(&["-service", "web", "-register", "-service-addr", &app, "-listen", &listen]))
    }

    /// A client of another service gets in.
    async fn lets_in(&self) -> Result<()> {
        let mut stream = Client::new(self.agent.identity("shop").await?).connect(self.sidecar.public).await?;
        app::echoes(&mut stream, b"in").await
    }

    async fn goes_out(&self, way: SocketAddr) -> Result<()> {
        app::echoes(&mut app::connect(way).await?, b"out").await
    }

    async fn everything_works(&self) -> Result<()> {
        wait::until("inbound", SOON, || self.lets_in()).await?;
        for way in self.ways {
            wait::until("outbound", SOON, || self.goes_out(way)).await?;
        }
        Ok(())
    }
}

/// What the log says of refusals by the agent.
fn refusals(lictor: &Lictor) -> Vec<String> {
    let text = lictor.output().text();
    let told = |line: &&str| (line.contains(" WARN ") || line.contains("ERROR")) && line.contains("403");
    text.lines().filter(told).map(str::to_owned).collect()
}

async fn refusal(lictor: &Lictor) -> Result<String> {
    wait::until("a refusal in the log", SOON, || async { refusals(lictor).into_iter().next().context("none") }).await
}

fn nothing_refused(lictor: &Lictor) -> Result<()> {
    let refusals = refusals(lictor);
    ensure!(refusals.is_empty(), "{refusals:?}");
    Ok(())
}

/// Neither the tokens of the case nor the management token are in the log.
fn keeps_secrets(lictor: &Lictor, tokens: &[&str]) -> Result<()> {
    let text = lictor.output().text();
    for token in tokens.iter().chain([&MANAGEMENT]) {
        ensure!(!text.contains(token), "a token is in the log");
    }
    Ok(())
}

async fn acl_a_service_identity_is_enough_for_all_but_register(world: Arc<World>) -> Result<()> {
    let scene = Scene::set(&world).await?;
    scene.grant(&FIRST, &["web"]).await?;
    let mut lictor = scene.follows(&world, FIRST.secret)?.start()?;
    lictor.ready().await?;
    scene.everything_works().await?;
    nothing_refused(&lictor)?;
    keeps_secrets(&lictor, &[FIRST.secret])?;
    lictor.kill().await?;

    // `-register` makes a service `web-proxy`, which the identity does not cover.
    let mut lictor = scene.registers(&world, FIRST.secret)?.start()?;
    let line = lictor.output().line(0, "the refusal", SOON, |l| l.contains("403") && l.contains("register")).await?;
    ensure!(line.contains("WARN") || line.contains("ERROR"), "{line}");
    lictor.ready().await.context("what needs no registration serves")?;
    ensure!(!scene.agent.has_service("web-proxy").await?, "it is registered all the same");
    keeps_secrets(&lictor, &[FIRST.secret])
}

async fn acl_a_second_identity_is_enough_for_register(world: Arc<World>) -> Result<()> {
    let scene = Scene::set(&world).await?;
    scene.grant(&FIRST, &["web", "web-proxy"]).await?;
    let mut lictor = scene.registers(&world, FIRST.secret)?.start()?;
    lictor.ready().await?;
    wait::until("a passing check", Duration::from_secs(20), || async {
        let status = scene.agent.check_of("web-proxy").await?;
        ensure!(status == "passing", "{status}");
        Ok(())
    })
    .await?;
    lictor.signal(Signal::TERM)?;
    lictor.exit(SOON).await?;
    ensure!(!scene.agent.has_service("web-proxy").await?, "it is not deregistered at the end");
    nothing_refused(&lictor)?;
    keeps_secrets(&lictor, &[FIRST.secret])
}

/// The policy of `docs/consul-compatibility.md`, a line each.
const LEAST: [(&str, &str); 6] = [
    ("web", r#"service "web" { policy = "write" }"#),
    ("web-sidecar-proxy", r#"service "web-sidecar-proxy" { policy = "read" }"#),
    ("api", r#"service "api" { policy = "read" }"#),
    ("api-sidecar-proxy", r#"service "api-sidecar-proxy" { policy = "read" }"#),
    ("node", r#"node_prefix "" { policy = "read" }"#),
    ("web-proxy", r#"service "web-proxy" { policy = "write" }"#),
];

async fn acl_the_least_policy_is_enough_and_no_line_of_it_is_idle(world: Arc<World>) -> Result<()> {
    let scene = Scene::set(&world).await?;
    let without = |gone: &str| {
        let lines = LEAST.iter().filter(|(of, _)| *of != gone).map(|(_, line)| format!("{line}\n"));
        lines.collect::<String>()
    };
    let whole = scene.policy("whole", &without("")).await?;
    let mut lictor = scene.follows(&world, &whole)?.start()?;
    lictor.ready().await?;
    scene.everything_works().await?;
    nothing_refused(&lictor)?;
    lictor.kill().await?;
    let mut lictor = scene.registers(&world, &whole)?.start()?;
    wait::until("a passing check", Duration::from_secs(20), || async {
        let status = scene.agent.check_of("web-proxy").await?;
        ensure!(status == "passing", "{status}");
        Ok(())
    })
    .await?;
    lictor.signal(Signal::TERM)?;
    lictor.exit(SOON).await?;

    for (gone, _) in LEAST {
        let token = scene.policy(&format!("without-{gone}"), &without(gone)).await?;
        let said = lacks(&world, &scene, gone, &token).await.with_context(|| format!("without the line of {gone}"))?;
        println!("without {gone}: {said}");
    }
    Ok(())
}

/// What needs the line fails; the words in which it does.
async fn lacks(world: &World, scene: &Scene, gone: &str, token: &str) -> Result<String> {
    match gone {
        // The leaf (an agent from 1.16 on gives it all the same, since the registration has had it made) and authorize.
        "web" => {
            let lictor = scene.follows(world, token)?.start()?;
            let line = wait::until("a refusal in the log", SOON, || async {
                ensure!(scene.lets_in().await.is_err(), "a client got in");
                refusals(&lictor).into_iter().next().context("none")
            })
            .await?;
            keeps_secrets(&lictor, &[token])?;
            Ok(line)
        }
        "web-sidecar-proxy" => {
            let (code, text) = scene.follows(world, token)?.ends().await?;
            ensure!(code == 4 && text.contains("or the token may not read it"), "{code}: {text}");
            let lictor = world.proxy(&scene.agent)?.env("CONSUL_HTTP_TOKEN", token);
            let lictor = lictor.args(&["-proxy-id", &scene.sidecar.proxy_id()]).start()?;
            let line = refusal(&lictor).await?;
            ensure!(lictor.not_ready().await?.contains("service:read"), "/ready does not say it");
            Ok(line)
        }
        "web-proxy" => {
            let lictor = scene.registers(world, token)?.start()?;
            refusal(&lictor).await
        }
        // The ways out; a prepared query is not a question about the service by name.
        _ => {
            let mut lictor = scene.follows(world, token)?.start()?;
            lictor.ready().await?;
            wait::until("inbound", SOON, || scene.lets_in()).await?;
            ensure!(scene.goes_out(scene.ways[0]).await.is_err(), "the upstream is found");
            let query = scene.goes_out(scene.ways[1]).await.is_ok();
            ensure!(query == (gone == "api"), "the query finds it: {query}");
            lictor.says("service:read").await
        }
    }
}

async fn acl_no_token_and_an_unknown_one_are_told(world: Arc<World>) -> Result<()> {
    let scene = Scene::set(&world).await?;
    let (code, text) = scene.follows(&world, "")?.ends().await?;
    ensure!(code == 4 && text.contains("or the token may not read it"), "no token: {code}: {text}");
    let (code, text) = scene.follows(&world, FIRST.secret)?.ends().await?;
    ensure!(code == 4 && text.contains("403") && text.contains("check"), "an unknown one: {code}: {text}");
    ensure!(!text.contains(FIRST.secret), "the token is shown");
    for token in ["", FIRST.secret] {
        let setup = world.proxy(&scene.agent)?.env("CONSUL_HTTP_TOKEN", token);
        let mut lictor = setup.args(&["-proxy-id", &scene.sidecar.proxy_id()]).start()?;
        refusal(&lictor).await?;
        let why = lictor.not_ready().await?;
        ensure!(why.contains("service:read"), "/ready says {why}");
        lictor.lives()?;
        keeps_secrets(&lictor, &[FIRST.secret])?;
        if token.is_empty() {
            continue;
        }
        // The token comes into being while the proxy waits for it.
        scene.grant(&FIRST, &["web"]).await?;
        lictor.ready().await?;
        scene.everything_works().await?;
    }
    Ok(())
}

async fn acl_a_deleted_token_is_told_and_used_again_when_it_is_back(world: Arc<World>) -> Result<()> {
    let scene = Scene::set(&world).await?;
    scene.grant(&FIRST, &["web"]).await?;
    let mut lictor = scene.follows(&world, FIRST.secret)?.start()?;
    lictor.ready().await?;
    scene.everything_works().await?;
    let mut live_in = Client::new(scene.agent.identity("shop").await?).connect(scene.sidecar.public).await?;
    app::echoes(&mut live_in, b"in").await?;
    let mut live_out = app::connect(scene.ways[0]).await?;
    app::echoes(&mut live_out, b"out").await?;
    let before = lictor.output().len();
    scene.delete(&FIRST).await?;
    wait::until("a refusal", SOON, || async {
        ensure!(scene.lets_in().await.is_err(), "a client got in");
        Ok(())
    })
    .await?;
    lictor.output().line(before, "the refusal", SOON, |line| line.contains("403")).await?;
    ensure!(lictor.metrics().await?.label("authorize_forbidden") > 0, "not counted");
    app::echoes(&mut live_in, b"in").await.context("an open connection in")?;
    app::echoes(&mut live_out, b"out").await.context("an open connection out")?;
    // What is known of upstreams serves on, as when the agent is away.
    scene.goes_out(scene.ways[0]).await.context("a new connection out")?;
    lictor.lives()?;
    let (status, text) = lictor.page("/ready").await?;
    ensure!(status == 200, "the leaf still counts, and /ready is {status} {text}");

    scene.grant(&FIRST, &["web"]).await?;
    let back = Instant::now();
    scene.everything_works().await?;
    println!("the token is back: everything works after {:?}", back.elapsed());
    keeps_secrets(&lictor, &[FIRST.secret])
}

async fn acl_a_replaced_token_file_is_read_without_a_restart(world: Arc<World>) -> Result<()> {
    let scene = Scene::set(&world).await?;
    scene.grant(&FIRST, &["web"]).await?;
    let file = world.file("token", &format!("{}\n", FIRST.secret))?;
    let setup = world.proxy(&scene.agent)?.args(&["-sidecar-for", "web-1", "-token-file"]).arg(&file);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    scene.everything_works().await?;
    scene.grant(&SECOND, &["web"]).await?;
    scene.delete(&FIRST).await?;
    ensure!(scene.lets_in().await.is_err(), "a client got in by a deleted token");
    // As tools replace files: a new one under the old name.
    let new = world.file("token.new", SECOND.secret)?;
    std::fs::rename(new, &file)?;
    let replaced = Instant::now();
    wait::until("the new token in use", SOON, || scene.lets_in()).await?;
    println!("a new token file: used after {:?}", replaced.elapsed());
    scene.everything_works().await?;
    keeps_secrets(&lictor, &[FIRST.secret, SECOND.secret])
}
