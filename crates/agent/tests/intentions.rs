//! Who may connect: intentions by every way of writing them, and what authorize makes of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use common::{Client, start};
use lictor_agent::{Endpoint, Options, Policy};
use serde_json::{Value, json};

async fn authorized(client: &Client, source: &str, target: &str) -> bool {
    let uri = format!("spiffe://x.consul/ns/default/dc/dc1/svc/{source}");
    let got = client.authorize(json!({"Target": target, "ClientCertURI": uri})).await;
    assert_eq!(got.status, 200, "{}", got.body);
    got.json()["Authorized"].as_bool().unwrap()
}

#[tokio::test]
async fn the_more_exact_intention_decides() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    assert!(authorized(&client, "web", "db").await);
    handle.deny("*", "*");
    assert!(!authorized(&client, "web", "db").await);
    handle.allow("web", "*");
    assert!(authorized(&client, "web", "db").await);
    handle.deny("*", "db");
    assert!(!authorized(&client, "web", "db").await);
    handle.allow("web", "db");
    assert!(authorized(&client, "web", "DB").await);
    assert!(!authorized(&client, "WEB", "db").await);
    handle.allow_by_request("web", "db", json!([{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]));
    assert!(!authorized(&client, "web", "db").await);
    assert!(handle.forget("web", "db"));
    assert!(!handle.forget("web", "db"));
}

#[tokio::test]
async fn the_intention_policy_of_the_agent_is_seen_by_authorize_and_not_by_check() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.set_default_intention_policy(Some(Policy::Deny));
    assert!(!authorized(&client, "web", "db").await);
    let check = "/v1/connect/intentions/check?source=web&destination=db";
    let got = client.get(check).await;
    assert_eq!(got.json(), json!({"Allowed": true}));
    assert_eq!(got.header("x-consul-default-acl-policy"), Some("allow"));
}

#[tokio::test]
async fn an_exact_intention_is_put_read_and_deleted() {
    let agent = start(Options::default()).await;
    let client = Client::new(&agent.handle());
    let path = "/v1/connect/intentions/exact?source=web&destination=db";
    assert_eq!(client.put(path, json!({"Action": "deny"})).await.status, 200);
    assert!(!authorized(&client, "web", "db").await);
    assert_eq!(client.get(path).await.json()["Action"], "deny");
    assert_eq!(client.send("DELETE", path, None).await.unwrap().status, 200);
    assert_eq!(client.get(path).await.status, 404);
    assert!(authorized(&client, "web", "db").await);
    assert_eq!(client.put(path, json!({"Action": "perhaps"})).await.status, 500);
    assert_eq!(client.put(path, json!({"Deed": "deny"})).await.status, 400);
}

#[tokio::test]
async fn an_intention_with_an_id_is_listed_changed_and_deleted_by_it() {
    let agent = start(Options::default()).await;
    let client = Client::new(&agent.handle());
    let body = json!({"SourceName": "web", "DestinationName": "db", "Action": "deny"}).to_string();
    let list = "/v1/connect/intentions";
    let made = client.send("POST", list, Some(body.clone())).await.unwrap().json();
    assert_eq!(client.send("POST", list, Some(body)).await.unwrap().status, 500);
    let path = format!("{list}/{}", made["ID"].as_str().unwrap());
    assert_eq!(client.get(list).await.json()[0]["ID"], made["ID"]);
    assert_eq!(client.put(&path, json!({"Action": "allow"})).await.status, 200);
    assert_eq!(client.get(&path).await.json()["Action"], "allow");
    client.send("DELETE", &path, None).await.unwrap();
    assert_eq!(client.get(list).await.json(), json!([]));
}

#[tokio::test]
async fn a_configuration_entry_holds_all_intentions_of_its_destination() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.allow("old", "db");
    let entry = json!({"Kind": "service-intentions", "Name": "db", "Sources": [
        {"Name": "web", "Action": "allow"}, {"Name": "*", "Action": "deny"}]});
    assert_eq!(client.put("/v1/config", entry).await.status, 200);
    assert!(authorized(&client, "web", "db").await);
    assert!(!authorized(&client, "old", "db").await);
    let read = client.get("/v1/config/service-intentions/db").await.json();
    assert_eq!(read["Sources"].as_array().unwrap().len(), 2);
    client.send("DELETE", "/v1/config/service-intentions/db", None).await.unwrap();
    assert!(authorized(&client, "old", "db").await);
}

#[tokio::test]
async fn a_blocked_match_wakes_for_any_intention() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.allow("web", "db");
    let path = "/v1/connect/intentions/match?by=destination&name=DB";
    let first = client.get(path).await;
    assert_eq!(first.json()["DB"].as_array().unwrap().len(), 1);
    let call = tokio::spawn({
        let client = client.clone();
        let path = format!("{path}&index={}&wait=20s", first.index());
        async move { client.get(&path).await }
    });
    handle.wait_until(|s| s.blocked(Endpoint::IntentionMatch) == 1).await;
    handle.deny("x", "unrelated");
    let woken = call.await.unwrap();
    assert!(woken.index() > first.index());
    assert_eq!(woken.json(), first.json());
}

#[tokio::test]
async fn questions_to_authorize_are_kept_with_their_answers() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    handle.deny("web", "db");
    assert!(!authorized(&client, "web", "db").await);
    let stats = handle.wait_until(|s| s.answers(Endpoint::Authorize) == 1).await;
    let call = &stats.authorizes[0];
    let asked: Value = serde_json::from_str(&call.body).unwrap();
    assert_eq!(asked["Target"], "db");
    assert!(call.answer.contains("\"Authorized\":false"));
}
