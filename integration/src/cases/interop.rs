//! Foreign peers: the openssl command, and Consul's own proxy.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::{
    agent::{Agent, Kind},
    app::{self, App, Manner},
    ports,
    process::Process,
    runner::{Case, case},
    wait::{self, SOON},
    world::{NotRun, Sidecar, World, upstream},
};

const NO_BINARY: &str = "Consul's own proxy comes with a real consul";

pub(crate) const CASES: &[Case] = &[
    case!(interop_openssl_clients_pass_with_a_certificate_and_not_without),
    case!(interop_openssl_servers_are_reached),
    case!(interop_consuls_proxy_calls_us_and_a_deny_stops_it).real(NO_BINARY),
    case!(interop_we_call_consuls_proxy_and_a_deny_stops_us).real(NO_BINARY),
    case!(interop_consuls_proxy_calls_us_while_the_root_rotates).real(NO_BINARY).heavy(),
];

async fn interop_openssl_clients_pass_with_a_certificate_and_not_without(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let identity = api.agent.identity("web").await?;
    let cert = world.file("web.pem", &identity.chain_pem)?;
    let key = world.file("web-key.pem", &identity.key_pem)?;
    let roots = world.file("roots.pem", &api.agent.roots().await?.concat())?;
    for version in ["-tls1_2", "-tls1_3"] {
        for with_certificate in [true, false] {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-quiet", "-verify_quiet", version, "-connect"]).arg(api.public().to_string());
            command.arg("-CAfile").arg(&roots).arg("-verify_return_error");
            if with_certificate {
                command.arg("-cert").arg(&cert).arg("-cert_chain").arg(&cert).arg("-key").arg(&key);
            }
            let before = api.app.accepted();
            let said = lines_through(&mut command, "hello from openssl").await?;
            if with_certificate {
                ensure!(said.as_deref() == Some("hello from openssl"), "{version}: {said:?}");
                ensure!(api.app.accepted() == before + 1);
            } else {
                ensure!(said.is_none() && api.app.accepted() == before, "{version}: served without a certificate");
            }
        }
    }
    Ok(())
}

/// Sends a line to a command's input and gives the first line of its output, or none where it ends without one.
async fn lines_through(command: &mut Command, line: &str) -> Result<Option<String>> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child: Child = command.spawn().context("cannot run openssl")?;
    let mut input = child.stdin.take().context("no stdin")?;
    let output = child.stdout.take().context("no stdout")?;
    let _ = input.write_all(format!("{line}\n").as_bytes()).await;
    let first = wait::within("a line from openssl", SOON, BufReader::new(output).lines().next_line()).await??;
    child.kill().await?;
    Ok(first)
}

async fn interop_openssl_servers_are_reached(world: Arc<World>) -> Result<()> {
    for version in ["-tls1_2", "-tls1_3"] {
        let web = world.outbound().await?;
        let identity = web.agent.identity("api").await?;
        let cert = world.file("api.pem", &identity.chain_pem)?;
        let key = world.file("api-key.pem", &identity.key_pem)?;
        let roots = world.file("api-roots.pem", &web.agent.roots().await?.concat())?;
        let address = ports::free()?;
        let mut command = Command::new("openssl");
        command.args(["s_server", version, "-rev", "-Verify", "4", "-verify_return_error", "-accept"]);
        command.arg(address.to_string()).arg("-cert").arg(&cert).arg("-key").arg(&key).arg("-CAfile").arg(&roots);
        let server = Process::start("openssl s_server", &mut command)?;
        app::listening(address).await?;
        web.add("api-1", address).await?;
        let outcome = wait::until("a reversed line", SOON, || async {
            let mut stream = app::connect(web.local).await?;
            stream.write_all(b"stressed\n").await?;
            let mut line = String::new();
            let mut reader = BufReader::new(&mut stream);
            wait::within("a line", Duration::from_secs(2), reader.read_line(&mut line)).await??;
            ensure!(line.trim() == "desserts", "{line:?}");
            Ok(())
        });
        outcome.await.with_context(|| format!("{version}: openssl says {}", server.output().tail(10)))?;
    }
    Ok(())
}

/// Consul's own proxy for a registered sidecar.
fn consuls_proxy(world: &World, agent: &Agent, service_id: &str) -> Result<Process> {
    let Kind::Consul(consul) = &world.kind else {
        bail!(NotRun("the binary of the consul in the container is not at hand".to_owned()));
    };
    let mut command = Command::new(&consul.path);
    command.args(["connect", "proxy", "-log-level", "debug", "-sidecar-for", service_id]);
    command.env("CONSUL_HTTP_ADDR", agent.address().to_string()).env_remove("CONSUL_HTTP_TOKEN");
    let process = Process::start("consul connect proxy", &mut command)?;
    world.outputs().lock().push(("consul connect proxy".to_owned(), process.output().clone()));
    Ok(process)
}

/// `web` and `api` registered; where the application of `web` finds `api`, and the application of `api`.
async fn two_services(agent: &Agent) -> Result<(SocketAddr, App)> {
    let app = App::echo().await?;
    Sidecar::new("api", app.address())?.register(agent).await?;
    let mut web = Sidecar::new("web", ports::free()?)?;
    let local = ports::free()?;
    web.upstreams.push(upstream("api", local.port()));
    web.register(agent).await?;
    Ok((local, app))
}

async fn works(local: SocketAddr) -> Result<()> {
    app::echoes(&mut app::connect(local).await?, b"through two sidecars").await
}

async fn allow_and_deny(agent: &Agent, local: SocketAddr, app: &App) -> Result<()> {
    agent.allow("web", "api").await?;
    wait::until("a way to api", SOON, || works(local)).await?;
    agent.deny("web", "api").await?;
    wait::until("the deny", SOON, || async {
        let before = app.bytes();
        ensure!(works(local).await.is_err(), "still served");
        ensure!(app.bytes() == before, "bytes arrived");
        Ok(())
    })
    .await?;
    agent.allow("web", "api").await?;
    wait::until("a way to api again", SOON, || works(local)).await
}

async fn interop_consuls_proxy_calls_us_and_a_deny_stops_it(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, app) = two_services(&agent).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _theirs = consuls_proxy(&world, &agent, "web-1")?;
    allow_and_deny(&agent, local, &app).await?;
    ensure!(ours.metrics().await?.label("denied") > 0);
    Ok(())
}

async fn interop_we_call_consuls_proxy_and_a_deny_stops_us(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, app) = two_services(&agent).await?;
    let _theirs = consuls_proxy(&world, &agent, "api-1")?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "web-1"]).start()?;
    ours.ready().await?;
    allow_and_deny(&agent, local, &app).await
}

async fn interop_consuls_proxy_calls_us_while_the_root_rotates(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let (local, _app) = two_services(&agent).await?;
    let mut ours = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _theirs = consuls_proxy(&world, &agent, "web-1")?;
    wait::until("a way to api", SOON, || works(local)).await?;
    let mut lasting = app::connect(local).await?;
    app::echoes(&mut lasting, b"before").await?;
    let before = ours.metrics().await?.sum("material_generation");
    agent.rotate_root().await?;
    let made = AtomicU64::new(0);
    wait::until("the new leaf in use", Duration::from_secs(45), || async {
        // A failure here ends the case at once, since only the last word may be an error.
        let attempt = works(local).await;
        made.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = attempt {
            return Ok(Err(error));
        }
        let now = ours.metrics().await?.sum("material_generation");
        ensure!(now > before + 1, "generation {now}");
        Ok(Ok(()))
    })
    .await?
    .context("a connection was lost while the root rotated")?;
    // Their leaf follows within the agent's half minute.
    for _ in 0..300 {
        works(local).await.context("a connection was lost after the root rotated")?;
        wait::pass(Duration::from_millis(100)).await;
    }
    app::echoes(&mut lasting, b"after").await?;
    ensure!(made.load(Ordering::Relaxed) > 0);
    Ok(())
}
