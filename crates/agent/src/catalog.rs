//! Services and their instances: the model, and the index of each name.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher as _};

use serde_json::{Map, Value};

use crate::checks::{Check, Status};
use crate::store::State;

/// The node of an instance that is not on this agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) datacenter: String,
    /// An agent runs there. Else it is known from the catalog only, without ID, meta and the check of its agent.
    pub(crate) agent: bool,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Empty for an ordinary service.
    pub(crate) kind: String,
    pub(crate) tags: Vec<String>,
    pub(crate) meta: BTreeMap<String, String>,
    pub(crate) port: u16,
    pub(crate) address: String,
    pub(crate) socket_path: String,
    pub(crate) tagged_addresses: Map<String, Value>,
    pub(crate) weights: (i64, i64),
    pub(crate) enable_tag_override: bool,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) native: bool,
    /// The ID of the service that this sidecar was registered with.
    pub(crate) sidecar_of: Option<String>,
    /// `None`: this agent's own node.
    pub(crate) node: Option<Node>,
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
}

/// What a `connect-proxy` says about itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Proxy {
    pub(crate) destination_name: String,
    pub(crate) destination_id: String,
    pub(crate) local_address: String,
    pub(crate) local_port: u16,
    pub(crate) local_socket: String,
    pub(crate) mode: String,
    pub(crate) config: Map<String, Value>,
    pub(crate) upstreams: Vec<Map<String, Value>>,
    pub(crate) mesh_gateway: Map<String, Value>,
    pub(crate) expose: Map<String, Value>,
}

impl Service {
    /// The name under which `/v1/health/connect/` lists this instance, if it does.
    pub(crate) fn connect_name(&self) -> Option<&str> {
        if self.native {
            return Some(&self.name);
        }
        match (&self.proxy, self.kind.as_str()) {
            (Some(proxy), "connect-proxy") => Some(&proxy.destination_name),
            _ => None,
        }
    }

    pub(crate) fn key(&self) -> String {
        match &self.node {
            None => self.id.clone(),
            // A slash cannot stand in the path of an agent endpoint, so no local ID is taken.
            Some(node) => format!("{}/{}", node.name, self.id),
        }
    }

    pub(crate) fn same_content(&self, other: &Self) -> bool {
        let mut other = other.clone();
        other.create_index = self.create_index;
        other.modify_index = self.modify_index;
        *self == other
    }
}

/// All instances and all checks.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) services: BTreeMap<String, Service>,
    /// By check ID.
    pub(crate) checks: BTreeMap<String, Check>,
    /// The last change of anything here.
    pub(crate) index: u64,
    pub(crate) node_index: u64,
    /// The last change under a name in lower case; `connect:` in front for `/v1/health/connect/`.
    names: HashMap<String, u64>,
    virtual_ips: HashMap<String, u8>,
}

impl Catalog {
    /// Index of `/v1/health/service/:name`.
    pub(crate) fn service_index(&self, name: &str) -> u64 {
        self.names.get(&name.to_lowercase()).copied().unwrap_or(self.index)
    }

    /// Index of `/v1/health/connect/:name`.
    pub(crate) fn connect_index(&self, name: &str) -> u64 {
        self.names.get(&format!("connect:{}", name.to_lowercase())).copied().unwrap_or(self.index)
    }

    /// Checks of one instance, in the order of their IDs.
    pub(crate) fn checks_of<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Check> + 'a {
        self.checks.values().filter(move |c| c.service == key)
    }

    /// The worst status of an instance's checks; without checks it passes.
    pub(crate) fn status_of(&self, key: &str) -> Status {
        self.checks_of(key).map(|c| c.status).max().unwrap_or(Status::Passing)
    }

    /// `240.0.0.n` for the service that a mesh instance stands for. Never to be dialled.
    pub(crate) fn virtual_ip(&self, connect_name: &str) -> String {
        let n = self.virtual_ips.get(connect_name).copied().unwrap_or(1);
        format!("240.0.0.{n}")
    }

    fn touch(&mut self, service: &Service, index: u64) {
        self.index = index;
        self.names.insert(service.name.to_lowercase(), index);
        if let Some(name) = service.connect_name() {
            let next = u8::try_from(self.virtual_ips.len() + 1).unwrap_or(u8::MAX);
            self.virtual_ips.entry(name.to_owned()).or_insert(next);
            self.names.insert(format!("connect:{}", name.to_lowercase()), index);
        }
    }
}

/// Adds or replaces an instance; the same content again changes no index.
pub(crate) fn put(state: &mut State, mut service: Service) {
    let key = service.key();
    let old = state.catalog.services.get(&key);
    if old.is_some_and(|old| old.same_content(&service)) {
        return;
    }
    let old = old.cloned();
    let index = state.next_index();
    service.create_index = old.as_ref().map_or(index, |o| o.create_index);
    service.modify_index = index;
    if let Some(old) = &old {
        // It may have stood under another name before.
        state.catalog.touch(old, index);
    }
    state.catalog.touch(&service, index);
    state.catalog.services.insert(key, service);
}

/// Removes an instance with its checks, and the sidecars that were registered with it.
pub(crate) fn remove(state: &mut State, key: &str) -> bool {
    let Some(service) = state.catalog.services.remove(key) else {
        return false;
    };
    state.catalog.checks.retain(|_, check| check.service != key);
    let index = state.next_index();
    state.catalog.touch(&service, index);
    if let Some(name) = service.connect_name()
        && service.node.is_none()
        && !state.catalog.services.values().any(|s| s.node.is_none() && s.connect_name() == Some(name))
    {
        crate::leaf::sidecar_gone(state, name);
    }
    let sidecars: Vec<String> = state
        .catalog
        .services
        .values()
        .filter(|s| s.node.is_none() && service.node.is_none())
        .filter(|s| s.sidecar_of.as_deref() == Some(&service.id))
        .map(|s| s.id.clone())
        .collect();
    for id in sidecars {
        remove(state, &id);
    }
    true
}

/// A check of this instance has changed.
pub(crate) fn check_changed(state: &mut State, key: &str) -> u64 {
    let index = state.next_index();
    if let Some(service) = state.catalog.services.get(key).cloned() {
        state.catalog.touch(&service, index);
    } else {
        state.catalog.index = index;
    }
    index
}

/// The content hash: opaque, lower-case hex without padding.
pub(crate) fn content_hash(state: &State, view: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(view.to_string().as_bytes());
    hasher.write_u64(state.hash_churn);
    format!("{:x}", hasher.finish())
}

/// Keys in order of the alphabet at every depth, as Go writes maps.
pub(crate) fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<&String, &Value> = map.iter().collect();
            Value::Object(ordered.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}
