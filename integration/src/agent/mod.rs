//! The agent that a case runs against: the embedded one, a real `consul`, or one in a container. All are driven over
//! the same HTTP API, so that a case is written once.

mod consul;
mod container;
mod embedded;
mod federation;
mod tamper;
mod tap;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use lictor_agent::{Access, Dialect, Handle, Token};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    forge::Forge,
    peer::Identity,
    wait::{self, SOON},
    world::{NotRun, World},
};

pub(crate) use consul::{Consul, Version};
pub(crate) use container::Image;
use embedded::Embedded;
pub(crate) use federation::Federation;
use tamper::Rule;
pub(crate) use tamper::Tamper;
use tap::Tap;

/// The token that may do everything, where access control is on.
pub(crate) const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";

/// Which agent a case runs against.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// The embedded development agent, in this process.
    Embedded,
    /// A real `consul` started from this binary.
    Consul(Consul),
    /// A real `consul` in a container of this image.
    Container(Image),
}

impl Kind {
    pub(crate) fn is_real(&self) -> bool {
        !matches!(self, Self::Embedded)
    }

    /// Which Consul it is, where it is a real one.
    pub(crate) fn version(&self) -> Option<Version> {
        match self {
            Self::Embedded => None,
            Self::Consul(consul) => Some(consul.version),
            Self::Container(image) => Some(image.version),
        }
    }
}

/// How an agent is to start.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// Access control, with this policy where no rule matches (`allow`, `deny`).
    pub(crate) acl: Option<&'static str>,
    /// Also serve the API on this unix socket.
    pub(crate) unix_socket: Option<PathBuf>,
    /// Also serve the API over TLS with these files, and ask clients for a certificate.
    pub(crate) https: Option<Https>,
    /// The embedded agent speaks as Consul 1.10 did.
    pub(crate) old_dialect: bool,
    /// State outlives [`Agent::stop`]. The embedded agent's always does.
    pub(crate) persistent: bool,
    /// Connections that one address may have open; `None` for Consul's 200.
    pub(crate) connection_limit: Option<usize>,
    /// Other datacenters that `dc=` may name (embedded only).
    pub(crate) other_datacenters: Vec<String>,
    /// The CA's key is at hand from the start: what [`Agent::forge`] signs is of the same root as all else.
    pub(crate) own_root: bool,
    /// Do not start yet; [`Agent::start`] does.
    pub(crate) later: bool,
    /// A folder of more configuration files, which [`Agent::reload`] reads again (a `consul` process only).
    pub(crate) config_folder: Option<PathBuf>,
    /// More keys of the agent's configuration file; objects are merged (a `consul` process only).
    pub(crate) more: Value,
}

/// Files for HTTPS.
#[derive(Clone)]
pub(crate) struct Https {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A running agent. What the sidecar under test sees of it goes through a [`Tap`] that counts.
pub(crate) struct Agent {
    inner: Inner,
    client: reqwest::Client,
    tap: Tap,
    acl: bool,
    /// Intentions are written by the names of their services (1.9 and later), not by IDs.
    names_intentions: bool,
    /// Of a real agent's root that is ours from the start.
    own_root: Option<Forge>,
    accessors: tokio::sync::Mutex<Vec<(String, String)>>,
    https: Option<SocketAddr>,
    _front: Option<crate::peer::TlsFront>,
}

enum Inner {
    Embedded(Box<Embedded>),
    Consul(Box<tokio::sync::Mutex<consul::Running>>),
    Container(Box<container::Running>),
}

impl Agent {
    /// Starts an agent and waits until it signs certificates.
    pub(crate) async fn start_new(kind: &Kind, world: &World, options: Options) -> Result<Self> {
        let mut front = None;
        let mut https = None;
        let (inner, api) = match kind {
            Kind::Embedded => {
                let embedded = Embedded::start(&options).await?;
                let api = embedded.address();
                if let Some(files) = &options.https {
                    let begun = crate::peer::TlsFront::start(files, api).await?;
                    https = Some(begun.address());
                    front = Some(begun);
                }
                (Inner::Embedded(Box::new(embedded)), api)
            }
            Kind::Consul(consul) => {
                let mut running = consul::Running::new(consul, world, &options)?;
                if !options.later {
                    running.start()?;
                }
                https = running.https();
                let api = running.api();
                (Inner::Consul(Box::new(tokio::sync::Mutex::new(running))), api)
            }
            Kind::Container(image) => {
                if options.https.is_some()
                    || options.unix_socket.is_some()
                    || options.persistent
                    || options.config_folder.is_some()
                {
                    bail!(NotRun("a container shares no files with the tests and keeps no state".to_owned()));
                }
                let running = container::Running::start(image, &options).await?;
                let api = running.api();
                (Inner::Container(Box::new(running)), api)
            }
        };
        let tap = Tap::start(api).await?;
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        let acl = options.acl.is_some();
        let accessors = tokio::sync::Mutex::default();
        let names_intentions = !matches!(kind, Kind::Consul(consul) if consul.version < Version(1, 9));
        let mut agent =
            Self { inner, client, tap, acl, names_intentions, own_root: None, accessors, https, _front: front };
        if options.later {
            agent.stop().await?;
        } else {
            agent.ready().await?;
        }
        if options.own_root && kind.is_real() {
            agent.own_root = Some(agent.forge().await?);
        }
        Ok(agent)
    }

    async fn ready(&self) -> Result<()> {
        wait::until("an agent that signs", Duration::from_secs(30), || async {
            // Old agents answer before they have a CA, with no roots in it.
            let roots = self.get("/v1/agent/connect/ca/roots").await?;
            ensure!(roots["Roots"].as_array().is_some_and(|roots| !roots.is_empty()), "no CA yet");
            // A server that has only just become leader knows its node a moment later.
            let nodes = self.get("/v1/catalog/nodes").await?;
            ensure!(nodes.as_array().is_some_and(|nodes| !nodes.is_empty()), "no node yet");
            // Agents of 1.3 list their roots up to 15 s before they sign by them.
            self.get(&leaf_path("nobody")).await?;
            Ok(())
        })
        .await
    }

    // ---- where it is, for the sidecar under test ----------------------------------------------------------------

    /// `host:port` for `CONSUL_HTTP_ADDR`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.tap.address()
    }

    /// Where it serves HTTPS, where that was asked for.
    pub(crate) fn https(&self) -> Result<SocketAddr> {
        self.https.context("this agent was not asked to serve HTTPS")
    }

    /// The handle of the embedded agent, for cases that make it misbehave.
    pub(crate) fn handle(&self) -> Result<Handle> {
        match &self.inner {
            Inner::Embedded(embedded) => Ok(embedded.handle()),
            _ => bail!("only the embedded agent misbehaves on request"),
        }
    }

    /// What the sidecar has asked: heads of requests that contain `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        self.tap.requests(part)
    }

    /// How often authorize has been asked.
    pub(crate) fn authorizes(&self) -> usize {
        self.requests("/v1/agent/connect/authorize").len()
    }

    /// Connections that the sidecar has open, and the most it ever had.
    pub(crate) fn connections(&self) -> (usize, usize) {
        self.tap.connections()
    }

    /// Past the tap, for neighbours of the sidecar.
    pub(crate) fn target(&self) -> SocketAddr {
        self.tap.target()
    }

    /// Ends every connection of the sidecar to the agent; new ones are let in.
    pub(crate) async fn cut(&self) -> Result<()> {
        self.tap.open().await
    }

    /// All connections that the sidecar has opened so far.
    pub(crate) fn opened(&self) -> usize {
        self.tap.opened()
    }

    // ---- what the sidecar gets in place of the agent's answers ---------------------------------------------------

    /// All calls to come whose request line holds `part` suffer this, until [`Self::behave`].
    pub(crate) fn tamper(&self, part: &str, tamper: Tamper) {
        self.tamper_by(part, tamper, None, false);
    }

    /// The same, and the calls that wait at the agent suffer it at once.
    pub(crate) fn tamper_now(&self, part: &str, tamper: Tamper) {
        self.tamper_by(part, tamper, None, true);
    }

    /// The next call that comes suffers it.
    pub(crate) fn tamper_next(&self, part: &str, tamper: Tamper) {
        self.tamper_by(part, tamper, Some(1), false);
    }

    /// The call that waits at the agent, or else the next one that comes, suffers it.
    pub(crate) fn tamper_once(&self, part: &str, tamper: Tamper) {
        self.tamper_by(part, tamper, Some(1), true);
    }

    fn tamper_by(&self, part: &str, tamper: Tamper, times: Option<u64>, waiting: bool) {
        self.tap.tampering().add(Rule { part: part.to_owned(), tamper, times, waiting });
    }

    /// The agent answers itself again where `part` was tampered with. What hangs goes on hanging.
    pub(crate) fn behave(&self, part: &str) {
        self.tap.tampering().clear(part);
    }

    /// How many calls wait for an answer right now.
    pub(crate) fn waiting(&self, part: &str) -> usize {
        self.tap.waiting(part)
    }

    /// Whoever waits for the leaf of a service, or asks for it next, gets this one.
    pub(crate) fn deliver_leaf(&self, service: &str, leaf: &Identity) -> Result<()> {
        self.tamper_once(&leaf_path(service), leaf_of(leaf)?);
        Ok(())
    }

    // ---- coming and going -----------------------------------------------------------------------------------------

    /// The agent's process dies, or as good as that: its port refuses.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.tap.close();
        match &self.inner {
            Inner::Embedded(embedded) => embedded.handle().stop_listening().await,
            Inner::Consul(running) => running.lock().await.kill().await?,
            Inner::Container(running) => running.stop().await?,
        }
        Ok(())
    }

    /// Starts again at the same address.
    pub(crate) async fn start(&self) -> Result<()> {
        match &self.inner {
            Inner::Embedded(embedded) => embedded.handle().start_listening().await?,
            Inner::Consul(running) => running.lock().await.start()?,
            Inner::Container(running) => running.start_again().await?,
        }
        self.ready().await?;
        self.tap.open().await
    }

    /// Comes back with nothing left: a new CA, no services.
    pub(crate) async fn restart_wiped(&self) -> Result<()> {
        self.stop().await?;
        match &self.inner {
            Inner::Embedded(embedded) => embedded.handle().restart_wiped().await?,
            Inner::Consul(running) => running.lock().await.start()?,
            Inner::Container(running) => running.start_again().await?,
        }
        self.ready().await?;
        self.tap.open().await
    }

    /// Reads its configuration files again, as SIGHUP would make it do. Consul 1.5.3 loses every other SIGHUP: what
    /// looks after signals while it starts never stops doing so.
    pub(crate) async fn reload(&self) -> Result<()> {
        ensure!(matches!(self.inner, Inner::Consul(_)), "only a consul process reads configuration files again");
        // An agent answers requests before it has started.
        wait::until("an agent that reloads", Duration::from_secs(30), || async {
            self.put("/v1/agent/reload", json!({})).await.map(drop)
        })
        .await
    }

    /// Answers nothing until [`Self::thaw`].
    pub(crate) async fn freeze(&self) -> Result<()> {
        match &self.inner {
            Inner::Embedded(embedded) => embedded.handle().freeze(),
            Inner::Consul(running) => running.lock().await.signal(rustix::process::Signal::STOP)?,
            Inner::Container(running) => running.pause().await?,
        }
        Ok(())
    }

    /// Answers again.
    pub(crate) async fn thaw(&self) -> Result<()> {
        match &self.inner {
            Inner::Embedded(embedded) => embedded.handle().thaw(),
            Inner::Consul(running) => running.lock().await.signal(rustix::process::Signal::CONT)?,
            Inner::Container(running) => running.unpause().await?,
        }
        Ok(())
    }

    // ---- the HTTP API -----------------------------------------------------------------------------------------------

    /// One call, with the management token where access control is on, past the tap.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, String)> {
        let url = format!("http://{}{path}", self.tap.target());
        let mut request = self.client.request(method.clone(), url);
        if self.acl {
            request = request.header("X-Consul-Token", MANAGEMENT);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("{method} {path}"))?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await?))
    }

    /// A good answer's JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.good(Method::GET, path, None).await
    }

    /// A good answer's JSON, or null where the body is empty.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Result<Value> {
        self.good(Method::PUT, path, Some(body)).await
    }

    async fn good(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let (status, text) = self.call(method.clone(), path, body).await?;
        ensure!(status == 200, "{method} {path}: {status} {text}");
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))
    }

    // ---- services -----------------------------------------------------------------------------------------------------

    pub(crate) async fn register(&self, service: Value) -> Result<()> {
        self.put("/v1/agent/service/register", service).await.map(drop)
    }

    pub(crate) async fn deregister(&self, id: &str) -> Result<()> {
        let (status, text) = self.call(Method::PUT, &format!("/v1/agent/service/deregister/{id}"), None).await?;
        ensure!(status == 200 || status == 404, "deregister {id}: {status} {text}");
        Ok(())
    }

    /// Sets a TTL check.
    pub(crate) async fn set_check(&self, id: &str, status: &str) -> Result<()> {
        self.put(&format!("/v1/agent/check/update/{id}"), json!({ "Status": status })).await.map(drop)
    }

    /// The status of the first check of a service of this agent.
    pub(crate) async fn check_of(&self, service_id: &str) -> Result<String> {
        let checks = self.get("/v1/agent/checks").await?;
        let found = checks.as_object().context("checks are no object")?.values().find(|c| c["ServiceID"] == service_id);
        let status = found.and_then(|check| check["Status"].as_str());
        Ok(status.with_context(|| format!("no check of {service_id} in {checks}"))?.to_owned())
    }

    /// Whether the agent has the service.
    pub(crate) async fn has_service(&self, id: &str) -> Result<bool> {
        Ok(self.get("/v1/agent/services").await?.get(id).is_some())
    }

    // ---- intentions ----------------------------------------------------------------------------------------------------

    pub(crate) async fn allow(&self, source: &str, destination: &str) -> Result<()> {
        self.intention(source, destination, json!({ "Action": "allow" })).await
    }

    pub(crate) async fn deny(&self, source: &str, destination: &str) -> Result<()> {
        self.intention(source, destination, json!({ "Action": "deny" })).await
    }

    pub(crate) async fn intention(&self, source: &str, destination: &str, rule: Value) -> Result<()> {
        if self.names_intentions {
            let path = format!("/v1/connect/intentions/exact?source={source}&destination={destination}");
            return self.put(&path, rule).await.map(drop);
        }
        let mut body = json!({ "SourceName": source, "DestinationName": destination, "SourceType": "consul" });
        crate::world::merge(&mut body, rule);
        let all = self.get("/v1/connect/intentions").await?;
        let is_it = |known: &&Value| known["SourceName"] == source && known["DestinationName"] == destination;
        match all.as_array().into_iter().flatten().find(is_it).and_then(|known| known["ID"].as_str()) {
            Some(id) => self.put(&format!("/v1/connect/intentions/{id}"), body).await.map(drop),
            None => self.good(Method::POST, "/v1/connect/intentions", Some(body)).await.map(drop),
        }
    }

    pub(crate) async fn config_entry(&self, entry: Value) -> Result<()> {
        self.put("/v1/config", entry).await.map(drop)
    }

    // ---- certificates ----------------------------------------------------------------------------------------------------

    /// The leaf of a service, as a native application would get it.
    pub(crate) async fn identity(&self, service: &str) -> Result<Identity> {
        let leaf = self.get(&format!("/v1/agent/connect/ca/leaf/{service}")).await?;
        let text = |key: &str| leaf[key].as_str().with_context(|| format!("a leaf without {key}"));
        Identity::from_pem(text("CertPEM")?, text("PrivateKeyPEM")?)
    }

    /// All roots, the active one first.
    pub(crate) async fn roots(&self) -> Result<Vec<String>> {
        let answer = self.get("/v1/agent/connect/ca/roots").await?;
        let mut roots: Vec<&Value> = answer["Roots"].as_array().context("no Roots")?.iter().collect();
        roots.sort_by_key(|root| root["Active"] != json!(true));
        roots.iter().map(|root| Ok(root["RootCert"].as_str().context("no RootCert")?.to_owned())).collect()
    }

    pub(crate) async fn trust_domain(&self) -> Result<String> {
        let answer = self.get("/v1/agent/connect/ca/roots").await?;
        Ok(answer["TrustDomain"].as_str().context("no TrustDomain")?.to_owned())
    }

    /// A new root becomes active, signed by the old one as well.
    pub(crate) async fn rotate_root(&self) -> Result<()> {
        if let Inner::Embedded(embedded) = &self.inner {
            return Ok(embedded.handle().rotate_root()?);
        }
        let before = self.roots().await?;
        let root = Forge::new_root(&self.trust_domain().await?)?;
        self.set_root(&root).await?;
        wait::until("the new root", SOON, || async {
            ensure!(self.roots().await?.first() != before.first(), "the old root is still active");
            Ok(())
        })
        .await
    }

    /// Whoever holds this signs any certificate of the mesh. A real agent gets a new root for it.
    pub(crate) async fn forge(&self) -> Result<Forge> {
        if let Inner::Embedded(embedded) = &self.inner {
            return embedded.forge();
        }
        if let Some(own) = &self.own_root {
            return Ok(own.clone());
        }
        let root = Forge::new_root(&self.trust_domain().await?)?;
        self.set_root(&root).await?;
        wait::until("our own root", SOON, || async {
            let active = self.roots().await?;
            ensure!(active.first().is_some_and(|active| active.trim() == root.pem().trim()), "another root is active");
            Ok(())
        })
        .await?;
        Ok(root)
    }

    /// Makes a root of ours the CA of a real agent.
    pub(crate) async fn set_root(&self, root: &Forge) -> Result<()> {
        let config = json!({
            "LeafCertTTL": "72h", "PrivateKey": root.key_pem(), "RootCert": root.pem(),
        });
        self.put("/v1/connect/ca/configuration", json!({ "Provider": "consul", "Config": config })).await.map(drop)
    }

    // ---- tokens -------------------------------------------------------------------------------------------------------------

    /// A token with `write` on these services, `read` on every service and node.
    pub(crate) async fn token(&self, secret: &str, writes: &[&str]) -> Result<()> {
        if let Inner::Embedded(embedded) = &self.inner {
            let mut token = Token::service_identity("none");
            token.services = writes.iter().map(|name| ((*name).to_owned(), Access::Write)).collect();
            embedded.handle().add_token(secret, token);
            return Ok(());
        }
        let mut rules =
            "service_prefix \"\" { policy = \"read\" }\nnode_prefix \"\" { policy = \"read\" }\n".to_owned();
        for name in writes {
            rules.push_str(&format!("service \"{name}\" {{ policy = \"write\" }}\n"));
        }
        let name = format!("policy-{secret}");
        self.put("/v1/acl/policy", json!({ "Name": name, "Rules": rules })).await?;
        let made = self.put("/v1/acl/token", json!({ "SecretID": secret, "Policies": [{ "Name": name }] })).await?;
        let accessor = made["AccessorID"].as_str().context("no AccessorID")?.to_owned();
        self.accessors.lock().await.push((secret.to_owned(), accessor));
        Ok(())
    }

    /// Deletes a token.
    pub(crate) async fn delete_token(&self, secret: &str) -> Result<()> {
        if let Inner::Embedded(embedded) = &self.inner {
            ensure!(embedded.handle().delete_token(secret), "no such token");
            return Ok(());
        }
        let accessors = self.accessors.lock().await;
        let (_, accessor) = accessors.iter().find(|(known, _)| known == secret).context("no such token")?;
        self.good(Method::DELETE, &format!("/v1/acl/token/{accessor}"), None).await.map(drop)
    }
}

/// Where the leaf of a service is.
pub(crate) fn leaf_path(service: &str) -> String {
    format!("/v1/agent/connect/ca/leaf/{service}")
}

/// Puts another chain and key into the answer of the leaf endpoint.
pub(crate) fn leaf_of(leaf: &Identity) -> Result<Tamper> {
    let (begins, ends) = leaf.validity()?;
    let (serial, leaf) = (leaf.serial()?, leaf.clone());
    Ok(Tamper::json(move |value| {
        value["SerialNumber"] = json!(serial);
        value["CertPEM"] = json!(leaf.chain_pem);
        value["PrivateKeyPEM"] = json!(leaf.key_pem);
        value["ValidAfter"] = json!(begins);
        value["ValidBefore"] = json!(ends);
    }))
}

/// The dialect of the embedded agent.
pub(crate) fn dialect(options: &Options) -> Dialect {
    if options.old_dialect { Dialect::Old } else { Dialect::Today }
}
