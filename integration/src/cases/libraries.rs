//! The TLS libraries among each other: a sidecar on one meets a sidecar on another, each a process of its own.
//!
//! Two of ours agree on TLS 1.3. What a library does in TLS 1.2 across processes is seen by the cases with the peers of
//! this harness and with the openssl command, which the whole suite runs over each binary.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    app::{self, App, Manner, pattern},
    lictor::{Lictor, Setup, libraries},
    ports,
    runner::{Case, case},
    wait::{self, SOON},
    world::{Inbound, NotRun, Sidecar, World, upstream},
};

pub(crate) const CASES: &[Case] = &[case!(libraries_meet_each_other_in_both_directions).heavy()];

async fn libraries_meet_each_other_in_both_directions(world: Arc<World>) -> Result<()> {
    let libraries = libraries()?;
    if libraries.len() < 2 {
        bail!(NotRun("LICTOR_BINS names fewer than two libraries".to_owned()));
    }
    for (caller, calling) in &libraries {
        for (server, serving) in &libraries {
            for hybrid in [true, false] {
                let meeting = meet(&world, calling, serving, hybrid);
                meeting.await.with_context(|| format!("{caller} calls {server}, hybrid wished: {hybrid}"))?;
            }
        }
    }
    Ok(())
}

/// The sidecar of `web` on one library calls that of `api` on another: bytes, what was agreed, and a deny.
async fn meet(world: &World, calling: &Path, serving: &Path, hybrid: bool) -> Result<()> {
    let agent = world.agent().await?;
    let app = App::start(Manner::Echo).await?;
    let api = Sidecar::new("api", app.address())?;
    api.register(&agent).await?;
    let mut web = Sidecar::new("web", ports::free()?)?;
    let local = ports::free()?;
    web.upstreams.push(upstream("api", local.port()));
    web.register(&agent).await?;

    let start = |name: &str, binary: &Path, service: String| -> Result<Lictor> {
        let setup = Setup::proxy(world, name, &agent)?.binary(binary).args(&["-sidecar-for", &service]);
        setup.env("LICTOR_TLS__HYBRID", if hybrid { "true" } else { "false" }).start()
    };
    let mut server = start("lictor of api", serving, api.service_id())?;
    server.ready().await?;
    let mut client = start("lictor of web", calling, web.service_id())?;
    client.ready().await?;
    let api = Inbound { agent, app, sidecar: api, lictor: server };

    let mut lasting = wait::until("a way to api", SOON, || async {
        let mut stream = app::connect(local).await?;
        app::echoes(&mut stream, b"hello").await?;
        Ok(stream)
    })
    .await?;
    // More than one record, so that both seal and open at their full length.
    app::echoes(&mut lasting, &pattern(100_000)).await?;
    agrees(&api.lictor, &client, hybrid).await?;

    api.agent.deny("web", "api").await?;
    wait::until("the deny", SOON, || async {
        let before = api.app.bytes();
        let refused = async { app::echoes(&mut app::connect(local).await?, b"denied").await };
        ensure!(wait::within("an end", Duration::from_secs(5), refused).await?.is_err(), "still served");
        ensure!(api.app.bytes() == before, "bytes arrived");
        Ok(())
    })
    .await
}

/// Both tell of the same version, suite and group; the hybrid group where it is wished and both have it.
async fn agrees(server: &Lictor, client: &Lictor, hybrid: bool) -> Result<()> {
    const HYBRID: &str = "X25519MLKEM768";
    let (served, called) = (agreed(server).await?, agreed(client).await?);
    ensure!(served == called, "the server says {served}, the client says {called}");
    ensure!(served["version"] == "TLSv1.3" && served["suite"] == "TLS_AES_128_GCM_SHA256", "{served}");
    let mut both_have_it = hybrid;
    for lictor in [server, client] {
        let crypto = lictor.json("/crypto").await?;
        let groups = crypto["libraries"][0]["groups"].as_array().context("no groups")?;
        both_have_it &= groups.contains(&Value::from(HYBRID));
    }
    ensure!((served["group"] == HYBRID) == both_have_it, "hybrid on both: {both_have_it}, agreed: {served}");
    Ok(())
}

/// What the open connection of a sidecar agreed on.
async fn agreed(lictor: &Lictor) -> Result<Value> {
    let connections = lictor.json("/connections").await?;
    let tls = &connections["open"][0]["tls"];
    ensure!(tls.is_object(), "no open connection: {connections}");
    Ok(tls.clone())
}
