//! What the agent says about itself and its own services.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::acl::{Caller, Right, resolve};
use crate::answer::Answer;
use crate::catalog::Service;
use crate::checks::Status;
use crate::request::Request;
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};
use crate::views;

/// `GET /v1/agent/services`
pub(crate) fn services(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.read(|state| {
        let caller = caller(state, req)?;
        let mut out = Map::new();
        for service in state.catalog.services.values() {
            if service.node.is_none() && caller.may(Right::ServiceRead(&service.name)) {
                let view = views::agent_view(&shared.options, state, service, None);
                out.insert(service.id.clone(), view);
            }
        }
        for (id, proxy) in &state.managed {
            if caller.may(Right::ServiceRead(&proxy.target_name)) {
                out.insert(id.clone(), proxy.agent_view(&shared.options));
            }
        }
        Ok(Answer::json(dialect, &Value::Object(out)))
    })
}

/// `GET /v1/agent/service/:id?hash=&wait=`
pub(crate) async fn service(shared: &Shared, req: &Request, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    let blocking = req.blocking()?;
    let look = |state: &State| -> Result<(Value, String), Answer> {
        let caller = caller(state, req)?;
        let Some(service) = state.catalog.services.get(id).filter(|s| s.node.is_none()) else {
            return Err(Answer::text(404, format!("unknown service ID: {id}")));
        };
        caller.need(Right::ServiceRead(&service.name), dialect).map_err(Answer::forbidden)?;
        Ok(views::agent_service(&shared.options, state, service))
    };
    let mut found = shared.read(look);
    if let (Some(hash), Ok((_, current))) = (&blocking.hash, &found)
        && hash == current
    {
        let wait = shared.wait(blocking.wait, Duration::from_secs(300), true);
        let waited = shared
            .block(Endpoint::AgentService, wait, |state| match look(state) {
                Ok((_, current)) if current == *hash => None,
                changed => Some(changed),
            })
            .await;
        match waited {
            Waited::Done(changed) => found = changed,
            Waited::TimedOut => {}
            Waited::Refused(answer) => return Err(answer),
        }
    }
    let (view, hash) = found?;
    Ok(Answer::json(dialect, &view).with("X-Consul-Contenthash", hash))
}

/// `GET /v1/agent/health/service/id/:id` and `…/name/:name`
pub(crate) fn health(shared: &Shared, req: &Request, by_name: bool, what: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    req.check_enterprise(dialect)?;
    shared.read(|state| {
        let caller = caller(state, req)?;
        let found: Vec<&Service> = state
            .catalog
            .services
            .values()
            .filter(|s| s.node.is_none() && (if by_name { &s.name } else { &s.id }) == what)
            .collect();
        if found.is_empty() {
            let (reason, body) = if by_name {
                (format!("ServiceName {what} Not Found"), json!([]))
            } else {
                let body = json!({"AggregatedStatus": "critical", "Service": null, "Checks": null});
                (format!("ServiceId {what} not found"), body)
            };
            return Err(Answer::json_text(dialect, 404, &body).with("X-Consul-Reason", reason));
        }
        for service in &found {
            caller.need(Right::ServiceRead(&service.name), dialect).map_err(Answer::forbidden)?;
        }
        let worst = found.iter().map(|s| state.catalog.status_of(&s.key())).max().unwrap_or(Status::Passing);
        let code = match worst {
            Status::Passing => 200,
            Status::Warning => 429,
            Status::Critical => 503,
        };
        let answer = if req.param("format") == Some("text") {
            Answer::text(code, worst.as_str()).with("Content-Type", "text/plain")
        } else {
            let mut entries: Vec<Value> = found.iter().map(|s| health_view(shared, state, s)).collect();
            let body = match (by_name, entries.len()) {
                (false, 1) => entries.remove(0),
                _ => Value::Array(entries),
            };
            Answer::json_text(dialect, code, &body)
        };
        Ok(answer.with("X-Consul-Reason", worst.as_str()))
    })
}

/// `GET /v1/agent/self`
pub(crate) fn own(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let options = &shared.options;
    let dialect = options.dialect;
    shared.read(|state| {
        caller(state, req)?
            .need(Right::AgentRead(&options.node_name), dialect)
            .map_err(Answer::forbidden)?;
        let version = dialect.version();
        let id = views::node_id(&options.node_name);
        let acls = if state.acl.is_some() { "1" } else { "0" };
        let policy = state.intention_policy.map_or("", |p| p.as_str());
        let mut config = json!({
            "Datacenter": options.datacenter,
            "PrimaryDatacenter": options.datacenter,
            "NodeName": options.node_name,
            "NodeID": id,
            "Revision": "",
            "Server": true,
            "Version": version,
        });
        let mut meta = json!({"consul-network-segment": ""});
        if dialect.is_today() {
            config["BuildDate"] = json!("1970-01-01T00:00:01Z");
            meta["consul-version"] = json!(version);
        }
        let body = json!({
            "Config": config,
            "DebugConfig": {
                "ConnectEnabled": true,
                "ACLsEnabled": state.acl.is_some(),
                "DefaultIntentionPolicy": policy,
                "HTTPMaxConnsPerClient": state.max_connections_per_client,
                "UseStreamingBackend": true,
                "Version": version,
                "ConnectSidecarMinPort": options.sidecar_ports.start(),
                "ConnectSidecarMaxPort": options.sidecar_ports.end(),
            },
            "Member": {
                "Name": options.node_name,
                "Addr": options.node_address.to_string(),
                "Port": 8301,
                "Tags": {"acls": acls, "build": format!("{version}:"), "dc": options.datacenter, "id": id, "role": "consul"},
                "Status": 1,
                "ProtocolMin": 1,
                "ProtocolMax": 5,
                "ProtocolCur": 2,
                "DelegateMin": 2,
                "DelegateMax": 5,
                "DelegateCur": 4,
            },
            "Meta": meta,
        });
        Ok(Answer::json(dialect, &body))
    })
}

fn caller<'a>(state: &'a State, req: &Request) -> Result<Caller<'a>, Answer> {
    resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))
}

fn health_view(shared: &Shared, state: &State, service: &Service) -> Value {
    let key = service.key();
    let checks: Vec<Value> = state
        .catalog
        .checks_of(&key)
        .map(|check| {
            let mut view = json!({
                "Node": shared.options.node_name,
                "CheckID": check.id,
                "Name": check.name,
                "Status": check.status.as_str(),
                "Notes": check.notes,
                "Output": check.output,
                "ServiceID": service.id,
                "ServiceName": service.name,
                "ServiceTags": if service.tags.is_empty() { Value::Null } else { json!(service.tags) },
                "Type": "",
                "Definition": {
                    "Interval": "0s", "Timeout": "0s", "DeregisterCriticalServiceAfter": "0s", "HTTP": "",
                    "Header": null, "Method": "", "Body": "", "TLSServerName": "", "TLSSkipVerify": false,
                    "TCP": "", "GRPC": "", "GRPCUseTLS": false,
                },
                "CreateIndex": 0,
                "ModifyIndex": 0,
            });
            if shared.options.dialect.is_today() {
                view["ExposedPort"] = json!(0);
                view["Definition"]["TCPUseTLS"] = json!(false);
                view["Definition"]["UDP"] = json!("");
                view["Definition"]["OSService"] = json!("");
            }
            view
        })
        .collect();
    json!({
        "AggregatedStatus": state.catalog.status_of(&key).as_str(),
        "Service": views::agent_view(&shared.options, state, service, None),
        "Checks": checks,
    })
}
