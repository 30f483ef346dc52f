//! Configuration entries: intentions as `consul intention create` and `consul config write` send them, and the
//! defaults that the agent merges into a sidecar's configuration.

use serde_json::{Map, Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::dialect::Dialect;
use crate::intentions::{self, IntentionRule};
use crate::register::several;
use crate::request::{Request, known_keys};
use crate::store::{Shared, State};

const INTENTION_KEYS: &[&str] =
    &["Kind", "Name", "Namespace", "Partition", "Meta", "Sources", "JWT", "CreateIndex", "ModifyIndex", "Hash"];
const SOURCE_KEYS: &[&str] = &[
    "Name",
    "Namespace",
    "Partition",
    "Peer",
    "SamenessGroup",
    "Action",
    "Permissions",
    "Precedence",
    "Type",
    "Description",
    "LegacyID",
    "LegacyMeta",
    "LegacyCreateTime",
    "LegacyUpdateTime",
];

/// `PUT /v1/config`
pub(crate) fn put(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let wrong = |text: String| Answer::text(400, dialect.bad_request(&format!("Request decoding failed: {text}")));
    let body = req.json_object().map_err(wrong)?;
    let kind = field(&body, "Kind");
    let name = field(&body, "Name");
    match kind.as_str() {
        "service-intentions" => {
            let rules = read_intentions(body).map_err(wrong)?;
            shared.update(|state| {
                allowed(state, req, Right::IntentionWrite(&name), dialect)?;
                // An entry holds all intentions of its destination.
                let kept: Vec<String> = rules.iter().map(|(s, _, _)| s.clone()).collect();
                intentions::remove(state, |i| i.destination == name && !kept.contains(&i.source));
                for (source, rule, description) in rules {
                    intentions::put(state, &source, &name, rule, &description, Value::Null, false);
                }
                Ok(Answer::json(dialect, &json!(true)))
            })
        }
        "proxy-defaults" | "service-defaults" => {
            let mut entry = read_defaults(body, &kind, dialect).map_err(wrong)?;
            if kind == "proxy-defaults" && name != "global" {
                return Err(Answer::text(400, "invalid name (\"global\" is the only one for proxy-defaults)"));
            }
            shared.update(|state| {
                allowed(state, req, Right::OperatorWrite, dialect)?;
                let index = state.next_index();
                entry.insert("CreateIndex".to_owned(), json!(index));
                entry.insert("ModifyIndex".to_owned(), json!(index));
                state.config_entries.insert((kind, name), Value::Object(entry));
                Ok(Answer::json(dialect, &json!(true)))
            })
        }
        other => Err(wrong(format!("invalid config entry kind: {other}"))),
    }
}

/// `GET`, `DELETE /v1/config/:kind/:name`, `GET /v1/config/:kind`
pub(crate) fn one(shared: &Shared, req: &Request, kind: &str, name: Option<&str>) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    if kind == "service-intentions" {
        return service_intentions(shared, req, name);
    }
    let Some(name) = name else {
        let list: Vec<Value> =
            shared.read(|s| s.config_entries.iter().filter(|((k, _), _)| k == kind).map(|(_, v)| v.clone()).collect());
        return Ok(known(shared, Answer::json(dialect, &Value::Array(list))));
    };
    let key = (kind.to_owned(), name.to_owned());
    if req.method == http::Method::DELETE {
        return shared.update(|state| {
            allowed(state, req, Right::OperatorWrite, dialect)?;
            state.config_entries.remove(&key);
            Ok(Answer::json(dialect, &json!({})))
        });
    }
    match shared.read(|s| s.config_entries.get(&key).cloned()) {
        Some(entry) => Ok(known(shared, Answer::json(dialect, &entry))),
        None => Err(known(shared, missing(kind, name))),
    }
}

fn service_intentions(shared: &Shared, req: &Request, name: Option<&str>) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    let Some(name) = name else {
        return Err(Answer::text(500, "the development agent lists intentions under /v1/connect/intentions"));
    };
    if req.method == http::Method::DELETE {
        return shared.update(|state| {
            allowed(state, req, Right::IntentionWrite(name), dialect)?;
            intentions::remove(state, |i| i.destination == name);
            Ok(Answer::json(dialect, &json!({})))
        });
    }
    let answer = shared.read(|state| {
        allowed(state, req, Right::IntentionRead(name), dialect)?;
        let sources: Vec<Value> = intentions::matching(state, name)
            .into_iter()
            .filter(|i| i.destination == name)
            .map(|i| {
                let mut source = json!({"Name": i.source, "Precedence": i.precedence(), "Type": "consul"});
                match &i.rule {
                    IntentionRule::Action(action) => source["Action"] = json!(action.as_str()),
                    IntentionRule::Permissions(list) => source["Permissions"] = list.clone(),
                }
                source
            })
            .collect();
        if sources.is_empty() {
            return Err(missing("service-intentions", name));
        }
        let index = state.intentions_index;
        let mut body = json!({"Kind": "service-intentions", "Name": name, "Sources": sources});
        if dialect.is_today() {
            body["Hash"] = json!(index);
        }
        body["CreateIndex"] = json!(index);
        body["ModifyIndex"] = json!(index);
        Ok(Answer::json(dialect, &body))
    });
    match answer {
        Ok(answer) => Ok(known(shared, answer)),
        Err(answer) => Err(known(shared, answer)),
    }
}

const DEFAULTS_KEYS: &[&str] = &[
    "Kind",
    "Name",
    "Namespace",
    "Partition",
    "Protocol",
    "Config",
    "Mode",
    "TransparentProxy",
    "MeshGateway",
    "Expose",
    "ExternalSNI",
    "UpstreamConfig",
    "Meta",
    "CreateIndex",
    "ModifyIndex",
];
const DEFAULTS_KEYS_TODAY: &[&str] = &[
    "AccessLogs",
    "BalanceInboundConnections",
    "Destination",
    "EnvoyExtensions",
    "FailoverPolicy",
    "Hash",
    "LocalConnectTimeoutMs",
    "LocalRequestTimeoutMs",
    "MaxInboundConnections",
    "MutualTLSMode",
    "PrioritizeByLocality",
    "RateLimits",
];

/// A defaults entry with the members that Consul always shows.
fn read_defaults(body: Map<String, Value>, kind: &str, dialect: Dialect) -> Result<Map<String, Value>, String> {
    let mut keys = DEFAULTS_KEYS.to_vec();
    if dialect.is_today() {
        keys.extend(DEFAULTS_KEYS_TODAY);
    }
    for key in body.keys() {
        if !keys.iter().any(|k| k.eq_ignore_ascii_case(&key.replace('_', ""))) {
            return Err(several(&[format!("invalid config key \"{key}\"")]));
        }
    }
    let mut entry = known_keys(body, &keys, true)?;
    let mut always = vec!["TransparentProxy", "MeshGateway", "Expose"];
    if dialect.is_today() && kind == "proxy-defaults" {
        always.push("AccessLogs");
    }
    for key in always {
        entry.entry(key).or_insert_with(|| json!({}));
    }
    if dialect.is_today() {
        entry.insert("Hash".to_owned(), json!(entry.len()));
    }
    Ok(entry)
}

/// The headers of every answer to a read.
fn known(shared: &Shared, answer: Answer) -> Answer {
    let index = shared.read(|s| {
        let entries = s.config_entries.values().filter_map(|e| e["ModifyIndex"].as_u64());
        entries.chain([s.intentions_index]).max().unwrap_or(1)
    });
    answer
        .with("X-Consul-Index", index)
        .with("X-Consul-Knownleader", true)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query")
}

fn read_intentions(body: Map<String, Value>) -> Result<Vec<(String, IntentionRule, String)>, String> {
    let body = known_keys(body, INTENTION_KEYS, true)?;
    let Some(Value::Array(sources)) = body.get("Sources") else {
        return Err("At least one source is required".to_owned());
    };
    let mut out = Vec::new();
    for source in sources {
        let Value::Object(source) = source else {
            return Err("a source is no object".to_owned());
        };
        let source = known_keys(source.clone(), SOURCE_KEYS, true)?;
        let text = |key: &str| source.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = text("Name");
        if name.is_empty() {
            return Err("Sources[].Name is required".to_owned());
        }
        let rule = intentions::rule_of(Some(text("Action")), source.get("Permissions"))
            .ok_or("Sources[].Action must be set to 'allow' or 'deny'")?;
        out.push((name.to_owned(), rule, text("Description").to_owned()));
    }
    Ok(out)
}

fn missing(kind: &str, name: &str) -> Answer {
    Answer::text(404, format!("Config entry not found for \"{kind}\" / \"{name}\""))
}

fn field(body: &Map<String, Value>, key: &str) -> String {
    body.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).and_then(|(_, v)| v.as_str()).unwrap_or_default().to_owned()
}

fn allowed(state: &State, req: &Request, right: Right<'_>, dialect: Dialect) -> Result<(), Answer> {
    resolve(state.acl.as_ref(), req.token.as_deref())
        .ok_or_else(|| Answer::forbidden("ACL not found"))?
        .need(right, dialect)
        .map_err(Answer::forbidden)
}
