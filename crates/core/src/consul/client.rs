//! One call to the agent: token, caps, bounds, and what its answer means.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};

use super::{
    health::{AgentHealth, CallOutcome, Recorder},
    token::{BasicAuth, Token, TokenError},
};
use crate::transport::{Bounds, Transport, TransportError};

/// The most that an answer may hold where nothing else is said, in bytes.
pub(super) const MAX_ANSWER: usize = 1024 * 1024;

/// How long a call that does not block may take. A cold call without a leader takes the agent 7 s.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long a call waits for a look at the token file.
const TOKEN_PATIENCE: Duration = Duration::from_secs(2);

/// The longest text of an agent that goes into an error or a log, in characters.
const MAX_WORDS: usize = 300;

/// What stands in a path or query as it is: the unreserved characters (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The classes of calls, each with a cap of its own, so that no class starves another.
///
/// Agents cut off at 200 connections per address for all sidecars of a host together, so all caps together are
/// 3 × services + 13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallClass {
    /// Blocking queries: 3 for each service (leaf, roots, own definition).
    Watch,
    /// Questions about inbound connections: 8.
    Authorize,
    /// Lists of an upstream's instances: 3.
    Endpoints,
    /// Registration, checks and the lookup at start: 2.
    Registration,
}

impl CallClass {
    /// All classes, for tables of counters.
    pub const ALL: [Self; 4] = [Self::Watch, Self::Authorize, Self::Endpoints, Self::Registration];

    /// The stable name used as metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Authorize => "authorize",
            Self::Endpoints => "endpoints",
            Self::Registration => "registration",
        }
    }

    fn cap(self, services: usize) -> usize {
        match self {
            Self::Watch => 3 * services.max(1),
            Self::Authorize => 8,
            Self::Endpoints => 3,
            Self::Registration => 2,
        }
    }
}

/// How to talk with the agent, besides where it is.
#[derive(Debug)]
pub struct ClientSettings {
    /// The ACL token.
    pub token: Token,
    /// Credentials for a proxy before the agent.
    pub basic_auth: Option<BasicAuth>,
    /// What stands before `/v1/…` ([`AgentAddress::prefix`](super::AgentAddress::prefix)).
    pub path_prefix: String,
    /// The namespace of our service. Sent only when set: agents of the Community Edition answer it with 400.
    pub namespace: Option<String>,
    /// The admin partition of our service; as for the namespace.
    pub partition: Option<String>,
    /// How many services share this client; at least 1.
    pub services: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            token: Token::none(),
            basic_auth: None,
            path_prefix: String::new(),
            namespace: None,
            partition: None,
            services: 1,
        }
    }
}

/// The client of one agent; clones share everything.
///
/// Watches and lists run on the runtime on which the client was made, wherever they are asked for; a question about a
/// connection runs on the thread that carries it.
#[derive(Clone, Debug)]
pub struct AgentClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    transport: TransportSlot,
    settings: ClientSettings,
    caps: [Semaphore; CallClass::ALL.len()],
    recorder: Recorder,
    runtime: Handle,
}

struct TransportSlot(Arc<dyn Transport>);

impl std::fmt::Debug for TransportSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl AgentClient {
    /// A client over `transport`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, settings: ClientSettings) -> Self {
        let caps = CallClass::ALL.map(|class| Semaphore::new(class.cap(settings.services)));
        Self(Arc::new(Inner {
            transport: TransportSlot(transport),
            settings,
            caps,
            recorder: Recorder::new(),
            runtime: Handle::current(),
        }))
    }

    /// How we get on with the agent.
    #[must_use]
    pub fn health(&self) -> AgentHealth {
        self.0.recorder.picture()
    }

    /// Reads the token file again, as on SIGHUP. True when the token is another one now.
    ///
    /// # Errors
    /// [`TokenError`]; the last token stays in use.
    pub fn reload_token(&self) -> Result<bool, TokenError> {
        self.0.settings.token.reload()
    }

    /// The namespace that was configured.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.0.settings.namespace.as_deref()
    }

    /// The partition that was configured.
    pub(super) fn partition(&self) -> Option<&str> {
        self.0.settings.partition.as_deref()
    }

    /// The runtime that watches and lists run on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Waits until the agent turns from unreachable to reachable.
    pub(super) async fn agent_returned(&self) {
        self.0.recorder.returned().await;
    }

    /// Makes one call. A 403 with a token file that has changed since is asked again at once.
    ///
    /// # Errors
    /// [`CallError`]; every status but 200 is one.
    pub(super) async fn call(&self, call: &Call) -> Result<Answer, CallError> {
        self.look_at_token().await;
        let started = Instant::now();
        let answer = self.once(call, call.bounds.deadline).await;
        if !matches!(answer, Err(CallError::Status { status: StatusCode::FORBIDDEN, .. }))
            || !self.token_changed().await
        {
            return answer;
        }
        self.once(call, call.bounds.deadline.saturating_sub(started.elapsed())).await
    }

    async fn once(&self, call: &Call, deadline: Duration) -> Result<Answer, CallError> {
        let answer = self.bounded(call, deadline).await;
        // A name that cannot be asked for says nothing about the agent.
        if !matches!(answer, Err(CallError::Name(_))) {
            self.0.recorder.record(call.class, call.blocking, answer.as_ref().err());
        }
        answer
    }

    async fn bounded(&self, call: &Call, deadline: Duration) -> Result<Answer, CallError> {
        let started = Instant::now();
        let request = self.request(call)?;
        let slot = tokio::time::timeout(deadline, self.0.caps[call.class as usize].acquire()).await;
        // The semaphores are never closed, so only the time can run out here.
        let _slot = slot.map_err(|_| CallError::Timeout(deadline))?;
        let bounds = Bounds { deadline: deadline.saturating_sub(started.elapsed()), ..call.bounds };
        let response = self.0.transport.0.exchange(request, bounds).await.map_err(|error| match error {
            TransportError::Connect(why) => CallError::Connect(why),
            TransportError::Timeout(_) => CallError::Timeout(deadline),
            TransportError::TooLarge(most) => CallError::TooLarge(most),
            TransportError::Broken(why) => CallError::Broken(why),
        })?;
        if response.body().len() > call.bounds.max_body {
            return Err(CallError::TooLarge(call.bounds.max_body));
        }
        let (parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            return Err(CallError::Status { status: parts.status, text: words(&String::from_utf8_lossy(&body)) });
        }
        Ok(Answer { headers: parts.headers, body })
    }

    fn request(&self, call: &Call) -> Result<http::Request<Bytes>, CallError> {
        let settings = &self.0.settings;
        let mut target = settings.path_prefix.clone();
        for segment in &call.path {
            // A URL parser takes these for steps in the path, encoded or not.
            if matches!(segment.as_str(), "" | "." | "..") {
                return Err(CallError::Name(segment.clone()));
            }
            target.push('/');
            target.extend(utf8_percent_encode(segment, ESCAPED));
        }
        for (position, (key, value)) in call.query.iter().enumerate() {
            target.push(if position == 0 { '?' } else { '&' });
            target.push_str(key);
            if !value.is_empty() {
                target.push('=');
                target.extend(utf8_percent_encode(value, ESCAPED));
            }
        }
        let mut request = http::Request::builder().method(call.method.clone()).uri(&target);
        if let Some(token) = settings.token.header() {
            request = request.header(HeaderName::from_static("x-consul-token"), token);
        }
        if let Some(auth) = &settings.basic_auth {
            request = request.header(header::AUTHORIZATION, auth.header());
        }
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request.body(call.body.clone().unwrap_or_default()).map_err(|_| CallError::Name(words(&target)))
    }

    async fn look_at_token(&self) {
        if self.0.settings.token.look_is_due() {
            self.token_changed().await;
        }
    }

    /// Looks at the token file, off the runtime's thread since a file can hang. True when the token is another one.
    async fn token_changed(&self) -> bool {
        if !self.0.settings.token.has_file() {
            return false;
        }
        let inner = self.0.clone();
        let look = tokio::task::spawn_blocking(move || inner.settings.token.reload_if_changed());
        match tokio::time::timeout(TOKEN_PATIENCE, look).await {
            Ok(Ok(Ok(changed))) => changed,
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "keeping the last token");
                false
            }
            Ok(Err(_)) => false,
            Err(_) => {
                tracing::warn!("the token file cannot be read in time; keeping the last token");
                false
            }
        }
    }
}

/// One call to be made.
#[derive(Clone, Debug)]
pub(super) struct Call {
    class: CallClass,
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    body: Option<Bytes>,
    bounds: Bounds,
    blocking: bool,
}

impl Call {
    pub(super) fn get<'a>(class: CallClass, path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(class, Method::GET, path)
    }

    pub(super) fn put<'a>(class: CallClass, path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(class, Method::PUT, path)
    }

    pub(super) fn post<'a>(class: CallClass, path: impl IntoIterator<Item = &'a str>, body: Bytes) -> Self {
        Self { body: Some(body), ..Self::new(class, Method::POST, path) }
    }

    fn new<'a>(class: CallClass, method: Method, path: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            class,
            method,
            path: path.into_iter().map(str::to_owned).collect(),
            query: Vec::new(),
            body: None,
            bounds: Bounds { deadline: CALL_DEADLINE, max_body: MAX_ANSWER },
            blocking: false,
        }
    }

    /// Adds a parameter; an empty value stands without an equals sign.
    pub(super) fn param(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }

    /// Adds a parameter where there is a value.
    pub(super) fn param_if(self, key: &'static str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.param(key, value),
            None => self,
        }
    }

    /// Adds the configured namespace and partition of our own service.
    pub(super) fn ours(self, client: &AgentClient) -> Self {
        self.param_if("ns", client.namespace()).param_if("partition", client.partition())
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = Some(body);
        self
    }

    pub(super) fn deadline(mut self, deadline: Duration) -> Self {
        self.bounds.deadline = deadline;
        self
    }

    pub(super) fn max_body(mut self, max_body: usize) -> Self {
        self.bounds.max_body = max_body;
        self
    }

    /// Marks a call that the agent is to hold back until something changes.
    pub(super) fn blocking(mut self) -> Self {
        self.blocking = true;
        self
    }
}

/// A 200 of the agent.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The index to wait on next. Agents turn 0 into 1, and old ones forget to, so we do.
    pub(super) fn index(&self) -> Option<u64> {
        self.header("x-consul-index")?.parse::<u64>().ok().map(|index| index.max(1))
    }

    /// The hash to wait on next.
    pub(super) fn content_hash(&self) -> Option<&str> {
        self.header("x-consul-contenthash").filter(|hash| !hash.is_empty() && hash.len() <= 128)
    }

    /// Whether the agent left entries out for want of rights (1.11 and later).
    pub(super) fn filtered_by_acls(&self) -> bool {
        self.header("x-consul-results-filtered-by-acls") == Some("true")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why a call gave no answer that can be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No connection to the agent.
    #[error("cannot connect to the agent: {0}")]
    Connect(String),
    /// No answer in time.
    #[error("the agent did not answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke, or what came is not HTTP.
    #[error("the exchange with the agent broke: {0}")]
    Broken(String),
    /// The answer is larger than the call allows.
    #[error("the agent's answer is larger than {0} bytes")]
    TooLarge(usize),
    /// A status other than 200.
    #[error("the agent says {status}: {text}")]
    Status {
        /// The status.
        status: StatusCode,
        /// The agent's words, shortened.
        text: String,
    },
    /// A name that cannot stand in the path of a request.
    #[error("{0:?} is no name that the agent can be asked for")]
    Name(String),
}

impl CallError {
    /// Whether the agent was not heard at all, so that its return is worth waking for.
    pub(super) fn is_transport(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Timeout(_) | Self::Broken(_))
    }

    /// The status of the answer, where there was one.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(super) fn outcome(&self) -> CallOutcome {
        match self {
            Self::Connect(_) => CallOutcome::Connect,
            Self::Timeout(_) => CallOutcome::Timeout,
            Self::Broken(_) => CallOutcome::Broken,
            Self::TooLarge(_) => CallOutcome::TooLarge,
            Self::Name(_) => CallOutcome::Refused,
            Self::Status { status, .. } => match status.as_u16() {
                403 => CallOutcome::Forbidden,
                404 => CallOutcome::NotFound,
                429 => CallOutcome::Overloaded,
                500.. => CallOutcome::AgentError,
                _ => CallOutcome::Refused,
            },
        }
    }
}

/// An agent's text made fit for an error or a log: one line, no control characters, not too long.
pub(super) fn words(text: &str) -> String {
    let mut words: String = text.trim().chars().take(MAX_WORDS).collect();
    if text.trim().chars().count() > MAX_WORDS {
        words.push('…');
    }
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
