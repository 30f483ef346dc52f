//! The agent client against a real Consul: `LICTOR_CONSUL=/path/to/consul cargo test -p lictor-core --test consul_real
//! -- --ignored --nocapture`.
//!
//! Starts `consul agent -dev` on loopback with ports of its own and walks through everything the client does. It is
//! ignored by default, since it needs the binary.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]
#![expect(clippy::print_stdout, reason = "a person reads what it showed")]

mod consul_support;

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use consul_support::{chain, http_client, identity, rotation};
use lictor_conformance::{
    certs::{Authority, Mesh, pem},
    keys::{Key, KeyKind},
};
use lictor_core::{
    Authorizer as _, CertSource as _, Destination, DestinationKind, Discovery as _, Inbound, ServiceName,
    consul::{
        AgentClient, CallClass, CallOutcome, ClientSettings, ConsulAuthorizer, ConsulCertSource, ConsulDiscovery,
        DefinitionSource, OwnDefinition, Readiness, Registration, RegistrationSettings, Token, find_sidecar,
    },
    identity::Grammar,
    rotation::system_clock,
};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::watch;

/// A `consul agent -dev` that ends with the test.
struct Consul {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Consul {
    async fn start(binary: &str) -> Self {
        Self::start_with(binary, "").await
    }

    /// With a piece of configuration of its own, ending in a comma.
    async fn start_with(binary: &str, more: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let [server, serf_lan, serf_wan] = std::array::from_fn(|_| {
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
        });
        let config = format!(
            r#"{{{more}"connect": {{"enabled": true}}, "ports": {{"grpc": -1, "grpc_tls": -1, "dns": -1, "http": {port},
                "server": {server}, "serf_lan": {serf_lan}, "serf_wan": {serf_wan}}}}}"#
        );
        // Versions before 1.14 do not know every port.
        let config = if binary.contains("1.22") || binary.contains("1.18") {
            config
        } else {
            config.replace(r#""grpc": -1, "grpc_tls": -1, "#, "")
        };
        let file = std::env::temp_dir().join(format!("lictor-consul-{port}.json"));
        std::fs::write(&file, config).unwrap();
        let child = Command::new(binary)
            .args(["agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-node", "n1", "-config-file"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let consul = Self { child, url: format!("http://127.0.0.1:{port}"), http };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(answer) = consul.http.get(format!("{}/v1/connect/ca/roots", consul.url)).send().await
                && answer.status() == 200
            {
                return consul;
            }
            assert!(Instant::now() < deadline, "consul did not come up");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn put(&self, path: &str, body: Value) -> String {
        let request = self.http.put(format!("{}{path}", self.url)).header("X-Consul-Token", MANAGEMENT);
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    fn client(&self) -> AgentClient {
        http_client(&self.url, ClientSettings::default())
    }

    /// A token with these rules: its public name and its secret.
    async fn token(&self, rules: &str) -> (String, String) {
        self.put("/v1/acl/policy", json!({"Name": "test", "Rules": rules})).await;
        let made = self.put("/v1/acl/token", json!({"Policies": [{"Name": "test"}]})).await;
        let made: Value = serde_json::from_str(&made).unwrap();
        let text = |key: &str| made[key].as_str().unwrap().to_owned();
        (text("AccessorID"), text("SecretID"))
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The management token of agents with access control.
const MANAGEMENT: &str = "5a7c1d8e-0000-4000-8000-000000000001";

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

#[tokio::test]
#[ignore = "needs a consul binary, named by LICTOR_CONSUL"]
async fn a_real_agent_serves_all_that_the_client_asks_for() {
    let binary = std::env::var("LICTOR_CONSUL").unwrap();
    let consul = Consul::start(&binary).await;
    let client = consul.client();

    // Certificates, and a rotation of the root.
    let source = ConsulCertSource::start(&client, rotation("web", system_clock()), system_clock());
    let mut watch = source.watch();
    let first = watch.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    println!("leaf {} of {}", first.leaf.serial(), first.leaf.identity());
    // Old versions rotate only for a root that they are given.
    let key = Arc::new(Key::generate(KeyKind::P256));
    let root = Authority::root_with(&Mesh::new(1).ca("Given CA"), key.clone());
    let rotated = json!({"Provider": "consul", "Config": {
        "RootCert": root.pem(), "PrivateKey": pem("PRIVATE KEY", key.pkcs8().unwrap()),
    }});
    consul.put("/v1/connect/ca/configuration", rotated).await;
    let began = Instant::now();
    let two = watch.wait_for(|material| material.as_ref().is_some_and(|m| m.roots.anchors().len() == 2));
    let two = tokio::time::timeout(Duration::from_secs(10), two).await.map(|material| material.unwrap().is_some());
    println!("two roots: {two:?} after {:?}", began.elapsed());
    let renewed = watch.wait_for(|material| material.as_ref().is_some_and(|m| !m.leaf.is_same_as(&first.leaf)));
    let renewed = tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("a new leaf").unwrap().clone();
    let renewed = renewed.unwrap();
    println!("leaf {} after {:?}, chain of {}", renewed.leaf.serial(), began.elapsed(), renewed.leaf.chain().len());
    println!("state {:?}", source.state());
    assert!(source.state().usable);

    // Decisions.
    let other: Value = consul.get("/v1/agent/connect/ca/leaf/client").await;
    let roots = consul.get("/v1/agent/connect/ca/roots").await;
    let roots_pem: Vec<String> =
        roots["Roots"].as_array().unwrap().iter().map(|root| root["RootCert"].as_str().unwrap().to_owned()).collect();
    let trust_domain = roots["TrustDomain"].as_str().unwrap();
    let certificates = chain(other["CertPEM"].as_str().unwrap());
    let peer = identity(&certificates, &roots_pem, trust_domain, renewed.leaf.identity(), UnixTime::now());
    let authorizer = ConsulAuthorizer::new(client.clone(), source.watch());
    let target = ServiceName::parse("web", Grammar::Spiffe).unwrap();
    let inbound = Inbound { target: &target, peer: &peer, within: Duration::from_secs(10) };
    println!("default: {:?}", authorizer.authorize(&inbound).await);
    let intention = json!({"SourceName": "client", "DestinationName": "web", "SourceType": "consul", "Action": "deny"});
    let created = consul.http.post(format!("{}/v1/connect/intentions", consul.url)).body(intention.to_string());
    println!("intention: {}", created.send().await.unwrap().status());
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let answer = authorizer.authorize(&inbound).await;
        if let Err(refusal) = answer {
            println!("denied: {refusal}");
            assert_eq!(refusal.kind, lictor_core::RefusalKind::Denied);
            break;
        }
        assert!(Instant::now() < deadline);
    }
    let began = Instant::now();
    for _ in 0..1000 {
        let _ = authorizer.authorize(&inbound).await;
    }
    println!("1000 questions in {:?}", began.elapsed());

    // A registration, and instances.
    let discovery = ConsulDiscovery::new(client.clone());
    let (ready, readiness) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let settings = RegistrationSettings {
        service: "db".to_owned(),
        id_suffix: None,
        address: Some("127.0.0.1".to_owned()),
        port: 25600,
    };
    let registration = Registration::start(client.clone(), settings, readiness);
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("not ready: {:?}", discovery.instances(&db()).await);
    ready.send_replace(Readiness::Ready);
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let list = discovery.instances(&db()).await.unwrap();
        if let Some(instance) = list.first() {
            println!("ready: {instance:?}");
            assert_eq!((instance.service.as_str(), instance.port), ("db", 25600));
            break;
        }
        assert!(Instant::now() < deadline, "never listed; {:?}", client.health());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let query = json!({"Name": "any-db", "Service": {"Service": "db"}});
    let created = consul.http.post(format!("{}/v1/query", consul.url)).body(query.to_string()).send().await.unwrap();
    println!("query: {}", created.status());
    let query = Destination { kind: DestinationKind::PreparedQuery, name: "any-db".to_owned(), ..db() };
    println!("by query: {:?}", discovery.instances(&query).await);

    // Our own definition.
    let body = |port: u16| {
        json!({
            "ID": "web-1", "Name": "web", "Port": 8080,
            "Connect": {"SidecarService": {"Proxy": {"Config": {"local_connect_timeout_ms": 1500},
                "Upstreams": [{"DestinationName": "db", "LocalBindPort": port}]}}},
        })
    };
    consul.put("/v1/agent/service/register", body(9191)).await;
    match find_sidecar(&client, "WEB-1").await {
        Ok(id) => {
            println!("sidecar: {id}");
            let own = OwnDefinition::start(&client, id, DefinitionSource::Service);
            let mut state = own.watch();
            let wait = tokio::time::timeout(Duration::from_secs(5), state.wait_for(|s| s.definition.is_some()));
            println!("definition: {:?}", wait.await.expect("a definition").unwrap().definition);
            let began = Instant::now();
            consul.put("/v1/agent/service/register", body(9192)).await;
            let wait = state.wait_for(|state| format!("{:?}", state.definition).contains("9192"));
            tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the change").unwrap();
            println!("change seen after {:?}", began.elapsed());
        }
        Err(error) => println!("sidecar: {error}"),
    }
    registration.stop().await;
    println!("health: {:?}", client.health());

    // The agent goes away and comes back with nothing.
    drop(consul);
    let began = Instant::now();
    while client.health().reachable == Some(true) {
        assert!(began.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("loss seen after {:?}: {:?}", began.elapsed(), source.state().problems);
    assert!(source.watch().borrow().is_some(), "the last good state is kept");
}

/// For versions from 1.11 on, which name the first token so.
#[tokio::test]
#[ignore = "needs a consul binary, named by LICTOR_CONSUL, and two minutes"]
async fn rights_that_are_lost_on_a_real_agent_are_noticed_and_cost_no_state() {
    let binary = std::env::var("LICTOR_CONSUL").unwrap();
    let acl = format!(
        r#""acl": {{"enabled": true, "default_policy": "deny", "tokens": {{"initial_management": "{MANAGEMENT}"}}}},"#
    );
    let consul = Consul::start_with(&binary, &acl).await;
    let rules = r#"service "web" { policy = "write" } service_prefix "" { policy = "read" }
        node_prefix "" { policy = "read" }"#;
    let (accessor, secret) = consul.token(rules).await;
    let native = json!({"ID": "db-1", "Name": "db", "Port": 5000, "Connect": {"Native": true}});
    consul.put("/v1/agent/service/register", native).await;
    let settings = ClientSettings { token: Token::value(&secret).unwrap(), ..ClientSettings::default() };
    let client = http_client(&consul.url, settings);
    let source = ConsulCertSource::start(&client, rotation("web", system_clock()), system_clock());
    let own = source.watch().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let roots: Vec<String> = own.roots.anchors().iter().map(|root| pem("CERTIFICATE", root.certificate())).collect();
    let trust_domain = own.roots.trust_domain().as_str();
    let peer = identity(own.leaf.chain(), &roots, trust_domain, own.leaf.identity(), UnixTime::now());
    let authorizer = ConsulAuthorizer::new(client.clone(), source.watch());
    let target = ServiceName::parse("web", Grammar::Spiffe).unwrap();
    let inbound = Inbound { target: &target, peer: &peer, within: Duration::from_secs(10) };
    println!("with rights: {:?}", authorizer.authorize(&inbound).await);
    let discovery = ConsulDiscovery::new(client.clone());
    let deadline = Instant::now() + Duration::from_secs(10);
    while discovery.instances(&db()).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "db is never listed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let gone = consul.http.delete(format!("{}/v1/acl/token/{accessor}", consul.url));
    assert_eq!(gone.header("X-Consul-Token", MANAGEMENT).send().await.unwrap().status(), 200);
    let began = Instant::now();
    loop {
        assert_eq!(discovery.instances(&db()).await.unwrap().len(), 1, "the last list is kept");
        let noticed = client
            .health()
            .calls
            .iter()
            .any(|(class, outcome, _)| (*class, *outcome) == (CallClass::Endpoints, CallOutcome::Forbidden));
        if noticed {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(100), "{:?}", client.health());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("the lost rights were noticed after {:?}: {:?}", began.elapsed(), client.health());
    let refusal = authorizer.authorize(&inbound).await.unwrap_err();
    println!("without rights: {refusal}");
    assert_eq!(refusal.kind, lictor_core::RefusalKind::Forbidden);
    println!("state: {:?}", source.state());
    assert!(source.watch().borrow().is_some());
}
