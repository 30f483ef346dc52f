//! A client agent that has lost its servers: what it still answers from its cache, and how the rest fails.

use tokio::time::Instant;

use crate::answer::Answer;
use crate::dialect::Dialect;
use crate::request::Request;
use crate::routes::Route;
use crate::stats::Endpoint;
use crate::store::{Shared, State};

const NONE_KNOWN: &str = "No known Consul servers";
const REFUSED: &str =
    "rpc error getting client: failed to get conn: dial tcp 127.0.0.1:0->127.0.0.1:8300: connect: connection refused";

/// The servers are gone from now on: calls that are blocked on them end at once.
pub(crate) fn lose(dialect: Dialect, state: &mut State) {
    state.servers_lost.get_or_insert_with(Instant::now);
    for endpoint in [
        Endpoint::Roots,
        Endpoint::HealthConnect,
        Endpoint::HealthService,
        Endpoint::IntentionMatch,
        Endpoint::ServerRoots,
        Endpoint::Catalog,
        Endpoint::DiscoveryChain,
    ] {
        let answer = match endpoint {
            Endpoint::HealthConnect | Endpoint::HealthService => streaming(dialect),
            _ => Answer::text(500, REFUSED),
        };
        refuse_blocked(state, endpoint, answer);
    }
}

/// Ends the calls that are blocked at the endpoint right now.
pub(crate) fn refuse_blocked(state: &mut State, endpoint: Endpoint, answer: Answer) {
    let slot = state.refusals.entry(endpoint).or_insert_with(|| (0, answer.clone()));
    slot.0 += 1;
    slot.1 = answer;
}

/// The error of a call that needs servers, while there are none. `None`: the agent answers by itself.
pub(crate) fn error(shared: &Shared, route: &Route, req: &Request) -> Option<Answer> {
    let dialect = shared.options.dialect;
    let (warm_roots, warm_question) = shared.read(|state| {
        state.servers_lost?;
        let question = (req.path.to_lowercase(), req.token.clone());
        Some((state.roots_warm, state.health_warm.contains(&question)))
    })?;
    let blocking = req.param("index").is_some_and(|n| n != "0" && !n.is_empty());
    let cached = req.flag("cached");
    match route {
        Route::Roots if blocking => Some(Answer::text(500, REFUSED)),
        Route::Roots if warm_roots => None,
        Route::Health(..) if cached && warm_question && !blocking => None,
        Route::Health(..) if cached || blocking => Some(streaming(dialect)),
        Route::IntentionMatch if cached && warm_question && !blocking => None,
        Route::Roots | Route::Health(..) => Some(Answer::text(500, NONE_KNOWN)),
        Route::IntentionMatch | Route::QueryExecute(_) | Route::Chain(_) => Some(
            Answer::text(500, NONE_KNOWN)
                .with("X-Consul-Index", 1)
                .with("X-Consul-Knownleader", false)
                .with("X-Consul-Lastcontact", 0)
                .with("X-Consul-Query-Backend", "blocking-query"),
        ),
        // Leaf and authorize look into their own caches.
        Route::Leaf(_)
        | Route::Authorize
        | Route::ManagedProxy(_)
        | Route::Register
        | Route::Deregister(_)
        | Route::AgentServices
        | Route::AgentService(_)
        | Route::AgentChecks
        | Route::CheckRegister
        | Route::CheckDeregister(_)
        | Route::CheckReport(..)
        | Route::AgentHealth { .. }
        | Route::AgentSelf
        | Route::Unknown => None,
        _ => Some(Answer::text(500, NONE_KNOWN)),
    }
}

/// What leaf says that was never asked for.
pub(crate) fn cold_leaf() -> Answer {
    Answer::text(500, NONE_KNOWN)
}

/// What authorize says about a target that it was never asked about.
pub(crate) fn cold_authorize(dialect: Dialect) -> Answer {
    Answer::text(
        500,
        match dialect {
            Dialect::Today => format!("failed getting intention match: {NONE_KNOWN}"),
            Dialect::Old => NONE_KNOWN.to_owned(),
        },
    )
}

/// The `Age` of what the cache refreshes by itself: 0 while there are servers, then the time without them.
pub(crate) fn age(state: &State) -> u64 {
    state.servers_lost.map_or(0, |at| at.elapsed().as_secs())
}

fn streaming(dialect: Dialect) -> Answer {
    match dialect {
        Dialect::Today => Answer::text(503, "resolver error: resolver produced no addresses"),
        Dialect::Old => Answer::text(500, REFUSED),
    }
}
