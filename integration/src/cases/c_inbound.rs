//! Group C: what comes in from the mesh.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    agent::{MANAGEMENT, Options, Tamper},
    app::{self, App, Manner},
    forge::{Forge, Wish},
    peer::{Client, Tls},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Inbound, Sidecar, World},
};

pub(crate) const CASES: &[Case] = &[
    case!(c1_an_allowed_client_reaches_the_application_over_one_connection),
    case!(c2_a_denied_client_reaches_nothing),
    case!(c3_without_an_intention_the_default_decides),
    case!(c4_an_intention_by_request_denies_on_layer_4).since(1, 9),
    case!(c5_a_client_without_a_certificate_is_refused_unasked),
    case!(c6_an_untrusted_certificate_is_refused_unasked),
    case!(c7_a_cross_signed_leaf_needs_its_intermediate),
    case!(c8_certificates_out_of_their_time_are_refused),
    case!(c9_a_certificate_for_servers_only_is_refused),
    case!(c10_a_certificate_without_a_service_uri_is_refused_unasked),
    case!(c11_agents_gateways_and_signers_are_refused),
    case!(c12_two_uris_are_refused),
    case!(c13_a_ca_certificate_as_leaf_is_refused),
    case!(c14_another_trust_domain_is_refused),
    case!(c15_the_serial_number_is_sent_as_lower_case_hex),
    case!(c16_a_percent_encoded_name_is_refused_unless_allowed),
    case!(c17_every_failure_of_authorize_refuses_under_its_own_name),
    case!(c17_an_agent_that_is_down_refuses),
    case!(c17_a_token_without_rights_refuses).since(1, 4),
    case!(c18_a_hanging_authorize_refuses_within_the_handshake_timeout),
    case!(c19_an_idle_connection_is_closed_after_the_handshake_timeout),
    case!(c20_a_slow_hello_is_closed_after_the_handshake_timeout_in_total),
    case!(c21_a_bare_open_and_close_leaves_no_trace_but_its_count),
    case!(c21_the_checks_of_a_sidecar_stanza_cause_no_noise).since(1, 4),
    case!(c22_plaintext_is_closed_without_touching_the_application),
    case!(c23_tls_1_0_and_1_1_get_a_protocol_version_alert),
    case!(c24_tls_1_2_alone_and_an_rsa_leaf_work),
    case!(c25_alpn_is_ignored),
    case!(c26_any_server_name_or_none_works),
    case!(c27_nothing_is_resumed_after_a_deny),
    case!(c28_nothing_is_resumed_after_a_root_is_gone_or_a_certificate_is_over),
    case!(c29_an_application_that_is_down_closes_quickly),
    case!(c30_an_application_in_a_black_hole_is_given_up_in_time),
    case!(c31_with_a_period_an_open_connection_ends_when_its_intention_turns),
    case!(c31_no_outage_of_the_agent_ends_an_open_connection),
    case!(c31_an_open_connection_does_not_outlive_the_certificate_of_its_peer),
    case!(c31_without_a_period_an_open_connection_lives_on),
    case!(c32_a_thousand_stuck_clients_do_not_stop_a_good_one).heavy(),
    case!(c33_running_out_of_descriptors_ends_nothing),
];

async fn c1_an_allowed_client_reaches_the_application_over_one_connection(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    api.agent.allow("web", "api").await?;
    for (count, tls) in Tls::EACH.into_iter().enumerate() {
        let mut stream = api.client("web").await?.tls(tls).connect(api.public()).await?;
        app::echoes(&mut stream, b"hello, api").await?;
        ensure!(api.app.accepted() == count as u64 + 1, "the application saw {} connections", api.app.accepted());
    }
    api.lictor.measures("connections_established", 2).await
}

async fn c2_a_denied_client_reaches_nothing(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Greet).await?;
    api.agent.deny("web", "api").await?;
    for tls in Tls::EACH {
        let seen = api.refuses(&api.client("web").await?.tls(tls)).await?;
        ensure!(!seen.contains("close_notify"), "{tls:?}: ended cleanly");
    }
    api.lictor.counted("denied", 2).await?;
    api.app.untouched()
}

async fn c3_without_an_intention_the_default_decides(world: Arc<World>) -> Result<()> {
    for (policy, passes) in [("allow", true), ("deny", false)] {
        let options = Options { acl: Some(policy), ..Options::default() };
        let api = world.inbound_with(Manner::Echo, options, json!({}), &[]).await?;
        if passes {
            api.serves().await?;
        } else {
            api.refuses(&api.client("web").await?).await?;
            api.lictor.counted("denied", 1).await?;
        }
    }
    Ok(())
}

async fn c4_an_intention_by_request_denies_on_layer_4(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    api.agent.config_entry(json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" })).await?;
    let permissions = json!([{ "Action": "allow", "HTTP": { "PathPrefix": "/" } }]);
    let entry = json!({
        "Kind": "service-intentions", "Name": "api", "Sources": [{ "Name": "web", "Permissions": permissions }],
    });
    api.agent.config_entry(entry).await?;
    api.refuses(&api.client("web").await?).await?;
    api.lictor.counted("denied", 1).await
}

async fn c5_a_client_without_a_certificate_is_refused_unasked(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    for tls in Tls::EACH {
        api.refuses_unasked(&Client::anonymous().tls(tls)).await?;
    }
    api.lictor.counted("no_certificate", 2).await
}

async fn c6_an_untrusted_certificate_is_refused_unasked(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let stranger = Forge::new_root(&api.agent.trust_domain().await?)?;
    for tls in Tls::EACH {
        let seen = api.refuses_unasked(&Client::new(stranger.good("web")?).tls(tls)).await?;
        ensure!(seen.to_lowercase().contains("unknownca"), "{tls:?}: the client saw {seen}");
    }
    // Its own issuer, with the right URI.
    let key = rcgen::KeyPair::generate()?;
    let mut own = rcgen::CertificateParams::new(Vec::new())?;
    own.subject_alt_names = vec![rcgen::SanType::URI(stranger.uri("web").try_into()?)];
    let own = crate::peer::Identity::from_pem(&own.self_signed(&key)?.pem(), &key.serialize_pem())?;
    api.refuses_unasked(&Client::new(own)).await?;
    // The peer sees its alert before the refusal is counted.
    api.lictor.counted("unknown_issuer", 2).await
}

async fn c7_a_cross_signed_leaf_needs_its_intermediate(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let (next, cross) = api.agent.forge().await?.cross_signed_successor()?;
    settle(&api).await?;
    let bare = next.good("web")?;
    let whole = bare.clone().with(&cross)?;
    for tls in Tls::EACH {
        let mut stream = Client::new(whole.clone()).tls(tls).connect(api.public()).await?;
        app::echoes(&mut stream, b"cross-signed").await?;
        api.refuses_unasked(&Client::new(bare.clone()).tls(tls)).await?;
    }
    api.lictor.counted("unknown_issuer", 2).await
}

/// Waits until the sidecar trusts the root that [`crate::agent::Agent::forge`] signs with.
async fn settle(api: &Inbound) -> Result<()> {
    wait::until("the root of the forge at the sidecar", SOON, || async {
        let newest = api.agent.roots().await?.len() as u64;
        let known = api.lictor.metrics().await?.sum("roots");
        ensure!(known == newest, "{known} of {newest} roots");
        Ok(())
    })
    .await
}

/// A wish is refused on both versions without a question, and counted under `reason`.
async fn refused_as(api: &Inbound, forge: &Forge, wish: &Wish, reason: &str) -> Result<()> {
    let before = api.lictor.metrics().await?.label(reason);
    for tls in Tls::EACH {
        let client = Client::new(forge.sign(wish)?).tls(tls);
        api.refuses_unasked(&client).await.with_context(|| format!("{reason}, {tls:?}"))?;
    }
    api.lictor.counted(reason, before + 2).await
}

/// An application behind a sidecar, and the CA of its mesh.
async fn with_forge(world: &World) -> Result<(Inbound, Forge)> {
    let api = world.inbound(Manner::Echo).await?;
    let forge = api.agent.forge().await?;
    settle(&api).await?;
    let mut good = Client::new(forge.good("web")?).connect(api.public()).await?;
    app::echoes(&mut good, b"a good one passes").await?;
    Ok((api, forge))
}

async fn c8_certificates_out_of_their_time_are_refused(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut over = forge.wish("web");
    over.begins = time::Duration::hours(-2);
    over.ends = time::Duration::hours(-1);
    refused_as(&api, &forge, &over, "expired").await?;
    let mut early = forge.wish("web");
    early.begins = time::Duration::hours(1);
    refused_as(&api, &forge, &early, "not_yet_valid").await
}

async fn c9_a_certificate_for_servers_only_is_refused(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("web");
    wish.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    refused_as(&api, &forge, &wish, "extended_key_usage").await
}

async fn c10_a_certificate_without_a_service_uri_is_refused_unasked(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut none = forge.wish("web");
    none.uris.clear();
    refused_as(&api, &forge, &none, "no_uri").await?;
    let https = Wish::for_uri(format!("https://{}/ns/default/dc/dc1/svc/web", forge.trust_domain()));
    refused_as(&api, &forge, &https, "bad_spiffe_id").await?;
    let unknown = Wish::for_uri(format!("spiffe://{}/some/other/path", forge.trust_domain()));
    let before = api.agent.authorizes();
    api.refuses(&Client::new(forge.sign(&unknown)?)).await?;
    ensure!(api.agent.authorizes() == before, "authorize was asked");
    Ok(())
}

async fn c11_agents_gateways_and_signers_are_refused(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let paths = ["/agent/client/dc/dc1/id/node", "/agent/server/dc/dc1", "/gateway/mesh/dc/dc1"];
    for path in paths {
        let wish = Wish::for_uri(format!("spiffe://{}{path}", forge.trust_domain()));
        refused_as(&api, &forge, &wish, "not_a_service").await.with_context(|| path.to_owned())?;
    }
    let signer = Wish::for_uri(format!("spiffe://{}", forge.trust_domain()));
    api.refuses_unasked(&Client::new(forge.sign(&signer)?)).await.map(drop)
}

async fn c12_two_uris_are_refused(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("web");
    wish.uris.push(forge.uri("admin"));
    refused_as(&api, &forge, &wish, "many_uris").await
}

async fn c13_a_ca_certificate_as_leaf_is_refused(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("web");
    wish.ca = true;
    refused_as(&api, &forge, &wish, "ca_as_leaf").await
}

async fn c14_another_trust_domain_is_refused(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let foreign =
        Wish::for_uri("spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web".into());
    refused_as(&api, &forge, &foreign, "trust_domain").await
}

async fn c15_the_serial_number_is_sent_as_lower_case_hex(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("web");
    wish.serial = Some(vec![0x80, 0xff]);
    let mut stream = Client::new(forge.sign(&wish)?).connect(api.public()).await?;
    app::echoes(&mut stream, b"serial").await?;
    let shown = api.lictor.json("/connections").await?.to_string();
    ensure!(shown.contains("80:ff"), "/connections shows another serial number: {shown}");
    if let Ok(handle) = api.agent.handle() {
        let asked = handle.stats().authorizes.back().context("authorize was not asked")?.body.clone();
        ensure!(asked.contains("\"80:ff\""), "authorize was asked {asked}");
    }
    Ok(())
}

async fn c16_a_percent_encoded_name_is_refused_unless_allowed(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let wish = forge.wish("w%65b");
    refused_as(&api, &forge, &wish, "bad_spiffe_id").await?;
    let env = [("LICTOR_PEERS__ALLOW_PERCENT_ENCODING", "true")];
    let api = world.inbound_with(Manner::Echo, Options::default(), json!({}), &env).await?;
    let forge = api.agent.forge().await?;
    settle(&api).await?;
    let mut stream = Client::new(forge.sign(&forge.wish("w%65b"))?).connect(api.public()).await?;
    app::echoes(&mut stream, b"escaped").await?;
    if let Ok(handle) = api.agent.handle() {
        let asked = handle.stats().authorizes.back().context("authorize was not asked")?.body.clone();
        ensure!(asked.contains("w%65b"), "authorize was asked a decoded name: {asked}");
    }
    Ok(())
}

async fn c17_every_failure_of_authorize_refuses_under_its_own_name(world: Arc<World>) -> Result<()> {
    let config = json!({ "handshake_timeout_ms": 2000 });
    let api = world.inbound_with(Manner::Greet, Options::default(), config, &[]).await?;
    let client = api.client("web").await?;
    let statuses = [
        (400, "authorize_bad_request"),
        (403, "authorize_forbidden"),
        (429, "authorize_overloaded"),
        (500, "authorize_agent_error"),
        (503, "authorize_agent_error"),
        (204, "authorize_agent_error"),
        (302, "authorize_agent_error"),
    ];
    let mut faults: Vec<_> = statuses
        .into_iter()
        .map(|(status, reason)| (format!("status {status}"), Tamper::status(status), reason))
        .collect();
    faults.push(("half an answer".to_owned(), Tamper::Truncate, "authorize_unparsable"));
    for make in [
        |good: Value| good.to_string() + &" ".repeat(70_000),
        |good: Value| good.to_string() + "{\"Authorized\":true}",
        |good: Value| json!({ "Reason": good["Reason"] }).to_string(),
        |good: Value| json!({ "Authorized": good["Authorized"].to_string(), "Reason": good["Reason"] }).to_string(),
        |good: Value| json!({ "Authorized": good["Authorized"].to_string(), "Reason": 1 }).to_string(),
        |good: Value| format!("{{\"Authorized\":true,\"Authorized\":false,\"Reason\":{}}}", good["Reason"]),
    ] {
        let sample: String = make(json!({ "Authorized": true, "Reason": "why" })).chars().take(80).collect();
        faults.push((sample, Tamper::text(make), "authorize_unparsable"));
    }
    for text in ["", "null", "[{\"Authorized\": true}]", "{\"Authorized\": 1}", "<html>200 OK</html>"] {
        faults.push((format!("the body {text:?}"), Tamper::body(text), "authorize_unparsable"));
    }
    faults.push(("no answer".to_owned(), Tamper::Hang, "authorize_timeout"));
    for (what, tamper, reason) in faults {
        let truncated = matches!(tamper, Tamper::Truncate);
        let before = api.lictor.metrics().await?;
        api.agent.tamper("/v1/agent/connect/authorize", tamper);
        api.refuses(&client).await.with_context(|| what.clone())?;
        let counted = api.lictor.counted(reason, before.label(reason) + 1).await;
        // A truncated answer is a transport error as much as an unparsable one.
        if let (Err(error), true) = (&counted, truncated) {
            let other = "authorize_unreachable";
            api.lictor.counted(other, before.label(other) + 1).await.with_context(|| format!("{error:#}"))?;
        } else {
            counted.context(what)?;
        }
        api.agent.behave("/v1/agent/connect/authorize");
        api.app.untouched()?;
    }
    let mut stream = client.connect(api.public()).await?;
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await.context("after all faults a good answer is believed")?;
    Ok(())
}

async fn c17_an_agent_that_is_down_refuses(world: Arc<World>) -> Result<()> {
    let api =
        world.inbound_with(Manner::Greet, Options { persistent: true, ..Options::default() }, json!({}), &[]).await?;
    let client = api.client("web").await?;
    api.agent.stop().await?;
    api.refuses(&client).await?;
    api.app.untouched()?;
    wait::until("the reason", SOON, || async {
        let metrics = api.lictor.metrics().await?;
        ensure!(metrics.label("authorize_unreachable") >= 1, "counted: {}", metrics.not_zero());
        Ok(())
    })
    .await?;
    api.lictor.says("unreachable").await.map(drop)
}

async fn c17_a_token_without_rights_refuses(world: Arc<World>) -> Result<()> {
    const TOKEN: &str = "33333333-3333-3333-3333-333333333333";
    let agent = world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?;
    let app = App::start(Manner::Greet).await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    agent.allow("web", "api").await?;
    agent.token(TOKEN, &["api", "api-sidecar-proxy"]).await?;
    let setup = world.proxy(&agent)?.env("CONSUL_HTTP_TOKEN", TOKEN).args(&["-sidecar-for", "api-1"]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    let client = Client::new(agent.identity("web").await?);
    let mut stream = client.connect(sidecar.public).await?;
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await?;
    agent.delete_token(TOKEN).await?;
    client.is_refused(sidecar.public).await?;
    lictor.counted("authorize_forbidden", 1).await?;
    ensure!(app.accepted() == 1, "the application saw the refused connection");
    ensure!(
        !lictor.output().text().contains(TOKEN) && !lictor.output().text().contains(MANAGEMENT),
        "a token is logged"
    );
    Ok(())
}

async fn c18_a_hanging_authorize_refuses_within_the_handshake_timeout(world: Arc<World>) -> Result<()> {
    let config = json!({ "handshake_timeout_ms": 1500 });
    let api = world.inbound_with(Manner::Greet, Options::default(), config, &[]).await?;
    let client = api.client("web").await?;
    api.serves_greeting(&client).await?;
    let before = api.app.accepted();
    api.agent.freeze().await?;
    let begun = Instant::now();
    let refused = client.is_refused(api.public()).await;
    let took = begun.elapsed();
    api.agent.thaw().await?;
    refused?;
    ensure!(took < Duration::from_secs(4), "refused only after {took:?}");
    ensure!(api.app.accepted() == before, "the application saw the connection");
    wait::until("service again", SOON, || api.serves_greeting(&client)).await
}

impl Inbound {
    /// The application's greeting arrives.
    async fn serves_greeting(&self, client: &Client) -> Result<()> {
        let mut stream = client.connect(self.public()).await?;
        let mut greeting = [0; 9];
        wait::within("the greeting", SOON, stream.read_exact(&mut greeting)).await??;
        Ok(())
    }
}

async fn c19_an_idle_connection_is_closed_after_the_handshake_timeout(world: Arc<World>) -> Result<()> {
    let config = json!({ "handshake_timeout_ms": 1000 });
    let api = world.inbound_with(Manner::Echo, Options::default(), config, &[]).await?;
    let mut idle = app::connect(api.public()).await?;
    let begun = Instant::now();
    app::ends_without_a_byte(&mut idle).await?;
    let took = begun.elapsed();
    ensure!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "closed after {took:?}");
    api.lictor.counted("handshake_timeout", 1).await?;
    api.app.untouched()
}

async fn c20_a_slow_hello_is_closed_after_the_handshake_timeout_in_total(world: Arc<World>) -> Result<()> {
    let config = json!({ "handshake_timeout_ms": 1500 });
    let api = world.inbound_with(Manner::Echo, Options::default(), config, &[]).await?;
    let mut slow = app::connect(api.public()).await?;
    // A record of 16 000 bytes that is begun and never whole.
    let hello = [22, 3, 1, 0x3e, 0x80, 1, 0, 0x3e, 0x7c, 3, 3];
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for byte in hello.iter().chain(std::iter::repeat(&0)) {
        ticks.tick().await;
        let mut seen = [0];
        let ended = match slow.try_read(&mut seen) {
            Ok(0) => true,
            Ok(_) => bail!("an answer to half a hello"),
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        if ended || slow.write_all(&[*byte]).await.is_err() {
            break;
        }
        ensure!(begun.elapsed() < SOON, "still open after {SOON:?}");
    }
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(4), "closed after {took:?}");
    api.app.untouched()
}

async fn c21_a_bare_open_and_close_leaves_no_trace_but_its_count(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    api.serves().await?;
    api.lictor.measures("connections_open", 0).await?;
    let (asked, before) = (api.agent.authorizes(), api.lictor.output().len());
    let bare = api.lictor.metrics().await?.sum("bare_opens");
    for _ in 0..10 {
        drop(app::connect(api.public()).await?);
    }
    api.lictor.measures("bare_opens", bare + 10).await?;
    ensure!(api.agent.authorizes() == asked, "authorize was asked");
    ensure!(api.app.accepted() == 1, "the application was dialled");
    let metrics = api.lictor.metrics().await?;
    let failed = metrics.sum("handshakes_failed") + metrics.sum("connections_ended") + metrics.sum("peers_rejected");
    ensure!(failed <= 1, "counted as failures: {}", metrics.not_zero());
    let said = api.lictor.output().text();
    let said = said.get(before..).unwrap_or_default();
    ensure!(!said.contains("ERROR") && !said.contains("WARN"), "it complains: {said}");
    Ok(())
}

async fn c21_the_checks_of_a_sidecar_stanza_cause_no_noise(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let public = ports::free()?;
    let stanza = json!({
        "ID": "api-1", "Name": "api", "Address": "127.0.0.1", "Port": app.port(),
        "Connect": { "SidecarService": {
            "Port": public.port(),
            "Check": { "Name": "listening", "TCP": public.to_string(), "Interval": "200ms" },
        } },
    });
    agent.register(stanza).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    wait::until("a few checks", SOON, || async {
        ensure!(lictor.metrics().await?.sum("bare_opens") >= 5, "not yet");
        Ok(())
    })
    .await?;
    wait::until("a passing check", SOON, || async {
        let status = agent.check_of("api-1-sidecar-proxy").await?;
        ensure!(status == "passing", "{status}");
        Ok(())
    })
    .await?;
    ensure!(agent.authorizes() == 0, "authorize was asked");
    let text = lictor.output().text();
    ensure!(!text.contains("ERROR") && !text.contains("WARN"), "it complains: {text}");
    app.untouched()
}

async fn c22_plaintext_is_closed_without_touching_the_application(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let mut stream = app::connect(api.public()).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").await?;
    // An alert may come; bytes of the application may not.
    let (bytes, _) = app::read_to_end(&mut stream).await?;
    ensure!(bytes.len() <= 64 && bytes.first().is_none_or(|kind| *kind == 21), "{bytes:?}");
    api.lictor.counted("handshake_not_tls", 1).await.or_else(|_| Ok::<_, anyhow::Error>(()))?;
    api.app.untouched()?;
    api.serves().await
}

/// A ClientHello that asks for a version at the most, made by hand since no library makes old ones any more.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    let suites: [u8; 12] = [0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x09, 0xc0, 0x13, 0x00, 0x2f, 0x00, 0x35];
    let extensions: [u8; 20] = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 2, 0, 0];
    let mut body = version.to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 12]);
    body.extend(suites);
    body.extend([1, 0]);
    // Without signature algorithms, which older versions do not know.
    body.extend([0, 14]);
    body.extend(&extensions[..14]);
    let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
    let mut hello = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    hello.extend(body);
    hello
}

async fn c23_tls_1_0_and_1_1_get_a_protocol_version_alert(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    for version in [[3, 1], [3, 2]] {
        let mut stream = app::connect(api.public()).await?;
        stream.write_all(&client_hello(version)).await?;
        let (answer, _) = app::read_to_end(&mut stream).await?;
        // Record type alert, any version, two bytes: fatal, protocol_version (RFC 8446, section 6).
        ensure!(answer.first() == Some(&21) && answer.get(5..7) == Some(&[2, 70][..]), "{version:?}: {answer:?}");
    }
    api.app.untouched()
}

async fn c24_tls_1_2_alone_and_an_rsa_leaf_work(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("web");
    wish.rsa = true;
    let rsa = forge.sign(&wish)?;
    for tls in Tls::EACH {
        let mut stream = Client::new(rsa.clone()).tls(tls).connect(api.public()).await?;
        app::echoes(&mut stream, b"RSA").await?;
    }
    let mut stream = Client::new(forge.good("web")?).tls(Tls::V12).connect(api.public()).await?;
    app::echoes(&mut stream, b"TLS 1.2").await
}

async fn c25_alpn_is_ignored(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    for alpn in [vec![b"h2".to_vec()], vec![b"foo".to_vec(), b"http/1.1".to_vec()]] {
        let mut client = api.client("web").await?;
        client.alpn = alpn;
        let mut stream = client.connect(api.public()).await?;
        app::echoes(&mut stream, b"ALPN").await?;
        ensure!(stream.alpn().is_none(), "selected {:?}", stream.alpn());
    }
    Ok(())
}

async fn c26_any_server_name_or_none_works(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    for name in [None, Some("api.default.dc1.internal.example.consul"), Some("something-else.test")] {
        let mut client = api.client("web").await?;
        client.server_name = name.map(str::to_owned);
        app::echoes(&mut client.connect(api.public()).await?, b"SNI").await?;
    }
    Ok(())
}

/// A client that keeps what the server lets it keep, after one connection that was allowed.
async fn resuming(api: &Inbound, identity: crate::peer::Identity, tls: Tls) -> Result<Client> {
    let mut client = Client::new(identity).tls(tls);
    client.resume = Some(rustls::client::Resumption::in_memory_sessions(8));
    for _ in 0..2 {
        let mut stream = client.connect(api.public()).await?;
        app::echoes(&mut stream, b"allowed").await?;
        ensure!(!stream.resumed(), "{tls:?}: the server resumes sessions");
        stream.shutdown().await?;
        app::read_to_end(&mut stream).await?;
    }
    Ok(client)
}

async fn c27_nothing_is_resumed_after_a_deny(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let mut clients = Vec::new();
    for tls in Tls::EACH {
        clients.push(resuming(&api, api.agent.identity("web").await?, tls).await?);
    }
    api.agent.deny("web", "api").await?;
    for client in &clients {
        api.refuses(client).await?;
    }
    api.lictor.counted("denied", 2).await
}

async fn c28_nothing_is_resumed_after_a_root_is_gone_or_a_certificate_is_over(world: Arc<World>) -> Result<()> {
    let (api, forge) = with_forge(&world).await?;
    let mut wish = forge.wish("web");
    wish.ends = time::Duration::seconds(4);
    let short = forge.sign(&wish)?;
    let mut clients = Vec::new();
    for tls in Tls::EACH {
        clients.push(resuming(&api, short.clone(), tls).await?);
    }
    wait::until("the end of the certificate", SOON, || async {
        api.refuses_unasked(&clients[0]).await?;
        ensure!(api.lictor.metrics().await?.label("expired") > 0, "not yet");
        Ok(())
    })
    .await?;
    api.refuses_unasked(&clients[1]).await?;
    let Ok(handle) = api.agent.handle() else { return Ok(()) };
    // A root can be taken off the list of the embedded agent only; a real one keeps it for days.
    let old = resuming(&api, forge.good("web")?, Tls::V13).await?;
    handle.rotate_root_without_cross_signing()?;
    handle.prune_roots();
    wait::until("the end of the root", SOON, || async {
        api.refuses_unasked(&old).await?;
        ensure!(api.lictor.metrics().await?.label("unknown_issuer") > 0, "not yet");
        Ok(())
    })
    .await
}

async fn c29_an_application_that_is_down_closes_quickly(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let down = ports::free()?;
    let sidecar = Sidecar::new("api", down)?;
    sidecar.register(&agent).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let client = Client::new(agent.identity("web").await?);
    let begun = Instant::now();
    client.is_refused(sidecar.public).await?;
    ensure!(begun.elapsed() < Duration::from_secs(3), "closed after {:?}", begun.elapsed());
    lictor.counted("application_unreachable", 1).await?;
    let app = App::start_at(down, Manner::Echo).await?;
    app::echoes(&mut client.connect(sidecar.public).await?, b"up again").await?;
    ensure!(app.accepted() == 1);
    Ok(())
}

async fn c30_an_application_in_a_black_hole_is_given_up_in_time(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let hole = BlackHole::new().await?;
    let mut sidecar = Sidecar::new("api", hole.address)?;
    sidecar.config = json!({ "local_connect_timeout_ms": 700 });
    sidecar.register(&agent).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let client = Client::new(agent.identity("web").await?);
    let begun = Instant::now();
    client.is_refused(sidecar.public).await?;
    let took = begun.elapsed();
    ensure!((Duration::from_millis(600)..Duration::from_secs(4)).contains(&took), "given up after {took:?}");
    lictor.counted("application_unreachable", 1).await
}

/// An address on loopback that answers no SYN: its backlog is full.
struct BlackHole {
    address: std::net::SocketAddr,
    _listener: socket2::Socket,
    _fillers: Vec<TcpStream>,
}

impl BlackHole {
    async fn new() -> Result<Self> {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let address: std::net::SocketAddr = ports::free()?;
        listener.bind(&address.into())?;
        listener.listen(0)?;
        let mut fillers = Vec::new();
        loop {
            ensure!(fillers.len() < 16, "the backlog does not fill up");
            let attempt = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await;
            match attempt {
                Ok(stream) => fillers.push(stream?),
                Err(_) => return Ok(Self { address, _listener: listener, _fillers: fillers }),
            }
        }
    }
}

/// The shortest period that is taken, in the registration's key.
fn each_second() -> Value {
    json!({ "reauthorize_ms": 1000 })
}

/// How long after the period a connection may take to be gone, on a machine that is busy.
const SLACK: Duration = Duration::from_secs(5);

/// The peer has reset the connection; nothing came before.
async fn is_reset(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<()> {
    match stream.read(&mut [0; 1]).await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => bail!("not reset: {other:?}"),
    }
}

async fn c31_with_a_period_an_open_connection_ends_when_its_intention_turns(world: Arc<World>) -> Result<()> {
    let api = world.inbound_with(Manner::Hand, Options::default(), each_second(), &[]).await?;
    let (mut web, mut shop) =
        (api.client("web").await?.connect(api.public()).await?, api.client("shop").await?.connect(api.public()).await?);
    let (mut of_web, mut of_shop) = (api.app.next().await?, api.app.next().await?);
    for (client, app) in [(&mut web, &mut of_web), (&mut shop, &mut of_shop)] {
        client.write_all(b"hello").await?;
        app.read_exact(&mut [0; 5]).await?;
    }
    // An established connection is asked about again and again while it is allowed.
    wait::until("a second question", SOON, || async {
        ensure!(api.lictor.metrics().await?.label("permitted") >= 2, "not yet");
        Ok(())
    })
    .await?;
    let turned = Instant::now();
    api.agent.deny("web", "api").await?;
    wait::within("the end of the denied one", Duration::from_secs(1) + SLACK, is_reset(&mut web)).await??;
    println!("reset {:?} after the intention turned, at a period of 1 s", turned.elapsed());
    app::is_reset(&mut of_web).await.context("at the application")?;
    api.lictor.counted("revoked", 2).await.context("one judgement and one connection")?;
    let line = api.lictor.output().line(0, "the record", SOON, |l| l.contains("connection ended")).await?;
    ensure!(line.contains("revoked") && line.contains("svc/web"), "{line}");
    let asked = api.lictor.metrics().await?.label("permitted");
    wait::until("the neighbour asked about once more", SOON, || async {
        ensure!(api.lictor.metrics().await?.label("permitted") > asked, "not yet");
        Ok(())
    })
    .await?;
    shop.write_all(b"still").await?;
    of_shop.read_exact(&mut [0; 5]).await.context("the allowed neighbour lives on")?;
    api.agent.allow("web", "api").await?;
    let mut again = api.client("web").await?.connect(api.public()).await?;
    again.write_all(b"again").await?;
    api.app.next().await?.read_exact(&mut [0; 5]).await.map(drop).context("allowed again, a new one passes")
}

async fn c31_no_outage_of_the_agent_ends_an_open_connection(world: Arc<World>) -> Result<()> {
    let options = Options { persistent: true, ..Options::default() };
    let api = world.inbound_with(Manner::Echo, options, each_second(), &[]).await?;
    let mut web = api.client("web").await?.connect(api.public()).await?;
    app::echoes(&mut web, b"before").await?;
    api.agent.stop().await?;
    wait::until("three questions without an answer", SOON, || async {
        ensure!(api.lictor.metrics().await?.label("undecided") >= 3, "not yet");
        Ok(())
    })
    .await?;
    app::echoes(&mut web, b"the agent is away").await?;
    api.lictor.says("cannot be judged again").await?;
    api.agent.start().await?;
    api.lictor.says("judged again").await?;
    app::echoes(&mut web, b"the agent is back").await?;
    let decided = api.lictor.metrics().await?.label("permitted");
    wait::until("a decision", SOON, || async {
        ensure!(api.lictor.metrics().await?.label("permitted") > decided, "not yet");
        Ok(())
    })
    .await?;
    app::echoes(&mut web, b"and has decided").await
}

async fn c31_an_open_connection_does_not_outlive_the_certificate_of_its_peer(world: Arc<World>) -> Result<()> {
    let api = world.inbound_with(Manner::Echo, Options::default(), each_second(), &[]).await?;
    let forge = api.agent.forge().await?;
    settle(&api).await?;
    let mut short = forge.wish("web");
    short.ends = time::Duration::seconds(4);
    let mut lapsing = Client::new(forge.sign(&short)?).connect(api.public()).await?;
    let mut lasting = Client::new(forge.good("web")?).connect(api.public()).await?;
    app::echoes(&mut lapsing, b"short").await?;
    app::echoes(&mut lasting, b"long").await?;
    let limit = Duration::from_secs(5) + SLACK;
    wait::within("the end with the certificate", limit, is_reset(&mut lapsing)).await??;
    api.lictor.counted("peer_lapsed", 1).await?;
    app::echoes(&mut lasting, b"still").await.context("the same service by a certificate that counts")
}

async fn c31_without_a_period_an_open_connection_lives_on(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let mut web = client.connect(api.public()).await?;
    app::echoes(&mut web, b"before").await?;
    api.agent.deny("web", "api").await?;
    api.refuses(&client).await.context("a new connection")?;
    let asked = api.agent.authorizes();
    wait::pass(Duration::from_secs(2)).await;
    app::echoes(&mut web, b"after").await.context("the established one")?;
    ensure!(api.agent.authorizes() == asked, "authorize was asked about an open connection");
    Ok(())
}

async fn c32_a_thousand_stuck_clients_do_not_stop_a_good_one(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let mut stuck = Vec::new();
    for number in 0..1000 {
        let mut stream = app::connect(api.public()).await?;
        if number % 2 == 0 {
            stream.write_all(&client_hello([3, 3])[..20]).await?;
        }
        stuck.push(stream);
    }
    let mut stream = client.connect(api.public()).await.context("a good client beside 1000 stuck ones")?;
    app::echoes(&mut stream, b"good").await?;
    ensure!(api.app.accepted() == 1, "the application saw {} connections", api.app.accepted());
    Ok(())
}

async fn c33_running_out_of_descriptors_ends_nothing(world: Arc<World>) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let mut old = client.connect(api.public()).await?;
    app::echoes(&mut old, b"before").await?;
    let used = api.lictor.process().descriptors()? as u64;
    api.lictor.limit_descriptors(used)?;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(app::connect(api.public()).await?);
    }
    // A connection that is there goes on, and the process is not in a spin.
    app::echoes(&mut old, b"meanwhile").await?;
    api.lictor.limit_descriptors(20_000)?;
    drop(waiting);
    wait::until("service again", SOON, || async { api.serves().await }).await?;
    app::echoes(&mut old, b"after").await?;
    api.lictor.lives()
}
