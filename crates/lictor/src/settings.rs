//! What flags, variables and file mean together: one value, checked, with every default in one place.

mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    time::Duration,
};

use lictor_core::{
    Destination, DestinationKind, PeerPolicy, ServiceName, TrustDomain, consul::AgentAddress, identity::Grammar,
};

pub(crate) use self::tls::{Candidates, Tls};
use crate::{
    cli::{ProxyFlags, Setting},
    config::{
        self, File, Layer, Problem, Value,
        schema::{self, Level},
        values::{Secret, Text},
    },
    env::{Environment, path_of},
    exit::{Exit, Failure},
};

/// Where the admin listener is when nobody says otherwise. Outside the ranges that Consul gives to sidecars (21000 and
/// on) and to its own ports (8300 to 8600).
pub(crate) const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 19100);

/// How long connections may take to finish after the first signal: half of what Kubernetes and systemd wait for by
/// default at the least.
pub(crate) const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// How long to go on accepting after deregistration, so that peers that still have the old list are served.
pub(crate) const DEFAULT_SETTLE: Duration = Duration::from_secs(2);

/// How long a managed proxy may drain: the agent sends SIGINT and kills after 5 s.
pub(crate) const MANAGED_DRAIN: Duration = Duration::from_secs(4);

/// Everything that `lictor proxy` was told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) agent: AgentSettings,
    pub(crate) tls: Tls,
    pub(crate) peers: PeerPolicy,
    pub(crate) limits: schema::Limits,
    pub(crate) inbound_limits: schema::Inbound,
    pub(crate) registration: RegistrationPolicy,
    pub(crate) workers: usize,
    pub(crate) admin: Admin,
    pub(crate) log: Log,
    pub(crate) drain: Duration,
    pub(crate) settle: Duration,
    /// To be logged once logging has begun.
    pub(crate) warnings: Vec<String>,
}

/// Whose sidecar it is and where its configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The registration of this proxy, followed as it changes.
    Proxy { id: String, managed: bool },
    /// The registration of the only sidecar of this service.
    SidecarFor { id: String },
    /// Flags or file.
    Static(Box<StaticSidecar>),
}

/// A sidecar that is described by flags or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StaticSidecar {
    pub(crate) service: ServiceName,
    /// Where the mesh connects to, and the application.
    pub(crate) inbound: Option<(SocketAddr, Target)>,
    pub(crate) upstreams: BTreeMap<String, StaticUpstream>,
    /// Register with the agent; holds the host as it was written, which may be empty.
    pub(crate) register: Option<Registering>,
}

/// What `-register` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registering {
    pub(crate) suffix: Option<String>,
    /// The host of `-listen` as it was written; empty for all addresses.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Where an application listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// An upstream that is described by flags or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StaticUpstream {
    pub(crate) bind: StaticBind,
    pub(crate) destination: Destination,
    pub(crate) connect_timeout: Option<Duration>,
}

/// Where such an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StaticBind {
    Tcp(SocketAddr),
    Unix { path: PathBuf, mode: Option<u32> },
}

/// The agent and how to speak with it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AgentSettings {
    pub(crate) address: AgentAddress,
    pub(crate) token: Option<Secret>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) auth: Option<Secret>,
    pub(crate) datacenter: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) partition: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) ca_path: Option<PathBuf>,
    pub(crate) client: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: Option<String>,
    pub(crate) verify: bool,
}

/// What the agent's registration may ask for: whoever may write the service is not the operator of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegistrationPolicy {
    pub(crate) allow_public_upstreams: bool,
    pub(crate) socket_directories: Vec<PathBuf>,
}

/// The admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admin {
    Off,
    /// The address that somebody wrote: it must be had.
    At(SocketAddr),
    /// [`DEFAULT_ADMIN`], or a free port where several sidecars share a host.
    Default,
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) level: Level,
    pub(crate) json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, json: false }
    }
}

impl Settings {
    /// Puts flags, variables and the file together.
    ///
    /// # Errors
    /// [`Failure`] with the exit code of usage or of configuration.
    pub(crate) fn resolve(flags: &ProxyFlags, environment: &Environment) -> Result<Self, Failure> {
        let mut layers = Vec::new();
        let mut file_mode = ModeKeys::default();
        if let Some(path) = &flags.config {
            let layer = Layer::file(path)?;
            file_mode = ModeKeys::of(&config::merge(std::slice::from_ref(&layer))?);
            file_mode.check().map_err(|problem| problem.said_by(&path.display().to_string()))?;
            layers.push(layer);
        }
        layers.push(environment.consul()?);
        let (own, unknown) = environment.own()?;
        layers.push(own);
        let given = ModeKeys::given(flags, environment);
        layers.push(flag_layer(flags)?);
        let mut file = config::merge(&layers)?;
        if given.any() {
            (file.proxy_id, file.sidecar_for, file.service) =
                (given.proxy_id.map(Text), given.sidecar_for.map(Text), given.service.map(Text));
        } else if file_mode.any() {
            (file.proxy_id, file.sidecar_for, file.service) =
                (file_mode.proxy_id.map(Text), file_mode.sidecar_for.map(Text), file_mode.service.map(Text));
        }
        let mut warnings = unknown;
        warnings.extend(flags.ignored.iter().map(|flag| format!("-{flag} is not served by lictor and has no effect")));
        let any = |names: [&str; 2]| names.iter().any(|name| environment.get(name).is_some());
        let managed =
            any(["CONNECT_PROXY_ID", "CONSUL_PROXY_ID"]) && any(["CONNECT_PROXY_TOKEN", "CONSUL_PROXY_TOKEN"]);
        Self::of_file(file, managed, warnings)
            .map_err(|failure| failure.map_problem(|problem| config::locate(&layers, problem)))
    }

    /// Checks a file alone, without flags and variables.
    ///
    /// # Errors
    /// As for [`resolve`](Self::resolve).
    pub(crate) fn of_path(path: &std::path::Path) -> Result<Self, Failure> {
        let layer = Layer::file(path)?;
        let layers = [layer];
        let file = config::merge(&layers)?;
        let origin = path.display().to_string();
        ModeKeys::of(&file).check().map_err(|problem| problem.said_by(&origin))?;
        Self::of_file(file, false, Vec::new()).map_err(|failure| match failure.exit {
            Exit::Usage => Failure::new(
                Exit::Config,
                format!("{origin}: {}", failure.to_string().lines().next().unwrap_or_default()),
            ),
            _ => failure.map_problem(|problem| config::locate(&layers, problem).said_by(&origin)),
        })
    }

    /// What `newer` says differently and only a restart takes over, as the keys of the file.
    pub(crate) fn fixed_by_start(&self, newer: &Self) -> Vec<&'static str> {
        let (mode, register, described) = match (&self.mode, &newer.mode) {
            (Mode::Static(ours), Mode::Static(theirs)) => {
                (ours.service != theirs.service, ours.register != theirs.register, true)
            }
            (ours, theirs) => (ours != theirs, false, false),
        };
        let limits = !described && (self.limits != newer.limits || self.inbound_limits != newer.inbound_limits);
        [
            ("service", mode),
            ("register", register),
            ("limits", limits),
            ("agent", self.agent != newer.agent),
            ("tls", self.tls != newer.tls),
            ("peers", self.peers != newer.peers),
            ("registration", self.registration != newer.registration),
            ("workers", self.workers != newer.workers),
            ("admin", self.admin != newer.admin),
            ("log", self.log != newer.log),
            ("drain", self.drain != newer.drain || self.settle != newer.settle),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    fn of_file(file: File, managed: bool, mut warnings: Vec<String>) -> Result<Self, Failure> {
        let File {
            proxy_id,
            sidecar_for,
            service,
            register,
            inbound,
            upstream,
            registration,
            agent,
            tls,
            peers,
            limits,
            workers,
            admin,
            log,
            drain,
        } = file;
        let peers = peer_policy(peers)?;
        let described = inbound.listen.is_some() || inbound.app.is_some() || !upstream.is_empty();
        let mode = if let Some(Text(id)) = proxy_id {
            Mode::Proxy { id, managed }
        } else if let Some(Text(id)) = sidecar_for {
            Mode::SidecarFor { id }
        } else if let Some(Text(service)) = service {
            Mode::Static(Box::new(static_sidecar(&service, &register, &inbound, &upstream, &peers)?))
        } else {
            return Err(Failure::usage(
                "whose sidecar is it? Say -sidecar-for ID, -proxy-id ID, -service NAME, or -config FILE",
            ));
        };
        if described && !matches!(mode, Mode::Static(_)) {
            warnings.push(
                "listeners and upstreams of flags and file are not used: the agent's registration says them all"
                    .to_owned(),
            );
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let managed = matches!(mode, Mode::Proxy { managed: true, .. });
        Ok(Self {
            mode,
            agent: agent_settings(agent)?,
            tls: Tls::of(&tls)?,
            peers,
            limits,
            inbound_limits: inbound,
            registration: RegistrationPolicy {
                allow_public_upstreams: registration.allow_public_upstreams.is_some_and(|switch| switch.0),
                socket_directories: registration
                    .socket_directories
                    .unwrap_or_default()
                    .into_iter()
                    .map(|Text(path)| absolute(&path))
                    .collect::<Result<_, _>>()
                    .map_err(|problem| problem.key("socket_directories").key("registration"))?,
            },
            workers: workers.map_or_else(|| cores.min(2), |count| count.0.min(cores)),
            admin: admin_settings(&admin)?,
            log: Log { level: log.level.unwrap_or(Level::Info), json: log.json.is_some_and(|switch| switch.0) },
            drain: drain.timeout.map_or(if managed { MANAGED_DRAIN } else { DEFAULT_DRAIN }, |span| span.0),
            settle: drain.settle.map_or(DEFAULT_SETTLE, |span| span.0),
            warnings,
        })
    }
}

impl std::fmt::Display for Settings {
    /// One line for `lictor validate`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.mode {
            Mode::Proxy { id, .. } => write!(f, "the sidecar registered as {id}")?,
            Mode::SidecarFor { id } => write!(f, "the sidecar of the service with ID {id}")?,
            Mode::Static(sidecar) => {
                write!(f, "the sidecar of {} with ", sidecar.service)?;
                match &sidecar.inbound {
                    Some((bind, _)) => write!(f, "a listener for the mesh on {bind}")?,
                    None => f.write_str("no listener for the mesh")?,
                }
                write!(f, " and {} upstreams", sidecar.upstreams.len())?;
            }
        }
        write!(f, ", TLS by {}", self.tls.backend.name)?;
        if self.tls.require_fips { f.write_str(" in FIPS mode") } else { Ok(()) }
    }
}

/// The keys that choose the mode.
#[derive(Clone, Debug, Default)]
struct ModeKeys {
    proxy_id: Option<String>,
    sidecar_for: Option<String>,
    service: Option<String>,
}

impl ModeKeys {
    fn of(file: &File) -> Self {
        let text = |key: &Option<Text>| key.as_ref().map(|Text(text)| text.clone());
        Self { proxy_id: text(&file.proxy_id), sidecar_for: text(&file.sidecar_for), service: text(&file.service) }
    }

    /// What flags and variables say. As in the original a variable stands in for its flag, and `-proxy-id` rules over
    /// `-sidecar-for`, which rules over `-service`.
    fn given(flags: &ProxyFlags, environment: &Environment) -> Self {
        let or = |flag: &Option<String>, names: &[&str]| {
            flag.clone().or_else(|| names.iter().find_map(|name| environment.get(name).map(str::to_owned)))
        };
        Self {
            proxy_id: or(&flags.proxy_id, &["CONNECT_PROXY_ID", "CONSUL_PROXY_ID", "LICTOR_PROXY_ID"]),
            sidecar_for: or(&flags.sidecar_for, &["CONNECT_SIDECAR_FOR", "LICTOR_SIDECAR_FOR"]),
            service: or(&flags.service, &["LICTOR_SERVICE"]),
        }
    }

    fn any(&self) -> bool {
        self.proxy_id.is_some() || self.sidecar_for.is_some() || self.service.is_some()
    }

    /// A file that names two modes contradicts itself.
    fn check(&self) -> Result<(), Problem> {
        let named: Vec<&str> =
            [("proxy_id", &self.proxy_id), ("sidecar_for", &self.sidecar_for), ("service", &self.service)]
                .into_iter()
                .filter_map(|(name, key)| key.as_ref().map(|_| name))
                .collect();
        if named.len() > 1 {
            return Err(Problem::new(format!("{} contradict each other", named.join(" and ")))
                .instead("keep the one that says whose sidecar it is"));
        }
        Ok(())
    }
}

/// The flags as the topmost layer.
fn flag_layer(flags: &ProxyFlags) -> Result<Layer, Failure> {
    let text = |value: &str| Value::Text(value.to_owned());
    let mut values = values_of(&flags.settings);
    for (flag, path, value) in [
        ("-listen", "inbound.listen", &flags.listen),
        ("-service-addr", "inbound.app", &flags.service_addr),
        ("-register-id", "register.id", &flags.register_id),
    ] {
        if let Some(value) = value {
            values.push((flag.to_owned(), path_of(path), text(value)));
        }
    }
    if let Some(register) = flags.register {
        values.push(("-register".to_owned(), path_of("register.enabled"), Value::Bool(register)));
    }
    for upstream in &flags.upstreams {
        let mut put = |key: &str, value: Value| {
            let path = vec!["upstream".to_owned(), upstream.name.clone(), key.to_owned()];
            values.push(("-upstream".to_owned(), path, value));
        };
        put(if upstream.query { "query" } else { "service" }, text(&upstream.name));
        put(if upstream.query { "service" } else { "query" }, Value::Null);
        put("socket", Value::Null);
        put("address", upstream.address.as_deref().map_or(Value::Null, text));
        put("port", Value::Integer(upstream.port.into()));
    }
    Layer::texts("flags", values).map_err(Failure::usage)
}

/// Flags with a key of their own as a layer.
fn settings_layer(settings: &[Setting]) -> Result<Layer, Failure> {
    Layer::texts("flags", values_of(settings)).map_err(|problem| Failure::new(Exit::Usage, problem.to_string()))
}

fn values_of(settings: &[Setting]) -> Vec<(String, Vec<String>, Value)> {
    let mut values = Vec::new();
    let has = |flag: &str| settings.iter().any(|(name, ..)| *name == flag);
    for (flag, path, value) in settings {
        // A token from a flag rules over any token or token file from below, and the file over the value.
        match *flag {
            "token" if has("token-file") => continue,
            "token" => values.push((format!("-{flag}"), path_of("agent.token_file"), Value::Null)),
            "token-file" => values.push((format!("-{flag}"), path_of("agent.token"), Value::Null)),
            _ => {}
        }
        values.push((format!("-{flag}"), path_of(path), Value::Text(value.clone())));
    }
    values
}

fn static_sidecar(
    service: &str,
    register: &schema::Register,
    inbound: &schema::Inbound,
    upstreams: &BTreeMap<String, schema::Upstream>,
    peers: &PeerPolicy,
) -> Result<StaticSidecar, Failure> {
    let name = ServiceName::parse(service, peers.grammar).map_err(|error| {
        Problem::new(format!("the name of the service, \"{service}\", {error}: peers would refuse its identity"))
            .instead("rename the service, or set allow_percent_encoding in peers here and at every peer")
            .key("service")
    })?;
    let within = |problem: Problem, key: &str| problem.key(key).key("inbound");
    let listen = inbound.listen.as_ref().map(|Text(text)| listen_address(text, "\"127.0.0.1:21000\"")).transpose();
    let listen = listen.map_err(|problem| within(problem, "listen"))?;
    let inbound = match (&listen, &inbound.app) {
        (Some((bind, ..)), Some(Text(app))) => Some((*bind, target(app).map_err(|problem| within(problem, "app"))?)),
        (Some(_), None) => {
            return Err(Failure::usage(
                "where does the application listen? With -listen (inbound.listen) say -service-addr (inbound.app), such \
                 as 127.0.0.1:8080",
            ));
        }
        (None, _) => None,
    };
    let register = if register.enabled.is_some_and(|switch| switch.0) {
        let Some((bind, host)) = listen else {
            return Err(Failure::usage("-register needs -listen: what is registered is that address"));
        };
        Some(Registering { suffix: register.id.as_ref().map(|Text(suffix)| suffix.clone()), host, port: bind.port() })
    } else {
        None
    };
    let mut all = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (name, written) in upstreams {
        let upstream = static_upstream(name, written)?;
        let at = match &upstream.bind {
            StaticBind::Tcp(address) => address.to_string(),
            StaticBind::Unix { path, .. } => path.display().to_string(),
        };
        if !taken.insert(at.clone()) {
            return Err(Problem::new(format!("another upstream listens on {at} already"))
                .instead("give each upstream a port of its own")
                .key(name.clone())
                .key("upstream")
                .into());
        }
        all.insert(name.clone(), upstream);
    }
    Ok(StaticSidecar { service: name, inbound, upstreams: all, register })
}

fn static_upstream(name: &str, written: &schema::Upstream) -> Result<StaticUpstream, Failure> {
    let within = |problem: Problem| Failure::from(problem.key(name).key("upstream"));
    let wrong = |key: &str, what: &str, instead: &str| within(Problem::new(what).instead(instead).key(key));
    let text = |text: &Option<Text>| text.as_ref().map(|Text(text)| text.clone());
    let bind = match (&written.socket, written.port) {
        (Some(_), Some(_)) => {
            return Err(wrong("socket", "port and socket contradict each other", "keep one of the two"));
        }
        (Some(Text(path)), None) => {
            let path = absolute(path).map_err(|problem| within(problem.key("socket")))?;
            StaticBind::Unix { path, mode: written.socket_mode.map(|mode| mode.0) }
        }
        (None, Some(port)) => {
            let address = text(&written.address).unwrap_or_else(|| "127.0.0.1".to_owned());
            StaticBind::Tcp(resolve(&address, port.0).ok_or_else(|| {
                wrong(
                    "address",
                    &format!("\"{address}\" is no address of this host"),
                    "write an IP address such as \"127.0.0.1\"",
                )
            })?)
        }
        (None, None) => {
            return Err(within(
                Problem::new("it does not say where to listen").instead("add port = 5432, or socket = \"/path\""),
            ));
        }
    };
    let (kind, target) = match (text(&written.service), text(&written.query)) {
        (Some(_), Some(_)) => {
            return Err(wrong("query", "service and query contradict each other", "keep one of the two"));
        }
        (None, Some(query)) => (DestinationKind::PreparedQuery, query),
        (service, None) => (DestinationKind::Service, service.unwrap_or_else(|| name.to_owned())),
    };
    Ok(StaticUpstream {
        bind,
        destination: Destination {
            kind,
            name: target,
            datacenter: text(&written.datacenter),
            namespace: text(&written.namespace),
            partition: text(&written.partition),
            peer: text(&written.peer),
        },
        connect_timeout: written.connect_timeout.map(|span| span.0),
    })
}

fn peer_policy(written: schema::Peers) -> Result<PeerPolicy, Failure> {
    let mut policy = PeerPolicy::default();
    for Text(domain) in written.extra_trust_domains.unwrap_or_default() {
        policy.extra_trust_domains.push(TrustDomain::parse(&domain).map_err(|_| {
            Problem::new(format!("\"{domain}\" is no trust domain"))
                .instead("write it as Consul shows it, such as \"11111111-2222-3333-4444-555555555555.consul\"")
                .key("extra_trust_domains")
                .key("peers")
        })?);
    }
    if written.allow_percent_encoding.is_some_and(|switch| switch.0) {
        policy.grammar = Grammar::PercentEncoding;
    }
    if let Some(skew) = written.leaf_skew {
        if skew.0 > lictor_core::verify::MAX_LEAF_SKEW {
            return Err(Problem::new(format!("{} is too long", humantime::format_duration(skew.0)))
                .instead("write at most \"120s\", or set the clocks right")
                .key("leaf_skew")
                .key("peers")
                .into());
        }
        policy.leaf_not_before_skew = skew.0;
    }
    policy.max_leaf_ttl = written.max_leaf_ttl.map(|span| span.0);
    policy.strict_ca_spiffe = written.strict_ca_spiffe.is_some_and(|switch| switch.0);
    policy.allow_remote_datacenters = written.allow_remote_datacenters.is_none_or(|switch| switch.0);
    Ok(policy)
}

fn agent_settings(written: schema::Agent) -> Result<AgentSettings, Failure> {
    let schema::Agent { address, token, token_file, auth, datacenter, namespace, partition, tls } = written;
    if token.is_some() && token_file.is_some() {
        return Err(Problem::new("token and token_file contradict each other")
            .instead("keep token_file, which others on this host cannot read")
            .key("token")
            .key("agent")
            .into());
    }
    let text = |text: Option<Text>| text.map(|Text(text)| text);
    let path = |text: Option<Text>| text.map(|Text(text)| PathBuf::from(text));
    let client = match (path(tls.client_cert), path(tls.client_key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (certificate, _) => {
            let (there, missing, key) = if certificate.is_some() {
                ("certificate", "key", "client_cert")
            } else {
                ("key", "certificate", "client_key")
            };
            return Err(Problem::new(format!("the client {there} for the agent has no {missing}"))
                .instead(format!(
                    "give both: -client-cert and -client-key, CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, or client_cert \
                     and client_key; or leave the {there} out"
                ))
                .key(key)
                .key("tls")
                .key("agent")
                .into());
        }
    };
    let address = match address {
        Some(Text(address)) => {
            AgentAddress::parse(&address, tls.enabled.is_some_and(|switch| switch.0)).map_err(|error| {
                Problem::new(format!("\"{address}\" is no address of an agent: {error}")).key("address").key("agent")
            })?
        }
        None => AgentAddress::default(),
    };
    Ok(AgentSettings {
        address,
        token,
        token_file: path(token_file),
        auth,
        datacenter: text(datacenter),
        namespace: text(namespace),
        partition: text(partition),
        ca_file: path(tls.ca_file),
        ca_path: path(tls.ca_path),
        client,
        server_name: text(tls.server_name),
        verify: tls.verify.is_none_or(|switch| switch.0),
    })
}

fn admin_settings(written: &schema::Admin) -> Result<Admin, Failure> {
    let Some(Text(text)) = &written.address else { return Ok(Admin::Default) };
    if text == "off" {
        return Ok(Admin::Off);
    }
    let (address, _) = listen_address(text, "\"127.0.0.1:19100\", or \"off\"")
        .map_err(|problem| problem.key("address").key("admin"))?;
    if !address.ip().is_loopback() && !written.allow_remote.is_some_and(|switch| switch.0) {
        return Err(Problem::new(format!(
            "{address} can be reached from other hosts, and the admin listener asks nobody for a password"
        ))
        .instead("write \"127.0.0.1:19100\", or allow it outright with allow_remote = true (-admin-allow-remote)")
        .key("address")
        .key("admin")
        .into());
    }
    Ok(Admin::At(address))
}

/// Reads `[host]:port`; the host as it was written comes second. No host means all addresses.
fn listen_address(text: &str, example: &str) -> Result<(SocketAddr, String), Problem> {
    let wrong = || {
        Problem::new(format!("\"{text}\" is no address to listen on"))
            .instead(format!("write host:port or :port, such as {example}"))
    };
    let (host, port) = host_port(text).ok_or_else(wrong)?;
    let address = if host.is_empty() { Some((Ipv4Addr::UNSPECIFIED, port).into()) } else { resolve(&host, port) };
    address.map(|address| (address, host)).ok_or_else(wrong)
}

/// Reads where an application listens.
fn target(text: &str) -> Result<Target, Problem> {
    if let Some(path) = text.strip_prefix("unix://") {
        return Ok(Target::Unix(absolute(path)?));
    }
    match host_port(text) {
        Some((host, port)) if port > 0 => {
            Ok(Target::Tcp { host: if host.is_empty() { "127.0.0.1".to_owned() } else { host }, port })
        }
        _ => Err(Problem::new(format!("\"{text}\" is no address of an application"))
            .instead("write host:port, such as \"127.0.0.1:8080\", or unix:///path")),
    }
}

/// Splits `host:port`, the host without brackets.
fn host_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let port = port.parse().ok()?;
    Some((host.to_owned(), port))
}

/// The address of a name or IP address of this host. Names are resolved once, at start.
fn resolve(host: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some((ip, port).into());
    }
    (host, port).to_socket_addrs().ok()?.next()
}

fn absolute(path: &str) -> Result<PathBuf, Problem> {
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(Problem::new(format!("\"{path}\" is no absolute path"))
        .instead("write it from the root, such as \"/run/lictor/db.sock\""))
}

#[cfg(test)]
mod tests;
