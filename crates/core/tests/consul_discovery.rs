//! Lists of instances against a scripted agent, in paused time.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

mod consul_support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use consul_support::{Asked, Reply, Scripted};
use lictor_core::{
    Destination, DestinationKind, Discovery as _, DiscoveryError,
    consul::{CallClass, CallOutcome, ConsulDiscovery},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn db() -> Destination {
    Destination {
        kind: DestinationKind::Service,
        name: "db".to_owned(),
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
    }
}

fn instance(id: &str) -> Value {
    json!({
        "Node": {"Address": "10.0.0.1", "Datacenter": "dc1"},
        "Service": {
            "Kind": "connect-proxy", "ID": id, "Address": "10.0.0.2", "Port": 21000,
            "Proxy": {"DestinationServiceName": "db"},
        },
        "Checks": [{"Status": "passing"}],
    })
}

fn list(ids: &[&str]) -> String {
    Value::from(ids.iter().map(|id| instance(id)).collect::<Vec<_>>()).to_string()
}

fn is_cached(asked: &Asked) -> bool {
    asked.target.contains("cached")
}

/// An agent that answers plain and cached calls as told, and can be told anew.
#[derive(Clone, Default)]
struct Told {
    plain: Arc<Mutex<(u16, String)>>,
    cached: Arc<Mutex<(u16, String)>>,
    slow: Arc<AtomicBool>,
}

impl Told {
    fn both(body: &str) -> Self {
        let told = Self::default();
        told.plain(200, body);
        told.cached(200, body);
        told
    }

    fn plain(&self, status: u16, body: &str) {
        *self.plain.lock().unwrap() = (status, body.to_owned());
    }

    fn cached(&self, status: u16, body: &str) {
        *self.cached.lock().unwrap() = (status, body.to_owned());
    }

    fn agent(&self) -> Arc<Scripted> {
        let told = self.clone();
        Scripted::new(move |asked| {
            let (status, body) = if is_cached(&asked) { &told.cached } else { &told.plain }.lock().unwrap().clone();
            let slow = told.slow.load(Relaxed);
            async move {
                if slow {
                    sleep(7 * SECOND).await;
                }
                Reply::Answer(status, Vec::new(), body)
            }
        })
    }
}

async fn ids(discovery: &ConsulDiscovery) -> Vec<String> {
    discovery.instances(&db()).await.unwrap().iter().map(|instance| instance.id.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_call_and_a_fresh_list_costs_none() {
    let agent = Told::both(&list(&["a", "b"])).agent();
    let discovery = ConsulDiscovery::new(agent.client());
    let dials = futures_util::future::join_all((0..50).map(|_| ids(&discovery))).await;
    assert!(dials.iter().all(|ids| *ids == ["a", "b"]));
    assert_eq!(agent.asked().len(), 1);
    sleep(SECOND / 2).await;
    ids(&discovery).await;
    assert_eq!(agent.asked().len(), 1, "the list is fresh");
    sleep(SECOND).await;
    ids(&discovery).await;
    assert_eq!(agent.asked().len(), 2);
    assert_eq!(agent.asked()[0].target, "/v1/health/connect/db?passing=1");
    assert_eq!(agent.asked()[1].target, "/v1/health/connect/db?passing=1&cached");
}

#[tokio::test(start_paused = true)]
async fn a_deregistered_instance_is_not_given_to_a_dial_a_second_later() {
    let told = Told::both(&list(&["a", "b"]));
    let discovery = ConsulDiscovery::new(told.agent().client());
    assert_eq!(ids(&discovery).await, ["a", "b"]);
    told.cached(200, &list(&["b"]));
    sleep(SECOND + Duration::from_millis(1)).await;
    assert_eq!(ids(&discovery).await, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn with_a_known_list_a_dial_waits_a_tenth_of_a_second_and_then_uses_it() {
    let told = Told::both(&list(&["a"]));
    let discovery = ConsulDiscovery::new(told.agent().client());
    ids(&discovery).await;
    told.slow.store(true, Relaxed);
    told.cached(200, &list(&["b"]));
    sleep(2 * SECOND).await;
    let began = Instant::now();
    assert_eq!(ids(&discovery).await, ["a"]);
    assert_eq!(began.elapsed().as_millis(), 100);
    sleep(8 * SECOND).await;
    assert_eq!(ids(&discovery).await, ["b"], "it was refreshed behind");
}

#[tokio::test(start_paused = true)]
async fn the_last_list_serves_while_the_servers_are_lost() {
    for (plain, cached) in [(500, 500), (500, 503), (503, 503)] {
        let told = Told::both(&list(&["a"]));
        let agent = told.agent();
        let discovery = ConsulDiscovery::new(agent.client());
        ids(&discovery).await;
        told.plain(plain, "No cluster leader");
        told.cached(cached, "No cluster leader");
        for _ in 0..300 {
            assert_eq!(ids(&discovery).await, ["a"]);
            sleep(SECOND).await;
        }
        assert!(agent.asked().len() < 150, "{} calls in five minutes of failure", agent.asked().len());
        told.cached(200, &list(&["b"]));
        sleep(6 * SECOND).await;
        ids(&discovery).await;
        sleep(SECOND / 10).await;
        assert_eq!(ids(&discovery).await, ["b"], "it recovers");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lost_its_servers_before_we_started_is_asked_for_what_it_remembers() {
    let told = Told::default();
    told.plain(500, "No cluster leader");
    told.cached(200, &list(&["a"]));
    let discovery = ConsulDiscovery::new(told.agent().client());
    assert_eq!(ids(&discovery).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_cached_list_is_believed_only_when_the_plain_one_is_empty_too() {
    let told = Told::both(&list(&["a"]));
    let agent = told.agent();
    let client = agent.client();
    let discovery = ConsulDiscovery::new(client.clone());
    ids(&discovery).await;
    // A token without rights: the streaming backend says nothing, the plain call says 403.
    told.cached(200, "[]");
    told.plain(403, "Permission denied");
    sleep(2 * SECOND).await;
    assert_eq!(ids(&discovery).await, ["a"], "lost rights do not look like lost instances");
    let forbidden = |(class, outcome, _): &&(CallClass, CallOutcome, u64)| {
        (*class, *outcome) == (CallClass::Endpoints, CallOutcome::Forbidden)
    };
    assert!(client.health().calls.iter().any(|count| forbidden(&count)), "{:?}", client.health());
    told.plain(500, "No cluster leader");
    sleep(6 * SECOND).await;
    assert_eq!(ids(&discovery).await, ["a"]);
    told.plain(200, "[]");
    sleep(6 * SECOND).await;
    assert!(ids(&discovery).await.is_empty(), "really none");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_list_is_seen_through_within_two_minutes() {
    let told = Told::both(&list(&["a"]));
    let agent = told.agent();
    let client = agent.client();
    let discovery = ConsulDiscovery::new(client.clone());
    told.plain(200, &list(&["a"]));
    ids(&discovery).await;
    told.plain(403, "Permission denied");
    for _ in 0..120 {
        assert_eq!(ids(&discovery).await, ["a"]);
        sleep(SECOND).await;
    }
    assert!(
        client.health().calls.contains(&(CallClass::Endpoints, CallOutcome::Forbidden, 1)),
        "{:?}",
        client.health()
    );
}

#[tokio::test(start_paused = true)]
async fn with_nothing_known_the_reason_is_told_at_once() {
    for (status, expected) in [(403, "Forbidden"), (404, "NotFound"), (400, "Unavailable"), (500, "Unavailable")] {
        let told = Told::default();
        told.plain(status, "words of the agent");
        told.cached(status, "words of the agent");
        let discovery = ConsulDiscovery::new(told.agent().client());
        let began = Instant::now();
        let error = discovery.instances(&db()).await.unwrap_err();
        assert!(
            format!("{error:?}").starts_with(expected) && error.to_string().contains("words of the agent"),
            "{error:?}"
        );
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_costs_a_dial_a_bounded_time() {
    let agent = Scripted::new(|_| async { Reply::Hang });
    let discovery = ConsulDiscovery::new(agent.client());
    let began = Instant::now();
    assert!(matches!(discovery.instances(&db()).await, Err(DiscoveryError::Unavailable(_))));
    assert!(began.elapsed() <= 15 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_upstream_in_use_is_refreshed_every_ten_seconds_and_an_idle_one_is_left_alone() {
    let agent = Told::both(&list(&["a"])).agent();
    let discovery = ConsulDiscovery::new(agent.client());
    ids(&discovery).await;
    sleep(50 * SECOND).await;
    let in_use = agent.asked().len();
    assert!((5..=7).contains(&in_use), "{in_use} calls in 50 s");
    sleep(30 * SECOND).await;
    let idle = agent.asked().len();
    sleep(600 * SECOND).await;
    assert_eq!(agent.asked().len(), idle, "nothing is asked about an upstream that nobody dials");
    assert_eq!(ids(&discovery).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_upstream_is_asked_for_no_more() {
    let agent = Told::both(&list(&["a"])).agent();
    let discovery = ConsulDiscovery::new(agent.client());
    ids(&discovery).await;
    discovery.forget(&db());
    sleep(30 * SECOND).await;
    assert_eq!(agent.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn where_to_look_is_passed_on_and_what_makes_no_sense_is_refused() {
    let agent = Told::both(&list(&["a"])).agent();
    let discovery = ConsulDiscovery::new(agent.client());
    let text = |text: &str| Some(text.to_owned());
    let there = Destination { datacenter: text("dc2"), namespace: text("team"), partition: text("part"), ..db() };
    discovery.instances(&there).await.unwrap();
    let peered = Destination { peer: text("cluster-b"), name: "d/b c".to_owned(), ..db() };
    discovery.instances(&peered).await.unwrap();
    let targets: Vec<String> = agent.asked().iter().map(|asked| asked.target.clone()).collect();
    assert_eq!(
        targets,
        [
            "/v1/health/connect/db?dc=dc2&ns=team&partition=part&passing=1",
            "/v1/health/connect/d%2Fb%20c?peer=cluster-b&passing=1"
        ]
    );
    for nonsense in [
        Destination { datacenter: text("dc2"), peer: text("b"), ..db() },
        Destination { kind: DestinationKind::PreparedQuery, peer: text("b"), ..db() },
        Destination { name: "..".to_owned(), ..db() },
    ] {
        assert!(discovery.instances(&nonsense).await.is_err(), "{nonsense:?}");
    }
    assert_eq!(agent.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_prepared_query_is_executed_for_mesh_instances() {
    let body = json!({"Service": "db", "Nodes": [instance("a")], "Datacenter": "dc2"}).to_string();
    let agent = Scripted::new(move |_| {
        let body = body.clone();
        async move { Reply::Answer(200, Vec::new(), body) }
    });
    let discovery = ConsulDiscovery::new(agent.client());
    let query = Destination { kind: DestinationKind::PreparedQuery, name: "geo-db".to_owned(), ..db() };
    assert_eq!(discovery.instances(&query).await.unwrap()[0].id, "a");
    assert_eq!(agent.asked()[0].target, "/v1/query/geo-db/execute?connect=true");
}

#[tokio::test(start_paused = true)]
async fn thirty_upstreams_take_three_connections() {
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counting, highest) = (inside.clone(), most.clone());
    let agent = Scripted::new(move |_| {
        let (inside, most) = (counting.clone(), highest.clone());
        async move {
            most.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
            sleep(SECOND / 100).await;
            inside.fetch_sub(1, Relaxed);
            Reply::Answer(200, Vec::new(), "[]".to_owned())
        }
    });
    let discovery = ConsulDiscovery::new(agent.client());
    let upstreams: Vec<Destination> = (0..30).map(|n| Destination { name: format!("db{n}"), ..db() }).collect();
    futures_util::future::join_all(upstreams.iter().map(|upstream| discovery.instances(upstream))).await;
    assert_eq!(most.load(Relaxed), 3);
}
