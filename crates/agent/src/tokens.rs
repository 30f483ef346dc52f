//! `/v1/acl/token` and `/v1/acl/policy`, as far as a test or a demonstration needs them.

use serde_json::{Value, json};

use crate::acl::{Right, Token, resolve};
use crate::answer::Answer;
use crate::policy;
use crate::request::{Request, known_keys};
use crate::store::{Shared, State};

const KEYS: &[&str] = &[
    "AccessorID",
    "SecretID",
    "Description",
    "Policies",
    "Roles",
    "ServiceIdentities",
    "NodeIdentities",
    "TemplatedPolicies",
    "Local",
    "ExpirationTTL",
];

/// `PUT /v1/acl/token`
pub(crate) fn create(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    let wrong = |text: String| Answer::text(400, dialect.bad_request(&format!("Token decoding failed: {text}")));
    let body = known_keys(req.json_object().map_err(wrong)?, KEYS, false).map_err(wrong)?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).filter(|v| !v.is_empty()).map(str::to_owned);
    for key in ["Roles", "NodeIdentities", "TemplatedPolicies"] {
        if body.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
            return Err(Answer::text(
                400,
                format!("the development agent's tokens carry policies and service identities only, no {key}"),
            ));
        }
    }
    let mut token = Token::fresh();
    if let Some(accessor) = text("AccessorID") {
        token.accessor = accessor;
    }
    let identities = body.get("ServiceIdentities").and_then(Value::as_array);
    for identity in identities.into_iter().flatten() {
        let name = identity
            .get("ServiceName")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("Service identity is missing the service name field".to_owned()))?;
        let one = Token::service_identity(name);
        token.services.extend(one.services);
        token.service_prefixes = one.service_prefixes;
        token.node_read = true;
    }
    let policies: Vec<String> = body
        .get("Policies")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|p| p.get("Name").or_else(|| p.get("ID")).and_then(Value::as_str))
        .map(str::to_owned)
        .collect();
    let secret = text("SecretID").unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    shared.update(|state| {
        may(state, req, shared)?;
        for wanted in &policies {
            let (_, _, rules) = state
                .policies
                .iter()
                .find(|(id, name, _)| id == wanted || name == wanted)
                .ok_or_else(|| Answer::text(500, format!("No such ACL policy with name \"{wanted}\"")))?;
            policy::add(&mut token, rules).map_err(|e| Answer::text(500, e))?;
        }
        let acl = state.acl.as_mut().ok_or_else(disabled)?;
        let view = view(&token, &secret);
        acl.tokens.insert(secret, token);
        Ok(Answer::json(dialect, &view))
    })
}

/// `PUT /v1/acl/policy`
pub(crate) fn create_policy(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    let wrong = |text: String| Answer::text(400, dialect.bad_request(&format!("Policy decoding failed: {text}")));
    let keys: &[&'static str] = &["ID", "Name", "Description", "Rules", "Datacenters"];
    let body = known_keys(req.json_object().map_err(wrong)?, keys, false).map_err(wrong)?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, rules) = (text("Name"), text("Rules"));
    if name.is_empty() {
        return Err(Answer::text(500, "Invalid Policy: no Name is set"));
    }
    policy::add(&mut Token::default(), &rules).map_err(|e| Answer::text(500, e))?;
    shared.update(|state| {
        may(state, req, shared)?;
        if state.policies.iter().any(|(_, n, _)| *n == name) {
            return Err(Answer::text(500, format!("Invalid Policy: A Policy with Name \"{name}\" already exists")));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let view = json!({"ID": id, "Name": name, "Description": text("Description"), "Rules": rules});
        state.policies.push((id, name, rules));
        Ok(Answer::json(dialect, &view))
    })
}

/// `GET /v1/acl/token/self`
pub(crate) fn own(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    shared.read(|state| {
        let acl = state.acl.as_ref().ok_or_else(disabled)?;
        let secret = req.token.as_deref().unwrap_or_default();
        let token = acl.tokens.get(secret).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        Ok(Answer::json(shared.options.dialect, &view(token, secret)))
    })
}

/// `GET`, `DELETE /v1/acl/token/:accessor`
pub(crate) fn one(shared: &Shared, req: &Request, accessor: &str) -> Result<Answer, Answer> {
    shared.update(|state| {
        may(state, req, shared)?;
        let acl = state.acl.as_mut().ok_or_else(disabled)?;
        let secret = acl.tokens.iter().find(|(_, t)| t.accessor == accessor).map(|(s, _)| s.clone());
        if req.method == http::Method::DELETE {
            if let Some(secret) = secret {
                acl.tokens.remove(&secret);
            }
            return Ok(Answer::json(shared.options.dialect, &json!(true)));
        }
        let secret = secret.ok_or_else(|| Answer::forbidden("ACL not found"))?;
        let token = acl.tokens.get(&secret).ok_or_else(disabled)?;
        Ok(Answer::json(shared.options.dialect, &view(token, &secret)))
    })
}

fn may(state: &State, req: &Request, shared: &Shared) -> Result<(), Answer> {
    if state.acl.is_none() {
        return Err(disabled());
    }
    resolve(state.acl.as_ref(), req.token.as_deref())
        .ok_or_else(|| Answer::forbidden("ACL not found"))?
        .need(Right::AclWrite, shared.options.dialect)
        .map_err(Answer::forbidden)
}

fn disabled() -> Answer {
    Answer::text(401, "ACL support disabled")
}

fn view(token: &Token, secret: &str) -> Value {
    let identities: Vec<Value> = token
        .services
        .iter()
        .filter(|(name, _)| !name.ends_with("-sidecar-proxy"))
        .map(|(name, _)| json!({"ServiceName": name}))
        .collect();
    json!({
        "AccessorID": token.accessor,
        "SecretID": secret,
        "Description": "",
        "ServiceIdentities": identities,
        "Local": false,
    })
}
