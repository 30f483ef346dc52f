//! Sidecars on different TLS libraries, each in a process of its own, meet each other and the openssl command.
//!
//! Two sidecars always agree on TLS 1.3, since none can be told to leave it out; TLS 1.2 is what each speaks with the
//! openssl command here, and with the peers of the conformance suite.

use std::{net::SocketAddr, process::Stdio, sync::Arc};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{
    agent::Agent,
    app::{self, App},
    libraries::Library,
    lictor::{Lictor, Setup},
    ports,
    process::Process,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Sidecar, World, add_instance, upstream},
};

pub(crate) const CASES: &[Case] = &[
    case!(libraries_meet_each_other_in_both_directions).heavy(),
    case!(libraries_rotate_together_without_a_lost_call).heavy(),
    case!(libraries_serve_openssls_client_with_a_certificate_and_not_without),
    case!(libraries_reach_openssls_server),
];

/// How much goes each way in one call: many records, more than a socket buffers.
const MUCH: usize = 3 << 20;

/// The mesh of these cases: for each library a service `web-NAME` that calls, and a service `api-NAME` that is called.
struct Mesh {
    agent: Agent,
    sides: Vec<Side>,
}

struct Side {
    library: Library,
    /// What its library tells of itself.
    crypto: Value,
    app: App,
    api: Lictor,
    web: Lictor,
    /// Where `web` reaches the `api` of each library.
    upstreams: Vec<(String, SocketAddr)>,
}

impl Side {
    fn web_name(&self) -> String {
        format!("web-{}", self.library.name)
    }

    fn api_name(&self) -> String {
        format!("api-{}", self.library.name)
    }

    fn towards(&self, other: &Self) -> Result<SocketAddr> {
        let found = self.upstreams.iter().find(|(name, _)| *name == other.library.name);
        Ok(found.with_context(|| format!("no upstream to {}", other.library.name))?.1)
    }
}

impl Mesh {
    async fn start(world: &World, hybrid: bool) -> Result<Self> {
        let agent = world.agent().await?;
        let mut sides = Vec::new();
        for library in world.libraries() {
            let name = &library.name;
            let app = App::echo().await?;
            let api = Sidecar::new(&format!("api-{name}"), app.address())?;
            api.register(&agent).await?;
            let mut web = Sidecar::new(&format!("web-{name}"), ports::free()?)?;
            let mut upstreams = Vec::new();
            for other in world.libraries() {
                let local = ports::free()?;
                web.upstreams.push(upstream(&format!("api-{}", other.name), local.port()));
                upstreams.push((other.name.clone(), local));
            }
            web.register(&agent).await?;
            let start = |sidecar: &Sidecar| {
                let setup = Setup::proxy(world, &format!("lictor of {}", sidecar.name), &agent)?;
                let setup = setup.binary(&library.binary).args(&["-sidecar-for", &sidecar.service_id()]);
                setup.env("LICTOR_TLS__HYBRID", hybrid.to_string()).start()
            };
            let (api, web) = (start(&api)?, start(&web)?);
            let crypto = Value::Null;
            sides.push(Side { library: library.clone(), crypto, app, api, web, upstreams });
        }
        for side in &mut sides {
            side.api.ready().await?;
            side.web.ready().await?;
            let told = side.api.json("/crypto").await?;
            let mut linked = told["libraries"].as_array().into_iter().flatten();
            let used = linked.find(|library| library["backend"] == side.library.name);
            side.crypto = used.with_context(|| format!("nothing about {} in {told}", side.library.name))?.clone();
        }
        Ok(Self { agent, sides })
    }

    /// Every pair, the one that calls first.
    fn pairs(&self) -> impl Iterator<Item = (&Side, &Side)> {
        self.sides.iter().flat_map(|client| self.sides.iter().map(move |server| (client, server)))
    }
}

async fn libraries_meet_each_other_in_both_directions(world: Arc<World>) -> Result<()> {
    for hybrid in [true, false] {
        let mesh = Mesh::start(&world, hybrid).await?;
        for (client, server) in mesh.pairs() {
            mesh.agent.allow(&client.web_name(), &server.api_name()).await?;
        }
        for (client, server) in mesh.pairs() {
            let pair = || format!("{} calls {}, hybrid wished: {hybrid}", client.library.name, server.library.name);
            let local = client.towards(server)?;
            wait::until("a way there", SOON, || works(local)).await.with_context(pair)?;
            allowed(client, server, local).await.with_context(pair)?;
            denied(&mesh.agent, client, server, local).await.with_context(pair)?;
        }
    }
    Ok(())
}

/// A call passes, its bytes are the same at both ends, and both sidecars tell the same of it.
async fn allowed(client: &Side, server: &Side, local: SocketAddr) -> Result<()> {
    let before = server.app.bytes();
    let mut stream = app::connect(local).await?;
    much_both_ways(&mut stream).await?;
    ensure!(server.app.bytes() - before == MUCH as u64, "{} bytes arrived", server.app.bytes() - before);
    let expected = agreed(client, server)?;
    for (side, lictor, peer) in [("client", &client.web, server.api_name()), ("server", &server.api, client.web_name())]
    {
        let open = lictor.json("/connections").await?["open"].clone();
        let to_peer =
            |open: &&Value| open["peer_identity"].as_str().is_some_and(|uri| uri.ends_with(&format!("/svc/{peer}")));
        let connection = open.as_array().and_then(|open| open.iter().find(to_peer));
        let connection = connection.with_context(|| format!("the {side} shows no connection with {peer}: {open}"))?;
        ensure!(connection["tls"] == expected, "the {side} tells {}, expected is {expected}", connection["tls"]);
        for key in ["tx_bytes", "rx_bytes"] {
            ensure!(connection[key] == MUCH, "the {side} counts {key}: {}", connection[key]);
        }
    }
    stream.shutdown().await?;
    let (rest, end) = app::read_to_end(&mut stream).await?;
    ensure!(rest.is_empty() && end == app::End::Clean, "the end is {end:?} behind {} bytes", rest.len());
    Ok(())
}

/// What the two must agree on: of each list of the client's the first that the server has, which is the same as the
/// other way round, since all libraries are held to one order.
fn agreed(client: &Side, server: &Side) -> Result<Value> {
    let first = |list: &str| {
        let mut offered = client.crypto[list].as_array().into_iter().flatten();
        let found = offered.find(|name| server.crypto[list].as_array().is_some_and(|served| served.contains(name)));
        found.cloned().with_context(|| format!("no {list} in common: {} and {}", client.crypto, server.crypto))
    };
    Ok(serde_json::json!({ "version": first("versions")?, "suite": first("suites")?, "group": first("groups")? }))
}

async fn denied(agent: &Agent, client: &Side, server: &Side, local: SocketAddr) -> Result<()> {
    let (from, to) = (client.web_name(), server.api_name());
    agent.deny(&from, &to).await?;
    wait::until("the deny", SOON, || async {
        let (connections, bytes) = (server.app.accepted(), server.app.bytes());
        app::is_closed(local).await?;
        ensure!(server.app.accepted() == connections && server.app.bytes() == bytes, "the application was reached");
        Ok(())
    })
    .await?;
    ensure!(server.api.metrics().await?.label("denied") > 0, "no deny is counted");
    agent.allow(&from, &to).await?;
    wait::until("a way there again", SOON, || works(local)).await
}

async fn works(local: SocketAddr) -> Result<()> {
    app::echoes(&mut app::connect(local).await?, b"through two libraries").await
}

/// Sends and reads at the same time, as more is under way than fits.
async fn much_both_ways(stream: &mut TcpStream) -> Result<()> {
    let sent = app::pattern(MUCH);
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; MUCH];
    let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut back)) };
    wait::within("an echo of much", SOON, both).await??;
    ensure!(back == sent, "the echo differs");
    Ok(())
}

/// Every sidecar learns of a new root and a new leaf in its own time, and none refuses another meanwhile.
async fn libraries_rotate_together_without_a_lost_call(world: Arc<World>) -> Result<()> {
    let mesh = Mesh::start(&world, true).await?;
    let mut lasting = Vec::new();
    for (client, server) in mesh.pairs() {
        mesh.agent.allow(&client.web_name(), &server.api_name()).await?;
        let local = client.towards(server)?;
        wait::until("a way there", SOON, || works(local)).await?;
        let mut stream = app::connect(local).await?;
        app::echoes(&mut stream, b"before").await?;
        lasting.push(stream);
    }
    let mut before = Vec::new();
    for side in &mesh.sides {
        before.push((
            side.api.metrics().await?.sum("material_generation"),
            side.web.metrics().await?.sum("material_generation"),
        ));
    }
    mesh.agent.rotate_root().await?;
    // Roots and leaf make two generations each. A real agent signs anew within half a minute.
    wait::until("the new leaves in use", std::time::Duration::from_secs(60), || async {
        for (client, server) in mesh.pairs() {
            let pair = || format!("{} calls {}", client.library.name, server.library.name);
            // A lost call ends the case at once.
            if let Err(error) = works(client.towards(server)?).await.with_context(pair) {
                return Ok(Err(error));
            }
        }
        for (side, (api, web)) in mesh.sides.iter().zip(&before) {
            let now = (
                side.api.metrics().await?.sum("material_generation"),
                side.web.metrics().await?.sum("material_generation"),
            );
            ensure!(now.0 > api + 1 && now.1 > web + 1, "generations {now:?} after {:?}", (api, web));
        }
        Ok(Ok(()))
    })
    .await?
    .context("a call was lost while the root rotated")?;
    for stream in &mut lasting {
        app::echoes(stream, b"after").await.context("a connection from before the rotation")?;
    }
    Ok(())
}

async fn libraries_serve_openssls_client_with_a_certificate_and_not_without(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let identity = agent.identity("web").await?;
    let cert = world.file("web.pem", &identity.chain_pem)?;
    let key = world.file("web-key.pem", &identity.key_pem)?;
    let roots = world.file("roots.pem", &agent.roots().await?.concat())?;
    for library in world.libraries() {
        let app = App::echo().await?;
        let sidecar = Sidecar::new(&format!("api-{}", library.name), app.address())?;
        sidecar.register(&agent).await?;
        let setup = Setup::proxy(&world, &format!("lictor on {}", library.name), &agent)?.binary(&library.binary);
        let mut lictor = setup.args(&["-sidecar-for", &sidecar.service_id()]).start()?;
        lictor.ready().await?;
        for (version, name) in VERSIONS {
            let what = || format!("{} serves openssl {version}", library.name);
            for with_certificate in [true, false] {
                let mut command = Command::new("openssl");
                command.args(["s_client", "-quiet", "-verify_quiet", version, "-verify_return_error", "-connect"]);
                command.arg(sidecar.public.to_string()).arg("-CAfile").arg(&roots);
                if with_certificate {
                    command.arg("-cert").arg(&cert).arg("-cert_chain").arg(&cert).arg("-key").arg(&key);
                }
                let before = app.accepted();
                let mut talk = Talk::start(&mut command)?;
                let said = talk.line_through("hello from openssl").await.with_context(what)?;
                if with_certificate {
                    ensure!(said.as_deref() == Some("hello from openssl"), "{}: {said:?}", what());
                    ensure!(app.accepted() == before + 1, "{}", what());
                    agreed_on(&lictor, name).await.with_context(what)?;
                } else {
                    ensure!(said.is_none() && app.accepted() == before, "{} without a certificate", what());
                }
            }
            lictor.measures("connections_open", 0).await.with_context(what)?;
        }
    }
    Ok(())
}

async fn libraries_reach_openssls_server(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let roots = world.file("api-roots.pem", &agent.roots().await?.concat())?;
    for library in world.libraries() {
        for (version, name) in VERSIONS {
            let what = || format!("{} calls openssl {version}", library.name);
            // A service of its own for each, so that nobody waits until an older instance is forgotten.
            let service = format!("api-{}{version}", library.name).replace('_', "-");
            let identity = agent.identity(&service).await?;
            let cert = world.file(&format!("{service}.pem"), &identity.chain_pem)?;
            let key = world.file(&format!("{service}-key.pem"), &identity.key_pem)?;
            let address = ports::free()?;
            let mut command = Command::new("openssl");
            command.args(["s_server", version, "-rev", "-Verify", "4", "-verify_return_error", "-accept"]);
            command.arg(address.to_string()).arg("-cert").arg(&cert).arg("-key").arg(&key).arg("-CAfile").arg(&roots);
            let server = Process::start("openssl s_server", &mut command)?;
            app::listening(address).await?;
            add_instance(&agent, &service, &format!("{service}-1"), address).await?;
            let mut web = Sidecar::new(&format!("web-{}{version}", library.name).replace('_', "-"), ports::free()?)?;
            let local = ports::free()?;
            web.upstreams.push(upstream(&service, local.port()));
            web.register(&agent).await?;
            let setup = Setup::proxy(&world, &format!("lictor on {}", library.name), &agent)?.binary(&library.binary);
            let mut lictor = setup.args(&["-sidecar-for", &web.service_id()]).start()?;
            lictor.ready().await?;
            let reversed = wait::until("a reversed line", SOON, || async {
                let mut stream = app::connect(local).await?;
                stream.write_all(b"stressed\n").await?;
                let mut line = String::new();
                wait::within("a line", SOON, BufReader::new(&mut stream).read_line(&mut line)).await??;
                ensure!(line.trim() == "desserts", "{line:?}");
                agreed_on(&lictor, name).await
            });
            reversed.await.with_context(|| format!("{}; openssl says {}", what(), server.output().tail(10)))?;
        }
    }
    Ok(())
}

/// What the openssl command calls a version, and what we do.
const VERSIONS: [(&str, &str); 2] = [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")];

/// The one open connection is of this version, and names what else was agreed.
async fn agreed_on(lictor: &Lictor, version: &str) -> Result<()> {
    let open = lictor.json("/connections").await?["open"].clone();
    let tls = &open[0]["tls"];
    ensure!(tls["version"] == version, "{version} was agreed, told is {tls}");
    for key in ["suite", "group"] {
        ensure!(tls[key].as_str().is_some_and(|name| !name.is_empty() && name != "unknown"), "no {key} in {tls}");
    }
    Ok(())
}

/// A command whose input and output are a connection.
struct Talk {
    child: Child,
}

impl Talk {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        Ok(Self { child: command.spawn().context("cannot run openssl")? })
    }

    /// Sends a line and gives the first line of the output, or none where it ends without one.
    async fn line_through(&mut self, line: &str) -> Result<Option<String>> {
        let input = self.child.stdin.as_mut().context("no stdin")?;
        // Who was refused reads nothing any more; what is said then tells.
        let _ = input.write_all(format!("{line}\n").as_bytes()).await;
        let output = self.child.stdout.as_mut().context("no stdout")?;
        Ok(wait::within("a line from openssl", SOON, BufReader::new(output).lines().next_line()).await??)
    }
}
