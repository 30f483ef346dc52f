//! The list of roots, from the agent (cached) and from the servers, and the CA's configuration.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::ca::{ROOT_TTL, Root, rfc3339};
use crate::leaf;
use crate::request::{Request, go_duration, known_keys};
use crate::servers;
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};

/// What an agent does wrong with the list of roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootsFault {
    /// `Roots` is `[]`, `TrustDomain` is empty: an agent before its bootstrap.
    Empty,
    /// One entry among the good ones holds no certificate.
    GarbageAmongGood,
    /// One entry among the good ones is over.
    ExpiredAmongGood,
    /// No entry holds a certificate.
    AllGarbage,
}

/// Agent endpoint and server endpoint differ in cache headers and in `?pem`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Agent,
    Server,
}

pub(crate) async fn get(shared: &Shared, req: &Request, source: Source) -> Result<Answer, Answer> {
    let blocking = req.blocking()?;
    shared.check_datacenter(req)?;
    let endpoint = match source {
        Source::Agent => Endpoint::Roots,
        Source::Server => Endpoint::ServerRoots,
    };
    if source == Source::Server && req.flag("pem") {
        let pem = shared.read(|s| s.ca.roots.iter().map(|r| r.pem.as_str()).collect::<String>());
        return Ok(Answer::text(200, pem).with("Content-Type", "application/pem-certificate-chain"));
    }
    let (index, warm) = shared.quietly(|state| {
        let warm = state.roots_warm;
        state.roots_warm |= source == Source::Agent;
        (state.roots_index, warm)
    });
    let mut hit = warm;
    if blocking.index > 0 && index <= blocking.index {
        hit = false;
        let wait = shared.wait(blocking.wait, Duration::from_secs(300), true);
        let waited = shared.block(endpoint, wait, |s| (s.roots_index > blocking.index).then_some(())).await;
        if let Waited::Refused(answer) = waited {
            return Err(answer);
        }
    }
    let (index, body, age) = shared.read(|s| (s.roots_index, render(s), servers::age(s)));
    let mut answer = Answer::json(shared.options.dialect, &body);
    if source == Source::Agent {
        answer = if hit { answer.with("X-Cache", "HIT").with("Age", age) } else { answer.with("X-Cache", "MISS") };
    }
    Ok(answer
        .with("X-Consul-Index", index.max(1))
        .with("X-Consul-Knownleader", true)
        .with("X-Consul-Lastcontact", 0)
        .with("X-Consul-Query-Backend", "blocking-query"))
}

pub(crate) fn get_configuration(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let body = shared.read(|s| {
        let caller = resolve(s.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        // Consul asks for operator:read; no token here holds operator rules, so both are one.
        caller.need(Right::OperatorWrite, shared.options.dialect).map_err(Answer::forbidden)?;
        Ok(json!({
            "Provider": "consul",
            "Config": s.ca_config,
            "State": null,
            "ForceWithoutCrossSigning": false,
            "CreateIndex": 5,
            "ModifyIndex": s.ca_config_index,
        }))
    })?;
    Ok(Answer::json(shared.options.dialect, &body))
}

/// A write of the configuration. A private key in it, or a key type or length that differs, forces a new root,
/// as in Consul; other writes leave the root alone and have the side effect that new leaves no longer carry
/// the cross certificate.
pub(crate) fn put_configuration(shared: &Shared, req: &Request) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    let decode = |text: String| Answer::text(400, dialect.bad_request(&format!("Request decode failed: {text}")));
    let body = known_keys(
        req.json_object().map_err(decode)?,
        &["Provider", "Config", "State", "ForceWithoutCrossSigning", "CreateIndex", "ModifyIndex"],
        false,
    )
    .map_err(decode)?;
    let provider = body.get("Provider").and_then(Value::as_str);
    if provider.is_some_and(|p| p != "consul") {
        return Err(Answer::text(
            500,
            format!("could not initialize provider: unknown CA provider \"{}\"", provider.unwrap_or_default()),
        ));
    }
    let new = match body.get("Config") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    let ttl = match new.get("LeafCertTTL").and_then(Value::as_str) {
        None => None,
        Some(text) => {
            Some(go_duration(text).ok_or_else(|| Answer::text(500, format!("invalid LeafCertTTL '{text}'")))?)
        }
    };
    let cross_sign = !body.get("ForceWithoutCrossSigning").and_then(Value::as_bool).unwrap_or(false);
    shared.update(|state| {
        let caller =
            resolve(state.acl.as_ref(), req.token.as_deref()).ok_or_else(|| Answer::forbidden("ACL not found"))?;
        caller.need(Right::OperatorWrite, dialect).map_err(Answer::forbidden)?;
        let forced = ["PrivateKey", "PrivateKeyType", "PrivateKeyBits"]
            .iter()
            .any(|k| new.get(*k).is_some_and(|v| state.ca_config.get(*k) != Some(v)));
        if let Some(ttl) = ttl {
            state.leaf_ttl = ttl.min(ROOT_TTL);
        }
        // What is not named goes. Key material is acted upon and not kept: the CA's keys come from outside.
        state.ca_config = new.clone();
        state.ca_config.remove("PrivateKey");
        state.ca_config.remove("RootCert");
        state.ca_config_index = state.next_index();
        if forced {
            rotate(shared, state, cross_sign)
        } else {
            state.ca.attach_cross = false;
            Ok(())
        }
    })?;
    Ok(Answer::done(dialect))
}

/// A new root becomes active; leaves follow.
pub(crate) fn rotate(shared: &Shared, state: &mut State, cross_sign: bool) -> Result<(), Answer> {
    let index = state.next_index();
    state.ca.rotate(shared.keys.as_ref(), index, cross_sign).map_err(|e| Answer::text(500, e.to_string()))?;
    state.roots_index = index;
    leaf::root_changed(shared, state);
    Ok(())
}

fn render(state: &State) -> Value {
    let uuid = &state.ca.uuid;
    let mut roots: Vec<&Root> = state.ca.roots.iter().collect();
    let mut garbage = false;
    match state.roots_fault {
        Some(RootsFault::Empty) => {
            return json!({"ActiveRootID": "", "TrustDomain": "", "Roots": []});
        }
        Some(RootsFault::ExpiredAmongGood) => {
            roots.extend(state.expired_root.as_ref());
            roots.sort_by(|a, b| a.id.cmp(&b.id));
        }
        Some(RootsFault::GarbageAmongGood | RootsFault::AllGarbage) => garbage = true,
        None => {}
    }
    let mut list: Vec<Value> = roots.iter().map(|root| render_root(root, uuid)).collect();
    if garbage {
        let broken = crate::keys::pem("CERTIFICATE", b"no certificate");
        if state.roots_fault == Some(RootsFault::AllGarbage) {
            for root in &mut list {
                root["RootCert"] = json!(broken);
            }
        } else if let Some(mut one) = list.first().cloned() {
            one["RootCert"] = json!(broken);
            one["ID"] = json!("00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00");
            one["Active"] = json!(false);
            list.insert(0, one);
        }
    }
    json!({
        "ActiveRootID": state.ca.active().map(|r| r.id.clone()).unwrap_or_default(),
        "TrustDomain": state.ca.trust_domain(),
        "Roots": list,
    })
}

fn render_root(root: &Root, uuid: &str) -> Value {
    json!({
        "ID": root.id,
        "Name": "Consul CA Primary Cert",
        "SerialNumber": root.serial,
        "SigningKeyID": root.signing_key_id,
        "ExternalTrustDomain": uuid,
        "NotBefore": rfc3339(root.not_before),
        "NotAfter": rfc3339(root.not_after),
        "RootCert": root.pem,
        "IntermediateCerts": root.cross_pem.as_ref().map(|c| vec![c]),
        "Active": root.active,
        "PrivateKeyType": "ec",
        "PrivateKeyBits": 256,
        "CreateIndex": root.create_index,
        "ModifyIndex": root.modify_index,
    })
}
