//! Asks the agent whether a peer may connect: `/v1/agent/connect/authorize`.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use rand::Rng as _;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use super::client::{AgentClient, Call, CallClass, CallError, words};
use crate::{
    authorizer::{Authorizer, Inbound, Permit, Refusal, RefusalKind},
    identity::{DEFAULT, ServiceName},
    material::Material,
};

/// The most that an answer may hold, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// How long a question may take in all, with its repetitions, where the peer can wait so long.
const DEADLINE: Duration = Duration::from_secs(8);

/// How many different questions about one identity may be on their way at once, so that one peer with many
/// certificates cannot take all slots.
const MAX_PER_IDENTITY: usize = 2;

/// How often a question is repeated whose connection broke. An agent at its limit of connections may cut one off
/// before its 429 is read.
const MAX_BROKEN: u32 = 3;

/// An [`Authorizer`] that asks the agent about each connection.
///
/// Of identical questions only one is on its way at a time; whoever comes while it is waits for the next one, which
/// is again asked once for all. So no decision is older than the connection it is about, and a denied peer in a loop
/// costs one call at a time.
#[derive(Clone)]
pub struct ConsulAuthorizer {
    client: AgentClient,
    own: watch::Receiver<Option<Arc<Material>>>,
    desk: Desk,
    /// For a managed proxy: whether the log knows already that the agent does not take its token here.
    managed: Option<Arc<AtomicBool>>,
}

/// The questions that are on their way or wait for their turn.
type Desk = Arc<Mutex<HashMap<Identity, Queue>>>;

/// Whom a question is about: target and URI.
type Identity = (String, String);

/// The questions about one identity, by the serial of its certificate.
struct Queue {
    slots: Arc<Semaphore>,
    questions: HashMap<String, Lines>,
}

/// The two generations of one question: at most one is sent, at most one waits for it.
#[derive(Default)]
struct Lines {
    /// Held by the one that is sent.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Not sent yet; whoever comes joins it.
    waiting: Option<watch::Receiver<Option<Outcome>>>,
    /// How many of the two there are.
    tickets: usize,
}

type Outcome = Result<Permit, Refusal>;

impl ConsulAuthorizer {
    /// An authorizer that asks through `client` on behalf of the service whose material `own` holds.
    #[must_use]
    pub fn new(client: AgentClient, own: watch::Receiver<Option<Arc<Material>>>) -> Self {
        Self { client, own, desk: Arc::default(), managed: None }
    }

    /// The same for a proxy that the agent itself started and gave a token to. Where the agent does not know that
    /// token for this question, the log says so once and what to do about it.
    #[must_use]
    pub fn of_managed_proxy(mut self) -> Self {
        self.managed = Some(Arc::default());
        self
    }

    /// Consul 1.2.0 and 1.2.1 look the token of a managed proxy up among the ACL tokens, where it is not.
    fn explain(&self, refusal: &Refusal, target: &ServiceName) {
        if let Some(said) = &self.managed
            && refusal.kind == RefusalKind::Forbidden
            && refusal.detail.contains("ACL not found")
            && !said.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                "the agent does not accept the token that it gave this managed proxy for authorize and health, as \
                 Consul 1.2.0 and 1.2.1 with ACLs do: no inbound connection can pass and no upstream is found; use \
                 Consul 1.2.2 or later, or name a file with a token that has service:write for {target} with -token-file"
            );
        }
    }

    /// Makes sure that what the agent will be asked about is what our own certificate says we are.
    fn check_target(&self, inbound: &Inbound<'_>) -> Result<(), Refusal> {
        let own = self.own.borrow();
        let Some(material) = own.as_ref() else {
            return Err(refuse(RefusalKind::BadRequest, "we have no certificate yet"));
        };
        let identity = material.leaf.identity();
        let namespace = self.client.namespace().unwrap_or(DEFAULT);
        let partition = self.client.partition().unwrap_or(DEFAULT);
        if identity.is_named(inbound.target)
            && identity.namespace().eq_ignore_ascii_case(namespace)
            && identity.partition().eq_ignore_ascii_case(partition)
        {
            return Ok(());
        }
        let target = inbound.target;
        Err(refuse(
            RefusalKind::BadRequest,
            format!("we are {identity} and would ask about {target} in namespace {namespace}, partition {partition}"),
        ))
    }

    /// Joins the question that is not sent yet, or lines up a new one.
    fn line_up(&self, identity: Identity, serial: String, within: Duration) -> watch::Receiver<Option<Outcome>> {
        let mut desk = lock(&self.desk);
        let queue = desk
            .entry(identity.clone())
            .or_insert_with(|| Queue { slots: Arc::new(Semaphore::new(MAX_PER_IDENTITY)), questions: HashMap::new() });
        let lines = queue.questions.entry(serial.clone()).or_default();
        if let Some(waiting) = &lines.waiting {
            return waiting.clone();
        }
        let (tell, told) = watch::channel(None);
        lines.waiting = Some(told.clone());
        lines.tickets += 1;
        let (turn, slots) = (lines.turn.clone(), queue.slots.clone());
        let ticket = Ticket { desk: self.desk.clone(), identity, serial, waiting: true };
        let client = self.client.clone();
        let deadline = Instant::now() + DEADLINE.min(within);
        drop(desk);
        // A task of its own, because others may wait for its answer when whoever asked first has gone; on the thread
        // that asks, because each hop to another costs more than the question.
        tokio::spawn(async move { tell.send_replace(Some(ask(client, ticket, turn, slots, deadline).await)) });
        told
    }
}

#[async_trait]
impl Authorizer for ConsulAuthorizer {
    async fn authorize(&self, inbound: &Inbound<'_>) -> Result<Permit, Refusal> {
        self.check_target(inbound)?;
        let identity = (inbound.target.as_str().to_owned(), inbound.peer.uri().to_owned());
        let mut told = self.line_up(identity, inbound.peer.serial().as_str().to_owned(), inbound.within);
        let outcome = match told.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        let outcome = outcome
            .unwrap_or_else(|| Err(refuse(RefusalKind::AgentError, "the question was dropped before its answer")));
        outcome.inspect_err(|refusal| self.explain(refusal, inbound.target))
    }
}

impl fmt::Debug for ConsulAuthorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsulAuthorizer").field("client", &self.client).finish_non_exhaustive()
    }
}

/// A place at the desk, given back on whatever way a question ends.
struct Ticket {
    desk: Desk,
    identity: Identity,
    serial: String,
    /// Whether others may still join the question.
    waiting: bool,
}

impl Ticket {
    /// From now on whoever comes asks anew.
    fn close(&mut self) {
        if std::mem::take(&mut self.waiting)
            && let Some(queue) = lock(&self.desk).get_mut(&self.identity)
            && let Some(lines) = queue.questions.get_mut(&self.serial)
        {
            lines.waiting = None;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close();
        let mut desk = lock(&self.desk);
        let Some(queue) = desk.get_mut(&self.identity) else { return };
        if let Some(lines) = queue.questions.get_mut(&self.serial) {
            lines.tickets -= 1;
            if lines.tickets == 0 {
                queue.questions.remove(&self.serial);
            }
        }
        if queue.questions.is_empty() {
            desk.remove(&self.identity);
        }
    }
}

/// Asks when the turn has come.
async fn ask(
    client: AgentClient,
    mut ticket: Ticket,
    turn: Arc<tokio::sync::Mutex<()>>,
    slots: Arc<Semaphore>,
    deadline: Instant,
) -> Outcome {
    let place = async {
        let turn = turn.lock_owned().await;
        // The semaphore is never closed.
        (turn, slots.acquire_owned().await)
    };
    let Ok(_place) = tokio::time::timeout_at(deadline, place).await else {
        return Err(refuse(RefusalKind::Timeout, "earlier questions about the same identity are unanswered"));
    };
    ticket.close();
    put(&client, &ticket.identity, &ticket.serial, deadline).await
}

/// The body, with exactly these keys: agents answer any other one with 400.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Question<'a> {
    target: &'a str,
    #[serde(rename = "ClientCertURI")]
    client_cert_uri: &'a str,
    client_cert_serial: &'a str,
}

/// Puts one question, again while the agent is overrun and there is time.
async fn put(client: &AgentClient, identity: &Identity, serial: &str, deadline: Instant) -> Outcome {
    let question = Question { target: &identity.0, client_cert_uri: &identity.1, client_cert_serial: serial };
    let body = serde_json::to_vec(&question)
        .map_err(|error| refuse(RefusalKind::BadRequest, format!("the question cannot be written: {error}")))?;
    let call = Call::post(CallClass::Authorize, ["v1", "agent", "connect", "authorize"], Bytes::from(body))
        .ours(client)
        .max_body(MAX_ANSWER);
    let mut broken = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let refusal = match client.call(&call.clone().deadline(left)).await {
            Ok(answer) => return judge(&answer.body),
            Err(error) => {
                broken += u32::from(matches!(error, CallError::Broken(_)));
                could_not_decide(&error)
            }
        };
        let again = match refusal.kind {
            RefusalKind::Overloaded => true,
            RefusalKind::Unreachable => broken > 0 && broken <= MAX_BROKEN,
            _ => false,
        };
        let pause = Duration::from_millis(rand::rng().random_range(50..200));
        if !again || Instant::now() + pause >= deadline {
            return Err(refusal);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Reads a 200. Only one JSON object in which `Authorized` is `true`, each key once, permits.
fn judge(body: &[u8]) -> Outcome {
    let answer: Decision = serde_json::from_slice(body).map_err(|error| {
        refuse(RefusalKind::Unparsable, format!("the agent's decision cannot be read: {}", words(&error.to_string())))
    })?;
    let reason = words(&answer.reason);
    if answer.authorized {
        Ok(Permit::granted_by(reason, SystemTime::now()))
    } else {
        Err(refuse(RefusalKind::Denied, reason))
    }
}

fn could_not_decide(error: &CallError) -> Refusal {
    let kind = match error {
        CallError::Connect(_) | CallError::Broken(_) => RefusalKind::Unreachable,
        CallError::Timeout(_) => RefusalKind::Timeout,
        CallError::TooLarge(_) => RefusalKind::Unparsable,
        CallError::Name(_) => RefusalKind::BadRequest,
        CallError::Status { status, .. } => match status.as_u16() {
            400 => RefusalKind::BadRequest,
            403 => RefusalKind::Forbidden,
            429 => RefusalKind::Overloaded,
            _ => RefusalKind::AgentError,
        },
    };
    refuse(kind, error.to_string())
}

fn refuse(kind: RefusalKind, detail: impl Into<String>) -> Refusal {
    Refusal { kind, detail: detail.into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under this lock in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The agent's decision.
struct Decision {
    authorized: bool,
    reason: String,
}

impl<'de> Deserialize<'de> for Decision {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DecisionVisitor)
    }
}

struct DecisionVisitor;

impl<'de> Visitor<'de> for DecisionVisitor {
    type Value = Decision;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with Authorized and Reason")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Decision, A::Error> {
        let (mut authorized, mut reason) = (None, None);
        let mut keys = Vec::<String>::new();
        while let Some(key) = map.next_key::<String>()? {
            // Consul's decoder takes keys in any case, so keys that differ by case alone are one key twice.
            if keys.iter().any(|other| other.eq_ignore_ascii_case(&key)) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice")));
            }
            match key.as_str() {
                "Authorized" => authorized = Some(map.next_value::<bool>()?),
                "Reason" => reason = map.next_value::<Option<String>>()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            // More keys than this no agent has, and comparing each with all others must stay cheap.
            if keys.len() >= 32 {
                return Err(A::Error::custom("too many keys"));
            }
            keys.push(key);
        }
        let authorized = authorized.ok_or_else(|| A::Error::missing_field("Authorized"))?;
        Ok(Decision { authorized, reason: reason.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(body: &str) -> Option<RefusalKind> {
        judge(body.as_bytes()).err().map(|refusal| refusal.kind)
    }

    #[test]
    fn only_one_object_with_authorized_true_permits() {
        assert_eq!(judge(br#"{"Authorized":true,"Reason":"r"}"#).unwrap().rule(), "r");
        for body in [
            r#"{"Authorized":true}"#,
            r#" {"Reason":null,"Authorized":true} "#,
            r#"{"Authorized":true,"New":{"a":[1]}}"#,
        ] {
            assert_eq!(kind(body), None, "{body}");
        }
        assert_eq!(kind(r#"{"Authorized":false,"Reason":"no"}"#), Some(RefusalKind::Denied));
    }

    #[test]
    fn whatever_else_comes_with_a_200_refuses_as_unparsable() {
        for body in [
            "",
            "true",
            "null",
            "[]",
            "{}",
            r#"[{"Authorized":true}]"#,
            r#"{"Authorized":"true"}"#,
            r#"{"Authorized":1}"#,
            r#"{"Authorized":null}"#,
            r#"{"authorized":true}"#,
            r#"{"Authorized":true"#,
            r#"{"Authorized":true}{"Authorized":true}"#,
            r#"{"Authorized":true} x"#,
            r#"{"Authorized":true,"Authorized":true}"#,
            r#"{"Authorized":true,"authorized":false}"#,
            r#"{"Authorized":true,"Reason":7}"#,
            "<html>true</html>",
        ] {
            assert_eq!(kind(body), Some(RefusalKind::Unparsable), "{body}");
        }
    }

    #[test]
    fn the_agents_reason_is_cut_and_cannot_break_a_log_line() {
        let body = format!(r#"{{"Authorized":false,"Reason":"a\nb{}"}}"#, "x".repeat(5000));
        let refusal = judge(body.as_bytes()).unwrap_err();
        assert!(refusal.detail.starts_with("a b"), "{}", refusal.detail);
        assert!(refusal.detail.len() < 400);
    }
}
