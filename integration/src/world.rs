//! What one case lives in: a kind of agent, a folder, the binary, and the arrangements that many cases share.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Result, bail};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Kind, Options},
    app::{self, App, Manner},
    libraries::Library,
    lictor::{Lictor, Setup},
    peer::{Client, Server, ServerOptions},
    ports,
    process::Output,
};

/// Why a case cannot be staged here; reported as not run, never as passed.
#[derive(Debug)]
pub(crate) struct NotRun(pub(crate) String);

impl std::fmt::Display for NotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRun {}

/// What the binaries of a case have written, by name.
pub(crate) type Outputs = Arc<Mutex<Vec<(String, Output)>>>;

pub(crate) struct World {
    pub(crate) kind: Kind,
    binary: PathBuf,
    libraries: Arc<[Library]>,
    folder: tempfile::TempDir,
    outputs: Outputs,
}

impl World {
    pub(crate) fn new(kind: Kind, binary: PathBuf, libraries: Arc<[Library]>) -> Result<Self> {
        Ok(Self { kind, binary, libraries, folder: tempfile::tempdir()?, outputs: Outputs::default() })
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// The binaries that are to meet each other; the one under test alone where no others were named.
    pub(crate) fn libraries(&self) -> &[Library] {
        &self.libraries
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn outputs(&self) -> Outputs {
        Arc::clone(&self.outputs)
    }

    /// Writes a file into the case's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    // ---- agents ---------------------------------------------------------------------------------------------------

    pub(crate) async fn agent(&self) -> Result<Agent> {
        self.agent_with(Options::default()).await
    }

    pub(crate) async fn agent_with(&self, options: Options) -> Result<Agent> {
        Agent::start_new(&self.kind, self, options).await
    }

    // ---- the binary -------------------------------------------------------------------------------------------------

    /// `lictor` with these arguments and nothing else.
    pub(crate) fn command(&self, args: &[&str]) -> Setup {
        Setup::new(self, "lictor", args)
    }

    /// `lictor proxy` beside an agent.
    pub(crate) fn proxy(&self, agent: &Agent) -> Result<Setup> {
        Setup::proxy(self, "lictor", agent)
    }

    // ---- arrangements -------------------------------------------------------------------------------------------------

    /// An agent, an application, and the sidecar of `api` in front of it, ready.
    pub(crate) async fn inbound(&self, manner: Manner) -> Result<Inbound> {
        self.inbound_with(manner, Options::default(), json!({}), &[]).await
    }

    /// The same with options of the agent, keys of the registration's `Proxy.Config`, and variables.
    pub(crate) async fn inbound_with(
        &self,
        manner: Manner,
        options: Options,
        config: Value,
        env: &[(&str, &str)],
    ) -> Result<Inbound> {
        let acl = options.acl.is_some();
        let agent = self.agent_with(options).await?;
        let app = App::start(manner).await?;
        let mut sidecar = Sidecar::new("api", app.address())?;
        sidecar.config = config;
        sidecar.register(&agent).await?;
        let mut setup = self.proxy(&agent)?.args(&["-sidecar-for", &sidecar.service_id()]);
        if acl {
            setup = setup.env("CONSUL_HTTP_TOKEN", crate::agent::MANAGEMENT);
        }
        for (name, value) in env {
            setup = setup.env(name, value);
        }
        let mut lictor = setup.start()?;
        lictor.ready().await?;
        Ok(Inbound { agent, app, sidecar, lictor })
    }

    /// An agent and the sidecar of `web`, whose application reaches `api` at a local port. No instance of `api` yet.
    pub(crate) async fn outbound(&self) -> Result<Outbound> {
        self.outbound_with(Options::default(), json!({}), &[]).await
    }

    /// The same with options of the agent, keys of the upstream, and variables.
    pub(crate) async fn outbound_with(&self, options: Options, extra: Value, env: &[(&str, &str)]) -> Result<Outbound> {
        let acl = options.acl.is_some();
        let agent = self.agent_with(options).await?;
        let mut sidecar = Sidecar::new("web", ports::free()?)?;
        let local = ports::free()?;
        let mut upstream = upstream("api", local.port());
        merge(&mut upstream, extra);
        sidecar.upstreams.push(upstream);
        sidecar.register(&agent).await?;
        let mut setup = self.proxy(&agent)?.args(&["-sidecar-for", &sidecar.service_id()]);
        if acl {
            setup = setup.env("CONSUL_HTTP_TOKEN", crate::agent::MANAGEMENT);
        }
        for (name, value) in env {
            setup = setup.env(name, value);
        }
        let mut lictor = setup.start()?;
        lictor.ready().await?;
        Ok(Outbound { agent, sidecar, local, lictor })
    }

    /// `web` and `api`, each with a sidecar of ours: what is sent to `local` arrives at the application.
    pub(crate) async fn pair(&self, manner: Manner) -> Result<Pair> {
        let api = self.inbound(manner).await?;
        let mut sidecar = Sidecar::new("web", ports::free()?)?;
        let local = ports::free()?;
        sidecar.upstreams.push(upstream("api", local.port()));
        sidecar.register(&api.agent).await?;
        let setup = Setup::proxy(self, "lictor of web", &api.agent)?;
        let mut web = setup.args(&["-sidecar-for", &sidecar.service_id()]).start()?;
        web.ready().await?;
        Ok(Pair { api, web, local })
    }
}

/// An upstream of a registration.
pub(crate) fn upstream(name: &str, port: u16) -> Value {
    json!({ "DestinationType": "service", "DestinationName": name, "LocalBindPort": port })
}

/// Puts the keys of one object into another.
pub(crate) fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

/// A service and the registration of its sidecar.
pub(crate) struct Sidecar {
    pub(crate) name: String,
    pub(crate) app: SocketAddr,
    pub(crate) public: SocketAddr,
    pub(crate) upstreams: Vec<Value>,
    pub(crate) config: Value,
}

impl Sidecar {
    pub(crate) fn new(name: &str, app: SocketAddr) -> Result<Self> {
        Ok(Self { name: name.to_owned(), app, public: ports::free()?, upstreams: Vec::new(), config: json!({}) })
    }

    pub(crate) fn service_id(&self) -> String {
        format!("{}-1", self.name)
    }

    pub(crate) fn proxy_id(&self) -> String {
        format!("{}-1-sidecar-proxy", self.name)
    }

    /// The body of the sidecar's own registration. It has no check, so that it is healthy at once.
    pub(crate) fn body(&self) -> Value {
        json!({
            "Kind": "connect-proxy",
            "ID": self.proxy_id(),
            "Name": format!("{}-sidecar-proxy", self.name),
            "Address": self.public.ip().to_string(),
            "Port": self.public.port(),
            "Proxy": {
                "DestinationServiceName": self.name,
                "DestinationServiceID": self.service_id(),
                "LocalServiceAddress": self.app.ip().to_string(),
                "LocalServicePort": self.app.port(),
                "Config": self.config,
                "Upstreams": self.upstreams,
            },
        })
    }

    /// Registers the service and its sidecar.
    pub(crate) async fn register(&self, agent: &Agent) -> Result<()> {
        let service = json!({
            "ID": self.service_id(), "Name": self.name, "Address": "127.0.0.1", "Port": self.app.port(),
        });
        agent.register(service).await?;
        self.update(agent).await
    }

    /// Registers the sidecar again, as it stands now.
    pub(crate) async fn update(&self, agent: &Agent) -> Result<()> {
        agent.register(self.body()).await
    }
}

/// The sidecar of `api` in front of an application.
pub(crate) struct Inbound {
    pub(crate) agent: Agent,
    pub(crate) app: App,
    pub(crate) sidecar: Sidecar,
    pub(crate) lictor: Lictor,
}

impl Inbound {
    pub(crate) fn public(&self) -> SocketAddr {
        self.sidecar.public
    }

    /// A client with the leaf of a service.
    pub(crate) async fn client(&self, service: &str) -> Result<Client> {
        Ok(Client::new(self.agent.identity(service).await?))
    }

    /// A good client is served.
    pub(crate) async fn serves(&self) -> Result<()> {
        let mut stream = self.client("web").await?.connect(self.public()).await?;
        app::echoes(&mut stream, b"good").await
    }

    /// This client is refused, and the application has seen nothing of it.
    pub(crate) async fn refuses(&self, client: &Client) -> Result<String> {
        let (connections, bytes) = (self.app.accepted(), self.app.bytes());
        let seen = client.is_refused(self.public()).await?;
        if self.app.accepted() != connections || self.app.bytes() != bytes {
            bail!("the application saw a refused connection");
        }
        Ok(seen)
    }

    /// The same, and authorize has not been asked.
    pub(crate) async fn refuses_unasked(&self, client: &Client) -> Result<String> {
        let asked = self.agent.authorizes();
        let seen = self.refuses(client).await?;
        if self.agent.authorizes() != asked {
            bail!("authorize was asked about a certificate that does not pass");
        }
        Ok(seen)
    }
}

/// The sidecar of `web` with an upstream to `api`.
pub(crate) struct Outbound {
    pub(crate) agent: Agent,
    pub(crate) sidecar: Sidecar,
    pub(crate) local: SocketAddr,
    pub(crate) lictor: Lictor,
}

impl Outbound {
    /// A sidecar of `api` made by hand, with its own good leaf, in the catalog.
    pub(crate) async fn server(&self) -> Result<Server> {
        let server = Server::start(&self.good().await?).await?;
        self.add("api-sidecar-proxy-1", server.address()).await?;
        Ok(server)
    }

    /// What such a server needs.
    pub(crate) async fn good(&self) -> Result<ServerOptions> {
        Ok(ServerOptions::new(self.agent.identity("api").await?, self.agent.roots().await?))
    }

    /// Puts an instance of `api` into the catalog.
    pub(crate) async fn add(&self, id: &str, address: SocketAddr) -> Result<()> {
        add_instance(&self.agent, "api", id, address).await
    }

    /// The application connects, and what it sends comes back.
    pub(crate) async fn works(&self) -> Result<()> {
        let mut stream = app::connect(self.local).await?;
        app::echoes(&mut stream, b"good").await
    }

    /// The same, as soon as the sidecar has learned of a change in the catalog.
    pub(crate) async fn works_soon(&self) -> Result<()> {
        crate::wait::until("a way to the upstream", crate::wait::SOON, || self.works()).await
    }

    /// The application connects, sends, and is closed without a byte.
    pub(crate) async fn fails(&self) -> Result<()> {
        app::is_closed(self.local).await
    }
}

/// Registers somebody's sidecar, without a check.
pub(crate) async fn add_instance(agent: &Agent, service: &str, id: &str, address: SocketAddr) -> Result<()> {
    let body = json!({
        "Kind": "connect-proxy", "ID": id, "Name": format!("{service}-sidecar-proxy"),
        "Address": address.ip().to_string(), "Port": address.port(),
        "Proxy": { "DestinationServiceName": service },
    });
    agent.register(body).await
}

/// `web` and `api` with a sidecar each.
pub(crate) struct Pair {
    pub(crate) api: Inbound,
    pub(crate) web: Lictor,
    pub(crate) local: SocketAddr,
}
