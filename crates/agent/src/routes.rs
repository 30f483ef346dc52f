//! From a path to the room that answers it.

use crate::answer::Answer;
use crate::dialect::Dialect;
use crate::health::Which;
use crate::request::Request;
use crate::roots::Source;
use crate::stats::Endpoint;
use crate::store::Shared;
use crate::{
    agent_api, authorize, catalog_api, chain, checks, config_entries, health, intentions, leaf, managed, query,
    register, roots, servers, tokens,
};

/// What a path means; the text is an ID or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Leaf(String),
    Roots,
    ServerRoots,
    CaConfiguration,
    Authorize,
    ManagedProxy(String),
    Intentions,
    IntentionMatch,
    IntentionCheck,
    IntentionExact,
    IntentionById(String),
    Register,
    Deregister(String),
    AgentServices,
    AgentService(String),
    AgentChecks,
    CheckRegister,
    CheckDeregister(String),
    CheckReport(&'static str, String),
    AgentHealth { by_name: bool, what: String },
    AgentSelf,
    Health(Which, String),
    CatalogService(Which, String),
    CatalogRegister,
    CatalogDeregister,
    CatalogServices,
    CatalogNodes,
    QueryExecute(String),
    Queries,
    Query(String),
    Chain(String),
    ConfigPut,
    Config { kind: String, name: Option<String> },
    PolicyCreate,
    TokenCreate,
    TokenSelf,
    Token(String),
    Leader,
    Peers,
    Unknown,
}

impl Route {
    pub(crate) fn of(path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/v1/") else {
            return Self::Unknown;
        };
        // A name may hold a slash, so what takes a name takes the whole tail.
        let tail = |prefix: &str| rest.strip_prefix(prefix).map(str::to_owned);
        if let Some(name) = tail("agent/connect/ca/leaf/") {
            return Self::Leaf(name);
        }
        if let Some(id) = tail("agent/connect/proxy/") {
            return Self::ManagedProxy(id);
        }
        if let Some(id) = tail("agent/service/deregister/") {
            return Self::Deregister(id);
        }
        if let Some(id) = tail("agent/health/service/id/") {
            return Self::AgentHealth { by_name: false, what: id };
        }
        if let Some(name) = tail("agent/health/service/name/") {
            return Self::AgentHealth { by_name: true, what: name };
        }
        for verb in ["pass", "warn", "fail", "update"] {
            if let Some(id) = tail(&format!("agent/check/{verb}/")) {
                return Self::CheckReport(verb, id);
            }
        }
        if let Some(id) = tail("agent/check/deregister/") {
            return Self::CheckDeregister(id);
        }
        if let Some(name) = tail("health/connect/") {
            return Self::Health(Which::Connect, name);
        }
        if let Some(name) = tail("health/service/") {
            return Self::Health(Which::Plain, name);
        }
        if let Some(name) = tail("catalog/connect/") {
            return Self::CatalogService(Which::Connect, name);
        }
        if let Some(name) = tail("catalog/service/") {
            return Self::CatalogService(Which::Plain, name);
        }
        if let Some(name) = tail("discovery-chain/") {
            return Self::Chain(name);
        }
        match rest {
            "agent/connect/ca/roots" => return Self::Roots,
            "connect/ca/roots" => return Self::ServerRoots,
            "connect/ca/configuration" => return Self::CaConfiguration,
            "agent/connect/authorize" => return Self::Authorize,
            "connect/intentions" => return Self::Intentions,
            "connect/intentions/match" => return Self::IntentionMatch,
            "connect/intentions/check" => return Self::IntentionCheck,
            "connect/intentions/exact" => return Self::IntentionExact,
            "agent/service/register" => return Self::Register,
            "agent/services" => return Self::AgentServices,
            "agent/checks" => return Self::AgentChecks,
            "agent/check/register" => return Self::CheckRegister,
            "agent/self" => return Self::AgentSelf,
            "catalog/register" => return Self::CatalogRegister,
            "catalog/deregister" => return Self::CatalogDeregister,
            "catalog/services" => return Self::CatalogServices,
            "catalog/nodes" => return Self::CatalogNodes,
            "query" => return Self::Queries,
            "config" => return Self::ConfigPut,
            "acl/policy" => return Self::PolicyCreate,
            "acl/token" => return Self::TokenCreate,
            "acl/token/self" => return Self::TokenSelf,
            "status/leader" => return Self::Leader,
            "status/peers" => return Self::Peers,
            _ => {}
        }
        if let Some(id) = tail("connect/intentions/") {
            return Self::IntentionById(id);
        }
        if let Some(id) = tail("agent/service/") {
            return Self::AgentService(id);
        }
        if let Some(id) = tail("query/") {
            return match id.strip_suffix("/execute") {
                Some(id) => Self::QueryExecute(id.to_owned()),
                None => Self::Query(id),
            };
        }
        if let Some(what) = tail("config/") {
            return match what.split_once('/') {
                Some((kind, name)) => Self::Config { kind: kind.to_owned(), name: Some(name.to_owned()) },
                None => Self::Config { kind: what, name: None },
            };
        }
        if let Some(id) = tail("acl/token/") {
            return Self::Token(id);
        }
        Self::Unknown
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Leaf(_) => Endpoint::Leaf,
            Self::Roots => Endpoint::Roots,
            Self::ServerRoots => Endpoint::ServerRoots,
            Self::CaConfiguration => Endpoint::CaConfiguration,
            Self::Authorize => Endpoint::Authorize,
            Self::ManagedProxy(_) => Endpoint::ManagedProxy,
            Self::Intentions | Self::IntentionExact | Self::IntentionById(_) => Endpoint::Intentions,
            Self::IntentionMatch => Endpoint::IntentionMatch,
            Self::IntentionCheck => Endpoint::IntentionCheck,
            Self::Register => Endpoint::Register,
            Self::Deregister(_) => Endpoint::Deregister,
            Self::AgentServices => Endpoint::AgentServices,
            Self::AgentService(_) => Endpoint::AgentService,
            Self::AgentChecks | Self::CheckRegister | Self::CheckDeregister(_) => Endpoint::AgentChecks,
            Self::CheckReport(..) => Endpoint::CheckUpdate,
            Self::AgentHealth { .. } => Endpoint::AgentHealth,
            Self::AgentSelf => Endpoint::AgentSelf,
            Self::Health(Which::Connect, _) => Endpoint::HealthConnect,
            Self::Health(Which::Plain, _) => Endpoint::HealthService,
            Self::CatalogRegister
            | Self::CatalogDeregister
            | Self::CatalogService(..)
            | Self::CatalogServices
            | Self::CatalogNodes => Endpoint::Catalog,
            Self::QueryExecute(_) => Endpoint::QueryExecute,
            Self::Queries | Self::Query(_) => Endpoint::Query,
            Self::Chain(_) => Endpoint::DiscoveryChain,
            Self::ConfigPut | Self::Config { .. } => Endpoint::ConfigEntry,
            Self::PolicyCreate | Self::TokenCreate | Self::TokenSelf | Self::Token(_) => Endpoint::Acl,
            Self::Leader | Self::Peers => Endpoint::Status,
            Self::Unknown => Endpoint::Unknown,
        }
    }

    /// The methods that Consul names in `Allow`, after OPTIONS.
    fn methods(&self) -> &'static [&'static str] {
        match self {
            Self::Authorize => &["POST"],
            Self::CaConfiguration => &["GET", "PUT"],
            Self::Intentions => &["GET", "POST"],
            Self::IntentionExact => &["GET", "PUT", "DELETE"],
            Self::IntentionById(_) => &["GET", "PUT", "DELETE"],
            Self::Register
            | Self::Deregister(_)
            | Self::CheckRegister
            | Self::CheckDeregister(_)
            | Self::CheckReport(..)
            | Self::ConfigPut
            | Self::CatalogRegister
            | Self::CatalogDeregister
            | Self::PolicyCreate
            | Self::TokenCreate => &["PUT"],
            Self::Queries => &["GET", "POST"],
            Self::Query(_) | Self::Config { .. } | Self::Token(_) => &["GET", "DELETE"],
            Self::Chain(_) => &["GET", "POST"],
            _ => &["GET"],
        }
    }
}

/// The answer of a good agent.
pub(crate) async fn answer(shared: &Shared, route: &Route, req: &Request) -> Answer {
    let dialect = shared.options.dialect;
    if *route == Route::Unknown {
        return unknown_path(dialect);
    }
    let methods = route.methods();
    if !methods.contains(&req.method.as_str()) {
        let allow = format!("OPTIONS,{}", methods.join(","));
        if req.method == http::Method::OPTIONS {
            return Answer::done(dialect).with("Allow", allow);
        }
        return Answer::text(405, format!("method {} not allowed", req.method)).with("Allow", allow);
    }
    match dispatch(shared, route, req).await {
        Ok(answer) | Err(answer) => answer,
    }
}

/// The answer for a path that the version lacks.
pub(crate) fn unknown_path(dialect: Dialect) -> Answer {
    match dialect {
        Dialect::Today => Answer::text(404, "Invalid URL path: not a recognized HTTP API endpoint\n").bare(),
        Dialect::Old => {
            let mut answer = Answer::text(404, "").bare();
            answer.headers.clear();
            answer
        }
    }
}

async fn dispatch(shared: &Shared, route: &Route, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    if let Some(answer) = servers::error(shared, route, req) {
        return Err(answer);
    }
    match route {
        Route::Leaf(service) => leaf::get(shared, req, service).await,
        Route::Roots => roots::get(shared, req, Source::Agent).await,
        Route::ServerRoots => roots::get(shared, req, Source::Server).await,
        Route::CaConfiguration if req.method == http::Method::PUT => roots::put_configuration(shared, req),
        Route::CaConfiguration => roots::get_configuration(shared, req),
        Route::Authorize => authorize::post(shared, req),
        Route::ManagedProxy(id) => managed::get(shared, req, id).await,
        Route::Intentions if req.method == http::Method::POST => intentions::create(shared, req),
        Route::Intentions => intentions::list(shared, req).await,
        Route::IntentionMatch => intentions::matches(shared, req).await,
        Route::IntentionCheck => intentions::check(shared, req),
        Route::IntentionExact => intentions::exact(shared, req),
        Route::IntentionById(id) => intentions::by_id(shared, req, id),
        Route::Register => register::put(shared, req),
        Route::Deregister(id) => register::deregister(shared, req, id),
        Route::AgentServices => agent_api::services(shared, req),
        Route::AgentService(id) => agent_api::service(shared, req, id).await,
        Route::AgentChecks => checks::list(shared, req),
        Route::CheckRegister => checks::register(shared, req),
        Route::CheckDeregister(id) => checks::deregister(shared, req, id),
        Route::CheckReport(verb, id) => checks::report(shared, req, verb, id),
        Route::AgentHealth { by_name, what } => agent_api::health(shared, req, *by_name, what),
        Route::AgentSelf => agent_api::own(shared, req),
        Route::Health(which, name) => health::get(shared, req, *which, name).await,
        Route::CatalogService(which, name) => health::catalog_service(shared, req, *which, name).await,
        Route::CatalogRegister => catalog_api::register(shared, req),
        Route::CatalogDeregister => catalog_api::deregister(shared, req),
        Route::CatalogServices => health::catalog_services(shared, req).await,
        Route::CatalogNodes => health::catalog_nodes(shared, req).await,
        Route::QueryExecute(what) => query::execute(shared, req, what),
        Route::Queries if req.method == http::Method::POST => query::create(shared, req),
        Route::Queries => query::list(shared, req),
        Route::Query(id) => query::one(shared, req, id),
        Route::Chain(name) => chain::get(shared, req, name).await,
        Route::ConfigPut => config_entries::put(shared, req),
        Route::Config { kind, name } => config_entries::one(shared, req, kind, name.as_deref()),
        Route::PolicyCreate => tokens::create_policy(shared, req),
        Route::TokenCreate => tokens::create(shared, req),
        Route::TokenSelf => tokens::own(shared, req),
        Route::Token(accessor) => tokens::one(shared, req, accessor),
        Route::Leader => Ok(Answer::json(dialect, &serde_json::json!("127.0.0.1:8300"))),
        Route::Peers => Ok(Answer::json(dialect, &serde_json::json!(["127.0.0.1:8300"]))),
        Route::Unknown => Err(unknown_path(dialect)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_name_may_hold_a_slash_and_may_be_empty() {
        assert_eq!(Route::of("/v1/agent/connect/ca/leaf/a/b"), Route::Leaf("a/b".to_owned()));
        assert_eq!(Route::of("/v1/agent/connect/ca/leaf/"), Route::Leaf(String::new()));
    }

    #[test]
    fn fixed_paths_are_not_taken_for_ids() {
        assert_eq!(Route::of("/v1/agent/service/register"), Route::Register);
        assert_eq!(Route::of("/v1/agent/service/web-1"), Route::AgentService("web-1".to_owned()));
        assert_eq!(Route::of("/v1/connect/intentions/exact"), Route::IntentionExact);
        assert_eq!(Route::of("/v1/query/q/execute"), Route::QueryExecute("q".to_owned()));
        assert_eq!(Route::of("/v1/nothing"), Route::Unknown);
    }
}
