//! Two real datacenters: what the embedded agent plays in other cases, and what it cannot play.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Federation, Kind, Version},
    app::{self, App},
    envoy::{self, Envoy},
    lictor::{Lictor, Setup},
    peer::{Server, ServerOptions},
    ports,
    runner::{Case, case},
    wait::{self, LONG},
    world::{NotRun, Sidecar, World, add_instance, merge, upstream},
};

const ONE_AGENT: &str = "one embedded agent is no federation";

pub(crate) const CASES: &[Case] = &[
    case!(b20_sidecars_of_two_real_datacenters_call_each_other).since(1, 10).real(ONE_AGENT),
    case!(b22_sidecars_of_two_real_datacenters_call_each_other_after_a_rotation).real(ONE_AGENT).since(1, 11),
    case!(d13_an_upstream_in_a_real_second_datacenter_is_asked_and_proven_there).since(1, 10).real(ONE_AGENT),
    case!(d15_a_query_that_fails_over_to_a_real_datacenter_is_proven_there).since(1, 10).real(ONE_AGENT),
    case!(federation_an_intention_decides_over_clients_of_the_other_datacenter).since(1, 10).real(ONE_AGENT),
    case!(federation_envoy_reaches_us_through_mesh_gateways).since(1, 10).real(ONE_AGENT),
    case!(federation_an_upstream_behind_mesh_gateways_is_dialled_directly_and_told).since(1, 10).real(ONE_AGENT),
];

/// One datacenter of the federation: `api` and `web` with a sidecar each. `web` has `api` of the other one as its
/// upstream.
struct Side {
    app: App,
    /// Where `web` finds the other datacenter's `api`.
    local: SocketAddr,
    api: Lictor,
    web: Lictor,
}

impl Side {
    async fn start(world: &World, agent: &Agent, own: &str, other: &str) -> Result<Self> {
        let app = App::echo().await?;
        let api = Sidecar::new("api", app.address())?;
        api.register(agent).await?;
        let mut web = Sidecar::new("web", ports::free()?)?;
        let local = ports::free()?;
        web.upstreams.push(in_datacenter(upstream("api", local.port()), other));
        web.register(agent).await?;
        let start = |service: &str| {
            let name = format!("lictor of {service} in {own}");
            Setup::proxy(world, &name, agent)?.args(&["-sidecar-for", &format!("{service}-1")]).start()
        };
        let (mut api, mut web) = (start("api")?, start("web")?);
        api.ready().await?;
        web.ready().await?;
        Ok(Self { app, local, api, web })
    }

    async fn calls(&self) -> Result<()> {
        app::echoes(&mut app::connect(self.local).await?, b"into the other datacenter").await
    }
}

fn in_datacenter(mut upstream: Value, datacenter: &str) -> Value {
    merge(&mut upstream, json!({ "Datacenter": datacenter }));
    upstream
}

/// How many certificates the leaf's chain has, and how many of them name no issuer.
async fn chain(agent: &Agent, service: &str) -> Result<(usize, usize)> {
    let identity = agent.identity(service).await?;
    let mut nameless = 0;
    for certificate in &identity.chain {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("a certificate of the chain")?;
        nameless += usize::from(parsed.issuer().as_raw() == [0x30, 0]);
    }
    Ok((identity.chain.len(), nameless))
}

async fn both_ways(one: &Side, two: &Side) -> Result<()> {
    wait::until("a way from dc1 to dc2", LONG, || one.calls()).await?;
    wait::until("a way from dc2 to dc1", LONG, || two.calls()).await?;
    ensure!(one.app.accepted() > 0 && two.app.accepted() > 0, "the applications saw nothing");
    Ok(())
}

async fn b20_sidecars_of_two_real_datacenters_call_each_other(world: Arc<World>) -> Result<()> {
    let federation = Federation::start(&world).await?;
    let (one, two) = sides(&world, &federation).await?;
    let (length, _) = chain(&federation.two, "api").await?;
    ensure!(length > 1, "the leaf of the second datacenter has no intermediate");
    both_ways(&one, &two).await
}

async fn sides(world: &World, federation: &Federation) -> Result<(Side, Side)> {
    let one = Side::start(world, &federation.one, "dc1", "dc2").await?;
    let two = Side::start(world, &federation.two, "dc2", "dc1").await?;
    Ok((one, two))
}

async fn b22_sidecars_of_two_real_datacenters_call_each_other_after_a_rotation(world: Arc<World>) -> Result<()> {
    let federation = Federation::start(&world).await?;
    let (mut one, mut two) = sides(&world, &federation).await?;
    both_ways(&one, &two).await?;
    let (before, nameless) = chain(&federation.two, "api").await?;
    ensure!(nameless > 0, "every certificate of the second datacenter names its issuer");
    federation.one.rotate_root().await?;
    // The agents take up to half a minute for a new leaf, and no call may fail in between.
    wait::until("the cross certificate in the second datacenter's chain", 2 * LONG, || async {
        let calls = [one.calls().await, two.calls().await];
        if let Some(lost) = calls.into_iter().find_map(Result::err) {
            return Ok(Err(lost));
        }
        let (after, nameless) = chain(&federation.two, "api").await?;
        ensure!(after > before && nameless > 0, "{after} certificates, before there were {before}");
        Ok(Ok(()))
    })
    .await?
    .context("a call between the datacenters was lost while the root rotated")?;
    both_ways(&one, &two).await?;
    one.api.lives()?;
    one.web.lives()?;
    two.api.lives()?;
    two.web.lives()
}

async fn d13_an_upstream_in_a_real_second_datacenter_is_asked_and_proven_there(world: Arc<World>) -> Result<()> {
    let federation = Federation::start(&world).await?;
    let (one, two) = sides(&world, &federation).await?;
    wait::until("a way from dc1 to dc2", LONG, || one.calls()).await?;
    ensure!(two.app.accepted() > 0 && one.app.accepted() == 0, "the wrong datacenter was called");
    let asked = federation.one.requests("/v1/health/connect/api");
    ensure!(!asked.is_empty() && asked.iter().all(|head| head.contains("dc=dc2")), "asked elsewhere: {asked:?}");
    // An instance of the second datacenter that proves to be of the first is somebody else.
    federation.two.deregister("api-1-sidecar-proxy").await?;
    let (identity, roots) = (federation.one.identity("api").await?, federation.one.roots().await?);
    let imposter = Server::start(&ServerOptions::new(identity, roots)).await?;
    add_instance(&federation.two, "api", "imposter", imposter.address()).await?;
    wait::until("the imposter to be dialled", LONG, || async {
        app::is_closed(one.local).await?;
        ensure!(imposter.accepted() > 0, "not yet");
        Ok(())
    })
    .await
}

async fn d15_a_query_that_fails_over_to_a_real_datacenter_is_proven_there(world: Arc<World>) -> Result<()> {
    let federation = Federation::start(&world).await?;
    let two = Side::start(&world, &federation.two, "dc2", "dc1").await?;
    let query = json!({
        "Name": "find-api", "Service": { "Service": "api", "Failover": { "Datacenters": ["dc2"] } },
    });
    let (status, text) = federation.one.call(reqwest::Method::POST, "/v1/query", Some(query)).await?;
    ensure!(status == 200, "POST /v1/query: {status} {text}");
    let mut sidecar = Sidecar::new("web", ports::free()?)?;
    let local = ports::free()?;
    let mut through = upstream("find-api", local.port());
    merge(&mut through, json!({ "DestinationType": "prepared_query" }));
    sidecar.upstreams.push(through);
    sidecar.register(&federation.one).await?;
    let mut web = world.proxy(&federation.one)?.args(&["-sidecar-for", "web-1"]).start()?;
    web.ready().await?;
    let call = || async { app::echoes(&mut app::connect(local).await?, b"failed over").await };
    wait::until("a way into the other datacenter", LONG, call).await?;
    ensure!(two.app.accepted() > 0, "another application answered");
    // An instance at home is nearer, and then it is the one to be proven.
    let home = App::echo().await?;
    Sidecar::new("api", home.address())?.register(&federation.one).await?;
    let mut api = world.proxy(&federation.one)?.args(&["-sidecar-for", "api-1"]).start()?;
    api.ready().await?;
    wait::until("the way at home", LONG, || async {
        call().await?;
        ensure!(home.accepted() > 0, "not yet");
        Ok(())
    })
    .await
}

async fn federation_an_intention_decides_over_clients_of_the_other_datacenter(world: Arc<World>) -> Result<()> {
    let federation = Federation::start(&world).await?;
    let (one, two) = sides(&world, &federation).await?;
    both_ways(&one, &two).await?;
    for (rule, open) in [("deny", false), ("allow", true), ("deny", false)] {
        // Intentions are written in the primary and copied to the secondary.
        federation.one.intention("web", "api", json!({ "Action": rule })).await?;
        for (caller, callee) in [(&one, &two), (&two, &one)] {
            wait::until(rule, LONG, || async {
                let before = callee.app.accepted();
                let called = caller.calls().await;
                if open {
                    return called;
                }
                ensure!(called.is_err() && callee.app.accepted() == before, "still served");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

async fn federation_envoy_reaches_us_through_mesh_gateways(world: Arc<World>) -> Result<()> {
    envoy::is_there()?;
    if let Kind::Consul(consul) = &world.kind
        && consul.version < Version(1, 18)
    {
        // Seen with 1.10; the versions between were not tried.
        bail!(NotRun(format!("Envoys of today refuse what Consul {} has its mesh gateways do", consul.version)));
    }
    let federation = Federation::start(&world).await?;
    let app = App::echo().await?;
    Sidecar::new("api", app.address())?.register(&federation.two).await?;
    let mut ours = world.proxy(&federation.two)?.args(&["-sidecar-for", "api-1"]).start()?;
    ours.ready().await?;
    let _near = gateway(&world, &federation.one, federation.grpc[0], "dc1").await?;
    let far = gateway(&world, &federation.two, federation.grpc[1], "dc2").await?;
    let mut web = Sidecar::new("web", ports::free()?)?;
    let local = ports::free()?;
    web.upstreams.push(behind_gateways(local));
    web.register(&federation.one).await?;
    let args = ["-sidecar-for", "web-1"];
    let _theirs = envoy::start(&world, &federation.one, federation.grpc[0], "envoy of web", &args).await?;
    let call = || async { app::echoes(&mut app::connect(local).await?, b"through two gateways").await };
    wait::until("a way through the gateways", 2 * LONG, call).await?;
    // The gateways pass on what they cannot read, by the name in its hello.
    let passed = far.counted("cluster.api.default", "upstream_cx_total").await?;
    ensure!(passed > 0, "the gateway has passed nothing on");
    federation.one.deny("web", "api").await?;
    wait::until("the deny", LONG, || async {
        let before = app.accepted();
        ensure!(call().await.is_err() && app.accepted() == before, "still served");
        Ok(())
    })
    .await?;
    federation.one.allow("web", "api").await?;
    wait::until("the way through the gateways again", LONG, call).await?;
    ours.lives()
}

/// Envoy as the mesh gateway of a datacenter.
async fn gateway(world: &World, agent: &Agent, grpc: SocketAddr, datacenter: &str) -> Result<Envoy> {
    let address = ports::free()?.to_string();
    let name = format!("mesh gateway of {datacenter}");
    let args =
        ["-gateway", "mesh", "-register", "-service", "mesh-gateway", "-address", &address, "-wan-address", &address];
    envoy::start(world, agent, grpc, &name, &args).await
}

/// `api` of the second datacenter, to be reached through the gateway at hand.
fn behind_gateways(local: SocketAddr) -> Value {
    let mut upstream = in_datacenter(upstream("api", local.port()), "dc2");
    merge(&mut upstream, json!({ "MeshGateway": { "Mode": "local" } }));
    upstream
}

async fn federation_an_upstream_behind_mesh_gateways_is_dialled_directly_and_told(world: Arc<World>) -> Result<()> {
    let federation = Federation::start(&world).await?;
    let two = Side::start(&world, &federation.two, "dc2", "dc1").await?;
    let mut sidecar = Sidecar::new("web", ports::free()?)?;
    let local = ports::free()?;
    sidecar.upstreams.push(behind_gateways(local));
    sidecar.register(&federation.one).await?;
    let mut web = world.proxy(&federation.one)?.args(&["-sidecar-for", "web-1"]).start()?;
    web.ready().await?;
    web.says("mesh gateways are not served").await?;
    wait::until("the direct way", LONG, || async {
        app::echoes(&mut app::connect(local).await?, b"without a gateway").await
    })
    .await?;
    ensure!(two.app.accepted() > 0, "another application answered");
    Ok(())
}
