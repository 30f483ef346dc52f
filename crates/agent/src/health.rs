//! `/v1/health/connect/:name`, `/v1/health/service/:name` and the catalog: plain, stale, cached, blocking.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::acl::{Caller, Right, resolve};
use crate::answer::Answer;
use crate::catalog::Service;
use crate::checks::Status;
use crate::request::{Blocking, Request};
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};
use crate::views;

/// Which instances of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that speak mTLS: proxies of the name, and native ones.
    Connect,
    /// Those that are registered under the name.
    Plain,
}

/// `GET /v1/health/{connect,service}/:name`
pub(crate) async fn get(shared: &Shared, req: &Request, which: Which, name: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let blocking = req.blocking()?;
    if name.is_empty() {
        return Err(Answer::text(400, "Missing service name"));
    }
    let datacenter = shared.check_datacenter(req)?;
    if dialect.is_today() {
        if req.param("sg").is_some_and(|v| !v.is_empty()) {
            return Err(Answer::text(500, "sameness groups are not supported in consul CE"));
        }
        if req.param("peer").is_some_and(|v| !v.is_empty()) {
            return Ok(finish(shared, req, &blocking, 1, json!([]), None));
        }
    }
    if req.param("filter").is_some_and(|v| !v.is_empty()) {
        return Err(Answer::text(500, "the development agent does not evaluate filter expressions"));
    }
    let endpoint = match which {
        Which::Connect => Endpoint::HealthConnect,
        Which::Plain => Endpoint::HealthService,
    };
    let question = Question {
        which,
        name,
        datacenter: &datacenter,
        passing: req.flag("passing"),
        tag: req.param("tag").filter(|t| !t.is_empty()),
    };
    // A blocking or cached call goes to the streaming backend, which knows no refusal.
    let streaming = blocking.index > 0 || blocking.cached;
    if streaming && dialect.is_today() {
        return stream(shared, req, endpoint, &question, &blocking).await;
    }
    let first = shared.read(|state| answer_of(shared, state, req, &question))?;
    if blocking.index == 0 || first.index > blocking.index {
        return Ok(finish(shared, req, &blocking, first.index, first.body, first.filtered));
    }
    let wait = shared.wait(blocking.wait, Duration::from_secs(300), false);
    wait_for_change(shared, endpoint, &question, &blocking, wait).await?;
    let last = shared.read(|state| answer_of(shared, state, req, &question))?;
    Ok(finish(shared, req, &blocking, last.index, last.body, last.filtered))
}

/// `GET /v1/catalog/{service,connect}/:name`
pub(crate) async fn catalog_service(
    shared: &Shared,
    req: &Request,
    which: Which,
    name: &str,
) -> Result<Answer, Answer> {
    req.check_enterprise(shared.options.dialect)?;
    let blocking = req.blocking()?;
    if name.is_empty() {
        return Err(Answer::text(400, "Missing service name"));
    }
    let datacenter = shared.check_datacenter(req)?;
    let question = Question {
        which,
        name,
        datacenter: &datacenter,
        passing: false,
        tag: req.param("tag").filter(|t| !t.is_empty()),
    };
    blocked(shared, &blocking, Endpoint::Catalog, |state| {
        let caller = known(state, req)?;
        let list: Vec<Value> = instances(state, &question, &shared.options.datacenter)
            .into_iter()
            .filter(|s| visible(&caller, s, &shared.options.node_name))
            .map(|s| views::catalog_entry(&shared.options, state, s))
            .collect();
        Ok((question.index(state), Value::Array(list)))
    })
    .await
}

/// `GET /v1/catalog/services`
pub(crate) async fn catalog_services(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    req.check_enterprise(shared.options.dialect)?;
    let blocking = req.blocking()?;
    let datacenter = shared.check_datacenter(req)?;
    blocked(shared, &blocking, Endpoint::Catalog, |state| {
        let caller = known(state, req)?;
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        names.insert("consul".to_owned(), Vec::new());
        for service in state.catalog.services.values() {
            let own = service.node.as_ref().map_or(&shared.options.datacenter, |n| &n.datacenter);
            if *own == datacenter && caller.may(Right::ServiceRead(&service.name)) {
                let tags = names.entry(service.name.clone()).or_default();
                for tag in &service.tags {
                    if !tags.contains(tag) {
                        tags.push(tag.clone());
                    }
                }
            }
        }
        let body: Map<String, Value> = names.into_iter().map(|(k, v)| (k, json!(v))).collect();
        Ok((state.catalog.index, Value::Object(body)))
    })
    .await
}

/// `GET /v1/catalog/nodes`
pub(crate) async fn catalog_nodes(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    req.check_enterprise(shared.options.dialect)?;
    let blocking = req.blocking()?;
    let datacenter = shared.check_datacenter(req)?;
    blocked(shared, &blocking, Endpoint::Catalog, |state| {
        let caller = known(state, req)?;
        let mut nodes: BTreeMap<String, Value> = BTreeMap::new();
        if datacenter == shared.options.datacenter {
            let own = views::node_view(&shared.options, state, None);
            nodes.insert(shared.options.node_name.clone(), own);
        }
        for service in state.catalog.services.values() {
            if let Some(node) = service.node.as_ref().filter(|n| n.datacenter == datacenter) {
                let view = views::node_view(&shared.options, state, Some(node));
                nodes.insert(node.name.clone(), view);
            }
        }
        let list: Vec<Value> =
            nodes.into_iter().filter(|(name, _)| caller.may(Right::NodeRead(name))).map(|(_, view)| view).collect();
        Ok((state.catalog.index, Value::Array(list)))
    })
    .await
}

/// What a call asks for.
pub(crate) struct Question<'a> {
    pub(crate) which: Which,
    pub(crate) name: &'a str,
    pub(crate) datacenter: &'a str,
    pub(crate) passing: bool,
    pub(crate) tag: Option<&'a str>,
}

impl Question<'_> {
    fn index(&self, state: &State) -> u64 {
        match self.which {
            Which::Connect => state.catalog.connect_index(self.name),
            Which::Plain => state.catalog.service_index(self.name),
        }
    }
}

/// The instances that the question is about, in the order of their IDs.
pub(crate) fn instances<'a>(state: &'a State, question: &Question<'_>, own_datacenter: &str) -> Vec<&'a Service> {
    state
        .catalog
        .services
        .values()
        .filter(|s| {
            let datacenter = s.node.as_ref().map_or(own_datacenter, |n| &n.datacenter);
            let name = match question.which {
                Which::Connect => s.connect_name(),
                Which::Plain => Some(s.name.as_str()),
            };
            datacenter == question.datacenter
                && name.is_some_and(|n| n.eq_ignore_ascii_case(question.name))
                && question.tag.is_none_or(|t| s.tags.iter().any(|own| own == t))
                && (!question.passing || state.catalog.status_of(&s.key()) == Status::Passing)
        })
        .collect()
}

struct Found {
    index: u64,
    body: Value,
    /// `Some(true)`: rights took something away. `None`: the version does not say.
    filtered: Option<bool>,
}

/// The plain answer, with the refusals of each dialect.
fn answer_of(shared: &Shared, state: &State, req: &Request, question: &Question<'_>) -> Result<Found, Answer> {
    let today = shared.options.dialect.is_today();
    let caller = known(state, req)?;
    if !caller.may(Right::ServiceRead(question.name)) {
        if today {
            return Err(Answer::forbidden("Permission denied"));
        }
        return Ok(Found { index: 1, body: json!([]), filtered: None });
    }
    let all = instances(state, question, &shared.options.datacenter);
    let total = all.len();
    let list: Vec<Value> = all
        .into_iter()
        .filter(|s| visible(&caller, s, &shared.options.node_name))
        .map(|s| views::health_entry(&shared.options, state, s, &json!([])))
        .collect();
    Ok(Found { index: question.index(state), filtered: today.then_some(list.len() < total), body: Value::Array(list) })
}

/// Today's streaming backend: no token sees an empty list at once, an unknown token an empty list after the whole
/// wait, a token that was deleted while in use the list of then, for ever.
async fn stream(
    shared: &Shared,
    req: &Request,
    endpoint: Endpoint,
    question: &Question<'_>,
    blocking: &Blocking,
) -> Result<Answer, Answer> {
    let wait = shared.wait(blocking.wait, Duration::from_secs(300), false);
    let memory =
        (req.token.clone().unwrap_or_default(), format!("{}:{}", question.datacenter, question.name.to_lowercase()));
    let unknown = shared.read(|s| resolve(s.acl.as_ref(), req.token.as_deref()).is_none());
    if unknown {
        let frozen = shared.read(|s| s.streamed.get(&memory).cloned());
        let (index, body) = frozen.unwrap_or_else(|| (1, json!([])));
        if blocking.index >= index {
            // Nothing changes any more for this caller.
            if let Waited::Refused(answer) = shared.block(endpoint, wait, |_| None::<()>).await {
                return Err(answer);
            }
        }
        return Ok(finish(shared, req, blocking, index, body, None));
    }
    let look = |state: &State| match answer_of(shared, state, req, question) {
        Ok(found) => (found.index, found.body),
        Err(_) => (state.catalog.index, json!([])),
    };
    let refused = shared.read(|state| !known(state, req).is_ok_and(|c| c.may(Right::ServiceRead(question.name))));
    let (mut index, mut body) = shared.read(look);
    if blocking.index > 0 && index <= blocking.index && !refused {
        wait_for_change(shared, endpoint, question, blocking, wait).await?;
        (index, body) = shared.read(look);
    }
    shared.quietly(|s| s.streamed.insert(memory, (index, body.clone())));
    Ok(finish(shared, req, blocking, index, body, None))
}

async fn wait_for_change(
    shared: &Shared,
    endpoint: Endpoint,
    question: &Question<'_>,
    blocking: &Blocking,
    wait: Duration,
) -> Result<(), Answer> {
    let waited = shared.block(endpoint, wait, |s| (question.index(s) > blocking.index).then_some(())).await;
    match waited {
        Waited::Refused(answer) => Err(answer),
        Waited::Done(()) | Waited::TimedOut => Ok(()),
    }
}

fn finish(
    shared: &Shared,
    req: &Request,
    blocking: &Blocking,
    index: u64,
    body: Value,
    filtered: Option<bool>,
) -> Answer {
    let streaming = blocking.index > 0 || blocking.cached;
    let mut answer = Answer::json(shared.options.dialect, &body)
        .with("X-Consul-Effective-Consistency", consistency(blocking))
        .with("X-Consul-Index", index.max(1))
        // The streaming backend never knows a leader, and that is no reason to worry.
        .with("X-Consul-Knownleader", !streaming && index > 1)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", if streaming { "streaming" } else { "blocking-query" });
    if streaming {
        let question = (req.path.to_lowercase(), req.token.clone());
        let cold = shared.quietly(|s| s.health_warm.insert(question));
        answer = if !blocking.cached {
            answer
        } else if cold {
            answer.with("X-Cache", "MISS")
        } else {
            answer.with("X-Cache", "HIT").with("Age", 0)
        };
    }
    if filtered == Some(true) {
        answer = answer.with("X-Consul-Results-Filtered-By-Acls", true);
    }
    answer
}

/// Blocks on the index of a catalog answer.
async fn blocked(
    shared: &Shared,
    blocking: &Blocking,
    endpoint: Endpoint,
    look: impl Fn(&State) -> Result<(u64, Value), Answer>,
) -> Result<Answer, Answer> {
    let (mut index, mut body) = shared.read(&look)?;
    if blocking.index > 0 && index <= blocking.index {
        let wait = shared.wait(blocking.wait, Duration::from_secs(300), true);
        let waited = shared
            .block(endpoint, wait, |s| match look(s) {
                Ok((now, _)) if now <= blocking.index => None,
                other => Some(other),
            })
            .await;
        match waited {
            Waited::Done(found) => (index, body) = found?,
            Waited::TimedOut => {}
            Waited::Refused(answer) => return Err(answer),
        }
    }
    Ok(Answer::json(shared.options.dialect, &body)
        .with("X-Consul-Effective-Consistency", consistency(blocking))
        .with("X-Consul-Index", index.max(1))
        .with("X-Consul-Knownleader", true)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query"))
}

fn consistency(blocking: &Blocking) -> &'static str {
    if blocking.stale {
        "stale"
    } else if blocking.consistent {
        "consistent"
    } else {
        "leader"
    }
}

fn known<'a>(state: &'a State, req: &Request) -> Result<Caller<'a>, Answer> {
    resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))
}

/// An instance needs service:read on its own name and node:read on its node.
fn visible(caller: &Caller<'_>, service: &Service, own_node: &str) -> bool {
    let node = service.node.as_ref().map_or(own_node, |n| &n.name);
    caller.may(Right::ServiceRead(&service.name)) && caller.may(Right::NodeRead(node))
}
