//! What a registration, or flags and file, mean for the data plane.
//!
//! Whoever may write a service's registration is not the operator of this host: it gets loopback addresses for
//! upstreams and nothing else, unless the operator says more in `registration`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Component, Path},
};

use lictor_core::{
    Destination, DestinationKind, ServiceName,
    consul::{Listen, LocalService, ProxyDefinition},
};
use lictor_proxy::config::{
    Application, BindPolicy, DEFAULT_SOCKET_MODE, InboundConfig, Limits, SidecarConfig, UpstreamBind, UpstreamConfig,
};

use crate::{
    config::schema,
    settings::{RegistrationPolicy, Settings, StaticBind, StaticSidecar, Target},
};

/// The limits of the settings, with the data plane's defaults where nothing is said.
pub(crate) fn limits(written: &schema::Limits) -> Limits {
    let mut limits = Limits { connections: written.max_connections.map(|count| count.0), ..Limits::default() };
    if let Some(count) = written.max_handshakes {
        limits.handshakes = count.0;
    }
    if let Some(count) = written.max_handshakes_per_source {
        limits.handshakes_per_source = count.0;
    }
    if let Some(count) = written.max_held_bytes {
        limits.held_bytes = count.0;
    }
    limits.idle = written.idle_timeout.map(|span| span.0);
    limits
}

/// The configuration of a sidecar that flags or file describe.
pub(crate) fn of_static(sidecar: &StaticSidecar, settings: &Settings) -> SidecarConfig {
    let inbound = sidecar.inbound.as_ref().map(|(bind, target)| {
        let application = match target {
            Target::Tcp { host, port } => Application::Tcp { host: host.clone(), port: *port },
            Target::Unix(path) => Application::Unix(path.clone()),
        };
        let mut inbound = InboundConfig::new(*bind, application);
        overrule(&mut inbound, &settings.inbound_limits);
        inbound
    });
    let upstreams = sidecar.upstreams.iter().map(|(name, upstream)| {
        let bind = match &upstream.bind {
            StaticBind::Tcp(address) => UpstreamBind::Tcp(*address),
            StaticBind::Unix { path, mode } => {
                UpstreamBind::Unix { path: path.clone(), mode: mode.unwrap_or(DEFAULT_SOCKET_MODE) }
            }
        };
        let mut config = UpstreamConfig::new(bind, upstream.destination.clone());
        if let Some(timeout) = upstream.connect_timeout {
            config.connect_timeout = timeout;
        }
        (name.clone(), config)
    });
    SidecarConfig {
        service: sidecar.service.clone(),
        inbound,
        upstreams: upstreams.collect(),
        limits: limits(&settings.limits),
    }
}

/// The configuration that a registration asks for, and what of it is not served, in words.
///
/// `settings` rule over the registration where they say something.
pub(crate) fn of_registration(
    definition: &ProxyDefinition,
    service: &ServiceName,
    settings: &Settings,
) -> (SidecarConfig, Vec<String>) {
    let mut notes = definition.problems.clone();
    let inbound = inbound(definition, settings, &mut notes);
    let mut upstreams = BTreeMap::new();
    for upstream in &definition.upstreams {
        let mut name = label(&upstream.destination);
        let bind = match permitted(&upstream.bind, &settings.registration) {
            Ok(bind) => bind,
            Err(why) => {
                notes.push(format!("upstream {name} is left out: {why}"));
                continue;
            }
        };
        if upstreams.contains_key(&name) {
            name = format!("{name} at {bind}");
        }
        if upstream.max_connections.is_some() {
            notes.push(format!("upstream {name}: limits.max_connections is not served"));
        }
        let mut config = UpstreamConfig::new(bind, upstream.destination.clone());
        config.bind_policy = BindPolicy::Retry;
        if let Some(timeout) = upstream.connect_timeout {
            config.connect_timeout = timeout;
        }
        upstreams.insert(name, config);
    }
    for (unserved, what) in [
        (definition.mode.is_some(), "the proxy's mode is not served: upstreams need a local port or socket"),
        (definition.expose, "exposed paths are not served: nothing is let in without TLS"),
        (definition.telemetry, "telemetry of the registration is not served: metrics are on the admin listener"),
        (
            goes_by_gateway(definition.mesh_gateway.as_deref())
                || definition.upstreams.iter().any(|upstream| goes_by_gateway(upstream.mesh_gateway.as_deref())),
            "mesh gateways are not served: instances are dialled directly",
        ),
    ] {
        if unserved {
            notes.push(what.to_owned());
        }
    }
    let config = SidecarConfig { service: service.clone(), inbound, upstreams, limits: limits(&settings.limits) };
    (config, notes)
}

/// Whether this mode of mesh gateways asks for another way than the direct one.
fn goes_by_gateway(mode: Option<&str>) -> bool {
    mode.is_some_and(|mode| mode != "none")
}

fn inbound(definition: &ProxyDefinition, settings: &Settings, notes: &mut Vec<String>) -> Option<InboundConfig> {
    let (address, port) = match definition.listen.as_ref()? {
        Listen::Tcp { address, port } => (address, *port),
        Listen::Unix { .. } => {
            notes.push("the registration asks for a unix socket as the mesh side, which is not served".to_owned());
            return None;
        }
    };
    let Some(bind) = resolve(address, port) else {
        notes.push(format!("the address \"{address}\" of the registration is none of this host"));
        return None;
    };
    let application = match definition.local_service.as_ref()? {
        LocalService::Tcp { host, port } => Application::Tcp { host: host.clone(), port: *port },
        LocalService::Unix(path) => Application::Unix(path.clone()),
    };
    let mut inbound = InboundConfig::new(bind, application);
    inbound.bind_policy = BindPolicy::Retry;
    if let Some(timeout) = definition.local_connect_timeout {
        inbound.connect_timeout = timeout;
    }
    if let Some(timeout) = definition.handshake_timeout {
        inbound.handshake_timeout = timeout;
    }
    inbound.reauthorize = definition.reauthorize;
    inbound.max_connections = definition.max_inbound_connections.and_then(|count| usize::try_from(count).ok());
    overrule(&mut inbound, &settings.inbound_limits);
    Some(inbound)
}

/// What the operator wrote rules over what the registration says.
fn overrule(inbound: &mut InboundConfig, written: &schema::Inbound) {
    if let Some(span) = written.connect_timeout {
        inbound.connect_timeout = span.0;
    }
    if let Some(span) = written.handshake_timeout {
        inbound.handshake_timeout = span.0;
    }
    if let Some(span) = written.reauthorize {
        inbound.reauthorize = Some(span.0).filter(|period| !period.is_zero());
    }
    if let Some(count) = written.max_connections {
        inbound.max_connections = Some(count.0);
    }
}

/// The address, if the operator lets a registration have it.
fn permitted(bind: &Listen, policy: &RegistrationPolicy) -> Result<UpstreamBind, String> {
    match bind {
        Listen::Tcp { address, port } => {
            let address = resolve(address, *port).ok_or_else(|| format!("\"{address}\" is none of this host"))?;
            if !address.ip().is_loopback() && !policy.allow_public_upstreams {
                return Err(format!(
                    "{address} is not a loopback address, so whoever reaches this host would speak with our identity; \
                     if that is meant, start lictor with -allow-public-upstreams"
                ));
            }
            Ok(UpstreamBind::Tcp(address))
        }
        Listen::Unix { path, mode } => {
            if !policy.socket_directories.iter().any(|directory| is_below(path, directory)) {
                return Err(format!(
                    "the socket {} is in no directory that registration.socket_directories lists",
                    path.display()
                ));
            }
            Ok(UpstreamBind::Unix { path: path.clone(), mode: mode.unwrap_or(DEFAULT_SOCKET_MODE) })
        }
    }
}

/// Whether `path` lies directly in `directory`, written without steps upward.
fn is_below(path: &Path, directory: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && path.parent() == Some(directory)
}

/// The name of an upstream in logs and metrics.
fn label(destination: &Destination) -> String {
    let mut label = destination.name.clone();
    if destination.kind == DestinationKind::PreparedQuery {
        label.push_str(".query");
    }
    for (key, value) in [
        ("ns", &destination.namespace),
        ("ap", &destination.partition),
        ("dc", &destination.datacenter),
        ("peer", &destination.peer),
    ] {
        if let Some(value) = value {
            label.push_str(&format!(" {key}={value}"));
        }
    }
    label
}

fn resolve(host: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some((ip, port).into());
    }
    (host, port).to_socket_addrs().ok()?.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backends, cli, env::Environment};

    fn settings(line: &str) -> Settings {
        // Where several libraries are linked, one must be named.
        let argv = format!("lictor proxy -proxy-id p -tls-backend {} {line}", backends::linked()[0].name);
        match cli::parse(argv.split_whitespace().map(Into::into)).unwrap_or_else(|error| panic!("{error}")) {
            cli::Action::Proxy(flags) => {
                Settings::resolve(&flags, &Environment::default()).unwrap_or_else(|failure| panic!("{failure}"))
            }
            _ => panic!("not proxy"),
        }
    }

    fn config(registration: serde_json::Value, settings: &Settings) -> (SidecarConfig, Vec<String>) {
        let definition = ProxyDefinition::from_service(registration.to_string().as_bytes()).expect("usable");
        let service = ServiceName::parse("web", lictor_core::identity::Grammar::Spiffe).expect("a name");
        of_registration(&definition, &service, settings)
    }

    fn registration(upstreams: serde_json::Value, extra: serde_json::Value) -> serde_json::Value {
        serde_json::json!({
            "Kind": "connect-proxy", "ID": "web-sidecar-proxy", "Service": "web-sidecar-proxy", "Port": 21000,
            "Address": "",
            "Proxy": {
                "DestinationServiceName": "web", "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 8080,
                "Config": extra, "Upstreams": upstreams,
            }
        })
    }

    #[test]
    fn only_a_way_by_mesh_gateways_is_told_of_as_not_served() {
        for (mode, told) in [("", false), ("none", false), ("local", true), ("remote", true)] {
            let gateway = serde_json::json!({ "Mode": mode });
            let upstream = serde_json::json!({
                "DestinationName": "db", "Datacenter": "dc2", "LocalBindPort": 9191, "MeshGateway": gateway,
            });
            let mut of_the_proxy = registration(serde_json::json!([]), serde_json::json!({}));
            of_the_proxy["Proxy"]["MeshGateway"] = gateway;
            let of_an_upstream = registration(serde_json::json!([upstream]), serde_json::json!({}));
            for given in [of_the_proxy, of_an_upstream] {
                let (_, notes) = config(given, &settings(""));
                let said = notes.iter().any(|note| note.contains("mesh gateways"));
                assert_eq!(said, told, "{mode:?}: {notes:?}");
            }
        }
    }

    #[test]
    fn a_plain_registration_becomes_listeners_that_are_tried_again() {
        let upstreams = serde_json::json!([
            {"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 9191},
            {"DestinationType": "prepared_query", "DestinationName": "db", "LocalBindPort": 9192},
            {"DestinationType": "service", "DestinationName": "db", "Datacenter": "dc2", "LocalBindPort": 9193},
        ]);
        let (config, notes) =
            config(registration(upstreams, serde_json::json!({"local_connect_timeout_ms": 1500})), &settings(""));
        assert_eq!(notes, Vec::<String>::new());
        let inbound = config.inbound.expect("there is one");
        assert_eq!(inbound.bind, "0.0.0.0:21000".parse().unwrap());
        assert_eq!(inbound.bind_policy, BindPolicy::Retry);
        assert_eq!(inbound.connect_timeout, std::time::Duration::from_millis(1500));
        assert_eq!(config.upstreams.keys().collect::<Vec<_>>(), ["db", "db dc=dc2", "db.query"]);
        assert_eq!(config.upstreams["db"].bind, UpstreamBind::Tcp("127.0.0.1:9191".parse().unwrap()));
    }

    #[test]
    fn an_upstream_beyond_loopback_needs_the_operators_leave() {
        let upstreams = serde_json::json!([
            {"DestinationName": "db", "LocalBindAddress": "0.0.0.0", "LocalBindPort": 9191},
            {"DestinationName": "cache", "LocalBindPort": 9192},
        ]);
        let (refused, notes) = config(registration(upstreams.clone(), serde_json::json!({})), &settings(""));
        assert_eq!(refused.upstreams.keys().collect::<Vec<_>>(), ["cache"]);
        assert!(notes[0].contains("-allow-public-upstreams"), "{notes:?}");
        let (allowed, _) = config(registration(upstreams, serde_json::json!({})), &settings("-allow-public-upstreams"));
        assert_eq!(allowed.upstreams.len(), 2);
    }

    #[test]
    fn a_socket_is_made_only_in_directories_that_the_operator_listed() {
        let policy = RegistrationPolicy { socket_directories: vec!["/run/mesh".into()], ..Default::default() };
        let socket = |path: &str| Listen::Unix { path: path.into(), mode: None };
        assert!(permitted(&socket("/run/mesh/db.sock"), &policy).is_ok());
        for path in ["/run/mesh/../db.sock", "/run/db.sock", "/run/mesh/a/db.sock"] {
            assert!(permitted(&socket(path), &policy).is_err(), "{path}");
        }
        assert!(permitted(&socket("/run/mesh/db.sock"), &RegistrationPolicy::default()).is_err());
    }

    #[test]
    fn what_the_operator_wrote_rules_over_the_registration() {
        let mut settings = settings("");
        settings.inbound_limits.max_connections = Some(crate::config::values::Count(7));
        let keys = serde_json::json!({"max_inbound_connections": 100});
        let (config, _) = config(registration(serde_json::json!([]), keys), &settings);
        assert_eq!(config.inbound.expect("there is one").max_connections, Some(7));
    }

    #[test]
    fn open_connections_are_judged_again_where_registration_or_operator_say_so_and_the_operator_rules() {
        let period = |keys: serde_json::Value, written: Option<&str>| {
            let mut settings = settings("");
            let span = |text: &str| humantime::parse_duration(text).expect("a duration");
            settings.inbound_limits.reauthorize = written.map(|text| crate::config::values::Span(span(text)));
            config(registration(serde_json::json!([]), keys), &settings).0.inbound.expect("there is one").reauthorize
        };
        let (silent, minute) = (serde_json::json!({}), serde_json::json!({"reauthorize_ms": 60_000}));
        let seconds = std::time::Duration::from_secs;
        assert_eq!(period(silent.clone(), None), None);
        assert_eq!(period(minute.clone(), None), Some(seconds(60)));
        assert_eq!(period(silent, Some("5m")), Some(seconds(300)));
        assert_eq!(period(minute.clone(), Some("5m")), Some(seconds(300)));
        assert_eq!(period(minute, Some("0s")), None);
    }
}
