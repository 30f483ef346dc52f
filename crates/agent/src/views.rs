//! How an instance looks: on the agent, in health answers, in the catalog.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::catalog::{Node, Proxy, Service, content_hash, sorted};
use crate::checks::Check;
use crate::options::Options;
use crate::store::State;

/// `/v1/agent/service/:id`, with its content hash.
pub(crate) fn agent_service(options: &Options, state: &State, service: &Service) -> (Value, String) {
    let plain = agent_view(options, state, service, None);
    let hash = content_hash(state, &plain);
    let view = agent_view(options, state, service, Some(&hash));
    (view, hash)
}

/// One entry of `/v1/agent/services`.
pub(crate) fn agent_view(options: &Options, state: &State, service: &Service, hash: Option<&str>) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    if !service.kind.is_empty() {
        put("Kind", json!(service.kind));
    }
    put("ID", json!(service.id));
    put("Service", json!(service.name));
    put("Tags", json!(service.tags));
    put("Meta", json!(service.meta));
    put("Port", json!(service.port));
    put("Address", json!(service.address));
    if !service.socket_path.is_empty() {
        put("SocketPath", json!(service.socket_path));
    }
    let mut tagged = tagged_addresses(options, state, service);
    if service.native {
        // The virtual address of a native service is known to the servers only.
        tagged.remove("consul-virtual");
    }
    if !tagged.is_empty() {
        put("TaggedAddresses", Value::Object(tagged));
    }
    put("Weights", weights(service));
    put("EnableTagOverride", json!(service.enable_tag_override));
    if let Some(hash) = hash {
        put("ContentHash", json!(hash));
    }
    if let Some(proxy) = &service.proxy {
        let proxy = with_central_config(state, proxy);
        put("Proxy", Value::Object(proxy_view(&proxy, false)));
    }
    if service.native {
        put("Connect", json!({"Native": true}));
    }
    put("Datacenter", json!(options.datacenter));
    Value::Object(out)
}

/// One element of a health answer. `no_tags` is what an instance without tags shows: `[]` in health, `null` in a
/// prepared query.
pub(crate) fn health_entry(options: &Options, state: &State, service: &Service, no_tags: &Value) -> Value {
    let key = service.key();
    let tags = |tags: &[String]| {
        if tags.is_empty() { no_tags.clone() } else { json!(tags) }
    };
    let mut checks = Vec::new();
    if service.node.as_ref().is_none_or(|n| n.agent) {
        checks.push(serf_health(options, state, service.node.as_ref(), no_tags));
    }
    checks.extend(state.catalog.checks_of(&key).map(|c| check_view(options, service, c, &tags(&service.tags))));
    json!({
        "Node": node_view(options, state, service.node.as_ref()),
        "Service": catalog_service(options, state, service, &tags(&service.tags)),
        "Checks": checks,
    })
}

/// One element of `/v1/catalog/service/:name`.
pub(crate) fn catalog_entry(options: &Options, state: &State, service: &Service) -> Value {
    let node = node_view(options, state, service.node.as_ref());
    let mut out = Map::new();
    for (from, to) in [
        ("ID", "ID"),
        ("Node", "Node"),
        ("Address", "Address"),
        ("Datacenter", "Datacenter"),
        ("TaggedAddresses", "TaggedAddresses"),
        ("Meta", "NodeMeta"),
    ] {
        out.insert(to.to_owned(), node[from].clone());
    }
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("ServiceKind", json!(service.kind));
    put("ServiceID", json!(service.id));
    put("ServiceName", json!(service.name));
    put("ServiceTags", json!(service.tags));
    put("ServiceAddress", json!(service.address));
    let tagged = tagged_addresses(options, state, service);
    if !tagged.is_empty() {
        put("ServiceTaggedAddresses", Value::Object(tagged));
    }
    put("ServiceWeights", weights(service));
    put("ServiceMeta", json!(service.meta));
    put("ServicePort", json!(service.port));
    put("ServiceSocketPath", json!(service.socket_path));
    put("ServiceEnableTagOverride", json!(service.enable_tag_override));
    put("ServiceProxy", stored_proxy(service));
    put("ServiceConnect", connect(service));
    if options.dialect.is_today() {
        put("ServiceLocality", Value::Null);
    }
    put("CreateIndex", json!(service.create_index));
    put("ModifyIndex", json!(service.modify_index));
    Value::Object(out)
}

/// The node as health answers and the catalog have it.
pub(crate) fn node_view(options: &Options, state: &State, node: Option<&Node>) -> Value {
    let (name, address, datacenter) = match node {
        Some(node) => (node.name.clone(), node.address.clone(), node.datacenter.clone()),
        None => (options.node_name.clone(), options.node_address.to_string(), options.datacenter.clone()),
    };
    let family = if address.contains(':') { "ipv6" } else { "ipv4" };
    let mut meta = Map::new();
    meta.insert("consul-network-segment".to_owned(), json!(""));
    if options.dialect.is_today() {
        meta.insert("consul-version".to_owned(), json!(options.dialect.version()));
    }
    let mut view = json!({
        "ID": node_id(&name),
        "Node": name,
        "Address": address,
        "Datacenter": datacenter,
        "TaggedAddresses": {
            "lan": address,
            (format!("lan_{family}")): address,
            "wan": address,
            (format!("wan_{family}")): address,
        },
        "Meta": meta,
        "CreateIndex": state.catalog.node_index,
        "ModifyIndex": state.catalog.node_index,
    });
    if node.is_some_and(|n| !n.agent) {
        view["ID"] = json!("");
        view["TaggedAddresses"] = Value::Null;
        view["Meta"] = Value::Null;
    }
    view
}

/// A node's ID: made from its name, so that it stays over a restart.
pub(crate) fn node_id(name: &str) -> String {
    use sha1::Digest as _;
    let digest = sha1::Sha1::digest(name.as_bytes());
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(digest) {
        *to = from;
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// A check in health answers and in `/v1/agent/checks`.
pub(crate) fn check_view(options: &Options, service: &Service, check: &Check, tags: &Value) -> Value {
    let node = service.node.as_ref().map_or(options.node_name.as_str(), |n| &n.name);
    json!({
        "Node": node,
        "CheckID": check.shown_id(),
        "Name": check.name,
        "Status": check.status.as_str(),
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": service.id,
        "ServiceName": service.name,
        "ServiceTags": tags,
        "Type": check.kind.type_name(),
        "Interval": if options.dialect.is_today() { check.kind.interval() } else { String::new() },
        "Timeout": "",
        "ExposedPort": 0,
        "Definition": {},
        "CreateIndex": check.create_index,
        "ModifyIndex": check.modify_index,
    })
}

fn serf_health(options: &Options, state: &State, node: Option<&Node>, no_tags: &Value) -> Value {
    json!({
        "Node": node.map_or(options.node_name.as_str(), |n| &n.name),
        "CheckID": "serfHealth",
        "Name": "Serf Health Status",
        "Status": "passing",
        "Notes": "",
        "Output": "Agent alive and reachable",
        "ServiceID": "",
        "ServiceName": "",
        "ServiceTags": no_tags,
        "Type": "",
        "Interval": "",
        "Timeout": "",
        "ExposedPort": 0,
        "Definition": {},
        "CreateIndex": state.catalog.node_index,
        "ModifyIndex": state.catalog.node_index,
    })
}

fn catalog_service(options: &Options, state: &State, service: &Service, tags: &Value) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    if !service.kind.is_empty() {
        put("Kind", json!(service.kind));
    }
    put("ID", json!(service.id));
    put("Service", json!(service.name));
    put("Tags", tags.clone());
    put("Address", json!(service.address));
    let tagged = tagged_addresses(options, state, service);
    if !tagged.is_empty() {
        put("TaggedAddresses", Value::Object(tagged));
    }
    let meta = if service.meta.is_empty() { Value::Null } else { json!(service.meta) };
    put("Meta", meta);
    put("Port", json!(service.port));
    if !service.socket_path.is_empty() {
        put("SocketPath", json!(service.socket_path));
    }
    put("Weights", weights(service));
    put("EnableTagOverride", json!(service.enable_tag_override));
    put("Proxy", stored_proxy(service));
    put("Connect", connect(service));
    if options.dialect.is_today() {
        put("PeerName", json!(""));
    }
    put("CreateIndex", json!(service.create_index));
    put("ModifyIndex", json!(service.modify_index));
    Value::Object(out)
}

/// The proxy as the servers hold it: without central configuration, with an empty `Mode`, and there for every
/// kind of service.
fn stored_proxy(service: &Service) -> Value {
    match &service.proxy {
        Some(proxy) => Value::Object(proxy_view(proxy, true)),
        None => json!({"Mode": "", "MeshGateway": {}, "Expose": {}}),
    }
}

fn connect(service: &Service) -> Value {
    if service.native { json!({"Native": true}) } else { json!({}) }
}

fn weights(service: &Service) -> Value {
    json!({"Passing": service.weights.0, "Warning": service.weights.1})
}

fn proxy_view(proxy: &Proxy, stored: bool) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    for (key, value) in [
        ("DestinationServiceName", &proxy.destination_name),
        ("DestinationServiceID", &proxy.destination_id),
        ("LocalServiceAddress", &proxy.local_address),
    ] {
        if !value.is_empty() {
            put(key, json!(value));
        }
    }
    if proxy.local_port != 0 {
        put("LocalServicePort", json!(proxy.local_port));
    }
    if !proxy.local_socket.is_empty() {
        put("LocalServiceSocketPath", json!(proxy.local_socket));
    }
    if stored || !proxy.mode.is_empty() {
        put("Mode", json!(proxy.mode));
    }
    if !proxy.config.is_empty() {
        put("Config", sorted(&Value::Object(proxy.config.clone())));
    }
    if !proxy.upstreams.is_empty() {
        let upstreams: Vec<Value> = proxy.upstreams.iter().map(upstream_view).collect();
        put("Upstreams", Value::Array(upstreams));
    }
    put("MeshGateway", Value::Object(proxy.mesh_gateway.clone()));
    put("Expose", Value::Object(proxy.expose.clone()));
    out
}

fn upstream_view(upstream: &Map<String, Value>) -> Value {
    let mut out = Map::new();
    for key in [
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
    ] {
        if let Some(value) = upstream.get(key) {
            out.insert(key.to_owned(), sorted(value));
        }
    }
    Value::Object(out)
}

fn tagged_addresses(options: &Options, state: &State, service: &Service) -> Map<String, Value> {
    let mut out = service.tagged_addresses.clone();
    if let Ok(ip) = service.address.parse::<IpAddr>() {
        let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
        for net in ["lan", "wan"] {
            out.entry(format!("{net}_{family}"))
                .or_insert_with(|| json!({"Address": service.address, "Port": service.port}));
        }
    }
    if options.dialect.is_today()
        && let Some(name) = service.connect_name()
    {
        out.insert(
            "consul-virtual".to_owned(),
            json!({"Address": state.catalog.virtual_ip(name), "Port": service.port}),
        );
    }
    match sorted(&Value::Object(out)) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// What the agent merges into a registration: `proxy-defaults`, then `service-defaults` of the destination; the
/// registration's own keys win.
fn with_central_config(state: &State, proxy: &Proxy) -> Proxy {
    let entry = |kind: &str, name: &str| state.config_entries.get(&(kind.to_owned(), name.to_owned()));
    let mut merged = Map::new();
    if let Some(Value::Object(config)) = entry("proxy-defaults", "global").map(|e| &e["Config"]) {
        merged.extend(config.clone());
    }
    let mut out = proxy.clone();
    if let Some(defaults) = entry("service-defaults", &proxy.destination_name) {
        for (from, to) in [
            ("Protocol", "protocol"),
            ("BalanceInboundConnections", "balance_inbound_connections"),
            ("MaxInboundConnections", "max_inbound_connections"),
            ("LocalConnectTimeoutMs", "local_connect_timeout_ms"),
            ("LocalRequestTimeoutMs", "local_request_timeout_ms"),
        ] {
            if let Some(value) = defaults.get(from) {
                merged.insert(to.to_owned(), value.clone());
            }
        }
        if let Some(timeout) = defaults.pointer("/UpstreamConfig/Defaults/ConnectTimeoutMs") {
            for upstream in &mut out.upstreams {
                if upstream.get("DestinationType") == Some(&json!("prepared_query")) {
                    continue;
                }
                let config = upstream.entry("Config").or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(config) = config {
                    config.entry("connect_timeout_ms").or_insert_with(|| timeout.clone());
                }
            }
        }
    }
    merged.extend(proxy.config.clone());
    out.config = merged;
    out
}
