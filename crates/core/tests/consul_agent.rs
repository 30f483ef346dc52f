//! The agent client end to end against the embedded agent, over real sockets and real time.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

mod consul_support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use consul_support::{Scene, chain, eventually, http_client, identity, rotation};
use lictor_agent::{
    Access, Acl, Dialect, Endpoint, Fault, Instance, LeafFault, ManagedProxy, Options, Policy, RootsFault, Status,
    Token as AclToken,
};
use lictor_core::{
    Authorizer as _, CertSource as _, Destination, DestinationKind, Discovery as _, DiscoveryError, Inbound, Material,
    PeerIdentity, Permit, Refusal, RefusalKind, ServiceName,
    consul::{
        CallClass, CallOutcome, ClientSettings, ConsulAuthorizer, ConsulCertSource, ConsulDiscovery, DefinitionProblem,
        DefinitionSource, OwnDefinition, Readiness, Registration, RegistrationSettings, Token, find_sidecar,
    },
    identity::Grammar,
    rotation::system_clock,
};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::watch;

fn source(scene: &Scene) -> ConsulCertSource {
    ConsulCertSource::start(&scene.client, rotation("web", system_clock()), system_clock())
}

/// Waits for a material of which `wanted` holds.
async fn material(source: &ConsulCertSource, wanted: impl Fn(&Material) -> bool) -> Arc<Material> {
    let mut watch = source.watch();
    let seen = watch.wait_for(|material| material.as_ref().is_some_and(|material| wanted(material)));
    let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
    seen.unwrap_or_else(|_| panic!("no such material; {:?}", source.state())).unwrap().clone().unwrap()
}

fn peer(scene: &Scene, own: &Material, service: &str) -> PeerIdentity {
    let issued = scene.handle.issue(service).unwrap();
    let trust_domain = scene.handle.trust_domain();
    let roots = scene.handle.root_pems();
    identity(&chain(&issued.chain_pem), &roots, &trust_domain, own.leaf.identity(), UnixTime::now())
}

async fn ask(authorizer: &ConsulAuthorizer, peer: &PeerIdentity) -> Result<Permit, Refusal> {
    let target = ServiceName::parse("web", Grammar::Spiffe).unwrap();
    authorizer.authorize(&Inbound { target: &target, peer, within: Duration::from_secs(10) }).await
}

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

async fn ids(discovery: &ConsulDiscovery, destination: &Destination) -> Vec<String> {
    let list = discovery.instances(destination).await.unwrap();
    let mut ids: Vec<String> = list.iter().map(|instance| instance.id.clone()).collect();
    ids.sort();
    ids
}

fn native(id: &str, port: u16) -> Value {
    json!({"ID": id, "Name": "db", "Port": port, "Address": "127.0.0.1", "Connect": {"Native": true}})
}

#[tokio::test]
async fn leaf_and_roots_come_and_follow_a_rotation_until_the_old_root_is_gone() {
    for dialect in [Dialect::Today, Dialect::Old] {
        let options = Options { dialect, ..Options::default() };
        let scene = Scene::start_with(options, ClientSettings::default()).await;
        let source = source(&scene);
        let first = material(&source, |_| true).await;
        assert_eq!(first.leaf.identity().service(), "web");
        scene.handle.rotate_root().unwrap();
        let second = material(&source, |m| m.roots.anchors().len() == 2 && !m.leaf.is_same_as(&first.leaf)).await;
        assert_eq!(second.leaf.chain().len(), 2, "with its cross certificate");
        scene.handle.prune_roots();
        material(&source, |m| m.roots.anchors().len() == 1).await;
        assert!(source.state().usable, "{:?}", source.state());
    }
}

#[tokio::test]
async fn a_broken_leaf_never_replaces_a_good_one_and_the_next_good_one_counts() {
    let scene = Scene::start().await;
    let source = source(&scene);
    for fault in [
        LeafFault::WrongKey,
        LeafFault::OtherService("db".to_owned()),
        LeafFault::Expired,
        LeafFault::GarbageCertificate,
        LeafFault::GarbageKey,
    ] {
        let before = material(&source, |_| true).await;
        scene.handle.set_leaf_fault("web", Some(fault.clone())).unwrap();
        scene.handle.renew_leaf("web").unwrap();
        eventually("the trouble", || !source.state().problems.is_empty()).await;
        let kept = source.watch().borrow().clone().unwrap();
        assert!(kept.leaf.is_same_as(&before.leaf), "{fault:?}");
        scene.handle.set_leaf_fault("web", None).unwrap();
        material(&source, |m| !m.leaf.is_same_as(&before.leaf)).await;
        eventually("an end of the trouble", || source.state().problems.is_empty()).await;
    }
}

#[tokio::test]
async fn faulty_roots_change_nothing_or_only_what_is_sound_in_them() {
    let scene = Scene::start().await;
    let source = source(&scene);
    material(&source, |_| true).await;
    scene.handle.set_roots_fault(Some(RootsFault::Empty)).unwrap();
    eventually("the trouble", || source.state().problems.iter().any(|p| p.contains("no roots yet"))).await;
    assert_eq!(source.watch().borrow().as_ref().unwrap().roots.anchors().len(), 1);
    scene.handle.set_roots_fault(Some(RootsFault::GarbageAmongGood)).unwrap();
    eventually("the ignored root", || source.state().problems.iter().any(|p| p.contains("ignored root"))).await;
    assert_eq!(source.watch().borrow().as_ref().unwrap().roots.anchors().len(), 1);
    scene.handle.set_roots_fault(Some(RootsFault::AllGarbage)).unwrap();
    material(&source, |m| m.roots.anchors().is_empty()).await;
    assert!(!source.state().usable, "nobody passes then");
    scene.handle.set_roots_fault(None).unwrap();
    material(&source, |m| m.roots.anchors().len() == 1).await;
}

#[tokio::test]
async fn a_403_for_all_blocked_leaf_callers_costs_no_time() {
    let scene = Scene::start().await;
    let source = source(&scene);
    let first = material(&source, |_| true).await;
    let blocked = |stats: &lictor_agent::Stats| stats.blocked(Endpoint::Leaf) == 1;
    scene.handle.wait_until(blocked).await;
    scene.handle.refuse_blocked(Endpoint::Leaf, 403, "ACL not found");
    scene.handle.wait_until(|stats| stats.answers(Endpoint::Leaf) >= 3).await;
    scene.handle.renew_leaf("web").unwrap();
    let began = Instant::now();
    material(&source, |m| !m.leaf.is_same_as(&first.leaf)).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_new_leaf_under_the_old_index_and_answers_of_wrong_types_are_survived() {
    let scene = Scene::start().await;
    let source = source(&scene);
    let first = material(&source, |_| true).await;
    for endpoint in [Endpoint::Leaf, Endpoint::Roots] {
        for fault in [
            Fault::WrongTypes,
            Fault::Truncate,
            Fault::Oversize { bytes: 2 << 20 },
            Fault::Body { text: "[".repeat(10_000) },
            Fault::Index { index: 0 },
            Fault::NoIndex,
        ] {
            scene.handle.misbehave_times(endpoint, fault, 1);
        }
    }
    scene.handle.touch_roots();
    scene.handle.renew_leaf("web").unwrap();
    material(&source, |m| !m.leaf.is_same_as(&first.leaf)).await;
    eventually("an end of the trouble", || source.state().problems.is_empty()).await;
    let second = material(&source, |_| true).await;
    scene.handle.touch_leaf("web");
    scene.handle.renew_leaf("web").unwrap();
    material(&source, |m| !m.leaf.is_same_as(&second.leaf)).await;
}

#[tokio::test]
async fn an_agent_that_is_away_or_comes_back_with_another_authority_is_followed_in_seconds() {
    let scene = Scene::start().await;
    let source = source(&scene);
    let first = material(&source, |_| true).await;
    scene.handle.stop_listening().await;
    eventually("the loss", || scene.client.health().reachable == Some(false)).await;
    scene.handle.start_listening().await.unwrap();
    let began = Instant::now();
    eventually("the return", || scene.client.health().reachable == Some(true)).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    scene.handle.restart_wiped().await.unwrap();
    let began = Instant::now();
    let second = material(&source, |m| !m.leaf.is_same_as(&first.leaf)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(source.state().usable && second.roots.anchors().len() == 1);
}

#[tokio::test]
async fn intentions_decide_and_whatever_is_no_decision_refuses() {
    let scene = Scene::start().await;
    let source = source(&scene);
    let own = material(&source, |_| true).await;
    let authorizer = ConsulAuthorizer::new(scene.client.clone(), source.watch());
    let client = peer(&scene, &own, "client");
    assert!(ask(&authorizer, &client).await.is_ok(), "access control is off");
    scene.handle.deny("client", "web");
    let refusal = ask(&authorizer, &client).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Denied, "{refusal}");
    scene.handle.allow("client", "web");
    let permit = ask(&authorizer, &client).await.unwrap();
    assert!(permit.rule().contains("ALLOW"), "{permit:?}");
    for (fault, kind) in [
        (Fault::AuthorizeMissing, RefusalKind::Unparsable),
        (Fault::AuthorizeTwice, RefusalKind::Unparsable),
        (Fault::AuthorizeText, RefusalKind::Unparsable),
        (Fault::WrongTypes, RefusalKind::Unparsable),
        (Fault::ExtraBytes, RefusalKind::Unparsable),
        (Fault::Oversize { bytes: 70_000 }, RefusalKind::Unparsable),
        (Fault::Body { text: "true".to_owned() }, RefusalKind::Unparsable),
        (Fault::Truncate, RefusalKind::Unreachable),
        (Fault::Status { status: 400, body: String::new() }, RefusalKind::BadRequest),
        (Fault::Status { status: 403, body: String::new() }, RefusalKind::Forbidden),
        (Fault::Status { status: 500, body: String::new() }, RefusalKind::AgentError),
    ] {
        scene.handle.misbehave(Endpoint::Authorize, fault.clone());
        assert_eq!(ask(&authorizer, &client).await.unwrap_err().kind, kind, "{fault:?}");
        scene.handle.behave_at(Endpoint::Authorize);
    }
    assert!(ask(&authorizer, &client).await.is_ok());
}

#[tokio::test]
async fn an_agent_at_its_limit_of_connections_is_asked_again_until_there_is_room() {
    let scene = Scene::start().await;
    let source = source(&scene);
    let own = material(&source, |_| true).await;
    let client = peer(&scene, &own, "client");
    scene.handle.wait_until(|stats| stats.blocked(Endpoint::Leaf) + stats.blocked(Endpoint::Roots) == 2).await;
    // The watches keep their connections; a client of its own finds no room.
    let other = http_client(&scene.handle.url(), ClientSettings::default());
    let authorizer = ConsulAuthorizer::new(other, source.watch());
    scene.handle.set_connection_limit(2);
    let asking = tokio::spawn(async move { ask(&authorizer, &client).await });
    scene.handle.wait_until(|stats| stats.refused_connections >= 2).await;
    scene.handle.set_connection_limit(200);
    asking.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_storm_of_everything_keeps_within_sixteen_connections() {
    let scene = Scene::start().await;
    scene.handle.register(native("db-1", 5000)).unwrap();
    let source = source(&scene);
    let own = material(&source, |_| true).await;
    let _definition = OwnDefinition::start(&scene.client, "nobody".to_owned(), DefinitionSource::Service);
    let authorizer = ConsulAuthorizer::new(scene.client.clone(), source.watch());
    let discovery = ConsulDiscovery::new(scene.client.clone());
    let peers: Vec<PeerIdentity> = (0..40).map(|n| peer(&scene, &own, &format!("client{n}"))).collect();
    scene.handle.misbehave(Endpoint::Authorize, Fault::Delay { ms: 5 });
    for _ in 0..5 {
        let upstreams: Vec<Destination> = (0..30).map(|n| Destination { name: format!("db{n}"), ..db() }).collect();
        let asking = futures_util::future::join_all(peers.iter().map(|peer| ask(&authorizer, peer)));
        let listing = futures_util::future::join_all(upstreams.iter().map(|to| discovery.instances(to)));
        let (answers, lists) = tokio::join!(asking, listing);
        assert!(answers.iter().all(Result::is_ok) && lists.iter().all(Result::is_ok));
    }
    let stats = scene.handle.stats();
    assert!(stats.most_connections <= 16, "{} connections at once", stats.most_connections);
    assert!(stats.connections <= 40, "{} connections in all for {:?}", stats.connections, stats.calls);
}

#[tokio::test]
async fn instances_are_found_by_service_by_query_and_in_another_datacenter() {
    let options = Options { other_datacenters: vec!["dc2".to_owned()], ..Options::default() };
    let scene = Scene::start_with(options, ClientSettings::default()).await;
    scene.handle.register(native("db-1", 5000)).unwrap();
    let sidecar = json!({
        "Kind": "connect-proxy", "ID": "db-proxy", "Name": "db-proxy", "Port": 5001,
        "Proxy": {"DestinationServiceName": "db"}, "Check": {"CheckID": "beat", "TTL": "60s", "Status": "passing"},
    });
    scene.handle.register(sidecar).unwrap();
    let Value::Object(service) = native("db-2", 5002) else { unreachable!() };
    let away = Instance {
        node: "n2".to_owned(),
        node_address: "10.0.0.2".to_owned(),
        datacenter: "dc2".to_owned(),
        service,
        status: Status::Passing,
    };
    scene.handle.add_instance(away).unwrap();
    scene.handle.create_query(json!({"Name": "any-db", "Service": {"Service": "db"}})).unwrap();
    let discovery = ConsulDiscovery::new(scene.client.clone());
    assert_eq!(ids(&discovery, &db()).await, ["db-1", "db-proxy"]);
    let query = Destination { kind: DestinationKind::PreparedQuery, name: "any-db".to_owned(), ..db() };
    assert_eq!(ids(&discovery, &query).await, ["db-1", "db-proxy"]);
    let dc2 = Destination { datacenter: Some("dc2".to_owned()), ..db() };
    let list = discovery.instances(&dc2).await.unwrap();
    assert_eq!((list[0].id.as_str(), list[0].datacenter.as_str()), ("db-2", "dc2"));
    scene.handle.set_check("beat", Status::Critical, "");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ids(&discovery, &db()).await, ["db-1"]);
    let nobody = Destination { kind: DestinationKind::PreparedQuery, name: "nobody".to_owned(), ..db() };
    assert!(matches!(discovery.instances(&nobody).await, Err(DiscoveryError::NotFound(_))));
}

#[tokio::test]
async fn a_frozen_agent_leaves_the_known_list_in_use() {
    let scene = Scene::start().await;
    scene.handle.register(native("db-1", 5000)).unwrap();
    let discovery = ConsulDiscovery::new(scene.client.clone());
    ids(&discovery, &db()).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    scene.handle.freeze();
    let began = Instant::now();
    assert_eq!(ids(&discovery, &db()).await, ["db-1"]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn lost_rights_are_told_apart_from_lost_instances() {
    let reader = AclToken { services: vec![("db".to_owned(), Access::Read)], node_read: true, ..AclToken::default() };
    let acl = Acl::new(Policy::Deny).with("good", reader);
    let settings = ClientSettings { token: Token::value("good").unwrap(), ..ClientSettings::default() };
    let scene = Scene::start_with(Options { acl: Some(acl), ..Options::default() }, settings).await;
    scene.handle.register(native("db-1", 5000)).unwrap();
    let discovery = ConsulDiscovery::new(scene.client.clone());
    assert_eq!(ids(&discovery, &db()).await, ["db-1"]);
    scene.handle.delete_token("good");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ids(&discovery, &db()).await, ["db-1"], "the last list is kept");
    let stranger = Destination { name: "cache".to_owned(), ..db() };
    assert!(matches!(discovery.instances(&stranger).await, Err(DiscoveryError::Forbidden(_))));
    let own = OwnDefinition::start(&scene.client, "db-1".to_owned(), DefinitionSource::Service);
    let mut state = own.watch();
    let forbidden = |problem: &Option<DefinitionProblem>| matches!(problem, Some(DefinitionProblem::Forbidden(_)));
    state.wait_for(|state| forbidden(&state.problem)).await.unwrap();
    let counted = scene.client.health().calls;
    assert!(
        counted.iter().any(|(class, outcome, _)| (*class, *outcome) == (CallClass::Endpoints, CallOutcome::Forbidden))
    );
}

#[tokio::test]
async fn a_sidecar_finds_itself_and_follows_its_registration() {
    let scene = Scene::start().await;
    assert!(find_sidecar(&scene.client, "web-1").await.unwrap_err().to_string().starts_with("No sidecar proxy"));
    let registration = |port: u16| {
        json!({
            "ID": "web-1", "Name": "web", "Port": 8080,
            "Connect": {"SidecarService": {"Port": 21000, "Proxy": {
                "Upstreams": [{"DestinationName": "db", "LocalBindPort": port}],
            }}},
        })
    };
    scene.handle.register(registration(9191)).unwrap();
    let id = find_sidecar(&scene.client, "WEB-1").await.unwrap();
    let own = OwnDefinition::start(&scene.client, id, DefinitionSource::Service);
    let mut state = own.watch();
    state.wait_for(|state| state.definition.is_some()).await.unwrap();
    let definition = state.borrow_and_update().definition.clone().unwrap();
    assert_eq!((definition.service.as_str(), definition.datacenter.as_deref()), ("web", Some("dc1")));
    scene.handle.change_hashes();
    scene.handle.register(registration(9192)).unwrap();
    let bound = |state: &lictor_core::consul::OwnDefinitionState| format!("{:?}", state.definition);
    state.wait_for(|state| bound(state).contains("9192")).await.unwrap();
    scene.handle.deregister("web-1");
    state.wait_for(|state| matches!(state.problem, Some(DefinitionProblem::Unregistered(_)))).await.unwrap();
    assert!(bound(&state.borrow()).contains("9192"), "it runs on");
    scene.handle.register(registration(9193)).unwrap();
    state.wait_for(|state| bound(state).contains("9193") && state.problem.is_none()).await.unwrap();
    scene
        .handle
        .register(json!({
            "Kind": "connect-proxy", "ID": "web-2", "Name": "web-2", "Port": 21001,
            "Proxy": {"DestinationServiceName": "web", "DestinationServiceID": "web-1"},
        }))
        .unwrap();
    let several = find_sidecar(&scene.client, "web-1").await.unwrap_err().to_string();
    assert!(several.ends_with("web-1-sidecar-proxy, web-2"), "{several}");
}

#[tokio::test]
async fn a_managed_proxy_is_followed_in_the_old_dialect() {
    let options = Options { dialect: Dialect::Old, ..Options::default() };
    let scene = Scene::start_with(options, ClientSettings::default()).await;
    let proxy = |port: u16| -> ManagedProxy {
        serde_json::from_value(json!({
            "target_id": "web-1", "target_name": "web",
            "config": {"bind_address": "127.0.0.1", "bind_port": 25008, "local_service_address": "127.0.0.1:8080",
                "upstreams": [{"destination_name": "db", "local_bind_port": port}]},
        }))
        .unwrap()
    };
    scene.handle.set_managed_proxy(proxy(1));
    let own = OwnDefinition::start(&scene.client, "web-1-proxy".to_owned(), DefinitionSource::Managed);
    let mut state = own.watch();
    state.wait_for(|state| state.definition.is_some()).await.unwrap();
    scene.handle.set_managed_proxy(proxy(2));
    let port = |state: &lictor_core::consul::OwnDefinitionState| format!("{:?}", state.definition).contains("port: 2 ");
    tokio::time::timeout(Duration::from_secs(10), state.wait_for(port)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_registration_passes_its_check_while_ready_and_is_gone_after_the_stop() {
    for dialect in [Dialect::Today, Dialect::Old] {
        let options = Options { dialect, ..Options::default() };
        let scene = Scene::start_with(options, ClientSettings::default()).await;
        let settings = RegistrationSettings { service: "db".to_owned(), id_suffix: None, address: None, port: 25600 };
        let (ready, readiness) = watch::channel(Readiness::NotReady("no leaf yet".to_owned()));
        let registration = Registration::start(scene.client.clone(), settings, readiness);
        scene.handle.wait_until(|stats| stats.answers(Endpoint::CheckUpdate) >= 1).await;
        let discovery = ConsulDiscovery::new(scene.client.clone());
        assert!(ids(&discovery, &db()).await.is_empty(), "critical while not ready");
        ready.send_replace(Readiness::Ready);
        scene.handle.wait_until(|stats| stats.answers(Endpoint::CheckUpdate) >= 2).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(ids(&discovery, &db()).await, ["db-proxy"]);
        scene.handle.deregister("db-proxy");
        ready.send_replace(Readiness::Ready);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(ids(&discovery, &db()).await, ["db-proxy"], "it came back with the next sign of life");
        registration.stop().await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(ids(&discovery, &db()).await.is_empty());
    }
}

#[tokio::test]
async fn data_threads_with_runtimes_of_their_own_share_the_client() {
    let scene = Scene::start().await;
    scene.handle.register(native("db-1", 5000)).unwrap();
    let source = source(&scene);
    let own = material(&source, |_| true).await;
    let authorizer = ConsulAuthorizer::new(scene.client.clone(), source.watch());
    let discovery = Arc::new(ConsulDiscovery::new(scene.client.clone()));
    let client = peer(&scene, &own, "client");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (authorizer, discovery, client) = (authorizer.clone(), discovery.clone(), client.clone());
            tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..20 {
                        ask(&authorizer, &client).await.unwrap();
                        assert_eq!(ids(&discovery, &db()).await, ["db-1"]);
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.await.unwrap();
    }
    // The threads and their runtimes are gone; the connections to the agent are not.
    ask(&authorizer, &client).await.unwrap();
    let stats = scene.handle.stats();
    assert!(stats.connections <= 10, "{} connections", stats.connections);
}

#[tokio::test]
async fn an_agent_on_a_unix_socket_serves_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let options = Options { unix_socket: Some(path.clone()), ..Options::default() };
    let mut scene = Scene::start_with(options, ClientSettings::default()).await;
    scene.client = http_client(&format!("unix://{}", path.display()), ClientSettings::default());
    scene.handle.register(native("db-1", 5000)).unwrap();
    let source = source(&scene);
    let own = material(&source, |_| true).await;
    let authorizer = ConsulAuthorizer::new(scene.client.clone(), source.watch());
    ask(&authorizer, &peer(&scene, &own, "client")).await.unwrap();
    assert_eq!(ids(&ConsulDiscovery::new(scene.client.clone()), &db()).await, ["db-1"]);
}
