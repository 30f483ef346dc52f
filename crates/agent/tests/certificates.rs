//! The certificate authority as a client sees it: leaf, roots, rotation.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod common;

use std::time::Duration;

use common::{Client, start};
use lictor_agent::{Dialect, Endpoint, LeafFault, Options, RootsFault};
use serde_json::Value;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn ders(pem: &Value) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_str().unwrap().as_bytes()).map(|p| p.unwrap().contents).collect()
}

fn cert(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

fn uri_sans(cert: &X509Certificate<'_>) -> Vec<String> {
    let san = cert.subject_alternative_name().unwrap().unwrap();
    san.value
        .general_names
        .iter()
        .map(|n| match n {
            GeneralName::URI(uri) => (*uri).to_owned(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn jitterless() -> Options {
    Options { wait_jitter: false, ..Options::default() }
}

#[tokio::test]
async fn a_leaf_is_one_certificate_with_one_uri_that_the_active_root_has_signed() {
    let agent = start(Options::default()).await;
    let client = Client::new(&agent.handle());
    let got = client.get("/v1/agent/connect/ca/leaf/web").await;
    assert_eq!(got.status, 200);
    let leaf = got.json();
    let chain = ders(&leaf["CertPEM"]);
    assert_eq!(chain.len(), 1);
    let leaf_cert = cert(&chain[0]);
    assert_eq!(uri_sans(&leaf_cert), [leaf["ServiceURI"].as_str().unwrap()]);
    assert!(leaf["ServiceURI"].as_str().unwrap().ends_with(".consul/ns/default/dc/dc1/svc/web"));
    let roots = client.get("/v1/agent/connect/ca/roots").await.json();
    let root = ders(&roots["Roots"][0]["RootCert"]);
    let root_cert = cert(&root[0]);
    assert_eq!(leaf_cert.issuer().as_raw(), root_cert.subject().as_raw());
    assert!(!leaf_cert.is_ca());
    assert!(root_cert.is_ca());
    let pem = leaf["PrivateKeyPEM"].as_str().unwrap();
    assert!(pem.starts_with("-----BEGIN EC PRIVATE KEY-----\n"));
}

#[tokio::test]
async fn the_subject_is_empty_and_the_san_critical_today_and_a_name_in_the_old_dialect() {
    for (dialect, name) in [(Dialect::Today, None), (Dialect::Old, Some("web.svc.default."))] {
        let agent = start(Options { dialect, ..Options::default() }).await;
        let client = Client::new(&agent.handle());
        let leaf = client.get("/v1/agent/connect/ca/leaf/web").await.json();
        let chain = ders(&leaf["CertPEM"]);
        let cert = cert(&chain[0]);
        let common_name = cert.subject().iter_common_name().next().map(|n| n.as_str().unwrap().to_owned());
        assert_eq!(common_name.is_some(), name.is_some());
        assert!(common_name.unwrap_or_default().starts_with(name.unwrap_or_default()));
        let san = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(san.critical, dialect == Dialect::Today);
    }
}

#[tokio::test]
async fn a_rotation_wakes_roots_and_leaf_and_the_new_chain_leads_to_the_old_root() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let leaf = client.get("/v1/agent/connect/ca/leaf/web").await;
    let roots = client.get("/v1/agent/connect/ca/roots").await;
    let blocked_leaf = tokio::spawn({
        let client = client.clone();
        let path = format!("/v1/agent/connect/ca/leaf/web?index={}&wait=20s", leaf.index());
        async move { client.get(&path).await }
    });
    let blocked_roots = tokio::spawn({
        let client = client.clone();
        let path = format!("/v1/agent/connect/ca/roots?index={}&wait=20s", roots.index());
        async move { client.get(&path).await }
    });
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1 && s.blocked(Endpoint::Roots) == 1).await;
    handle.rotate_root().unwrap();
    let new_roots = blocked_roots.await.unwrap();
    let new_leaf = blocked_leaf.await.unwrap();
    assert!(new_roots.index() > roots.index());
    assert!(new_leaf.index() > leaf.index());
    let (old, new) = (roots.json(), new_roots.json());
    assert_eq!(new["Roots"].as_array().unwrap().len(), 2);
    assert_ne!(old["ActiveRootID"], new["ActiveRootID"]);
    let active: Vec<&Value> = new["Roots"].as_array().unwrap().iter().filter(|r| r["Active"] == true).collect();
    assert_eq!(active.len(), 1);
    assert_eq!(active[0]["IntermediateCerts"].as_array().unwrap().len(), 1);
    let chain = ders(&new_leaf.json()["CertPEM"]);
    assert_eq!(chain.len(), 2);
    let (leaf, cross) = (cert(&chain[0]), cert(&chain[1]));
    let old_root = ders(&old["Roots"][0]["RootCert"]);
    let old_root = cert(&old_root[0]);
    assert_eq!(leaf.issuer().as_raw(), cross.subject().as_raw());
    assert_eq!(cross.issuer().as_raw(), old_root.subject().as_raw());
    assert!(cross.is_ca());
}

#[tokio::test]
async fn an_unrelated_write_of_the_configuration_ends_the_cross_certificate_in_new_leaves() {
    let agent = start(Options::default()).await;
    let client = Client::new(&agent.handle());
    agent.handle().rotate_root().unwrap();
    let path = "/v1/connect/ca/configuration";
    let write = serde_json::json!({"Provider": "consul", "Config": {"LeafCertTTL": "24h"}});
    assert_eq!(client.put(path, write).await.status, 200);
    let leaf = client.get("/v1/agent/connect/ca/leaf/web").await.json();
    assert_eq!(ders(&leaf["CertPEM"]).len(), 1);
    assert_eq!(client.get(path).await.json()["Config"]["LeafCertTTL"], "24h");
}

#[tokio::test]
async fn a_forced_key_in_the_configuration_rotates_the_root() {
    let agent = start(Options::default()).await;
    let client = Client::new(&agent.handle());
    let write = serde_json::json!({"Provider": "consul", "Config": {"PrivateKeyType": "ec", "PrivateKeyBits": 256}});
    assert_eq!(client.put("/v1/connect/ca/configuration", write).await.status, 200);
    let roots = client.get("/v1/agent/connect/ca/roots").await.json();
    assert_eq!(roots["Roots"].as_array().unwrap().len(), 2);
    agent.handle().prune_roots();
    let roots = client.get("/v1/agent/connect/ca/roots").await.json();
    assert_eq!(roots["Roots"].as_array().unwrap().len(), 1);
    assert_eq!(roots["Roots"][0]["Active"], true);
}

#[tokio::test]
async fn a_short_lived_leaf_is_renewed_while_somebody_is_blocked_on_it() {
    let options = Options { leaf_ttl: Duration::from_secs(2), ..jitterless() };
    let agent = start(options).await;
    let client = Client::new(&agent.handle());
    let first = client.get("/v1/agent/connect/ca/leaf/web").await;
    let path = format!("/v1/agent/connect/ca/leaf/web?index={}&wait=10s", first.index());
    let second = client.get(&path).await;
    assert!(second.index() > first.index());
    assert_ne!(first.json()["SerialNumber"], second.json()["SerialNumber"]);
}

#[tokio::test]
async fn an_index_above_the_current_one_blocks_for_the_whole_wait_and_comes_back_lower() {
    let agent = start(jitterless()).await;
    let client = Client::new(&agent.handle());
    for path in ["/v1/agent/connect/ca/leaf/web", "/v1/agent/connect/ca/roots"] {
        client.get(path).await;
        let begin = std::time::Instant::now();
        let got = client.get(&format!("{path}?index=99999&wait=200ms")).await;
        assert!(begin.elapsed() >= Duration::from_millis(200));
        assert_eq!(got.status, 200);
        assert!(got.index() < 99999);
    }
}

#[tokio::test]
async fn a_spoilt_leaf_is_seen_by_a_blocked_caller_and_a_good_one_follows() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let good = client.get("/v1/agent/connect/ca/leaf/web").await;
    handle.set_leaf_fault("web", Some(LeafFault::Expired)).unwrap();
    let path = format!("/v1/agent/connect/ca/leaf/web?index={}&wait=10s", good.index());
    let expired = client.get(&path).await.json();
    let chain = ders(&expired["CertPEM"]);
    assert!(!cert(&chain[0]).validity().is_valid());
    handle.set_leaf_fault("web", Some(LeafFault::OtherService("db".to_owned()))).unwrap();
    let other = client.get("/v1/agent/connect/ca/leaf/web").await.json();
    let chain = ders(&other["CertPEM"]);
    assert!(uri_sans(&cert(&chain[0]))[0].ends_with("/svc/db"));
    assert!(other["ServiceURI"].as_str().unwrap().ends_with("/svc/web"));
    handle.behave().unwrap();
    let again = client.get("/v1/agent/connect/ca/leaf/web").await.json();
    let chain = ders(&again["CertPEM"]);
    assert!(cert(&chain[0]).validity().is_valid());
    assert!(uri_sans(&cert(&chain[0]))[0].ends_with("/svc/web"));
}

#[tokio::test]
async fn a_stale_leaf_stays_over_a_rotation() {
    let agent = start(jitterless()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let first = client.get("/v1/agent/connect/ca/leaf/web").await;
    handle.set_leaf_fault("web", Some(LeafFault::Stale)).unwrap();
    handle.rotate_root().unwrap();
    let path = format!("/v1/agent/connect/ca/leaf/web?index={}&wait=100ms", first.index());
    assert_eq!(client.get(&path).await.json(), first.json());
    handle.set_leaf_fault("web", None).unwrap();
    assert!(client.get(&path).await.index() > first.index());
}

#[tokio::test]
async fn spoilt_roots_are_empty_or_hold_garbage_or_one_that_is_over_among_the_good_ones() {
    let agent = start(Options::default()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let path = "/v1/agent/connect/ca/roots";
    handle.set_roots_fault(Some(RootsFault::Empty)).unwrap();
    assert_eq!(client.get(path).await.json()["Roots"], serde_json::json!([]));
    handle.set_roots_fault(Some(RootsFault::ExpiredAmongGood)).unwrap();
    let roots = client.get(path).await.json();
    let valid: Vec<bool> = roots["Roots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| cert(&ders(&r["RootCert"])[0]).validity().is_valid())
        .collect();
    assert_eq!(valid.iter().filter(|v| **v).count(), 1);
    assert_eq!(valid.len(), 2);
    handle.set_roots_fault(Some(RootsFault::GarbageAmongGood)).unwrap();
    let roots = client.get(path).await.json();
    let good = |r: &&Value| X509Certificate::from_der(&ders(&r["RootCert"])[0]).is_ok();
    assert_eq!(roots["Roots"].as_array().unwrap().iter().filter(good).count(), 1);
    handle.set_roots_fault(None).unwrap();
    assert_eq!(client.get(path).await.json()["Roots"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_new_leaf_under_the_old_index_wakes_nobody() {
    let agent = start(jitterless()).await;
    let handle = agent.handle();
    let client = Client::new(&handle);
    let first = client.get("/v1/agent/connect/ca/leaf/web").await;
    let path = format!("/v1/agent/connect/ca/leaf/web?index={}&wait=200ms", first.index());
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.get(&path).await }
    });
    handle.wait_until(|s| s.blocked(Endpoint::Leaf) == 1).await;
    handle.renew_leaf_under_old_index("web").unwrap();
    assert_eq!(handle.stats().blocked(Endpoint::Leaf), 1);
    let second = call.await.unwrap();
    assert_eq!(second.index(), first.index());
    assert_ne!(second.json()["SerialNumber"], first.json()["SerialNumber"]);
}
