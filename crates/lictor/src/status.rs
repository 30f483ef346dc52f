//! How one sidecar is: what the admin pages show.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lictor_core::{
    CertSource as _, Crypto, Material,
    consul::{AgentClient, ConsulCertSource, OwnDefinition},
    material::Root,
};
use lictor_proxy::{ConnectionInfo, ListenerState, Sidecar};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tracing_appender::non_blocking::ErrorCounter;

use crate::{
    admin::{self, Ready, metrics},
    crypto::Report,
    records::Records,
    settings::Tls,
};

/// One sidecar from its start on, also before its registration is known.
pub(crate) struct Status {
    /// How logs and pages call it before its service is known.
    pub(crate) name: String,
    pub(crate) crypto: Arc<Crypto>,
    pub(crate) tls: Tls,
    pub(crate) client: AgentClient,
    pub(crate) records: Records,
    pub(crate) log_lines_dropped: ErrorCounter,
    /// Where the registration is followed.
    pub(crate) definition: Option<OwnDefinition>,
    /// What of the registration is not served.
    pub(crate) notes: Mutex<Vec<String>>,
    /// Set when the end has begun.
    pub(crate) stopping: AtomicBool,
    /// Set once the service is known.
    pub(crate) running: OnceLock<Running>,
}

/// The parts that exist once the service is known.
pub(crate) struct Running {
    pub(crate) service: String,
    pub(crate) source: Arc<ConsulCertSource>,
    pub(crate) sidecar: Sidecar,
}

impl Status {
    /// Who calls now, one line each; for the service of `lictor dev` that shows it.
    #[cfg(feature = "dev")]
    pub(crate) fn callers(&self) -> Vec<String> {
        let Some(running) = self.running.get() else { return Vec::new() };
        let inbound =
            running.sidecar.connections().into_iter().filter(|c| c.direction == lictor_proxy::Direction::Inbound);
        inbound
            .map(|c| {
                let rule = c.rule.unwrap_or_default();
                format!(
                    "{}\n    over {} with {}, {}\n    allowed: {rule}",
                    c.peer_identity, c.tls.version, c.tls.group, c.tls.suite
                )
            })
            .collect()
    }

    /// The service, or what is followed while it is not known yet.
    pub(crate) fn service(&self) -> &str {
        self.running.get().map_or(&*self.name, |running| &*running.service)
    }

    /// Keeps what of the registration is not served, and logs what of that is new.
    pub(crate) fn note(&self, notes: Vec<String>) {
        let mut kept = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for note in notes.iter().filter(|note| !kept.contains(note)) {
            tracing::warn!(sidecar = self.name, "of the registration: {note}");
        }
        *kept = notes;
    }

    fn material(&self) -> Option<Arc<Material>> {
        self.running.get()?.source.watch().borrow().clone()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl admin::Status for Status {
    fn ready(&self) -> Ready {
        if self.stopping.load(Ordering::Relaxed) {
            return Ready { ready: false, pending: vec!["stopping".to_owned()], problems: Vec::new() };
        }
        let (mut pending, mut problems) = (Vec::new(), Vec::new());
        let mut serves = true;
        if let Some(definition) = &self.definition {
            let state = definition.watch().borrow().clone();
            let problem = state.problem.map(|problem| problem.to_string());
            match (state.definition, problem) {
                (None, problem) => {
                    pending.push(problem.unwrap_or_else(|| format!("the registration of {}", self.name)));
                }
                (Some(_), problem) => problems.extend(problem),
            }
        }
        if let Some(running) = self.running.get() {
            let state = running.source.state();
            pending.extend(state.pending);
            problems.extend(state.problems);
            for listener in running.sidecar.listeners() {
                let name =
                    listener.upstream.map_or_else(|| "the mesh side".to_owned(), |name| format!("upstream {name}"));
                let bind = listener.bind;
                match listener.state {
                    ListenerState::Listening(_) => {}
                    ListenerState::WaitingForMaterial => {
                        pending.push(format!("{name} on {bind} waits for a certificate"));
                    }
                    ListenerState::Failed { error, .. } => {
                        serves = false;
                        problems.push(format!("{name} cannot listen on {bind}: {error}"));
                    }
                    ListenerState::Closed => pending.push(format!("{name} on {bind} is closed")),
                }
            }
            problems.extend(running.sidecar.material_problem());
        } else if pending.is_empty() {
            pending.push("the start of the sidecar".to_owned());
        }
        if let Some(material) = self.material() {
            let now = now();
            if now > material.leaf.not_after().as_secs() {
                serves = false;
                problems.push("our certificate has expired and the agent has given no new one".to_owned());
            }
            if material.roots.anchors().is_empty() {
                serves = false;
                problems.push("none of the agent's roots can be used, so no peer passes".to_owned());
            }
        }
        problems.extend(self.notes());
        Ready { ready: pending.is_empty() && serves, pending, problems }
    }

    fn metrics(&self) -> String {
        let Some(running) = self.running.get() else { return "# EOF\n".to_owned() };
        metrics::page(metrics::Numbers {
            service: self.service().to_owned(),
            crypto: Arc::clone(&self.crypto),
            proxy: running.sidecar.metrics(),
            agent: self.client.health(),
            ready: self.ready().ready,
            material: self.material().map(|material| metrics::MaterialNumbers {
                generation: material.generation,
                not_before: material.leaf.not_before().as_secs(),
                not_after: material.leaf.not_after().as_secs(),
                roots: material.roots.anchors().len(),
                roots_generation: material.roots.generation(),
            }),
            log_lines_dropped: u64::try_from(self.log_lines_dropped.dropped_lines()).unwrap_or(u64::MAX),
        })
    }

    fn crypto(&self) -> Value {
        json!(Report::new(&self.tls.policy, self.tls.require_fips, vec![(*self.crypto).clone()]))
    }

    fn certs(&self) -> Value {
        let Some(material) = self.material() else { return json!({"generation": null}) };
        let leaf = &material.leaf;
        json!({
            "generation": material.generation,
            "leaf": {
                "uri": leaf.identity().to_string(),
                "serial": leaf.serial().as_str(),
                "not_before": at(leaf.not_before()),
                "not_after": at(leaf.not_after()),
                "seconds_left": leaf.not_after().as_secs().saturating_sub(now()),
                "certificates_in_chain": leaf.chain().len(),
            },
            "roots": {
                "generation": material.roots.generation(),
                "trust_domain": material.roots.trust_domain().as_str(),
                "roots": material.roots.anchors().iter().map(|each| root(each, now())).collect::<Vec<_>>(),
                "ignored": material.roots.ignored(),
            },
        })
    }

    fn connections(&self) -> Value {
        let open = self.running.get().map(|running| running.sidecar.connections()).unwrap_or_default();
        let own = self.material().map(|material| material.leaf.identity().to_string()).unwrap_or_default();
        json!({
            "open": open.iter().map(connection).collect::<Vec<_>>(),
            "ended": self.records.of(&own),
        })
    }
}

/// A root as an operator finds it in Consul's list: `serial` is `SerialNumber` there, `key_id` is `SigningKeyID`.
fn root(root: &Root, now: u64) -> Value {
    let (not_before, not_after) = root.validity();
    json!({
        "subject": root.subject(),
        "serial": root.serial(),
        "key_id": root.key_id(),
        "not_before": at(not_before),
        "not_after": at(not_after),
        "expired": now > not_after.as_secs(),
        "bytes": root.certificate().len(),
    })
}

fn at(time: UnixTime) -> String {
    admin::rfc3339(UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

fn connection(info: &ConnectionInfo) -> Value {
    json!({
        "id": info.id,
        "direction": info.direction.name(),
        "upstream": info.upstream,
        "opener": info.opener.map(|opener| opener.to_string()),
        "instance": info.instance,
        "own_identity": info.own_identity,
        "peer_identity": info.peer_identity,
        "peer_serial": info.peer_serial,
        "rule": info.rule,
        "decided_at": info.decided_at.map(admin::rfc3339),
        "tls": {"version": info.tls.version, "suite": info.tls.suite, "group": info.tls.group},
        "started": admin::rfc3339(info.started),
        "age_ms": u64::try_from(info.age.as_millis()).unwrap_or(u64::MAX),
        "tx_bytes": info.tx_bytes,
        "rx_bytes": info.rx_bytes,
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use lictor_core::Roots;

    use super::*;

    #[test]
    fn a_root_is_shown_by_what_consul_calls_it_and_whether_it_has_expired() {
        let recorded = include_str!("../../core/tests/captures/roots.json");
        let pem = recorded.split("\"RootCert\": \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a root");
        let roots = Roots::from_pem(1, "a.consul", [pem.replace("\\n", "\n").as_str()]).expect("a good root");
        let anchor = &roots.anchors()[0];
        let last = anchor.validity().1.as_secs();
        let shown = root(anchor, last);
        assert_eq!((&shown["serial"], &shown["expired"]), (&json!("7"), &json!(false)));
        assert!(shown["key_id"].as_str().expect("it has one").starts_with("b2:d0:36:93:"), "{shown}");
        assert!(shown["subject"].as_str().expect("it has one").contains(".consul.ca."), "{shown}");
        assert_eq!(root(anchor, last + 1)["expired"], json!(true));
    }
}
