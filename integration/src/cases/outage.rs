//! Drills: what holds while the agent, its servers or its state are gone, on a real agent, with times.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{net::TcpStream, process::Command};

use crate::{
    agent::{Agent, Kind, Options},
    app::{self, App, Manner},
    lictor::{Lictor, Setup},
    peer::{Client, MeshClient, Server, ServerOptions},
    ports,
    process::Process,
    runner::{Case, case},
    wait::{self, SOON},
    world::{NotRun, Sidecar, World, add_instance, upstream},
};

const PROCESSES: &str = "the embedded agent is server and client in one";
const AGES: &str = "the embedded agent renews leaves on request";

pub(crate) const CASES: &[Case] = &[
    case!(drill_an_agent_that_restarts_is_followed_in_seconds).drill(),
    case!(drill_a_frozen_agent_stops_nothing_that_is_known).drill(),
    case!(drill_an_agent_that_lost_its_state_is_followed_in_seconds).drill(),
    case!(drill_without_servers_the_client_agent_serves_on).real(PROCESSES).drill(),
    case!(drill_five_roots_in_a_row_heal_by_themselves).drill(),
    case!(drill_a_leaf_is_renewed_by_age_and_nobody_notices).real(AGES).drill(),
];

/// A sidecar on each side of an application: `api` is called by the mesh, `web` calls `db`, whose server is ours and
/// asks no agent.
struct Scene {
    agent: Agent,
    app: App,
    api: Sidecar,
    web: Sidecar,
    db: Server,
    local: SocketAddr,
    client: Client,
    lictors: [Lictor; 2],
}

/// What is open before it begins.
struct Live {
    inbound: MeshClient,
    outbound: TcpStream,
}

impl Live {
    async fn goes_on(&mut self) -> Result<()> {
        app::echoes(&mut self.inbound, b"in").await.context("an open connection in")?;
        app::echoes(&mut self.outbound, b"out").await.context("an open connection out")
    }
}

impl Scene {
    async fn set(world: &World, options: Options) -> Result<Self> {
        let agent = world.agent_with(options).await?;
        let app = App::start(Manner::Echo).await?;
        let db = Server::start(&ServerOptions::new(agent.identity("db").await?, agent.roots().await?)).await?;
        let api = Sidecar::new("api", app.address())?;
        let mut web = Sidecar::new("web", app.address())?;
        let local = ports::free()?;
        web.upstreams.push(upstream("db", local.port()));
        register(&agent, &api, &web, &db).await?;
        let start = |name: &str, id: String| -> Result<Lictor> {
            Setup::proxy(world, name, &agent)?.args(&["-sidecar-for", &id]).start()
        };
        let mut lictors = [start("lictor of api", api.service_id())?, start("lictor of web", web.service_id())?];
        for lictor in &mut lictors {
            lictor.ready().await?;
        }
        let client = Client::new(agent.identity("shop").await?);
        let scene = Self { agent, app, api, web, db, local, client, lictors };
        wait::until("everything", SOON, || scene.works()).await?;
        Ok(scene)
    }

    async fn live(&self) -> Result<Live> {
        let mut live =
            Live { inbound: self.client.connect(self.api.public).await?, outbound: app::connect(self.local).await? };
        live.goes_on().await?;
        Ok(live)
    }

    async fn lets_in(&self) -> Result<()> {
        app::echoes(&mut self.client.connect(self.api.public).await?, b"in").await
    }

    async fn goes_out(&self) -> Result<()> {
        app::echoes(&mut app::connect(self.local).await?, b"out").await
    }

    async fn works(&self) -> Result<()> {
        self.lets_in().await?;
        self.goes_out().await
    }

    /// For `time`, without an agent: what is open goes on, nobody new gets in, new connections go out.
    async fn holds_on(&mut self, live: &mut Live, time: Duration) -> Result<()> {
        let (begun, accepted) = (Instant::now(), self.app.accepted());
        let (mut refused, mut out) = (Duration::ZERO, Duration::ZERO);
        while begun.elapsed() < time {
            live.goes_on().await?;
            let asked = Instant::now();
            self.client.is_refused(self.api.public).await.context("a new connection in")?;
            refused = refused.max(asked.elapsed());
            let asked = Instant::now();
            self.goes_out().await.context("a new connection out")?;
            out = out.max(asked.elapsed());
            wait::pass(Duration::from_millis(250)).await;
        }
        ensure!(self.app.accepted() == accepted, "the application saw a connection that nobody authorized");
        println!("{time:?} without: refused within {refused:?} at most, out within {out:?} at most");
        ensure!(refused < Duration::from_secs(12) && out < Duration::from_secs(2), "too slow: {refused:?}, {out:?}");
        for lictor in &mut self.lictors {
            lictor.lives()?;
            let (status, text) = lictor.page("/ready").await?;
            println!("/ready: {status} {text}");
            ensure!(status == 200, "the leaf still counts, and /ready is {status} {text}");
        }
        Ok(())
    }

    /// Everything works again, within a few seconds.
    async fn recovers(&mut self, live: Option<&mut Live>, limit: Duration) -> Result<()> {
        let back = Instant::now();
        wait::until("a new connection in", limit, || self.lets_in()).await?;
        println!("back: a new connection in after {:?}", back.elapsed());
        wait::until("a new connection out", limit, || self.goes_out()).await?;
        println!("back: a new connection out after {:?}", back.elapsed());
        if let Some(live) = live {
            live.goes_on().await?;
        }
        for lictor in &mut self.lictors {
            lictor.ready_within(limit).await?;
        }
        println!("back: /ready after {:?}", back.elapsed());
        Ok(())
    }
}

async fn register(agent: &Agent, api: &Sidecar, web: &Sidecar, db: &Server) -> Result<()> {
    api.register(agent).await?;
    web.register(agent).await?;
    add_instance(agent, "db", "db-1-sidecar-proxy", db.address()).await
}

async fn drill_an_agent_that_restarts_is_followed_in_seconds(world: Arc<World>) -> Result<()> {
    let mut scene = Scene::set(&world, Options { persistent: true, ..Options::default() }).await?;
    let mut live = scene.live().await?;
    scene.agent.stop().await?;
    scene.holds_on(&mut live, Duration::from_secs(60)).await?;
    scene.agent.start().await?;
    scene.recovers(Some(&mut live), SOON).await
}

async fn drill_a_frozen_agent_stops_nothing_that_is_known(world: Arc<World>) -> Result<()> {
    let mut scene = Scene::set(&world, Options::default()).await?;
    let mut live = scene.live().await?;
    scene.agent.freeze().await?;
    let held = scene.holds_on(&mut live, Duration::from_secs(90)).await;
    scene.agent.thaw().await?;
    held?;
    scene.recovers(Some(&mut live), SOON).await
}

async fn drill_an_agent_that_lost_its_state_is_followed_in_seconds(world: Arc<World>) -> Result<()> {
    let mut scene = Scene::set(&world, Options::default()).await?;
    let mut live = scene.live().await?;
    let domain = scene.agent.trust_domain().await?;
    scene.agent.restart_wiped().await?;
    let begun = Instant::now();
    ensure!(scene.agent.trust_domain().await? != domain, "it has kept its state");
    let peer = scene.agent.identity("shop").await?;
    scene.client = Client::new(peer);
    scene.db =
        Server::start(&ServerOptions::new(scene.agent.identity("db").await?, scene.agent.roots().await?)).await?;
    // The registrations are gone as well; until they are back the sidecars go on with what they know.
    wait::until("the new mesh, inbound, without a registration", SOON, || scene.lets_in()).await?;
    println!("the new CA serves {:?} after the agent is up, before any registration", begun.elapsed());
    live.goes_on().await.context("of the old mesh")?;
    register(&scene.agent, &scene.api, &scene.web, &scene.db).await?;
    scene.recovers(Some(&mut live), SOON).await
}

// ---- servers behind a client agent ------------------------------------------------------------------------------------

/// A client agent of our own beside a server agent.
struct ClientAgent {
    process: Process,
    address: SocketAddr,
}

impl ClientAgent {
    async fn join(world: &World, server: &Agent) -> Result<Self> {
        let Kind::Consul(consul) = &world.kind else {
            bail!(NotRun("a client agent is a second process beside the server".to_owned()));
        };
        let of_server = world.folder().join(format!("consul-{}", server.target().port())).join("agent.json");
        let of_server: Value = serde_json::from_str(&std::fs::read_to_string(of_server)?)?;
        let address = ports::free()?;
        let folder = world.folder().join("client");
        std::fs::create_dir_all(&folder)?;
        let mut config = of_server.clone();
        for key in ["bootstrap_expect", "connect", "performance"] {
            config.as_object_mut().context("no object")?.remove(key);
        }
        config["server"] = json!(false);
        config["node_name"] = json!("client");
        config["data_dir"] = json!(folder.join("data"));
        config["retry_join"] = json!([format!("127.0.0.1:{}", of_server["ports"]["serf_lan"])]);
        config["ports"]["http"] = json!(address.port());
        config["ports"]["serf_lan"] = json!(ports::free()?.port());
        config["ports"]["server"] = json!(ports::free()?.port());
        let path = folder.join("agent.json");
        std::fs::write(&path, config.to_string())?;
        let mut command = Command::new(&consul.path);
        command.arg("agent").arg("-config-file").arg(&path);
        let agent = Self { process: Process::start("consul (client)", &mut command)?, address };
        wait::until("a client agent that signs", Duration::from_secs(30), || async {
            agent.call(Method::GET, "/v1/agent/connect/ca/leaf/nobody", None).await.map(drop)
        })
        .await
        .with_context(|| agent.process.output().tail(10))?;
        Ok(agent)
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<String> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        let mut request = client.request(method, format!("http://{}{path}", self.address));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status == 200, "{path}: {status} {text}");
        Ok(text)
    }

    async fn register(&self, body: Value) -> Result<()> {
        self.call(Method::PUT, "/v1/agent/service/register", Some(body)).await.map(drop)
    }
}

fn instance(service: &str, address: SocketAddr) -> Value {
    json!({
        "Kind": "connect-proxy", "ID": format!("{service}-p"), "Name": format!("{service}-sidecar-proxy"),
        "Address": "127.0.0.1", "Port": address.port(), "Proxy": { "DestinationServiceName": service },
    })
}

async fn drill_without_servers_the_client_agent_serves_on(world: Arc<World>) -> Result<()> {
    let server = world.agent_with(Options { persistent: true, ..Options::default() }).await?;
    let client = ClientAgent::join(&world, &server).await?;
    let app = App::echo().await?;
    let of_db = ServerOptions::new(server.identity("db").await?, server.roots().await?);
    let (db, cache) = (
        Server::start(&of_db).await?,
        Server::start(&ServerOptions::new(server.identity("cache").await?, server.roots().await?)).await?,
    );
    let mut api = Sidecar::new("api", app.address())?;
    let (local, unused) = (ports::free()?, ports::free()?);
    api.upstreams = vec![upstream("db", local.port()), upstream("cache", unused.port())];
    client.register(json!({ "ID": "api-1", "Name": "api", "Address": "127.0.0.1", "Port": app.port() })).await?;
    client.register(api.body()).await?;
    client.register(instance("db", db.address())).await?;
    client.register(instance("cache", cache.address())).await?;
    let setup = Setup::proxy(&world, "lictor", &server)?.env("CONSUL_HTTP_ADDR", client.address.to_string());
    let mut lictor = setup.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let (web, shop) = (Client::new(server.identity("web").await?), Client::new(server.identity("shop").await?));
    server.deny("shop", "api").await?;
    wait::until("an inbound connection", SOON, || async {
        app::echoes(&mut web.connect(api.public).await?, b"in").await
    })
    .await?;
    wait::until("an outbound connection", SOON, || async {
        app::echoes(&mut app::connect(local).await?, b"out").await
    })
    .await?;
    let mut live = web.connect(api.public).await?;
    app::echoes(&mut live, b"live").await?;

    server.stop().await?;
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    let (mut rounds, mut cold) = (0, String::new());
    while begun.elapsed() < Duration::from_secs(60) {
        app::echoes(&mut live, b"live").await.context("an open connection")?;
        let asked = Instant::now();
        app::echoes(&mut web.connect(api.public).await?, b"in").await.context("a new connection in, allowed")?;
        shop.is_refused(api.public).await.context("a new connection in, denied")?;
        app::echoes(&mut app::connect(local).await?, b"out").await.context("a new connection out")?;
        slowest = slowest.max(asked.elapsed());
        if rounds == 20 {
            let asked = Instant::now();
            let found = app::echoes(&mut app::connect(unused).await?, b"x").await;
            cold = format!("an upstream that was never used: {:?} after {:?}", found.is_ok(), asked.elapsed());
        }
        rounds += 1;
        let (status, text) = lictor.page("/ready").await?;
        ensure!(status == 200, "/ready turned {status}: {text}");
        wait::pass(Duration::from_millis(200)).await;
    }
    println!("60 s without servers: {rounds} rounds of in, denied in and out, the slowest {slowest:?}; {cold}");
    lictor.counted("denied", rounds).await.context("it is the agent that has refused")?;
    server.start().await?;
    let back = Instant::now();
    wait::until("the upstream that was never used", Duration::from_secs(30), || async {
        app::echoes(&mut app::connect(unused).await?, b"out").await
    })
    .await?;
    println!("the servers are back: the unused upstream works after {:?}", back.elapsed());
    server.allow("shop", "api").await?;
    let turned = Instant::now();
    wait::until("a change of policy", Duration::from_secs(60), || async {
        app::echoes(&mut shop.connect(api.public).await?, b"in").await
    })
    .await?;
    println!("a change of policy after that is followed after {:?}", turned.elapsed());
    app::echoes(&mut live, b"live").await
}

// ---- rotations and ages -----------------------------------------------------------------------------------------------

async fn drill_five_roots_in_a_row_heal_by_themselves(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::Echo).await?;
    let works = || async { app::echoes(&mut app::connect(pair.local).await?, b"new").await };
    wait::until("a way to api", SOON, works).await?;
    let mut lasting = app::connect(pair.local).await?;
    app::echoes(&mut lasting, b"before").await?;
    let begun = Instant::now();
    for _ in 0..5 {
        pair.api.agent.rotate_root().await?;
        app::echoes(&mut lasting, b"meanwhile").await.context("an open connection")?;
    }
    let rotated = begun.elapsed();
    // Nobody promises that both ends follow five rotations at the same pace; when both have, all is well.
    let (mut good, mut failed, mut last_failure) = (0_u32, 0_u32, None);
    while begun.elapsed() < Duration::from_secs(120) {
        match works().await {
            Ok(()) => good += 1,
            Err(_) => {
                failed += 1;
                last_failure = Some(begun.elapsed());
            }
        }
        app::echoes(&mut lasting, b"meanwhile").await.context("an open connection")?;
        wait::pass(Duration::from_millis(100)).await;
    }
    println!(
        "five rotations within {rotated:?}: {good} new connections, {failed} failed, the last {last_failure:?} after the first rotation"
    );
    ensure!(last_failure.is_none_or(|last| last < Duration::from_secs(75)), "it did not heal: {last_failure:?}");
    works().await
}

async fn drill_a_leaf_is_renewed_by_age_and_nobody_notices(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    // No agent takes less than an hour from an operator; this key, for Consul's own tests, lets it take less. Below ten
    // minutes it would renew without end. They count from a minute before the signing, so such a leaf has nine, and is
    // renewed five to eight after it was signed.
    let config = json!({ "LeafCertTTL": "10m", "IntermediateCertTTL": "8760h", "SkipValidate": true });
    agent.put("/v1/connect/ca/configuration", json!({ "Provider": "consul", "Config": config })).await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let mut lasting = Client::new(agent.identity("web").await?).connect(sidecar.public).await?;
    let mut seen = Vec::new();
    let begun = Instant::now();
    while seen.len() < 2 {
        ensure!(begun.elapsed() < Duration::from_secs(570), "not renewed");
        let leaf = lictor.json("/certs").await?["leaf"].clone();
        if seen.last() != Some(&leaf["serial"]) {
            println!("{:?}: the leaf {} is in use, {leaf}", begun.elapsed(), leaf["serial"]);
            seen.push(leaf["serial"].clone());
        }
        let client = Client::new(agent.identity("web").await?);
        app::echoes(&mut client.connect(sidecar.public).await?, b"new").await.context("a new connection")?;
        app::echoes(&mut lasting, b"lasting").await.context("an open connection")?;
        let (status, text) = lictor.page("/ready").await?;
        ensure!(status == 200, "/ready: {status} {text}");
        wait::pass(Duration::from_millis(500)).await;
    }
    ensure!(begun.elapsed() > Duration::from_secs(240), "that was no renewal by age: {:?}", begun.elapsed());
    lictor.lives()
}
