//! `POST /v1/agent/connect/authorize`: the one place that tells the truth about who may connect.

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::dialect::Dialect;
use crate::intentions;
use crate::request::{Request, known_keys};
use crate::servers;
use crate::store::Shared;

/// What a SPIFFE URI of Consul names.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    Service {
        partition: String,
        namespace: String,
        service: String,
    },
    /// Agent, gateway, server or the trust domain itself.
    NotAService,
}

pub(crate) fn post(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    let bad = |text: &str| Answer::text(400, dialect.bad_request(text));
    req.check_enterprise(dialect)?;
    let decode = |text: String| bad(&format!("Request decode failed: {text}"));
    let keys: &[&'static str] = &["Target", "ClientCertURI", "ClientCertSerial"];
    let body = known_keys(req.json_object().map_err(decode)?, keys, false).map_err(decode)?;
    for (key, value) in &body {
        if !value.is_string() && !value.is_null() {
            return Err(decode(format!(
                "json: cannot unmarshal {} into Go struct field ConnectAuthorizeRequest.{key} of type string",
                go_type(value)
            )));
        }
    }
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
    let target = text("Target");
    if target.is_empty() {
        return Err(bad("Target service must be specified"));
    }
    let identity =
        parse_uri(text("ClientCertURI"), dialect).ok_or_else(|| bad("ClientCertURI not a valid Connect identifier"))?;
    let Identity::Service { partition, namespace, service } = identity else {
        return Err(bad("ClientCertURI not a valid Service identifier"));
    };
    shared.quietly(|state| {
        let warm = (target.to_lowercase(), req.token.clone());
        if state.servers_lost.is_some() && !state.authorize_warm.contains(&warm) {
            return Err(servers::cold_authorize(dialect));
        }
        let caller = resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| {
            Answer::forbidden(match dialect {
                Dialect::Today => "Could not resolve token to authorizer: ACL not found",
                Dialect::Old => "ACL not found",
            })
        })?;
        caller.need(Right::ServiceWrite(target), dialect).map_err(Answer::forbidden)?;
        if partition != "default" {
            return Err(bad(&format!("Mismatched partitions: \"{partition}\" != \"default\"")));
        }
        let matched = if namespace == "default" { intentions::decisive(state, &service, target) } else { None };
        let (authorized, reason) = match (matched, state.intention_policy) {
            (Some(intention), _) => (intention.allows(), intention.reason(dialect)),
            (None, Some(policy)) if dialect.is_today() => (policy.allows(), "Default intention policy".to_owned()),
            _ => (state.acl_default().allows(), dialect.default_reason(state.acl.is_some()).to_owned()),
        };
        let age = servers::age(state);
        let cold = state.authorize_warm.insert(warm);
        let answer = Answer::json(dialect, &json!({ "Authorized": authorized, "Reason": reason }));
        Ok(if cold { answer.with("X-Cache", "MISS") } else { answer.with("X-Cache", "HIT").with("Age", age) })
    })
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Reads `spiffe://<td>[/ap/<p>]/ns/<n>/dc/<d>/svc/<s>` and the other forms of Consul. The scheme is matched
/// without regard to case, a query is not looked at, a trailing slash is wrong, segments are decoded.
fn parse_uri(uri: &str, dialect: Dialect) -> Option<Identity> {
    let (scheme, rest) = uri.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("spiffe") {
        return None;
    }
    let rest = rest.split(['?', '#']).next()?;
    let (host, path) = match rest.split_once('/') {
        None => (rest, None),
        Some((host, path)) => (host, Some(path)),
    };
    let Some(path) = path else {
        return host.ends_with(".consul").then_some(Identity::NotAService);
    };
    let segments = path
        .split('/')
        .map(|s| {
            if s.is_empty() || !well_escaped(s) {
                return None;
            }
            percent_decode_str(s).decode_utf8().ok().map(|s| s.into_owned())
        })
        .collect::<Option<Vec<String>>>()?;
    let mut parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let mut partition = "default".to_owned();
    if dialect.is_today()
        && let ["ap", name, ..] = parts.as_slice()
    {
        partition = name.to_lowercase();
        parts.drain(..2);
    }
    match parts.as_slice() {
        ["ns", namespace, "dc", _, "svc", service] => {
            Some(Identity::Service { partition, namespace: (*namespace).to_owned(), service: (*service).to_owned() })
        }
        ["agent", "client", "dc", _, "id", _] => Some(Identity::NotAService),
        ["gateway", "mesh", "dc", _] | ["agent", "server", "dc", _] if dialect.is_today() => {
            Some(Identity::NotAService)
        }
        _ => None,
    }
}

/// Every percent sign has two hex digits behind it.
fn well_escaped(segment: &str) -> bool {
    segment.split('%').skip(1).all(|tail| {
        let mut bytes = tail.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_hexdigit()) && bytes.next().is_some_and(|b| b.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(uri: &str, dialect: Dialect) -> Option<String> {
        match parse_uri(uri, dialect)? {
            Identity::Service { service, .. } => Some(service),
            Identity::NotAService => None,
        }
    }

    #[test]
    fn service_uris_are_read_with_their_segments_decoded() {
        let today = Dialect::Today;
        let td = "spiffe://x.consul";
        assert_eq!(service(&format!("{td}/ns/default/dc/dc1/svc/we%62"), today).as_deref(), Some("web"));
        assert_eq!(service("SPIFFE://x.consul/ns/default/dc/dc1/svc/web?q", today).as_deref(), Some("web"));
        assert_eq!(parse_uri(&format!("{td}/ns/default/dc/dc1/svc/web/"), today), None);
        assert_eq!(parse_uri("https://x/web", today), None);
        assert_eq!(parse_uri(&format!("{td}/ns/default/dc/dc1/svc/%zz"), today), None);
    }

    #[test]
    fn only_the_dialect_of_today_knows_partitions_and_gateways() {
        let partition = "spiffe://x.consul/ap/default/ns/default/dc/dc1/svc/web";
        assert_eq!(service(partition, Dialect::Today).as_deref(), Some("web"));
        assert_eq!(parse_uri(partition, Dialect::Old), None);
        let gateway = "spiffe://x.consul/gateway/mesh/dc/dc1";
        assert_eq!(parse_uri(gateway, Dialect::Today), Some(Identity::NotAService));
        assert_eq!(parse_uri(gateway, Dialect::Old), None);
    }
}
