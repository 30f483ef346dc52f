//! The same handle over HTTP, for tests of whole processes and for people: a listener of its own, off unless
//! [`Options::control`](crate::Options::control) gives it an address. It asks nobody who they are, so it belongs on
//! the loopback interface, like the agent itself.
//!
//! `POST /lictor/control/<command>` with a JSON object (or nothing) does it and answers `{}`; a refusal is 400 with
//! the reason as text. `GET /lictor/control/stats` gives the [`Stats`](crate::Stats) as JSON.
//!
//! | command | body |
//! | --- | --- |
//! | `rotate-root` | `{"cross_sign": true}` |
//! | `prune-roots` | |
//! | `leaf-ttl` | `{"seconds": 30}` |
//! | `renew-leaf` | `{"service": "web", "keep_index": false}` |
//! | `touch-leaf` | `{"service": "web"}` |
//! | `touch-roots`, `change-hashes` | |
//! | `issue` | `{"service": "web", "seconds": 60}`; answers `chain_pem`, `key_pem`, `uri` |
//! | `allow`, `deny`, `forget` | `{"source": "web", "destination": "db"}` |
//! | `default-intention-policy` | `{"policy": "deny"}`, `null` for none |
//! | `acl-default` | `{"policy": "deny"}` |
//! | `add-token` | `{"secret": "…", "token": {"management": true}}`, see [`Token`] |
//! | `delete-token` | `{"secret": "…"}` |
//! | `register` | `{"service": {…}}` as `PUT /v1/agent/service/register` takes it |
//! | `deregister` | `{"id": "web-1"}` |
//! | `add-instance` | `{"instance": {…}}`, see [`Instance`] |
//! | `remove-instance` | `{"node": "n2", "id": "db-2"}` |
//! | `set-check` | `{"id": "…", "status": "critical", "output": ""}` |
//! | `managed-proxy` | `{"proxy": {…}}`, see [`ManagedProxy`] |
//! | `misbehave` | `{"endpoint": "authorize", "fault": {"status": {"status": 500}}, "times": 3}`, see [`Rule`]; without `times` until cleared |
//! | `behave` | `{"endpoint": "leaf"}`; everything without |
//! | `refuse-blocked` | `{"endpoint": "leaf", "status": 403, "body": "ACL not found"}` |
//! | `leaf-fault` | `{"service": "web", "fault": "expired"}`, `null` for none, see [`LeafFault`] |
//! | `roots-fault` | `{"fault": "empty"}`, `null` for none, see [`RootsFault`] |
//! | `connection-limit` | `{"limit": 10}` |
//! | `lose-servers`, `find-servers` | |
//! | `freeze`, `thaw` | |
//! | `stop`, `start`, `restart-wiped`, `drop-connections` | |
//! | `wait` | `{"endpoint": "leaf", "calls": 1, "answers": 0, "blocked": 1, "seconds": 10}`; until there are as many |
//! | `reset-stats` | |

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::acl::{Policy, Token};
use crate::checks::Status;
use crate::handle::{Handle, HandleError, Instance};
use crate::leaf::LeafFault;
use crate::managed::ManagedProxy;
use crate::misbehave::{Calls, Fault, Rule};
use crate::roots::RootsFault;
use crate::stats::Endpoint;

const PREFIX: &str = "/lictor/control/";
const MAX_REQUEST: usize = 1 << 20;

/// One order; the command stands in the path.
#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
enum Order {
    RotateRoot {
        #[serde(default = "yes")]
        cross_sign: bool,
    },
    PruneRoots {},
    LeafTtl {
        seconds: f64,
    },
    RenewLeaf {
        service: String,
        #[serde(default)]
        keep_index: bool,
    },
    TouchLeaf {
        service: String,
    },
    TouchRoots {},
    ChangeHashes {},
    Issue {
        service: String,
        seconds: Option<f64>,
    },
    Allow {
        source: String,
        destination: String,
    },
    Deny {
        source: String,
        destination: String,
    },
    Forget {
        source: String,
        destination: String,
    },
    DefaultIntentionPolicy {
        policy: Option<Policy>,
    },
    AclDefault {
        policy: Policy,
    },
    AddToken {
        secret: String,
        token: Token,
    },
    DeleteToken {
        secret: String,
    },
    Register {
        service: Value,
    },
    Deregister {
        id: String,
    },
    AddInstance {
        instance: Instance,
    },
    RemoveInstance {
        node: String,
        id: String,
    },
    SetCheck {
        id: String,
        status: Status,
        #[serde(default)]
        output: String,
    },
    ManagedProxy {
        proxy: ManagedProxy,
    },
    Misbehave {
        endpoint: Endpoint,
        fault: Fault,
        #[serde(default)]
        times: Option<u64>,
        #[serde(default)]
        calls: Calls,
        #[serde(default)]
        containing: Option<String>,
    },
    Behave {
        endpoint: Option<Endpoint>,
    },
    RefuseBlocked {
        endpoint: Endpoint,
        status: u16,
        #[serde(default)]
        body: String,
    },
    LeafFault {
        service: String,
        fault: Option<LeafFault>,
    },
    RootsFault {
        fault: Option<RootsFault>,
    },
    ConnectionLimit {
        limit: usize,
    },
    LoseServers {},
    FindServers {},
    Freeze {},
    Thaw {},
    Stop {},
    Start {},
    RestartWiped {},
    DropConnections {},
    Wait {
        endpoint: Endpoint,
        #[serde(default)]
        calls: u64,
        #[serde(default)]
        answers: u64,
        #[serde(default)]
        blocked: u64,
        seconds: f64,
    },
    ResetStats {},
}

fn yes() -> bool {
    true
}

/// Serves orders until it is dropped.
pub(crate) async fn serve(handle: Handle, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let handle = handle.clone();
                    connections.spawn(async move {
                        let service = service_fn(move |request| {
                            let handle = handle.clone();
                            async move { Ok::<_, Infallible>(respond(&handle, request).await) }
                        });
                        if let Err(error) = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await
                        {
                            tracing::debug!(%error, "control connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "control accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn respond(handle: &Handle, request: http::Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let Some(command) = parts.uri.path().strip_prefix(PREFIX) else {
        return text(StatusCode::NOT_FOUND, "orders stand under /lictor/control/");
    };
    if command == "stats" {
        return match serde_json::to_value(handle.stats()) {
            Ok(stats) => answer(&stats),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        };
    }
    if parts.method != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "orders are given by POST");
    }
    let Ok(body) = Limited::new(body, MAX_REQUEST).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "the order is too long");
    };
    let order = match read(command, &body.to_bytes()) {
        Ok(order) => order,
        Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match obey(handle, order).await {
        Ok(value) => answer(&value),
        Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn read(command: &str, body: &[u8]) -> Result<Order, serde_json::Error> {
    let mut map: serde_json::Map<String, Value> =
        if body.iter().all(u8::is_ascii_whitespace) { serde_json::Map::new() } else { serde_json::from_slice(body)? };
    map.insert("command".to_owned(), json!(command));
    serde_json::from_value(Value::Object(map))
}

async fn obey(handle: &Handle, order: Order) -> Result<Value, HandleError> {
    match order {
        Order::RotateRoot { cross_sign: true } => handle.rotate_root()?,
        Order::RotateRoot { cross_sign: false } => handle.rotate_root_without_cross_signing()?,
        Order::PruneRoots {} => handle.prune_roots(),
        Order::LeafTtl { seconds } => handle.set_leaf_ttl(span(seconds)?)?,
        Order::RenewLeaf { service, keep_index: false } => handle.renew_leaf(&service)?,
        Order::RenewLeaf { service, keep_index: true } => handle.renew_leaf_under_old_index(&service)?,
        Order::TouchLeaf { service } => handle.touch_leaf(&service),
        Order::TouchRoots {} => handle.touch_roots(),
        Order::ChangeHashes {} => handle.change_hashes(),
        Order::Issue { service, seconds } => {
            let ttl = seconds.map(span).transpose()?;
            let issued = handle.issue_with(&service, ttl)?;
            return Ok(json!({
                "chain_pem": issued.chain_pem,
                "key_pem": issued.key_pem,
                "uri": issued.uri,
            }));
        }
        Order::Allow { source, destination } => handle.allow(&source, &destination),
        Order::Deny { source, destination } => handle.deny(&source, &destination),
        Order::Forget { source, destination } => {
            found(handle.forget(&source, &destination), "intention")?;
        }
        Order::DefaultIntentionPolicy { policy } => handle.set_default_intention_policy(policy),
        Order::AclDefault { policy } => handle.set_acl_default(policy),
        Order::AddToken { secret, token } => handle.add_token(&secret, token),
        Order::DeleteToken { secret } => found(handle.delete_token(&secret), "token")?,
        Order::Register { service } => handle.register(service)?,
        Order::Deregister { id } => found(handle.deregister(&id), "service")?,
        Order::AddInstance { instance } => handle.add_instance(instance)?,
        Order::RemoveInstance { node, id } => {
            found(handle.remove_instance(&node, &id), "instance")?;
        }
        Order::SetCheck { id, status, output } => {
            found(handle.set_check(&id, status, &output), "check")?;
        }
        Order::ManagedProxy { proxy } => handle.set_managed_proxy(proxy),
        Order::Misbehave { endpoint, fault, times, calls, containing } => {
            handle.misbehave_by(Rule { endpoint, fault, times, calls, containing });
        }
        Order::Behave { endpoint: None } => handle.behave()?,
        Order::Behave { endpoint: Some(endpoint) } => handle.behave_at(endpoint),
        Order::RefuseBlocked { endpoint, status, body } => {
            handle.refuse_blocked(endpoint, status, &body);
        }
        Order::LeafFault { service, fault } => handle.set_leaf_fault(&service, fault)?,
        Order::RootsFault { fault } => handle.set_roots_fault(fault)?,
        Order::ConnectionLimit { limit } => handle.set_connection_limit(limit),
        Order::LoseServers {} => handle.lose_servers(),
        Order::FindServers {} => handle.find_servers(),
        Order::Freeze {} => handle.freeze(),
        Order::Thaw {} => handle.thaw(),
        Order::Stop {} => handle.stop_listening().await,
        Order::Start {} => handle.start_listening().await?,
        Order::RestartWiped {} => handle.restart_wiped().await?,
        Order::DropConnections {} => handle.drop_connections().await?,
        Order::Wait { endpoint, calls, answers, blocked, seconds } => {
            let seen = handle.wait_until(|s| {
                s.calls(endpoint) >= calls && s.answers(endpoint) >= answers && s.blocked(endpoint) >= blocked
            });
            if tokio::time::timeout(span(seconds)?, seen).await.is_err() {
                return Err(HandleError::Refused("it did not come to that in time".to_owned()));
            }
        }
        Order::ResetStats {} => handle.reset_stats(),
    }
    Ok(json!({}))
}

fn span(seconds: f64) -> Result<Duration, HandleError> {
    Duration::try_from_secs_f64(seconds).map_err(|e| HandleError::Refused(e.to_string()))
}

fn found(there: bool, what: &str) -> Result<(), HandleError> {
    if there { Ok(()) } else { Err(HandleError::Refused(format!("no such {what}"))) }
}

fn answer(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text.to_owned())));
    *response.status_mut() = status;
    response
}
