//! The TLS library: what is told of it holds, and FIPS can be required.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    app::{self, Manner},
    runner::{Case, case},
    world::World,
};

pub(crate) const CASES: &[Case] = &[
    case!(crypto_what_is_agreed_is_within_what_is_told),
    case!(crypto_where_fips_is_required_it_is_there_or_nothing_starts),
];

/// What `lictor crypto` tells.
pub(crate) async fn report(world: &World) -> Result<Value> {
    let (code, said) = world.command(&["crypto", "-json"]).ends().await?;
    ensure!(code == 0, "exit code {code}: {said}");
    serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
}

async fn crypto_what_is_agreed_is_within_what_is_told(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::Echo).await?;
    let mut stream = tokio::net::TcpStream::connect(pair.local).await?;
    app::echoes(&mut stream, b"hello").await?;
    let told = report(&world).await?;
    for lictor in [&pair.api.lictor, &pair.web] {
        let page = lictor.json("/crypto").await?;
        ensure!(page == told, "the running one tells otherwise: {page}");
        let connections = lictor.json("/connections").await?;
        let agreed = &connections["open"][0]["tls"];
        let library = &page["libraries"][0];
        for (key, list) in [("version", "versions"), ("suite", "suites"), ("group", "groups")] {
            let among = library[list].as_array().is_some_and(|list| list.contains(&agreed[key]));
            ensure!(among, "{key} is not among the {list}: {agreed} {library}");
        }
        // Both ends prefer the same.
        ensure!(agreed["version"] == library["versions"][0], "{agreed}");
        ensure!(agreed["group"] == library["groups"][0], "{agreed}");
    }
    Ok(())
}

async fn crypto_where_fips_is_required_it_is_there_or_nothing_starts(world: Arc<World>) -> Result<()> {
    let told = report(&world).await?;
    let env = [("LICTOR_TLS__REQUIRE_FIPS", "true")];
    if told["libraries"][0]["fips"]["enabled"] == true {
        let api = world.inbound_with(Manner::Echo, Default::default(), serde_json::json!({}), &env).await?;
        return api.serves().await;
    }
    let agent = world.agent().await?;
    let (code, said) = world.proxy(&agent)?.args(&["-service", "api"]).env(env[0].0, env[0].1).ends().await?;
    ensure!(code == 6 && said.contains("tls.require_fips"), "exit code {code}: {said}");
    Ok(())
}
