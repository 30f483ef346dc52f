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
    identity::{DEFAULT, Grammar},
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

    /// Hands a leaf on to the rotation. Tells when to ask for it again, unless that stays as it is, and what is wrong
    /// with it, if anything.
    fn offer(&mut self, leaf: Leaf) -> (Option<Duration>, Option<String>) {
        let (serial, not_after) = (leaf.serial().clone(), leaf.not_after());
        let life = Duration::from_secs(not_after.as_secs()).saturating_sub(self.now());
        let half = (life / 2).max(SHORTEST_POLL);
        match self.rotation.offer_leaf(leaf) {
            Ok(Changed::Nothing) => (None, None),
            Ok(Changed::Applied) => {
                tracing::info!(%serial, not_after = not_after.as_secs(), "a new leaf is in use");
                (Some(half), None)
            }
            // Nobody need be told: every leaf is held until there are roots at all.
            Ok(Changed::HeldForRoots) => (Some(half), None),
            Ok(Changed::Held(reason)) => {
                // It may have come before its root, so the roots are asked for now.
                if reason == RejectReason::UnknownIssuer {
                    self.roots.nudge();
                }
                // The rotation looks at it again when roots come; that it has become valid shows when it is offered.
                (Some(SHORTEST_POLL), Some(format!("a new leaf with serial {serial} is held back: {reason}")))
            }
            Err(UpdateRefused::Stale) => (Some(half), None),
            Err(refused) => {
                (Some(REFUSED_POLL), Some(format!("the agent's leaf with serial {serial} is refused: {refused}")))
            }
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

    fn needs(&self) -> &'static str {
        "service:write on the service"
    }

    /// Never with a datacenter: agents from 1.16 on would put that datacenter's leaf into the one slot they have.
    fn call(&self) -> Call {
        let service = self.rotation.service().name.as_str();
        Call::get(CallClass::Watch, ["v1", "agent", "connect", "ca", "leaf", service]).ours(&self.client)
    }

    fn cursor(&self, answer: &Answer) -> Option<Cursor> {
        Cursor::index(answer)
    }

    /// An answer that is no JSON is an error of the watch. One whose content is no good is not: the watch goes on
    /// waiting for the next leaf, and the floor poll asks meanwhile.
    fn take(&mut self, answer: &Answer, plain: bool) -> Result<(), String> {
        let answer = read(&answer.body)?;
        let leaf =
            parse(&answer, self.rotation.policy().grammar).and_then(|leaf| self.check_names(&leaf).map(|()| leaf));
        self.trouble.set(leaf.as_ref().err().cloned());
        let (poll, why) = match leaf {
            Ok(leaf) => {
                let life = Duration::from_secs(leaf.not_after().as_secs()).saturating_sub(self.now());
                let (poll, why) = self.offer(leaf);
                (poll.or_else(|| plain.then(|| (life / 2).max(SHORTEST_POLL))), why)
            }
            Err(why) => (Some(REFUSED_POLL), Some(why)),
        };
        if let Some(poll) = poll {
            self.poll_at = Some(self.now() + poll);
        }
        self.say(why);
        Ok(())
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

/// Reads an answer. No error quotes it, since the key is in it.
fn read(body: &[u8]) -> Result<LeafAnswer, String> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("the agent's leaf is not the expected JSON (line {line}, column {column})")
    })
}

fn parse(answer: &LeafAnswer, grammar: Grammar) -> Result<Leaf, String> {
    Leaf::from_pem(&answer.certificates, &answer.key, grammar)
        .map_err(|error| format!("the agent's leaf cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{super::captured::captured, *};

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
            let without_key = parse(&read(&body).unwrap(), Grammar::Spiffe);
            assert!(without_key.is_err(), "the recording has none");
            let leaf = parse(&read(&with_key(&body)).unwrap(), Grammar::Spiffe).unwrap();
            assert_eq!(leaf.chain().len(), certificates, "{leaf:?}");
        }
    }
}
