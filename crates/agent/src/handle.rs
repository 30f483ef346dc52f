//! Driving an agent from within the process: changes of state, misbehaviour, and looking at what it saw.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinHandle;

use crate::acl::{Acl, Policy, Token};
use crate::answer::Answer;
use crate::ca::{CaError, ROOT_TTL, Validity};
use crate::catalog::{self, Node};
use crate::catalog_api;
use crate::checks::{self, Status};
use crate::intentions::{self, IntentionRule};
use crate::keys::sec1_pem;
use crate::leaf::{self, LeafFault};
use crate::managed::ManagedProxy;
use crate::misbehave::{self, Fault, Rule};
use crate::query;
use crate::register;
use crate::roots::{self, RootsFault};
use crate::server;
use crate::servers;
use crate::stats::{Endpoint, Stats};
use crate::store::{Shared, State};

/// Drives a running agent. Cheap to clone; outlives the agent without harm.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    address: SocketAddr,
    unix: Option<PathBuf>,
    control: Mutex<Option<SocketAddr>>,
    server: AsyncMutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("address", &self.inner.address).finish_non_exhaustive()
    }
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The certificate authority could not make or sign.
    #[error("certificate authority: {0}")]
    Ca(String),
    /// What was asked for is not possible, in the words that a client would read.
    #[error("refused: {0}")]
    Refused(String),
    /// The socket could not be opened again.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
}

impl From<CaError> for HandleError {
    fn from(error: CaError) -> Self {
        Self::Ca(error.to_string())
    }
}

impl From<Answer> for HandleError {
    fn from(answer: Answer) -> Self {
        Self::Refused(String::from_utf8_lossy(&answer.body).into_owned())
    }
}

/// A certificate that the agent's CA has signed, with its key.
#[derive(Clone)]
pub struct Issued {
    /// Leaf first, then the cross certificate if there is one.
    pub chain_pem: String,
    /// SEC 1 `EC PRIVATE KEY`.
    pub key_pem: String,
    /// Its SPIFFE URI.
    pub uri: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// An instance on a node that is not this agent's, in this or in another datacenter.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Name of the node.
    pub node: String,
    /// Address of the node; for an instance without an address of its own.
    pub node_address: String,
    /// One of the agent's datacenters.
    pub datacenter: String,
    /// A registration as `PUT /v1/agent/service/register` takes it.
    pub service: Map<String, Value>,
    /// Health of the instance.
    pub status: Status,
}

impl Handle {
    pub(crate) async fn start(
        shared: Arc<Shared>,
        listener: TcpListener,
        unix: Option<PathBuf>,
    ) -> Result<Self, HandleError> {
        let handle = Self {
            inner: Arc::new(Inner {
                address: listener.local_addr()?,
                shared,
                unix,
                control: Mutex::new(None),
                server: AsyncMutex::new(None),
            }),
        };
        handle.listen(listener).await?;
        Ok(handle)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Ends the listener without waiting for it.
    pub(crate) fn abort(&self) {
        if let Ok(server) = self.inner.server.try_lock()
            && let Some(server) = server.as_ref()
        {
            server.abort();
        }
    }

    pub(crate) fn set_control(&self, address: SocketAddr) {
        *self.inner.control.lock() = Some(address);
    }

    // ---- where it is -------------------------------------------------------------------------------------

    /// Address of the HTTP API.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// `http://127.0.0.1:8500`
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// Address of the control listener, where one was asked for.
    pub fn control_address(&self) -> Option<SocketAddr> {
        *self.inner.control.lock()
    }

    /// `<uuid>.consul`
    pub fn trust_domain(&self) -> String {
        self.inner.shared.read(|s| s.ca.trust_domain())
    }

    // ---- certificates ------------------------------------------------------------------------------------

    /// A new root becomes active, signed by the old one as well; leaves follow (after the jitter, where one is
    /// set).
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn rotate_root(&self) -> Result<(), HandleError> {
        self.rotate(true)
    }

    /// The same without a cross certificate, as `ForceWithoutCrossSigning` does it.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn rotate_root_without_cross_signing(&self) -> Result<(), HandleError> {
        self.rotate(false)
    }

    /// Takes the inactive roots off the list.
    pub fn prune_roots(&self) {
        self.update(|state| {
            if state.ca.prune() {
                state.roots_index = state.next_index();
            }
        });
    }

    /// All roots, the active one first.
    pub fn root_pems(&self) -> Vec<String> {
        self.inner.shared.read(|s| {
            let mut roots: Vec<_> = s.ca.roots.iter().collect();
            roots.sort_by_key(|r| !r.active);
            roots.into_iter().map(|r| r.pem.clone()).collect()
        })
    }

    /// Sets the lifetime of leaves and issues all of them anew. Seconds are allowed, which Consul does not.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn set_leaf_ttl(&self, ttl: Duration) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| {
            state.leaf_ttl = ttl.min(ROOT_TTL);
            leaf::reissue_all(&shared, state)
        })?;
        Ok(())
    }

    /// Issues the leaf of a service anew; callers that are blocked on it see it at once.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn renew_leaf(&self, service: &str) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| leaf::reissue(&shared, state, service))?;
        Ok(())
    }

    /// Issues the leaf of a service anew under the index of the old one, so that no blocked caller wakes: the fault
    /// of agents before 1.4.1.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn renew_leaf_under_old_index(&self, service: &str) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| leaf::reissue_under_old_index(&shared, state, service))?;
        Ok(())
    }

    /// Has the CA sign a certificate for any service, beside the cache that callers see.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn issue(&self, service: &str) -> Result<Issued, HandleError> {
        self.issue_with(service, None)
    }

    /// The same, for another datacenter or with an own lifetime; a lifetime of zero gives one that ended an hour
    /// ago.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn issue_with(&self, service: &str, ttl: Option<Duration>) -> Result<Issued, HandleError> {
        let shared = self.shared();
        let key = shared.keys.p256().map_err(|e| HandleError::Ca(e.to_string()))?;
        let signed = shared.quietly(|state| {
            let validity = match ttl {
                Some(Duration::ZERO) => Validity::Over,
                Some(ttl) => Validity::Fresh(ttl),
                None => Validity::Fresh(state.leaf_ttl),
            };
            let datacenter = &shared.options.datacenter;
            state.ca.sign_leaf(&key, shared.options.dialect, datacenter, service, validity)
        })?;
        Ok(Issued {
            chain_pem: signed.chain_pem,
            key_pem: sec1_pem(key.as_ref()).map_err(|e| HandleError::Ca(e.to_string()))?,
            uri: signed.uri,
        })
    }

    // ---- who may ------------------------------------------------------------------------------------------

    /// An intention that allows; either name may be `*`.
    pub fn allow(&self, source: &str, destination: &str) {
        self.intention(source, destination, IntentionRule::Action(Policy::Allow));
    }

    /// An intention that denies.
    pub fn deny(&self, source: &str, destination: &str) {
        self.intention(source, destination, IntentionRule::Action(Policy::Deny));
    }

    /// An intention with rules for HTTP requests, which denies on layer 4.
    pub fn allow_by_request(&self, source: &str, destination: &str, permissions: Value) {
        self.intention(source, destination, IntentionRule::Permissions(permissions));
    }

    /// Takes an intention away; says whether there was one.
    pub fn forget(&self, source: &str, destination: &str) -> bool {
        self.update(|state| intentions::remove(state, |i| i.source == source && i.destination == destination))
    }

    /// `default_intention_policy` of this agent; the dialect of today only.
    pub fn set_default_intention_policy(&self, policy: Option<Policy>) {
        self.update(|state| state.intention_policy = policy);
    }

    /// Switches access control on, off, or over.
    pub fn set_acl(&self, acl: Option<Acl>) {
        self.update(|state| state.acl = acl);
    }

    /// What holds where no rule and no intention matches. Where access control is off, this switches it on.
    pub fn set_acl_default(&self, policy: Policy) {
        self.update(|state| match &mut state.acl {
            Some(acl) => acl.default_policy = policy,
            None => state.acl = Some(Acl::new(policy)),
        });
    }

    /// Adds a token under its secret. Where access control is off, this switches it on, with default deny.
    pub fn add_token(&self, secret: &str, token: Token) {
        self.update(|state| {
            state.acl.get_or_insert_with(|| Acl::new(Policy::Deny)).tokens.insert(secret.to_owned(), token);
        });
    }

    /// Deletes a token by its secret.
    pub fn delete_token(&self, secret: &str) -> bool {
        self.update(|state| state.acl.as_mut().is_some_and(|acl| acl.tokens.remove(secret).is_some()))
    }

    // ---- services -----------------------------------------------------------------------------------------

    /// Registers as `PUT /v1/agent/service/register` does, without a token.
    ///
    /// # Errors
    ///
    /// When the definition is refused, with the text that a client would read.
    pub fn register(&self, registration: Value) -> Result<(), HandleError> {
        let map = object(registration)?;
        let shared = Arc::clone(self.shared());
        let registration = register::parse(map, shared.options.dialect).map_err(|e| HandleError::Refused(e.text()))?;
        self.update(|state| register::apply(&shared, state, registration, None, false))
            .map_err(|e| HandleError::Refused(e.text()))
    }

    /// Deregisters by ID; says whether it was there.
    pub fn deregister(&self, id: &str) -> bool {
        self.update(|state| catalog::remove(state, id))
    }

    /// Adds or replaces an instance on another node.
    ///
    /// # Errors
    ///
    /// When the definition is refused, with the text that a client would read.
    pub fn add_instance(&self, instance: Instance) -> Result<(), HandleError> {
        let shared = self.shared();
        let known = shared.options.datacenter == instance.datacenter
            || shared.options.other_datacenters.contains(&instance.datacenter);
        if !known {
            return Err(HandleError::Refused(format!("no datacenter {}", instance.datacenter)));
        }
        let mut service = register::parse(instance.service, shared.options.dialect)
            .map_err(|e| HandleError::Refused(e.text()))?
            .service;
        service.node = Some(Node {
            name: instance.node,
            address: instance.node_address,
            datacenter: instance.datacenter,
            agent: true,
        });
        let check = catalog_api::fixed(&service.key(), "health", "set by hand", instance.status, "");
        self.update(|state| catalog_api::put(state, service, vec![check]));
        Ok(())
    }

    /// Takes an instance of another node away.
    pub fn remove_instance(&self, node: &str, id: &str) -> bool {
        self.update(|state| catalog::remove(state, &format!("{node}/{id}")))
    }

    /// Sets a check of any kind. A TCP check is overwritten by its next run.
    pub fn set_check(&self, id: &str, status: Status, output: &str) -> bool {
        self.update(|state| checks::set(state, id, status, output))
    }

    /// Sets a configuration entry (`proxy-defaults`/`global`, `service-defaults`/name), or takes it away.
    pub fn set_config_entry(&self, kind: &str, name: &str, entry: Option<Value>) {
        let key = (kind.to_owned(), name.to_owned());
        self.update(|state| match entry {
            Some(entry) => {
                state.config_entries.insert(key, entry);
            }
            None => {
                state.config_entries.remove(&key);
            }
        });
    }

    /// Creates a prepared query as `POST /v1/query` does.
    ///
    /// # Errors
    ///
    /// When the definition is refused, with the text that a client would read.
    pub fn create_query(&self, definition: Value) -> Result<(), HandleError> {
        let query = query::read(&object(definition)?)?;
        self.update(|state| query::put(state, query));
        Ok(())
    }

    /// Puts in a managed proxy (old dialect), under `<target id>-proxy`.
    pub fn set_managed_proxy(&self, proxy: ManagedProxy) {
        self.update(|state| {
            state.managed.insert(format!("{}-proxy", proxy.target_id), proxy);
        });
    }

    /// Takes a managed proxy away by its own ID.
    pub fn remove_managed_proxy(&self, id: &str) -> bool {
        self.update(|state| state.managed.remove(id).is_some())
    }

    // ---- misbehaving --------------------------------------------------------------------------------------

    /// Every call of the endpoint suffers the fault until it is cleared. The oldest fault of an endpoint comes
    /// first.
    pub fn misbehave(&self, endpoint: Endpoint, fault: Fault) {
        self.misbehave_by(Rule::new(endpoint, fault));
    }

    /// The next `times` calls of the endpoint suffer the fault.
    pub fn misbehave_times(&self, endpoint: Endpoint, fault: Fault, times: u64) {
        self.misbehave_by(Rule::new(endpoint, fault).times(times));
    }

    /// The same with all that a rule can say. The oldest rule that meets a call is the one that counts.
    pub fn misbehave_by(&self, rule: Rule) {
        if rule.times != Some(0) {
            self.update(|state| state.rules.push(rule));
        }
    }

    /// Clears the faults of one endpoint. Calls that hang already go on hanging.
    pub fn behave_at(&self, endpoint: Endpoint) {
        self.update(|state| state.rules.retain(|r| r.endpoint != endpoint));
    }

    /// Clears all faults, those of leaves and roots among them.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn behave(&self) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| {
            state.rules.clear();
            let services: Vec<String> = state.leaves.faults.drain().map(|(s, _)| s).collect();
            for service in services {
                leaf::reissue(&shared, state, &service)?;
            }
            if state.roots_fault.take().is_some() {
                state.roots_index = state.next_index();
            }
            Ok::<(), CaError>(())
        })?;
        Ok(())
    }

    /// Ends all calls that are blocked at the endpoint right now with this error.
    pub fn refuse_blocked(&self, endpoint: Endpoint, status: u16, body: &str) {
        let answer = misbehave::error(status, body);
        self.update(|state| servers::refuse_blocked(state, endpoint, answer));
    }

    /// Spoils the leaf of a service, or makes it good again. A fault other than [`LeafFault::Stale`] is seen at
    /// once, as a new leaf.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn set_leaf_fault(&self, service: &str, fault: Option<LeafFault>) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| {
            let stale = fault == Some(LeafFault::Stale);
            match fault {
                Some(fault) => {
                    state.leaves.faults.insert(service.to_owned(), fault);
                }
                None => {
                    state.leaves.faults.remove(service);
                }
            }
            if stale { Ok(()) } else { leaf::reissue(&shared, state, service) }
        })?;
        Ok(())
    }

    /// Spoils the list of roots, or makes it good again; it has a new index either way.
    ///
    /// # Errors
    ///
    /// When no key or certificate can be made.
    pub fn set_roots_fault(&self, fault: Option<RootsFault>) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| {
            if fault == Some(RootsFault::ExpiredAmongGood) && state.expired_root.is_none() {
                let index = state.next_index();
                let root = state.ca.expired_root(shared.keys.as_ref(), index)?;
                state.expired_root = Some(root);
            }
            state.roots_fault = fault;
            state.roots_index = state.next_index();
            Ok::<(), CaError>(())
        })?;
        Ok(())
    }

    /// The roots get a new index and stay the same.
    pub fn touch_roots(&self) {
        self.update(|state| state.roots_index = state.next_index());
    }

    /// The leaf of a service gets a new index and stays the same.
    pub fn touch_leaf(&self, service: &str) {
        self.update(|state| leaf::touch(state, service));
    }

    /// All content hashes change, and nothing else does.
    pub fn change_hashes(&self) {
        self.update(|state| state.hash_churn += 1);
    }

    /// `limits.http_max_conns_per_client`; connections that are open stay so.
    pub fn set_connection_limit(&self, limit: usize) {
        self.update(|state| state.max_connections_per_client = limit);
    }

    /// Plays a client agent whose servers are gone: it answers what it can from its cache.
    pub fn lose_servers(&self) {
        let dialect = self.shared().options.dialect;
        self.update(|state| servers::lose(dialect, state));
    }

    /// The servers are there again.
    pub fn find_servers(&self) {
        self.update(|state| state.servers_lost = None);
    }

    /// Accepts and reads, and answers nothing until [`thaw`](Self::thaw): an agent under SIGSTOP.
    pub fn freeze(&self) {
        self.shared().frozen.send_replace(true);
    }

    /// Answers again, first of all what came while it was frozen.
    pub fn thaw(&self) {
        self.shared().frozen.send_replace(false);
    }

    // ---- coming and going -----------------------------------------------------------------------------------

    /// Closes the listener and every connection. The port refuses until [`start_listening`](Self::start_listening).
    pub async fn stop_listening(&self) {
        let server = self.inner.server.lock().await.take();
        if let Some(server) = server {
            server.abort();
            // Its connections are closed when it is gone, not before.
            let _ = server.await;
        }
        if let Some(path) = &self.inner.unix {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Listens again on the same port, with the state as it is.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound again.
    pub async fn start_listening(&self) -> Result<(), HandleError> {
        if self.inner.server.lock().await.is_some() {
            return Ok(());
        }
        let listener = listen_again(self.inner.address)?;
        self.listen(listener).await
    }

    /// Listens again on the same port with nothing left: a new CA, a new trust domain unless one was fixed, no
    /// services, indexes from the start.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound again or no root can be made.
    pub async fn restart_wiped(&self) -> Result<(), HandleError> {
        self.stop_listening().await;
        self.shared().wipe()?;
        self.start_listening().await
    }

    /// Closes every connection and goes on listening.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound again.
    pub async fn drop_connections(&self) -> Result<(), HandleError> {
        self.stop_listening().await;
        self.start_listening().await
    }

    // ---- looking ---------------------------------------------------------------------------------------------

    /// What the agent has seen so far.
    pub fn stats(&self) -> Stats {
        self.shared().stats.borrow().clone()
    }

    /// Waits until the statistics satisfy `done`, and gives them. It waits for ever where they never do, so put a
    /// timeout around it.
    pub async fn wait_until(&self, mut done: impl FnMut(&Stats) -> bool) -> Stats {
        let mut stats = self.shared().stats.subscribe();
        loop {
            {
                let seen = stats.borrow_and_update();
                if done(&seen) {
                    return seen.clone();
                }
            }
            if stats.changed().await.is_err() {
                // The sender lives in what this handle holds, so this does not come to pass.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sets the counters to zero and empties the logs; what is open or blocked right now is kept.
    pub fn reset_stats(&self) {
        self.shared().stats.send_modify(|s| {
            *s = Stats {
                open_connections: s.open_connections,
                most_connections: s.open_connections,
                blocked: std::mem::take(&mut s.blocked),
                ..Stats::default()
            };
        });
    }

    // ---- helpers ------------------------------------------------------------------------------------------

    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        self.inner.shared.update(change)
    }

    fn rotate(&self, cross_sign: bool) -> Result<(), HandleError> {
        let shared = Arc::clone(self.shared());
        self.update(|state| roots::rotate(&shared, state, cross_sign))?;
        Ok(())
    }

    fn intention(&self, source: &str, destination: &str, rule: IntentionRule) {
        self.update(|state| {
            intentions::put(state, source, destination, rule, "", Value::Null, false);
        });
    }

    async fn listen(&self, listener: TcpListener) -> Result<(), HandleError> {
        let unix = self.inner.unix.as_deref().map(server::bind_unix).transpose()?;
        let task = tokio::spawn(server::serve(Arc::clone(self.shared()), listener, unix));
        *self.inner.server.lock().await = Some(task);
        Ok(())
    }
}

/// The port must come back at once, although connections of before may still stand in TIME_WAIT.
pub(crate) fn listen_again(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

fn object(value: Value) -> Result<Map<String, Value>, HandleError> {
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(HandleError::Refused("not a JSON object".to_owned())),
    }
}
