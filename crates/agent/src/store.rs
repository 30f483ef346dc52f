//! The one store: everything the agent knows, under one index counter, and how a call waits for a change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::acl::{Acl, Policy};
use crate::answer::Answer;
use crate::ca::{Ca, CaError, ROOT_TTL, Root};
use crate::catalog::Catalog;
use crate::checks;
use crate::intentions::Intention;
use crate::keys::KeyMaker;
use crate::leaf::Leaves;
use crate::managed::ManagedProxy;
use crate::misbehave::Rule;
use crate::options::Options;
use crate::query::PreparedQuery;
use crate::request::Request;
use crate::roots::RootsFault;
use crate::stats::{Endpoint, Stats};

/// What the agent knows. A wiped restart makes it anew.
pub(crate) struct State {
    index: u64,
    pub(crate) ca: Ca,
    pub(crate) roots_index: u64,
    /// The agent's cache holds the roots.
    pub(crate) roots_warm: bool,
    pub(crate) roots_fault: Option<RootsFault>,
    pub(crate) expired_root: Option<Root>,
    pub(crate) ca_config: Map<String, Value>,
    pub(crate) ca_config_index: u64,
    pub(crate) leaf_ttl: Duration,
    pub(crate) leaves: Leaves,
    pub(crate) acl: Option<Acl>,
    pub(crate) intention_policy: Option<Policy>,
    pub(crate) intentions: Vec<Intention>,
    pub(crate) intentions_index: u64,
    /// (target, token) pairs that authorize has in its cache.
    pub(crate) authorize_warm: HashSet<(String, Option<String>)>,
    pub(crate) catalog: Catalog,
    /// Questions to health and match that `?cached` has in its cache, with their tokens.
    pub(crate) health_warm: HashSet<(String, Option<String>)>,
    /// What a token last saw of a name by streaming; a deleted token goes on seeing it.
    pub(crate) streamed: HashMap<(String, String), (u64, Value)>,
    /// Since when there are no servers.
    pub(crate) servers_lost: Option<Instant>,
    /// Rules of ACL policies by ID and name.
    pub(crate) policies: Vec<(String, String, String)>,
    pub(crate) queries: Vec<PreparedQuery>,
    pub(crate) managed: BTreeMap<String, ManagedProxy>,
    /// By kind and name.
    pub(crate) config_entries: BTreeMap<(String, String), Value>,
    pub(crate) rules: Vec<Rule>,
    /// Ends blocked calls of an endpoint at once; the number tells an old one from a new one.
    pub(crate) refusals: HashMap<Endpoint, (u64, Answer)>,
    /// Makes every content hash differ from the one before.
    pub(crate) hash_churn: u64,
    pub(crate) max_connections_per_client: usize,
}

impl State {
    pub(crate) fn new(options: &Options, keys: &dyn KeyMaker) -> Result<Self, CaError> {
        let uuid = options.trust_domain_uuid.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let mut ca_config = Map::new();
        ca_config.insert("IntermediateCertTTL".to_owned(), json!("8760h"));
        ca_config.insert("LeafCertTTL".to_owned(), json!("72h"));
        if options.dialect.is_today() {
            ca_config.insert("RootCertTTL".to_owned(), json!("87600h"));
        }
        let mut state = Self {
            index: 8,
            ca: Ca::new(uuid),
            roots_index: 0,
            roots_warm: false,
            roots_fault: None,
            expired_root: None,
            ca_config,
            ca_config_index: 5,
            leaf_ttl: options.leaf_ttl.min(ROOT_TTL),
            leaves: Leaves::default(),
            acl: options.acl.clone(),
            intention_policy: options.default_intention_policy,
            intentions: Vec::new(),
            intentions_index: 8,
            authorize_warm: HashSet::new(),
            catalog: Catalog::default(),
            health_warm: HashSet::new(),
            streamed: HashMap::new(),
            servers_lost: None,
            policies: Vec::new(),
            queries: Vec::new(),
            managed: BTreeMap::new(),
            config_entries: BTreeMap::new(),
            rules: Vec::new(),
            refusals: HashMap::new(),
            hash_churn: 0,
            max_connections_per_client: options.max_connections_per_client,
        };
        let index = state.next_index();
        state.ca.rotate(keys, index, false)?;
        state.roots_index = index;
        let node = state.next_index();
        state.catalog.node_index = node;
        state.catalog.index = node;
        Ok(state)
    }

    /// The next value of the one counter.
    pub(crate) fn next_index(&mut self) -> u64 {
        self.index += 1;
        self.index
    }

    pub(crate) fn acl_default(&self) -> Policy {
        self.acl.as_ref().map_or(Policy::Allow, |acl| acl.default_policy)
    }
}

/// What all connections and tasks of one agent share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) keys: Arc<dyn KeyMaker>,
    pub(crate) stats: watch::Sender<Stats>,
    pub(crate) frozen: watch::Sender<bool>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// How a wait ended.
pub(crate) enum Waited<T> {
    Done(T),
    TimedOut,
    Refused(Answer),
}

impl Shared {
    pub(crate) fn new(options: Options, keys: Arc<dyn KeyMaker>) -> Result<Self, CaError> {
        let state = State::new(&options, keys.as_ref())?;
        Ok(Self {
            options,
            keys,
            stats: watch::Sender::new(Stats::default()),
            frozen: watch::Sender::new(false),
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
        })
    }

    /// Looks at the state.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.lock())
    }

    /// Changes the state and wakes everybody who waits.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = {
            let mut state = self.state.lock();
            let result = change(&mut state);
            checks::follow_aliases(&mut state);
            result
        };
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Changes the state where nobody needs to wake.
    pub(crate) fn quietly<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock())
    }

    /// Wakes everybody who waits.
    pub(crate) fn wake(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Throws everything away, as an agent without a data directory does over a restart.
    pub(crate) fn wipe(&self) -> Result<(), CaError> {
        let fresh = State::new(&self.options, self.keys.as_ref())?;
        self.update(|state| *state = fresh);
        Ok(())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How long a blocked call lasts: `asked` or the default, at most ten minutes, and up to a sixteenth more.
    pub(crate) fn wait(&self, asked: Option<Duration>, default: Duration, jitter: bool) -> Duration {
        let wait = asked.filter(|d| !d.is_zero()).unwrap_or(default).min(Duration::from_secs(600));
        if jitter && self.options.wait_jitter { wait + (wait / 16).mul_f64(rand::rng().random::<f64>()) } else { wait }
    }

    /// Blocks until `look` finds something, the time is over, or somebody orders the blocked calls to fail.
    pub(crate) async fn block<T>(
        &self,
        endpoint: Endpoint,
        wait: Duration,
        mut look: impl FnMut(&State) -> Option<T>,
    ) -> Waited<T> {
        let deadline = Instant::now() + wait;
        let mut changed = self.subscribe();
        let refused_before = self.read(|s| s.refusals.get(&endpoint).map_or(0, |(number, _)| *number));
        let _count = BlockedCount::new(&self.stats, endpoint);
        loop {
            changed.borrow_and_update();
            let found = self.read(|state| {
                if let Some((number, answer)) = state.refusals.get(&endpoint)
                    && *number > refused_before
                {
                    return Some(Waited::Refused(answer.clone()));
                }
                look(state).map(Waited::Done)
            });
            if let Some(found) = found {
                return found;
            }
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives as long as we do, so this is the deadline.
                Ok(Err(_)) | Err(_) => return Waited::TimedOut,
            }
        }
    }

    /// The datacenter that the request means.
    pub(crate) fn check_datacenter(&self, req: &Request) -> Result<String, Answer> {
        let asked = req.param("dc").or_else(|| req.param("datacenter")).filter(|dc| !dc.is_empty());
        match asked {
            None => Ok(self.options.datacenter.clone()),
            Some(dc) if dc == self.options.datacenter || self.options.other_datacenters.iter().any(|o| o == dc) => {
                Ok(dc.to_owned())
            }
            Some(_) => Err(Answer::text(500, "No path to datacenter")),
        }
    }
}

/// Counts a blocked call for as long as it lasts.
struct BlockedCount<'a> {
    stats: &'a watch::Sender<Stats>,
    endpoint: Endpoint,
}

impl<'a> BlockedCount<'a> {
    fn new(stats: &'a watch::Sender<Stats>, endpoint: Endpoint) -> Self {
        stats.send_modify(|s| *s.blocked.entry(endpoint).or_default() += 1);
        Self { stats, endpoint }
    }
}

impl Drop for BlockedCount<'_> {
    fn drop(&mut self) {
        self.stats.send_modify(|s| {
            if let Some(n) = s.blocked.get_mut(&self.endpoint) {
                *n = n.saturating_sub(1);
            }
        });
    }
}
