//! How we get on with the agent: reachable or not, calls and errors by class.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::Instant};

use super::client::{CallClass, CallError};

/// How often, at most, the agent's return wakes the loops that wait for it.
const WAKE_EVERY: Duration = Duration::from_secs(1);

/// What became of a call, as a closed set for metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallOutcome {
    /// 200.
    Ok,
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// The connection broke, or what came is not HTTP.
    Broken,
    /// The answer is larger than it may be.
    TooLarge,
    /// 403: the token lacks a right, or is unknown.
    Forbidden,
    /// 404.
    NotFound,
    /// 429: a limit of the agent.
    Overloaded,
    /// Any other status below 500 that is not 200.
    Refused,
    /// 500 and above.
    AgentError,
}

impl CallOutcome {
    /// All outcomes, for tables of counters.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Connect,
        Self::Timeout,
        Self::Broken,
        Self::TooLarge,
        Self::Forbidden,
        Self::NotFound,
        Self::Overloaded,
        Self::Refused,
        Self::AgentError,
    ];

    /// The stable name used as metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::TooLarge => "too_large",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Overloaded => "overloaded",
            Self::Refused => "refused",
            Self::AgentError => "agent_error",
        }
    }
}

/// How we get on with the agent, at one moment: what [`AgentClient::health`](super::AgentClient::health) gives.
#[derive(Clone, Debug, Default)]
pub struct AgentHealth {
    /// Whether the last exchange reached the agent; `None` before the first one has ended.
    pub reachable: Option<bool>,
    /// When the agent was reached last.
    pub last_reached: Option<SystemTime>,
    /// The newest error in words, with its time. It stays after recovery, for whoever looks for a cause.
    pub last_error: Option<(SystemTime, String)>,
    /// How often calls of each class had each outcome; pairs that never happened are left out.
    pub calls: Vec<(CallClass, CallOutcome, u64)>,
}

/// Where calls report to.
#[derive(Debug)]
pub(super) struct Recorder {
    counts: [[AtomicU64; CallOutcome::ALL.len()]; CallClass::ALL.len()],
    reach: Mutex<Reach>,
    returned: Notify,
}

#[derive(Debug, Default)]
struct Reach {
    reachable: Option<bool>,
    last_reached: Option<SystemTime>,
    last_error: Option<(SystemTime, String)>,
    last_wake: Option<Instant>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            counts: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            reach: Mutex::default(),
            returned: Notify::new(),
        }
    }

    /// Counts a call. `blocking` calls that time out say nothing about the agent: some versions never return them.
    pub(super) fn record(&self, class: CallClass, blocking: bool, error: Option<&CallError>) {
        let outcome = error.map_or(CallOutcome::Ok, CallError::outcome);
        self.counts[class as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
        let reached = match outcome {
            CallOutcome::Connect | CallOutcome::Broken => Some(false),
            CallOutcome::Timeout if blocking => None,
            CallOutcome::Timeout => Some(false),
            _ => Some(true),
        };
        let mut reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = error.filter(|_| reached.is_some()) {
            reach.last_error = Some((SystemTime::now(), error.to_string()));
        }
        if reached == Some(true) {
            reach.last_reached = Some(SystemTime::now());
            if reach.reachable == Some(false) {
                let now = Instant::now();
                if reach.last_wake.is_none_or(|last| now.duration_since(last) >= WAKE_EVERY) {
                    reach.last_wake = Some(now);
                    self.returned.notify_waiters();
                }
                tracing::info!("the agent is reachable again");
            }
        } else if reached == Some(false) && reach.reachable != Some(false) {
            let error = error.map(ToString::to_string).unwrap_or_default();
            tracing::warn!(error, "the agent is unreachable");
        }
        reach.reachable = reached.or(reach.reachable);
    }

    /// Waits until the agent turns from unreachable to reachable.
    pub(super) async fn returned(&self) {
        self.returned.notified().await;
    }

    pub(super) fn picture(&self) -> AgentHealth {
        let reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        let mut calls = Vec::new();
        for class in CallClass::ALL {
            for outcome in CallOutcome::ALL {
                let count = self.counts[class as usize][outcome as usize].load(Ordering::Relaxed);
                if count != 0 {
                    calls.push((class, outcome, count));
                }
            }
        }
        AgentHealth {
            reachable: reach.reachable,
            last_reached: reach.last_reached,
            last_error: reach.last_error.clone(),
            calls,
        }
    }
}
