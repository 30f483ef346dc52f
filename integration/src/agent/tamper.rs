//! What the tap answers in its agent's place, so that every agent misbehaves on request, a real one too.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use reqwest::{Client, Method, Url};
use serde_json::Value;
use tokio::sync::watch;

/// What is done to the answer of a call.
#[derive(Clone)]
pub(crate) enum Tamper {
    /// This status and this text come in its place; the agent is not asked.
    Status(u16, String),
    /// None comes.
    Hang,
    /// Half of it comes, then the connection ends.
    Truncate,
    /// It has this `X-Consul-Index`.
    Index(u64),
    /// This is made of its JSON; with an index where that is not to be the next one.
    Text(Arc<dyn Fn(Value) -> String + Send + Sync>, Option<u64>),
}

impl Tamper {
    /// An error of the agent.
    pub(crate) fn status(status: u16) -> Self {
        Self::Status(status, "rpc error".to_owned())
    }

    /// 200 with this text, whatever the agent would say.
    pub(crate) fn body(text: &str) -> Self {
        Self::Status(200, text.to_owned())
    }

    /// The agent's answer with its JSON changed.
    pub(crate) fn json(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::text(move |mut value| {
            change(&mut value);
            value.to_string()
        })
    }

    /// The agent's answer with any text made of its JSON.
    pub(crate) fn text(make: impl Fn(Value) -> String + Send + Sync + 'static) -> Self {
        Self::Text(Arc::new(make), None)
    }

    /// What is new comes under this index.
    pub(crate) fn at_index(self, index: u64) -> Self {
        match self {
            Self::Text(make, _) => Self::Text(make, Some(index)),
            _ => Self::Index(index),
        }
    }
}

/// Which calls suffer it.
pub(crate) struct Rule {
    /// Those whose request line holds this.
    pub(crate) part: String,
    pub(crate) tamper: Tamper,
    /// How many; `None` for all until the rule is taken back.
    pub(crate) times: Option<u64>,
    /// Also those that wait for their answer already: they get it at once.
    pub(crate) waiting: bool,
}

/// The rules of one tap.
pub(super) struct Tampering {
    target: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    changed: watch::Sender<()>,
    /// By path: an index that an answer was given here, and the agent's own. A call with the first one is sent on with
    /// the second, or else the agent would wait for an index that it never had, and its next change would be missed.
    indexes: Mutex<HashMap<String, (u64, u64)>>,
    client: OnceLock<Client>,
}

/// One request as it came.
pub(super) struct Request {
    pub(super) head: String,
    raw: Vec<u8>,
    body: usize,
}

/// What goes to the sidecar, and whether the connection ends with it.
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) last: bool,
}

impl Tampering {
    pub(super) fn new(target: SocketAddr) -> Self {
        let (changed, _) = watch::channel(());
        Self { target, rules: Mutex::default(), changed, indexes: Mutex::default(), client: OnceLock::new() }
    }

    pub(super) fn add(&self, rule: Rule) {
        self.rules.lock().push(rule);
        self.changed.send_replace(());
    }

    pub(super) fn clear(&self, part: &str) {
        self.rules.lock().retain(|rule| !rule.part.contains(part));
    }

    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What this call suffers; `waiting` where it has been with the agent already.
    pub(super) fn take(&self, request: &Request, waiting: bool) -> Option<Tamper> {
        let line = request.head.lines().next().unwrap_or_default();
        let mut rules = self.rules.lock();
        let at = rules.iter().position(|rule| line.contains(&rule.part) && (rule.waiting || !waiting))?;
        let tamper = rules[at].tamper.clone();
        if let Some(times) = &mut rules[at].times {
            *times -= 1;
            if *times == 0 {
                rules.remove(at);
            }
        }
        Some(tamper)
    }

    /// The request as the agent is to see it.
    pub(super) fn forwarded(&self, request: &Request) -> Vec<u8> {
        let shown = request.index();
        let known = self.indexes.lock().get(request.path()).copied();
        match known {
            Some((given, own)) if given == shown => {
                let head = request.head.replacen(&format!("index={given}"), &format!("index={own}"), 1);
                [head.as_bytes(), &request.raw[request.head.len()..]].concat()
            }
            _ => request.raw.clone(),
        }
    }

    /// Does it. A call that has waited is answered at once, one that comes may wait at the agent.
    pub(super) async fn answer(&self, request: &Request, tamper: Tamper, waited: bool) -> Result<Answer> {
        let make = match tamper {
            Tamper::Hang => std::future::pending().await,
            Tamper::Status(status, text) => {
                let headers = "Content-Type: text/plain; charset=utf-8\r\nX-Consul-Index: 1\r\n";
                return Ok(Answer { bytes: wire(status, headers, text.as_bytes()), last: false });
            }
            other => other,
        };
        let (status, mut headers, text) = self.ask(request, waited).await?;
        if let Tamper::Truncate = make {
            let mut bytes = wire(status, &lines(&headers), text.as_bytes());
            bytes.truncate(bytes.len() - text.len() / 2);
            return Ok(Answer { bytes, last: true });
        }
        let own: u64 = headers.get("x-consul-index").and_then(|index| index.parse().ok()).unwrap_or(0);
        let (shown, text) = match make {
            Tamper::Index(index) => (index, text),
            Tamper::Text(make, index) if status == 200 => {
                let changed = make(serde_json::from_str(&text).unwrap_or(Value::Null));
                // What is new has a new index, as far as the caller told which one it has.
                let next = if request.index() > 0 { own.max(request.index() + 1) } else { own };
                (index.unwrap_or(next), changed)
            }
            _ => (own, text),
        };
        if headers.contains_key("x-consul-index") {
            headers.insert("x-consul-index".to_owned(), shown.to_string());
        }
        if shown != own {
            self.indexes.lock().insert(request.path().to_owned(), (shown, own));
        }
        Ok(Answer { bytes: wire(status, &lines(&headers), text.as_bytes()), last: false })
    }

    /// The agent's own answer, over a connection of ours.
    async fn ask(&self, request: &Request, at_once: bool) -> Result<(u16, HashMap<String, String>, String)> {
        let client = match self.client.get() {
            Some(client) => client.clone(),
            None => {
                let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
                self.client.get_or_init(|| client).clone()
            }
        };
        let seen = self.forwarded(request);
        let line = String::from_utf8_lossy(&seen).lines().next().unwrap_or_default().to_owned();
        let mut words = line.split(' ');
        let method: Method = words.next().unwrap_or_default().parse()?;
        let mut url: Url = format!("http://{}{}", self.target, words.next().context("no path")?).parse()?;
        if at_once {
            let kept: Vec<(String, String)> = url
                .query_pairs()
                .filter(|(key, _)| !["index", "wait", "hash"].contains(&key.as_ref()))
                .map(|(key, value)| (key.into_owned(), value.into_owned()))
                .collect();
            url.query_pairs_mut().clear().extend_pairs(kept);
        }
        let mut call = client.request(method, url).body(request.raw[request.raw.len() - request.body..].to_vec());
        for (name, value) in request.head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
            if !["host", "content-length", "connection", "accept-encoding"].contains(&name.to_lowercase().as_str()) {
                call = call.header(name, value);
            }
        }
        let answer = call.send().await?;
        let status = answer.status().as_u16();
        let passed = answer
            .headers()
            .iter()
            .filter(|(name, _)| !["content-length", "transfer-encoding", "connection"].contains(&name.as_str()));
        let headers = passed.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        Ok((status, headers.collect(), answer.text().await?))
    }
}

impl Request {
    /// Where the bytes are a whole request, that is what they are; a sidecar sends the next one after the answer.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head) = request.parse(bytes).context("no request")? else { return Ok(None) };
        let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body = match length {
            Some(length) => std::str::from_utf8(length.value)?.parse().context("no length")?,
            None => 0,
        };
        if bytes.len() < head + body {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&bytes[..head]);
        Ok(Some(Self { head: text.trim_end().to_owned(), raw: bytes.to_vec(), body }))
    }

    fn path(&self) -> &str {
        let target = self.head.split(' ').nth(1).unwrap_or_default();
        target.split('?').next().unwrap_or_default()
    }

    /// The index that it waits for a change of; 0 without one.
    fn index(&self) -> u64 {
        let target = self.head.split(' ').nth(1).unwrap_or_default();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let index = query.split('&').find_map(|pair| pair.strip_prefix("index="));
        index.and_then(|index| index.parse().ok()).unwrap_or(0)
    }
}

fn lines(headers: &HashMap<String, String>) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

fn wire(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = match status {
        // RFC 9110, section 8.6: it has neither a length nor a body.
        204 => return format!("HTTP/1.1 204 No Content\r\n{headers}\r\n").into_bytes(),
        _ => format!("HTTP/1.1 {status} Tampered\r\n{headers}Content-Length: {}\r\n\r\n", body.len()),
    };
    [head.as_bytes(), body].concat()
}
