//! Group A: start and selection of configuration.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    agent::{Https, MANAGEMENT, Options},
    app::{self, App, Manner},
    forge::Forge,
    peer::{Server, ServerOptions},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Sidecar, World, add_instance},
};

pub(crate) const CASES: &[Case] = &[
    case!(a1_without_flags_it_says_how_to_choose_a_sidecar),
    case!(a2_a_service_alone_runs_without_a_public_listener),
    case!(a3_upstream_flags_open_local_listeners),
    case!(a4_the_last_upstream_flag_of_a_name_wins),
    case!(a5_malformed_upstream_flags_are_refused),
    case!(a6_an_upstream_flag_names_a_query_or_an_address),
    case!(a7_listen_without_service_addr_is_refused),
    case!(a8_register_without_listen_is_refused),
    case!(a9_no_sidecar_for_the_service_ends_the_start),
    case!(a10_two_sidecars_for_the_service_end_the_start_and_are_listed),
    case!(a11_the_letter_case_of_sidecar_for_does_not_matter),
    case!(a12_variables_choose_the_sidecar_and_the_proxy_id_wins),
    case!(a13_an_ordinary_service_as_proxy_id_is_told_and_watched),
    case!(a14_an_unknown_proxy_id_serves_soon_after_its_registration),
    case!(a15_an_agent_that_comes_later_is_noticed_at_once),
    case!(a16_the_agent_is_reached_over_a_unix_socket),
    case!(a17_the_agent_is_reached_over_https_with_a_client_certificate),
    case!(a17_a_wrong_ca_for_the_agent_is_refused),
    case!(a18_a_token_file_is_used_and_trimmed),
    case!(a18_an_unreadable_token_file_ends_the_start),
    case!(a19_an_unclear_ssl_verify_is_an_error),
    case!(a20_a_public_address_in_use_ends_the_start),
    case!(a20_a_registered_address_in_use_keeps_ready_red_until_it_is_free),
];

/// The exit code of usage errors.
const USAGE: i32 = 2;

async fn a1_without_flags_it_says_how_to_choose_a_sidecar(world: Arc<World>) -> Result<()> {
    let (code, text) = world.command(&["proxy"]).ends().await?;
    ensure!(code == USAGE, "exit code {code}: {text}");
    for flag in ["-service", "-proxy-id", "-sidecar-for"] {
        ensure!(text.contains(flag), "does not name {flag}: {text}");
    }
    Ok(())
}

async fn a2_a_service_alone_runs_without_a_public_listener(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let mut lictor = world.proxy(&agent)?.args(&["-service", "web"]).start()?;
    lictor.ready().await?;
    let listening = std::fs::read_to_string("/proc/net/tcp")?;
    ensure!(!listening.is_empty());
    // The only listener of the process is the admin listener, which has just answered.
    let descriptors = lictor.process().descriptors()?;
    let upstreamed = {
        let port = ports::free()?;
        let flag = format!("db:{}", port.port());
        let mut other = world.proxy(&agent)?.args(&["-service", "web", "-upstream", &flag]).start()?;
        other.ready().await?;
        other.process().descriptors()?
    };
    ensure!(descriptors < upstreamed, "{descriptors} descriptors without an upstream, {upstreamed} with one");
    lictor.lives()
}

async fn a3_upstream_flags_open_local_listeners(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (one, two) = (ports::free()?, ports::free()?);
    let flags = [format!("db:{}", one.port()), format!("db2:{}", two.port())];
    let setup = world.proxy(&agent)?.args(&["-service", "web", "-upstream", &flags[0], "-upstream", &flags[1]]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    app::listens(one).await?;
    app::listens(two).await?;
    Ok(())
}

async fn a4_the_last_upstream_flag_of_a_name_wins(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (first, last) = (ports::free()?, ports::free()?);
    let flags = [format!("db:{}", first.port()), format!("db:{}", last.port())];
    let setup = world.proxy(&agent)?.args(&["-service", "web", "-upstream", &flags[0], "-upstream", &flags[1]]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    app::listens(last).await?;
    ensure!(app::listens(first).await.is_err(), "the first one is served too");
    Ok(())
}

async fn a5_malformed_upstream_flags_are_refused(world: Arc<World>) -> Result<()> {
    for flag in ["foo", "db:hello", "db:a:1:b", "db.bad:1"] {
        let (code, text) = world.command(&["proxy", "-service", "web", "-upstream", flag]).ends().await?;
        ensure!(code == USAGE, "{flag}: exit code {code}: {text}");
        ensure!(text.contains(flag), "the message does not show {flag}: {text}");
    }
    Ok(())
}

async fn a6_an_upstream_flag_names_a_query_or_an_address(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let server = Server::start(&ServerOptions::new(agent.identity("api").await?, agent.roots().await?)).await?;
    add_instance(&agent, "api", "api-sidecar-proxy-1", server.address()).await?;
    let query = json!({ "Name": "nearest-api", "Service": { "Service": "api" } });
    ensure!(agent.call(reqwest::Method::POST, "/v1/query", Some(query)).await?.0 == 200);
    let (queried, port) = (ports::free()?, ports::free()?.port());
    let elsewhere = format!("127.0.0.55:{port}");
    let flags = [format!("nearest-api.query:{}", queried.port()), format!("api:{elsewhere}")];
    let setup = world.proxy(&agent)?.args(&["-service", "web", "-upstream", &flags[0], "-upstream", &flags[1]]);
    let mut lictor = setup.start()?;
    lictor.ready().await?;
    for address in [queried, elsewhere.parse()?] {
        wait::until("a way to the upstream", SOON, || async {
            app::echoes(&mut app::connect(address).await?, b"hello").await
        })
        .await?;
    }
    ensure!(!agent.requests("/v1/query/nearest-api/execute").is_empty(), "the query was not asked");
    Ok(())
}

async fn a7_listen_without_service_addr_is_refused(world: Arc<World>) -> Result<()> {
    let (code, text) = world.command(&["proxy", "-service", "web", "-listen", ":4567"]).ends().await?;
    ensure!(code == USAGE && text.contains("-service-addr"), "exit code {code}: {text}");
    Ok(())
}

async fn a8_register_without_listen_is_refused(world: Arc<World>) -> Result<()> {
    let (code, text) = world.command(&["proxy", "-service", "web", "-register"]).ends().await?;
    ensure!(code == USAGE && text.contains("-listen"), "exit code {code}: {text}");
    Ok(())
}

async fn a9_no_sidecar_for_the_service_ends_the_start(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (code, text) = world.proxy(&agent)?.args(&["-sidecar-for", "nobody"]).ends().await?;
    ensure!(code != 0, "exit code {code}");
    ensure!(text.contains("No sidecar proxy registered for") && text.contains("nobody"), "{text}");
    ensure!(text.contains("token"), "does not say that a token may be missing: {text}");
    Ok(())
}

async fn a10_two_sidecars_for_the_service_end_the_start_and_are_listed(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let sidecar = Sidecar::new("web", ports::free()?)?;
    sidecar.register(&agent).await?;
    let mut second = sidecar.body();
    second["ID"] = json!("web-1-second-proxy");
    second["Port"] = json!(ports::free()?.port());
    agent.register(second).await?;
    let (code, text) = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).ends().await?;
    ensure!(code != 0, "exit code {code}");
    for id in ["web-1-sidecar-proxy", "web-1-second-proxy", "-proxy-id"] {
        ensure!(text.contains(id), "does not name {id}: {text}");
    }
    Ok(())
}

async fn a11_the_letter_case_of_sidecar_for_does_not_matter(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let mut sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    let mut body = sidecar.body();
    body["Proxy"]["DestinationServiceID"] = json!("API-1");
    agent.register(body).await?;
    sidecar.name = "api".to_owned();
    for spelling in ["api-1", "API-1", "Api-1"] {
        let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", spelling]).start()?;
        lictor.ready().await?;
        app::listens(sidecar.public).await?;
        lictor.kill().await?;
    }
    Ok(())
}

async fn a12_variables_choose_the_sidecar_and_the_proxy_id_wins(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (api, db) = (Sidecar::new("api", ports::free()?)?, Sidecar::new("db", ports::free()?)?);
    api.register(&agent).await?;
    db.register(&agent).await?;
    let mut by_service = world.proxy(&agent)?.env("CONNECT_SIDECAR_FOR", api.service_id()).start()?;
    by_service.ready().await?;
    app::listens(api.public).await?;
    by_service.kill().await?;
    let both = world.proxy(&agent)?.env("CONNECT_SIDECAR_FOR", api.service_id()).env("CONNECT_PROXY_ID", db.proxy_id());
    let mut by_proxy = both.start()?;
    by_proxy.ready().await?;
    app::listens(db.public).await?;
    ensure!(app::listens(api.public).await.is_err(), "the sidecar of api is served");
    Ok(())
}

async fn a13_an_ordinary_service_as_proxy_id_is_told_and_watched(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    agent.register(json!({ "ID": sidecar.proxy_id(), "Name": "ordinary", "Port": 4000 })).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-proxy-id", &sidecar.proxy_id()]).start()?;
    let missing = lictor.not_ready().await?;
    lictor.says(&sidecar.proxy_id()).await?;
    ensure!(app::listens(sidecar.public).await.is_err(), "it listens; /ready says {missing}");
    // It becomes a sidecar, and that is noticed.
    sidecar.register(&agent).await?;
    lictor.ready().await?;
    app::listens(sidecar.public).await?;
    Ok(())
}

async fn a14_an_unknown_proxy_id_serves_soon_after_its_registration(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    let mut lictor = world.proxy(&agent)?.args(&["-proxy-id", &sidecar.proxy_id()]).start()?;
    lictor.not_ready().await?;
    wait::until("some attempts", Duration::from_secs(15), || async {
        let asked = agent.requests("/v1/agent/service/").len();
        ensure!(asked >= 4, "{asked} so far");
        Ok(())
    })
    .await?;
    lictor.lives()?;
    sidecar.register(&agent).await?;
    lictor.ready_within(Duration::from_secs(8)).await
}

async fn a15_an_agent_that_comes_later_is_noticed_at_once(world: Arc<World>) -> Result<()> {
    let agent = world.agent_with(Options { later: true, ..Options::default() }).await?;
    let app = App::echo().await?;
    let public = ports::free()?;
    let setup = world.proxy(&agent)?.args(&["-service", "api", "-service-addr", &app.address().to_string()]);
    let mut lictor = setup.args(&["-listen", &public.to_string()]).start()?;
    lictor.not_ready().await?;
    ensure!(app::listens(public).await.is_err(), "the public port is open without a certificate");
    // Long enough for a back-off to have grown, were there one without bounds.
    wait::until("a few refused attempts", Duration::from_secs(20), || async {
        let metrics = lictor.metrics().await?;
        let failed = metrics.sum("agent_calls");
        ensure!(failed >= 6, "{failed}");
        Ok(())
    })
    .await?;
    agent.start().await?;
    lictor.ready_within(Duration::from_secs(4)).await
}

async fn a16_the_agent_is_reached_over_a_unix_socket(world: Arc<World>) -> Result<()> {
    let socket = world.folder().join("agent.sock");
    let agent = world.agent_with(Options { unix_socket: Some(socket.clone()), ..Options::default() }).await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    let setup = world.proxy(&agent)?.env("CONSUL_HTTP_ADDR", format!("unix://{}", socket.display()));
    let mut lictor = setup.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let client = crate::peer::Client::new(agent.identity("web").await?);
    app::echoes(&mut client.connect(sidecar.public).await?, b"hello").await?;
    ensure!(agent.opened() == 0, "the agent was reached over TCP");
    Ok(())
}

/// Files of an agent that speaks HTTPS as `agent.test`, and of a client that it believes.
async fn https(world: &World) -> Result<(Options, [String; 3])> {
    let ca = Forge::new_root("https.test")?;
    let (cert, key) = ca.sign_https("agent.test", true)?;
    let (client_cert, client_key) = ca.sign_https("client.test", false)?;
    let https = Https {
        ca: world.file("ca.pem", ca.pem())?,
        cert: world.file("agent.pem", &cert)?,
        key: world.file("agent-key.pem", &key)?,
    };
    let path = |name: &str, text: &str| Ok::<_, anyhow::Error>(world.file(name, text)?.display().to_string());
    let files = [path("ca.pem", ca.pem())?, path("client.pem", &client_cert)?, path("client-key.pem", &client_key)?];
    Ok((Options { https: Some(https), ..Options::default() }, files))
}

async fn a17_the_agent_is_reached_over_https_with_a_client_certificate(world: Arc<World>) -> Result<()> {
    let (options, [ca, cert, key]) = https(&world).await?;
    let agent = world.agent_with(options).await?;
    let app = App::echo().await?;
    let sidecar = Sidecar::new("api", app.address())?;
    sidecar.register(&agent).await?;
    let setup = world
        .proxy(&agent)?
        .env("CONSUL_HTTP_ADDR", format!("https://{}", agent.https()?))
        .env("CONSUL_CACERT", ca)
        .env("CONSUL_CLIENT_CERT", cert)
        .env("CONSUL_CLIENT_KEY", key)
        .env("CONSUL_TLS_SERVER_NAME", "agent.test");
    let mut lictor = setup.args(&["-sidecar-for", "api-1"]).start()?;
    lictor.ready().await?;
    let client = crate::peer::Client::new(agent.identity("web").await?);
    app::echoes(&mut client.connect(sidecar.public).await?, b"hello").await?;
    ensure!(agent.opened() == 0, "the agent was reached without TLS");
    Ok(())
}

async fn a17_a_wrong_ca_for_the_agent_is_refused(world: Arc<World>) -> Result<()> {
    let (options, [_, cert, key]) = https(&world).await?;
    let agent = world.agent_with(options).await?;
    let other = world.file("other-ca.pem", Forge::new_root("other.test")?.pem())?;
    let public = ports::free()?;
    let setup = world
        .proxy(&agent)?
        .env("CONSUL_HTTP_ADDR", format!("https://{}", agent.https()?))
        .env("CONSUL_CACERT", other)
        .env("CONSUL_CLIENT_CERT", cert)
        .env("CONSUL_CLIENT_KEY", key)
        .env("CONSUL_TLS_SERVER_NAME", "agent.test");
    let setup = setup.args(&["-service", "api", "-service-addr", "127.0.0.1:1", "-listen", &public.to_string()]);
    let lictor = setup.start()?;
    lictor.not_ready().await?;
    let line = lictor.output().line(0, "the agent's certificate", SOON, |line| {
        line.contains("certificate") || line.contains("CA") || line.contains("issuer")
    });
    line.await?;
    ensure!(app::listens(public).await.is_err(), "it serves with certificates from an agent that it cannot trust");
    Ok(())
}

async fn a18_a_token_file_is_used_and_trimmed(world: Arc<World>) -> Result<()> {
    let file = world.file("token", &format!("  {MANAGEMENT}\n\n"))?;
    for by_flag in [true, false] {
        let agent = world.agent_with(Options { acl: Some("deny"), ..Options::default() }).await?;
        let app = App::echo().await?;
        let sidecar = Sidecar::new("api", app.address())?;
        sidecar.register(&agent).await?;
        let setup = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]);
        let setup =
            if by_flag { setup.arg("-token-file").arg(&file) } else { setup.env("CONSUL_HTTP_TOKEN_FILE", &file) };
        let mut lictor = setup.start()?;
        lictor.ready().await?;
        let asked = agent.requests("/v1/agent/connect/ca/leaf/api");
        ensure!(asked.iter().any(|head| head.contains(MANAGEMENT)), "the token was not sent: {asked:?}");
    }
    Ok(())
}

async fn a18_an_unreadable_token_file_ends_the_start(world: Arc<World>) -> Result<()> {
    let missing = world.folder().join("no-such-token");
    let setup = world.command(&["proxy", "-service", "web", "-token-file"]).arg(&missing);
    let (code, text) = setup.ends().await?;
    ensure!(code == 3, "exit code {code}: {text}");
    ensure!(text.contains("no-such-token"), "does not name the file: {text}");
    Ok(())
}

async fn a19_an_unclear_ssl_verify_is_an_error(world: Arc<World>) -> Result<()> {
    let setup = world.command(&["proxy", "-service", "web"]).env("CONSUL_HTTP_SSL_VERIFY", "maybe");
    let (code, text) = setup.ends().await?;
    ensure!(code == 2 || code == 3, "exit code {code}: {text}");
    ensure!(text.contains("CONSUL_HTTP_SSL_VERIFY") && text.contains("maybe"), "{text}");
    Ok(())
}

async fn a20_a_public_address_in_use_ends_the_start(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let taken = App::echo().await?;
    let address = taken.address().to_string();
    let setup = world.proxy(&agent)?.args(&["-service", "api", "-service-addr", "127.0.0.1:1", "-listen", &address]);
    let (code, text) = setup.ends().await?;
    ensure!(code == 5, "exit code {code}: {text}");
    ensure!(text.contains(&address), "does not name the address: {text}");
    Ok(())
}

async fn a20_a_registered_address_in_use_keeps_ready_red_until_it_is_free(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::start(Manner::Echo).await?;
    let mut sidecar = Sidecar::new("api", app.address())?;
    let taken = App::start_at(ports::free()?, Manner::Echo).await?;
    sidecar.public = taken.address();
    sidecar.register(&agent).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    let missing = lictor.not_ready().await?;
    lictor.says(&taken.address().port().to_string()).await?;
    lictor.lives()?;
    ensure!(!missing.is_empty(), "/ready does not say what is missing");
    drop(taken);
    lictor.ready().await?;
    let client = crate::peer::Client::new(agent.identity("web").await?);
    app::echoes(&mut client.connect(sidecar.public).await?, b"hello").await
}
