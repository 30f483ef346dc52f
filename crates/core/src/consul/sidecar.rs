//! Finds the proxy of a service instance: `-sidecar-for`.

use serde_json::Value;

use super::{
    client::{AgentClient, Call, CallClass, CallError, words},
    json::{Fields, Problems},
};

/// Why no one sidecar was found.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SidecarError {
    /// None is registered, as far as the token sees.
    #[error("No sidecar proxy registered for {0}, or the token may not read it")]
    None(String),
    /// There are several.
    #[error(
        "More than one sidecar proxy registered for {service}.\n    Start proxy with -proxy-id and one of the following IDs: {}",
        ids.join(", ")
    )]
    Several {
        /// The instance they stand for.
        service: String,
        /// Their IDs, in order.
        ids: Vec<String>,
    },
    /// The agent could not be asked.
    #[error("cannot look up the sidecar proxy: {0}")]
    Agent(#[from] CallError),
    /// The agent's answer cannot be read.
    #[error("cannot look up the sidecar proxy: the agent's list of services cannot be read: {0}")]
    Unreadable(String),
}

/// The ID of the one connect-proxy on this agent whose `DestinationServiceID` is `service`, whatever the case of its
/// letters.
///
/// # Errors
/// [`SidecarError`].
pub async fn find_sidecar(client: &AgentClient, service: &str) -> Result<String, SidecarError> {
    let call = Call::get(CallClass::Registration, ["v1", "agent", "services"]).ours(client).max_body(MAX_SERVICES);
    let answer = client.call(&call).await?;
    let services: Value =
        serde_json::from_slice(&answer.body).map_err(|error| SidecarError::Unreadable(words(&error.to_string())))?;
    let mut ids = sidecars(&services, service);
    ids.sort();
    match ids.len() {
        0 => Err(SidecarError::None(service.to_owned())),
        1 => Ok(ids.remove(0)),
        _ => Err(SidecarError::Several { service: service.to_owned(), ids }),
    }
}

/// The most that the list of a host's services may hold, in bytes.
const MAX_SERVICES: usize = 8 * 1024 * 1024;

fn sidecars(services: &Value, service: &str) -> Vec<String> {
    let wanted = service.to_lowercase();
    // Faults in what other services registered are none of ours.
    let mut ignored = Problems::new();
    let mut ids = Vec::new();
    for (id, value) in services.as_object().into_iter().flatten() {
        let fields = Fields::of(value, "", &mut ignored);
        let target = fields.fields("Proxy", &mut ignored).text("DestinationServiceID", &mut ignored);
        if fields.text("Kind", &mut ignored).as_deref() == Some("connect-proxy")
            && target.is_some_and(|target| target.to_lowercase() == wanted)
        {
            ids.push(fields.text("ID", &mut ignored).unwrap_or_else(|| id.clone()));
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::{super::captured::captured, *};

    #[test]
    fn a_sidecar_is_found_whatever_the_case_of_the_letters() {
        let services: Value = serde_json::from_slice(&captured!("agent-services")).unwrap();
        for service in ["web-1", "WEB-1", "Web-1"] {
            assert_eq!(sidecars(&services, service), ["web-1-sidecar-proxy"], "{service}");
        }
        assert!(sidecars(&services, "web").is_empty());
        assert!(sidecars(&serde_json::json!([7]), "web").is_empty());
        assert!(sidecars(&serde_json::json!({"a": 7, "b": {"Proxy": []}}), "web").is_empty());
    }

    #[test]
    fn the_errors_read_as_operators_know_them() {
        let none = SidecarError::None("web".to_owned()).to_string();
        assert_eq!(none, "No sidecar proxy registered for web, or the token may not read it");
        let ids = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(
            SidecarError::Several { service: "web".to_owned(), ids }.to_string(),
            "More than one sidecar proxy registered for web.\n    \
             Start proxy with -proxy-id and one of the following IDs: a, b"
        );
    }
}
