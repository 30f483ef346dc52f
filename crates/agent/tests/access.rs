//! Access control, and what the one leaf a service brings with it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use std::time::Duration;

use common::{Client, Got, start};
use lictor_agent::{Access, Acl, Agent, Dialect, Endpoint, Options, Policy, Token};
use serde_json::json;

const LEAF: &str = "/v1/agent/connect/ca/leaf/web";

async fn agent(dialect: Dialect) -> Agent {
    let acl = Acl::new(Policy::Deny)
        .with("root", Token::management())
        .with("good", Token::service_identity("web"))
        .with("registrar", Token::service_identity("web"))
        .with("reader", Token::service("web", Access::Read));
    start(Options { dialect, acl: Some(acl), wait_jitter: false, ..Options::default() }).await
}

fn blocked(client: &Client, path: String) -> tokio::task::JoinHandle<Got> {
    let client = client.clone();
    tokio::spawn(async move { client.get(&path).await })
}

#[tokio::test]
async fn a_leaf_that_is_there_is_given_to_anybody_today() {
    let agent = agent(Dialect::Today).await;
    let client = Client::new(&agent.handle());
    assert_eq!(client.get(LEAF).await.status, 403);
    let own = client.with_token("good").get(LEAF).await;
    for caller in [client.clone(), client.with_token("reader"), client.with_token("nobody")] {
        assert_eq!(caller.get(LEAF).await.json(), own.json());
    }
}

#[tokio::test]
async fn each_token_has_a_leaf_of_its_own_in_the_old_dialect() {
    let agent = agent(Dialect::Old).await;
    let client = Client::new(&agent.handle());
    let own = client.with_token("good").get(LEAF).await.json();
    let other = client.with_token("registrar").get(LEAF).await.json();
    assert_ne!(own["SerialNumber"], other["SerialNumber"]);
    assert_eq!(client.with_token("reader").get(LEAF).await.status, 403);
}

#[tokio::test]
async fn a_bad_first_caller_makes_every_blocked_leaf_call_end_in_403() {
    let agent = agent(Dialect::Today).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let good = client.with_token("good");
    let old = good.get(LEAF).await;
    let path = format!("{LEAF}?index={}&wait=20s", old.index());
    let first = blocked(&client, path.clone());
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1).await;
    let second = blocked(&good, path);
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 2).await;
    handle.rotate_root().unwrap();
    for answer in [first.await.unwrap(), second.await.unwrap()] {
        assert_eq!(answer.status, 403);
        assert!(answer.body.contains("anonymous token lacks permission 'service:write' on \"web\""));
    }
    assert_eq!(client.get(LEAF).await.json(), old.json());
    assert!(good.get(LEAF).await.index() > old.index());
}

#[tokio::test]
async fn the_token_of_the_registration_signs_and_its_loss_is_everybodys() {
    let agent = agent(Dialect::Today).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let body = json!({"Name": "web", "Port": 1, "Connect": {"SidecarService": {}}});
    let path = "/v1/agent/service/register";
    assert_eq!(client.with_token("registrar").put(path, body).await.status, 200);
    let good = client.with_token("good");
    let old = good.get(LEAF).await;
    assert_eq!(old.header("x-cache"), Some("HIT"));
    assert!(handle.delete_token("registrar"));
    let call = blocked(&good, format!("{LEAF}?index={}&wait=20s", old.index()));
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1).await;
    handle.rotate_root().unwrap();
    let refused = call.await.unwrap();
    assert_eq!((refused.status, refused.body.as_str()), (403, "ACL not found"));
    assert!(good.get(LEAF).await.index() > old.index());
}

#[tokio::test]
async fn an_index_less_call_gets_the_old_leaf_while_the_jitter_of_a_blocked_one_lasts() {
    let agent = start(Options { rotation_jitter: Duration::from_secs(3600), ..Options::default() }).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let old = client.get(LEAF).await;
    let call = blocked(&client, format!("{LEAF}?index={}&wait=300ms", old.index()));
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1).await;
    handle.rotate_root().unwrap();
    let meanwhile = client.get(LEAF).await;
    assert_eq!(meanwhile.json(), old.json());
    assert_eq!(meanwhile.header("x-cache"), Some("HIT"));
    assert_eq!(call.await.unwrap().json(), old.json());
    // With nobody blocked any more an index-less call signs at once.
    assert!(client.get(LEAF).await.index() > old.index());
}

#[tokio::test]
async fn a_deleted_token_still_sees_leaf_and_roots_and_a_frozen_list_but_no_decision() {
    let agent = agent(Dialect::Today).await;
    let handle = agent.handle();
    let register = |id: &str| {
        let body = json!({"ID": id, "Name": "db", "Port": 1, "Connect": {"Native": true}});
        handle.register(body).unwrap();
    };
    register("db-1");
    let client = Client::new(&handle).with_token("good");
    client.get(LEAF).await;
    let health = "/v1/health/connect/db";
    let seen = client.get(&format!("{health}?cached")).await;
    assert_eq!(seen.json().as_array().unwrap().len(), 1);
    assert!(handle.delete_token("good"));
    register("db-2");
    assert_eq!(client.get(LEAF).await.status, 200);
    assert_eq!(client.get("/v1/agent/connect/ca/roots").await.status, 200);
    let question = json!({"Target": "web", "ClientCertURI": "spiffe://x.consul/ns/default/dc/dc1/svc/web"});
    assert_eq!(client.authorize(question).await.status, 403);
    assert_eq!(client.get(health).await.status, 403);
    let frozen = client.get(&format!("{health}?index={}&wait=50ms", seen.index())).await;
    assert_eq!((frozen.status, frozen.index()), (200, seen.index()));
    assert_eq!(frozen.json(), seen.json());
    let root = Client::new(&handle).with_token("root");
    assert_eq!(root.get(health).await.json().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_service_rule_without_a_node_rule_empties_the_list_and_says_so() {
    let agent = agent(Dialect::Today).await;
    let handle = agent.handle();
    handle.register(json!({"Name": "web", "Port": 1, "Connect": {"Native": true}})).unwrap();
    let got = Client::new(&handle).with_token("reader").get("/v1/health/connect/web").await;
    assert_eq!(got.json(), json!([]));
    assert_eq!(got.header("x-consul-results-filtered-by-acls"), Some("true"));
}

#[tokio::test]
async fn a_sidecar_needs_write_on_its_own_name_as_well() {
    let agent = agent(Dialect::Today).await;
    let handle = agent.handle();
    handle.add_token("web-only", Token::service("web", Access::Write));
    let client = Client::new(&handle);
    let body = json!({"Name": "web", "Port": 1, "Connect": {"SidecarService": {}}});
    let path = "/v1/agent/service/register";
    let refused = client.with_token("web-only").put(path, body.clone()).await;
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("\"web-sidecar-proxy\""));
    assert_eq!(client.with_token("good").put(path, body).await.status, 200);
}

#[tokio::test]
async fn tokens_with_policies_and_service_identities_are_made_and_deleted_over_http() {
    let agent = agent(Dialect::Today).await;
    let client = Client::new(&agent.handle());
    let root = client.with_token("root");
    let rules = "service \"cache\" { policy = \"write\" }";
    let policy = json!({"Name": "cache", "Rules": rules});
    assert_eq!(root.put("/v1/acl/policy", policy).await.status, 200);
    let made = root.put("/v1/acl/token", json!({"Policies": [{"Name": "cache"}]})).await.json();
    let own = client.with_token(made["SecretID"].as_str().unwrap());
    assert_eq!(own.get("/v1/agent/connect/ca/leaf/cache").await.status, 200);
    assert_eq!(own.get("/v1/agent/connect/ca/leaf/db").await.status, 403);
    let body = json!({"ServiceIdentities": [{"ServiceName": "db"}]});
    let made = root.put("/v1/acl/token", body.clone()).await.json();
    let own = client.with_token(made["SecretID"].as_str().unwrap());
    assert_eq!(own.get("/v1/agent/connect/ca/leaf/db").await.status, 200);
    let path = format!("/v1/acl/token/{}", made["AccessorID"].as_str().unwrap());
    assert_eq!(root.send("DELETE", &path, None).await.unwrap().status, 200);
    assert_eq!(own.get("/v1/health/connect/db").await.status, 403);
    assert_eq!(client.put("/v1/acl/token", body).await.status, 403);
}
