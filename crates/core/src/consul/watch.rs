//! The one loop for blocking queries, by index and by hash.
//!
//! What the loop promises, whatever the agent does:
//! * The newest good value is asked for again and again; an error never ends the loop and never takes a value away.
//! * An index or hash is used only if a good answer gave it. After an error, and when the index fell, the next call
//!   goes without one, so an agent that was rebuilt does not leave us waiting on its predecessor's index.
//! * The first error of a blocked call is followed at once by one plain call, because agents from 1.16 on fail all
//!   blocked callers for the fault of one. After that errors back off.
//! * A blocked call that is held for longer than asked is no error while a plain call right after it is answered:
//!   agents before 1.4.1 ignore the wait on the leaf.
//! * While the agent is not heard at all it is asked every second, and its return wakes the loop.
//! * Under churn the loop slows down and then takes the newest state ([`Pace`]).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::{sync::Notify, time::Instant};

use super::{
    backoff::{self, Pace},
    client::{AgentClient, Answer, Call, CallError},
};

/// The longest time that a call asks the agent to hold it back. Longer, and a path that died silently would leave
/// the watch deaf for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The wait of the first blocked call after an error; each one that ends well doubles it. An agent that comes back
/// may be restarted once more just between two calls of ours, unnoticed, and would hold a call whose index or hash it
/// does not know for the whole wait.
const WAIT_AFTER_ERROR: Duration = Duration::from_secs(2);

/// With less time than this until a plain call is due, it is made now.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// What a blocked call gets on top of its wait, of which the agent adds up to a sixteenth.
const SLACK: Duration = Duration::from_secs(5);

/// The longest pause while the agent is not heard at all.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(900);

/// How often an agent is asked that gives neither index nor hash.
const POLL: Duration = Duration::from_secs(5);

/// What a loop watches.
pub(super) trait Watched: Send + 'static {
    /// The name in logs and problems.
    fn name(&self) -> &'static str;

    /// The call without index or hash.
    fn call(&self) -> Call;

    /// Where to wait next, by a good answer.
    fn cursor(&self, answer: &Answer) -> Option<Cursor>;

    /// Takes over a good answer. `plain` tells that the call did not block.
    ///
    /// # Errors
    /// Why the answer cannot be used, in words; it then counts as an error.
    fn take(&mut self, answer: &Answer, plain: bool) -> Result<(), String>;

    /// Hears of a failed call. Gives the longest pause after it.
    fn failed(&mut self, error: &CallError) -> Duration {
        let _ = error;
        backoff::LONGEST
    }

    /// The right that the call needs, in words, for whoever has to mend a 403. Empty where none is needed.
    fn needs(&self) -> &'static str {
        ""
    }

    /// When a plain call is due although nothing seems to have changed.
    fn plain_call_due(&self) -> Option<Duration> {
        None
    }
}

fn in_words(error: &CallError, needs: &str) -> String {
    if error.status() == Some(StatusCode::FORBIDDEN) && !needs.is_empty() {
        format!("{error} (the token needs {needs})")
    } else {
        error.to_string()
    }
}

/// Where a blocking query waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// `X-Consul-Index`.
    Index(u64),
    /// `X-Consul-ContentHash`.
    Hash(String),
}

impl Cursor {
    /// The index of an answer.
    pub(super) fn index(answer: &Answer) -> Option<Self> {
        answer.index().map(Self::Index)
    }

    fn add_to(&self, call: Call) -> Call {
        match self {
            Self::Index(index) => call.param("index", index.to_string()),
            Self::Hash(hash) => call.param("hash", hash.clone()),
        }
    }

    /// Whether the agent counts from lower again, so it is not the one that gave `before`.
    fn fell_below(&self, before: &Self) -> bool {
        matches!((self, before), (Self::Index(now), Self::Index(before)) if now < before)
    }
}

/// What is wrong with a watch at the moment, shared with whoever shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, trouble: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), trouble)
    }
}

/// A wish that a watch asks at once, granted at a bounded rate.
#[derive(Clone, Debug, Default)]
pub(super) struct Nudge(Arc<NudgeState>);

#[derive(Debug, Default)]
struct NudgeState {
    notify: Notify,
    last: Mutex<Option<Instant>>,
}

impl Nudge {
    /// How often a nudge goes through. Peers of a foreign mesh could otherwise make us ask without end.
    const EVERY: Duration = Duration::from_secs(5);

    /// Makes the watch ask now, unless it was made to a moment ago.
    pub(super) fn nudge(&self) {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.is_none_or(|last| now.duration_since(last) >= Self::EVERY) {
            *last = Some(now);
            self.0.notify.notify_one();
        }
    }

    async fn nudged(&self) {
        self.0.notify.notified().await;
    }
}

/// Watches until it is dropped.
pub(super) async fn watch(client: AgentClient, mut watched: impl Watched, nudge: Nudge, trouble: Trouble) {
    let mut pace = Pace::new();
    let mut cursor: Option<Cursor> = None;
    let mut failures = 0_u32;
    let mut timed_out = false;
    let mut longest_wait = LONGEST_WAIT;
    loop {
        let wait = watched.plain_call_due().map_or(longest_wait, |due| due.min(longest_wait));
        let sent = cursor.take().filter(|_| wait >= SHORTEST_WAIT);
        let call = match &sent {
            Some(cursor) => cursor
                .add_to(watched.call())
                .param("wait", format!("{}ms", wait.as_millis()))
                .deadline(wait * 17 / 16 + SLACK)
                .blocking(),
            // Some agents hold even a plain call for ten minutes while another one is blocked; with a wait they do
            // not.
            None if timed_out => watched.call().param("wait", "1s"),
            None => watched.call(),
        };
        let answer = tokio::select! {
            answer = client.call(&call) => answer,
            () = nudge.nudged(), if sent.is_some() => continue,
        };
        let after_timeout = std::mem::replace(&mut timed_out, matches!(answer, Err(CallError::Timeout(_))));
        if timed_out && sent.is_some() {
            tracing::debug!(
                watch = watched.name(),
                ?wait,
                "the agent holds a call for longer than asked; asking plainly"
            );
            continue;
        }
        let failure = match &answer {
            Ok(answer) => watched.take(answer, sent.is_none()).err().map(|why| (why, backoff::LONGEST, false)),
            Err(error) => {
                let longest = watched.failed(error);
                Some((in_words(error, watched.needs()), longest, error.is_transport()))
            }
        };
        let Some((why, longest, unheard)) = failure else {
            if trouble.set(None).is_some() {
                tracing::info!(watch = watched.name(), "watch recovered");
            }
            cursor = answer.ok().and_then(|answer| watched.cursor(&answer));
            if let (Some(now), Some(before)) = (&cursor, &sent)
                && now.fell_below(before)
            {
                tracing::info!(watch = watched.name(), "the agent's index fell; asking without one");
                cursor = None;
                failures = 0;
            } else if sent.is_some() || after_timeout {
                failures = 0;
                longest_wait = (longest_wait * 2).min(LONGEST_WAIT);
            } else if failures > 0 {
                // A plain call proves little: agents answer it from memory while each blocked one fails.
                tokio::time::sleep(backoff::pause(failures)).await;
            }
            if cursor.is_none() && sent.is_none() {
                tokio::time::sleep(POLL).await;
            }
            // Errors have their pauses; only answers can come without end.
            pace.step().await;
            continue;
        };
        failures = failures.saturating_add(1);
        longest_wait = WAIT_AFTER_ERROR;
        let connect = matches!(answer, Err(CallError::Connect(_)));
        if trouble.set(Some(why.clone())).as_ref() != Some(&why) {
            tracing::warn!(watch = watched.name(), error = why, "watch failed; keeping what it last said");
        }
        if failures == 1 && sent.is_some() && !connect {
            continue;
        }
        let pause = backoff::pause(failures).min(longest);
        if unheard {
            tokio::select! {
                () = tokio::time::sleep(pause.min(UNREACHABLE_PAUSE)) => {}
                () = client.agent_returned() => {}
            }
        } else {
            tokio::time::sleep(pause).await;
        }
    }
}
