//! One candidate, running; and the agent that some of them need.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    candidates::{Candidate, Recipe, fill},
    place::{Place, Process, write_config},
};

/// How long a proxy or an agent may take until it works.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the proxies stand between load and application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// One proxy: mTLS in, plain out.
    Inbound,
    /// Two of a kind, as between two services: plain in, mTLS between them, plain out.
    Chain,
}

/// The agent of the run, and the identity of `web` that it issued.
pub(crate) struct Agent {
    process: Process,
    port: u16,
    identity: PathBuf,
    /// Who it is, for the reader of the figures.
    pub(crate) words: String,
}

impl Agent {
    /// A real one where there is one, else the one in Lictor's binary.
    pub(crate) fn start(place: &Place, consul: Option<&Path>, lictor: Option<&Path>) -> Result<Self> {
        let folder = place.room("agent")?;
        let port = place.port()?;
        let (program, arguments, words) = match (consul, lictor) {
            (Some(consul), _) => {
                let [server, lan, wan] = [place.port()?, place.port()?, place.port()?];
                let arguments = format!(
                    "agent -dev -bind 127.0.0.1 -client 127.0.0.1 -log-level err -http-port {port} -dns-port -1 \
                     -grpc-port -1 -server-port {server} -serf-lan-port {lan} -serf-wan-port {wan}"
                );
                (consul, arguments, format!("a real agent ({})", consul.display()))
            }
            (None, Some(lictor)) => {
                let arguments = format!("agent --http-addr 127.0.0.1:{port}");
                (lictor, arguments, "Lictor's embedded agent, for want of a real consul".to_owned())
            }
            (None, None) => anyhow::bail!("neither consul nor a Lictor that brings an agent (feature dev)"),
        };
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let mut process = place.helper(program, &arguments, &folder.join("agent.log"))?;
        let begun = Instant::now();
        while let Err(why) = identity(port, &folder) {
            process.must_live().context("the agent")?;
            if begun.elapsed() > PATIENCE {
                return Err(why.context(format!("the agent is not ready: {}", process.last_words())));
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Self { process, port, identity: folder, words })
    }
}

/// Asks an agent for its roots and the leaf of `web`, and writes them where the load finds them.
fn identity(port: u16, folder: &Path) -> Result<()> {
    let get = |path: &str| -> Result<Value> {
        let request = ureq::get(format!("http://127.0.0.1:{port}/v1/agent/connect/ca/{path}"));
        let request = request.config().timeout_global(Some(Duration::from_secs(5))).build();
        Ok(request.call()?.body_mut().read_json()?)
    };
    let (roots, leaf) = (get("roots")?, get("leaf/web")?);
    let text = |value: &Value| value.as_str().map(str::to_owned).context("the agent's answer lacks a field");
    let all: Result<Vec<_>> =
        roots["Roots"].as_array().into_iter().flatten().map(|root| text(&root["RootCert"])).collect();
    fs::write(folder.join("roots.pem"), all?.concat())?;
    fs::write(folder.join("web.pem"), text(&leaf["CertPEM"])?)?;
    fs::write(folder.join("web.key"), text(&leaf["PrivateKeyPEM"])?)?;
    Ok(())
}

/// What all candidates share.
pub(crate) struct Scene<'a> {
    pub(crate) place: &'a Place,
    pub(crate) agent: Option<&'a Agent>,
    /// Why there is no agent, for those who need one.
    pub(crate) no_agent: &'a str,
    pub(crate) application: i32,
    pub(crate) application_port: u16,
    /// Certificates for those who read files.
    pub(crate) files: &'a Path,
}

/// A candidate in one role, ready.
pub(crate) struct Instance {
    processes: Vec<Process>,
    /// Where the load goes, and what it is told about the parties.
    arguments: Vec<String>,
    /// What was run.
    pub(crate) commands: Vec<Vec<String>>,
    environment: &'static [(&'static str, &'static str)],
}

impl Instance {
    /// Starts it and waits until a connection comes through.
    pub(crate) fn start(scene: &Scene<'_>, candidate: &Candidate, role: Role, number: usize) -> Result<Self> {
        let place = scene.place;
        let name = format!("{}-{number}", candidate.slug());
        let folder = place.room(&name)?;
        let service = format!("echo-{name}");
        let agent = match (candidate.mesh, scene.agent) {
            (false, _) => None,
            (true, Some(agent)) => Some(agent),
            (true, None) => anyhow::bail!("it needs an agent: {}", scene.no_agent),
        };
        let entry = place.port()?;
        let legs = match role {
            Role::Inbound => vec![(candidate.inbound, "echo", entry, scene.application_port)],
            Role::Chain => {
                let outbound = candidate.outbound.context("it has no outbound side")?;
                let middle = place.port()?;
                vec![(candidate.inbound, "echo", middle, scene.application_port), (outbound, "web", entry, middle)]
            }
        };
        let mut instance = Self {
            processes: Vec::new(),
            arguments: vec!["--target".into(), format!("127.0.0.1:{entry}")],
            commands: Vec::new(),
            environment: candidate.environment,
        };
        for (leg, (recipe, identity, listen, target)) in legs.into_iter().enumerate() {
            let config = recipe.config.unwrap_or_default();
            let values = values(scene, agent, &folder, leg, config, identity, &service, listen, target)?;
            let arguments = arguments(&recipe, &values)?;
            let log = folder.join(format!("{leg}.log"));
            let process = place.proxy(&candidate.program, &arguments, candidate.environment, &log)?;
            instance.processes.push(process);
            instance.commands.push(arguments);
        }
        if role == Role::Inbound {
            let identity = agent.map_or(scene.files, |agent| &agent.identity);
            instance.arguments.extend(["--tls".into(), identity.display().to_string()]);
        }
        instance.ready(place)?;
        for process in &instance.processes {
            place.gather(process)?;
        }
        Ok(instance)
    }

    /// What the load is told about where to go.
    pub(crate) fn target(&self) -> &[String] {
        &self.arguments
    }

    /// What the load is told about whose CPU time is whose.
    pub(crate) fn parties(&self, scene: &Scene<'_>) -> Result<Vec<String>> {
        let ids: Result<Vec<String>> = self.processes.iter().map(|process| Ok(process.id()?.to_string())).collect();
        let mut arguments = vec![
            format!("--proxy={}", ids?.join(",")),
            format!("--application={}", scene.application),
            format!("--application-at=127.0.0.1:{}", scene.application_port),
        ];
        if let Some(agent) = scene.agent {
            arguments.push(format!("--agent={}", agent.process.id()?));
        }
        Ok(arguments)
    }

    /// Ends its processes and keeps the rest, for the measurement that starts them itself.
    pub(crate) fn stop(&mut self) {
        self.processes.clear();
    }

    /// The command that starts its first proxy, with its core and its environment.
    pub(crate) fn restart(&self, place: &Place, program: &Path) -> Vec<String> {
        let mut words = vec!["env".to_owned()];
        words.extend(self.environment.iter().map(|(name, value)| format!("{name}={value}")));
        words.extend(place.prefix());
        words.push(program.display().to_string());
        words.extend(self.commands.first().cloned().unwrap_or_default());
        words
    }

    fn ready(&mut self, place: &Place) -> Result<()> {
        let mut probe: Vec<String> =
            ["handshakes", "--connections=1", "--warm=0", "--seconds=0.1"].map(str::to_owned).into();
        probe.extend_from_slice(&self.arguments);
        let begun = Instant::now();
        loop {
            let Err(why) = place.load(&probe) else { return Ok(()) };
            for process in &mut self.processes {
                process.must_live()?;
            }
            if begun.elapsed() > PATIENCE {
                let words: Vec<String> = self.processes.iter().map(Process::last_words).collect();
                return Err(why.context(format!("not ready after {PATIENCE:?}: {}", words.join(" "))));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "each is one word of the templates")]
fn values(
    scene: &Scene<'_>,
    agent: Option<&Agent>,
    folder: &Path,
    leg: usize,
    config: &str,
    identity: &str,
    service: &str,
    listen: u16,
    target: u16,
) -> Result<Vec<(&'static str, String)>> {
    let file = |name: String| scene.files.join(name).display().to_string();
    let module = std::env::var("NGINX_STREAM_MODULE").ok().filter(|path| !path.is_empty());
    Ok(vec![
        ("listen", listen.to_string()),
        ("target", target.to_string()),
        ("roots", file("roots.pem".into())),
        ("certificate", file(format!("{identity}.pem"))),
        ("key", file(format!("{identity}.key"))),
        ("both", file(format!("{identity}.both.pem"))),
        ("folder", folder.display().to_string()),
        // Envoy tells the language of a file by its name's end.
        ("config", folder.join(format!("{leg}-{config}")).display().to_string()),
        ("connections", (Place::connections() + 100).to_string()),
        ("nginx_stream_module", module.unwrap_or_else(|| "/usr/lib/nginx/modules/ngx_stream_module.so".to_owned())),
        ("service", service.to_owned()),
        ("agent", agent.map_or(0, |agent| agent.port).to_string()),
        ("admin", scene.place.port()?.to_string()),
    ])
}

fn arguments(recipe: &Recipe, values: &[(&str, String)]) -> Result<Vec<String>> {
    if let Some(template) = recipe.config {
        let into = values.iter().find(|(word, _)| *word == "config").context("no place for the configuration")?;
        write_config(template, values, Path::new(&into.1))?;
    }
    recipe.arguments.split_whitespace().map(|word| fill(word, values)).collect()
}
