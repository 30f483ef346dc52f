//! The agent's answers beside those of real agents: same status, same header names and telling values, same JSON
//! keys and types, same error texts. What differs on purpose stands in [`EXCUSED`], each with its reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Client, Got, start};
use lictor_agent::{Access, Acl, Dialect, Handle, ManagedProxy, Options, Policy, Status, Token};
use serde_json::{Value, json};

/// (case, the whole of it or a path in it, reason).
const EXCUSED: &[(&str, &str, &str)] = &[
    ("health-connect-filter", "", "filter expressions are not evaluated; the agent says so with a 500"),
    ("agent-self", "body", "the capture lists further keys as `_other_keys`; Coord, Stats and xDS have no use here"),
    (
        "v122-agent-self",
        "body.DebugConfig",
        "the 200 keys of the real one are not played; those that a proxy may read are",
    ),
    ("v122-agent-self", "body.Coord", "no network coordinates"),
    ("v122-agent-self", "body.Stats", "no Go runtime to report on"),
    ("v122-agent-self", "body.xDS", "no xDS server"),
    ("v122-agent-self", "body.Member.Tags", "no gRPC, serf and raft ports to announce"),
    (
        "v122-agent-service-central-config",
        "body.TaggedAddresses",
        "recorded in a moment without consul-virtual, which comes and goes there and stays here",
    ),
    ("managed15-proxy-config", "header.", "the capture holds no headers"),
    (
        "managed12-proxy-config-other-token",
        "body.Command",
        "the agent starts nothing, so the command is always the default",
    ),
];

/// The headers whose values are compared; of the others only the name is.
const TELLING: &[&str] = &[
    "allow",
    "content-type",
    "x-cache",
    "x-consul-default-acl-policy",
    "x-consul-effective-consistency",
    "x-consul-knownleader",
    "x-consul-query-backend",
];

/// What is done before the question is put, or while it is blocked.
enum Step {
    Get(&'static str),
    GetAs(&'static str, &'static str),
    Put(&'static str, Value),
    Ask(&'static str, &'static str),
    Allow(&'static str, &'static str),
    Deny(&'static str, &'static str),
    ByRequest(&'static str, &'static str),
    LegacyDeny(&'static str, &'static str),
    IntentionDefault(Policy),
    AclDefault(Policy),
    Rotate,
    Sidecar(&'static str),
}

#[tokio::test]
async fn answers_of_1_10_are_played_by_the_old_dialect() {
    check_all("1.10.json", include_str!("captures/1.10.json"), Dialect::Old, None).await;
}

#[tokio::test]
async fn answers_of_1_10_with_access_control_are_played_by_the_old_dialect() {
    let acl = Acl::new(Policy::Deny)
        .with("management", Token::management())
        .with("reads-web", Token::service("web", Access::Read))
        .with("writes-web", writes_all())
        .with("identity-web", Token::service_identity("web"));
    let text = include_str!("captures/1.10-acl.json");
    check_all("1.10-acl.json", text, Dialect::Old, Some(acl)).await;
}

#[tokio::test]
async fn answers_of_1_22_are_played_by_the_dialect_of_today() {
    check_all("1.22.json", include_str!("captures/1.22.json"), Dialect::Today, None).await;
}

#[tokio::test]
async fn answers_of_1_22_with_access_control_are_played_by_the_dialect_of_today() {
    let acl = Acl::new(Policy::Deny)
        .with("management", Token::management())
        .with("reads-web", Token::service("web", Access::Read))
        .with("writes-web-only", Token::service("web", Access::Write))
        .with("writes-db", Token::service("db", Access::Write));
    let text = include_str!("captures/1.22-acl.json");
    check_all("1.22-acl.json", text, Dialect::Today, Some(acl)).await;
}

#[tokio::test]
async fn answers_to_managed_proxies_are_played_by_the_old_dialect() {
    let text = include_str!("captures/managed.json");
    check_all("managed.json", text, Dialect::Old, None).await;
}

/// A token that may read and write `web` and its sidecar and read the rest.
fn writes_all() -> Token {
    Token {
        services: vec![("web".to_owned(), Access::Write), ("web-sidecar-proxy".to_owned(), Access::Write)],
        service_prefixes: vec![(String::new(), Access::Read)],
        node_read: true,
        ..Token::default()
    }
}

async fn check_all(file: &str, text: &str, dialect: Dialect, acl: Option<Acl>) {
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(!cases.is_empty(), "{file}");
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["case"].as_str().unwrap().to_owned();
        let got = play(&name, &case["request"], dialect, acl.clone()).await;
        let mut differences = Vec::new();
        compare(&case["response"], &got, &mut differences);
        differences.retain(|d| !excused(&name, d));
        wrong.extend(differences.into_iter().map(|d| format!("{name}: {d}")));
    }
    assert!(wrong.is_empty(), "{file}\n{}", wrong.join("\n"));
}

fn excused(case: &str, difference: &str) -> bool {
    EXCUSED.iter().any(|(name, at, _)| *name == case && difference.starts_with(at))
}

async fn play(name: &str, request: &Value, dialect: Dialect, acl: Option<Acl>) -> Got {
    let controlled = acl.is_some();
    let options = Options {
        dialect,
        acl,
        node_name: "n1".to_owned(),
        wait_jitter: false,
        // The check of a sidecar is not to run before the question is put.
        sidecar_check_interval: Duration::from_secs(3600),
        ..Options::default()
    };
    let agent = start(options).await;
    let handle = agent.handle();
    furnish(&handle, name, controlled);
    let client = Client::new(&handle);
    for step in before(name) {
        take(&handle, &client, step).await;
    }
    let path = current(&client, request["path"].as_str().unwrap()).await;
    let client = match request["headers"]["X-Consul-Token"].as_str() {
        Some(token) => client.with_token(token),
        None => client,
    };
    let ask = {
        let client = client.clone();
        let request = request.clone();
        tokio::spawn(async move {
            let body = match &request["body"] {
                Value::Null => None,
                Value::String(raw) => Some(raw.clone()),
                json => Some(json.to_string()),
            };
            let method = request["method"].as_str().unwrap();
            let bearer = request["headers"]["Authorization"].as_str();
            client.send_as(method, &path, body, bearer).await.unwrap()
        })
    };
    let steps = during(name);
    if !steps.is_empty() {
        handle.wait_until(|s| s.blocked.values().sum::<u64>() == 1).await;
        for step in steps {
            take(&handle, &client, step).await;
        }
    }
    ask.await.unwrap()
}

/// Replaces the index or hash of the capture by that of now where the capture had the current one, and shortens
/// the wait.
async fn current(client: &Client, path: &str) -> String {
    let (plain, query) = path.split_once('?').unwrap_or((path, ""));
    let mut out = Vec::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let kept = match pair.split_once('=') {
            Some(("index", n)) if n.len() < 4 && n.parse::<u64>().is_ok_and(|n| n > 1) => {
                let by = query.split('&').filter(|p| p.starts_with("by=") || p.starts_with("name="));
                let by: Vec<&str> = by.collect();
                let now = client.get(&format!("{plain}?{}", by.join("&"))).await;
                format!("index={}", now.header("x-consul-index").unwrap_or("5"))
            }
            Some(("hash", h)) if h.len() > 10 => {
                let now = client.with_token("proxy-token").get(plain).await;
                format!("hash={}", now.header("x-consul-contenthash").unwrap_or(h))
            }
            Some(("wait", w)) if w.ends_with('s') && w.len() < 3 => "wait=150ms".to_owned(),
            _ => pair.to_owned(),
        };
        out.push(kept);
    }
    if out.is_empty() { plain.to_owned() } else { format!("{plain}?{}", out.join("&")) }
}

/// What stood in the catalog when the answers were recorded.
fn furnish(handle: &Handle, name: &str, controlled: bool) {
    let today = name.starts_with("v122");
    if name.starts_with("managed") {
        return furnish_managed(handle, name);
    }
    if name == "acl-roots-unknown-token" {
        // Recorded before anything was registered, hence the MISS.
        return;
    }
    let mut upstreams = vec![
        json!({"DestinationName": "db", "LocalBindPort": 19191, "Config": {"connect_timeout_ms": 2500}}),
        json!({"DestinationType": "prepared_query", "DestinationName": "geo-db", "LocalBindPort": 19192,
            "Datacenter": "dc1"}),
    ];
    let mut config = json!({"local_connect_timeout_ms": 1500, "handshake_timeout_ms": 8000});
    if today {
        upstreams.push(json!({"DestinationName": "cache", "LocalBindSocketPath": "/tmp/x.sock",
            "LocalBindSocketMode": "0600"}));
        upstreams.push(json!({"DestinationName": "far", "DestinationPeer": "cluster-b", "LocalBindPort": 19193}));
    } else {
        config["protocol"] = json!("tcp");
    }
    let mut sidecar = json!({"Proxy": {"Config": config, "Upstreams": upstreams}});
    let mut web = json!({"ID": "web-1", "Name": "web", "Port": 8080, "Tags": ["v1"], "Meta": {"version": "1"}});
    if controlled {
        sidecar = json!({});
        web = json!({"ID": "web-1", "Name": "web", "Port": 8080});
    }
    web["Connect"] = json!({ "SidecarService": sidecar });
    // Some leaves were asked for before a sidecar was there.
    if !name.contains("leaf") || name == "v122-leaf" || name == "leaf-partition-param" || name == "v122-leaf-cached-hit"
    {
        handle.register(web).unwrap();
    }
    let db = json!({"ID": "db-1", "Name": "db", "Port": 5432, "Address": "127.0.0.1",
        "Connect": {"SidecarService": {}}});
    let manual = json!({"Kind": "connect-proxy", "ID": "db-manual-proxy", "Name": "db-proxy", "Port": 25433,
    "Address": "127.0.0.1", "Proxy": if today {
        json!({"DestinationServiceName": "db", "DestinationServiceID": "db-x", "LocalServicePort": 5432})
    } else {
        json!({"DestinationServiceName": "db"})
    }});
    let native = json!({"ID": "db-native", "Name": "db", "Port": 25432, "Connect": {"Native": true}});
    if name.contains("leaf-after-sidecar") {
        return;
    }
    if name == "agent-services" || name == "agent-checks" {
        return;
    }
    if !today {
        handle.register(db).unwrap();
    }
    if !controlled {
        handle.register(manual).unwrap();
        handle.register(native).unwrap();
        let query = json!({"Name": "geo-db", "Service": {"Service": "db"}});
        handle.create_query(query).unwrap();
    }
    if name.starts_with("query") {
        // The sidecar of db-1 was critical in all of them.
        handle.set_check("service:db-1-sidecar-proxy:1", Status::Critical, "");
    }
}

fn furnish_managed(handle: &Handle, name: &str) {
    if name.contains("-acl") {
        handle.set_acl(Some(Acl::new(Policy::Deny)));
    }
    let mut config = json!({"bind_address": "127.0.0.1", "bind_port": 25008,
        "local_service_address": "127.0.0.1:8080"});
    let mut upstreams = json!([]);
    if name.starts_with("managed12") {
        config["local_connect_timeout_ms"] = json!(2000);
        config["upstreams"] = json!([{"destination_name": "db", "local_bind_port": 19400}]);
    } else {
        upstreams = json!([{"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 19400}]);
    }
    if name.contains("-acl") {
        config["handshake_timeout_ms"] = json!(1234);
        config["local_connect_timeout_ms"] = json!(2000);
    }
    if name.starts_with("managed15") {
        upstreams[0]["Config"] = json!({"connect_timeout_ms": 700});
    }
    let proxy = |id: &str, name: &str, token: &str, config: Value, upstreams: Value| {
        let proxy = json!({"target_id": id, "target_name": name, "token": token, "config": config,
            "upstreams": upstreams});
        serde_json::from_value::<ManagedProxy>(proxy).unwrap()
    };
    handle.set_managed_proxy(proxy("web-1", "web", "proxy-token", config, upstreams));
    let config = json!({"bind_address": "127.0.0.1", "bind_port": 25004, "local_service_address": "127.0.0.1:5432"});
    handle.set_managed_proxy(proxy("db-1", "db", "other", config, json!([])));
}

fn before(name: &str) -> Vec<Step> {
    use Step::*;
    match name {
        "authorize-allow"
        | "authorize-encoded-source"
        | "authorize-external-trust-domain"
        | "authorize-lowercase-keys"
        | "authorize-no-serial"
        | "authorize-other-dc"
        | "authorize-uppercase-source"
        | "authorize-body-namespace"
        | "v122-authorize-external-trust-domain"
        | "v122-authorize-uppercase-source"
        | "v122-authorize-uppercase-target" => vec![Allow("web", "db"), Ask("web", "db")],
        "authorize-allow-other" => vec![Allow("web", "db"), Ask("web", "db")],
        "authorize-deny" => vec![LegacyDeny("web", "db"), Ask("web", "db")],
        "authorize-l7-intention" | "intentions-check-l7" => vec![ByRequest("web", "l7svc")],
        "intentions-match-l7" => vec![ByRequest("web", "l7svc"), Allow("web", "*")],
        "v122-authorize-allow" => vec![Allow("web", "db")],
        "v122-authorize-deny" => vec![Deny("web", "denied")],
        "v122-authorize-l7-intention" | "v122-intentions-match-l7" => vec![ByRequest("web", "l7")],
        "v122-authorize-wild-source" => vec![Deny("*", "wildsrc")],
        "v122-authorize-aclallow-policy-deny" => vec![AclDefault(Policy::Allow), IntentionDefault(Policy::Deny)],
        "v122-authorize-acldeny-policy-allow" => vec![AclDefault(Policy::Deny), IntentionDefault(Policy::Allow)],
        "v122-authorize-noacl-policy-deny" => vec![IntentionDefault(Policy::Deny)],
        "intentions-check"
        | "intentions-exact"
        | "intentions-match-dest"
        | "intentions-match-source"
        | "intentions-match-blocking"
        | "v122-intentions-match-dest" => vec![Allow("web", "db")],
        "intentions-match-wildcards" => vec![Allow("web", "db"), Deny("*", "db"), Allow("web", "*")],
        "acl-authorize-management-token" => vec![GetAs("management", "authorize web")],
        "acl-leaf-read-token-after-cached" => {
            vec![GetAs("writes-web", "/v1/agent/connect/ca/leaf/web")]
        }
        "check-fail" | "check-pass" | "check-warn" | "check-update" => vec![ttl("t1", "db-manual-proxy")],
        "v122-check-update-bad" => vec![ttl("frontend-proxy-x1-ttl", "db-manual-proxy")],
        "deregister-unknown" => vec![Put("/v1/agent/service/deregister/web-1", json!({}))],
        "leaf-cached-hit"
        | "leaf-blocking-index-high"
        | "v122-leaf-blocking-index-high"
        | "v122-leaf-blocking-timeout"
        | "leaf-blocking-timeout" => {
            vec![Get("/v1/agent/connect/ca/leaf/web")]
        }
        "leaf-blocked-through-rotation" | "v122-leaf-blocked-through-rotation" => {
            vec![Get("/v1/agent/connect/ca/leaf/web")]
        }
        "v122-acl-leaf-no-token-warm"
        | "v122-acl-leaf-read-token-warm"
        | "v122-acl-leaf-unknown-token-warm"
        | "v122-acl-leaf-no-token-warm-blocking" => {
            vec![GetAs("management", "/v1/agent/connect/ca/leaf/web")]
        }
        "v122-acl-leaf-after-sidecar-registration-no-token" => vec![Sidecar("db")],
        "roots"
        | "acl-roots-no-token"
        | "roots-cached-hit"
        | "roots-blocking-timeout"
        | "roots-index-high"
        | "v122-roots" => {
            vec![Get("/v1/agent/connect/ca/roots")]
        }
        "roots-during-rotation" | "v122-roots-during-rotation" => {
            vec![Get("/v1/agent/connect/ca/roots"), Rotate]
        }
        "v122-agent-service-central-config" => vec![Put(
            "/v1/config",
            json!({
                "Kind": "service-defaults", "Name": "web", "BalanceInboundConnections": "exact_balance",
                "MaxInboundConnections": 77, "LocalConnectTimeoutMs": 1234, "Protocol": "tcp",
                "UpstreamConfig": {"Defaults": {"ConnectTimeoutMs": 4321}}
            }),
        )],
        "health-connect-cached" | "health-connect-mustrevalidate" => {
            vec![Get("/v1/health/connect/db?cached")]
        }
        _ => Vec::new(),
    }
}

fn during(name: &str) -> Vec<Step> {
    use Step::*;
    match name {
        "leaf-blocked-through-rotation"
        | "v122-leaf-blocked-through-rotation"
        | "roots-blocked-through-rotation"
        | "v122-roots-blocked-through-rotation" => vec![Rotate],
        "agent-service-hash-change" => vec![Put(
            "/v1/agent/service/register",
            json!({"ID": "web-1", "Name": "web", "Port": 8080, "Tags": ["v1"], "Meta": {"version": "1"},
                "Connect": {"SidecarService": {"Proxy": {
                    "Config": {"local_connect_timeout_ms": 900},
                    "Upstreams": [{"DestinationName": "db", "LocalBindPort": 19191}]}}}}),
        )],
        "agent-service-hash-deregistered" => {
            vec![Put("/v1/agent/service/deregister/web-1", json!({}))]
        }
        _ => Vec::new(),
    }
}

fn ttl(id: &str, service: &str) -> Step {
    Step::Put(
        "/v1/agent/check/register",
        json!({"ID": id, "Name": "proxy heartbeat", "ServiceID": service, "TTL": "30s", "Status": "passing"}),
    )
}

async fn take(handle: &Handle, client: &Client, step: Step) {
    let question = |target: &str, source: &str| json!({"Target": target, "ClientCertURI": format!("spiffe://x.consul/ns/default/dc/dc1/svc/{source}")});
    match step {
        Step::Get(path) => assert_eq!(client.get(path).await.status, 200),
        Step::GetAs(token, "authorize web") => {
            let got = client.with_token(token).authorize(question("web", "api")).await;
            assert_eq!(got.status, 200);
        }
        Step::GetAs(token, path) => {
            assert_eq!(client.with_token(token).get(path).await.status, 200);
        }
        Step::Put(path, body) => assert_eq!(client.put(path, body).await.status, 200),
        Step::Ask(source, target) => {
            assert_eq!(client.authorize(question(target, source)).await.status, 200);
        }
        Step::Allow(source, destination) => handle.allow(source, destination),
        Step::Deny(source, destination) => handle.deny(source, destination),
        Step::ByRequest(source, destination) => {
            let permissions = json!([{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]);
            handle.allow_by_request(source, destination, permissions);
        }
        Step::LegacyDeny(source, destination) => {
            let body = json!({"SourceName": source, "DestinationName": destination, "Action": "deny"});
            let path = "/v1/connect/intentions";
            let got = client.send("POST", path, Some(body.to_string())).await.unwrap();
            assert_eq!(got.status, 200);
        }
        Step::IntentionDefault(policy) => handle.set_default_intention_policy(Some(policy)),
        Step::AclDefault(policy) => {
            handle.set_acl_default(policy);
            handle.add_token("any", Token::management());
        }
        Step::Rotate => handle.rotate_root().unwrap(),
        Step::Sidecar(service) => {
            let body = json!({"Name": service, "Port": 5432, "Connect": {"SidecarService": {}}});
            let got = client.with_token("management").put("/v1/agent/service/register", body).await;
            assert_eq!(got.status, 200);
        }
    }
}

fn compare(wanted: &Value, got: &Got, out: &mut Vec<String>) {
    if wanted["status"] != got.status {
        out.push(format!("status {} and not {}: {}", got.status, wanted["status"], got.body));
        return;
    }
    let wanted_headers: BTreeMap<String, String> = wanted["headers"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(k, v)| (k.to_lowercase(), v.as_str().unwrap().to_owned()))
        .collect();
    let ours: BTreeSet<String> = got
        .headers
        .keys()
        .map(|k| k.as_str().to_owned())
        .filter(|k| !matches!(k.as_str(), "date" | "vary" | "content-length" | "transfer-encoding"))
        .collect();
    for name in wanted_headers.keys().filter(|k| !ours.contains(*k)) {
        out.push(format!("header.{name} is missing"));
    }
    for name in ours.iter().filter(|k| !wanted_headers.contains_key(*k)) {
        // Agents before 1.9 do not name the policy.
        let old = name == "x-consul-default-acl-policy" && !wanted_headers.contains_key(name);
        let managed = wanted["body"]["ProxyServiceID"].is_string() || got.body.contains("proxy service");
        if !(old && (managed || wanted_headers.len() <= 1)) {
            out.push(format!("header.{name} is too much"));
        }
    }
    for name in TELLING {
        if let (Some(wanted), Some(ours)) = (wanted_headers.get(*name), got.header(name))
            && wanted != ours
        {
            out.push(format!("header.{name} is {ours} and not {wanted}"));
        }
    }
    match &wanted["body"] {
        Value::String(text) if text == "<cut>" => {
            assert!(got.body.starts_with("-----BEGIN CERTIFICATE-----"));
        }
        Value::String(text) => {
            let (wanted, ours) = (without_ids(text), without_ids(&got.body));
            if wanted != ours {
                out.push(format!("body is {ours:?} and not {wanted:?}"));
            }
        }
        json => same_shape(json, &got.json(), "body", out),
    }
}

/// Replaces every UUID by one and the same.
fn without_ids(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let next = &chars[at..chars.len().min(at + 36)];
        let is_id = next.len() == 36
            && next.iter().enumerate().all(|(n, c)| match n {
                8 | 13 | 18 | 23 => *c == '-',
                _ => c.is_ascii_hexdigit(),
            });
        if is_id {
            out.push_str("<id>");
            at += 36;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

fn same_shape(wanted: &Value, ours: &Value, at: &str, out: &mut Vec<String>) {
    match (wanted, ours) {
        (Value::String(text), _) if text == "<cut>" => {}
        (Value::Object(wanted), Value::Object(ours)) => {
            for (key, value) in wanted {
                match ours.get(key) {
                    Some(our) => same_shape(value, our, &format!("{at}.{key}"), out),
                    // Summaries of captures write an absent key as null.
                    None if value.is_null() && key == "Kind" => {}
                    None => out.push(format!("{at}.{key} is missing")),
                }
            }
            // Some captures hold a summary of each instance and nothing more.
            let cut = wanted.contains_key("<cut>")
                || wanted.get("Node").is_some_and(Value::is_string)
                || wanted.keys().eq(["Service"].iter())
                || wanted.keys().eq(["Kind", "ID", "Service", "Address", "Port"].iter());
            for key in ours.keys().filter(|k| !wanted.contains_key(*k)) {
                if !cut {
                    out.push(format!("{at}.{key} is too much"));
                }
            }
        }
        (Value::Array(wanted), Value::Array(ours)) => {
            if wanted.is_empty() != ours.is_empty() {
                out.push(format!("{at} has {} and not {} elements", ours.len(), wanted.len()));
                return;
            }
            for (n, our) in ours.iter().enumerate() {
                // Lists hold elements of several shapes; each of ours must look like one of theirs.
                let mut fewest: Option<Vec<String>> = None;
                for want in wanted {
                    let mut differences = Vec::new();
                    same_shape(want, our, &format!("{at}.{n}"), &mut differences);
                    if fewest.as_ref().is_none_or(|f| differences.len() < f.len()) {
                        fewest = Some(differences);
                    }
                }
                out.extend(fewest.unwrap_or_default());
            }
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => {}
        _ if at.ends_with(".Node") && ours.is_object() && wanted.is_string() => {}
        _ => out.push(format!("{at} is {ours} and not {wanted}")),
    }
}

#[test]
fn every_excuse_names_a_case_that_exists() {
    let all = [
        include_str!("captures/1.10.json"),
        include_str!("captures/1.10-acl.json"),
        include_str!("captures/1.22.json"),
        include_str!("captures/1.22-acl.json"),
        include_str!("captures/managed.json"),
    ]
    .concat();
    for (case, _, reason) in EXCUSED {
        assert!(all.contains(&format!("\"case\": \"{case}\"")), "{case}: {reason}");
    }
}
