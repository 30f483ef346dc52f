//! Intentions: who may connect to whom, and the endpoints that list, change and match them.

use std::time::Duration;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::acl::{Policy, Right, resolve};
use crate::answer::Answer;
use crate::dialect::Dialect;
use crate::register::several;
use crate::request::{Request, known_keys};
use crate::servers;
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};

/// One rule from a source to a destination, each a name or `*`.
#[derive(Debug, Clone)]
pub(crate) struct Intention {
    /// Only those that came through `POST /v1/connect/intentions` have one.
    pub(crate) id: Option<String>,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) rule: IntentionRule,
    description: String,
    meta: Value,
    created_at: String,
    updated_at: String,
    create_index: u64,
    modify_index: u64,
}

/// Either an action for the whole connection, or rules for requests, which no layer-4 proxy can apply: those deny.
#[derive(Debug, Clone)]
pub(crate) enum IntentionRule {
    Action(Policy),
    Permissions(Value),
}

impl Intention {
    pub(crate) fn precedence(&self) -> u8 {
        match (self.destination == "*", self.source == "*") {
            (false, false) => 9,
            (false, true) => 8,
            (true, false) => 6,
            (true, true) => 5,
        }
    }

    fn matches_destination(&self, name: &str) -> bool {
        self.destination == "*" || self.destination.eq_ignore_ascii_case(name)
    }

    fn matches_source(&self, name: &str) -> bool {
        self.source == "*" || self.source == name
    }

    /// The Reason of authorize when this one matched.
    pub(crate) fn reason(&self, dialect: Dialect) -> String {
        let (source, destination) = (&self.source, &self.destination);
        let precedence = self.precedence();
        let id = match (&self.id, dialect) {
            (Some(id), Dialect::Old) => format!("ID: {id}, "),
            _ => String::new(),
        };
        match &self.rule {
            IntentionRule::Action(action) => format!(
                "Matched L4 intention: default/{source} => default/{destination} ({id}Precedence: {precedence}, \
                 Action: {})",
                action.as_str().to_uppercase()
            ),
            IntentionRule::Permissions(permissions) => format!(
                "Matched L7 intention: default/{source} => default/{destination} ({id}Precedence: {precedence}, \
                 Permissions: {})",
                permissions.as_array().map_or(0, Vec::len)
            ),
        }
    }

    pub(crate) fn allows(&self) -> bool {
        matches!(self.rule, IntentionRule::Action(Policy::Allow))
    }

    fn render(&self) -> Value {
        let mut out = Map::new();
        if let Some(id) = &self.id {
            out.insert("ID".to_owned(), json!(id));
        }
        if !self.description.is_empty() {
            out.insert("Description".to_owned(), json!(self.description));
        }
        out.insert("SourceNS".to_owned(), json!("default"));
        out.insert("SourceName".to_owned(), json!(self.source));
        out.insert("DestinationNS".to_owned(), json!("default"));
        out.insert("DestinationName".to_owned(), json!(self.destination));
        out.insert("SourceType".to_owned(), json!("consul"));
        match &self.rule {
            IntentionRule::Action(action) => {
                out.insert("Action".to_owned(), json!(action.as_str()));
            }
            IntentionRule::Permissions(permissions) => {
                out.insert("Permissions".to_owned(), permissions.clone());
            }
        }
        if self.meta.as_object().is_some_and(|m| !m.is_empty()) {
            out.insert("Meta".to_owned(), self.meta.clone());
        }
        out.insert("Precedence".to_owned(), json!(self.precedence()));
        if let Some(id) = &self.id {
            // Opaque to everybody but Consul's own replication.
            out.insert("Hash".to_owned(), json!(opaque_hash(id, &self.updated_at)));
            out.insert("CreatedAt".to_owned(), json!(self.created_at));
            out.insert("UpdatedAt".to_owned(), json!(self.updated_at));
        }
        out.insert("CreateIndex".to_owned(), json!(self.create_index));
        out.insert("ModifyIndex".to_owned(), json!(self.modify_index));
        Value::Object(out)
    }
}

/// All intentions that speak about a destination, the one that decides first.
pub(crate) fn matching<'a>(state: &'a State, destination: &str) -> Vec<&'a Intention> {
    sorted(state.intentions.iter().filter(|i| i.matches_destination(destination)))
}

/// The intention that decides about `source` to `destination`.
pub(crate) fn decisive<'a>(state: &'a State, source: &str, destination: &str) -> Option<&'a Intention> {
    matching(state, destination).into_iter().find(|i| i.matches_source(source))
}

/// Creates or replaces the intention between the two names.
pub(crate) fn put(
    state: &mut State,
    source: &str,
    destination: &str,
    rule: IntentionRule,
    description: &str,
    meta: Value,
    with_id: bool,
) -> Option<String> {
    let index = state.next_index();
    state.intentions_index = index;
    let stamp = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let old = state
        .intentions
        .iter()
        .position(|i| i.source == source && i.destination == destination)
        .map(|at| state.intentions.remove(at));
    let id = old.as_ref().and_then(|o| o.id.clone()).or_else(|| with_id.then(|| uuid::Uuid::new_v4().to_string()));
    state.intentions.push(Intention {
        id: id.clone(),
        source: source.to_owned(),
        destination: destination.to_owned(),
        rule,
        description: description.to_owned(),
        meta,
        created_at: old.as_ref().map_or_else(|| stamp.clone(), |o| o.created_at.clone()),
        updated_at: stamp,
        create_index: old.as_ref().map_or(index, |o| o.create_index),
        modify_index: index,
    });
    id
}

/// Removes the intentions for which `gone` holds; says whether there were any.
pub(crate) fn remove(state: &mut State, gone: impl Fn(&Intention) -> bool) -> bool {
    let before = state.intentions.len();
    state.intentions.retain(|i| !gone(i));
    let changed = state.intentions.len() != before;
    if changed {
        state.intentions_index = state.next_index();
    }
    changed
}

/// `GET /v1/connect/intentions`
pub(crate) async fn list(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    req.check_enterprise(shared.options.dialect)?;
    blocking(shared, req, Endpoint::Intentions, |state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        let items: Vec<Value> = sorted(state.intentions.iter())
            .into_iter()
            .filter(|i| caller.may(Right::IntentionRead(&i.destination)))
            .map(Intention::render)
            .collect();
        Ok(Value::Array(items))
    })
    .await
}

/// `GET /v1/connect/intentions/match?by=destination&name=db`
pub(crate) async fn matches(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let by = req
        .param("by")
        .filter(|v| !v.is_empty())
        .ok_or_else(|| Answer::text(500, "required query parameter 'by' not set"))?;
    if !matches!(by, "source" | "destination") {
        return Err(Answer::text(500, "'by' parameter must be one of 'source' or 'destination'"));
    }
    let names: Vec<&str> =
        req.query.iter().filter(|(k, v)| k == "name" && !v.is_empty()).map(|(_, v)| v.as_str()).collect();
    if names.is_empty() {
        return Err(Answer::text(500, "required query parameter 'name' not set"));
    }
    blocking(shared, req, Endpoint::IntentionMatch, |state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        let mut out = Map::new();
        for name in &names {
            caller.need(Right::IntentionRead(name), dialect).map_err(Answer::forbidden)?;
            let found: Vec<Value> = if by == "destination" {
                matching(state, name)
            } else {
                sorted(state.intentions.iter().filter(|i| i.source == "*" || i.source.eq_ignore_ascii_case(name)))
            }
            .into_iter()
            .map(Intention::render)
            .collect();
            let found = if found.is_empty() { Value::Null } else { Value::Array(found) };
            out.insert((*name).to_owned(), found);
        }
        Ok(Value::Object(out))
    })
    .await
}

/// `GET /v1/connect/intentions/check?source=web&destination=db`
pub(crate) fn check(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let source = required(req, "source")?;
    let destination = required(req, "destination")?;
    shared.read(|state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        caller.need(Right::ServiceRead(destination), dialect).map_err(Answer::forbidden)?;
        // The intention policy of the agent is not looked at here, only in authorize.
        let allowed =
            decisive(state, source, destination).map_or_else(|| state.acl_default().allows(), Intention::allows);
        Ok(Answer::json(dialect, &json!({ "Allowed": allowed })))
    })
}

/// `GET`, `PUT`, `DELETE /v1/connect/intentions/exact?source=web&destination=db`
pub(crate) fn exact(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let source = required(req, "source")?;
    let destination = required(req, "destination")?;
    let same = |i: &Intention| i.source == source && i.destination == destination;
    if req.method == http::Method::GET {
        return shared.read(|state| {
            allowed(state, req, Right::IntentionRead(destination), dialect)?;
            state
                .intentions
                .iter()
                .find(|i| same(i))
                .map(|i| Answer::json(dialect, &i.render()))
                .ok_or_else(|| Answer::text(404, "Intention not found"))
        });
    }
    if req.method == http::Method::DELETE {
        return shared.update(|state| {
            allowed(state, req, Right::IntentionWrite(destination), dialect)?;
            remove(state, same);
            Ok(Answer::json(dialect, &json!(true)))
        });
    }
    let body = decode(req, dialect)?;
    shared.update(|state| {
        allowed(state, req, Right::IntentionWrite(destination), dialect)?;
        put(state, source, destination, body.rule, &body.description, body.meta, false);
        Ok(Answer::json(dialect, &json!(true)))
    })
}

/// `POST /v1/connect/intentions`
pub(crate) fn create(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let body = decode(req, dialect)?;
    let (Some(source), Some(destination)) = (&body.source, &body.destination) else {
        return Err(incomplete(dialect, body.source.is_some()));
    };
    shared.update(|state| {
        allowed(state, req, Right::IntentionWrite(destination), dialect)?;
        let beside = state.intentions.iter().filter(|i| i.destination == *destination);
        if beside.clone().any(|i| i.source == *source) {
            let text = format!("Sources[{}] defines \"{source}\" more than once", beside.count());
            return Err(Answer::text(500, text));
        }
        let id = put(state, source, destination, body.rule.clone(), &body.description, body.meta.clone(), true);
        Ok(Answer::json(dialect, &json!({ "ID": id })))
    })
}

/// `GET`, `PUT`, `DELETE /v1/connect/intentions/:id`
pub(crate) fn by_id(shared: &Shared, req: &Request, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    if id.len() != 36 {
        return Err(Answer::text(
            400,
            dialect.bad_request("failed config entry lookup: index error: UUID must be 36 characters"),
        ));
    }
    let find = |state: &State| {
        state
            .intentions
            .iter()
            .find(|i| i.id.as_deref() == Some(id))
            .cloned()
            .ok_or_else(|| Answer::text(404, "Intention not found"))
    };
    if req.method == http::Method::GET {
        return shared.read(|state| {
            let found = find(state)?;
            allowed(state, req, Right::IntentionRead(&found.destination), dialect)?;
            Ok(Answer::json(dialect, &found.render()))
        });
    }
    if req.method == http::Method::DELETE {
        return shared.update(|state| {
            if let Ok(found) = find(state) {
                allowed(state, req, Right::IntentionWrite(&found.destination), dialect)?;
                remove(state, |i| i.id.as_deref() == Some(id));
            }
            Ok(Answer::json(dialect, &json!(true)))
        });
    }
    let body = decode(req, dialect)?;
    shared.update(|state| {
        let found = find(state)?;
        allowed(state, req, Right::IntentionWrite(&found.destination), dialect)?;
        put(state, &found.source, &found.destination, body.rule, &body.description, body.meta, true);
        Ok(Answer::json(dialect, &json!({ "ID": id })))
    })
}

/// What each dialect says to an intention without a destination or a source.
fn incomplete(dialect: Dialect, has_source: bool) -> Answer {
    if dialect.is_today() {
        return Answer::forbidden("Permission denied");
    }
    let missing = if has_source { "DestinationName must be set" } else { "SourceName must be set" };
    Answer::text(500, several(&[missing.to_owned()]))
}

fn required<'a>(req: &'a Request, name: &str) -> Result<&'a str, Answer> {
    req.param(name)
        .filter(|v| !v.is_empty())
        .ok_or_else(|| Answer::text(500, format!("required query parameter '{name}' not set")))
}

fn allowed(state: &State, req: &Request, right: Right<'_>, dialect: Dialect) -> Result<(), Answer> {
    resolve(state.acl.as_ref(), req.token.as_deref())
        .ok_or_else(|| Answer::forbidden("ACL not found"))?
        .need(right, dialect)
        .map_err(Answer::forbidden)
}

struct Body {
    source: Option<String>,
    destination: Option<String>,
    rule: IntentionRule,
    description: String,
    meta: Value,
}

fn decode(req: &Request, dialect: Dialect) -> Result<Body, Answer> {
    let wrong = |text: String| Answer::text(400, dialect.bad_request(&format!("Request decode failed: {text}")));
    let body = known_keys(
        req.json_object().map_err(wrong)?,
        &[
            "ID",
            "Description",
            "SourceNS",
            "SourceName",
            "SourcePartition",
            "SourcePeer",
            "DestinationNS",
            "DestinationName",
            "DestinationPartition",
            "SourceType",
            "Action",
            "Permissions",
            "Meta",
            "Precedence",
            "CreatedAt",
            "UpdatedAt",
            "CreateIndex",
            "ModifyIndex",
            "Hash",
        ],
        true,
    )
    .map_err(wrong)?;
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let rule = rule_of(text("Action").as_deref(), body.get("Permissions"))
        .ok_or_else(|| Answer::text(500, "Sources[0].Action must be set to 'allow' or 'deny'"))?;
    Ok(Body {
        source: text("SourceName"),
        destination: text("DestinationName"),
        rule,
        description: text("Description").unwrap_or_default(),
        meta: body.get("Meta").cloned().unwrap_or(Value::Null),
    })
}

/// An action, or permissions that are not empty.
pub(crate) fn rule_of(action: Option<&str>, permissions: Option<&Value>) -> Option<IntentionRule> {
    if let Some(permissions) = permissions
        && permissions.as_array().is_some_and(|p| !p.is_empty())
    {
        return Some(IntentionRule::Permissions(permissions.clone()));
    }
    match action {
        Some("allow") => Some(IntentionRule::Action(Policy::Allow)),
        Some("deny") => Some(IntentionRule::Action(Policy::Deny)),
        _ => None,
    }
}

fn opaque_hash(id: &str, updated_at: &str) -> String {
    use base64::Engine as _;
    use sha1::Digest as _;
    base64::engine::general_purpose::STANDARD.encode(sha1::Sha1::digest(format!("{id}{updated_at}")))
}

fn sorted<'a>(items: impl Iterator<Item = &'a Intention>) -> Vec<&'a Intention> {
    let mut items: Vec<&Intention> = items.collect();
    items.sort_by(|a, b| {
        b.precedence()
            .cmp(&a.precedence())
            .then_with(|| a.destination.cmp(&b.destination))
            .then_with(|| a.source.cmp(&b.source))
    });
    items
}

/// Blocks on the index of all intentions, which is that of no single name.
async fn blocking(
    shared: &Shared,
    req: &Request,
    endpoint: Endpoint,
    render: impl Fn(&State) -> Result<Value, Answer>,
) -> Result<Answer, Answer> {
    let blocking = req.blocking()?;
    shared.check_datacenter(req)?;
    let refused = |answer: Answer| {
        answer
            .with("X-Consul-Index", 1)
            .with("X-Consul-Knownleader", false)
            .with("X-Consul-Lastcontact", 0)
            .with("X-Consul-Query-Backend", "blocking-query")
    };
    // The right is checked before anything waits.
    let index = shared.read(|state| render(state).map(|_| state.intentions_index)).map_err(refused)?;
    if blocking.index > 0 && index <= blocking.index {
        let wait = shared.wait(blocking.wait, Duration::from_secs(300), true);
        let waited = shared.block(endpoint, wait, |s| (s.intentions_index > blocking.index).then_some(())).await;
        if let Waited::Refused(answer) = waited {
            return Err(answer);
        }
    }
    let (index, body) =
        shared.read(|state| render(state).map(|body| (state.intentions_index, body))).map_err(refused)?;
    let mut answer = Answer::json(shared.options.dialect, &body);
    if blocking.cached {
        let question = (req.path.to_lowercase(), req.token.clone());
        let (cold, age) = shared.quietly(|s| (s.health_warm.insert(question), servers::age(s)));
        answer = if cold { answer.with("X-Cache", "MISS") } else { answer.with("X-Cache", "HIT").with("Age", age) };
    }
    if endpoint == Endpoint::IntentionMatch {
        answer = answer.with("X-Consul-Effective-Consistency", "leader");
    }
    Ok(answer
        .with("X-Consul-Index", index.max(1))
        .with("X-Consul-Knownleader", true)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query"))
}
