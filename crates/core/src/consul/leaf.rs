//! The watch of our own certificate: `/v1/agent/connect/ca/leaf/:service`.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    client::{AgentClient, Answer, Call, CallClass},
    watch::{Cursor, Nudge, Trouble, Watched},
};
use crate::{
    cert_source::CertSource as _,
    identity::DEFAULT,
    material::Leaf,
    rotation::{Changed, Clock, Rotation, UpdateRefused},
    verify::RejectReason,
};

/// The shortest time between two plain calls of the floor poll.
const SHORTEST_POLL: Duration = Duration::from_secs(5);

/// How soon to ask again for a leaf that could not be used.
const REFUSED_POLL: Duration = Duration::from_secs(10);

/// Which datacenter our leaf must be of, once something told us.
#[derive(Clone, Debug, Default)]
pub(super) struct ExpectedDatacenter(Arc<Mutex<Option<String>>>);

impl ExpectedDatacenter {
    pub(super) fn set(&self, datacenter: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(datacenter);
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Feeds a [`Rotation`] with the agent's leaves.
pub(super) struct LeafWatch {
    client: AgentClient,
    rotation: Arc<Rotation>,
    clock: Clock,
    roots: Nudge,
    datacenter: ExpectedDatacenter,
    /// What is wrong with the newest leaf, as far as the rotation never saw it.
    trouble: Trouble,
    /// When, in seconds since 1970, the next plain call is due.
    poll_at: Option<Duration>,
    last_words: Option<String>,
}

impl LeafWatch {
    pub(super) fn new(
        client: AgentClient,
        rotation: Arc<Rotation>,
        clock: Clock,
        roots: Nudge,
        datacenter: ExpectedDatacenter,
        trouble: Trouble,
    ) -> Self {
        Self { client, rotation, clock, roots, datacenter, trouble, poll_at: None, last_words: None }
    }

    fn now(&self) -> Duration {
        Duration::from_secs((self.clock)().as_secs())
    }

    /// Refuses a leaf whose names are not those that authorize and discovery are asked with, so that no question is
    /// ever put about another service than the one we are.
    fn check_names(&self, leaf: &Leaf) -> Result<(), String> {
        let identity = leaf.identity();
        let datacenter = self.datacenter.get();
        let wrong = [
            ("namespace", Some(self.client.namespace().unwrap_or(DEFAULT)), identity.namespace()),
            ("partition", Some(self.client.partition().unwrap_or(DEFAULT)), identity.partition()),
            ("datacenter", datacenter.as_deref(), identity.datacenter()),
        ]
        .into_iter()
        .find(|(_, asked, has)| asked.is_some_and(|asked| !asked.eq_ignore_ascii_case(has)));
        match wrong {
            Some((what, asked, _)) => Err(format!(
                "the agent's leaf is that of {identity}, but we are asked to be in {what} {}",
                asked.unwrap_or_default()
            )),
            None => Ok(()),
        }
    }

    /// Hands a leaf on. Gives the time until it should be asked for again, unless that stays as it is.
    fn offer(&mut self, leaf: Leaf) -> Result<Option<Duration>, String> {
        let (serial, not_after) = (leaf.serial().clone(), leaf.not_after());
        let life = Duration::from_secs(not_after.as_secs()).saturating_sub(self.now());
        let half = (life / 2).max(SHORTEST_POLL);
        match self.rotation.offer_leaf(leaf) {
            Ok(Changed::Nothing) => Ok(None),
            Ok(Changed::Applied) => {
                tracing::info!(%serial, not_after = not_after.as_secs(), "a new leaf is in use");
                Ok(Some(half))
            }
            Ok(Changed::Held(reason)) => {
                // Until there are roots at all every leaf is held, and nobody need be told.
                if self.rotation.state().pending.iter().any(|pending| pending == "roots") {
                    return Ok(Some(half));
                }
                // It may have come before its root, so the roots are asked for now.
                if reason == RejectReason::UnknownIssuer {
                    self.roots.nudge();
                }
                self.say(Some(format!("a new leaf with serial {serial} is held back: {reason}")));
                // The rotation looks at it again when roots come; that it has become valid shows when it is offered.
                Ok(Some(SHORTEST_POLL))
            }
            Err(UpdateRefused::Stale) => Ok(Some(REFUSED_POLL.max(half / 2))),
            Err(refused) => Err(format!("the agent's leaf with serial {serial} is refused: {refused}")),
        }
    }

    /// Logs what is wrong with the leaves that come, once for each new wording.
    fn say(&mut self, words: Option<String>) {
        if let Some(words) = words.as_ref().filter(|words| self.last_words.as_ref() != Some(*words)) {
            tracing::warn!("{words}");
        }
        self.last_words = words;
    }
}

impl Watched for LeafWatch {
    fn name(&self) -> &'static str {
        "leaf"
    }

    /// Never with a datacenter: agents from 1.16 on would put that datacenter's leaf into the one slot they have.
    fn call(&self) -> Call {
        let service = self.rotation.service().name.as_str();
        Call::get(CallClass::Watch, ["v1", "agent", "connect", "ca", "leaf", service]).ours(&self.client)
    }

    fn cursor(&self, answer: &Answer) -> Option<Cursor> {
        Cursor::index(answer)
    }

    fn take(&mut self, answer: &Answer, plain: bool) -> Result<(), String> {
        let now = self.now();
        let leaf =
            parse(&answer.body, self.rotation.policy().grammar).and_then(|leaf| self.check_names(&leaf).map(|()| leaf));
        self.trouble.set(leaf.as_ref().err().cloned());
        let outcome = leaf.and_then(|leaf| {
            let life = Duration::from_secs(leaf.not_after().as_secs()).saturating_sub(now);
            Ok((self.offer(leaf)?, life))
        });
        match outcome {
            Ok((poll, life)) => {
                if poll != Some(SHORTEST_POLL) {
                    self.say(None);
                }
                let unchanged_but_asked = plain.then(|| (life / 2).max(SHORTEST_POLL));
                if let Some(poll) = poll.or(unchanged_but_asked) {
                    self.poll_at = Some(now + poll);
                }
                Ok(())
            }
            Err(why) => {
                // The answer came as it should and only its content is no good, so the watch goes on waiting for the
                // next one instead of backing off; the floor poll asks meanwhile.
                self.poll_at = Some(now + REFUSED_POLL);
                self.say(Some(why));
                Ok(())
            }
        }
    }

    /// Half of the leaf's remaining life, again and again as it runs out: some agents never return a blocked call, or
    /// notice only the first rotation.
    fn plain_call_due(&self) -> Option<Duration> {
        self.poll_at.map(|at| at.saturating_sub(self.now()))
    }
}

impl fmt::Debug for LeafWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafWatch").field("service", self.rotation.service()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct LeafAnswer {
    #[serde(rename = "CertPEM")]
    certificates: String,
    #[serde(rename = "PrivateKeyPEM")]
    key: Zeroizing<String>,
}

/// Parses an answer. No error quotes it, since the key is in it.
pub(super) fn parse(body: &[u8], grammar: crate::identity::Grammar) -> Result<Leaf, String> {
    let answer: LeafAnswer = serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("the agent's leaf is not the expected JSON (line {line}, column {column})")
    })?;
    Leaf::from_pem(&answer.certificates, &answer.key, grammar)
        .map_err(|error| format!("the agent's leaf cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{super::captured::captured, *};
    use crate::identity::Grammar;

    /// The recording without its key, and with one that is a key in form.
    fn with_key(body: &[u8]) -> Vec<u8> {
        let mut body: serde_json::Value = serde_json::from_slice(body).unwrap();
        body["PrivateKeyPEM"] = "-----BEGIN EC PRIVATE KEY-----\nMAMCAQE=\n-----END EC PRIVATE KEY-----\n".into();
        body.to_string().into_bytes()
    }

    #[test]
    fn the_leaves_of_real_agents_are_read() {
        for (body, certificates) in [
            (captured!("leaf"), 1),
            (captured!("leaf-secondary-dc"), 3),
            (captured!("v12-leaf"), 1),
            (captured!("v122-leaf"), 1),
            (captured!("v122-leaf-secondary-dc"), 3),
        ] {
            assert!(parse(&body, Grammar::Spiffe).is_err(), "the recording has no key");
            let leaf = parse(&with_key(&body), Grammar::Spiffe).unwrap();
            assert_eq!(leaf.chain().len(), certificates, "{leaf:?}");
        }
    }
}
