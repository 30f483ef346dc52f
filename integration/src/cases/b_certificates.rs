//! Group B: certificates, from the agent to the handshake.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, MANAGEMENT, Options, Tamper, leaf_of, leaf_path},
    app::{self, App, Manner},
    forge::Forge,
    lictor::Lictor,
    peer::{Client, Identity, Server, ServerOptions, Tls},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Inbound, Sidecar, World},
};

pub(crate) const CASES: &[Case] = &[
    case!(b1_the_public_port_is_closed_until_leaf_and_roots_are_there),
    case!(b2_an_upstream_gives_nothing_in_the_clear_before_there_is_a_leaf),
    case!(b3_a_new_leaf_is_served_within_a_second_and_connections_live),
    case!(b4_a_client_on_the_old_root_passes_as_long_as_it_is_listed),
    case!(b5_a_peer_that_trusts_only_the_old_root_gets_the_cross_certificate),
    case!(b6_leaves_of_all_listed_roots_pass),
    case!(b7_a_root_off_the_list_is_not_trusted).since(1, 10),
    case!(b8_broken_roots_do_not_spoil_the_others),
    case!(b8_a_p224_root_does_not_spoil_the_others).real("the embedded agent's CA is always on P-256"),
    case!(b9_other_keys_of_the_root_work).since(1, 10).real("the embedded agent's CA is always on P-256"),
    case!(b10_chains_out_of_order_with_duplicates_and_the_root_are_verified),
    case!(b11_an_empty_subject_with_a_critical_san_passes),
    case!(b12_a_leaf_with_the_key_identifier_of_its_ca_passes),
    case!(b13_a_broken_leaf_changes_nothing),
    case!(b14_an_index_that_goes_back_is_forgotten),
    case!(b15_a_new_leaf_under_an_old_index_is_used),
    case!(b16_errors_are_not_repeated_in_a_hurry),
    case!(b17_a_call_that_never_returns_is_not_waited_for),
    case!(b18_an_expired_leaf_turns_ready_red),
    case!(b19_a_leaf_watch_without_rights_goes_on_and_keeps_calm).since(1, 4),
    case!(b20_a_chain_of_a_secondary_datacenter_passes_in_both_directions),
    case!(b21_a_forbidden_leaf_watch_asks_again_at_once).since(1, 10),
    case!(b22_an_empty_issuer_behind_a_cross_certificate_is_verified),
];

/// Where the roots are.
const ROOTS: &str = "/v1/agent/connect/ca/roots";

/// The sidecar of `api` beside an agent whose CA signs what we want.
async fn inbound(world: &World) -> Result<(Inbound, Forge)> {
    let options = Options { own_root: true, ..Options::default() };
    let api = world.inbound_with(Manner::Echo, options, json!({}), &[]).await?;
    let forge = api.agent.forge().await?;
    Ok((api, forge))
}

/// Waits until the sidecar has asked more than `before` times.
async fn asks(agent: &Agent, part: &str, before: usize) -> Result<String> {
    let what = format!("a call of {part}");
    wait::until(&what, SOON, || async { agent.requests(part).get(before).cloned().context("not yet") }).await
}

/// Waits until the sidecar's call waits at the agent.
async fn waits(agent: &Agent, part: &str) -> Result<()> {
    wait::until("a blocked call", SOON, || async {
        ensure!(agent.waiting(part) > 0, "none of {part}");
        Ok(())
    })
    .await
}

async fn b1_the_public_port_is_closed_until_leaf_and_roots_are_there(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    for part in [ROOTS.to_owned(), leaf_path("api")] {
        let before = agent.requests(&part).len();
        agent.tamper(&part, Tamper::status(500));
        let sidecar = Sidecar::new("api", app.address())?;
        sidecar.register(&agent).await?;
        let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
        lictor.not_ready().await?;
        asks(&agent, &part, before + 1).await?;
        ensure!(app::connect(sidecar.public).await.is_err(), "the port is open without {part}");
        agent.behave(&part);
        lictor.ready().await?;
        let client = Client::new(agent.identity("web").await?);
        app::echoes(&mut client.connect(sidecar.public).await?, b"hello").await?;
    }
    Ok(())
}

async fn b2_an_upstream_gives_nothing_in_the_clear_before_there_is_a_leaf(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let plain = App::echo().await?;
    crate::world::add_instance(&agent, "api", "api-sidecar-proxy-1", plain.address()).await?;
    agent.tamper(&leaf_path("web"), Tamper::Hang);
    let local = ports::free()?;
    let flag = format!("api:{}", local.port());
    let lictor = world.proxy(&agent)?.args(&["-service", "web", "-upstream", &flag]).start()?;
    lictor.not_ready().await?;
    let begun = Instant::now();
    if let Ok(mut stream) = app::connect(local).await {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"secret").await;
        app::ends_without_a_byte(&mut stream).await.context("the application was neither served nor closed")?;
    }
    ensure!(begun.elapsed() < Duration::from_secs(12), "held for {:?}", begun.elapsed());
    plain.untouched()
}

async fn b3_a_new_leaf_is_served_within_a_second_and_connections_live(world: Arc<World>) -> Result<()> {
    let (mut api, forge) = inbound(&world).await?;
    let client = api.client("web").await?;
    let mut old = client.connect(api.public()).await?;
    app::echoes(&mut old, b"before").await?;
    let leaf = forge.good("api")?;
    ensure!(old.server_serial()? != leaf.serial()?);
    waits(&api.agent, &leaf_path("api")).await?;
    api.agent.deliver_leaf("api", &leaf)?;
    wait::until("the new serial", Duration::from_secs(1), || async {
        let serial = client.connect(api.public()).await?.server_serial()?;
        ensure!(serial == leaf.serial()?, "still {serial}");
        Ok(())
    })
    .await?;
    app::echoes(&mut old, b"after").await?;
    api.lictor.lives()
}

/// Rotates and waits until the sidecar serves a leaf of the new root.
async fn rotate(api: &Inbound, client: &Client) -> Result<()> {
    let before = client.connect(api.public()).await?.server_serial()?;
    api.agent.rotate_root().await?;
    // A real agent delays leaves after a rotation by up to 30 s.
    wait::until("a leaf of the new root", Duration::from_secs(45), || async {
        let serial = client.connect(api.public()).await?.server_serial()?;
        ensure!(serial != before, "still {serial}");
        Ok(())
    })
    .await
}

async fn b4_a_client_on_the_old_root_passes_as_long_as_it_is_listed(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let old = api.client("web").await?;
    rotate(&api, &old).await?;
    for tls in Tls::EACH {
        let mut stream = old.clone().tls(tls).connect(api.public()).await?;
        app::echoes(&mut stream, b"of the old root").await?;
    }
    Ok(())
}

async fn b5_a_peer_that_trusts_only_the_old_root_gets_the_cross_certificate(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let mut client = api.client("web").await?;
    client.roots = Some(api.agent.roots().await?);
    // The connections that watch for the new leaf prove the old root's trust each time.
    rotate(&api, &client).await?;
    let mut stream = client.connect(api.public()).await?;
    ensure!(stream.server_chain()?.len() > 1, "the chain has no cross certificate");
    app::echoes(&mut stream, b"trusts the old root").await
}

async fn b6_leaves_of_all_listed_roots_pass(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let mut clients = vec![api.client("web").await?];
    for _ in 0..2 {
        api.agent.rotate_root().await?;
        let before = clients.last().context("a client")?.identity.as_ref().context("an identity")?.serial()?;
        // Nobody else watches this leaf, so that an agent signs at once.
        let client = wait::until("a leaf of the new root", Duration::from_secs(45), || async {
            let client = api.client("web").await?;
            let serial = client.identity.as_ref().context("an identity")?.serial()?;
            ensure!(serial != before, "still {serial}");
            Ok(client)
        })
        .await?;
        clients.push(client);
    }
    ensure!(api.agent.roots().await?.len() >= 3, "three roots are listed");
    wait::until("the newest roots at the sidecar", SOON, || async {
        let newest = clients.last().context("a client")?;
        app::echoes(&mut newest.connect(api.public()).await?, b"newest").await
    })
    .await?;
    for client in &clients {
        app::echoes(&mut client.connect(api.public()).await?, b"any").await?;
    }
    Ok(())
}

async fn b7_a_root_off_the_list_is_not_trusted(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    // A leaf without the cross certificate, so that the old root alone can vouch for it.
    let old = api.client("web").await?;
    app::echoes(&mut old.connect(api.public()).await?, b"still good").await?;
    rotate(&api, &old).await?;
    let prune = |value: &mut Value| {
        if let Some(roots) = value["Roots"].as_array_mut() {
            roots.retain(|root| root["Active"] == true);
        }
    };
    api.agent.tamper_now(ROOTS, Tamper::json(prune));
    wait::until("the old root's end", SOON, || async {
        api.refuses(&old).await?;
        ensure!(api.lictor.metrics().await?.label("unknown_issuer") > 0, "not counted yet");
        Ok(())
    })
    .await?;
    api.serves().await
}

async fn b8_broken_roots_do_not_spoil_the_others(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let key = rcgen::KeyPair::generate()?;
    let expired = Forge::root_with(&api.agent.trust_domain().await?, key, time::Duration::seconds(-30))?;
    let garbage = "-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    for broken in [garbage, expired.pem()] {
        let before = api.agent.requests(ROOTS).len();
        waits(&api.agent, ROOTS).await?;
        api.agent.tamper_once(ROOTS, with_root(broken));
        // The next call shows that the answer before it has been read.
        asks(&api.agent, ROOTS, before).await?;
        api.serves().await?;
    }
    Ok(())
}

/// One more root in front of all others, which is not the active one.
fn with_root(pem: &str) -> Tamper {
    let pem = pem.to_owned();
    Tamper::json(move |value| {
        if let Some(roots) = value["Roots"].as_array_mut()
            && let Some(mut root) = roots.first().cloned()
        {
            root["ID"] = json!("00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00");
            root["Active"] = json!(false);
            root["RootCert"] = json!(pem);
            roots.insert(0, root);
        }
    })
}

async fn b8_a_p224_root_does_not_spoil_the_others(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let old = api.client("web").await?;
    let (pem, key) =
        openssl_root(&world, &api.agent, &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp224r1"]).await?;
    api.agent.set_root(&Forge::of(&pem, &key)?).await?;
    wait::until("two roots", SOON, || async {
        ensure!(api.agent.roots().await?.len() >= 2, "one root");
        Ok(())
    })
    .await?;
    app::echoes(&mut old.connect(api.public()).await?, b"of the good root").await
}

async fn b9_other_keys_of_the_root_work(world: Arc<World>) -> Result<()> {
    let keys: [(&str, &[&str]); 4] = [
        ("RSA 2048", &["-newkey", "rsa:2048"]),
        ("RSA 4096", &["-newkey", "rsa:4096"]),
        ("P-384", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"]),
        ("P-521", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"]),
    ];
    for (name, arguments) in keys {
        let agent = world.agent().await?;
        let (pem, key) = openssl_root(&world, &agent, arguments).await?;
        agent.set_root(&Forge::of(&pem, &key)?).await?;
        wait::until("the root", SOON, || async {
            ensure!(agent.roots().await?.first().is_some_and(|root| root.trim() == pem.trim()), "another root");
            Ok(())
        })
        .await?;
        both_directions(&world, &agent, agent.identity("web").await?, agent.identity("db").await?)
            .await
            .with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// A root of the agent's trust domain, made by the openssl command: it makes keys that our own libraries do not.
async fn openssl_root(world: &World, agent: &Agent, arguments: &[&str]) -> Result<(String, String)> {
    let (cert, key) = (world.folder().join("root.pem"), world.folder().join("root-key.pem"));
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-nodes", "-sha256", "-days", "30", "-subj", "/CN=Tests Root"]).args(arguments);
    openssl.arg("-addext").arg(format!("subjectAltName=URI:spiffe://{}", agent.trust_domain().await?));
    openssl.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]);
    openssl.arg("-out").arg(&cert).arg("-keyout").arg(&key);
    let made = openssl.output().await.context("cannot run openssl")?;
    ensure!(made.status.success(), "openssl req: {}", String::from_utf8_lossy(&made.stderr));
    let mut key = std::fs::read_to_string(&key)?;
    if key.contains("BEGIN PRIVATE KEY") {
        // Consul reads the older forms only.
        let mut convert = tokio::process::Command::new("openssl");
        convert.args(["pkey", "-traditional", "-in"]).arg(world.folder().join("root-key.pem"));
        key = String::from_utf8(convert.output().await?.stdout)?;
    }
    Ok((std::fs::read_to_string(&cert)?, key))
}

/// A sidecar of ours passes with a client and with a server that have these identities.
async fn both_directions(world: &World, agent: &Agent, client: Identity, server: Identity) -> Result<()> {
    let app = App::echo().await?;
    let mut sidecar = Sidecar::new("api", app.address())?;
    let local = ports::free()?;
    sidecar.upstreams.push(crate::world::upstream("db", local.port()));
    sidecar.register(agent).await?;
    let mut lictor = world.proxy(agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let options = ServerOptions::new(server, Vec::new());
    let server = Server::start(&options).await?;
    crate::world::add_instance(agent, "db", "db-sidecar-proxy-1", server.address()).await?;
    for tls in Tls::EACH {
        let client = Client::new(client.clone()).tls(tls);
        app::echoes(&mut client.connect(sidecar.public).await?, b"inbound").await.context("inbound")?;
    }
    wait::until("a way out", SOON, || async { app::echoes(&mut app::connect(local).await?, b"outbound").await })
        .await
        .context("outbound")
}

async fn b10_chains_out_of_order_with_duplicates_and_the_root_are_verified(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let root = agent.forge().await?;
    let (subordinate, pem) = root.subordinate(false)?;
    let (_, stranger) = root.cross_signed_successor()?;
    let dress = |service: &str| {
        let good = subordinate.good(service)?;
        let leaf = good.chain_pem.clone();
        good.with(&stranger)?.with(root.pem())?.with(&pem)?.with(&pem)?.with(&leaf)
    };
    both_directions(&world, &agent, dress("web")?, dress("db")?).await
}

async fn b11_an_empty_subject_with_a_critical_san_passes(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let root = agent.forge().await?;
    let (next, cross) = root.cross_signed_successor()?;
    let dress = |service: &str| {
        let mut wish = next.wish(service);
        wish.empty_subject = true;
        next.sign(&wish)?.with(&cross)
    };
    both_directions(&world, &agent, dress("web")?, dress("db")?).await
}

async fn b12_a_leaf_with_the_key_identifier_of_its_ca_passes(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let forge = api.agent.forge().await?;
    let mut wish = forge.wish("web");
    wish.key_id = Some(forge.key_id()?);
    let client = Client::new(forge.sign(&wish)?);
    app::echoes(&mut client.connect(api.public()).await?, b"identifiers").await
}

async fn b13_a_broken_leaf_changes_nothing(world: Arc<World>) -> Result<()> {
    let (mut api, forge) = inbound(&world).await?;
    let client = api.client("web").await?;
    let good = client_serial(&client, &api).await?;
    let (mut wrong_key, mut over) = (forge.good("api")?, forge.wish("api"));
    wrong_key.key_pem = forge.good("api")?.key_pem;
    (over.begins, over.ends) = (time::Duration::hours(-2), time::Duration::hours(-1));
    let garbage = |kind: &str| format!("-----BEGIN {kind}-----\nbm8gY2VydGlmaWNhdGU=\n-----END {kind}-----\n");
    let put = |key: &'static str, text: String| Tamper::json(move |value| value[key] = json!(text));
    let broken = [
        ("another leaf's key", leaf_of(&wrong_key)?),
        ("another service's leaf", leaf_of(&forge.good("db")?)?),
        ("a leaf that is over", leaf_of(&forge.sign(&over)?)?),
        ("no certificate", put("CertPEM", garbage("CERTIFICATE"))),
        ("no key", put("PrivateKeyPEM", garbage("EC PRIVATE KEY"))),
    ];
    for (what, tamper) in broken {
        let path = leaf_path("api");
        let asked = api.agent.requests(&path).len();
        waits(&api.agent, &path).await?;
        api.agent.tamper_once(&path, tamper);
        asks(&api.agent, &path, asked).await?;
        let mut stream = client.connect(api.public()).await.context(what)?;
        ensure!(stream.server_serial()? == good, "{what} replaced the good leaf");
        app::echoes(&mut stream, b"still good").await?;
        api.lictor.lives()?;
    }
    let next = forge.good("api")?;
    api.agent.deliver_leaf("api", &next)?;
    wait::until("the next good leaf", SOON, || async {
        ensure!(client_serial(&client, &api).await? == next.serial()?, "the old one");
        Ok(())
    })
    .await
}

async fn b14_an_index_that_goes_back_is_forgotten(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    for path in [ROOTS.to_owned(), leaf_path("api")] {
        waits(&api.agent, &path).await?;
        let seen = api.agent.requests(&path);
        ensure!(seen.last().is_some_and(|head| has_index(head)), "it waits without an index: {seen:?}");
        api.agent.tamper_once(&path, Tamper::Index(1));
        let next = asks(&api.agent, &path, seen.len()).await?;
        ensure!(!has_index(&next), "after a low index: {next}");
    }
    Ok(())
}

/// Whether the call waits for a change.
fn has_index(head: &str) -> bool {
    head.lines().next().unwrap_or_default().contains("index=")
}

async fn b15_a_new_leaf_under_an_old_index_is_used(world: Arc<World>) -> Result<()> {
    let (api, forge) = inbound(&world).await?;
    let client = api.client("web").await?;
    let leaf = forge.good("api")?;
    let index = api.agent.get(&leaf_path("api")).await?["ModifyIndex"].as_u64().context("no index")?;
    waits(&api.agent, &leaf_path("api")).await?;
    api.agent.tamper_once(&leaf_path("api"), leaf_of(&leaf)?.at_index(index));
    wait::until("the new serial", SOON, || async {
        ensure!(client_serial(&client, &api).await? == leaf.serial()?, "still the old one");
        Ok(())
    })
    .await
}

async fn b16_errors_are_not_repeated_in_a_hurry(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let paths = ["/connect/ca/leaf/", "/connect/ca/roots", "/v1/agent/service/api"];
    for path in paths {
        waits(&api.agent, path).await?;
    }
    let before = paths.map(|path| api.agent.requests(path).len());
    for path in paths {
        api.agent.tamper_now(path, Tamper::status(500));
    }
    // The back-off is at its longest after five seconds, so ten show the pace of the minute.
    wait::pass(Duration::from_secs(10)).await;
    for (path, before) in paths.into_iter().zip(before) {
        let asked = api.agent.requests(path).len() - before;
        ensure!((1..=14).contains(&asked), "{path} was asked {asked} times in ten seconds");
    }
    app::echoes(&mut client.connect(api.public()).await?, b"with the last good state").await
}

async fn b17_a_call_that_never_returns_is_not_waited_for(world: Arc<World>) -> Result<()> {
    let (api, forge) = inbound(&world).await?;
    let path = leaf_path("api");
    let client = api.client("web").await?;
    let mut wish = forge.wish("api");
    wish.ends = time::Duration::seconds(30);
    let short = forge.sign(&wish)?;
    // The blocked call after the one that brings the short leaf hangs for good, and a newer leaf is there: only a call
    // without an index brings it, before the short one ends: after half of its life, and the time that the call that
    // hangs may be late.
    let asked = api.agent.requests(&path).len();
    api.agent.deliver_leaf("api", &short)?;
    api.agent.tamper_next(&path, Tamper::Hang);
    wait::until("the short leaf", SOON, || async {
        ensure!(client_serial(&client, &api).await? == short.serial()?, "not yet");
        Ok(())
    })
    .await?;
    let hangs = asks(&api.agent, &path, asked).await?;
    ensure!(has_index(&hangs), "it does not wait for a change: {hangs}");
    // The one that the agent itself has was signed earlier, and an older leaf takes over from no good one.
    api.agent.tamper_next(&path, leaf_of(&forge.good("api")?)?);
    wait::until("a leaf by the floor poll", Duration::from_secs(29), || async {
        let asked = api.agent.requests(&path);
        let asked: Vec<_> = asked.iter().filter_map(|head| head.lines().next()).collect();
        let serial = client_serial(&client, &api).await?;
        ensure!(serial != short.serial()?, "still the same leaf; asked so far: {asked:?}");
        Ok(())
    })
    .await
}

async fn client_serial(client: &Client, api: &Inbound) -> Result<String> {
    client.connect(api.public()).await?.server_serial()
}

async fn b18_an_expired_leaf_turns_ready_red(world: Arc<World>) -> Result<()> {
    let (mut api, forge) = inbound(&world).await?;
    let mut client = api.client("web").await?;
    client.roots = Some(api.agent.roots().await?);
    let mut wish = forge.wish("api");
    wish.ends = time::Duration::seconds(6);
    let path = leaf_path("api");
    waits(&api.agent, &path).await?;
    api.agent.tamper_now(&path, leaf_of(&forge.sign(&wish)?)?);
    let said = wait::until("a red /ready", Duration::from_secs(20), || async {
        let (status, text) = api.lictor.page("/ready").await?;
        ensure!(status == 503, "{status}");
        Ok(text)
    })
    .await?;
    ensure!(said.contains("expired") || said.contains("certificate") || said.contains("leaf"), "/ready says {said}");
    let seen = api.refuses(&client).await?;
    ensure!(seen.to_lowercase().contains("expired"), "a peer that looks at the certificate saw {seen}");
    api.lictor.says("expired").await?;
    api.agent.behave(&path);
    api.agent.deliver_leaf("api", &forge.good("api")?)?;
    api.lictor.ready().await?;
    api.serves().await
}

const TOKEN: &str = "22222222-2222-2222-2222-222222222222";

/// A sidecar of `api` with a token of its own, beside an agent with access control.
async fn with_token(world: &World) -> Result<(Agent, App, Sidecar, Lictor)> {
    let agent = world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    agent.allow("web", "api").await?;
    agent.token(TOKEN, &["api", "api-sidecar-proxy"]).await?;
    let setup = world.proxy(&agent)?.env("CONSUL_HTTP_TOKEN", TOKEN);
    let mut lictor = setup.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    Ok((agent, app, sidecar, lictor))
}

async fn b19_a_leaf_watch_without_rights_goes_on_and_keeps_calm(world: Arc<World>) -> Result<()> {
    let (agent, _app, sidecar, mut lictor) = with_token(&world).await?;
    let client = Client::new(agent.identity("web").await?);
    app::echoes(&mut client.connect(sidecar.public).await?, b"hello").await?;
    agent.delete_token(TOKEN).await?;
    agent.rotate_root().await?;
    lictor.output().line(0, "a refusal by the agent", Duration::from_secs(75), |line| line.contains("403")).await?;
    let before = agent.requests("/connect/ca/leaf/").len();
    wait::pass(Duration::from_secs(5)).await;
    let asked = agent.requests("/connect/ca/leaf/").len() - before;
    ensure!(asked < 15, "the leaf was asked for {asked} times in five seconds");
    lictor.lives()?;
    ensure!(!lictor.output().text().contains(TOKEN), "the token is in the log");
    ensure!(!lictor.output().text().contains(MANAGEMENT));
    Ok(())
}

async fn b20_a_chain_of_a_secondary_datacenter_passes_in_both_directions(world: Arc<World>) -> Result<()> {
    // What an agent of a secondary gives is known from recordings: the leaf, then the cross certificate, then the
    // subordinate that signed. Such chains are made by hand here, since one machine's agent is no federation.
    let agent = world.agent().await?;
    let root = agent.forge().await?;
    let (subordinate, pem) = root.subordinate(false)?;
    let (_, cross) = root.cross_signed_successor()?;
    let dress = |service: &str| subordinate.good(service)?.with(&cross)?.with(&pem);
    both_directions(&world, &agent, dress("web")?, dress("db")?).await
}

async fn b21_a_forbidden_leaf_watch_asks_again_at_once(world: Arc<World>) -> Result<()> {
    let (api, forge) = inbound(&world).await?;
    let path = leaf_path("api");
    let client = api.client("web").await?;
    let before = client_serial(&client, &api).await?;
    waits(&api.agent, &path).await?;
    let asked = api.agent.requests(&path).len();
    let begun = Instant::now();
    api.agent.tamper_once(&path, Tamper::Status(403, "ACL not found".to_owned()));
    let call = asks(&api.agent, &path, asked).await?;
    ensure!(begun.elapsed() < Duration::from_secs(1), "the next call came after {:?}", begun.elapsed());
    ensure!(!has_index(&call), "it carries an index: {call}");
    ensure!(client_serial(&client, &api).await? == before, "the old pair is gone");
    let next = forge.good("api")?;
    api.agent.deliver_leaf("api", &next)?;
    wait::until("the new leaf", SOON, || async {
        ensure!(client_serial(&client, &api).await? == next.serial()?, "still the old one");
        Ok(())
    })
    .await
}

async fn b22_an_empty_issuer_behind_a_cross_certificate_is_verified(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let root = agent.forge().await?;
    let (subordinate, pem) = root.subordinate(true)?;
    let (_, cross) = root.cross_signed_successor()?;
    let dress = |service: &str| {
        let mut wish = subordinate.wish(service);
        wish.empty_subject = true;
        subordinate.sign(&wish)?.with(&cross)?.with(&pem)
    };
    both_directions(&world, &agent, dress("web")?, dress("db")?).await
}
