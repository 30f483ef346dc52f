//! `GET /v1/agent/connect/ca/leaf/:service`: who gets which leaf, when, and with whose token it is renewed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use serde_json::json;
use tokio::time::Instant;

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::ca::{CaError, Validity, rfc3339};
use crate::dialect::Dialect;
use crate::keys::sec1_pem;
use crate::request::Request;
use crate::servers;
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};

/// What an agent does wrong with the leaf of one service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeafFault {
    /// The leaf is never renewed, neither by age nor after a rotation.
    Stale,
    /// The private key belongs to another certificate.
    WrongKey,
    /// The certificate names another service; the JSON around it does not.
    OtherService(String),
    /// The certificate ended an hour ago.
    Expired,
    /// `CertPEM` holds no certificate.
    GarbageCertificate,
    /// `PrivateKeyPEM` holds no key.
    GarbageKey,
}

/// The slot of a leaf in the agent's cache. Today the token is not part of it, so that whoever comes is given
/// the leaf once it is there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeafKey {
    service: String,
    token: Option<String>,
}

#[derive(Default)]
pub(crate) struct LeafSlot {
    leaf: Option<Arc<Leaf>>,
    /// Callers that are blocked, in the order in which they came; the first one's token signs.
    blocked: Vec<(u64, Option<String>)>,
    /// The agent watches for a registered sidecar, with the token of the registration, before all callers.
    agent: Option<Option<String>>,
    /// When blocked callers get a leaf of the new root.
    rotation_due: Option<Instant>,
    /// A renewal was refused: not before then again.
    retry_at: Option<Instant>,
    failures: u64,
    failure: String,
}

#[derive(Clone)]
pub(crate) struct Leaf {
    serial: String,
    cert_pem: String,
    key_pem: String,
    uri: String,
    valid_after: String,
    valid_before: String,
    index: u64,
    root_id: String,
    made: Instant,
    renew_at: Instant,
}

/// All leaves of an agent.
#[derive(Default)]
pub(crate) struct Leaves {
    slots: HashMap<LeafKey, LeafSlot>,
    pub(crate) faults: HashMap<String, LeafFault>,
    next_caller: u64,
    /// Renewals and refusals so far.
    turns: u64,
}

impl Leaves {
    fn turns(&self) -> u64 {
        self.turns
    }
}

pub(crate) async fn get(shared: &Shared, req: &Request, service: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let blocking = req.blocking()?;
    let key = LeafKey { service: service.to_owned(), token: if dialect.is_today() { None } else { req.token.clone() } };
    let (first, hit) = shared.quietly(|state| first_look(shared, state, req, &key))?;
    if !hit {
        // It may be fresh, and others may wait for it.
        shared.wake();
    }
    if blocking.index == 0 || first.index > blocking.index {
        return Ok(render(shared, service, &first, hit));
    }
    // The agent's cache adds no jitter today; an old one took about 3 % more than asked for.
    let wait = shared.wait(blocking.wait, Duration::from_secs(600), dialect == Dialect::Old);
    let guard = Blocked::new(shared, key.clone(), req.token.clone());
    let waited = shared
        .block(Endpoint::Leaf, wait, |state| {
            let slot = state.leaves.slots.get(&key)?;
            if slot.failures != guard.failures {
                return Some(Err(Answer::forbidden(slot.failure.clone())));
            }
            let leaf = slot.leaf.as_ref()?;
            (leaf.index > blocking.index).then(|| Ok(Arc::clone(leaf)))
        })
        .await;
    drop(guard);
    let leaf = match waited {
        Waited::Done(found) => found?,
        Waited::Refused(answer) => return Err(answer),
        Waited::TimedOut => {
            let slot = shared.read(|s| s.leaves.slots.get(&key).and_then(|s| s.leaf.clone()));
            slot.unwrap_or(first)
        }
    };
    Ok(render(shared, service, &leaf, false))
}

/// Renews what is due and watched; says when to look again.
pub(crate) fn refresh_due(shared: &Shared, state: &mut State) -> Option<Instant> {
    let now = Instant::now();
    let mut next: Option<Instant> = None;
    let keys: Vec<LeafKey> = state.leaves.slots.keys().cloned().collect();
    let active = state.ca.active().map(|r| r.id.clone());
    if state.servers_lost.is_some() {
        // Nobody can sign; whoever is blocked keeps waiting and gets the old leaf.
        return None;
    }
    for key in keys {
        let stale_on_purpose = state.leaves.faults.get(&key.service) == Some(&LeafFault::Stale);
        let Some(slot) = state.leaves.slots.get(&key) else {
            continue;
        };
        let token = match (&slot.agent, slot.blocked.first()) {
            (Some(token), _) => token.clone(),
            (None, Some((_, token))) => token.clone(),
            (None, None) => continue,
        };
        let Some(leaf) = slot.leaf.as_ref().filter(|_| !stale_on_purpose) else {
            continue;
        };
        let due = if Some(&leaf.root_id) == active.as_ref() { leaf.renew_at } else { slot.rotation_due.unwrap_or(now) };
        let due = slot.retry_at.map_or(due, |retry| due.max(retry));
        if due > now {
            next = Some(next.map_or(due, |n| n.min(due)));
            continue;
        }
        let done = may_sign(shared, state, token.as_deref(), &key.service)
            .and_then(|()| issue(shared, state, &key).map_err(|e| e.to_string()));
        if let (Err(text), Some(slot)) = (done, state.leaves.slots.get_mut(&key)) {
            // Everybody who waits gets the error of the one whose token was used.
            slot.failures += 1;
            state.leaves.turns += 1;
            slot.failure = text;
            slot.retry_at = Some(now + Duration::from_secs(10));
        }
        if let Some(renew_at) =
            state.leaves.slots.get(&key).and_then(|s| s.retry_at.or_else(|| s.leaf.as_ref().map(|l| l.renew_at)))
        {
            next = Some(next.map_or(renew_at, |n| n.min(renew_at)));
        }
    }
    next
}

/// Renews leaves for those who watch, for as long as the agent lives.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut changed = shared.subscribe();
    loop {
        changed.borrow_and_update();
        let before = shared.read(|s| s.leaves.turns());
        let (next, after) = shared.quietly(|state| {
            let next = refresh_due(&shared, state);
            (next, state.leaves.turns())
        });
        if before != after {
            // Something was issued or refused: wake those who wait for it.
            shared.update(|_| ());
        }
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            gone = changed.changed() => if gone.is_err() { return },
        }
    }
}

/// A new leaf under the index of the old one, as agents before 1.4.1 gave it.
pub(crate) fn reissue_under_old_index(shared: &Shared, state: &mut State, service: &str) -> Result<(), CaError> {
    let before: HashMap<LeafKey, u64> = state
        .leaves
        .slots
        .iter()
        .filter_map(|(key, slot)| slot.leaf.as_ref().map(|leaf| (key.clone(), leaf.index)))
        .collect();
    reissue(shared, state, service)?;
    for (key, slot) in &mut state.leaves.slots {
        if let (Some(index), Some(leaf)) = (before.get(key), &mut slot.leaf) {
            let mut again = Leaf::clone(leaf);
            again.index = *index;
            *leaf = Arc::new(again);
        }
    }
    Ok(())
}

/// The same leaf under a new index.
pub(crate) fn touch(state: &mut State, service: &str) {
    let index = state.next_index();
    for (key, slot) in &mut state.leaves.slots {
        if key.service == service
            && let Some(leaf) = &mut slot.leaf
        {
            let mut again = Leaf::clone(leaf);
            again.index = index;
            *leaf = Arc::new(again);
        }
    }
}

/// The root has changed: blocked callers see that after a random part of the jitter.
pub(crate) fn root_changed(shared: &Shared, state: &mut State) {
    let now = Instant::now();
    for slot in state.leaves.slots.values_mut() {
        let jitter = shared.options.rotation_jitter.mul_f64(rand::rng().random::<f64>());
        slot.rotation_due = Some(now + jitter);
        slot.retry_at = None;
    }
    refresh_due(shared, state);
}

/// A sidecar was registered: the agent fetches and watches its leaf and the roots by itself.
pub(crate) fn sidecar_registered(shared: &Shared, state: &mut State, service: &str, token: Option<String>) {
    state.roots_warm = true;
    let key = LeafKey {
        service: service.to_owned(),
        token: if shared.options.dialect.is_today() { None } else { token.clone() },
    };
    let allowed = may_sign(shared, state, token.as_deref(), service).is_ok();
    let slot = state.leaves.slots.entry(key.clone()).or_default();
    slot.agent = Some(token);
    if slot.leaf.is_none() && allowed {
        // Without a leaf the first caller simply finds the slot cold.
        let _ = issue(shared, state, &key);
    }
}

/// The last sidecar of the service is gone.
pub(crate) fn sidecar_gone(state: &mut State, service: &str) {
    for (key, slot) in &mut state.leaves.slots {
        if key.service == service {
            slot.agent = None;
        }
    }
}

/// Issues every leaf of the service anew; a fault that was set or cleared is seen at once.
pub(crate) fn reissue(shared: &Shared, state: &mut State, service: &str) -> Result<(), CaError> {
    let keys: Vec<LeafKey> = state
        .leaves
        .slots
        .iter()
        .filter(|(key, slot)| key.service == service && slot.leaf.is_some())
        .map(|(key, _)| key.clone())
        .collect();
    for key in keys {
        issue(shared, state, &key)?;
    }
    Ok(())
}

/// Every leaf anew, as after a change of the lifetime.
pub(crate) fn reissue_all(shared: &Shared, state: &mut State) -> Result<(), CaError> {
    let services: Vec<String> = state.leaves.slots.keys().map(|k| k.service.clone()).collect();
    for service in services {
        reissue(shared, state, &service)?;
    }
    Ok(())
}

/// What happens at once: a cold slot is filled, a leaf of an old root is replaced unless somebody is blocked.
fn first_look(shared: &Shared, state: &mut State, req: &Request, key: &LeafKey) -> Result<(Arc<Leaf>, bool), Answer> {
    let dialect = shared.options.dialect;
    let foreign = req.param("dc").is_some_and(|dc| !dc.is_empty() && dc != shared.options.datacenter);
    let cold = state.leaves.slots.get(key).is_none_or(|slot| slot.leaf.is_none());
    if foreign && (cold || !dialect.is_today()) {
        return Err(Answer::text(500, "No path to datacenter"));
    }
    if key.service.is_empty() {
        return Err(Answer::text(
            500,
            match dialect {
                Dialect::Today => "URI must be either service, agent, server, or kind",
                Dialect::Old => "URI must be either service or agent",
            },
        ));
    }
    if key.service.contains('/') {
        let uri = format!(
            "spiffe://{}/ns/default/dc/{}/svc/{}",
            state.ca.trust_domain(),
            shared.options.datacenter,
            key.service
        );
        return Err(Answer::text(500, format!("SPIFFE ID is not in the expected format: {uri}")));
    }
    let lost = state.servers_lost.is_some();
    if cold && lost {
        return Err(servers::cold_leaf());
    }
    if cold {
        may_sign(shared, state, req.token.as_deref(), &key.service).map_err(Answer::forbidden)?;
        let leaf = issue(shared, state, key).map_err(|e| Answer::text(500, e.to_string()))?;
        return Ok((leaf, false));
    }
    let now = Instant::now();
    let active = state.ca.active().map(|r| r.id.clone());
    let stale_on_purpose = state.leaves.faults.get(&key.service) == Some(&LeafFault::Stale);
    let slot = state.leaves.slots.entry(key.clone()).or_default();
    let watched = slot.agent.is_some() || !slot.blocked.is_empty();
    let waits_for_jitter = watched && slot.retry_at.is_none() && slot.rotation_due.is_some_and(|due| due > now);
    let of_old_root = slot.leaf.as_ref().is_some_and(|leaf| Some(&leaf.root_id) != active.as_ref());
    let over_age = slot.leaf.as_ref().is_some_and(|leaf| leaf.renew_at <= now);
    if !stale_on_purpose
        && !lost
        && (over_age || of_old_root && !waits_for_jitter)
        && may_sign(shared, state, req.token.as_deref(), &key.service).is_ok()
    {
        let leaf = issue(shared, state, key).map_err(|e| Answer::text(500, e.to_string()))?;
        return Ok((leaf, false));
    }
    let leaf = state.leaves.slots.get(key).and_then(|s| s.leaf.clone());
    leaf.map(|leaf| (leaf, watched)).ok_or_else(|| Answer::text(500, "the leaf is gone"))
}

/// Today's text for an unknown token is the same short one here.
fn may_sign(shared: &Shared, state: &State, token: Option<&str>, service: &str) -> Result<(), String> {
    let caller = resolve(state.acl.as_ref(), token).ok_or_else(|| "ACL not found".to_owned())?;
    caller.need(Right::ServiceWrite(service), shared.options.dialect)
}

fn issue(shared: &Shared, state: &mut State, key: &LeafKey) -> Result<Arc<Leaf>, CaError> {
    let fault = state.leaves.faults.get(&key.service).cloned();
    let pair = shared.keys.p256()?;
    let named = match &fault {
        Some(LeafFault::OtherService(other)) => other.as_str(),
        _ => &key.service,
    };
    let validity = match fault {
        Some(LeafFault::Expired) => Validity::Over,
        _ => Validity::Fresh(state.leaf_ttl),
    };
    let signed = state.ca.sign_leaf(&pair, shared.options.dialect, &shared.options.datacenter, named, validity)?;
    let shown = match fault {
        Some(LeafFault::WrongKey) => shared.keys.p256()?,
        _ => pair,
    };
    let now = Instant::now();
    let (from, to) = (*shared.options.leaf_renewal.start(), *shared.options.leaf_renewal.end());
    let part = from + (to - from) * rand::rng().random::<f64>();
    // A tenth of a second at least, or the keeper would spin on a lifetime of nothing.
    let life = state.leaf_ttl.mul_f64(part.clamp(0.0, 1.0)).max(Duration::from_millis(100));
    let index = state.next_index();
    let leaf = Arc::new(Leaf {
        serial: signed.serial,
        cert_pem: match fault {
            Some(LeafFault::GarbageCertificate) => garbage("CERTIFICATE"),
            _ => signed.chain_pem,
        },
        key_pem: match fault {
            Some(LeafFault::GarbageKey) => garbage("EC PRIVATE KEY"),
            _ => sec1_pem(shown.as_ref())?,
        },
        uri: match fault {
            Some(LeafFault::OtherService(_)) => state.ca.service_uri(&shared.options.datacenter, &key.service),
            _ => signed.uri,
        },
        valid_after: rfc3339(signed.not_before),
        valid_before: rfc3339(signed.not_after),
        index,
        root_id: signed.root_id,
        made: now,
        renew_at: now + life,
    });
    let slot = state.leaves.slots.entry(key.clone()).or_default();
    slot.leaf = Some(Arc::clone(&leaf));
    slot.rotation_due = None;
    slot.retry_at = None;
    state.leaves.turns += 1;
    Ok(leaf)
}

fn garbage(label: &str) -> String {
    crate::keys::pem(label, b"this is not what it says it is")
}

fn render(shared: &Shared, service: &str, leaf: &Leaf, hit: bool) -> Answer {
    let body = json!({
        "SerialNumber": leaf.serial,
        "CertPEM": leaf.cert_pem,
        "PrivateKeyPEM": leaf.key_pem,
        "Service": service,
        "ServiceURI": leaf.uri,
        "ValidAfter": leaf.valid_after,
        "ValidBefore": leaf.valid_before,
        "CreateIndex": leaf.index,
        "ModifyIndex": leaf.index,
    });
    let answer = Answer::json(shared.options.dialect, &body).with("X-Consul-Index", leaf.index.max(1));
    if hit {
        answer.with("X-Cache", "HIT").with("Age", leaf.made.elapsed().as_secs())
    } else {
        answer.with("X-Cache", "MISS")
    }
}

/// Stands in the list of blocked callers for as long as the call lasts.
struct Blocked<'a> {
    shared: &'a Shared,
    key: LeafKey,
    id: u64,
    failures: u64,
}

impl<'a> Blocked<'a> {
    fn new(shared: &'a Shared, key: LeafKey, token: Option<String>) -> Self {
        // The keeper must learn of it: the leaf may be due already.
        let (id, failures) = shared.update(|state| {
            state.leaves.next_caller += 1;
            let id = state.leaves.next_caller;
            let slot = state.leaves.slots.entry(key.clone()).or_default();
            slot.blocked.push((id, token));
            (id, slot.failures)
        });
        Self { shared, key, id, failures }
    }
}

impl Drop for Blocked<'_> {
    fn drop(&mut self) {
        self.shared.quietly(|state| {
            if let Some(slot) = state.leaves.slots.get_mut(&self.key) {
                slot.blocked.retain(|(id, _)| *id != self.id);
            }
        });
    }
}
