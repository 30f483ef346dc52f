//! What all test files share: keys, an agent, a plain client.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::sync::Arc;
use std::time::Duration;

use lictor_agent::{Agent, CaKey, Handle, KeyError, KeyMaker, Options};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
use serde_json::Value;

/// Keys from rcgen's own backend, which tests may link.
pub(crate) struct RcgenKeys;

impl KeyMaker for RcgenKeys {
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError> {
        let pair = KeyPair::generate().map_err(|e| KeyError(e.to_string()))?;
        Ok(Arc::new(RcgenKey(pair)))
    }
}

struct RcgenKey(KeyPair);

impl CaKey for RcgenKey {
    fn public_point(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(|e| KeyError(e.to_string()))
    }

    fn pkcs8_der(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.0.serialize_der())
    }
}

pub(crate) async fn start(options: Options) -> Agent {
    Agent::start(options, Arc::new(RcgenKeys)).await.unwrap()
}

/// One answer, read whole.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub(crate) fn index(&self) -> u64 {
        self.header("x-consul-index").unwrap().parse().unwrap()
    }
}

/// A client of one agent.
#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(handle: &Handle) -> Self {
        Self {
            base: handle.url(),
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap(),
            token: None,
        }
    }

    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send("GET", path, None).await.unwrap()
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Got {
        self.send("PUT", path, Some(body.to_string())).await.unwrap()
    }

    pub(crate) async fn authorize(&self, body: Value) -> Got {
        let path = "/v1/agent/connect/authorize";
        self.send("POST", path, Some(body.to_string())).await.unwrap()
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<String>) -> Result<Got, reqwest::Error> {
        self.send_as(method, path, body, None).await
    }

    pub(crate) async fn send_as(
        &self,
        method: &str,
        path: &str,
        body: Option<String>,
        authorization: Option<&str>,
    ) -> Result<Got, reqwest::Error> {
        let method = method.parse().unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        if let Some(authorization) = authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        Ok(Got {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await?,
        })
    }
}
