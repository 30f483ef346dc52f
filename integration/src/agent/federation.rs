//! Two real servers of two datacenters on this machine, joined over the WAN port of each.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Agent, Kind, Options};
use crate::{
    ports, wait,
    world::{NotRun, World, merge},
};

/// The primary datacenter `dc1` and the secondary `dc2`, whose CA the primary has signed.
pub(crate) struct Federation {
    pub(crate) one: Agent,
    pub(crate) two: Agent,
    /// Where each gives Envoys their configuration.
    pub(crate) grpc: [SocketAddr; 2],
}

impl Federation {
    /// Starts both and waits until each asks the other, and the second signs with the first one's blessing.
    pub(crate) async fn start(world: &World) -> Result<Self> {
        ensure!(
            matches!(world.kind, Kind::Consul(_)),
            NotRun("the agents of two containers do not reach each other's WAN ports".to_owned())
        );
        let (first, second) = (ports::free()?, ports::free()?);
        let grpc = [ports::free()?, ports::free()?];
        let one = world.agent_with(options("dc1", first, grpc[0], json!({}))).await?;
        let join = json!({ "retry_join_wan": [first.to_string()], "retry_interval_wan": "1s" });
        let two = world.agent_with(options("dc2", second, grpc[1], join)).await?;
        let federation = Self { one, two, grpc };
        federation.joined().await?;
        Ok(federation)
    }

    async fn joined(&self) -> Result<()> {
        wait::until("two datacenters that know each other", wait::LONG, || async {
            for (agent, other) in [(&self.one, "dc2"), (&self.two, "dc1")] {
                let nodes = agent.get(&format!("/v1/catalog/nodes?dc={other}")).await?;
                ensure!(nodes.as_array().is_some_and(|nodes| !nodes.is_empty()), "no node of {other} yet");
            }
            let (one, two) = (self.one.roots().await?, self.two.roots().await?);
            ensure!(!one.is_empty() && one.first() == two.first(), "each has a root of its own");
            let leaf = self.two.get("/v1/agent/connect/ca/leaf/first").await?;
            let chain = leaf["CertPEM"].as_str().context("no CertPEM")?;
            ensure!(chain.matches("BEGIN CERTIFICATE").count() > 1, "the second signs without its intermediate");
            Ok(())
        })
        .await
    }
}

fn options(datacenter: &str, wan: SocketAddr, grpc: SocketAddr, join: Value) -> Options {
    let mut more = json!({
        "datacenter": datacenter, "primary_datacenter": "dc1", "node_name": format!("server-{datacenter}"),
        "connect": { "enabled": true }, "ports": { "serf_wan": wan.port(), "grpc": grpc.port() },
    });
    merge(&mut more, join);
    Options { more, ..Options::default() }
}
