//! The watch of our own definition.

use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;

use super::{
    client::{AgentClient, Answer, Call, CallClass, CallError},
    definition::{DefinitionError, ProxyDefinition},
    task::Task,
    watch::{self as watching, Cursor, Nudge, Trouble, Watched},
};

/// How soon an ID that the agent does not know is asked for again: a sidecar that starts before its registration
/// should serve within a few seconds of it.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);

/// Where the agent keeps our definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefinitionSource {
    /// `/v1/agent/service/:id`, from 1.3 on.
    Service,
    /// `/v1/agent/connect/proxy/:id`, 1.2 to 1.5: the agent started us as a managed proxy. Where the agent does not
    /// know it there, the service's place is tried.
    Managed,
}

/// What is known of our definition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnDefinitionState {
    /// The newest definition that could be used; it stays while the agent says otherwise.
    pub definition: Option<std::sync::Arc<ProxyDefinition>>,
    /// Why the newest answer gave none.
    pub problem: Option<DefinitionProblem>,
}

/// Why there is no definition at the moment, or why the last one is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionProblem {
    /// 404: not registered yet, or not any more.
    #[error("the agent knows no service with ID {0:?}; waiting for its registration")]
    Unregistered(String),
    /// 403.
    #[error("the token may not read the proxy's definition (it needs service:read on the proxy's name): {0}")]
    Forbidden(String),
    /// It is there and cannot be used.
    #[error(transparent)]
    Unusable(#[from] DefinitionError),
    /// Anything else.
    #[error("the proxy's definition cannot be read: {0}")]
    Agent(String),
}

/// Watches our definition until it is dropped.
#[derive(Debug)]
pub struct OwnDefinition {
    state: watch::Receiver<OwnDefinitionState>,
    _watch: Task,
}

impl OwnDefinition {
    /// Starts to watch the proxy with this ID, on the client's runtime.
    #[must_use]
    pub fn start(client: &AgentClient, id: String, source: DefinitionSource) -> Self {
        let (sender, state) = watch::channel(OwnDefinitionState::default());
        let watched = DefinitionWatch {
            client: client.clone(),
            id,
            managed: source == DefinitionSource::Managed,
            source,
            sender,
        };
        let watching = watching::watch(client.clone(), watched, Nudge::default(), Trouble::default());
        Self { state, _watch: Task::spawn(client.runtime(), watching) }
    }

    /// The newest state, and each one that differs from the last.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<OwnDefinitionState> {
        self.state.clone()
    }
}

#[derive(Debug)]
struct DefinitionWatch {
    client: AgentClient,
    id: String,
    source: DefinitionSource,
    /// Whether the managed place is asked next.
    managed: bool,
    sender: watch::Sender<OwnDefinitionState>,
}

impl DefinitionWatch {
    fn tell(&self, definition: Option<ProxyDefinition>, problem: Option<DefinitionProblem>) {
        self.sender.send_if_modified(|state| {
            let changed_definition = match definition {
                // Compared by the fields that are used: newer agents give a new hash for the same content.
                Some(definition) if state.definition.as_deref() != Some(&definition) => {
                    state.definition = Some(std::sync::Arc::new(definition));
                    true
                }
                _ => false,
            };
            let changed_problem = state.problem != problem;
            state.problem = problem;
            changed_definition || changed_problem
        });
    }
}

impl Watched for DefinitionWatch {
    fn name(&self) -> &'static str {
        "definition"
    }

    fn needs(&self) -> &'static str {
        "service:read on the proxy's own name"
    }

    fn call(&self) -> Call {
        if self.managed {
            Call::get(CallClass::Watch, ["v1", "agent", "connect", "proxy", &self.id])
        } else {
            Call::get(CallClass::Watch, ["v1", "agent", "service", &self.id]).ours(&self.client)
        }
    }

    fn cursor(&self, answer: &Answer) -> Option<Cursor> {
        answer.content_hash().map(|hash| Cursor::Hash(hash.to_owned()))
    }

    fn take(&mut self, answer: &Answer, _plain: bool) -> Result<(), String> {
        let read = if self.managed { ProxyDefinition::from_managed } else { ProxyDefinition::from_service };
        match read(&answer.body) {
            Ok(definition) => self.tell(Some(definition), None),
            Err(error @ DefinitionError::NotJson(_)) => {
                let why = error.to_string();
                self.tell(None, Some(error.into()));
                return Err(why);
            }
            // The answer is good and its content is not ours to run by: the hash is waited on until it changes.
            Err(error) => {
                tracing::warn!(proxy.id = self.id, %error, "the registration cannot be used");
                self.tell(None, Some(error.into()));
            }
        }
        Ok(())
    }

    fn failed(&mut self, error: &CallError) -> Duration {
        let problem = match error.status() {
            Some(StatusCode::NOT_FOUND) => {
                if self.source == DefinitionSource::Managed {
                    self.managed = !self.managed;
                }
                DefinitionProblem::Unregistered(self.id.clone())
            }
            Some(StatusCode::FORBIDDEN) => DefinitionProblem::Forbidden(error.to_string()),
            _ => DefinitionProblem::Agent(error.to_string()),
        };
        let unknown = matches!(problem, DefinitionProblem::Unregistered(_));
        self.tell(None, Some(problem));
        if unknown { UNKNOWN_PAUSE } else { super::backoff::LONGEST }
    }
}
