//! `PUT /v1/catalog/register` and `…/deregister`: instances on other nodes, which no agent watches.

use serde_json::{Map, Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::catalog::{self, Node, Service};
use crate::checks::{self, Check, Kind, Status};
use crate::register;
use crate::request::{Request, known_keys};
use crate::store::{Shared, State};

const KEYS: &[&str] = &[
    "ID",
    "Node",
    "Address",
    "TaggedAddresses",
    "NodeMeta",
    "Datacenter",
    "Service",
    "Check",
    "Checks",
    "SkipNodeUpdate",
    "Partition",
    "PeerName",
    "Locality",
];
const CHECK_KEYS: &[&str] = &[
    "Node",
    "CheckID",
    "Name",
    "Status",
    "Notes",
    "Output",
    "ServiceID",
    "ServiceName",
    "ServiceTags",
    "Type",
    "Definition",
    "Interval",
    "Timeout",
    "ExposedPort",
    "Namespace",
    "Partition",
    "PeerName",
];

/// `PUT /v1/catalog/register`
pub(crate) fn register(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let wrong = |text: String| Answer::text(400, format!("Request decode failed: {text}"));
    let mut body = known_keys(req.json_object().map_err(wrong)?, KEYS, true).map_err(wrong)?;
    let text =
        |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (node, address) = (text(&body, "Node"), text(&body, "Address"));
    if node.is_empty() {
        return Err(Answer::text(500, "Must provide node"));
    }
    if address.is_empty() {
        return Err(Answer::text(500, "Must provide address if SkipNodeUpdate is not set"));
    }
    let datacenter = match text(&body, "Datacenter") {
        own if own.is_empty() => shared.options.datacenter.clone(),
        known if known == shared.options.datacenter || shared.options.other_datacenters.contains(&known) => known,
        _ => return Err(Answer::text(500, "No path to datacenter")),
    };
    let Some(Value::Object(mut definition)) = body.remove("Service") else {
        return Err(Answer::text(400, "the development agent takes nodes only with a service on them"));
    };
    // Here the name stands under `Service` and not under `Name`.
    for key in ["Service", "service"] {
        if let Some(name) = definition.remove(key) {
            definition.insert("Name".to_owned(), name);
        }
    }
    let mut service = register::parse(definition, dialect).map_err(|e| Answer::text(400, e.text()))?.service;
    service.node = Some(Node { name: node, address, datacenter, agent: false });
    let key = service.key();
    let mut found = Vec::new();
    for check in [body.remove("Check"), body.remove("Checks")].into_iter().flatten() {
        let list = match check {
            Value::Array(list) => list,
            one => vec![one],
        };
        for check in list.iter().filter_map(Value::as_object) {
            let check = known_keys(check.clone(), CHECK_KEYS, true).map_err(wrong)?;
            let status = match text(&check, "Status").as_str() {
                "passing" => Status::Passing,
                "warning" => Status::Warning,
                "critical" | "" => Status::Critical,
                other => return Err(Answer::text(400, format!("Invalid check status: '{other}'"))),
            };
            let id = text(&check, "CheckID");
            let name = text(&check, "Name");
            found.push(fixed(&key, if id.is_empty() { &name } else { &id }, &name, status, &text(&check, "Output")));
        }
    }
    shared.update(|state| {
        resolve(state.acl.as_ref(), req.token.as_deref())
            .ok_or_else(|| Answer::forbidden("ACL not found"))?
            .need(Right::ServiceWrite(&service.name), dialect)
            .map_err(Answer::forbidden)?;
        put(state, service, found);
        Ok(Answer::json(dialect, &json!(true)))
    })
}

/// `PUT /v1/catalog/deregister`
pub(crate) fn deregister(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let wrong = |text: String| Answer::text(400, format!("Request decode failed: {text}"));
    let keys: &[&'static str] = &["Node", "ServiceID", "CheckID", "Datacenter", "Namespace", "Partition", "PeerName"];
    let body = known_keys(req.json_object().map_err(wrong)?, keys, true).map_err(wrong)?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
    let (node, id) = (text("Node").to_owned(), text("ServiceID").to_owned());
    if node.is_empty() {
        return Err(Answer::text(500, "Must provide node"));
    }
    shared.update(|state| {
        let gone: Vec<(String, String)> = state
            .catalog
            .services
            .iter()
            .filter(|(_, s)| s.node.as_ref().is_some_and(|n| n.name == node) && (id.is_empty() || s.id == id))
            .map(|(key, s)| (key.clone(), s.name.clone()))
            .collect();
        for (key, name) in gone {
            resolve(state.acl.as_ref(), req.token.as_deref())
                .ok_or_else(|| Answer::forbidden("ACL not found"))?
                .need(Right::ServiceWrite(&name), dialect)
                .map_err(Answer::forbidden)?;
            catalog::remove(state, &key);
        }
        Ok(Answer::json(dialect, &json!(true)))
    })
}

/// Adds or replaces an instance of another node together with its checks.
pub(crate) fn put(state: &mut State, service: Service, found: Vec<Check>) {
    let key = service.key();
    catalog::put(state, service);
    for check in found {
        state.catalog.checks.remove(&check.id);
        checks::put(state, check);
    }
    catalog::check_changed(state, &key);
}

/// A check that stays as it is set.
pub(crate) fn fixed(key: &str, id: &str, name: &str, status: Status, output: &str) -> Check {
    Check {
        // Other nodes may have checks of the same ID.
        id: format!("{key}/{id}"),
        name: name.to_owned(),
        service: key.to_owned(),
        status,
        notes: String::new(),
        output: output.to_owned(),
        kind: Kind::Fixed,
        create_index: 0,
        modify_index: 0,
    }
}
