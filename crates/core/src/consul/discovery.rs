//! The instances of upstreams from the agent, as a [`Discovery`].
//!
//! Endpoints are not watched: a blocked call for each upstream would eat the agent's connections. Instead the agent
//! is asked without blocking, mostly for its own cached answer, which it gives from memory and goes on giving when
//! the servers are lost. The cached answer hides lost ACL rights (it stays as it was, or turns empty), so now and
//! then, and before an empty list is believed, the plain question is asked, whose 403 is the truth.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    backoff,
    client::{AgentClient, Answer, Call, CallClass, CallError},
    instances::{self, InstanceList},
    task::Task,
};
use crate::discovery::{Destination, DestinationKind, Discovery, DiscoveryError, Instance};

/// How old a list may be to be used without asking.
const FRESH: Duration = Duration::from_secs(1);

/// How long a dial waits for a newer list when it has one already.
const PATIENCE: Duration = Duration::from_millis(100);

/// How long a dial waits for the first list.
const FIRST_LIST: Duration = Duration::from_secs(15);

/// How often the list of an upstream in use is asked for, dials or not.
const REFRESH: Duration = Duration::from_secs(10);

/// How long after its last dial an upstream counts as in use.
const IN_USE: Duration = Duration::from_secs(60);

/// How often the plain question is asked.
const PLAIN_EVERY: Duration = Duration::from_secs(60);

/// How long the plain question may take. Without servers the agent answers it with 500 at once.
const PLAIN_DEADLINE: Duration = Duration::from_secs(5);

/// The longest pause after the agent could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// The most that a list may hold, in bytes; 1 000 instances are 1.2 MB.
const MAX_LIST: usize = 8 * 1024 * 1024;

/// A [`Discovery`] that asks the agent.
#[derive(Debug)]
pub struct ConsulDiscovery {
    client: AgentClient,
    upstreams: Mutex<HashMap<Destination, Slot>>,
}

#[derive(Debug)]
struct Slot {
    upstream: Arc<Upstream>,
    /// Ends with the slot; finished where the upstream is not in use.
    keeper: Option<Task>,
}

/// One upstream, shared between those who dial and the task that keeps its list.
#[derive(Debug)]
struct Upstream {
    destination: Destination,
    known: watch::Sender<Known>,
    usage: Mutex<Usage>,
    wanted: Notify,
}

#[derive(Debug)]
struct Usage {
    last: Instant,
    /// Somebody waits for a newer list.
    wanted: bool,
    /// A keeper is at work.
    kept: bool,
}

/// What is known of an upstream.
#[derive(Clone, Debug, Default)]
struct Known {
    list: Option<(Arc<[Instance]>, Instant)>,
    error: Option<DiscoveryError>,
    paused_until: Option<Instant>,
    /// Counts the rounds of asking that have ended.
    rounds: u64,
}

impl ConsulDiscovery {
    /// Discovery through `client`.
    #[must_use]
    pub fn new(client: AgentClient) -> Self {
        Self { client, upstreams: Mutex::default() }
    }

    /// The upstream, with a keeper at work that knows it is wanted.
    fn want(&self, destination: &Destination) -> Arc<Upstream> {
        let mut upstreams = lock(&self.upstreams);
        let slot = upstreams.entry(destination.clone()).or_insert_with(|| Slot {
            upstream: Arc::new(Upstream {
                destination: destination.clone(),
                known: watch::Sender::default(),
                usage: Mutex::new(Usage { last: Instant::now(), wanted: false, kept: false }),
                wanted: Notify::new(),
            }),
            keeper: None,
        });
        let upstream = slot.upstream.clone();
        let mut used = lock(&upstream.usage);
        used.last = Instant::now();
        let fresh = upstream.known.borrow().is_fresh();
        used.wanted |= !fresh;
        if !used.kept && !fresh {
            used.kept = true;
            slot.keeper = Some(Task::spawn(self.client.runtime(), keep(self.client.clone(), upstream.clone())));
        } else if used.wanted {
            upstream.wanted.notify_one();
        }
        drop(used);
        upstream
    }
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.list.as_ref().is_some_and(|(_, at)| at.elapsed() <= FRESH)
    }

    fn is_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| Instant::now() < until)
    }

    fn answer(&self) -> Result<Arc<[Instance]>, DiscoveryError> {
        match (&self.list, &self.error) {
            (Some((list, _)), _) => Ok(list.clone()),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(DiscoveryError::Unavailable("no answer in time".to_owned())),
        }
    }
}

#[async_trait]
impl Discovery for ConsulDiscovery {
    async fn instances(&self, destination: &Destination) -> Result<Arc<[Instance]>, DiscoveryError> {
        check(destination)?;
        let upstream = self.want(destination);
        let mut told = upstream.known.subscribe();
        let (rounds, has_list) = {
            let known = told.borrow_and_update();
            if known.is_fresh() || known.is_paused() {
                return known.answer();
            }
            (known.rounds, known.list.is_some())
        };
        let patience = if has_list { PATIENCE } else { FIRST_LIST };
        let round = told.wait_for(|known| known.rounds > rounds);
        match tokio::time::timeout(patience, round).await {
            Ok(Ok(known)) => known.answer(),
            Ok(Err(_)) | Err(_) => upstream.known.borrow().answer(),
        }
    }

    fn forget(&self, destination: &Destination) {
        lock(&self.upstreams).remove(destination);
    }
}

/// Refuses what the agent would silently take for something else.
fn check(destination: &Destination) -> Result<(), DiscoveryError> {
    let fault = match destination {
        Destination { peer: Some(_), datacenter: Some(_), .. } => "a peer and a datacenter exclude each other",
        Destination { peer: Some(_), kind: DestinationKind::PreparedQuery, .. } => {
            "a prepared query cannot be asked for in a peered cluster"
        }
        _ => return Ok(()),
    };
    Err(DiscoveryError::Unavailable(format!("the upstream {:?} makes no sense: {fault}", destination.name)))
}

/// Keeps the list of one upstream while it is in use.
async fn keep(client: AgentClient, upstream: Arc<Upstream>) {
    // Namespace and partition default to our own, and only to configured ones.
    let mut destination = upstream.destination.clone();
    destination.namespace = destination.namespace.or_else(|| client.namespace().map(str::to_owned));
    destination.partition = destination.partition.or_else(|| client.partition().map(str::to_owned));
    let mut asker = Asker { client, destination, plain_at: None, said: None };
    let mut failures = 0_u32;
    loop {
        let started = Instant::now();
        let has_list = upstream.known.borrow().list.is_some();
        let (outcome, unheard) = asker.ask(has_list).await;
        failures = if outcome.is_err() { failures.saturating_add(1) } else { 0 };
        let longest = if unheard { UNREACHABLE_PAUSE } else { backoff::LONGEST };
        let pause = outcome.is_err().then(|| Instant::now() + backoff::pause(failures).min(longest));
        lock(&upstream.usage).wanted = false;
        upstream.known.send_modify(|known| {
            match outcome {
                Ok(list) => {
                    known.list = Some((list, started));
                    known.error = None;
                }
                Err(error) => known.error = Some(error),
            }
            known.paused_until = pause;
            known.rounds += 1;
        });
        if let Some(pause) = pause {
            tokio::time::sleep_until(pause).await;
        }
        let refresh = started + REFRESH;
        loop {
            tokio::select! {
                () = upstream.wanted.notified() => if lock(&upstream.usage).wanted { break },
                () = tokio::time::sleep_until(refresh) => break,
            }
        }
        let mut used = lock(&upstream.usage);
        if !used.wanted && used.last.elapsed() >= IN_USE {
            used.kept = false;
            return;
        }
    }
}

/// Why a list may be empty. Before 1.11 agents do not say that they left something out.
const NONE: &str = "the agent lists no instance: none is registered and passing, or the token lacks service:read on the \
                    upstream or its sidecar, or node:read";

/// Puts the questions about one upstream.
struct Asker {
    client: AgentClient,
    destination: Destination,
    /// When the plain question was asked last.
    plain_at: Option<Instant>,
    /// The trouble that the log knows.
    said: Option<String>,
}

impl Asker {
    /// Asks for the list. Tells besides whether the agent was not heard at all.
    async fn ask(&mut self, has_list: bool) -> (Result<Arc<[Instance]>, DiscoveryError>, bool) {
        let outcome = match self.destination.kind {
            DestinationKind::Service => self.ask_service(has_list).await,
            DestinationKind::PreparedQuery => self.execute().await,
        };
        let name = &self.destination.name;
        let unheard = matches!(&outcome, Err(Failure::Call(error)) if error.is_transport());
        let outcome = outcome.map_err(DiscoveryError::from);
        let words = match &outcome {
            Ok(list) if list.entries == 0 => Some(NONE.to_owned()),
            Ok(list) => (!list.problems.is_empty()).then(|| list.problems.join("; ")),
            Err(error) => Some(error.to_string()),
        };
        if words != self.said {
            match (&words, &outcome) {
                (Some(words), Err(_)) => {
                    tracing::warn!(upstream = name, error = words, "cannot list instances; keeping the last list");
                }
                (Some(words), Ok(list)) if list.entries == 0 => tracing::info!(upstream = name, "{words}"),
                (Some(words), Ok(_)) => {
                    tracing::warn!(upstream = name, problems = words, "left out instances that cannot be used");
                }
                (None, _) => tracing::info!(upstream = name, "listing instances works again"),
            }
            self.said = words;
        }
        (outcome.map(|list| list.instances.into()), unheard)
    }

    async fn ask_service(&mut self, has_list: bool) -> Result<InstanceList, Failure> {
        let plain_due = !has_list || self.plain_at.is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        let mut plain_failed = None;
        if plain_due {
            match self.ask_plain().await {
                Err(Failure::Call(error)) if may_be_cached(&error) => plain_failed = Some(error),
                other => return other,
            }
        }
        let list = self.exchange(self.health().param("cached", "")).await;
        match (list, plain_failed) {
            // An empty list from memory may be for want of rights, so the plain question decides.
            (Ok(list), None) if list.entries == 0 => self.ask_plain().await,
            (Ok(list), Some(error)) if list.entries == 0 => Err(Failure::Call(error)),
            (list, _) => list,
        }
    }

    async fn ask_plain(&mut self) -> Result<InstanceList, Failure> {
        self.plain_at = Some(Instant::now());
        self.exchange(self.health().deadline(PLAIN_DEADLINE)).await
    }

    async fn execute(&mut self) -> Result<InstanceList, Failure> {
        let call = Call::get(CallClass::Endpoints, ["v1", "query", &self.destination.name, "execute"]);
        self.exchange(self.places(call).param("connect", "true")).await
    }

    fn health(&self) -> Call {
        let call = Call::get(CallClass::Endpoints, ["v1", "health", "connect", &self.destination.name]);
        self.places(call).param("passing", "1")
    }

    /// Adds where to look.
    fn places(&self, call: Call) -> Call {
        let Destination { datacenter, namespace, partition, peer, .. } = &self.destination;
        call.param_if("dc", datacenter.as_deref())
            .param_if("ns", namespace.as_deref())
            .param_if("partition", partition.as_deref())
            .param_if("peer", peer.as_deref())
    }

    async fn exchange(&self, call: Call) -> Result<InstanceList, Failure> {
        let answer = self.client.call(&call.max_body(MAX_LIST)).await?;
        let list = instances::parse(&answer.body, &self.destination).map_err(Failure::Unreadable)?;
        self.warn_if_filtered(&answer, &list);
        Ok(list)
    }

    fn warn_if_filtered(&self, answer: &Answer, list: &InstanceList) {
        if list.entries == 0 && answer.filtered_by_acls() {
            let upstream = &self.destination.name;
            tracing::warn!(
                upstream,
                "the agent left instances out: the token needs service:read on the upstream and its sidecar, and node:read"
            );
        }
    }
}

/// Whether the agent may still know the list although it could not answer the plain question.
fn may_be_cached(error: &CallError) -> bool {
    match error.status() {
        Some(status) => status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        None => matches!(error, CallError::Timeout(_)),
    }
}

/// Why there is no list.
#[derive(Debug)]
enum Failure {
    Call(CallError),
    Unreadable(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<Failure> for DiscoveryError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreadable(why) => Self::Unavailable(format!("its list of instances cannot be read: {why}")),
            Failure::Call(error) => match error.status() {
                Some(StatusCode::FORBIDDEN) => Self::Forbidden(error.to_string()),
                Some(StatusCode::NOT_FOUND) => Self::NotFound(error.to_string()),
                _ => Self::Unavailable(error.to_string()),
            },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is an assignment, so a panic elsewhere leaves them sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
