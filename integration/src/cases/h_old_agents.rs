//! Group H on the real thing: agents of Consul 1.2 to 1.5, which start the binary themselves as their managed proxy,
//! keep it alive and stop it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Kind, Options, Version},
    app::{self, App, Manner},
    peer::Client,
    ports,
    runner::{Case, case},
    wait::{self, LONG},
    world::{NotRun, World, merge},
};

const STARTS_NOTHING: &str = "the embedded agent starts no process";

/// A real agent of the age of managed proxies.
macro_rules! old {
    ($name:ident) => {
        case!($name).real(STARTS_NOTHING).since(1, 2).before(1, 6)
    };
}

pub(crate) const CASES: &[Case] = &[
    old!(g9_an_old_agent_stops_its_managed_proxy_within_five_seconds),
    old!(h1_an_old_agent_starts_the_binary_and_it_serves),
    old!(h1_an_old_agent_with_access_control_starts_it_and_it_serves).since(1, 3),
    old!(h2_an_old_agent_gives_the_documented_variables_through_a_script),
    old!(h3_upstreams_of_an_old_agent_carry_calls),
    old!(h3_upstreams_of_an_old_agent_with_access_control_carry_calls).since(1, 3),
    old!(h4_an_old_agent_gives_addresses_and_they_are_honoured),
    old!(h5_the_proxy_token_of_an_old_agent_is_what_is_sent),
    old!(h5_the_proxy_token_of_an_old_agent_with_access_control_is_what_is_sent),
    old!(h6_a_reload_of_an_old_agent_is_followed),
    old!(h6_a_reload_of_an_old_agent_with_access_control_is_followed).since(1, 3),
    old!(h6_a_new_registration_at_an_old_agent_is_followed),
    old!(h8_an_old_agent_of_1_2_refuses_its_own_proxy_token_and_is_told).before(1, 3),
];

/// The token of the services where access control is on.
const SERVICE_TOKEN: &str = "77777777-7777-7777-7777-777777777777";

/// An old agent and the folder in which its services are defined.
struct Scene {
    world: Arc<World>,
    version: Version,
    agent: Agent,
    folder: PathBuf,
    acl: bool,
    /// Last, so that it is dropped after the agent, which would start again what ends.
    started: Started,
}

/// The processes that the agent has started. They are in sessions of their own and outlive it.
struct Started {
    pids: PathBuf,
    binary: PathBuf,
}

impl Started {
    /// Those that still run. A process that has another binary by now only has a number that is used again.
    fn running(&self) -> Vec<Pid> {
        let text = fs::read_to_string(&self.pids).unwrap_or_default();
        let pids = text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?));
        pids.filter(|pid| {
            let exe = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
            exe.is_ok_and(|exe| exe == self.binary || exe.ends_with("dash") || exe.ends_with("sh"))
        })
        .collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for pid in self.running() {
            // It may have ended in between, which is all that is wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A service whose sidecar the agent starts.
struct Service {
    name: &'static str,
    app: App,
    public: SocketAddr,
    log: PathBuf,
    variables: PathBuf,
    script: PathBuf,
    config: Value,
    upstreams: Vec<(String, u16)>,
}

impl Scene {
    async fn start(world: Arc<World>, acl: bool) -> Result<Self> {
        let Kind::Consul(consul) = &world.kind else {
            bail!(NotRun("an agent in a container cannot start a binary of this machine".to_owned()));
        };
        let version = consul.version;
        let folder = world.folder().join("services");
        fs::create_dir_all(&folder)?;
        let agent = world
            .agent_with(Options {
                acl: acl.then_some("deny"),
                config_folder: Some(folder.clone()),
                ..Options::default()
            })
            .await?;
        let started = Started { pids: world.folder().join("pids"), binary: fs::canonicalize(world.binary())? };
        let scene = Self { world, version, agent, folder, acl, started };
        if acl {
            scene.make_token().await?;
        }
        Ok(scene)
    }

    /// One token for the services and for the proxies that the agent registers beside them.
    async fn make_token(&self) -> Result<()> {
        let names = ["api", "api-proxy", "db", "db-proxy"];
        if self.version >= Version(1, 4) {
            return self.agent.token(SERVICE_TOKEN, &names).await;
        }
        let mut rules = "service \"\" { policy = \"read\" }\nnode \"\" { policy = \"read\" }\n".to_owned();
        for name in names {
            rules.push_str(&format!("service \"{name}\" {{ policy = \"write\" }}\n"));
        }
        let token = json!({ "ID": SERVICE_TOKEN, "Name": "services", "Type": "client", "Rules": rules });
        self.agent.put("/v1/acl/create", token).await.map(drop)
    }

    /// A service whose proxy runs `lictor proxy` after the lines of `before`.
    async fn service(&self, name: &'static str, before: &str) -> Result<Service> {
        self.service_with(name, before, "", Manner::Echo).await
    }

    async fn service_with(&self, name: &'static str, before: &str, flags: &str, manner: Manner) -> Result<Service> {
        let public = ports::free()?;
        let file = |end: &str| self.world.folder().join(format!("{name}.{end}"));
        let service = Service {
            name,
            app: App::start(manner).await?,
            public,
            log: file("log"),
            variables: file("env"),
            script: file("sh"),
            config: json!({ "bind_address": "127.0.0.1", "bind_port": public.port() }),
            upstreams: Vec::new(),
        };
        let script = format!(
            "#!/bin/sh\necho $$ >>'{}'\nenv >>'{}'\n{before}\nexec '{}' proxy -log-level debug {flags} >>'{}' 2>&1\n",
            self.started.pids.display(),
            service.variables.display(),
            self.world.binary().display(),
            service.log.display(),
        );
        fs::write(&service.script, script)?;
        fs::set_permissions(&service.script, fs::Permissions::from_mode(0o755))?;
        Ok(service)
    }

    /// The definition as a configuration file has it.
    fn definition(&self, service: &Service) -> Value {
        let mut config = service.config.clone();
        let upstreams: Vec<Value> = service
            .upstreams
            .iter()
            .map(|(name, port)| json!({ "destination_name": name, "local_bind_port": port }))
            .collect();
        let mut proxy = json!({ "exec_mode": "daemon", "command": [service.script] });
        if self.version < Version(1, 3) {
            merge(&mut config, json!({ "upstreams": upstreams }));
        } else {
            merge(&mut proxy, json!({ "upstreams": upstreams }));
        }
        merge(&mut proxy, json!({ "config": config }));
        let mut definition = json!({
            "id": format!("{}-1", service.name), "name": service.name, "address": "127.0.0.1",
            "port": service.app.port(), "connect": { "proxy": proxy },
        });
        if self.acl {
            merge(&mut definition, json!({ "token": SERVICE_TOKEN }));
        }
        definition
    }

    /// Writes the definition of the service and has the agent read it.
    async fn define(&self, service: &Service) -> Result<()> {
        let text = json!({ "service": self.definition(service) }).to_string();
        fs::write(self.file_of(service), text)?;
        self.agent.reload().await
    }

    /// Takes the service out of the configuration.
    async fn remove(&self, service: &Service) -> Result<()> {
        fs::remove_file(self.file_of(service))?;
        self.agent.reload().await
    }

    /// Old agents keep intentions under numbers, not names.
    async fn intention(&self, source: &str, destination: &str, action: &str) -> Result<()> {
        let body = json!({
            "SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action,
        });
        let known = self.agent.get("/v1/connect/intentions").await?;
        let known = known.as_array().and_then(|all| {
            all.iter().find(|one| one["SourceName"] == source && one["DestinationName"] == destination)
        });
        let (method, path) = match known.and_then(|one| one["ID"].as_str()) {
            Some(id) => (Method::PUT, format!("/v1/connect/intentions/{id}")),
            None => (Method::POST, "/v1/connect/intentions".to_owned()),
        };
        let (status, text) = self.agent.call(method, &path, Some(body)).await?;
        ensure!(status == 200, "intention: {status} {text}");
        Ok(())
    }

    async fn serves(&self, service: &Service) -> Result<()> {
        let client = Client::new(self.agent.identity("web").await?);
        wait::within("an answer", LONG, async {
            app::echoes(&mut client.connect(service.public).await?, b"managed").await
        })
        .await?
    }

    /// The sidecar that the agent has started serves `web`.
    async fn serves_soon(&self, service: &Service) -> Result<()> {
        let served = wait::until("service by the managed proxy", LONG, || self.serves(service)).await;
        served.with_context(|| service.says())
    }

    /// What the agent's own TCP check of its proxy says.
    async fn passes(&self, service: &Service) -> Result<()> {
        let id = format!("{}-1-proxy", service.name);
        wait::until("a passing check", LONG, || async {
            let status = self.agent.check_of(&id).await?;
            ensure!(status == "passing", "{status}");
            Ok(())
        })
        .await
    }

    /// Removes the services and waits until the agent has stopped what it had started.
    async fn end(&self, services: &[&Service], outcome: Result<()>) -> Result<()> {
        let said = || services.iter().map(|service| service.says()).collect::<Vec<_>>().join("\n");
        for service in services {
            fs::remove_file(self.file_of(service)).with_context(said)?;
        }
        let ended = match self.agent.reload().await {
            Ok(()) => self.none_is_left().await,
            Err(error) => Err(error),
        };
        outcome.and(ended).with_context(said)
    }

    async fn none_is_left(&self) -> Result<()> {
        wait::until("the end of the managed proxies", LONG, || async {
            let running = self.started.running();
            ensure!(running.is_empty(), "{} still run", running.len());
            Ok(())
        })
        .await
    }

    fn file_of(&self, service: &Service) -> PathBuf {
        self.folder.join(format!("{}.json", service.name))
    }
}

impl Service {
    /// The end of what its proxy has written, for messages.
    fn says(&self) -> String {
        let text = self.written();
        let lines: Vec<&str> = text.lines().collect();
        format!("the output of the proxy of {}:\n{}", self.name, lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    fn written(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line of its log.
    async fn line(&self, part: &str) -> Result<String> {
        wait::until(&format!("a line with {part}"), LONG, || async {
            let text = self.written();
            let line = text.lines().find(|line| line.contains(part)).with_context(|| self.says())?;
            Ok(line.to_owned())
        })
        .await
    }

    /// A variable that the agent gave to the last process that it has started.
    fn variable(&self, name: &str) -> Result<String> {
        let text = read(&self.variables)?;
        let found = text.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Ok(found.with_context(|| format!("the agent does not set {name}"))?.to_owned())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

// ---- H1 -------------------------------------------------------------------------------------------------------------

async fn h1_an_old_agent_starts_the_binary_and_it_serves(world: Arc<World>) -> Result<()> {
    starts_and_serves(Scene::start(world, false).await?).await
}

async fn h1_an_old_agent_with_access_control_starts_it_and_it_serves(world: Arc<World>) -> Result<()> {
    starts_and_serves(Scene::start(world, true).await?).await
}

async fn starts_and_serves(scene: Scene) -> Result<()> {
    let api = scene.service("api", "").await?;
    scene.define(&api).await?;
    let outcome = async {
        if scene.acl {
            scene.intention("web", "api", "allow").await?;
        }
        scene.serves_soon(&api).await?;
        scene.passes(&api).await?;
        // The check of the agent opens and closes the port without a byte, and no application hears of it.
        ensure!(api.app.accepted() >= 1, "the application was not dialled");
        scene.intention("web", "api", "deny").await?;
        refused(&scene, &api).await?;
        scene.intention("web", "api", "allow").await?;
        scene.serves_soon(&api).await
    };
    let outcome = outcome.await;
    scene.end(&[&api], outcome).await
}

/// `web` is refused soon, and then the application sees nothing of it.
async fn refused(scene: &Scene, service: &Service) -> Result<()> {
    let client = Client::new(scene.agent.identity("web").await?);
    wait::until("the deny", LONG, || async { client.is_refused(service.public).await.map(drop) }).await?;
    let before = service.app.accepted();
    client.is_refused(service.public).await?;
    ensure!(service.app.accepted() == before, "the application saw a refused connection");
    Ok(())
}

// ---- H2 -------------------------------------------------------------------------------------------------------------

/// No agent sets the variables of the documentation, so a script puts them in the place of the others.
const DOCUMENTED: &str = "CONSUL_PROXY_ID=$CONNECT_PROXY_ID CONSUL_PROXY_TOKEN=$CONNECT_PROXY_TOKEN\n\
                          export CONSUL_PROXY_ID CONSUL_PROXY_TOKEN\nunset CONNECT_PROXY_ID CONNECT_PROXY_TOKEN";

async fn h2_an_old_agent_gives_the_documented_variables_through_a_script(world: Arc<World>) -> Result<()> {
    let scene = Scene::start(world, false).await?;
    let api = scene.service("api", DOCUMENTED).await?;
    scene.define(&api).await?;
    let outcome = async {
        scene.serves_soon(&api).await?;
        let text = read(&api.variables)?;
        ensure!(!text.contains("CONSUL_PROXY_"), "the agent sets them itself: {text}");
        Ok(())
    };
    let outcome = outcome.await;
    scene.end(&[&api], outcome).await
}

// ---- H3 -------------------------------------------------------------------------------------------------------------

async fn h3_upstreams_of_an_old_agent_carry_calls(world: Arc<World>) -> Result<()> {
    upstreams_carry_calls(Scene::start(world, false).await?).await
}

async fn h3_upstreams_of_an_old_agent_with_access_control_carry_calls(world: Arc<World>) -> Result<()> {
    upstreams_carry_calls(Scene::start(world, true).await?).await
}

/// Two managed proxies, so that a call passes both of them.
async fn upstreams_carry_calls(scene: Scene) -> Result<()> {
    let db = scene.service("db", "").await?;
    let mut api = scene.service("api", "").await?;
    let local = ports::free()?;
    api.upstreams.push(("db".to_owned(), local.port()));
    scene.define(&db).await?;
    scene.define(&api).await?;
    let outcome = async {
        scene.intention("api", "db", "allow").await?;
        wait::until("a way to db", LONG, || call(local)).await?;
        scene.intention("api", "db", "deny").await?;
        wait::until("the deny", LONG, || async {
            let before = db.app.bytes();
            ensure!(call(local).await.is_err() && db.app.bytes() == before, "still served");
            Ok(())
        })
        .await
    };
    let outcome = outcome.await;
    scene.end(&[&api, &db], outcome).await
}

async fn call(local: SocketAddr) -> Result<()> {
    app::echoes(&mut app::connect(local).await?, b"through two managed proxies").await
}

// ---- H4 -------------------------------------------------------------------------------------------------------------

async fn h4_an_old_agent_gives_addresses_and_they_are_honoured(world: Arc<World>) -> Result<()> {
    let scene = Scene::start(world, false).await?;
    let elsewhere = App::start_at(format!("127.0.0.33:{}", ports::free()?.port()).parse()?, Manner::Echo).await?;
    let mut api = scene.service("api", "").await?;
    api.public = SocketAddr::from(([127, 0, 0, 44], api.public.port()));
    merge(
        &mut api.config,
        json!({ "bind_address": "127.0.0.44", "local_service_address": elsewhere.address().to_string() }),
    );
    scene.define(&api).await?;
    let outcome = async {
        scene.serves_soon(&api).await?;
        ensure!(elsewhere.accepted() > 0 && api.app.accepted() == 0, "another application was dialled");
        let other = SocketAddr::from(([127, 0, 0, 1], api.public.port()));
        ensure!(app::connect(other).await.is_err(), "another address is listened on as well");
        Ok(())
    };
    let outcome = outcome.await;
    scene.end(&[&api], outcome).await
}

// ---- H5 -------------------------------------------------------------------------------------------------------------

async fn h5_the_proxy_token_of_an_old_agent_is_what_is_sent(world: Arc<World>) -> Result<()> {
    proxy_token_is_sent(Scene::start(world, false).await?).await
}

async fn h5_the_proxy_token_of_an_old_agent_with_access_control_is_what_is_sent(world: Arc<World>) -> Result<()> {
    proxy_token_is_sent(Scene::start(world, true).await?).await
}

async fn proxy_token_is_sent(scene: Scene) -> Result<()> {
    // The agent names its own address; the calls are to pass where they are counted.
    let here = format!("CONSUL_HTTP_ADDR={}\nexport CONSUL_HTTP_ADDR", scene.agent.address());
    let api = scene.service("api", &here).await?;
    scene.define(&api).await?;
    let outcome = async {
        api.line("listening").await?;
        let _ = scene.serves(&api).await;
        let (own, general) = (api.variable("CONNECT_PROXY_TOKEN")?, api.variable("CONSUL_HTTP_TOKEN")?);
        ensure!(!own.is_empty() && general.is_empty(), "the agent gives {own:?} and {general:?}");
        let asked = scene.agent.requests("/v1/");
        ensure!(asked.iter().any(|head| head.contains("authorize")), "authorize was not asked: {asked:?}");
        let without = asked.iter().find(|head| !head.contains(&own));
        ensure!(without.is_none(), "a call without the proxy's token: {without:?}");
        Ok(())
    };
    let outcome = outcome.await;
    scene.end(&[&api], outcome).await
}

// ---- H6 -------------------------------------------------------------------------------------------------------------

async fn h6_a_reload_of_an_old_agent_is_followed(world: Arc<World>) -> Result<()> {
    reload_is_followed(Scene::start(world, false).await?).await
}

async fn h6_a_reload_of_an_old_agent_with_access_control_is_followed(world: Arc<World>) -> Result<()> {
    reload_is_followed(Scene::start(world, true).await?).await
}

async fn reload_is_followed(scene: Scene) -> Result<()> {
    let db = scene.service("db", "").await?;
    let mut api = scene.service("api", "").await?;
    scene.define(&db).await?;
    scene.define(&api).await?;
    let (first, second) = (ports::free()?, ports::free()?);
    let outcome = async {
        scene.intention("web", "api", "allow").await?;
        scene.intention("web", "db", "allow").await?;
        scene.intention("api", "db", "allow").await?;
        scene.serves_soon(&api).await?;
        scene.serves_soon(&db).await?;
        api.upstreams.push(("db".to_owned(), first.port()));
        scene.define(&api).await?;
        wait::until("a way to db", LONG, || call(first)).await?;
        let moved = App::echo().await?;
        merge(&mut api.config, json!({ "local_service_address": moved.address().to_string() }));
        api.upstreams = vec![("db".to_owned(), second.port())];
        scene.define(&api).await?;
        wait::until("the other way to db", LONG, || call(second)).await?;
        app::not_listening(first).await?;
        wait::until("the new address of the application", LONG, || async {
            scene.serves(&api).await?;
            ensure!(moved.accepted() > 0, "not yet");
            Ok(())
        })
        .await?;
        // Some agents end the old process and start a new one with a new token; one way or the other it passes.
        scene.passes(&api).await
    };
    let outcome = outcome.await;
    scene.end(&[&api, &db], outcome).await
}

async fn h6_a_new_registration_at_an_old_agent_is_followed(world: Arc<World>) -> Result<()> {
    let scene = Scene::start(world, false).await?;
    let mut api = scene.service("api", "").await?;
    let outcome = async {
        scene.agent.register(registration(scene.definition(&api))).await?;
        scene.serves_soon(&api).await?;
        let moved = App::echo().await?;
        merge(&mut api.config, json!({ "local_service_address": moved.address().to_string() }));
        scene.agent.register(registration(scene.definition(&api))).await?;
        wait::until("the new address of the application", LONG, || async {
            scene.serves(&api).await?;
            ensure!(moved.accepted() > 0, "not yet");
            Ok(())
        })
        .await
    };
    let outcome = outcome.await;
    scene.agent.deregister("api-1").await?;
    scene.none_is_left().await?;
    outcome.with_context(|| api.says())
}

/// The same definition as the HTTP API wants it: other letters, same words.
fn registration(definition: Value) -> Value {
    let proxy = &definition["connect"]["proxy"];
    let mut managed = json!({ "ExecMode": proxy["exec_mode"], "Command": proxy["command"], "Config": proxy["config"] });
    if let Some(upstreams) = proxy["upstreams"].as_array().filter(|upstreams| !upstreams.is_empty()) {
        merge(&mut managed, json!({ "Upstreams": upstreams }));
    }
    json!({
        "ID": definition["id"], "Name": definition["name"], "Address": definition["address"],
        "Port": definition["port"], "Connect": { "Proxy": managed },
    })
}

// ---- H8 -------------------------------------------------------------------------------------------------------------

async fn h8_an_old_agent_of_1_2_refuses_its_own_proxy_token_and_is_told(world: Arc<World>) -> Result<()> {
    let scene = Scene::start(world, true).await?;
    let mut api = scene.service("api", "").await?;
    scene.define(&api).await?;
    let outcome = async {
        scene.intention("web", "api", "allow").await?;
        api.line("listening").await?;
        refused(&scene, &api).await?;
        api.app.untouched()?;
        refused(&scene, &api).await?;
        let line = api.line("does not accept the token that it gave this managed proxy").await?;
        ensure!(line.contains("-token-file"), "the line does not say what to do: {line}");
        let told = api.written().matches("does not accept the token that it gave").count();
        ensure!(told == 1, "told {told} times");
        let token = api.variable("CONNECT_PROXY_TOKEN")?;
        ensure!(!api.written().contains(&token), "the token is printed");
        Ok(())
    };
    let outcome = outcome.await;
    scene.end(&[&api], outcome).await?;
    // What the line advises works: a token of the service's own in a file.
    let file = scene.world.file("token", SERVICE_TOKEN)?;
    api = scene.service_with("api", "", &format!("-token-file '{}'", file.display()), Manner::Echo).await?;
    scene.define(&api).await?;
    let outcome = scene.serves_soon(&api).await;
    scene.end(&[&api], outcome).await
}

// ---- G9 -------------------------------------------------------------------------------------------------------------

async fn g9_an_old_agent_stops_its_managed_proxy_within_five_seconds(world: Arc<World>) -> Result<()> {
    let scene = Scene::start(world, false).await?;
    let api = scene.service_with("api", "", "", Manner::Hand).await?;
    scene.define(&api).await?;
    let outcome = async {
        wait::until("the listener", LONG, || async { app::connect(api.public).await.map(drop) }).await?;
        // A connection that does not end by itself is drained for as long as the agent's patience allows.
        let mut open = Client::new(scene.agent.identity("web").await?).connect(api.public).await?;
        tokio::io::AsyncWriteExt::write_all(&mut open, b"open").await?;
        tokio::io::AsyncWriteExt::flush(&mut open).await?;
        let mut application = api.app.next().await?;
        scene.remove(&api).await?;
        app::is_reset(&mut application).await?;
        // It says this at its end; whoever is killed after the five seconds of the agent's patience says nothing more.
        let line = api.line("stopped").await?;
        ensure!(!line.contains("second signal"), "{line}");
        scene.none_is_left().await
    };
    let outcome = outcome.await;
    outcome.with_context(|| api.says())
}
