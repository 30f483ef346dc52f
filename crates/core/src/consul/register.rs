//! Registers the proxy with the agent and keeps its TTL check: `-register`.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    backoff,
    client::{AgentClient, Call, CallClass, CallError},
};

/// How long the agent waits for a sign of life before it calls the proxy critical.
const TTL: &str = "30s";

/// How often a sign of life is given.
const BEAT: Duration = Duration::from_secs(10);

/// How often the registration is compared with what the agent has.
const RECONCILE: Duration = Duration::from_secs(30);

/// How often deregistration is tried, and the pause between.
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(500);

/// How long one try of deregistration may take, so that a silent agent does not hold up the stop.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// What is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationSettings {
    /// The service that the proxy stands for.
    pub service: String,
    /// What is appended to the ID (`-register-id`), so that several proxies of a service fit on one agent.
    pub id_suffix: Option<String>,
    /// The address that others dial; the node's own when absent.
    pub address: Option<String>,
    /// The port that others dial.
    pub port: u16,
}

impl RegistrationSettings {
    /// The ID of the proxy service: `<service>-proxy`, with a suffix `<service>-proxy-<suffix>`.
    #[must_use]
    pub fn id(&self) -> String {
        let suffix = self.id_suffix.as_deref().filter(|suffix| !suffix.is_empty());
        suffix.map_or_else(|| self.name(), |suffix| format!("{}-{suffix}", self.name()))
    }

    /// The name of the proxy service.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-proxy", self.service)
    }

    fn check_id(&self) -> String {
        format!("{}-ttl", self.id())
    }

    fn body(&self, client: &AgentClient, dialect: Dialect) -> Value {
        let mut body = json!({
            "Kind": "connect-proxy",
            "ID": self.id(),
            "Name": self.name(),
            "Port": self.port,
            "Address": self.address.as_deref().unwrap_or_default(),
            "Check": {
                "CheckID": self.check_id(),
                "Name": "Lictor is ready",
                "TTL": TTL,
                "Status": "critical",
                "Notes": "The proxy passes this check while it can serve.",
            },
        });
        match dialect {
            Dialect::Proxy => body["Proxy"] = json!({ "DestinationServiceName": self.service }),
            Dialect::ProxyDestination => body["ProxyDestination"] = Value::from(&*self.service),
        }
        // An agent that does not know these keys answers 400, so they stand there only when they are set.
        for (key, value) in [("Namespace", client.namespace()), ("Partition", client.partition())] {
            if let Some(value) = value {
                body[key] = Value::from(value);
            }
        }
        body
    }

    /// Whether the agent's definition is this one.
    fn is(&self, registered: &Value) -> bool {
        let text = |key: &str| registered.get(key).and_then(Value::as_str).unwrap_or_default();
        let target = registered.pointer("/Proxy/DestinationServiceName").and_then(Value::as_str);
        text("Kind") == "connect-proxy"
            && text("Service") == self.name()
            && text("Address") == self.address.as_deref().unwrap_or_default()
            && registered.get("Port").and_then(Value::as_u64) == Some(u64::from(self.port))
            && target == Some(&*self.service)
    }
}

/// How a registration says whom the proxy stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// Consul 1.3 and later.
    Proxy,
    /// Consul 1.2. Later versions refuse its key.
    ProxyDestination,
}

impl Dialect {
    fn other(self) -> Self {
        match self {
            Self::Proxy => Self::ProxyDestination,
            Self::ProxyDestination => Self::Proxy,
        }
    }
}

/// Whether the proxy can serve, for its check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It cannot, for this reason.
    NotReady(String),
}

/// A registration that is kept until it is stopped.
///
/// Dropping it leaves the registration with the agent, whose check turns critical 30 s later.
#[derive(Debug)]
pub struct Registration {
    stop: oneshot::Sender<()>,
    stopped: tokio::task::JoinHandle<()>,
}

impl Registration {
    /// Registers, and from then on passes the check every 10 s while `readiness` says so and fails it with the reason
    /// while not. What others do to registration or check is undone: a lost check within 10 s, a changed or lost
    /// registration within 30 s.
    #[must_use]
    pub fn start(client: AgentClient, settings: RegistrationSettings, readiness: watch::Receiver<Readiness>) -> Self {
        let (stop, stopping) = oneshot::channel();
        let runtime = client.runtime().clone();
        let keeper = Keeper { client, settings, readiness, dialect: Dialect::Proxy, said: None };
        Self { stop, stopped: runtime.spawn(keeper.run(stopping)) }
    }

    /// Deregisters, trying three times, and returns when that is done or given up.
    pub async fn stop(self) {
        // A keeper that is gone already has nothing to be told.
        let _ = self.stop.send(());
        let _ = self.stopped.await;
    }
}

struct Keeper {
    client: AgentClient,
    settings: RegistrationSettings,
    readiness: watch::Receiver<Readiness>,
    dialect: Dialect,
    /// The trouble that the log knows.
    said: Option<String>,
}

impl Keeper {
    async fn run(mut self, stopping: oneshot::Receiver<()>) {
        tokio::select! {
            () = self.keep() => {}
            // Both ways of ending mean the same: the owner asked for it, or is gone.
            asked = stopping => if asked.is_err() { return },
        }
        self.deregister().await;
    }

    async fn keep(&mut self) {
        self.register().await;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reconciled = Instant::now();
        loop {
            let gone = tokio::select! {
                _ = beat.tick() => false,
                changed = self.readiness.changed() => changed.is_err(),
            };
            if gone {
                // Whoever knew whether we are ready is gone, so the check may run out.
                return std::future::pending().await;
            }
            if reconciled.elapsed() >= RECONCILE {
                reconciled = Instant::now();
                if !self.is_registered().await {
                    self.register().await;
                }
            }
            self.beat().await;
        }
    }

    /// Registers, as often as it takes.
    async fn register(&mut self) {
        let mut failures = 0_u32;
        loop {
            let body = self.settings.body(&self.client, self.dialect).to_string();
            let call = Call::put(CallClass::Registration, ["v1", "agent", "service", "register"])
                .ours(&self.client)
                .param("replace-existing-checks", "true")
                .body(Bytes::from(body));
            let outcome = self.client.call(&call).await;
            let Err(error) = outcome else {
                self.say("register", None);
                tracing::info!(proxy.id = self.settings.id(), "registered");
                return;
            };
            let malformed = error.status() == Some(StatusCode::BAD_REQUEST);
            // It may be an agent of 1.2, so the other dialect is tried next. What today's agents say against that one
            // need not be told.
            if self.dialect == Dialect::Proxy || !malformed {
                self.say("register", Some(&error));
            }
            if malformed {
                self.dialect = self.dialect.other();
            }
            failures += 1;
            let pause = backoff::pause(failures);
            tokio::time::sleep(if error.is_transport() { pause.min(Duration::from_secs(1)) } else { pause }).await;
        }
    }

    /// Tells the agent how we are; registers again where it does not know the check.
    async fn beat(&mut self) {
        let outcome = self.tell().await;
        let lost = outcome.as_ref().err().and_then(CallError::status);
        if !matches!(lost, Some(StatusCode::NOT_FOUND | StatusCode::INTERNAL_SERVER_ERROR)) {
            self.say("keep the check of", outcome.as_ref().err());
            return;
        }
        self.register().await;
        let outcome = self.tell().await;
        self.say("keep the check of", outcome.as_ref().err());
    }

    async fn tell(&mut self) -> Result<(), CallError> {
        let readiness = self.readiness.borrow_and_update().clone();
        let (verdict, note) = match readiness {
            Readiness::Ready => ("pass", String::new()),
            Readiness::NotReady(why) => ("fail", why),
        };
        let check = self.settings.check_id();
        let call = Call::put(CallClass::Registration, ["v1", "agent", "check", verdict, &check])
            .ours(&self.client)
            .param("note", note);
        self.client.call(&call).await.map(drop)
    }

    async fn is_registered(&mut self) -> bool {
        // 1.2 does not show a single service; there a lost registration shows in the check.
        if self.dialect == Dialect::ProxyDestination {
            return true;
        }
        let id = self.settings.id();
        let call = Call::get(CallClass::Registration, ["v1", "agent", "service", &id]).ours(&self.client);
        match self.client.call(&call).await {
            Ok(answer) => {
                let same = serde_json::from_slice(&answer.body).is_ok_and(|registered| self.settings.is(&registered));
                if !same {
                    tracing::warn!(proxy.id = id, "somebody else changed the registration; registering again");
                }
                same
            }
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {
                tracing::warn!(proxy.id = id, "the registration is gone; registering again");
                false
            }
            // Whatever else: the check will tell.
            Err(_) => true,
        }
    }

    async fn deregister(&mut self) {
        let id = self.settings.id();
        let call = Call::put(CallClass::Registration, ["v1", "agent", "service", "deregister", &id])
            .ours(&self.client)
            .deadline(GOODBYE_DEADLINE);
        for goodbye in 0..GOODBYES {
            if goodbye > 0 {
                tokio::time::sleep(GOODBYE_PAUSE).await;
            }
            match self.client.call(&call).await {
                Ok(_) => return tracing::info!(proxy.id = id, "deregistered"),
                Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => return,
                Err(error) => tracing::warn!(proxy.id = id, %error, "cannot deregister"),
            }
        }
    }

    /// Logs an error once for each new wording.
    fn say(&mut self, what: &str, error: Option<&CallError>) {
        let words = error.map(|error| format!("cannot {what} {}: {error}", self.settings.id()));
        if let Some(words) = words.as_ref().filter(|words| self.said.as_ref() != Some(*words)) {
            tracing::warn!("{words}");
        }
        self.said = words;
    }
}
