//! Who may connect: the question, the permit and the refusal.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{identity::ServiceName, verify::PeerIdentity};

/// Decides whether a verified peer may connect to a service of ours.
///
/// An implementation that cannot decide refuses. It must bound its own time; the caller bounds it once more by the
/// handshake deadline. It is polled on a data thread, between the turns of connections: what computes for long goes
/// elsewhere.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Permits the connection or says why not.
    ///
    /// # Errors
    /// [`Refusal`], whose kind separates "denied" from "could not decide". Both refuse.
    async fn authorize(&self, inbound: &Inbound<'_>) -> Result<Permit, Refusal>;

    /// Changes whenever decisions may have changed, so that live connections can be judged again; `None` where the
    /// implementation cannot tell.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// The question put to an [`Authorizer`]: this peer, to this service.
#[derive(Clone, Copy, Debug)]
pub struct Inbound<'a> {
    /// The service of ours that the peer wants.
    pub target: &'a ServiceName,
    /// The identity that the handshake proved.
    pub peer: &'a PeerIdentity,
    /// How long the peer can be kept waiting. An implementation that has no decision by then says so itself, under
    /// the reason that kept it.
    pub within: Duration,
}

/// Leave to dial the application for one connection: the rule that gave it and when.
///
/// Only an [`Authorizer`] makes one, and the relay takes it by value.
#[derive(Clone, Debug)]
pub struct Permit {
    rule: String,
    decided_at: SystemTime,
}

impl Permit {
    /// A permit that `rule` gave at `decided_at`. Call this from an [`Authorizer`] and nowhere else.
    #[must_use]
    pub fn granted_by(rule: String, decided_at: SystemTime) -> Self {
        Self { rule, decided_at }
    }

    /// The rule in the words of whoever decided; free text, for logs.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// When the decision was made.
    #[must_use]
    pub fn decided_at(&self) -> SystemTime {
        self.decided_at
    }
}

/// Why a connection may not go on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Refusal {
    /// What sort of refusal it is; the metric label.
    pub kind: RefusalKind,
    /// The reason in words, for logs. Never a secret, never unbounded.
    pub detail: String,
}

/// The sorts of refusal. All but [`Denied`](Self::Denied) mean that no decision was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// An intention or a default policy says no.
    Denied,
    /// The agent found our question malformed (400).
    BadRequest,
    /// The agent does not let our token ask (403).
    Forbidden,
    /// The agent, or its connection limit, is overrun (429).
    Overloaded,
    /// The agent failed (any other status that is not 200).
    AgentError,
    /// No answer in time.
    Timeout,
    /// No connection to the agent.
    Unreachable,
    /// An answer that does not have the agreed form.
    Unparsable,
}

impl RefusalKind {
    /// All kinds, for tables of counters.
    pub const ALL: [Self; 8] = [
        Self::Denied,
        Self::BadRequest,
        Self::Forbidden,
        Self::Overloaded,
        Self::AgentError,
        Self::Timeout,
        Self::Unreachable,
        Self::Unparsable,
    ];

    /// The stable name used as metric label and log field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::BadRequest => "authorize_bad_request",
            Self::Forbidden => "authorize_forbidden",
            Self::Overloaded => "authorize_overloaded",
            Self::AgentError => "authorize_agent_error",
            Self::Timeout => "authorize_timeout",
            Self::Unreachable => "authorize_unreachable",
            Self::Unparsable => "authorize_unparsable",
        }
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
