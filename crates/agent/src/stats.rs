//! What the agent has seen: calls, connections, the questions of authorize.

use std::collections::{BTreeMap, VecDeque};

/// An endpoint, or a family of them, as counters and faults name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// `/v1/agent/connect/ca/leaf/:service`
    Leaf,
    /// `/v1/agent/connect/ca/roots`
    Roots,
    /// `/v1/connect/ca/roots`
    ServerRoots,
    /// `/v1/connect/ca/configuration`
    CaConfiguration,
    /// `/v1/agent/connect/authorize`
    Authorize,
    /// `/v1/agent/connect/proxy/:id`
    ManagedProxy,
    /// `/v1/connect/intentions` and `…/exact`, `…/:id`
    Intentions,
    /// `/v1/connect/intentions/match`
    IntentionMatch,
    /// `/v1/connect/intentions/check`
    IntentionCheck,
    /// `/v1/agent/service/register`
    Register,
    /// `/v1/agent/service/deregister/:id`
    Deregister,
    /// `/v1/agent/services`
    AgentServices,
    /// `/v1/agent/service/:id`
    AgentService,
    /// `/v1/agent/checks`, `/v1/agent/check/register`, `…/deregister/:id`
    AgentChecks,
    /// `/v1/agent/check/{pass,warn,fail,update}/:id`
    CheckUpdate,
    /// `/v1/agent/health/service/…`
    AgentHealth,
    /// `/v1/agent/self`
    AgentSelf,
    /// `/v1/health/connect/:name`
    HealthConnect,
    /// `/v1/health/service/:name`
    HealthService,
    /// `/v1/catalog/…`
    Catalog,
    /// `/v1/query/:id/execute`
    QueryExecute,
    /// `/v1/query`, `/v1/query/:id`
    Query,
    /// `/v1/discovery-chain/:name`
    DiscoveryChain,
    /// `/v1/config…`
    ConfigEntry,
    /// `/v1/acl/…`
    Acl,
    /// `/v1/status/…`
    Status,
    /// A path that this agent does not serve.
    Unknown,
}

/// One request as it came, without its token.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Seen {
    /// Where it went.
    pub endpoint: Endpoint,
    /// `GET`, `PUT`, `POST`, `DELETE`.
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Whether a token came with it.
    pub with_token: bool,
    /// The `User-Agent`, if any.
    pub user_agent: Option<String>,
}

/// One question to `/v1/agent/connect/authorize`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AuthorizeCall {
    /// The body as sent.
    pub body: String,
    /// The status of the answer.
    pub status: u16,
    /// The body of the answer.
    pub answer: String,
}

/// Counters since the start of the agent. They outlive stop and start of the listener.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Stats {
    /// Requests that arrived, by endpoint.
    pub calls: BTreeMap<Endpoint, u64>,
    /// Answers that were made, by endpoint. A call that hangs is not among them.
    pub answers: BTreeMap<Endpoint, u64>,
    /// Calls that are blocked right now, by endpoint.
    pub blocked: BTreeMap<Endpoint, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Connections that are open right now.
    pub open_connections: usize,
    /// The most connections that were ever open at once.
    pub most_connections: usize,
    /// Connections that were accepted.
    pub connections: u64,
    /// Connections that got the raw 429.
    pub refused_connections: u64,
    /// The newest 10 000 questions of authorize.
    pub authorizes: VecDeque<AuthorizeCall>,
    /// The newest 10 000 requests.
    pub requests: VecDeque<Seen>,
    /// TCP checks that were performed.
    pub tcp_checks: u64,
}

const KEPT: usize = 10_000;

impl Stats {
    /// Requests that arrived at `endpoint`.
    pub fn calls(&self, endpoint: Endpoint) -> u64 {
        self.calls.get(&endpoint).copied().unwrap_or(0)
    }

    /// Answers that `endpoint` has made.
    pub fn answers(&self, endpoint: Endpoint) -> u64 {
        self.answers.get(&endpoint).copied().unwrap_or(0)
    }

    /// Calls that are blocked at `endpoint` right now.
    pub fn blocked(&self, endpoint: Endpoint) -> u64 {
        self.blocked.get(&endpoint).copied().unwrap_or(0)
    }

    pub(crate) fn arrived(&mut self, seen: Seen) {
        *self.calls.entry(seen.endpoint).or_default() += 1;
        push(&mut self.requests, seen);
    }

    pub(crate) fn answered(&mut self, endpoint: Endpoint, status: u16) {
        *self.answers.entry(endpoint).or_default() += 1;
        *self.statuses.entry(status).or_default() += 1;
    }

    pub(crate) fn authorized(&mut self, call: AuthorizeCall) {
        push(&mut self.authorizes, call);
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == KEPT {
        queue.pop_front();
    }
    queue.push_back(item);
}
