//! Prepared queries: create, list, delete, execute.

use rand::seq::SliceRandom as _;
use serde_json::{Map, Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::checks::Status;
use crate::dialect::Dialect;
use crate::health::{Question, Which, instances};
use crate::request::{Request, known_keys};
use crate::store::{Shared, State};
use crate::views;

#[derive(Debug, Clone)]
pub(crate) struct PreparedQuery {
    id: String,
    name: String,
    service: String,
    failover: Vec<String>,
    only_passing: bool,
    connect: bool,
    tags: Vec<String>,
    /// The `Service` block as it came.
    raw: Value,
    index: u64,
}

const KEYS: &[&str] = &["ID", "Name", "Session", "Token", "Template", "Service", "DNS", "CreateIndex", "ModifyIndex"];

/// `POST /v1/query`
pub(crate) fn create(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let wrong = |text: String| Answer::text(400, dialect.bad_request(&format!("Request decode failed: {text}")));
    let body = known_keys(req.json_object().map_err(wrong)?, KEYS, false).map_err(wrong)?;
    let query = read(&body)?;
    let id = query.id.clone();
    shared.update(|state| {
        if !query.name.is_empty() && state.queries.iter().any(|q| q.name == query.name) {
            return Err(Answer::text(
                500,
                format!("raft apply failed: name '{}' aliases an existing query name", query.name),
            ));
        }
        put(state, query);
        Ok(Answer::json(dialect, &json!({ "ID": id })))
    })
}

/// Reads a definition; it gets a new ID.
pub(crate) fn read(body: &Map<String, Value>) -> Result<PreparedQuery, Answer> {
    let raw = body.get("Service").cloned().unwrap_or(Value::Null);
    let text = |key: &str| raw.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let service = text("Service");
    if service.is_empty() {
        return Err(Answer::text(500, "Invalid prepared query: Must provide a Service name to query"));
    }
    let flag = |key: &str| raw.get(key).and_then(Value::as_bool).unwrap_or(false);
    let list = |value: Option<&Value>| -> Vec<String> {
        value
            .and_then(Value::as_array)
            .map(|items| items.iter().filter_map(|i| i.as_str().map(str::to_owned)).collect())
            .unwrap_or_default()
    };
    Ok(PreparedQuery {
        id: uuid::Uuid::new_v4().to_string(),
        name: body.get("Name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        service,
        failover: list(raw.pointer("/Failover/Datacenters")),
        only_passing: flag("OnlyPassing"),
        connect: flag("Connect"),
        tags: list(raw.get("Tags")),
        raw,
        index: 0,
    })
}

pub(crate) fn put(state: &mut State, mut query: PreparedQuery) {
    query.index = state.next_index();
    state.queries.push(query);
}

/// `GET /v1/query`
pub(crate) fn list(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    req.check_enterprise(shared.options.dialect)?;
    let dialect = shared.options.dialect;
    let (list, index) = shared.read(|s| {
        let list: Vec<Value> = s.queries.iter().map(|q| definition(q, dialect)).collect();
        (list, s.queries.iter().map(|q| q.index).max().unwrap_or(1))
    });
    Ok(known(Answer::json(dialect, &Value::Array(list)), index))
}

/// `GET`, `DELETE /v1/query/:id`
pub(crate) fn one(shared: &Shared, req: &Request, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.update(|state| {
        let at = state.queries.iter().position(|q| q.id == id);
        let at = at.ok_or_else(|| unknown(dialect, Answer::text(404, "Query not found")))?;
        if req.method == http::Method::DELETE {
            state.queries.remove(at);
            return Ok(Answer::done(dialect));
        }
        let (view, index) = state.queries.get(at).map_or((Value::Null, 1), |q| (definition(q, dialect), q.index));
        Ok(known(Answer::json(dialect, &json!([view])), index))
    })
}

/// `GET /v1/query/:id/execute?connect=true`. It never blocks: the index is always 1.
pub(crate) fn execute(shared: &Shared, req: &Request, what: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.read(|state| {
        let Some(query) = state.queries.iter().find(|q| q.id == what || q.name == what) else {
            return Err(unknown(dialect, Answer::text(404, "Query not found")));
        };
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        let which = if query.connect || req.flag("connect") { Which::Connect } else { Which::Plain };
        let own = &shared.options.datacenter;
        let mut failovers = 0;
        let mut found = Vec::new();
        let mut at = own.clone();
        for (n, datacenter) in std::iter::once(own).chain(&query.failover).enumerate() {
            let question = Question { which, name: &query.service, datacenter, passing: query.only_passing, tag: None };
            found = instances(state, &question, own);
            // A critical instance is left out even where OnlyPassing is not set.
            found.retain(|s| {
                state.catalog.status_of(&s.key()) != Status::Critical && query.tags.iter().all(|t| s.tags.contains(t))
            });
            failovers = n;
            at.clone_from(datacenter);
            if !found.is_empty() {
                break;
            }
        }
        let total = found.len();
        found.retain(|s| {
            let node = s.node.as_ref().map_or(&shared.options.node_name, |n| &n.name);
            caller.may(Right::ServiceRead(&s.name)) && caller.may(Right::NodeRead(node))
        });
        let filtered = found.len() < total;
        found.shuffle(&mut rand::rng());
        let nodes: Vec<Value> =
            found.into_iter().map(|s| views::health_entry(&shared.options, state, s, &Value::Null)).collect();
        let mut body = json!({
            "Service": query.service,
            "Nodes": nodes,
            "DNS": {"TTL": ""},
            "Datacenter": at,
        });
        if dialect.is_today() {
            body["PeerName"] = json!("");
        }
        body["Failovers"] = json!(failovers);
        body["Index"] = json!(1);
        body["LastContact"] = json!(0);
        body["KnownLeader"] = json!(true);
        body["ConsistencyLevel"] = json!("leader");
        body["NotModified"] = json!(false);
        body["Backend"] = json!(0);
        if dialect.is_today() {
            body["ResultsFilteredByACLs"] = json!(filtered);
        }
        Ok(known(Answer::json(dialect, &body), 1))
    })
}

/// The headers of an answer that servers gave.
fn known(answer: Answer, index: u64) -> Answer {
    answer
        .with("X-Consul-Effective-Consistency", "leader")
        .with("X-Consul-Index", index)
        .with("X-Consul-Knownleader", true)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query")
}

/// The headers of a 404, which the old dialect leaves out.
fn unknown(dialect: Dialect, answer: Answer) -> Answer {
    if !dialect.is_today() {
        return answer;
    }
    answer
        .with("X-Consul-Index", 1)
        .with("X-Consul-Knownleader", false)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query")
}

fn definition(query: &PreparedQuery, dialect: Dialect) -> Value {
    let mut failover = json!({"NearestN": 0, "Datacenters": null});
    let mut service = Map::new();
    service.insert("Service".to_owned(), json!(query.service));
    if dialect.is_today() {
        failover["Targets"] = Value::Null;
        service.insert("SamenessGroup".to_owned(), json!(""));
    }
    for (key, value) in [
        ("Failover", failover),
        ("OnlyPassing", json!(false)),
        ("IgnoreCheckIDs", Value::Null),
        ("Near", json!("")),
        ("Tags", Value::Null),
        ("NodeMeta", Value::Null),
        ("ServiceMeta", Value::Null),
        ("Connect", json!(false)),
    ] {
        service.insert(key.to_owned(), value);
    }
    if dialect.is_today() {
        service.insert("Peer".to_owned(), json!(""));
    }
    if let Value::Object(given) = &query.raw {
        service.extend(given.clone());
    }
    json!({
        "ID": query.id,
        "Name": query.name,
        "Session": "",
        "Token": "",
        "Template": {"Type": "", "Regexp": "", "RemoveEmptyTags": false},
        "Service": service,
        "DNS": {"TTL": ""},
        "CreateIndex": query.index,
        "ModifyIndex": query.index,
    })
}
