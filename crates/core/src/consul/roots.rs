//! The watch of the mesh's roots: `/v1/agent/connect/ca/roots`.

use std::sync::Arc;

use serde::Deserialize;

use super::{
    client::{Answer, Call, CallClass, words},
    json,
    watch::{Cursor, Watched},
};
use crate::{
    material::Roots,
    rotation::{Changed, Rotation},
};

/// Feeds a [`Rotation`] with the agent's lists of roots.
pub(super) struct RootsWatch {
    pub(super) rotation: Arc<Rotation>,
}

impl Watched for RootsWatch {
    fn name(&self) -> &'static str {
        "roots"
    }

    /// Needs no right, and takes neither namespace nor partition.
    fn call(&self) -> Call {
        Call::get(CallClass::Watch, ["v1", "agent", "connect", "ca", "roots"])
    }

    fn cursor(&self, answer: &Answer) -> Option<Cursor> {
        Cursor::index(answer)
    }

    fn take(&mut self, answer: &Answer, _plain: bool) -> Result<(), String> {
        let roots = parse(&answer.body)?;
        if self.rotation.offer_roots(roots) == Changed::Applied {
            tracing::info!("the roots of the mesh changed");
        }
        Ok(())
    }
}

/// The list as the agent gives it. An entry that is not as it should be stays in the list as an unusable root, so
/// that it is shown and the others count.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootsAnswer {
    #[serde(default, deserialize_with = "json::nullable")]
    trust_domain: String,
    #[serde(default, deserialize_with = "json::nullable")]
    roots: Vec<serde_json::Value>,
}

pub(super) fn parse(body: &[u8]) -> Result<Roots, String> {
    let answer: RootsAnswer = serde_json::from_slice(body)
        .map_err(|error| format!("the agent's roots cannot be read: {}", words(&error.to_string())))?;
    // Before its bootstrap an old agent gives neither roots nor trust domain.
    if answer.roots.is_empty() {
        return Err("the agent has no roots yet: its certificate authority has not started".to_owned());
    }
    let texts = answer.roots.iter().map(|root| root.get("RootCert").and_then(|pem| pem.as_str()).unwrap_or_default());
    Roots::from_pem(0, &answer.trust_domain, texts)
        .map_err(|error| format!("the agent's roots cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{super::captured::captured, *};

    #[test]
    fn the_roots_of_real_agents_are_read_whatever_their_order_and_serials() {
        for (body, anchors) in [
            (captured!("roots"), 1),
            (captured!("roots-three"), 3),
            (captured!("roots-secondary-dc"), 1),
            (captured!("v12-roots"), 1),
            (captured!("v122-roots-four"), 4),
        ] {
            let roots = parse(&body).unwrap();
            assert_eq!(roots.anchors().len(), anchors, "{roots:?}");
            assert!(roots.ignored().is_empty(), "{roots:?}");
            assert!(roots.trust_domain().as_str().ends_with(".consul"));
        }
    }

    #[test]
    fn a_root_is_named_by_the_serial_and_key_id_that_consul_shows() {
        let body = captured!("v122-roots-four");
        let shown: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let shown: Vec<(String, String)> = shown["Roots"]
            .as_array()
            .unwrap()
            .iter()
            .map(|root| (root["SerialNumber"].to_string(), root["SigningKeyID"].as_str().unwrap().to_owned()))
            .collect();
        let roots = parse(&body).unwrap();
        let ours: Vec<(String, String)> =
            roots.anchors().iter().map(|root| (root.serial().to_owned(), root.key_id().unwrap())).collect();
        assert_eq!(ours, shown);
        assert!(roots.anchors().iter().all(|root| root.subject().contains(".consul.ca.")), "{roots:?}");
    }
}
