//! Managed proxies of 1.2 to 1.5: `GET /v1/agent/connect/proxy/:id`, in the old dialect only.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::acl::{Right, resolve};
use crate::answer::Answer;
use crate::catalog::{content_hash, sorted};
use crate::options::Options;
use crate::request::Request;
use crate::stats::Endpoint;
use crate::store::{Shared, State, Waited};

/// A proxy that the agent would start by itself. Tests put one in; this agent starts no process.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagedProxy {
    /// ID of the service that it stands for, e.g. `web-1`.
    pub target_id: String,
    /// Name of that service, e.g. `web`.
    pub target_name: String,
    /// `CONNECT_PROXY_TOKEN`: valid for the configuration of this proxy; a call that carries it is shown telemetry.
    #[serde(default)]
    pub token: String,
    /// The configuration as it goes out; `bind_address`, `bind_port` and `local_service_address` are always there
    /// in a real one.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// Top-level `Upstreams`, as from 1.3 on; in 1.2 they stand in `config` under `upstreams`.
    #[serde(default)]
    pub upstreams: Vec<Value>,
}

impl ManagedProxy {
    fn view(&self, state: &State, with_telemetry: bool) -> (Value, String) {
        let id = format!("{}-proxy", self.target_id);
        // The hash covers the registration and not what is merged into it.
        let hash = content_hash(state, &json!([id, self.config, self.upstreams]));
        let mut config = self.config.clone();
        if with_telemetry {
            config.entry("telemetry").or_insert_with(|| {
                json!({
                    "filter_default": true,
                    "metrics_prefix": format!("consul.proxy.{}", self.target_id),
                })
            });
        }
        let mut view = json!({
            "ProxyServiceID": id,
            "TargetServiceID": self.target_id,
            "TargetServiceName": self.target_name,
            "ContentHash": hash,
            "ExecMode": "daemon",
            "Command": ["consul", "connect", "proxy", "-log-level", "INFO"],
            "Config": sorted(&Value::Object(config)),
        });
        if !self.upstreams.is_empty() {
            view["Upstreams"] = json!(self.upstreams);
        }
        (view, hash)
    }

    /// How it stands in `/v1/agent/services`.
    pub(crate) fn agent_view(&self, options: &Options) -> Value {
        let id = format!("{}-proxy", self.target_id);
        json!({
            "Kind": "connect-proxy",
            "ID": id,
            "Service": id,
            "Tags": null,
            "Meta": null,
            "Port": self.config.get("bind_port").cloned().unwrap_or_else(|| json!(0)),
            "Address": "",
            "EnableTagOverride": false,
            "Proxy": {
                "DestinationServiceName": self.target_name,
                "DestinationServiceID": self.target_id,
                "Config": sorted(&Value::Object(self.config.clone())),
                "Upstreams": self.upstreams,
            },
            "Datacenter": options.datacenter,
        })
    }
}

pub(crate) async fn get(shared: &Shared, req: &Request, id: &str) -> Result<Answer, Answer> {
    let dialect = shared.options.dialect;
    let none = shared.read(|s| s.managed.is_empty());
    if dialect.is_today() || none {
        return Err(crate::routes::unknown_path(dialect));
    }
    let blocking = req.blocking()?;
    let look = |state: &State| -> Result<(Value, String), Answer> {
        let Some(proxy) = state.managed.get(id) else {
            return Err(Answer::text(404, format!("unknown proxy service ID: {id}")));
        };
        let own_token = !proxy.token.is_empty() && req.token.as_deref() == Some(&proxy.token);
        if !own_token {
            resolve(state.acl.as_ref(), req.token.as_deref())
                .ok_or_else(|| Answer::forbidden("ACL not found"))?
                .need(Right::ServiceWrite(&proxy.target_name), dialect)
                .map_err(Answer::forbidden)?;
        }
        Ok(proxy.view(state, own_token))
    };
    let mut found = shared.read(look);
    if let (Some(hash), Ok((_, current))) = (&blocking.hash, &found)
        && hash == current
    {
        let wait = shared.wait(blocking.wait, Duration::from_secs(300), true);
        let waited = shared
            .block(Endpoint::ManagedProxy, wait, |state| match look(state) {
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
