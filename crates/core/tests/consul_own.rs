//! Our own definition and our registration against a scripted agent, in paused time.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

mod consul_support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use consul_support::{Asked, Reply, Scripted};
use lictor_core::consul::{
    DefinitionProblem, DefinitionSource, OwnDefinition, Readiness, Registration, RegistrationSettings,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

fn definition(upstreams: &[u16]) -> Value {
    let upstreams: Vec<Value> =
        upstreams.iter().map(|port| json!({"DestinationName": "db", "LocalBindPort": port})).collect();
    json!({
        "Kind": "connect-proxy", "ID": "web-proxy", "Service": "web-proxy", "Port": 21000, "ContentHash": "x",
        "Proxy": {"DestinationServiceName": "web", "LocalServicePort": 8080, "Upstreams": upstreams},
    })
}

/// An agent with one definition that can be changed; hash calls are held while it stays the same.
#[derive(Clone)]
struct Place {
    state: watch::Sender<(u16, String, Value)>,
}

impl Place {
    fn new(status: u16, hash: &str, body: Value) -> Self {
        Self { state: watch::channel((status, hash.to_owned(), body)).0 }
    }

    fn set(&self, status: u16, hash: &str, body: Value) {
        self.state.send_replace((status, hash.to_owned(), body));
    }

    async fn reply(&self, asked: Asked) -> Reply {
        let mut state = self.state.subscribe();
        let hash = asked.target.split("hash=").nth(1).map(|rest| rest.split('&').next().unwrap().to_owned());
        let same = |state: &(u16, String, Value)| state.0 == 200 && Some(&state.1) == hash.as_ref();
        let changed = timeout(60 * SECOND, state.wait_for(|state| !same(state))).await.map(drop);
        let _ = changed;
        let (status, hash, body) = state.borrow().clone();
        Reply::Answer(status, vec![("X-Consul-ContentHash", hash)], body.to_string())
    }

    fn agent(&self) -> Arc<Scripted> {
        let place = self.clone();
        Scripted::new(move |asked| {
            let place = place.clone();
            async move { place.reply(asked).await }
        })
    }
}

fn start(agent: &Arc<Scripted>, source: DefinitionSource) -> OwnDefinition {
    OwnDefinition::start(&agent.client(), "web-proxy".to_owned(), source)
}

fn upstreams(own: &OwnDefinition) -> usize {
    own.watch().borrow().definition.as_ref().unwrap().upstreams.len()
}

#[tokio::test(start_paused = true)]
async fn a_changed_definition_is_told_at_once_and_a_changed_hash_alone_is_not() {
    let place = Place::new(200, "aa", definition(&[1]));
    let agent = place.agent();
    let own = start(&agent, DefinitionSource::Service);
    let mut watch = own.watch();
    watch.wait_for(|state| state.definition.is_some()).await.unwrap();
    sleep(10 * SECOND).await;
    place.set(200, "bb", definition(&[1]));
    sleep(10 * SECOND).await;
    assert!(!watch.has_changed().unwrap(), "the same content under a new hash is no change");
    let began = Instant::now();
    place.set(200, "cc", definition(&[1, 2]));
    watch.changed().await.unwrap();
    assert_eq!((began.elapsed(), upstreams(&own)), (Duration::ZERO, 2));
    assert_eq!(agent.asked()[1].target, "/v1/agent/service/web-proxy?hash=aa&wait=60000ms");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_is_registered_late_is_found_within_two_seconds() {
    let place = Place::new(404, "", json!("unknown service ID"));
    let agent = place.agent();
    let own = start(&agent, DefinitionSource::Service);
    sleep(30 * SECOND).await;
    let unregistered = Some(DefinitionProblem::Unregistered("web-proxy".to_owned()));
    assert_eq!(own.watch().borrow().problem, unregistered);
    assert!(agent.asked().len() <= 40, "{} calls in 30 s", agent.asked().len());
    place.set(200, "aa", definition(&[1]));
    let mut watch = own.watch();
    timeout(2 * SECOND, watch.wait_for(|state| state.definition.is_some())).await.unwrap().unwrap();
    assert_eq!(watch.borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn a_deregistered_proxy_runs_on_by_its_last_definition() {
    let place = Place::new(200, "aa", definition(&[1]));
    let own = start(&place.agent(), DefinitionSource::Service);
    sleep(SECOND).await;
    for (status, body) in [(404, json!("gone")), (403, json!("no")), (500, json!("no")), (200, json!(["x"]))] {
        place.set(status, "bb", body);
        sleep(10 * SECOND).await;
        assert_eq!(upstreams(&own), 1);
        assert!(own.watch().borrow().problem.is_some(), "{status}");
    }
    place.set(200, "cc", definition(&[1, 2]));
    sleep(6 * SECOND).await;
    assert_eq!(upstreams(&own), 2);
    assert_eq!(own.watch().borrow().problem, None);
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_service_is_told_and_watched_without_a_busy_loop() {
    let place = Place::new(200, "aa", json!({"ID": "web-proxy", "Service": "web"}));
    let agent = place.agent();
    let own = start(&agent, DefinitionSource::Service);
    sleep(300 * SECOND).await;
    assert!(own.watch().borrow().problem.as_ref().unwrap().to_string().contains("ordinary service"));
    assert!(agent.asked().len() <= 8, "{} calls in five minutes", agent.asked().len());
    place.set(200, "bb", definition(&[1]));
    sleep(SECOND).await;
    assert_eq!(upstreams(&own), 1);
}

#[tokio::test(start_paused = true)]
async fn a_managed_proxy_falls_back_to_the_services_place_where_agents_no_longer_manage() {
    let agent = Scripted::new(|asked| async move {
        match (asked.path(), asked.blocks()) {
            (_, true) => Reply::Hang,
            ("/v1/agent/service/web-proxy", _) => {
                let hash = vec![("X-Consul-ContentHash", "aa".to_owned())];
                Reply::Answer(200, hash, definition(&[1]).to_string())
            }
            _ => Reply::status(404),
        }
    });
    let own = start(&agent, DefinitionSource::Managed);
    let mut watch = own.watch();
    timeout(3 * SECOND, watch.wait_for(|state| state.definition.is_some())).await.unwrap().unwrap();
    assert_eq!(agent.asked()[0].path(), "/v1/agent/connect/proxy/web-proxy");
}

#[tokio::test(start_paused = true)]
async fn a_managed_proxy_is_read_from_its_own_place_where_there_is_one() {
    let body = json!({
        "ProxyServiceID": "web-proxy", "TargetServiceID": "web", "TargetServiceName": "web", "ContentHash": "aa",
        "Config": {"bind_port": 20000, "local_service_address": "127.0.0.1:8080",
            "upstreams": [{"destination_name": "db", "local_bind_port": 1}]},
    });
    let place = Place::new(200, "aa", body);
    let agent = place.agent();
    let own = start(&agent, DefinitionSource::Managed);
    sleep(SECOND).await;
    assert_eq!(upstreams(&own), 1);
    assert_eq!(agent.asked()[1].target, "/v1/agent/connect/proxy/web-proxy?hash=aa&wait=60000ms");
}

/// An agent that keeps registrations and checks, told by a table of statuses for each path.
#[derive(Clone, Default)]
struct Books {
    registered: Arc<Mutex<Option<Value>>>,
    refuse: Arc<Mutex<Option<u16>>>,
}

impl Books {
    fn agent(&self) -> Arc<Scripted> {
        let books = self.clone();
        Scripted::new(move |asked| {
            let reply = books.reply(&asked);
            async move { reply }
        })
    }

    fn reply(&self, asked: &Asked) -> Reply {
        if let Some(status) = *self.refuse.lock().unwrap() {
            return Reply::status(status);
        }
        let mut registered = self.registered.lock().unwrap();
        let path = asked.path();
        if path == "/v1/agent/service/register" {
            let mut body: Value = serde_json::from_str(&asked.body).unwrap();
            body["Service"] = body["Name"].clone();
            *registered = Some(body);
        } else if path.starts_with("/v1/agent/service/deregister/") {
            *registered = None;
        } else if registered.is_none() {
            return Reply::status(404);
        } else if path.starts_with("/v1/agent/service/") {
            return Reply::ok(1, registered.as_ref().unwrap());
        }
        Reply::ok(1, "")
    }
}

fn settings() -> RegistrationSettings {
    RegistrationSettings {
        service: "web".to_owned(),
        id_suffix: Some("x1".to_owned()),
        address: Some("127.0.0.1".to_owned()),
        port: 25600,
    }
}

fn paths(agent: &Arc<Scripted>) -> Vec<String> {
    agent.asked().iter().map(|asked| asked.target.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_check_is_critical_until_the_proxy_is_ready_and_fails_with_the_reason_when_it_is_not() {
    let agent = Books::default().agent();
    let (ready, readiness) = watch::channel(Readiness::NotReady("no leaf yet".to_owned()));
    let registration = Registration::start(agent.client(), settings(), readiness);
    sleep(SECOND).await;
    let body: Value = serde_json::from_str(&agent.asked()[0].body).unwrap();
    assert_eq!(
        body,
        json!({
            "Kind": "connect-proxy", "ID": "web-proxy-x1", "Name": "web-proxy", "Port": 25600, "Address": "127.0.0.1",
            "Check": {"CheckID": "web-proxy-x1-ttl", "Name": "Lictor is ready", "TTL": "30s", "Status": "critical",
                "Notes": "The proxy passes this check while it can serve."},
            "Proxy": {"DestinationServiceName": "web"},
        })
    );
    ready.send_replace(Readiness::Ready);
    sleep(SECOND).await;
    ready.send_replace(Readiness::NotReady("leaf expired".to_owned()));
    sleep(SECOND).await;
    let told = paths(&agent);
    assert_eq!(
        told,
        [
            "/v1/agent/service/register?replace-existing-checks=true",
            "/v1/agent/check/fail/web-proxy-x1-ttl?note=no%20leaf%20yet",
            "/v1/agent/check/pass/web-proxy-x1-ttl?note",
            "/v1/agent/check/fail/web-proxy-x1-ttl?note=leaf%20expired",
        ]
    );
    assert!(agent.asked().iter().all(|asked| asked.method == "PUT"));
    registration.stop().await;
    assert_eq!(paths(&agent).last().unwrap(), "/v1/agent/service/deregister/web-proxy-x1");
}

#[tokio::test(start_paused = true)]
async fn a_lost_registration_comes_back_within_ten_seconds_and_passes_again() {
    let books = Books::default();
    let agent = books.agent();
    let (_ready, readiness) = watch::channel(Readiness::Ready);
    let registration = Registration::start(agent.client(), settings(), readiness);
    sleep(15 * SECOND).await;
    *books.registered.lock().unwrap() = None;
    sleep(10 * SECOND).await;
    assert!(books.registered.lock().unwrap().is_some());
    assert!(paths(&agent).last().unwrap().contains("/check/pass/"));
    drop(registration);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_somebody_changed_is_put_right_within_thirty_seconds() {
    let books = Books::default();
    let agent = books.agent();
    let (_ready, readiness) = watch::channel(Readiness::Ready);
    let _registration = Registration::start(agent.client(), settings(), readiness);
    sleep(15 * SECOND).await;
    books.registered.lock().unwrap().as_mut().unwrap()["Port"] = json!(1);
    sleep(30 * SECOND).await;
    assert_eq!(books.registered.lock().unwrap().as_ref().unwrap()["Port"], 25600);
    let registrations = agent.asked_for("/service/register").len();
    sleep(300 * SECOND).await;
    assert_eq!(agent.asked_for("/service/register").len(), registrations, "what is right is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_refused_registration_is_tried_again_without_a_busy_loop() {
    let books = Books::default();
    *books.refuse.lock().unwrap() = Some(403);
    let agent = books.agent();
    let (_ready, readiness) = watch::channel(Readiness::Ready);
    let registration = Registration::start(agent.client(), settings(), readiness);
    sleep(60 * SECOND).await;
    assert!((10..20).contains(&agent.asked().len()), "{}", agent.asked().len());
    *books.refuse.lock().unwrap() = None;
    sleep(6 * SECOND).await;
    assert!(books.registered.lock().unwrap().is_some());
    *books.refuse.lock().unwrap() = Some(500);
    let began = Instant::now();
    registration.stop().await;
    assert!(began.elapsed() <= 10 * SECOND);
    assert_eq!(agent.asked_for("/deregister/").len(), 3, "three tries");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_knows_nothing_of_us_at_the_stop_is_content() {
    let agent = Books::default().agent();
    let (_ready, readiness) = watch::channel(Readiness::Ready);
    let registration = Registration::start(agent.client(), settings(), readiness);
    registration.stop().await;
    let asked = paths(&agent);
    assert_eq!(asked.last().unwrap(), "/v1/agent/service/deregister/web-proxy-x1");
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_1_2_gets_the_registration_that_it_understands() {
    let agent = Scripted::new(|asked| async move {
        let old = asked.body.contains(r#""ProxyDestination":"web""#) && !asked.body.contains("DestinationServiceName");
        if asked.path().ends_with("/register") && !old { Reply::status(400) } else { Reply::ok(1, "") }
    });
    let (_ready, readiness) = watch::channel(Readiness::Ready);
    let _registration = Registration::start(agent.client(), settings(), readiness);
    sleep(120 * SECOND).await;
    assert_eq!(agent.asked_for("/register").len(), 2);
    assert_eq!(agent.asked_for("/check/pass/").len(), 12);
}
