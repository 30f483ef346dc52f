//! `GET|POST /v1/discovery-chain/:name`, for the plain case: one resolver, one target, no configuration entry.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::request::{Request, known_keys};
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};

pub(crate) async fn get(shared: &Shared, req: &Request, name: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let blocking = req.blocking()?;
    shared.check_datacenter(req)?;
    if name.is_empty() {
        return Err(Answer::text(400, dialect.bad_request("Missing chain name")));
    }
    let mut protocol = None;
    if req.method == http::Method::POST {
        let wrong = |text: String| Answer::text(400, dialect.bad_request(&format!("Request decoding failed: {text}")));
        let body = known_keys(
            req.json_object().map_err(wrong)?,
            &["OverrideMeshGateway", "OverrideProtocol", "OverrideConnectTimeout"],
            true,
        )
        .map_err(wrong)?;
        protocol = body.get("OverrideProtocol").and_then(Value::as_str).filter(|p| !p.is_empty()).map(str::to_owned);
    }
    let datacenter = req.param("compile-dc").filter(|d| !d.is_empty()).unwrap_or(&shared.options.datacenter);
    shared
        .read(|state| {
            resolve(state.acl.as_ref(), req.token.as_deref())
                .ok_or_else(|| "ACL not found".to_owned())
                .and_then(|c| c.need(Right::ServiceRead(name), dialect))
        })
        .map_err(|text| {
            Answer::forbidden(text)
                .with("X-Consul-Index", 1)
                .with("X-Consul-Knownleader", false)
                .with("X-Consul-Lastcontact", 0)
                .with("X-Consul-Query-Backend", "blocking-query")
        })?;
    // No configuration entry of a chain is kept, so the index moves with the catalog and nothing else.
    if blocking.index > 0 {
        let wait = shared.wait(blocking.wait, Duration::from_secs(300), true);
        let waited =
            shared.block(Endpoint::DiscoveryChain, wait, |s| (s.catalog.index > blocking.index).then_some(())).await;
        if let Waited::Refused(answer) = waited {
            return Err(answer);
        }
    }
    let (index, chain) = shared.read(|state| {
        let chain = compile(shared, state, name, datacenter, protocol.as_deref());
        (state.catalog.index, chain)
    });
    Ok(Answer::json(dialect, &json!({ "Chain": chain }))
        .with("X-Consul-Effective-Consistency", "leader")
        .with("X-Consul-Index", index.max(1))
        .with("X-Consul-Knownleader", true)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query"))
}

fn compile(shared: &Shared, state: &State, name: &str, datacenter: &str, protocol: Option<&str>) -> Value {
    let today = shared.options.dialect.is_today();
    let id =
        if today { format!("{name}.default.default.{datacenter}") } else { format!("{name}.default.{datacenter}") };
    let sni = format!("{name}.default.{datacenter}.internal.{}", state.ca.trust_domain());
    let configured = state
        .config_entries
        .get(&("service-defaults".to_owned(), name.to_owned()))
        .and_then(|e| e.get("Protocol"))
        .and_then(Value::as_str);
    let protocol = protocol.or(configured).unwrap_or("tcp");
    let mut target = Map::new();
    let mut put = |key: &str, value: Value| {
        target.insert(key.to_owned(), value);
    };
    put("ConnectTimeout", json!("5s"));
    put("ID", json!(id));
    put("Service", json!(name));
    put("Namespace", json!("default"));
    if today {
        put("Partition", json!("default"));
    }
    put("Datacenter", json!(datacenter));
    put("MeshGateway", json!({}));
    put("Subset", json!({}));
    if today {
        put("TransparentProxy", json!({}));
    }
    put("SNI", json!(sni));
    put("Name", json!(sni));
    let mut chain = Map::new();
    let mut put = |key: &str, value: Value| {
        chain.insert(key.to_owned(), value);
    };
    put("ServiceName", json!(name));
    put("Namespace", json!("default"));
    if today {
        put("Partition", json!("default"));
    }
    put("Datacenter", json!(datacenter));
    if today {
        put("Default", json!(true));
    }
    put("Protocol", json!(protocol));
    put("StartNode", json!(format!("resolver:{id}")));
    put(
        "Nodes",
        json!({
            (format!("resolver:{id}")): {
                "Type": "resolver",
                "Name": id,
                "Resolver": {"ConnectTimeout": "5s", "Default": true, "Target": id},
            }
        }),
    );
    put("Targets", json!({ (id.clone()): target }));
    if today {
        put("AutoVirtualIPs", json!([state.catalog.virtual_ip(name)]));
        put("ManualVirtualIPs", json!([]));
    }
    Value::Object(chain)
}
