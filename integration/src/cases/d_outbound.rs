//! Group D: what goes out into the mesh.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lictor_agent::{Instance, Status};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::{
    agent::Options,
    app,
    forge::{Forge, Wish},
    peer::{Identity, Server, ServerOptions, Tls},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{NotRun, Outbound, World},
};

const OTHER_DATACENTER: &str = "one machine's agent is no federation";

pub(crate) const CASES: &[Case] = &[
    case!(d1_a_healthy_instance_is_reached_with_our_identity),
    case!(d2_a_native_instance_is_known_by_its_own_name),
    case!(d3_without_a_service_address_the_node_is_dialled),
    case!(d4_a_critical_instance_is_never_chosen),
    case!(d5_all_instances_are_used),
    case!(d6_an_instance_that_refuses_is_passed_over),
    case!(d6a_lost_rights_are_noticed_behind_cached_answers).since(1, 4),
    case!(d7_without_an_instance_the_application_is_closed_at_once),
    case!(d8_a_server_with_another_identity_gets_no_byte),
    case!(d9_the_right_uri_beside_another_is_refused),
    case!(d10_a_server_of_another_trust_domain_is_refused),
    case!(d11_bad_server_certificates_are_refused),
    case!(d12_a_silent_server_is_given_up_after_the_connect_timeout),
    case!(d13_an_upstream_in_another_datacenter_is_asked_and_proven_there).embedded(OTHER_DATACENTER),
    case!(d14_prepared_queries_are_executed_by_name_and_by_id),
    case!(d15_a_query_that_fails_over_expects_the_datacenter_of_the_node).embedded(OTHER_DATACENTER),
    case!(d16_with_the_agent_gone_the_last_known_instances_are_used),
    case!(d17_a_frozen_agent_does_not_hold_up_what_is_known),
    case!(d18_a_deregistered_instance_is_not_chosen_after_a_second),
    case!(d19_a_server_of_tls_1_2_alone_works),
    case!(d20_a_refusal_after_the_handshake_is_logged_with_its_alert),
    case!(d21_an_ipv6_address_is_dialled),
    case!(d22_an_upstream_can_be_a_unix_socket).since(1, 10),
    case!(d23_a_peer_is_never_taken_for_our_own_cluster).since(1, 13),
    case!(d24_the_hello_carries_the_service_name_and_no_alpn),
];

async fn d1_a_healthy_instance_is_reached_with_our_identity(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let mut options = web.good().await?;
    options.hand = true;
    let server = Server::start(&options).await?;
    web.add("api-sidecar-proxy-1", server.address()).await?;
    let (mut local, mut remote) = wait::until("a connection through the mesh", SOON, || async {
        let local = app::connect(web.local).await?;
        let remote = wait::within("its other end", Duration::from_millis(500), server.next()).await??;
        Ok((local, remote))
    })
    .await?;
    let td = web.agent.trust_domain().await?;
    ensure!(
        remote.client_uris()? == [format!("spiffe://{td}/ns/default/dc/dc1/svc/web")],
        "the server saw another client"
    );
    local.write_all(b"ping").await?;
    let mut ping = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut remote, &mut ping).await?;
    remote.write_all(b"pong").await?;
    remote.flush().await?;
    let mut pong = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut local, &mut pong).await?;
    ensure!(&ping == b"ping" && &pong == b"pong");
    Ok(())
}

async fn d2_a_native_instance_is_known_by_its_own_name(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let server = Server::start(&web.good().await?).await?;
    let native = json!({
        "ID": "api-native", "Name": "api", "Address": "127.0.0.1", "Port": server.address().port(),
        "Connect": { "Native": true },
    });
    web.agent.register(native).await?;
    web.works_soon().await
}

async fn d3_without_a_service_address_the_node_is_dialled(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let server = Server::start(&web.good().await?).await?;
    let body = json!({
        "Kind": "connect-proxy", "ID": "api-sidecar-proxy-1", "Name": "api-sidecar-proxy",
        "Port": server.address().port(), "Proxy": { "DestinationServiceName": "api" },
    });
    web.agent.register(body).await?;
    web.works_soon().await
}

/// Registers an instance of `api` with a TTL check in this state.
async fn with_check(web: &Outbound, id: &str, port: u16, status: &str) -> Result<()> {
    let body = json!({
        "Kind": "connect-proxy", "ID": id, "Name": "api-sidecar-proxy", "Address": "127.0.0.1", "Port": port,
        "Proxy": { "DestinationServiceName": "api" },
        "Check": { "CheckID": format!("check-{id}"), "Name": "by hand", "TTL": "1h", "Status": status },
    });
    web.agent.register(body).await
}

async fn d4_a_critical_instance_is_never_chosen(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let good = Server::start(&web.good().await?).await?;
    let ill = Server::start(&web.good().await?).await?;
    with_check(&web, "ill", ill.address().port(), "critical").await?;
    with_check(&web, "good", good.address().port(), "passing").await?;
    web.works_soon().await?;
    for _ in 0..50 {
        web.works().await?;
    }
    ensure!(ill.accepted() == 0, "the critical instance was dialled {} times", ill.accepted());
    Ok(())
}

async fn d5_all_instances_are_used(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let mut servers = Vec::new();
    for number in 0..3 {
        let server = Server::start(&web.good().await?).await?;
        web.add(&format!("api-{number}"), server.address()).await?;
        servers.push(server);
    }
    web.works_soon().await?;
    wait::until("connections at all instances", SOON, || async {
        for _ in 0..20 {
            web.works().await?;
        }
        let counts: Vec<u64> = servers.iter().map(Server::shaken).collect();
        ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
        Ok(())
    })
    .await
}

async fn d6_an_instance_that_refuses_is_passed_over(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let server = Server::start(&web.good().await?).await?;
    web.add("down-1", ports::free()?).await?;
    web.add("down-2", ports::free()?).await?;
    web.add("up", server.address()).await?;
    web.works_soon().await?;
    for number in 0..20 {
        web.works().await.with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

async fn d6a_lost_rights_are_noticed_behind_cached_answers(world: Arc<World>) -> Result<()> {
    const TOKEN: &str = "44444444-4444-4444-4444-444444444444";
    let agent = world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?;
    agent.token(TOKEN, &["web", "web-sidecar-proxy"]).await?;
    let server = ServerOptions::new(agent.identity("api").await?, agent.roots().await?);
    let server = Server::start(&server).await?;
    crate::world::add_instance(&agent, "api", "api-1", server.address()).await?;
    let local = ports::free()?;
    let flag = format!("api:{}", local.port());
    let setup = world.proxy(&agent)?.env("CONSUL_HTTP_TOKEN", TOKEN).args(&["-service", "web", "-upstream", &flag]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    wait::until("a way out", SOON, || async { app::echoes(&mut app::connect(local).await?, b"x").await }).await?;
    let before = lictor.output().len();
    agent.delete_token(TOKEN).await?;
    // Connections are made meanwhile, so that the upstream counts as used.
    let noticed = lictor.output().line(before, "lost rights", Duration::from_secs(90), |line| {
        line.contains("api") && line.contains("403") && (line.contains("WARN") || line.contains("ERROR"))
    });
    let used = async {
        loop {
            let _ = app::connect(local).await;
            wait::pass(Duration::from_secs(2)).await;
        }
    };
    tokio::select! {
        line = noticed => line.map(drop),
        () = used => Ok(()),
    }
}

async fn d7_without_an_instance_the_application_is_closed_at_once(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let begun = Instant::now();
    web.fails().await?;
    ensure!(begun.elapsed() < Duration::from_secs(3), "closed after {:?}", begun.elapsed());
    web.lictor.counted("no_instance", 1).await?;
    web.lictor.says("api").await.map(drop)
}

/// A server with this certificate gets no byte of the application, and the refusal is counted.
async fn refuses(web: &Outbound, identity: Identity, reason: &str) -> Result<()> {
    let before = web.lictor.metrics().await?.label(reason);
    for tls in Tls::EACH {
        let mut options = ServerOptions::new(identity.clone(), Vec::new());
        options.tls = tls;
        options.hand = true;
        let server = Server::start(&options).await?;
        let id = format!("api-{}", server.address().port());
        web.add(&id, server.address()).await?;
        wait::until("the bad server to be dialled", SOON, || async {
            web.fails().await?;
            ensure!(server.accepted() > 0, "not dialled yet");
            Ok(())
        })
        .await?;
        if server.shaken() > 0 {
            // On TLS 1.2 and 1.3 the server may finish first; what it then reads is an alert or an end, not a byte.
            let (bytes, _) = app::read_to_end(&mut server.next().await?).await?;
            ensure!(bytes.is_empty(), "{reason}, {tls:?}: the server got {} bytes", bytes.len());
        }
        web.agent.deregister(&id).await?;
        wait::until("the empty list", SOON, || async {
            let seen = server.accepted();
            web.fails().await?;
            ensure!(server.accepted() == seen, "still dialled");
            Ok(())
        })
        .await?;
    }
    let metrics = web.lictor.metrics().await?;
    ensure!(metrics.label(reason) >= before + 2, "{reason} is not counted: {}", metrics.not_zero());
    Ok(())
}

/// A sidecar of `web`, and the CA of its mesh, which it trusts.
async fn with_forge(world: &World) -> Result<(Outbound, Forge)> {
    let web = world.outbound().await?;
    let forge = web.agent.forge().await?;
    wait::until("the root of the forge at the sidecar", SOON, || async {
        let newest = web.agent.roots().await?.len() as u64;
        let known = web.lictor.metrics().await?.sum("roots");
        ensure!(known == newest, "{known} of {newest} roots");
        Ok(())
    })
    .await?;
    Ok((web, forge))
}

async fn d8_a_server_with_another_identity_gets_no_byte(world: Arc<World>) -> Result<()> {
    let (web, forge) = with_forge(&world).await?;
    refuses(&web, forge.good("db")?, "wrong_service").await?;
    refuses(&web, forge.sign(&Wish::for_uri(forge.uri_in("dc2", "api")))?, "wrong_service").await?;
    let team = format!("spiffe://{}/ns/team/dc/dc1/svc/api", forge.trust_domain());
    refuses(&web, forge.sign(&Wish::for_uri(team))?, "wrong_service").await?;
    let mut none = forge.wish("api");
    none.uris.clear();
    refuses(&web, forge.sign(&none)?, "no_uri").await?;
    refuses(&web, forge.sign(&forge.wish("API"))?, "wrong_service").await
}

async fn d9_the_right_uri_beside_another_is_refused(world: Arc<World>) -> Result<()> {
    let (web, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("db");
    wish.uris.push(forge.uri("api"));
    refuses(&web, forge.sign(&wish)?, "many_uris").await
}

async fn d10_a_server_of_another_trust_domain_is_refused(world: Arc<World>) -> Result<()> {
    let (web, forge) = with_forge(&world).await?;
    let foreign = "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/api".to_owned();
    refuses(&web, forge.sign(&Wish::for_uri(foreign))?, "trust_domain").await
}

async fn d11_bad_server_certificates_are_refused(world: Arc<World>) -> Result<()> {
    let (web, forge) = with_forge(&world).await?;
    let mut over = forge.wish("api");
    over.begins = time::Duration::hours(-2);
    over.ends = time::Duration::hours(-1);
    refuses(&web, forge.sign(&over)?, "expired").await?;
    let stranger = Forge::new_root(forge.trust_domain())?;
    refuses(&web, stranger.good("api")?, "unknown_issuer").await?;
    let mut client_only = forge.wish("api");
    client_only.usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    refuses(&web, forge.sign(&client_only)?, "extended_key_usage").await
}

async fn d12_a_silent_server_is_given_up_after_the_connect_timeout(world: Arc<World>) -> Result<()> {
    let extra = json!({ "Config": { "connect_timeout_ms": 1200 } });
    let web = world.outbound_with(Options::default(), extra, &[]).await?;
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    web.add("silent", silent.local_addr()?).await?;
    wait::until("the silent server to be dialled", SOON, || async {
        let begun = Instant::now();
        web.fails().await?;
        let took = begun.elapsed();
        ensure!(took > Duration::from_millis(1000), "given up after {took:?}, not dialled yet");
        ensure!(took < Duration::from_secs(4), "given up only after {took:?}");
        Ok(())
    })
    .await?;
    drop(silent);
    Ok(())
}

/// An instance of `api` in `dc2`.
fn in_dc2(server: &Server) -> Result<Instance> {
    let service = json!({
        "Kind": "connect-proxy", "ID": "api-dc2", "Name": "api-sidecar-proxy", "Address": "127.0.0.1",
        "Port": server.address().port(), "Proxy": { "DestinationServiceName": "api" },
    });
    Ok(Instance {
        node: "node-dc2".to_owned(),
        node_address: "127.0.0.1".to_owned(),
        datacenter: "dc2".to_owned(),
        service: service.as_object().context("an object")?.clone(),
        status: Status::Passing,
    })
}

fn two_datacenters() -> Options {
    Options { other_datacenters: vec!["dc2".to_owned()], ..Options::default() }
}

async fn d13_an_upstream_in_another_datacenter_is_asked_and_proven_there(world: Arc<World>) -> Result<()> {
    let web = world.outbound_with(two_datacenters(), json!({ "Datacenter": "dc2" }), &[]).await?;
    let forge = web.agent.forge().await?;
    let identity = forge.sign(&Wish::for_uri(forge.uri_in("dc2", "api")))?;
    let server = Server::start(&ServerOptions::new(identity, web.agent.roots().await?)).await?;
    web.agent.handle()?.add_instance(in_dc2(&server)?)?;
    web.works_soon().await?;
    let asked = web.agent.requests("/v1/health/connect/api");
    ensure!(asked.iter().all(|head| head.contains("dc=dc2")), "asked elsewhere: {asked:?}");
    // The same address with an identity of our own datacenter is somebody else.
    drop(server);
    let imposter = Server::start(&web.good().await?).await?;
    web.agent.handle()?.add_instance(in_dc2(&imposter)?)?;
    wait::until("the imposter to be dialled", SOON, || async {
        web.fails().await?;
        ensure!(imposter.accepted() > 0, "not yet");
        Ok(())
    })
    .await
}

/// Creates a prepared query and gives its ID.
async fn query(web: &Outbound, definition: serde_json::Value) -> Result<String> {
    let (status, text) = web.agent.call(reqwest::Method::POST, "/v1/query", Some(definition)).await?;
    ensure!(status == 200, "POST /v1/query: {status} {text}");
    let answer: serde_json::Value = serde_json::from_str(&text)?;
    Ok(answer["ID"].as_str().context("no ID")?.to_owned())
}

async fn d14_prepared_queries_are_executed_by_name_and_by_id(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound().await?;
    let server = web.server().await?;
    let id = query(&web, json!({ "Name": "find-api", "Service": { "Service": "api" } })).await?;
    for by in ["find-api", &id] {
        let local = ports::free()?;
        let upstream =
            json!({ "DestinationType": "prepared_query", "DestinationName": by, "LocalBindPort": local.port() });
        web.sidecar.upstreams.push(upstream);
        web.sidecar.update(&web.agent).await?;
        app::listening(local).await?;
        wait::until("a way through the query", SOON, || async {
            app::echoes(&mut app::connect(local).await?, b"queried").await
        })
        .await?;
        let asked = web.agent.requests(&format!("/v1/query/{by}/execute"));
        ensure!(!asked.is_empty() && asked.iter().all(|head| head.contains("connect=true")), "{asked:?}");
    }
    ensure!(server.shaken() > 0);
    Ok(())
}

async fn d15_a_query_that_fails_over_expects_the_datacenter_of_the_node(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound_with(two_datacenters(), json!({}), &[]).await?;
    let forge = web.agent.forge().await?;
    let identity = forge.sign(&Wish::for_uri(forge.uri_in("dc2", "api")))?;
    let server = Server::start(&ServerOptions::new(identity, web.agent.roots().await?)).await?;
    web.agent.handle()?.add_instance(in_dc2(&server)?)?;
    let failover = json!({ "Datacenters": ["dc2"] });
    query(&web, json!({ "Name": "failing-over", "Service": { "Service": "api", "Failover": failover } })).await?;
    let local = ports::free()?;
    let upstream = json!({ "DestinationType": "prepared_query", "DestinationName": "failing-over", "LocalBindPort": local.port() });
    web.sidecar.upstreams.push(upstream);
    web.sidecar.update(&web.agent).await?;
    app::listening(local).await?;
    wait::until("a way into the other datacenter", SOON, || async {
        app::echoes(&mut app::connect(local).await?, b"failed over").await
    })
    .await
}

async fn d16_with_the_agent_gone_the_last_known_instances_are_used(world: Arc<World>) -> Result<()> {
    let mut web = world.outbound_with(Options { persistent: true, ..Options::default() }, json!({}), &[]).await?;
    let server = web.server().await?;
    web.works_soon().await?;
    web.agent.stop().await?;
    for _ in 0..10 {
        web.works().await?;
    }
    ensure!(server.shaken() >= 11);
    web.lictor.lives()
}

async fn d17_a_frozen_agent_does_not_hold_up_what_is_known(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let _server = web.server().await?;
    web.works_soon().await?;
    web.agent.freeze().await?;
    // Long enough for the list to be old, so that each dial would like a newer one.
    let begun = Instant::now();
    let mut outcome = Ok(());
    while begun.elapsed() < Duration::from_secs(3) && outcome.is_ok() {
        let dial = Instant::now();
        outcome = web.works().await;
        if outcome.is_ok() && dial.elapsed() > Duration::from_secs(1) {
            outcome = Err(anyhow::anyhow!("a dial took {:?}", dial.elapsed()));
        }
        tokio::task::yield_now().await;
    }
    web.agent.thaw().await?;
    outcome
}

async fn d18_a_deregistered_instance_is_not_chosen_after_a_second(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let leaving = Server::start(&web.good().await?).await?;
    let staying = Server::start(&web.good().await?).await?;
    web.add("leaving", leaving.address()).await?;
    web.add("staying", staying.address()).await?;
    wait::until("both to be used", SOON, || async {
        web.works().await?;
        ensure!(leaving.shaken() > 0 && staying.shaken() > 0, "not yet");
        Ok(())
    })
    .await?;
    web.agent.deregister("leaving").await?;
    wait::pass(Duration::from_millis(1100)).await;
    // The list is asked for when it is older than a second, and this dial may still use the last one.
    web.works().await?;
    wait::pass(Duration::from_millis(200)).await;
    let before = leaving.accepted();
    for _ in 0..30 {
        web.works().await?;
    }
    ensure!(leaving.accepted() == before, "still chosen {} times", leaving.accepted() - before);
    Ok(())
}

async fn d19_a_server_of_tls_1_2_alone_works(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let mut options = web.good().await?;
    options.tls = Tls::V12;
    let server = Server::start(&options).await?;
    web.add("api-1", server.address()).await?;
    web.works_soon().await
}

async fn d20_a_refusal_after_the_handshake_is_logged_with_its_alert(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    // A server that trusts another mesh lets the client finish, and then sends its alert.
    let stranger = Forge::new_root("stranger.test")?;
    let mut options = ServerOptions::new(web.agent.identity("api").await?, vec![stranger.pem().to_owned()]);
    options.tls = Tls::V13;
    let server = Server::start(&options).await?;
    web.add("api-1", server.address()).await?;
    wait::until("the server to be dialled", SOON, || async {
        web.fails().await?;
        ensure!(server.accepted() > 0, "not yet");
        Ok(())
    })
    .await?;
    let port = server.address().port().to_string();
    let lower = |line: &str| line.to_lowercase();
    let line = web.lictor.output().line(0, "the alert", SOON, |line| {
        let line = lower(line);
        line.contains("alert") || line.contains("unknown_ca") || line.contains("unknown ca")
    });
    let line = line.await?;
    ensure!(line.contains(&port) || line.contains("svc/api"), "does not name the peer: {line}");
    Ok(())
}

async fn d21_an_ipv6_address_is_dialled(world: Arc<World>) -> Result<()> {
    if TcpListener::bind("[::1]:0").await.is_err() {
        return Err(NotRun("this machine has no IPv6 loopback".to_owned()).into());
    }
    let web = world.outbound().await?;
    let mut options = web.good().await?;
    options.address = "[::1]:0".parse()?;
    let server = Server::start(&options).await?;
    web.add("api-1", server.address()).await?;
    web.works_soon().await
}

async fn d22_an_upstream_can_be_a_unix_socket(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let mut sidecar = crate::world::Sidecar::new("web", ports::free()?)?;
    let path = world.folder().join("api.sock");
    sidecar.upstreams.push(json!({
        "DestinationType": "service", "DestinationName": "api",
        "LocalBindSocketPath": path, "LocalBindSocketMode": "0640",
    }));
    sidecar.register(&agent).await?;
    let options = ServerOptions::new(agent.identity("api").await?, agent.roots().await?);
    let server = Server::start(&options).await?;
    crate::world::add_instance(&agent, "api", "api-1", server.address()).await?;
    let folder = world.folder().display().to_string();
    // Whoever writes the registration is not the operator of this host, so the folder has to be allowed.
    let file = world.file("lictor.toml", &format!("[registration]\nsocket_directories = [\"{folder}\"]\n"))?;
    let setup = world.proxy(&agent)?.arg("-config").arg(&file).args(&["-sidecar-for", "web-1"]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    wait::until("a way through the socket", SOON, || async {
        let mut stream = tokio::net::UnixStream::connect(&path).await?;
        app::echoes(&mut stream, b"unix").await
    })
    .await?;
    let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o640, "mode {mode:o}");
    Ok(())
}

async fn d23_a_peer_is_never_taken_for_our_own_cluster(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let options = ServerOptions::new(agent.identity("api").await?, agent.roots().await?);
    let own = Server::start(&options).await?;
    crate::world::add_instance(&agent, "api", "api-1", own.address()).await?;
    let mut sidecar = crate::world::Sidecar::new("web", ports::free()?)?;
    let (peered, local) = (ports::free()?, ports::free()?);
    let mut upstream = crate::world::upstream("api", peered.port());
    upstream["DestinationPeer"] = json!("cloud");
    sidecar.upstreams.push(upstream);
    sidecar.upstreams.push(crate::world::upstream("api", local.port()));
    sidecar.register(&agent).await?;
    let lictor = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    wait::until("the plain upstream", SOON, || async { app::echoes(&mut app::connect(local).await?, b"own").await })
        .await?;
    let before = own.accepted();
    if let Ok(mut stream) = tokio::net::TcpStream::connect(peered).await {
        let _ = stream.write_all(b"for the cloud").await;
        app::ends_without_a_byte(&mut stream).await?;
    }
    ensure!(own.accepted() == before, "the instance of our own cluster was taken for the peer's");
    lictor.output().line(0, "the peer", SOON, |line| line.contains("cloud")).await.map(drop)
}

async fn d24_the_hello_carries_the_service_name_and_no_alpn(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    web.add("api-1", listener.local_addr()?).await?;
    let td = web.agent.trust_domain().await?;
    let seen = wait::within("a hello", SOON, async {
        let client = async {
            loop {
                let _ = app::connect(web.local).await;
                wait::pass(Duration::from_millis(100)).await;
            }
        };
        let server = async {
            loop {
                let (tcp, _) = listener.accept().await?;
                let begun = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
                if let Ok(begun) = begun.await {
                    let hello = begun.client_hello();
                    let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect::<Vec<_>>());
                    return Ok::<_, anyhow::Error>((hello.server_name().map(str::to_owned), alpn));
                }
            }
        };
        tokio::select! {
            seen = server => seen,
            () = client => Err(anyhow::anyhow!("unreachable")),
        }
    })
    .await??;
    let facts = BTreeMap::from([("name", seen.0), ("alpn", seen.1.map(|names| format!("{names:?}")))]);
    ensure!(facts["name"].as_deref() == Some(&format!("api.default.dc1.internal.{td}")), "{facts:?}");
    ensure!(facts["alpn"].is_none(), "{facts:?}");
    Ok(())
}
