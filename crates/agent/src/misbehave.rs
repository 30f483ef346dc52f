//! What the agent does wrong on request. Everything here stands outside what a real agent does.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::request::Request;
use crate::stats::Endpoint;
use crate::store::Shared;

/// One way to answer wrongly, on chosen endpoints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// An error with this status; the text is Consul's for it, or `body`. It carries `X-Consul-Index: 1`.
    Status {
        /// 403, 429, 500, 503 …
        status: u16,
        /// The text; empty for the usual one.
        #[serde(default)]
        body: String,
    },
    /// Never answers.
    Hang,
    /// Answers later than it would.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// Sends half of the body that it announced, then closes.
    Truncate,
    /// The good answer, with spaces behind it until the body has this many bytes.
    Oversize {
        /// Bytes in all.
        bytes: usize,
    },
    /// The good answer with the type of every scalar turned over: strings to numbers, numbers to strings, lists to
    /// objects.
    WrongTypes,
    /// The good answer with `null` for every empty list and map, as Go writes those that were never made.
    NullLists,
    /// The good answer without its empty lists and maps.
    NoEmptyLists,
    /// 200 with this body.
    Body {
        /// The text as it goes out.
        text: String,
    },
    /// The good answer with this `X-Consul-Index`; 0 is sent as 0.
    Index {
        /// The value.
        index: u64,
    },
    /// The good answer without `X-Consul-Index`.
    NoIndex,
    /// Authorize: the good answer without `Authorized`.
    AuthorizeMissing,
    /// Authorize: `Authorized` twice, first true, then false.
    AuthorizeTwice,
    /// Authorize: `"Authorized": "true"`.
    AuthorizeText,
    /// The good answer with bytes behind the JSON.
    ExtraBytes,
}

/// A fault, and which calls suffer it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where.
    pub endpoint: Endpoint,
    /// What.
    pub fault: Fault,
    /// Calls that are still to suffer; `None`: until it is cleared.
    #[serde(default)]
    pub times: Option<u64>,
    /// Whether they block.
    #[serde(default)]
    pub calls: Calls,
    /// Only calls whose path and query hold this text: the name of one service, mostly.
    #[serde(default)]
    pub containing: Option<String>,
}

/// Calls by whether they come with an index above 0 or with a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Calls {
    /// Both kinds.
    #[default]
    All,
    /// Those with an index or a hash.
    Blocking,
    /// Those without.
    Plain,
}

impl Rule {
    /// A fault for all calls of an endpoint until it is cleared.
    pub fn new(endpoint: Endpoint, fault: Fault) -> Self {
        Self { endpoint, fault, times: None, calls: Calls::All, containing: None }
    }

    /// Ends after this many calls.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// For calls that block, or for those that do not.
    #[must_use]
    pub fn calls(mut self, calls: Calls) -> Self {
        self.calls = calls;
        self
    }

    /// For calls whose path and query hold this text.
    #[must_use]
    pub fn containing(mut self, text: &str) -> Self {
        self.containing = Some(text.to_owned());
        self
    }

    fn meets(&self, endpoint: Endpoint, target: &str, blocking: bool) -> bool {
        let calls = match self.calls {
            Calls::All => true,
            Calls::Blocking => blocking,
            Calls::Plain => !blocking,
        };
        self.endpoint == endpoint && calls && self.containing.as_ref().is_none_or(|text| target.contains(text))
    }
}

/// How a body reaches the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Whole,
    Truncated,
}

/// Takes the fault that the next call of `endpoint` suffers.
pub(crate) fn take(shared: &Shared, endpoint: Endpoint, target: &str, req: &Request) -> Option<Fault> {
    let blocking =
        req.param("index").is_some_and(|n| !matches!(n, "" | "0")) || req.param("hash").is_some_and(|h| !h.is_empty());
    shared.quietly(|state| {
        let at = state.rules.iter().position(|r| r.meets(endpoint, target, blocking))?;
        let rule = state.rules.get_mut(at)?;
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                state.rules.remove(at);
            }
        }
        Some(fault)
    })
}

/// A fault that needs no good answer. The caller waits for it, which may be for ever.
pub(crate) async fn instead(fault: &Fault) -> Option<Answer> {
    match fault {
        Fault::Status { status, body } => Some(error(*status, body)),
        Fault::Hang => std::future::pending().await,
        Fault::Delay { ms } => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            None
        }
        Fault::Body { text } => {
            Some(Answer::text(200, text.clone()).with("Content-Type", "application/json").with("X-Consul-Index", 1))
        }
        _ => None,
    }
}

/// Spoils a good answer.
pub(crate) fn spoil(fault: &Fault, mut answer: Answer) -> (Answer, Delivery) {
    if let Fault::Truncate = fault {
        return (answer, Delivery::Truncated);
    }
    if answer.status != 200 {
        return (answer, Delivery::Whole);
    }
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let value = serde_json::from_str::<Value>(&text).ok();
    match (fault, value) {
        (Fault::Oversize { bytes }, _) => {
            let mut body = answer.body.to_vec();
            body.resize((*bytes).max(body.len()), b' ');
            answer.body = Bytes::from(body);
        }
        (Fault::WrongTypes, Some(value)) => {
            answer.body = Bytes::from(turn_over(&value).to_string());
        }
        (Fault::NullLists, Some(value)) => {
            answer.body = Bytes::from(without_empty(&value, &Some(Value::Null)).to_string());
        }
        (Fault::NoEmptyLists, Some(value)) => {
            answer.body = Bytes::from(without_empty(&value, &None).to_string());
        }
        (Fault::Index { index }, _) => answer = answer.with("X-Consul-Index", index),
        (Fault::NoIndex, _) => answer.headers.retain(|(n, _)| *n != "X-Consul-Index"),
        (Fault::AuthorizeMissing, Some(value)) => {
            answer.body = Bytes::from(json!({"Reason": value["Reason"]}).to_string());
        }
        (Fault::AuthorizeTwice, Some(value)) => {
            answer.body =
                Bytes::from(format!(r#"{{"Authorized":true,"Authorized":false,"Reason":{}}}"#, value["Reason"]));
        }
        (Fault::AuthorizeText, Some(value)) => {
            answer.body = Bytes::from(
                json!({"Authorized": value["Authorized"].to_string(), "Reason": value["Reason"]}).to_string(),
            );
        }
        (Fault::ExtraBytes, _) => answer.body = Bytes::from(text + "{\"Authorized\":true}"),
        _ => {}
    }
    (answer, Delivery::Whole)
}

/// An error as Consul words it.
pub(crate) fn error(status: u16, body: &str) -> Answer {
    let text = match (status, body) {
        (_, text) if !text.is_empty() => text,
        (403, _) => "Permission denied",
        (404, _) => "Not found",
        (429, _) => "Your IP is issuing too many concurrent connections, please rate limit your calls\n",
        (503, _) => {
            "rpc error making call: rate limit exceeded for operation that can only be performed by the leader, \
             try again later"
        }
        _ => "No cluster leader",
    };
    Answer::text(status, text)
        .with("X-Consul-Index", 1)
        .with("X-Consul-Knownleader", false)
        .with("X-Consul-Lastcontact", 0)
}

/// Puts `instead` for every empty list or map that stands under a key.
fn without_empty(value: &Value, instead: &Option<Value>) -> Value {
    let empty =
        |v: &Value| v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(serde_json::Map::is_empty);
    match value {
        Value::Array(items) => items.iter().map(|item| without_empty(item, instead)).collect(),
        Value::Object(map) => Value::Object(
            map.iter()
                .filter_map(|(k, v)| {
                    let v = if empty(v) { instead.clone()? } else { without_empty(v, instead) };
                    Some((k.clone(), v))
                })
                .collect(),
        ),
        other => other.clone(),
    }
}

fn turn_over(value: &Value) -> Value {
    match value {
        Value::Null => json!(0),
        Value::Bool(b) => json!(b.to_string()),
        Value::Number(n) => json!(n.to_string()),
        Value::String(s) => json!(s.len()),
        Value::Array(items) => {
            Value::Object(items.iter().enumerate().map(|(n, item)| (n.to_string(), turn_over(item))).collect())
        }
        Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), turn_over(v))).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;

    #[test]
    fn an_oversized_answer_is_still_good_json() {
        let good = Answer::json(Dialect::Today, &json!({"a": 1}));
        let (answer, _) = spoil(&Fault::Oversize { bytes: 1000 }, good);
        assert_eq!(answer.body.len(), 1000);
        assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap(), json!({"a": 1}));
    }

    #[test]
    fn empty_lists_become_null_or_go() {
        let value = json!({"Tags": [], "Meta": {}, "Nodes": [{"Tags": []}]});
        assert_eq!(
            without_empty(&value, &Some(Value::Null)),
            json!({"Tags": null, "Meta": null, "Nodes": [{"Tags": null}]})
        );
        assert_eq!(without_empty(&value, &None), json!({"Nodes": [{}]}));
    }

    #[test]
    fn wrong_types_keep_the_keys() {
        let good = Answer::json(Dialect::Today, &json!({"Authorized": true, "Roots": ["x"]}));
        let (answer, _) = spoil(&Fault::WrongTypes, good);
        let value: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(value, json!({"Authorized": "true", "Roots": {"0": 1}}));
    }
}
