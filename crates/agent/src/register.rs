//! `PUT /v1/agent/service/register` and `…/deregister/:id`: reading a registration, its sidecar, its checks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::catalog::{self, Proxy, Service};
use crate::checks::{self, Check, Kind, Status};
use crate::dialect::Dialect;
use crate::leaf;
use crate::options::Options;
use crate::request::{Request, known_keys};
use crate::store::{Shared, State};

const SERVICE_KEYS: &[&str] = &[
    "Kind",
    "ID",
    "Name",
    "Tags",
    "Port",
    "Ports",
    "Address",
    "SocketPath",
    "TaggedAddresses",
    "EnableTagOverride",
    "Meta",
    "Weights",
    "Check",
    "Checks",
    "Token",
    "Proxy",
    "Connect",
    "Namespace",
    "Partition",
    "Locality",
];
const PROXY_KEYS: &[&str] = &[
    "DestinationServiceName",
    "DestinationServiceID",
    "LocalServiceAddress",
    "LocalServicePort",
    "LocalServiceSocketPath",
    "Mode",
    "TransparentProxy",
    "Config",
    "Upstreams",
    "MeshGateway",
    "Expose",
    "EnvoyExtensions",
    "AccessLogs",
    "MutualTLSMode",
];
const UPSTREAM_KEYS: &[&str] = &[
    "DestinationType",
    "DestinationNamespace",
    "DestinationPartition",
    "DestinationPeer",
    "DestinationName",
    "Datacenter",
    "LocalBindAddress",
    "LocalBindPort",
    "LocalBindSocketPath",
    "LocalBindSocketMode",
    "Config",
    "MeshGateway",
    "CentrallyConfigured",
];

/// A registration that was read and found whole.
pub(crate) struct Registration {
    pub(crate) service: Service,
    checks: Vec<Map<String, Value>>,
    sidecar: Option<Map<String, Value>>,
}

/// Why a registration was refused.
pub(crate) enum Refused {
    /// The JSON is not what it should be.
    Decode(String),
    /// It says things that cannot be.
    Invalid(Vec<String>),
    /// The one text, as it is.
    Plain(String),
}

impl Refused {
    fn answer(self, dialect: Dialect) -> Answer {
        let text = match self {
            // This endpoint alone has no "Bad request" in front in the old dialect.
            Self::Decode(text) => format!("Request decode failed: {text}"),
            Self::Plain(text) => text,
            Self::Invalid(all) => {
                let front = if dialect.is_today() { "Validation failed: " } else { "" };
                format!("{front}{}", several(&all))
            }
        };
        Answer::text(400, text)
    }

    pub(crate) fn text(self) -> String {
        match self {
            Self::Decode(text) | Self::Plain(text) => text,
            Self::Invalid(all) => several(&all),
        }
    }
}

/// Errors as Go's multierror prints them.
pub(crate) fn several(errors: &[String]) -> String {
    let mut out = match errors.len() {
        1 => "1 error occurred:\n".to_owned(),
        n => format!("{n} errors occurred:\n"),
    };
    for error in errors {
        out.push_str(&format!("\t* {error}\n"));
    }
    out.push('\n');
    out
}

/// `PUT /v1/agent/service/register`
pub(crate) fn put(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let body = req.json_object().map_err(|e| Refused::Decode(e).answer(dialect))?;
    let registration = parse(body, dialect).map_err(|e| e.answer(dialect))?;
    let replace = req.flag("replace-existing-checks");
    shared.update(|state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        for name in names(&registration) {
            caller.need(Right::ServiceWrite(&name), dialect).map_err(|text| {
                // The one refusal where the old dialect names the permission, too.
                if dialect == Dialect::Old {
                    Answer::forbidden(format!("{text}: Missing service:write on {name}"))
                } else {
                    Answer::forbidden(text)
                }
            })?;
        }
        apply(shared, state, registration, req.token.clone(), replace).map_err(|e| e.answer(dialect))?;
        Ok(Answer::done(dialect))
    })
}

/// `PUT /v1/agent/service/deregister/:id`
pub(crate) fn deregister(shared: &Shared, req: &Request, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.update(|state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        let Some(service) = state.catalog.services.get(id).filter(|s| s.node.is_none()) else {
            return match dialect {
                Dialect::Today => Err(Answer::text(
                    404,
                    format!("Unknown service ID \"{id}\". Ensure that the service ID is passed, not the service name."),
                )),
                Dialect::Old => Ok(Answer::done(dialect)),
            };
        };
        caller.need(Right::ServiceWrite(&service.name), dialect).map_err(Answer::forbidden)?;
        catalog::remove(state, id);
        Ok(Answer::done(dialect))
    })
}

/// Reads a body and checks it as far as that goes without the state.
pub(crate) fn parse(body: Map<String, Value>, dialect: Dialect) -> Result<Registration, Refused> {
    let mut map = known_keys(body, SERVICE_KEYS, true).map_err(Refused::Decode)?;
    if let Some(Value::String(ns)) = map.get("Namespace")
        && !ns.is_empty()
    {
        return Err(Refused::Plain("Invalid namespace: Namespaces are a Consul Enterprise feature".to_owned()));
    }
    let name = text(&map, "Name")?;
    if name.is_empty() {
        return Err(Refused::Plain("Missing service name".to_owned()));
    }
    let id = Some(text(&map, "ID")?).filter(|id| !id.is_empty()).unwrap_or_else(|| name.clone());
    let kind = text(&map, "Kind")?;
    // Other keys in here, `Proxy` of the days of managed proxies among them, are taken and not looked at.
    let mut connect = Map::new();
    for (key, value) in object(&mut map, "Connect")? {
        let plain = key.replace('_', "");
        if let Some(known) = ["Native", "SidecarService"].iter().find(|k| k.eq_ignore_ascii_case(&plain)) {
            connect.insert((*known).to_owned(), value);
        }
    }
    let sidecar = match connect.remove("SidecarService") {
        Some(Value::Object(sidecar)) => Some(sidecar),
        _ => None,
    };
    let native = connect.get("Native").and_then(Value::as_bool).unwrap_or(false);
    let proxy_map = object(&mut map, "Proxy")?;
    let proxy = if kind.is_empty() && proxy_map.is_empty() { None } else { Some(parse_proxy(proxy_map)?) };
    let service = Service {
        id,
        name,
        kind,
        tags: strings(&map, "Tags")?,
        meta: string_map(&map, "Meta")?,
        port: port(&map, "Port")?,
        address: text(&map, "Address")?,
        socket_path: text(&map, "SocketPath")?,
        tagged_addresses: object(&mut map, "TaggedAddresses")?,
        weights: weights(&mut map)?,
        enable_tag_override: map.get("EnableTagOverride").and_then(Value::as_bool).unwrap_or(false),
        proxy,
        native,
        sidecar_of: None,
        node: None,
        create_index: 0,
        modify_index: 0,
    };
    checked(&service, dialect)?;
    let mut checks = Vec::new();
    if let Some(Value::Object(check)) = map.remove("Check")
        && !check.is_empty()
    {
        checks.push(check);
    }
    if let Some(Value::Array(list)) = map.remove("Checks") {
        for item in list {
            match item {
                Value::Object(check) => checks.push(check),
                other => return Err(type_error("Checks", &other)),
            }
        }
    }
    // Definitions are read once without a target, so that a bad one is refused before anything changes.
    for check in &checks {
        checks::parse(check.clone(), "", "", "").map_err(Refused::Plain)?;
    }
    if let Some(sidecar) = &sidecar {
        let keys = known_keys(sidecar.clone(), SERVICE_KEYS, true).map_err(Refused::Decode)?;
        if keys.get("ID").and_then(Value::as_str).is_some_and(|id| !id.is_empty()) {
            return Err(Refused::Invalid(vec![
                "A SidecarService cannot specify an ID as this is managed by the agent".to_owned(),
            ]));
        }
        if keys.get("Connect").and_then(|c| c.get("SidecarService")).is_some_and(|s| !s.is_null()) {
            return Err(Refused::Invalid(vec!["A SidecarService cannot have a nested SidecarService".to_owned()]));
        }
    }
    Ok(Registration { service, checks, sidecar })
}

/// Puts a registration into the catalog, with its sidecar and all checks.
pub(crate) fn apply(
    shared: &Shared,
    state: &mut State,
    registration: Registration,
    token: Option<String>,
    replace_checks: bool,
) -> Result<(), Refused> {
    let Registration { service, checks, sidecar } = registration;
    // The sidecar is worked out before the parent is stored: both come or none.
    let sidecar = sidecar.map(|map| sidecar_of(&shared.options, state, &service, map)).transpose()?;
    store(shared, state, service, checks, token.clone(), replace_checks)?;
    if let Some((sidecar, mut definitions)) = sidecar {
        let defaults = definitions.is_empty();
        let key = sidecar.id.clone();
        let target = format!("{}:{}", check_host(&sidecar), sidecar.port);
        let parent = sidecar.sidecar_of.clone().unwrap_or_default();
        store(shared, state, sidecar, std::mem::take(&mut definitions), token, replace_checks)?;
        if defaults {
            checks::put(
                state,
                fresh_check(
                    &key,
                    1,
                    "Connect Sidecar Listening",
                    Status::Critical,
                    Kind::Tcp {
                        target,
                        interval: shared.options.sidecar_check_interval,
                        timeout: Duration::from_secs(10),
                        next: Instant::now(),
                    },
                ),
            );
            checks::put(
                state,
                fresh_check(
                    &key,
                    2,
                    &format!("Connect Sidecar Aliasing {parent}"),
                    Status::Passing,
                    Kind::Alias { of: parent },
                ),
            );
        }
    }
    Ok(())
}

/// All names that the token must be able to write.
fn names(registration: &Registration) -> Vec<String> {
    let service = &registration.service;
    let mut names = vec![service.name.clone()];
    if let Some(proxy) = service.proxy.as_ref().filter(|_| service.kind == "connect-proxy") {
        names.push(proxy.destination_name.clone());
    }
    if let Some(sidecar) = &registration.sidecar {
        let named = sidecar
            .iter()
            .find(|(k, _)| k.eq_ignore_ascii_case("name"))
            .and_then(|(_, v)| v.as_str())
            .filter(|v| !v.is_empty());
        names.push(named.map_or_else(|| format!("{}-sidecar-proxy", service.name), str::to_owned));
    }
    names
}

fn store(
    shared: &Shared,
    state: &mut State,
    service: Service,
    definitions: Vec<Map<String, Value>>,
    token: Option<String>,
    replace_checks: bool,
) -> Result<(), Refused> {
    let key = service.key();
    let connect_name = match service.kind.as_str() {
        "connect-proxy" => service.connect_name().map(str::to_owned),
        _ => None,
    };
    let name = service.name.clone();
    catalog::put(state, service);
    let several = definitions.len() > 1;
    let mut ids = Vec::new();
    for (n, definition) in definitions.into_iter().enumerate() {
        let id = if several { format!("service:{key}:{}", n + 1) } else { format!("service:{key}") };
        let check = checks::parse(definition, &key, &id, &format!("Service '{name}' check")).map_err(Refused::Plain)?;
        ids.push(check.id.clone());
        checks::put(state, check);
    }
    if replace_checks {
        let before = state.catalog.checks.len();
        state.catalog.checks.retain(|id, c| c.service != key || ids.contains(id));
        if state.catalog.checks.len() != before {
            catalog::check_changed(state, &key);
        }
    }
    if let Some(connect_name) = connect_name {
        leaf::sidecar_registered(shared, state, &connect_name, token);
    }
    Ok(())
}

/// Makes the second service of a registration with `Connect.SidecarService`.
fn sidecar_of(
    options: &Options,
    state: &State,
    parent: &Service,
    definition: Map<String, Value>,
) -> Result<(Service, Vec<Map<String, Value>>), Refused> {
    let mut map = known_keys(definition, SERVICE_KEYS, true).map_err(Refused::Decode)?;
    let id = format!("{}-sidecar-proxy", parent.id);
    let proxy_map = object(&mut map, "Proxy")?;
    let mut proxy = parse_proxy(proxy_map)?;
    proxy.destination_name = parent.name.clone();
    proxy.destination_id = parent.id.clone();
    if proxy.local_socket.is_empty() {
        if proxy.local_address.is_empty() {
            proxy.local_address = "127.0.0.1".to_owned();
        }
        if proxy.local_port == 0 {
            proxy.local_port = parent.port;
        }
    }
    let or = |own: String, parents: &str| {
        if own.is_empty() { parents.to_owned() } else { own }
    };
    let tags = strings(&map, "Tags")?;
    let meta = string_map(&map, "Meta")?;
    let mut checks = Vec::new();
    if let Some(Value::Object(check)) = map.remove("Check")
        && !check.is_empty()
    {
        checks.push(check);
    }
    if let Some(Value::Array(list)) = map.remove("Checks") {
        checks.extend(list.into_iter().filter_map(|c| match c {
            Value::Object(check) => Some(check),
            _ => None,
        }));
    }
    for check in &checks {
        checks::parse(check.clone(), "", "", "").map_err(Refused::Plain)?;
    }
    let mut port = port(&map, "Port")?;
    if port == 0 {
        port = sidecar_port(options, state, &id)?;
    }
    let service = Service {
        name: or(text(&map, "Name")?, &format!("{}-sidecar-proxy", parent.name)),
        kind: "connect-proxy".to_owned(),
        tags: if tags.is_empty() { parent.tags.clone() } else { tags },
        meta: if meta.is_empty() { parent.meta.clone() } else { meta },
        port,
        address: or(text(&map, "Address")?, &parent.address),
        socket_path: text(&map, "SocketPath")?,
        tagged_addresses: object(&mut map, "TaggedAddresses")?,
        weights: weights(&mut map)?,
        enable_tag_override: map.get("EnableTagOverride").and_then(Value::as_bool).unwrap_or(false),
        proxy: Some(proxy),
        native: false,
        sidecar_of: Some(parent.id.clone()),
        node: None,
        create_index: 0,
        modify_index: 0,
        id,
    };
    checked(&service, options.dialect)?;
    Ok((service, checks))
}

/// The port that the sidecar had before, or the lowest free one of the range.
fn sidecar_port(options: &Options, state: &State, id: &str) -> Result<u16, Refused> {
    if let Some(old) = state.catalog.services.get(id) {
        return Ok(old.port);
    }
    let taken = |port: u16| state.catalog.services.values().any(|s| s.node.is_none() && s.port == port);
    options
        .sidecar_ports
        .clone()
        .find(|port| !taken(*port))
        .ok_or_else(|| Refused::Plain("none left in the port range for sidecars".to_owned()))
}

fn fresh_check(service: &str, n: u8, name: &str, status: Status, kind: Kind) -> Check {
    Check {
        id: format!("service:{service}:{n}"),
        name: name.to_owned(),
        service: service.to_owned(),
        status,
        notes: String::new(),
        output: String::new(),
        kind,
        create_index: 0,
        modify_index: 0,
    }
}

/// Where the TCP check of a sidecar goes.
fn check_host(sidecar: &Service) -> String {
    match sidecar.address.as_str() {
        "" => "127.0.0.1".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        other => other.to_owned(),
    }
}

/// All that is wrong with a proxy, in the order in which each dialect lists it.
fn validate(service: &Service, dialect: Dialect) -> Vec<String> {
    let mut wrong = Vec::new();
    if service.kind != "connect-proxy" {
        return wrong;
    }
    let empty = Proxy::default();
    let proxy = service.proxy.as_ref().unwrap_or(&empty);
    let no_port = service.port == 0 && service.socket_path.is_empty();
    if no_port && dialect.is_today() {
        wrong.push("Port or SocketPath must be set for a connect-proxy".to_owned());
    }
    if proxy.destination_name.is_empty() {
        wrong.push("Proxy.DestinationServiceName must be non-empty for Connect proxy services".to_owned());
    }
    if proxy.destination_name == "*" {
        wrong.push("Proxy.DestinationServiceName must not be a wildcard for Connect proxy services".to_owned());
    }
    if no_port && !dialect.is_today() {
        wrong.push("Port or SocketPath must be set for a Connect proxy".to_owned());
    }
    if service.native {
        wrong.push("A Proxy cannot also be Connect Native, only typical services".to_owned());
    }
    validate_upstreams(&proxy.upstreams, &mut wrong);
    wrong
}

fn validate_upstreams(upstreams: &[Map<String, Value>], wrong: &mut Vec<String>) {
    let mut binds = BTreeSet::new();
    for upstream in upstreams {
        let text = |key: &str| upstream.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("DestinationName") {
            "" => wrong.push("upstream destination name cannot be empty".to_owned()),
            "*" => wrong.push("upstream destination name cannot be a wildcard".to_owned()),
            _ => {}
        }
        if !text("DestinationPeer").is_empty() && !text("Datacenter").is_empty() {
            wrong.push("upstream cannot specify both destination peer and datacenter".to_owned());
        }
        let port = upstream.get("LocalBindPort").and_then(Value::as_u64).unwrap_or(0);
        let path = text("LocalBindSocketPath");
        if port == 0 && path.is_empty() {
            wrong.push("upstream local bind port or local socket path must be defined and nonzero".to_owned());
            continue;
        }
        let address = match text("LocalBindAddress") {
            "" => "127.0.0.1",
            other => other,
        };
        let bind = if path.is_empty() { format!("{address}:{port}") } else { path.to_owned() };
        if !binds.insert(bind.clone()) {
            wrong.push(format!(
                "upstreams cannot contain duplicates by local bind address and port or unix path; \"{bind}\" is \
                 specified twice"
            ));
        }
    }
}

/// `Err` where something is wrong with the proxy or its address.
fn checked(service: &Service, dialect: Dialect) -> Result<(), Refused> {
    if matches!(service.address.as_str(), "0.0.0.0" | "::" | "[::]") {
        return Err(Refused::Plain("Invalid service address".to_owned()));
    }
    let wrong = validate(service, dialect);
    if wrong.is_empty() { Ok(()) } else { Err(Refused::Invalid(wrong)) }
}

fn parse_proxy(map: Map<String, Value>) -> Result<Proxy, Refused> {
    let mut map = known_keys(map, PROXY_KEYS, true).map_err(Refused::Decode)?;
    let upstreams = match map.remove("Upstreams") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items.into_iter().map(parse_upstream).collect::<Result<_, _>>()?,
        Some(other) => return Err(type_error("Upstreams", &other)),
    };
    Ok(Proxy {
        destination_name: text(&map, "DestinationServiceName")?,
        destination_id: text(&map, "DestinationServiceID")?,
        local_address: text(&map, "LocalServiceAddress")?,
        local_port: port(&map, "LocalServicePort")?,
        local_socket: text(&map, "LocalServiceSocketPath")?,
        mode: text(&map, "Mode")?,
        config: object(&mut map, "Config")?,
        upstreams,
        mesh_gateway: object(&mut map, "MeshGateway")?,
        expose: object(&mut map, "Expose")?,
    })
}

fn parse_upstream(value: Value) -> Result<Map<String, Value>, Refused> {
    let Value::Object(map) = value else {
        return Err(type_error("Upstreams", &value));
    };
    let mut map = known_keys(map, UPSTREAM_KEYS, true).map_err(Refused::Decode)?;
    for key in [
        "DestinationType",
        "DestinationName",
        "DestinationNamespace",
        "DestinationPartition",
        "DestinationPeer",
        "Datacenter",
        "LocalBindAddress",
        "LocalBindSocketPath",
        "LocalBindSocketMode",
    ] {
        // Empty strings are left out of answers.
        if text(&map, key)?.is_empty() {
            map.remove(key);
        }
    }
    if port(&map, "LocalBindPort")? == 0 {
        map.remove("LocalBindPort");
    }
    map.entry("DestinationType").or_insert_with(|| json!("service"));
    let config = object(&mut map, "Config")?;
    if !config.is_empty() {
        map.insert("Config".to_owned(), Value::Object(config));
    }
    let gateway = object(&mut map, "MeshGateway")?;
    map.insert("MeshGateway".to_owned(), Value::Object(gateway));
    Ok(map)
}

fn text(map: &Map<String, Value>, key: &str) -> Result<String, Refused> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(type_error(key, other)),
    }
}

fn port(map: &Map<String, Value>, key: &str) -> Result<u16, Refused> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value.as_u64().and_then(|n| u16::try_from(n).ok()).ok_or_else(|| type_error(key, value)),
    }
}

fn strings(map: &Map<String, Value>, key: &str) -> Result<Vec<String>, Refused> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone()).map_err(|_| type_error(key, value)),
    }
}

fn string_map(map: &Map<String, Value>, key: &str) -> Result<BTreeMap<String, String>, Refused> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(value) => serde_json::from_value(value.clone()).map_err(|_| type_error(key, value)),
    }
}

fn object(map: &mut Map<String, Value>, key: &str) -> Result<Map<String, Value>, Refused> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(other) => Err(type_error(key, &other)),
    }
}

fn weights(map: &mut Map<String, Value>) -> Result<(i64, i64), Refused> {
    let weights = known_keys(object(map, "Weights")?, &["Passing", "Warning"], true).map_err(Refused::Decode)?;
    let one = |key: &str| weights.get(key).and_then(Value::as_i64).unwrap_or(1);
    Ok((one("Passing"), one("Warning")))
}

fn type_error(key: &str, value: &Value) -> Refused {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let wanted = if key.contains("Port") { " of type int" } else { "" };
    Refused::Decode(format!("json: cannot unmarshal {kind} into Go struct field .Alias.{key}{wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Registration, String> {
        match value {
            Value::Object(map) => parse(map, Dialect::Today).map_err(Refused::text),
            _ => Err("no object".to_owned()),
        }
    }

    #[test]
    fn a_proxy_without_destination_or_port_is_refused() {
        let refused = |value: Value| read(value).err().unwrap_or_default();
        assert!(refused(json!({"Name": "p", "Kind": "connect-proxy", "Port": 1})).contains("DestinationServiceName"));
        let proxy = json!({"DestinationServiceName": "web"});
        assert!(refused(json!({"Name": "p", "Kind": "connect-proxy", "Proxy": proxy})).contains("Port"));
    }

    #[test]
    fn two_upstreams_on_one_address_are_refused() {
        let upstreams = json!([
            {"DestinationName": "a", "LocalBindPort": 1000},
            {"DestinationName": "b", "LocalBindPort": 1000},
        ]);
        let body = json!({"Name": "p", "Kind": "connect-proxy", "Port": 1,
            "Proxy": {"DestinationServiceName": "web", "Upstreams": upstreams}});
        assert!(read(body).err().unwrap_or_default().contains("duplicates"));
    }

    #[test]
    fn keys_are_read_in_snake_case_at_every_depth() {
        let body = json!({"name": "web", "connect": {"sidecar_service": {"port": 7, "proxy": {
            "local_service_port": 8, "upstreams": [{"destination_name": "db", "local_bind_port": 9}]}}}});
        let registration = read(body).unwrap();
        assert!(registration.sidecar.is_some());
        assert!(read(json!({"Name": "web", "Connect": {"Proxy": {}}})).is_ok_and(|r| r.sidecar.is_none()));
    }

    #[test]
    fn a_key_that_consul_does_not_know_is_refused_by_name() {
        let err = read(json!({"Name": "web", "Foo": 1})).err();
        assert_eq!(err.as_deref(), Some("json: unknown field \"Foo\""));
    }
}
