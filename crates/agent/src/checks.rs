//! Health checks: TTL, TCP and alias checks, really performed, and the endpoints that report to them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::catalog;
use crate::dialect::Dialect;
use crate::request::{Request, go_duration, known_keys};
use crate::store::{Shared, State};

/// Status of a check; the order is that of gravity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Good.
    Passing,
    /// Not good; left out by `?passing`.
    Warning,
    /// Bad.
    Critical,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "passing" => Some(Self::Passing),
            "warning" => Some(Self::Warning),
            "critical" => Some(Self::Critical),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    pub(crate) id: String,
    pub(crate) name: String,
    /// The instance it belongs to.
    pub(crate) service: String,
    pub(crate) status: Status,
    pub(crate) notes: String,
    pub(crate) output: String,
    pub(crate) kind: Kind,
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
}

impl Check {
    /// Its ID without the key that stands in front where the instance is on another node.
    pub(crate) fn shown_id(&self) -> &str {
        let front = matches!(self.kind, Kind::Fixed).then(|| self.id.strip_prefix(self.service.as_str()));
        front.flatten().and_then(|id| id.strip_prefix('/')).unwrap_or(&self.id)
    }
}

/// What moves a check.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Reports that must come again in time.
    Ttl { ttl: Duration, expires: Instant },
    /// A connection that is opened and closed without a byte.
    Tcp { target: String, interval: Duration, timeout: Duration, next: Instant },
    /// Follows another instance on this agent.
    Alias { of: String },
    /// Set by hand.
    Fixed,
}

impl Kind {
    /// What `Interval` shows; the dialect of today only.
    pub(crate) fn interval(&self) -> String {
        match self {
            Self::Tcp { interval, .. } if interval.subsec_nanos() == 0 => format!("{}s", interval.as_secs()),
            Self::Tcp { interval, .. } => format!("{}ms", interval.as_millis()),
            _ => String::new(),
        }
    }

    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Ttl { .. } => "ttl",
            Self::Tcp { .. } => "tcp",
            Self::Alias { .. } => "alias",
            Self::Fixed => "",
        }
    }
}

/// The keys of a check definition that Consul knows.
pub(crate) const CHECK_KEYS: &[&str] = &[
    "ID",
    "CheckID",
    "Name",
    "Args",
    "DockerContainerID",
    "Shell",
    "Interval",
    "Timeout",
    "TTL",
    "HTTP",
    "Header",
    "Method",
    "Body",
    "DisableRedirects",
    "TCP",
    "TCPUseTLS",
    "UDP",
    "Status",
    "Notes",
    "TLSServerName",
    "TLSSkipVerify",
    "GRPC",
    "GRPCUseTLS",
    "H2PING",
    "H2PingUseTLS",
    "AliasNode",
    "AliasService",
    "OSService",
    "SuccessBeforePassing",
    "FailuresBeforeWarning",
    "FailuresBeforeCritical",
    "DeregisterCriticalServiceAfter",
    "ServiceID",
    "OutputMaxSize",
    "ProxyHTTP",
    "ProxyGRPC",
    "Namespace",
    "Partition",
];

/// Reads one definition. `default_id` and `default_name` are what an unnamed one gets.
pub(crate) fn parse(
    definition: Map<String, Value>,
    service: &str,
    default_id: &str,
    default_name: &str,
) -> Result<Check, String> {
    let map = known_keys(definition, CHECK_KEYS, true)?;
    let text = |key: &str| map.get(key).and_then(Value::as_str).filter(|v| !v.is_empty());
    let span = |key: &str| match text(key) {
        None => Ok(None),
        Some(text) => go_duration(text).map(Some).ok_or_else(|| format!("time: invalid duration \"{text}\"")),
    };
    let now = Instant::now();
    let interval = span("Interval")?;
    let kind = if let Some(ttl) = span("TTL")? {
        Kind::Ttl { ttl, expires: now + ttl }
    } else if let Some(target) = text("TCP") {
        Kind::Tcp {
            target: target.to_owned(),
            interval: interval.ok_or("Interval must be > 0 for Script, HTTP, or TCP checks")?,
            timeout: span("Timeout")?.unwrap_or(Duration::from_secs(10)),
            next: now,
        }
    } else if let Some(of) = text("AliasService") {
        Kind::Alias { of: of.to_owned() }
    } else {
        return Err("the development agent performs TTL, TCP and alias checks, and no others".to_owned());
    };
    let status = match text("Status") {
        None if matches!(kind, Kind::Alias { .. }) => Status::Passing,
        None => Status::Critical,
        Some(text) => Status::parse(text).ok_or_else(|| format!("Invalid check status: '{text}'"))?,
    };
    Ok(Check {
        id: text("CheckID").or_else(|| text("ID")).unwrap_or(default_id).to_owned(),
        name: text("Name").unwrap_or(default_name).to_owned(),
        service: service.to_owned(),
        status,
        notes: text("Notes").unwrap_or_default().to_owned(),
        output: String::new(),
        kind,
        create_index: 0,
        modify_index: 0,
    })
}

/// Adds a check. One of the same ID keeps its status and output, as over a second registration of a service.
pub(crate) fn put(state: &mut State, mut check: Check) {
    if let Some(old) = state.catalog.checks.get(&check.id)
        && old.service == check.service
    {
        check.status = old.status;
        check.output = old.output.clone();
        check.create_index = old.create_index;
        check.modify_index = old.modify_index;
        state.catalog.checks.insert(check.id.clone(), check);
        return;
    }
    let index = catalog::check_changed(state, &check.service);
    check.create_index = index;
    check.modify_index = index;
    state.catalog.checks.insert(check.id.clone(), check);
}

/// Sets status and output; says whether the check exists.
pub(crate) fn set(state: &mut State, id: &str, status: Status, output: &str) -> bool {
    let Some(check) = state.catalog.checks.get_mut(id) else {
        return false;
    };
    if let Kind::Ttl { ttl, expires } = &mut check.kind {
        *expires = Instant::now() + *ttl;
    }
    if check.status == status && check.output == output {
        return true;
    }
    check.status = status;
    check.output = output.to_owned();
    let service = check.service.clone();
    let index = catalog::check_changed(state, &service);
    if let Some(check) = state.catalog.checks.get_mut(id) {
        check.modify_index = index;
    }
    true
}

/// Brings the alias checks in line with what they follow.
pub(crate) fn follow_aliases(state: &mut State) {
    let aliases: Vec<(String, String)> = state
        .catalog
        .checks
        .values()
        .filter_map(|c| match &c.kind {
            Kind::Alias { of } => Some((c.id.clone(), of.clone())),
            _ => None,
        })
        .collect();
    for (id, of) in aliases {
        let mut followed: Vec<&Check> = state.catalog.checks_of(&of).collect();
        followed.sort_by_key(|c| std::cmp::Reverse(c.status));
        let (status, output) = match followed.first() {
            None if state.catalog.services.contains_key(&of) => (Status::Passing, "No checks found.".to_owned()),
            None => (Status::Critical, format!("Service {of} could not be found on the node")),
            Some(c) if c.status == Status::Passing => (Status::Passing, "All checks passing.".to_owned()),
            Some(c) => (c.status, format!("Aliased check \"{}\" failing: {}", c.name, c.output)),
        };
        set(state, &id, status, &output);
    }
}

/// Performs what is due, for as long as the agent lives.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut changed = shared.subscribe();
    loop {
        changed.borrow_and_update();
        let now = Instant::now();
        let (due, next) = shared.quietly(|state| due(state, now));
        for (id, target, timeout) in due.tcp {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                let (status, output) = dial(&target, timeout).await;
                shared.stats.send_modify(|s| s.tcp_checks += 1);
                // The check may be gone by now.
                shared.update(|state| set(state, &id, status, &output));
            });
        }
        if !due.expired.is_empty() {
            shared.update(|state| {
                for (id, output) in due.expired {
                    set(state, &id, Status::Critical, &output);
                }
            });
            continue;
        }
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            gone = changed.changed() => if gone.is_err() { return },
        }
    }
}

#[derive(Default)]
struct Due {
    tcp: Vec<(String, String, Duration)>,
    expired: Vec<(String, String)>,
}

/// What is due now, and when to look again.
fn due(state: &mut State, now: Instant) -> (Due, Option<Instant>) {
    let mut due = Due::default();
    let mut next: Option<Instant> = None;
    let mut at = |when: Instant| next = Some(next.map_or(when, |n| n.min(when)));
    for check in state.catalog.checks.values_mut() {
        match &mut check.kind {
            Kind::Ttl { expires, .. } if check.status != Status::Critical => {
                if *expires <= now {
                    let output = if check.output.is_empty() {
                        "TTL expired".to_owned()
                    } else {
                        format!("TTL expired (last output before timeout follows): {}", check.output)
                    };
                    due.expired.push((check.id.clone(), output));
                } else {
                    at(*expires);
                }
            }
            Kind::Tcp { target, interval, timeout, next } => {
                if *next <= now {
                    due.tcp.push((check.id.clone(), target.clone(), *timeout));
                    *next = now + (*interval).max(Duration::from_millis(10));
                }
                at(*next);
            }
            Kind::Ttl { .. } | Kind::Alias { .. } | Kind::Fixed => {}
        }
    }
    (due, next)
}

async fn dial(target: &str, timeout: Duration) -> (Status, String) {
    // Only addresses: a development agent resolves no names and leaves the machine for no check.
    let Ok(address) = target.replace("localhost", "127.0.0.1").parse::<SocketAddr>() else {
        return (Status::Critical, format!("dial tcp {target}: not an address"));
    };
    let address = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, address.port())),
        _ => address,
    };
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(_)) => (Status::Passing, format!("TCP connect {target}: Success")),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            (Status::Critical, format!("dial tcp {target}: connect: connection refused"))
        }
        Ok(Err(e)) => (Status::Critical, format!("dial tcp {target}: connect: {e}")),
        Err(_) => (Status::Critical, format!("dial tcp {target}: i/o timeout")),
    }
}

/// `PUT /v1/agent/check/{pass,warn,fail}/:id?note=` and `…/update/:id`
pub(crate) fn report(shared: &Shared, req: &Request, verb: &str, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let (status, output) = match verb {
        "pass" | "warn" | "fail" => (
            match verb {
                "pass" => Status::Passing,
                "warn" => Status::Warning,
                _ => Status::Critical,
            },
            req.param("note").unwrap_or_default().to_owned(),
        ),
        _ => {
            let wrong = |text: String| Answer::text(400, format!("Request decode failed: {text}"));
            let body =
                known_keys(req.json_object().map_err(wrong)?, &["Status", "Output", "CheckID", "Namespace"], false)
                    .map_err(wrong)?;
            let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
            let status = Status::parse(text("Status"))
                .ok_or_else(|| Answer::text(400, format!("Invalid check status: '{}'", text("Status"))))?;
            (status, text("Output").to_owned())
        }
    };
    shared.update(|state| {
        let no_ttl = || Answer::text(500, format!("CheckID \"{id}\" does not have associated TTL"));
        let Some(check) = state.catalog.checks.get(id) else {
            return Err(match dialect {
                Dialect::Today => Answer::text(
                    404,
                    format!("Unknown check ID \"{id}\". Ensure that the check ID is passed, not the check name."),
                ),
                Dialect::Old => no_ttl(),
            });
        };
        let name = state.catalog.services.get(&check.service).map(|s| s.name.clone()).unwrap_or_default();
        may_write(state, req, &name, dialect)?;
        if !matches!(check.kind, Kind::Ttl { .. }) {
            return Err(no_ttl());
        }
        set(state, id, status, &output);
        Ok(Answer::done(dialect))
    })
}

/// `PUT /v1/agent/check/register`
pub(crate) fn register(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let wrong = |text: String| Answer::text(400, format!("Request decode failed: {text}"));
    let body = req.json_object().map_err(wrong)?;
    let known = known_keys(body.clone(), CHECK_KEYS, true).map_err(wrong)?;
    let text = |key: &str| known.get(key).and_then(Value::as_str).unwrap_or_default();
    let name = text("Name");
    if name.is_empty() {
        return Err(Answer::text(400, "Missing check name"));
    }
    let service = text("ServiceID").to_owned();
    let check = parse(body, &service, name, name).map_err(wrong)?;
    shared.update(|state| {
        let Some(owner) = state.catalog.services.get(&service) else {
            return Err(Answer::text(
                if dialect.is_today() { 404 } else { 500 },
                format!("ServiceID \"{service}\" does not exist"),
            ));
        };
        let owner = owner.name.clone();
        may_write(state, req, &owner, dialect)?;
        put(state, check);
        Ok(Answer::done(dialect))
    })
}

/// `PUT /v1/agent/check/deregister/:id`
pub(crate) fn deregister(shared: &Shared, req: &Request, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.update(|state| {
        let Some(check) = state.catalog.checks.get(id) else {
            return match dialect {
                Dialect::Today => Err(Answer::text(
                    404,
                    format!("Unknown check ID \"{id}\". Ensure that the check ID is passed, not the check name."),
                )),
                Dialect::Old => Ok(Answer::done(dialect)),
            };
        };
        let service = check.service.clone();
        let name = state.catalog.services.get(&service).map(|s| s.name.clone()).unwrap_or_default();
        may_write(state, req, &name, dialect)?;
        state.catalog.checks.remove(id);
        catalog::check_changed(state, &service);
        Ok(Answer::done(dialect))
    })
}

/// `GET /v1/agent/checks`
pub(crate) fn list(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.read(|state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        let mut out = Map::new();
        for check in state.catalog.checks.values() {
            let Some(service) = state.catalog.services.get(&check.service) else {
                continue;
            };
            if service.node.is_some() || !caller.may(Right::ServiceRead(&service.name)) {
                continue;
            }
            let mut view = crate::views::check_view(&shared.options, service, check, &json!(service.tags));
            // The agent's own list has no indexes.
            view["CreateIndex"] = json!(0);
            view["ModifyIndex"] = json!(0);
            out.insert(check.id.clone(), view);
        }
        Ok(Answer::json(dialect, &Value::Object(out)))
    })
}

fn may_write(state: &State, req: &Request, service: &str, dialect: Dialect) -> Result<(), Answer> {
    resolve(state.acl.as_ref(), req.token.as_deref())
        .ok_or_else(|| Answer::forbidden("ACL not found"))?
        .need(Right::ServiceWrite(service), dialect)
        .map_err(Answer::forbidden)
}
