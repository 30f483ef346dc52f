//! The control listener: the handle over HTTP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::{Client, start};
use lictor_agent::{Agent, Options};
use serde_json::{Value, json};

async fn controlled() -> (Agent, Client, Order) {
    let options = Options { control: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), ..Options::default() };
    let agent = start(options).await;
    let handle = agent.handle();
    let order = Order {
        base: format!("http://{}/lictor/control/", handle.control_address().unwrap()),
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
    };
    let client = Client::new(&handle);
    (agent, client, order)
}

struct Order {
    base: String,
    http: reqwest::Client,
}

impl Order {
    async fn give(&self, command: &str, body: Value) -> (u16, String) {
        let url = format!("{}{command}", self.base);
        let got = self.http.post(url).body(body.to_string()).send().await.unwrap();
        (got.status().as_u16(), got.text().await.unwrap())
    }

    async fn done(&self, command: &str, body: Value) {
        let (status, text) = self.give(command, body).await;
        assert_eq!(status, 200, "{command}: {text}");
    }

    async fn stats(&self) -> Value {
        let got = self.http.get(format!("{}stats", self.base)).send().await.unwrap();
        serde_json::from_str(&got.text().await.unwrap()).unwrap()
    }
}

#[tokio::test]
async fn every_order_is_understood() {
    let (agent, client, order) = controlled().await;
    let service = json!({"Name": "web", "Port": 1, "Check": {"CheckID": "beat", "TTL": "1h"}});
    order.done("register", json!({ "service": service })).await;
    client.get("/v1/agent/connect/ca/leaf/web").await;
    let instance = json!({"node": "n2", "node_address": "10.0.0.2", "datacenter": "dc1", "status": "passing",
        "service": {"Name": "db", "Port": 1}});
    let fault = json!({"endpoint": "authorize", "fault": {"status": {"status": 500}}, "times": 3});
    for (command, body) in [
        ("rotate-root", json!({})),
        ("rotate-root", json!({"cross_sign": false})),
        ("prune-roots", json!({})),
        ("leaf-ttl", json!({"seconds": 30})),
        ("renew-leaf", json!({"service": "web"})),
        ("touch-leaf", json!({"service": "web"})),
        ("touch-roots", json!({})),
        ("change-hashes", json!({})),
        ("issue", json!({"service": "web", "seconds": 60})),
        ("allow", json!({"source": "a", "destination": "b"})),
        ("deny", json!({"source": "a", "destination": "b"})),
        ("forget", json!({"source": "a", "destination": "b"})),
        ("default-intention-policy", json!({"policy": "deny"})),
        ("default-intention-policy", json!({"policy": null})),
        ("acl-default", json!({"policy": "allow"})),
        ("add-token", json!({"secret": "x", "token": {"management": true}})),
        ("delete-token", json!({"secret": "x"})),
        ("set-check", json!({"id": "beat", "status": "critical"})),
        ("add-instance", json!({ "instance": instance })),
        ("remove-instance", json!({"node": "n2", "id": "db"})),
        ("managed-proxy", json!({"proxy": {"target_id": "web", "target_name": "web"}})),
        ("misbehave", fault),
        ("misbehave", json!({"endpoint": "leaf", "fault": "hang", "calls": "blocking", "containing": "web"})),
        ("behave", json!({"endpoint": "leaf"})),
        ("refuse-blocked", json!({"endpoint": "leaf", "status": 403})),
        ("leaf-fault", json!({"service": "web", "fault": {"other-service": "db"}})),
        ("leaf-fault", json!({"service": "web", "fault": "expired"})),
        ("roots-fault", json!({"fault": "empty"})),
        ("behave", json!({})),
        ("connection-limit", json!({"limit": 100})),
        ("lose-servers", json!({})),
        ("find-servers", json!({})),
        ("freeze", json!({})),
        ("thaw", json!({})),
        ("drop-connections", json!({})),
        ("stop", json!({})),
        ("start", json!({})),
        ("deregister", json!({"id": "web"})),
        ("restart-wiped", json!({})),
        ("reset-stats", json!({})),
    ] {
        order.done(command, body).await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn an_order_acts_on_the_agent_and_the_statistics_show_it() {
    let (_agent, client, order) = controlled().await;
    order.done("deny", json!({"source": "*", "destination": "db"})).await;
    let question = json!({"Target": "db", "ClientCertURI": "spiffe://x.consul/ns/default/dc/dc1/svc/web"});
    let got = client.authorize(question).await;
    assert_eq!(got.json()["Authorized"], false);
    order.done("wait", json!({"endpoint": "authorize", "answers": 1, "seconds": 5})).await;
    let (status, _) = order.give("wait", json!({"endpoint": "authorize", "calls": 2, "seconds": 0.05})).await;
    assert_eq!(status, 400);
    let stats = order.stats().await;
    assert_eq!(stats["calls"]["authorize"], 1);
    assert_eq!(stats["authorizes"][0]["status"], 200);
    assert_eq!(stats["open_connections"], 1);
}

#[tokio::test]
async fn what_is_no_order_is_refused_with_a_reason() {
    let (_agent, _client, order) = controlled().await;
    for (command, body) in [
        ("dance", json!({})),
        ("allow", json!({"source": "a"})),
        ("allow", json!({"source": "a", "destination": "b", "more": 1})),
        ("deregister", json!({"id": "nobody"})),
        ("register", json!({"service": {"Port": 1}})),
    ] {
        let (status, text) = order.give(command, body).await;
        assert_eq!(status, 400, "{command}");
        assert!(!text.is_empty());
    }
}

#[tokio::test]
async fn without_an_address_for_it_there_is_no_control() {
    let agent = start(Options::default()).await;
    assert_eq!(agent.handle().control_address(), None);
    let client = Client::new(&agent.handle());
    let got = client.send("POST", "/lictor/control/rotate-root", None).await.unwrap();
    assert_eq!(got.status, 404);
}
