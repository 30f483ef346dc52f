//! An agent whose answers are at hand: no socket, no other process, so that what is measured is our side alone.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use lictor_core::{
    Destination, DestinationKind,
    consul::{AgentClient, ClientSettings},
    transport::{Bounds, Transport, TransportError},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What the agent says when it permits a connection.
pub const PERMITTED: &str =
    r#"{"Authorized":true,"Reason":"Matched L4 intention: web => db (precedence: 9, action: ALLOW)"}"#;

/// Answers a request by the last part of its path, and where nothing is said of that, all with the same.
#[derive(Debug)]
pub struct Canned {
    otherwise: Bytes,
    by_name: Mutex<HashMap<String, Bytes>>,
}

impl Canned {
    /// An agent that answers everything with `body`.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> Arc<Self> {
        Arc::new(Self { otherwise: body.into(), by_name: Mutex::default() })
    }

    /// From now on it answers with `body` where a path ends in `name`.
    pub fn say(&self, name: &str, body: impl Into<Bytes>) {
        self.by_name.lock().insert(name.to_owned(), body.into());
    }

    /// A client of it; must be called on a runtime.
    #[must_use]
    pub fn client(self: &Arc<Self>) -> AgentClient {
        AgentClient::new(self.clone(), ClientSettings::default())
    }
}

#[async_trait]
impl Transport for Canned {
    async fn exchange(&self, asked: http::Request<Bytes>, _: Bounds) -> Result<http::Response<Bytes>, TransportError> {
        let name = asked.uri().path().rsplit('/').next().unwrap_or_default();
        Ok(http::Response::new(self.by_name.lock().get(name).unwrap_or(&self.otherwise).clone()))
    }
}

/// A service as upstream.
#[must_use]
pub fn upstream(name: &str) -> Destination {
    Destination {
        kind: DestinationKind::Service,
        name: name.to_owned(),
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
    }
}

/// The agent's answer about a service with so many sidecars, all healthy: as `/v1/health/connect/:service` gives it,
/// some 1.3 KB for each. Lists with different `index` differ in their last instance.
///
/// # Panics
/// Never: it is JSON.
#[must_use]
pub fn health(service: &str, instances: usize, index: u64) -> Vec<u8> {
    let entry = |n: usize| {
        let index = if n + 1 == instances { index } else { 0 };
        let address = format!("10.{}.{}.{}", index % 200, n / 250, n % 250 + 1);
        let check = |id: &str, name: &str, service: &str| {
            json!({
                "Node": format!("node-{n}"), "CheckID": id, "Name": name, "Status": "passing", "Notes": "",
                "Output": "", "ServiceID": service, "ServiceName": service, "ServiceTags": [], "Type": "tcp",
                "Interval": "10s", "Timeout": "", "ExposedPort": 0, "Definition": {}, "CreateIndex": 17,
                "ModifyIndex": 43,
            })
        };
        let sidecar = format!("{service}-{n}-sidecar-proxy");
        json!({
            "Node": {
                "ID": format!("87a5695e-32b9-7629-eaa7-{n:012}"), "Node": format!("node-{n}"), "Address": address,
                "Datacenter": "dc1", "TaggedAddresses": {"lan": address, "lan_ipv4": address, "wan": address},
                "Meta": {"consul-network-segment": "", "consul-version": "1.22.0"}, "CreateIndex": 11, "ModifyIndex": 13,
            },
            "Service": {
                "Kind": "connect-proxy", "ID": sidecar, "Service": format!("{service}-sidecar-proxy"), "Tags": [],
                "Address": address, "Meta": Value::Null, "Port": 21000, "Weights": {"Passing": 1, "Warning": 1},
                "EnableTagOverride": false, "Connect": {}, "PeerName": "", "CreateIndex": 43, "ModifyIndex": 43,
                "Proxy": {
                    "DestinationServiceName": service, "DestinationServiceID": format!("{service}-{n}"),
                    "LocalServiceAddress": "127.0.0.1", "LocalServicePort": 5432, "Mode": "", "MeshGateway": {},
                    "Expose": {},
                },
            },
            "Checks": [
                check("serfHealth", "Serf Health Status", ""),
                check("service:1", "Connect Sidecar Listening", &sidecar),
                check("service:2", "Connect Sidecar Aliasing", &sidecar),
            ],
        })
    };
    serde_json::to_vec(&(0..instances).map(entry).collect::<Vec<_>>()).expect("it is JSON")
}
