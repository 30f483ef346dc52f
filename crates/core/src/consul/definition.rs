//! Our own definition as the operator registered it, in a typed form.
//!
//! Two dialects say the same: the service definition of Consul 1.3 and later (`/v1/agent/service/:id`), and the
//! managed proxies of 1.2 to 1.5 (`/v1/agent/connect/proxy/:id`). Whoever may write the registration is not the
//! operator of this process, so numbers are clamped, and what cannot be used is listed and left out.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde_json::Value;

use super::json::{Fields, Problems};
use crate::discovery::{Destination, DestinationKind};

/// The longest timeout that a registration can set. Longer ones mean a mistake in the unit.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(600);

/// The longest period that is taken from a registration.
const MAX_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// The most connections that a registration can ask for.
const MAX_CONNECTIONS: u64 = 1_000_000;

/// The most upstreams that are taken from a registration.
const MAX_UPSTREAMS: usize = 1024;

/// The definition of a connect-proxy.
///
/// Numbers of 0 and empty texts count as absent, as they do for Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyDefinition {
    /// The ID of the proxy service.
    pub id: String,
    /// The name of the proxy service, as `web-sidecar-proxy`.
    pub name: String,
    /// The name of the service that the proxy stands for; our identity.
    pub service: String,
    /// The ID of the instance that the proxy stands for.
    pub service_id: Option<String>,
    /// Where to listen for other services; `None` without port and socket, so there is no public listener.
    pub listen: Option<Listen>,
    /// Where the application is; `None` when the registration does not tell, so nothing can be let in.
    pub local_service: Option<LocalService>,
    /// Our datacenter (1.8 and later).
    pub datacenter: Option<String>,
    /// Our namespace (Enterprise).
    pub namespace: Option<String>,
    /// Our admin partition (Enterprise).
    pub partition: Option<String>,
    /// Tags of the proxy service.
    pub tags: Vec<String>,
    /// Metadata of the proxy service.
    pub meta: Vec<(String, String)>,
    /// The proxy's mode where it is another one than `direct`; `transparent` is not served.
    pub mode: Option<String>,
    /// The mode of mesh gateways (`local`, `remote`, `none`), which is not served.
    pub mesh_gateway: Option<String>,
    /// Whether paths are to be exposed without TLS, which is not served.
    pub expose: bool,
    /// Whether there is a `telemetry` block, which is not served.
    pub telemetry: bool,
    /// The timeout for connecting to the application.
    pub local_connect_timeout: Option<Duration>,
    /// The deadline of an inbound handshake.
    pub handshake_timeout: Option<Duration>,
    /// How often open inbound connections are judged again (`reauthorize_ms`, a key of ours).
    pub reauthorize: Option<Duration>,
    /// The most inbound connections at once.
    pub max_inbound_connections: Option<u32>,
    /// The protocol of the application; anything but `tcp` is for humans here.
    pub protocol: Option<String>,
    /// The upstreams that can be served.
    pub upstreams: Vec<Upstream>,
    /// What is wrong with the registration, in words. What it names is left out or at its default.
    pub problems: Vec<String>,
}

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listen {
    /// A TCP address.
    Tcp {
        /// The address to bind; a name is possible, as Consul takes the service's address.
        address: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Its mode, as in `0600`; the process's default when absent.
        mode: Option<u32>,
    },
}

/// Where the application is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LocalService {
    /// A TCP address.
    Tcp {
        /// A host name or IP address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket (1.10 and later).
    Unix(PathBuf),
}

/// An upstream of the registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it leads.
    pub destination: Destination,
    /// Where the application finds it.
    pub bind: Listen,
    /// How long a connection may take, all attempts together.
    pub connect_timeout: Option<Duration>,
    /// The most connections at once (`limits.max_connections`).
    pub max_connections: Option<u32>,
    /// The protocol, for humans.
    pub protocol: Option<String>,
    /// The mode of mesh gateways, which is not served.
    pub mesh_gateway: Option<String>,
}

/// Why a definition cannot be used at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The service is there and is no proxy.
    #[error(
        "{id:?} is {}, not a connect-proxy; name the proxy's own ID with -proxy-id, or use -sidecar-for {id}",
        kind.as_ref().map_or_else(|| "an ordinary service".to_owned(), |kind| format!("a {kind}"))
    )]
    NotAProxy {
        /// The ID that was asked for.
        id: String,
        /// Its kind, where it has one.
        kind: Option<String>,
    },
    /// It does not say which service it stands for.
    #[error("the registration of {0:?} does not name the service that the proxy stands for")]
    NoService(String),
    /// It is no JSON object.
    #[error("the agent's answer is no service definition: {0}")]
    NotJson(String),
}

impl ProxyDefinition {
    /// Reads the body of `/v1/agent/service/:id`.
    ///
    /// # Errors
    /// [`DefinitionError`] when there is nothing to run by; smaller faults go to [`problems`](Self::problems).
    pub fn from_service(body: &[u8]) -> Result<Self, DefinitionError> {
        let value = object(body)?;
        let mut problems = Problems::new();
        let service = Fields::of(&value, "", &mut problems);
        let id = service.text("ID", &mut problems).unwrap_or_default();
        let kind = service.text("Kind", &mut problems);
        if kind.as_deref() != Some("connect-proxy") {
            return Err(DefinitionError::NotAProxy { id, kind });
        }
        let proxy = service.fields("Proxy", &mut problems);
        let config = proxy.fields("Config", &mut problems);
        let target = proxy
            .text("DestinationServiceName", &mut problems)
            .ok_or_else(|| DefinitionError::NoService(id.clone()))?;
        let listen = listen(&service, &config, &mut problems);
        let local_service = local_service(&proxy, &config, &mut problems);
        let upstreams = upstreams(&proxy, "Upstreams", Dialect::Camel, &mut problems);
        Ok(Self {
            name: service.text("Service", &mut problems).unwrap_or_else(|| id.clone()),
            service: target,
            service_id: proxy.text("DestinationServiceID", &mut problems),
            listen,
            local_service,
            datacenter: service.text("Datacenter", &mut problems),
            namespace: service.text("Namespace", &mut problems),
            partition: service.text("Partition", &mut problems),
            tags: service.texts("Tags", &mut problems),
            meta: service.pairs("Meta", &mut problems),
            mode: proxy.text("Mode", &mut problems).filter(|mode| mode != "direct"),
            mesh_gateway: proxy.fields("MeshGateway", &mut problems).text("Mode", &mut problems),
            expose: {
                let expose = proxy.fields("Expose", &mut problems);
                expose.flag("Checks", &mut problems) || !expose.list("Paths", &mut problems).is_empty()
            },
            upstreams,
            id,
            ..Self::from_config(&config, problems)
        })
    }

    /// Reads the body of `/v1/agent/connect/proxy/:id`, in either form that 1.2 to 1.5 gave it.
    ///
    /// # Errors
    /// As for [`from_service`](Self::from_service).
    pub fn from_managed(body: &[u8]) -> Result<Self, DefinitionError> {
        let value = object(body)?;
        let mut problems = Problems::new();
        let proxy = Fields::of(&value, "", &mut problems);
        let id = proxy.text("ProxyServiceID", &mut problems).unwrap_or_default();
        let config = proxy.fields("Config", &mut problems);
        let target =
            proxy.text("TargetServiceName", &mut problems).ok_or_else(|| DefinitionError::NoService(id.clone()))?;
        // 1.2 keeps the upstreams in Config and in snake case, 1.3 and later beside it and in camel case.
        let mut upstreams_found = upstreams(&proxy, "Upstreams", Dialect::Camel, &mut problems);
        if !proxy.has("Upstreams") {
            upstreams_found = upstreams(&config, "upstreams", Dialect::Snake, &mut problems);
        }
        let listen = config_listen(&config, &mut problems);
        let local_service = config_local_service(&config, &mut problems);
        Ok(Self {
            name: id.clone(),
            service: target,
            service_id: proxy.text("TargetServiceID", &mut problems),
            listen,
            local_service,
            upstreams: upstreams_found,
            id,
            ..Self::from_config(&config, problems)
        })
    }

    /// What the free-form config says, with everything else empty.
    fn from_config(config: &Fields<'_>, mut problems: Problems) -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            service: String::new(),
            service_id: None,
            listen: None,
            local_service: None,
            datacenter: None,
            namespace: None,
            partition: None,
            tags: Vec::new(),
            meta: Vec::new(),
            mode: None,
            mesh_gateway: None,
            expose: false,
            telemetry: config.has("telemetry"),
            local_connect_timeout: timeout(config, "local_connect_timeout_ms", &mut problems),
            handshake_timeout: timeout(config, "handshake_timeout_ms", &mut problems),
            reauthorize: milliseconds(config, "reauthorize_ms", MAX_PERIOD, &mut problems),
            max_inbound_connections: count(config, "max_inbound_connections", &mut problems),
            protocol: config.text("protocol", &mut problems),
            upstreams: Vec::new(),
            problems,
        }
    }
}

/// How the keys of an upstream are written.
#[derive(Clone, Copy)]
enum Dialect {
    Camel,
    Snake,
}

impl Dialect {
    fn key(self, camel: &'static str, snake: &'static str) -> &'static str {
        match self {
            Self::Camel => camel,
            Self::Snake => snake,
        }
    }
}

fn object(body: &[u8]) -> Result<Value, DefinitionError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| DefinitionError::NotJson(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(DefinitionError::NotJson("it is no object".to_owned())) }
}

fn listen(service: &Fields<'_>, config: &Fields<'_>, problems: &mut Problems) -> Option<Listen> {
    if let Some(path) = service.text("SocketPath", problems) {
        return unix(path, None, &service.name("SocketPath"), problems);
    }
    match service.port("Port", problems) {
        Some(port) => {
            let address = service.text("Address", problems).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some(Listen::Tcp { address, port })
        }
        None => config_listen(config, problems),
    }
}

fn config_listen(config: &Fields<'_>, problems: &mut Problems) -> Option<Listen> {
    let port = config.port("bind_port", problems)?;
    let address = config.text("bind_address", problems).unwrap_or_else(|| "0.0.0.0".to_owned());
    Some(Listen::Tcp { address, port })
}

fn local_service(proxy: &Fields<'_>, config: &Fields<'_>, problems: &mut Problems) -> Option<LocalService> {
    if let Some(path) = proxy.text("LocalServiceSocketPath", problems) {
        let key = proxy.name("LocalServiceSocketPath");
        return match unix(path, None, &key, problems)? {
            Listen::Unix { path, .. } => Some(LocalService::Unix(path)),
            Listen::Tcp { .. } => None,
        };
    }
    match proxy.port("LocalServicePort", problems) {
        Some(port) => {
            let host = proxy.text("LocalServiceAddress", problems).unwrap_or_else(|| "127.0.0.1".to_owned());
            Some(LocalService::Tcp { host, port })
        }
        None => {
            let found = config_local_service(config, problems);
            if found.is_none() {
                let key = proxy.name("LocalServicePort");
                problems.push(format!("{key}: absent, so no connection can be handed to the application"));
            }
            found
        }
    }
}

fn config_local_service(config: &Fields<'_>, problems: &mut Problems) -> Option<LocalService> {
    let text = config.text("local_service_address", problems)?;
    let parsed = text.rsplit_once(':').and_then(|(host, port)| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        Some(LocalService::Tcp { host: host.to_owned(), port: port.parse().ok().filter(|port| *port != 0)? })
    });
    if parsed.is_none() {
        problems.push(format!("{}: {text:?} is no host:port", config.name("local_service_address")));
    }
    parsed
}

fn unix(path: String, mode: Option<u32>, key: &str, problems: &mut Problems) -> Option<Listen> {
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        problems.push(format!("{key}: {} is no absolute path", path.display()));
        return None;
    }
    Some(Listen::Unix { path, mode })
}

fn timeout(config: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<Duration> {
    milliseconds(config, key, MAX_TIMEOUT, problems)
}

fn milliseconds(config: &Fields<'_>, key: &str, most: Duration, problems: &mut Problems) -> Option<Duration> {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    config.number(key, most, problems).map(Duration::from_millis)
}

fn count(config: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<u32> {
    config.number(key, MAX_CONNECTIONS, problems).and_then(|count| u32::try_from(count).ok())
}

fn upstreams(parent: &Fields<'_>, key: &str, dialect: Dialect, problems: &mut Problems) -> Vec<Upstream> {
    let list = parent.list(key, problems);
    let mut upstreams: Vec<Upstream> = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let path = format!("{}[{index}]", parent.name(key));
        if index >= MAX_UPSTREAMS {
            problems.push(format!("{path}: more than {MAX_UPSTREAMS} upstreams; the rest is left out"));
            break;
        }
        let Some(upstream) = upstream(&Fields::of(value, path.clone(), problems), dialect, problems) else { continue };
        if upstreams.iter().any(|other| other.bind == upstream.bind) {
            problems.push(format!("{path}: another upstream has the same bind address; this one is left out"));
            continue;
        }
        upstreams.push(upstream);
    }
    upstreams
}

fn upstream(fields: &Fields<'_>, dialect: Dialect, problems: &mut Problems) -> Option<Upstream> {
    let key = |camel, snake| dialect.key(camel, snake);
    let name_key = key("DestinationName", "destination_name");
    let name = fields.text(name_key, problems);
    let config = fields.fields(key("Config", "config"), problems);
    let kind_key = key("DestinationType", "destination_type");
    let kind = match fields.text(kind_key, problems).as_deref() {
        None | Some("service") => DestinationKind::Service,
        Some("prepared_query") => DestinationKind::PreparedQuery,
        Some(other) => {
            problems.push(format!("{}: unknown type {other:?} is taken as service", fields.name(kind_key)));
            DestinationKind::Service
        }
    };
    let bind = upstream_bind(fields, dialect, problems);
    let Some(name) = name.filter(|name| name != "*") else {
        problems.push(format!("{}: names no service; the upstream is left out", fields.name(name_key)));
        return None;
    };
    let limits = config.fields("limits", problems);
    let gateway = fields.fields(key("MeshGateway", "mesh_gateway"), problems);
    // 1.2 keeps the upstream's own settings beside its names, later versions in Config.
    let connect_timeout =
        timeout(&config, "connect_timeout_ms", problems).or_else(|| timeout(fields, "connect_timeout_ms", problems));
    Some(Upstream {
        destination: Destination {
            kind,
            name,
            datacenter: fields.text(key("Datacenter", "datacenter"), problems),
            namespace: fields.text(key("DestinationNamespace", "destination_namespace"), problems),
            partition: fields.text(key("DestinationPartition", "destination_partition"), problems),
            peer: fields.text(key("DestinationPeer", "destination_peer"), problems),
        },
        bind: bind?,
        connect_timeout,
        max_connections: count(&limits, "max_connections", problems),
        protocol: config.text("protocol", problems),
        mesh_gateway: gateway.text(key("Mode", "mode"), problems),
    })
}

fn upstream_bind(fields: &Fields<'_>, dialect: Dialect, problems: &mut Problems) -> Option<Listen> {
    let key = |camel, snake| dialect.key(camel, snake);
    let path_key = key("LocalBindSocketPath", "local_bind_socket_path");
    if let Some(path) = fields.text(path_key, problems) {
        let mode_key = key("LocalBindSocketMode", "local_bind_socket_mode");
        let mode = fields.text(mode_key, problems).and_then(|text| {
            let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
            if mode.is_none() {
                problems.push(format!("{}: {text:?} is no mode such as 0600", fields.name(mode_key)));
            }
            mode
        });
        return unix(path, mode, &fields.name(path_key), problems);
    }
    let address_key = key("LocalBindAddress", "local_bind_address");
    let address = fields.text(address_key, problems).unwrap_or_else(|| "127.0.0.1".to_owned());
    let address = if address == "localhost" { "127.0.0.1".to_owned() } else { address };
    let port_key = key("LocalBindPort", "local_bind_port");
    let Some(port) = fields.port(port_key, problems) else {
        // An upstream that only central configuration knows has no place to listen, and needs none.
        if !fields.flag("CentrallyConfigured", problems) {
            problems.push(format!("{}: neither port nor socket; the upstream is left out", fields.name(port_key)));
        }
        return None;
    };
    if address.parse::<IpAddr>().is_err() {
        let key = fields.name(address_key);
        problems.push(format!("{key}: {address:?} is no IP address; the upstream is left out"));
        return None;
    }
    Some(Listen::Tcp { address, port })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::captured::captured, *};

    fn service(value: &Value) -> ProxyDefinition {
        ProxyDefinition::from_service(value.to_string().as_bytes()).unwrap()
    }

    fn registration() -> Value {
        json!({
            "Kind": "connect-proxy", "ID": "web-proxy", "Service": "web-proxy", "Port": 21000,
            "Proxy": {
                "DestinationServiceName": "web", "LocalServicePort": 8080,
                "Upstreams": [{"DestinationName": "db", "LocalBindPort": 9191}],
            },
        })
    }

    fn tcp(address: &str, port: u16) -> Listen {
        Listen::Tcp { address: address.to_owned(), port }
    }

    #[test]
    fn a_sidecar_of_a_real_agent_is_read() {
        let read = ProxyDefinition::from_service(&captured!("agent-service-sidecar")).unwrap();
        assert_eq!(read.problems, Vec::<String>::new());
        assert_eq!((read.id.as_str(), read.service.as_str()), ("web-1-sidecar-proxy", "web"));
        assert_eq!(read.listen, Some(tcp("0.0.0.0", 21000)), "an empty address means all of them");
        assert_eq!(read.local_service, Some(LocalService::Tcp { host: "127.0.0.1".to_owned(), port: 8080 }));
        assert_eq!(read.datacenter.as_deref(), Some("dc1"));
        assert_eq!(read.local_connect_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(read.handshake_timeout, Some(Duration::from_millis(8000)));
        assert_eq!((read.tags.len(), read.meta.len()), (1, 1));
        let [db, query] = read.upstreams.as_slice() else { panic!("{read:?}") };
        assert_eq!((db.destination.name.as_str(), &db.bind), ("db", &tcp("127.0.0.1", 19191)));
        assert_eq!(db.connect_timeout, Some(Duration::from_millis(2500)));
        assert_eq!(query.destination.kind, DestinationKind::PreparedQuery);
        assert_eq!(query.destination.datacenter.as_deref(), Some("dc1"));
    }

    #[test]
    fn central_configuration_sockets_and_peers_are_read() {
        let read = ProxyDefinition::from_service(&captured!("v122-agent-service-central-config")).unwrap();
        assert_eq!(read.max_inbound_connections, Some(77));
        let [_, _, cache, far] = read.upstreams.as_slice() else { panic!("{read:?}") };
        assert_eq!(cache.bind, Listen::Unix { path: "/tmp/x.sock".into(), mode: Some(0o600) });
        assert_eq!(cache.connect_timeout, Some(Duration::from_millis(4321)));
        assert_eq!(far.destination.peer.as_deref(), Some("cluster-b"));
        let read = ProxyDefinition::from_service(&captured!("v13-agent-service-sidecar")).unwrap();
        assert_eq!((read.upstreams.len(), read.problems.len()), (0, 0));
        ProxyDefinition::from_service(&captured!("v122-agent-service-sidecar")).unwrap();
    }

    #[test]
    fn managed_proxies_are_read_in_both_dialects() {
        let read = ProxyDefinition::from_managed(&captured!("managed12-proxy-config")).unwrap();
        assert_eq!((read.id.as_str(), read.service.as_str()), ("web-1-proxy", "web"));
        assert_eq!(read.listen, Some(tcp("127.0.0.1", 25008)));
        assert_eq!(read.local_service, Some(LocalService::Tcp { host: "127.0.0.1".to_owned(), port: 8080 }));
        assert_eq!(read.upstreams[0].bind, tcp("127.0.0.1", 19400));
        assert!(read.telemetry);
        let read = ProxyDefinition::from_managed(&captured!("managed13-proxy-config-acl")).unwrap();
        assert_eq!(read.upstreams[0].destination.name, "db");
        assert_eq!(read.handshake_timeout, Some(Duration::from_millis(1234)));
        let read = ProxyDefinition::from_managed(&captured!("managed15-proxy-config")).unwrap();
        assert_eq!(read.listen, Some(tcp("0.0.0.0", 25099)));
        assert_eq!(read.upstreams[0].connect_timeout, Some(Duration::from_millis(700)));
        assert_eq!(read.problems, Vec::<String>::new());
    }

    #[test]
    fn an_ordinary_service_is_an_error_that_says_what_to_do() {
        let error = ProxyDefinition::from_service(&captured!("agent-service-parent")).unwrap_err();
        let words = error.to_string();
        assert!(words.contains("ordinary service") && words.contains("-sidecar-for web-1"), "{words}");
        let gateway = json!({"Kind": "mesh-gateway", "ID": "gw"}).to_string();
        let error = ProxyDefinition::from_service(gateway.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("a mesh-gateway"), "{error}");
        for body in ["", "[]", "7", "null"] {
            let error = ProxyDefinition::from_service(body.as_bytes()).unwrap_err();
            assert!(matches!(error, DefinitionError::NotJson(_)), "{body}");
        }
    }

    #[test]
    fn a_wrong_type_in_one_key_falls_to_its_default_and_is_listed() {
        for (key, value) in [
            ("local_connect_timeout_ms", json!("soon")),
            ("local_connect_timeout_ms", json!([1])),
            ("local_connect_timeout_ms", json!(-5)),
            ("local_connect_timeout_ms", json!(1.5)),
            ("handshake_timeout_ms", json!({})),
            ("reauthorize_ms", json!("1m")),
            ("max_inbound_connections", json!(true)),
            ("protocol", json!(7)),
        ] {
            let mut changed = registration();
            changed["Proxy"]["Config"] = json!({ "unknown": {"deep": [1]} });
            changed["Proxy"]["Config"][key] = value.clone();
            let read = service(&changed);
            assert_eq!(read.problems.len(), 1, "{key} {value}: {:?}", read.problems);
            assert!(read.problems[0].starts_with(&format!("Proxy.Config.{key}: ")), "{:?}", read.problems);
            let mut without_problems = read;
            without_problems.problems.clear();
            assert_eq!(without_problems, service(&registration()), "{key} {value}");
        }
    }

    #[test]
    fn numbers_may_be_texts_or_whole_floats_and_are_clamped() {
        let mut changed = registration();
        changed["Proxy"]["Config"] = json!({
            "local_connect_timeout_ms": "1500", "handshake_timeout_ms": 2000.0, "max_inbound_connections": "0",
            "reauthorize_ms": 3_600_000,
        });
        changed["Proxy"]["Upstreams"][0]["Config"] = json!({
            "connect_timeout_ms": 99_999_999_999_u64, "limits": {"max_connections": "3"},
        });
        let read = service(&changed);
        assert_eq!(read.local_connect_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(read.handshake_timeout, Some(Duration::from_secs(2)));
        assert_eq!(read.reauthorize, Some(Duration::from_secs(3600)));
        assert_eq!(read.max_inbound_connections, None);
        assert_eq!(read.upstreams[0].connect_timeout, Some(MAX_TIMEOUT));
        assert_eq!(read.upstreams[0].max_connections, Some(3));
        assert_eq!(read.problems.len(), 1, "{:?}", read.problems);
    }

    #[test]
    fn an_upstream_that_cannot_be_served_is_left_out_and_listed() {
        for fault in [
            json!(7),
            json!({"LocalBindPort": 9192}),
            json!({"DestinationName": "*", "LocalBindPort": 9192}),
            json!({"DestinationName": "x"}),
            json!({"DestinationName": "x", "LocalBindPort": 70000}),
            json!({"DestinationName": "x", "LocalBindPort": 9191}),
            json!({"DestinationName": "x", "LocalBindPort": 9192, "LocalBindAddress": "all"}),
            json!({"DestinationName": "x", "LocalBindSocketPath": "relative.sock"}),
        ] {
            let mut changed = registration();
            changed["Proxy"]["Upstreams"].as_array_mut().unwrap().push(fault.clone());
            let read = service(&changed);
            assert_eq!(read.upstreams.len(), 1, "{fault}");
            assert!(!read.problems.is_empty(), "{fault}");
        }
        let mut central = registration();
        let unbound = json!({"DestinationName": "x", "CentrallyConfigured": true});
        central["Proxy"]["Upstreams"].as_array_mut().unwrap().push(unbound);
        assert_eq!(service(&central).problems, Vec::<String>::new());
    }

    #[test]
    fn an_unknown_type_of_destination_is_taken_as_a_service_and_listed() {
        let mut changed = registration();
        changed["Proxy"]["Upstreams"][0]["DestinationType"] = json!("galaxy");
        let read = service(&changed);
        assert_eq!(read.upstreams[0].destination.kind, DestinationKind::Service);
        assert_eq!(read.problems.len(), 1);
    }

    #[test]
    fn null_and_absent_mean_the_same_everywhere() {
        let mut changed = registration();
        changed["Tags"] = json!(null);
        changed["Meta"] = json!(null);
        changed["Address"] = json!(null);
        changed["Proxy"]["Config"] = json!(null);
        changed["Proxy"]["Mode"] = json!("direct");
        changed["Proxy"]["MeshGateway"] = json!({});
        changed["Proxy"]["Upstreams"][0]["Config"] = json!(null);
        assert_eq!(service(&changed), service(&registration()));
        changed["Proxy"]["Upstreams"] = json!(null);
        assert!(service(&changed).upstreams.is_empty());
    }

    #[test]
    fn a_registration_without_a_local_port_has_no_local_service_and_says_so() {
        let mut changed = registration();
        changed["Proxy"]["LocalServicePort"] = json!(0);
        let read = service(&changed);
        assert_eq!(read.local_service, None);
        assert!(read.problems[0].contains("LocalServicePort"), "{:?}", read.problems);
        changed["Proxy"]["Config"] = json!({"local_service_address": "[::1]:80"});
        assert_eq!(service(&changed).local_service, Some(LocalService::Tcp { host: "::1".to_owned(), port: 80 }));
        changed["Proxy"]["LocalServiceSocketPath"] = json!("/run/app.sock");
        assert_eq!(service(&changed).local_service, Some(LocalService::Unix("/run/app.sock".into())));
    }

    #[test]
    fn the_bind_keys_of_the_config_count_only_without_a_port_of_the_service() {
        let mut changed = registration();
        changed["Proxy"]["Config"] = json!({"bind_address": "127.0.0.9", "bind_port": 1234});
        assert_eq!(service(&changed).listen, Some(tcp("0.0.0.0", 21000)));
        changed["Port"] = json!(0);
        assert_eq!(service(&changed).listen, Some(tcp("127.0.0.9", 1234)));
    }

    proptest::proptest! {
        #[test]
        fn no_registration_makes_the_reader_panic(any in super::super::captured::json(), key in 0..6_usize) {
            let _ = ProxyDefinition::from_service(any.to_string().as_bytes());
            let _ = ProxyDefinition::from_managed(any.to_string().as_bytes());
            let mut changed = registration();
            match key {
                0 => changed["Proxy"] = any,
                1 => changed["Proxy"]["Config"] = any,
                2 => changed["Proxy"]["Upstreams"] = any,
                3 => changed["Proxy"]["Upstreams"][0] = any,
                4 => changed["Proxy"]["Upstreams"][0]["Config"] = any,
                _ => changed["Port"] = any,
            }
            let body = changed.to_string();
            if let Ok(read) = ProxyDefinition::from_service(body.as_bytes()) {
                proptest::prop_assert!(read.problems.len() <= 64 * 8);
                proptest::prop_assert!(read.local_connect_timeout.is_none_or(|timeout| timeout <= MAX_TIMEOUT));
            }
        }
    }
}
