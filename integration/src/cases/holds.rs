//! What must hold whatever happens, beyond the numbered cases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpListener};

use crate::{
    agent::Options,
    app::{self, App, Manner},
    helper,
    lictor::Lictor,
    peer::{Client, Server, Tls},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{NotRun, Pair, Sidecar, World, upstream},
};

pub(crate) const CASES: &[Case] = &[
    case!(holds_the_application_is_not_dialled_before_the_agent_has_answered),
    case!(holds_a_killed_sidecar_is_a_reset_for_the_application),
    case!(holds_rotations_under_load_lose_no_connection).heavy(),
    case!(holds_fifty_leaf_and_five_root_rotations_lose_no_connection).drill(),
    case!(holds_a_short_outage_of_the_agent_is_survived).heavy(),
    case!(holds_a_minute_without_the_agent_is_survived).drill(),
    case!(holds_a_thousand_idle_connections_do_not_stop_a_good_client).heavy(),
    case!(holds_ten_thousand_idle_connections_do_not_stop_a_good_client).drill(),
    case!(holds_five_times_the_cap_of_stuck_handshakes_does_not_stop_a_good_client),
    case!(holds_five_thousand_stuck_handshakes_do_not_stop_a_good_client).drill(),
    case!(holds_a_low_descriptor_limit_ends_nothing),
    case!(holds_no_http_proxy_is_ever_asked),
    case!(holds_nothing_is_resumed_towards_an_upstream),
    case!(holds_dev_carries_a_request_and_obeys_a_deny).embedded("it brings its own agent"),
];

async fn holds_the_application_is_not_dialled_before_the_agent_has_answered(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Greet).await?;
    let client = api.client("web").await?;
    api.agent.freeze().await?;
    let asked = api.agent.authorizes();
    let waiting = async {
        let mut stream = client.connect(api.public()).await?;
        stream.write_all(b"early").await?;
        stream.flush().await?;
        let mut greeting = [0; 9];
        wait::within("the greeting", SOON, tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting)).await??;
        Ok::<_, anyhow::Error>(())
    };
    let watching = async {
        let outcome = async {
            wait::until("the question", SOON, || async {
                ensure!(api.agent.authorizes() > asked, "not asked yet");
                Ok(())
            })
            .await?;
            wait::pass(Duration::from_millis(500)).await;
            api.app.untouched()
        }
        .await;
        api.agent.thaw().await?;
        outcome
    };
    let (served, untouched) = tokio::join!(waiting, watching);
    untouched?;
    served
}

async fn holds_a_killed_sidecar_is_a_reset_for_the_application(world: Arc<World>) -> Result<()> {
    let mut pair = world.pair(Manner::Hand).await?;
    let (mut local, mut app) = wait::until("a way to api", SOON, || async {
        let local = app::connect(pair.local).await?;
        let app = wait::within("its other end", Duration::from_millis(700), pair.api.app.next()).await??;
        Ok((local, app))
    })
    .await?;
    local.write_all(b"half a mess").await?;
    let mut part = [0; 11];
    tokio::io::AsyncReadExt::read_exact(&mut app, &mut part).await?;
    pair.api.lictor.kill().await?;
    app::is_reset(&mut app).await.context("at the application of api, whose sidecar died")?;
    app::is_reset(&mut local).await.context("at the application of web, whose peer's sidecar died")
}

// ---- rotations under load ------------------------------------------------------------------------------------------

/// Keeps making connections through a pair, and keeps some open.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(pair: &Pair) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..8 {
            let (stop, made, failures) = (Arc::clone(&stop), Arc::clone(&made), Arc::clone(&failures));
            let address = pair.local;
            let lasting = number < 4;
            tasks.push(tokio::spawn(async move {
                let run = async {
                    let mut stream = app::connect(address).await?;
                    while !stop.load(Ordering::Relaxed) {
                        app::echoes(&mut stream, &[number; 2000]).await?;
                        made.fetch_add(1, Ordering::Relaxed);
                        if !lasting {
                            stream.shutdown().await?;
                            app::read_to_end(&mut stream).await?;
                            stream = app::connect(address).await?;
                        }
                        wait::pass(Duration::from_millis(5)).await;
                    }
                    Ok::<_, anyhow::Error>(())
                };
                if let Err(error) = run.await {
                    let kind = if lasting { "a lasting connection" } else { "a new connection" };
                    failures.lock().push(format!("{kind}: {error:#}"));
                }
            }));
        }
        Self { stop, made, failures, tasks }
    }

    fn good(&self) -> Result<()> {
        let failures = self.failures.lock();
        ensure!(failures.is_empty(), "lost under load: {failures:?}");
        Ok(())
    }

    /// Waits for some more round trips, so that there is load before and after whatever happens quickly.
    async fn goes_on(&self) -> Result<()> {
        let before = self.made.load(Ordering::Relaxed);
        wait::until("more round trips", SOON, || async {
            ensure!(self.made.load(Ordering::Relaxed) > before + 25, "hardly any load");
            self.good()
        })
        .await
    }

    async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            wait::within("the end of the load", Duration::from_secs(30), task).await??;
        }
        let failures = self.failures.lock();
        ensure!(failures.is_empty(), "lost under load: {failures:?}");
        Ok(())
    }
}

async fn generation(lictor: &Lictor) -> Result<u64> {
    Ok(lictor.metrics().await?.sum("material_generation"))
}

async fn rotations(world: &World, leaves: usize, roots: usize) -> Result<()> {
    let pair = world.pair(Manner::Echo).await?;
    wait::until("a way to api", SOON, || async { app::echoes(&mut app::connect(pair.local).await?, b"x").await })
        .await?;
    let load = Load::start(&pair);
    load.goes_on().await?;
    let sidecars = [&pair.web, &pair.api.lictor];
    if let Ok(handle) = pair.api.agent.handle() {
        for _ in 0..leaves {
            for (service, lictor) in [("web", sidecars[0]), ("api", sidecars[1])] {
                let before = generation(lictor).await?;
                handle.renew_leaf(service)?;
                wait::until("the new leaf in use", SOON, || async {
                    ensure!(generation(lictor).await? > before, "not yet");
                    load.good()
                })
                .await?;
            }
        }
    }
    for round in 0..roots {
        let before = [pair.web.json("/certs").await?, pair.api.lictor.json("/certs").await?];
        pair.api.agent.rotate_root().await?;
        // A real agent delays the leaves of a new root by up to 30 s; nobody may fall two rotations behind.
        for (lictor, before) in sidecars.into_iter().zip(before) {
            wait::until("a leaf of the new root in use", Duration::from_secs(60), || async {
                let now = lictor.json("/certs").await?;
                ensure!(leaf_serial(&now)? != leaf_serial(&before)?, "still the old leaf");
                load.good()
            })
            .await
            .with_context(|| format!("root rotation {round}"))?;
        }
        load.goes_on().await?;
    }
    load.end().await
}

/// The serial number of the leaf on the page `/certs`.
fn leaf_serial(certs: &Value) -> Result<String> {
    let serial = certs["leaf"]["serial"].as_str().with_context(|| format!("/certs shows no leaf.serial: {certs}"))?;
    Ok(serial.to_owned())
}

async fn holds_rotations_under_load_lose_no_connection(world: Arc<World>) -> Result<()> {
    let roots = if world.kind.is_real() { 1 } else { 2 };
    rotations(&world, 10, roots).await
}

async fn holds_fifty_leaf_and_five_root_rotations_lose_no_connection(world: Arc<World>) -> Result<()> {
    rotations(&world, 50, 5).await
}

// ---- outage -----------------------------------------------------------------------------------------------------------

async fn outage(world: &World, length: Duration) -> Result<()> {
    let options = Options { persistent: true, ..Options::default() };
    let mut api = world.inbound_with(Manner::Echo, options, json!({}), &[]).await?;
    let client = api.client("web").await?;
    let mut live = client.connect(api.public()).await?;
    app::echoes(&mut live, b"before").await?;
    api.agent.stop().await?;
    let begun = Instant::now();
    while begun.elapsed() < length {
        app::echoes(&mut live, b"meanwhile").await.context("the established connection")?;
        client.is_refused(api.public()).await.context("a new connection while nobody can authorize it")?;
        wait::pass(Duration::from_millis(500)).await;
    }
    ensure!(api.app.accepted() == 1, "the application saw a connection that nobody authorized");
    api.lictor.lives()?;
    api.agent.start().await?;
    let returned = Instant::now();
    wait::until("service again", Duration::from_secs(2), || async {
        app::echoes(&mut client.connect(api.public()).await?, b"after").await
    })
    .await?;
    app::echoes(&mut live, b"after").await?;
    api.lictor
        .ready_within(Duration::from_secs(2).saturating_sub(returned.elapsed()).max(Duration::from_millis(200)))
        .await
}

async fn holds_a_short_outage_of_the_agent_is_survived(world: Arc<World>) -> Result<()> {
    outage(&world, Duration::from_secs(5)).await
}

async fn holds_a_minute_without_the_agent_is_survived(world: Arc<World>) -> Result<()> {
    outage(&world, Duration::from_secs(60)).await
}

// ---- many clients -------------------------------------------------------------------------------------------------------

async fn idle(world: &World, wanted: usize) -> Result<()> {
    let mut api = world.inbound(Manner::Echo).await?;
    let identity = api.agent.identity("web").await?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    // Two descriptors for each connection, some for the rest of the process, and a quarter is kept for outbound. A
    // few are left for the good clients.
    let possible = usize::try_from(limit.saturating_sub(200) / 2 * 3 / 4).unwrap_or(usize::MAX);
    let count = wanted.min(possible.saturating_sub(50));
    let before = api.lictor.process().status("VmRSS")?;
    let deadline = Duration::from_secs(60 + wanted as u64 / 50);
    let (open, mut holder) = helper::idle_clients(world.folder(), api.public(), count, &identity, deadline).await?;
    let each = (api.lictor.process().status("VmRSS")?.saturating_sub(before)) / open.max(1) as u64;
    println!(
        "idle connections: {wanted} wanted, {possible} allowed by the descriptor limit of {limit}, {open} open; {each} \
         bytes of memory each"
    );
    ensure!(open == count, "{open} of {count} connections; the helper says {}", holder.output().tail(1));
    let client = Client::new(identity);
    for _ in 0..20 {
        app::echoes(&mut client.connect(api.public()).await?, b"good").await?;
    }
    api.lictor.lives()?;
    holder.kill().await?;
    wait::until("no idle connections", Duration::from_secs(30), || async {
        let left = api.lictor.metrics().await?.sum("connections_open");
        ensure!(left == 0, "{left} left");
        Ok(())
    })
    .await?;
    api.serves().await
}

async fn holds_a_thousand_idle_connections_do_not_stop_a_good_client(world: Arc<World>) -> Result<()> {
    idle(&world, 1000).await
}

async fn holds_ten_thousand_idle_connections_do_not_stop_a_good_client(world: Arc<World>) -> Result<()> {
    idle(&world, 10_000).await
}

async fn stuck(world: &World, cap: usize) -> Result<()> {
    let text = cap.to_string();
    let env = [("LICTOR_LIMITS__MAX_HANDSHAKES", text.as_str()), ("LICTOR_LIMITS__MAX_HANDSHAKES_PER_SOURCE", &text)];
    let api = world.inbound_with(Manner::Echo, Options::default(), json!({}), &env).await?;
    let client = api.client("web").await?;
    let mut open = Vec::new();
    for number in 0..5 * cap {
        let mut stream = app::connect(api.public()).await?;
        // Some send nothing, some the beginning of a record.
        if number % 2 == 0 {
            let _ = stream.write_all(&[22, 3, 1, 2]).await;
        }
        open.push(stream);
        if number % cap == cap - 1 {
            let mut good = client.connect(api.public()).await.with_context(|| format!("beside {number} stuck ones"))?;
            app::echoes(&mut good, b"good").await?;
        }
    }
    let metrics = api.lictor.metrics().await?;
    let in_flight = metrics.sum("handshakes_in_flight");
    ensure!(in_flight <= cap as u64, "{in_flight} handshakes in flight, the cap is {cap}");
    ensure!(metrics.label("handshake_given_up") > 0, "counted: {}", metrics.not_zero());
    ensure!(api.app.accepted() == 5, "the application saw {} connections", api.app.accepted());
    Ok(())
}

async fn holds_five_times_the_cap_of_stuck_handshakes_does_not_stop_a_good_client(world: Arc<World>) -> Result<()> {
    stuck(&world, 64).await
}

async fn holds_five_thousand_stuck_handshakes_do_not_stop_a_good_client(world: Arc<World>) -> Result<()> {
    stuck(&world, 1024).await
}

async fn holds_a_low_descriptor_limit_ends_nothing(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::echo().await?;
    let mut sidecar = Sidecar::new("api", app.address())?;
    let local = ports::free()?;
    sidecar.upstreams.push(upstream("db", local.port()));
    sidecar.register(&agent).await?;
    let mut lictor = world.proxy(&agent)?.args(&["-sidecar-for", "api-1"]).descriptors(256).start()?;
    lictor.ready().await?;
    let client = Client::new(agent.identity("web").await?);
    let mut first = client.connect(sidecar.public).await?;
    app::echoes(&mut first, b"first").await?;
    let mut flood = Vec::new();
    for _ in 0..600 {
        // Some are turned away before the handshake of TCP is over.
        flood.extend(app::connect(sidecar.public).await);
        if flood.len() % 3 == 0 {
            flood.extend(app::connect(local).await);
        }
    }
    app::echoes(&mut first, b"in the flood").await?;
    drop(flood);
    wait::until("service again", SOON, || async {
        app::echoes(&mut client.connect(sidecar.public).await?, b"after").await
    })
    .await?;
    app::is_closed(local).await?;
    ensure!(lictor.page("/live").await?.0 == 200);
    lictor.lives()
}

// ---- elsewhere --------------------------------------------------------------------------------------------------------------

async fn holds_no_http_proxy_is_ever_asked(world: Arc<World>) -> Result<()> {
    let stand_in = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", stand_in.local_addr()?);
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let env: Vec<(&str, &str)> = names.iter().map(|name| (*name, url.as_str())).collect();
    let api = world.inbound_with(Manner::Echo, Options::default(), json!({}), &env).await?;
    api.serves().await?;
    let asked = tokio::time::timeout(Duration::from_millis(300), stand_in.accept()).await;
    ensure!(asked.is_err(), "the proxy of the environment was asked");
    Ok(())
}

async fn holds_nothing_is_resumed_towards_an_upstream(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    for tls in Tls::EACH {
        let mut options = web.good().await?;
        (options.tls, options.tickets, options.hand) = (tls, true, true);
        let server = Server::start(&options).await?;
        web.add("api-1", server.address()).await?;
        wait::until("a way to the server", SOON, || async {
            let _local = app::connect(web.local).await?;
            let remote = wait::within("its other end", Duration::from_millis(700), server.next()).await??;
            ensure!(!remote.resumed(), "{tls:?}: a session was resumed");
            Ok(())
        })
        .await?;
        for _ in 0..3 {
            let mut local = app::connect(web.local).await?;
            let mut remote = server.next().await?;
            ensure!(!remote.resumed(), "{tls:?}: a session was resumed");
            // Tickets arrive with the first bytes of the server.
            remote.write_all(b"hello").await?;
            remote.shutdown().await?;
            app::read_to_end(&mut local).await?;
        }
    }
    Ok(())
}

async fn holds_dev_carries_a_request_and_obeys_a_deny(world: Arc<World>) -> Result<()> {
    let mut dev = world.command(&["dev", "-port-base", "0", "-ready-json"]).start()?;
    let line = dev.output().line(0, "its addresses", Duration::from_secs(20), |line| line.starts_with('{')).await?;
    let said: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
    let text = |path: &str| said.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let Some(web) = text("/web/url").or_else(|| text("/web")) else {
        bail!(NotRun(format!("lictor dev does not say where web is: {said}")));
    };
    let http = reqwest::Client::builder().no_proxy().build()?;
    let get = || async { Ok::<_, anyhow::Error>(http.get(&web).send().await?.text().await?) };
    wait::until("the caller's name in the answer", SOON, || async {
        let answer = get().await?;
        ensure!(answer.contains("svc/web"), "{answer}");
        Ok(())
    })
    .await?;
    dev.signal(rustix::process::Signal::INT)?;
    let code = dev.exit(SOON).await?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}
