//! Registration, checks, discovery, prepared queries.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use std::time::Duration;

use common::{Client, Got, start};
use lictor_agent::{Endpoint, Handle, Instance, Options, Status};
use serde_json::{Value, json};
use tokio::net::TcpListener;

fn quick() -> Options {
    Options { wait_jitter: false, sidecar_check_interval: Duration::from_millis(20), ..Options::default() }
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|e| e["Service"]["ID"].as_str().unwrap()).collect()
}

fn blocked(client: &Client, path: String) -> tokio::task::JoinHandle<Got> {
    let client = client.clone();
    tokio::spawn(async move { client.get(&path).await })
}

fn instance(node: &str, datacenter: &str, status: Status) -> Instance {
    let Value::Object(service) = json!({"ID": "db-1", "Name": "db", "Port": 5000, "Connect": {"Native": true}}) else {
        panic!("no object")
    };
    Instance {
        node: node.to_owned(),
        node_address: "10.0.0.2".to_owned(),
        datacenter: datacenter.to_owned(),
        service,
        status,
    }
}

fn register_sidecar(handle: &Handle, port: u16) {
    let body = json!({"ID": "web-1", "Name": "web", "Port": 8080, "Tags": ["a"],
        "Connect": {"SidecarService": {"Port": port}}});
    handle.register(body).unwrap();
}

#[tokio::test]
async fn a_sidecar_gets_the_next_free_port_and_keeps_it_and_goes_with_its_parent() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    for name in ["web", "db", "web"] {
        let body = json!({"Name": name, "Port": 8080, "Connect": {"SidecarService": {}}});
        assert_eq!(client.put("/v1/agent/service/register", body).await.status, 200);
    }
    let services = client.get("/v1/agent/services").await.json();
    assert_eq!(services["web-sidecar-proxy"]["Port"], 21000);
    assert_eq!(services["db-sidecar-proxy"]["Port"], 21001);
    assert_eq!(services["db-sidecar-proxy"]["Proxy"]["LocalServicePort"], 8080);
    client.put("/v1/agent/service/deregister/web", json!({})).await;
    let services = client.get("/v1/agent/services").await.json();
    let left: Vec<&String> = services.as_object().unwrap().keys().collect();
    assert_eq!(left, ["db", "db-sidecar-proxy"]);
}

#[tokio::test]
async fn the_tcp_check_of_a_sidecar_follows_its_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let agent = start(quick()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    register_sidecar(&handle, port);
    let path = "/v1/health/connect/web";
    let up = until(&client, path, |list| ids(list).len() == 1).await;
    let checks = &up.json()[0]["Checks"];
    assert_eq!(checks[1]["Output"], format!("TCP connect 127.0.0.1:{port}: Success"));
    drop(listener);
    until(&client, path, |list| ids(list).is_empty()).await;
    let text = client.get("/v1/agent/health/service/id/web-1-sidecar-proxy?format=text").await;
    assert_eq!((text.status, text.body.as_str()), (503, "critical"));
}

/// Follows the passing instances by index until `done`.
async fn until(client: &Client, path: &str, done: impl Fn(&Value) -> bool) -> Got {
    let mut got = client.get(&format!("{path}?passing")).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        while !done(&got.json()) {
            got = client.get(&format!("{path}?passing&wait=5s&index={}", got.index())).await;
        }
    })
    .await
    .unwrap();
    got
}

#[tokio::test]
async fn a_ttl_check_passes_until_its_reports_stop() {
    let agent = start(quick()).await;
    let client = Client::new(&agent.handle());
    let body = json!({"Name": "web-proxy", "Kind": "connect-proxy", "Port": 1,
        "Proxy": {"DestinationServiceName": "web"}, "Check": {"CheckID": "beat", "TTL": "300ms"}});
    client.put("/v1/agent/service/register", body).await;
    let path = "/v1/health/connect/web";
    assert!(ids(&client.get(&format!("{path}?passing")).await.json()).is_empty());
    client.put("/v1/agent/check/pass/beat?note=hello", json!({})).await;
    let checks = client.get("/v1/agent/checks").await.json();
    assert_eq!((&checks["beat"]["Status"], &checks["beat"]["Output"]), (&json!("passing"), &json!("hello")));
    assert_eq!(ids(&client.get(&format!("{path}?passing")).await.json()).len(), 1);
    until(&client, path, |list| ids(list).is_empty()).await;
    let checks = client.get("/v1/agent/checks").await.json();
    assert_eq!(checks["beat"]["Output"], "TTL expired (last output before timeout follows): hello");
}

#[tokio::test]
async fn an_alias_check_follows_the_worst_check_of_its_service() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let body = json!({"Name": "web", "Port": 1, "Connect": {"SidecarService": {}},
        "Check": {"CheckID": "beat", "TTL": "1h", "Status": "passing"}});
    handle.register(body).unwrap();
    let alias = "service:web-sidecar-proxy:2";
    assert_eq!(client.get("/v1/agent/checks").await.json()[alias]["Status"], "passing");
    assert_eq!(client.put("/v1/agent/check/warn/beat?note=tired", json!({})).await.status, 200);
    let checks = client.get("/v1/agent/checks").await.json();
    assert_eq!(checks[alias]["Status"], "warning");
    let warned = client.get("/v1/agent/health/service/name/web").await;
    assert_eq!(warned.status, 429);
}

#[tokio::test]
async fn a_blocked_health_call_wakes_for_its_own_name_only() {
    let agent = start(quick()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let native = |name: &str, id: &str| {
        let body = json!({"ID": id, "Name": name, "Port": 1, "Connect": {"Native": true}});
        handle.register(body).unwrap();
    };
    native("db", "db-1");
    let first = client.get("/v1/health/connect/DB").await;
    assert_eq!(ids(&first.json()), ["db-1"]);
    let call = blocked(&client, format!("/v1/health/connect/db?index={}&wait=20s", first.index()));
    handle.wait_until(|s| s.blocked(Endpoint::HealthConnect) == 1).await;
    native("cache", "cache-1");
    assert_eq!(handle.stats().blocked(Endpoint::HealthConnect), 1);
    native("db", "db-2");
    let woken = call.await.unwrap();
    assert_eq!(ids(&woken.json()), ["db-1", "db-2"]);
    assert!(woken.index() > first.index());
    assert_eq!(woken.header("x-consul-knownleader"), Some("false"));
}

#[tokio::test]
async fn the_same_registration_again_wakes_nobody_and_changes_no_hash() {
    let agent = start(quick()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    register_sidecar(&handle, 21000);
    let path = "/v1/agent/service/web-1-sidecar-proxy";
    let first = client.get(path).await;
    let hash = first.header("x-consul-contenthash").unwrap().to_owned();
    assert_eq!(first.json()["ContentHash"], hash);
    let call = blocked(&client, format!("{path}?hash={hash}&wait=300ms"));
    handle.wait_until(|s| s.blocked(Endpoint::AgentService) == 1).await;
    register_sidecar(&handle, 21000);
    let same = call.await.unwrap();
    assert_eq!(same.json(), first.json());
    let call = blocked(&client, format!("{path}?hash={hash}&wait=20s"));
    handle.wait_until(|s| s.blocked(Endpoint::AgentService) == 1).await;
    register_sidecar(&handle, 21001);
    assert_eq!(call.await.unwrap().json()["Port"], 21001);
}

#[tokio::test]
async fn central_configuration_wakes_the_hash_watch_and_the_registration_wins() {
    let agent = start(quick()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let body = json!({"Name": "web", "Port": 1, "Connect": {"SidecarService": {"Proxy": {
        "Config": {"local_connect_timeout_ms": 5}}}}});
    handle.register(body).unwrap();
    let path = "/v1/agent/service/web-sidecar-proxy";
    let first = client.get(path).await;
    let hash = first.header("x-consul-contenthash").unwrap();
    let call = blocked(&client, format!("{path}?hash={hash}&wait=20s"));
    handle.wait_until(|s| s.blocked(Endpoint::AgentService) == 1).await;
    let entry = json!({"Kind": "proxy-defaults", "Name": "global",
        "Config": {"local_connect_timeout_ms": 9, "foreign": "x"}});
    assert_eq!(client.put("/v1/config", entry).await.status, 200);
    let config = call.await.unwrap().json()["Proxy"]["Config"].clone();
    assert_eq!(config, json!({"foreign": "x", "local_connect_timeout_ms": 5}));
}

#[tokio::test]
async fn an_instance_without_an_address_stands_on_its_node_and_in_its_datacenter() {
    let options = Options { other_datacenters: vec!["dc2".to_owned()], ..quick() };
    let agent = start(options).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.add_instance(instance("n2", "dc2", Status::Passing)).unwrap();
    assert!(ids(&client.get("/v1/health/connect/db").await.json()).is_empty());
    let there = client.get("/v1/health/connect/db?dc=dc2&passing").await.json();
    assert_eq!(there[0]["Service"]["Address"], "");
    assert_eq!(there[0]["Node"]["Address"], "10.0.0.2");
    assert_eq!(there[0]["Node"]["Datacenter"], "dc2");
    assert!(handle.add_instance(instance("n3", "dc3", Status::Passing)).is_err());
    let services = client.get("/v1/agent/services").await.json();
    assert_eq!(services, json!({}));
}

#[tokio::test]
async fn a_prepared_query_fails_over_and_is_found_by_name_and_by_id() {
    let options = Options { other_datacenters: vec!["dc2".to_owned()], ..quick() };
    let agent = start(options).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let body = json!({"Name": "geo", "Service": {"Service": "db", "Failover": {"Datacenters": ["dc2"]}}});
    let made = client.send("POST", "/v1/query", Some(body.to_string())).await.unwrap().json();
    handle.add_instance(instance("n1", "dc1", Status::Critical)).unwrap();
    handle.add_instance(instance("n2", "dc2", Status::Passing)).unwrap();
    for what in ["geo", made["ID"].as_str().unwrap()] {
        let got = client.get(&format!("/v1/query/{what}/execute?connect=true")).await.json();
        assert_eq!((&got["Datacenter"], &got["Failovers"]), (&json!("dc2"), &json!(1)));
        assert_eq!(got["Nodes"][0]["Node"]["Datacenter"], "dc2");
    }
    handle.add_instance(instance("n1", "dc1", Status::Passing)).unwrap();
    let got = client.get("/v1/query/geo/execute?connect=true").await.json();
    assert_eq!(got["Datacenter"], "dc1");
    let path = format!("/v1/query/{}", made["ID"].as_str().unwrap());
    client.send("DELETE", &path, None).await.unwrap();
    assert_eq!(client.get("/v1/query/geo/execute").await.status, 404);
}

#[tokio::test]
async fn a_registration_that_cannot_be_is_refused_and_leaves_nothing_behind() {
    let agent = start(quick()).await;
    let client = Client::new(&agent.handle());
    let path = "/v1/agent/service/register";
    for body in [
        json!({"Port": 1}),
        json!({"Name": "web", "Foo": 1}),
        json!({"Name": "p", "Kind": "connect-proxy", "Port": 1}),
        json!({"Name": "web", "Connect": {"SidecarService": {"ID": "x"}}}),
        json!({"Name": "web", "Port": "80"}),
        json!({"Name": "web", "Check": {"TTL": "soon"}}),
        json!({"Name": "web", "Check": {"HTTP": "http://127.0.0.1", "Interval": "1s"}}),
    ] {
        assert_eq!(client.put(path, body.clone()).await.status, 400, "{body}");
    }
    assert_eq!(client.get("/v1/agent/services").await.json(), json!({}));
}

#[tokio::test]
async fn the_catalog_lists_services_nodes_and_instances() {
    let agent = start(quick()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    register_sidecar(&handle, 21000);
    let services = client.get("/v1/catalog/services").await.json();
    assert_eq!(services, json!({"consul": [], "web": ["a"], "web-sidecar-proxy": ["a"]}));
    let mesh = client.get("/v1/catalog/connect/web").await.json();
    assert_eq!(mesh[0]["ServiceID"], "web-1-sidecar-proxy");
    let plain = client.get("/v1/catalog/service/web").await.json();
    assert_eq!(plain[0]["ServiceID"], "web-1");
    let nodes = client.get("/v1/catalog/nodes").await.json();
    assert_eq!(nodes[0]["Node"], "lictor-dev");
    assert_eq!(client.get("/v1/status/leader").await.json(), json!("127.0.0.1:8300"));
}

#[tokio::test]
async fn an_instance_on_another_node_is_registered_with_the_servers_and_goes_with_its_node() {
    let agent = start(quick()).await;
    let client = Client::new(&agent.handle());
    let body = json!({"Node": "n2", "Address": "10.0.0.2",
        "Service": {"ID": "db-2", "Service": "db-sidecar-proxy", "Kind": "connect-proxy", "Port": 1,
            "Proxy": {"DestinationServiceName": "db"}},
        "Check": {"CheckID": "alive", "Name": "alive", "Status": "passing", "ServiceID": "db-2"}});
    let got = client.put("/v1/catalog/register", body.clone()).await;
    assert_eq!((got.status, got.body.as_str()), (200, "true"));
    let list = client.get("/v1/health/connect/db?passing").await.json();
    assert_eq!(list[0]["Node"]["Address"], "10.0.0.2");
    assert_eq!(list[0]["Checks"][0]["CheckID"], "alive");
    let mut critical = body;
    critical["Check"]["Status"] = json!("critical");
    client.put("/v1/catalog/register", critical).await;
    assert!(ids(&client.get("/v1/health/connect/db?passing").await.json()).is_empty());
    assert_eq!(ids(&client.get("/v1/health/connect/db").await.json()), ["db-2"]);
    client.put("/v1/catalog/deregister", json!({"Node": "n2"})).await;
    assert!(ids(&client.get("/v1/health/connect/db").await.json()).is_empty());
    assert_eq!(client.put("/v1/catalog/register", json!({"Node": "n2"})).await.status, 500);
}
