//! What the tests of the agent client share: a scripted transport, a mesh, the embedded agent.
#![allow(dead_code, reason = "each test file uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lictor_agent::{Agent, CaKey, Handle, KeyError, KeyMaker, Options};
use lictor_conformance::{
    certs::{Authority, Mesh, Spec, TRUST_DOMAIN, pem},
    keys::{Key, KeyKind},
};
use lictor_core::{
    ExpectedPeer, Judge, Leaf, PeerIdentity, PeerPolicy, Roots, ServiceName, TlsBackend, TlsPolicy,
    consul::{AgentAddress, AgentClient, ClientSettings, HttpTransport},
    identity::Grammar,
    rotation::{Clock, OwnService, Rotation},
    tls::SigningKey,
    transport::{Bounds, Transport, TransportError},
    verify_peer,
};
use lictor_rustls::RustlsBackend;
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use serde_json::{Value, json};
use tokio::time::Instant;

/// One request that the scripted agent got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Since the script began.
    pub(crate) at: Duration,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Asked {
    /// The path without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Whether the agent is to hold the call back.
    pub(crate) fn blocks(&self) -> bool {
        self.target.contains("index=") || self.target.contains("hash=")
    }
}

/// What the scripted agent does with a request.
pub(crate) enum Reply {
    Answer(u16, Vec<(&'static str, String)>, String),
    Refused,
    Broken,
    Hang,
}

impl Reply {
    pub(crate) fn ok(index: u64, body: impl ToString) -> Self {
        Self::Answer(200, vec![("X-Consul-Index", index.to_string())], body.to_string())
    }

    pub(crate) fn status(status: u16) -> Self {
        // Real agents put an index into errors too, which nobody may believe.
        Self::Answer(status, vec![("X-Consul-Index", "1".to_owned())], "no".to_owned())
    }
}

type Script = dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;

/// A transport that answers from a script, so that time can be paused.
pub(crate) struct Scripted {
    script: Box<Script>,
    asked: Mutex<Vec<Asked>>,
    began: Instant,
}

impl Scripted {
    pub(crate) fn new<F, R>(script: F) -> Arc<Self>
    where
        F: Fn(Asked) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let script = move |asked| -> Pin<Box<dyn Future<Output = Reply> + Send>> { Box::pin(script(asked)) };
        Arc::new(Self { script: Box::new(script), asked: Mutex::default(), began: Instant::now() })
    }

    pub(crate) fn client(self: &Arc<Self>) -> AgentClient {
        self.client_with(ClientSettings::default())
    }

    pub(crate) fn client_with(self: &Arc<Self>, settings: ClientSettings) -> AgentClient {
        AgentClient::new(self.clone(), settings)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The requests whose path holds `part`.
    pub(crate) fn asked_for(&self, part: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path().contains(part)).collect()
    }
}

#[async_trait]
impl Transport for Scripted {
    async fn exchange(
        &self,
        request: http::Request<Bytes>,
        bounds: Bounds,
    ) -> Result<http::Response<Bytes>, TransportError> {
        let asked = Asked {
            at: self.began.elapsed(),
            method: request.method().to_string(),
            target: request.uri().to_string(),
            headers: request.headers().clone(),
            body: String::from_utf8(request.body().to_vec()).unwrap(),
        };
        self.asked.lock().unwrap().push(asked.clone());
        let reply = tokio::time::timeout(bounds.deadline, (self.script)(asked)).await;
        match reply.map_err(|_| TransportError::Timeout(bounds.deadline))? {
            Reply::Answer(status, headers, body) => {
                let mut response = http::Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                Ok(response.body(Bytes::from(body)).unwrap())
            }
            Reply::Refused => Err(TransportError::Connect("refused".to_owned())),
            Reply::Broken => Err(TransportError::Broken("broken".to_owned())),
            Reply::Hang => {
                tokio::time::sleep(bounds.deadline).await;
                Err(TransportError::Timeout(bounds.deadline))
            }
        }
    }
}

/// A mesh whose clock follows tokio's.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    began: Instant,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { mesh: Mesh::new(lictor_conformance::report::seed()), began: Instant::now() }
    }

    pub(crate) fn clock(&self) -> Clock {
        let (start, began) = (u64::try_from(self.mesh.now).unwrap(), self.began);
        Arc::new(move || UnixTime::since_unix_epoch(Duration::from_secs(start) + began.elapsed()))
    }

    pub(crate) fn rotation(&self, service: &str) -> Arc<Rotation> {
        rotation(service, self.clock())
    }

    /// The body of a leaf call.
    pub(crate) fn leaf(&self, spec: &Spec) -> String {
        leaf(&self.mesh.root, spec)
    }

    pub(crate) fn roots(&self, roots: &[&Authority]) -> String {
        let roots: Vec<Value> = roots.iter().map(|root| json!({"RootCert": root.pem(), "Active": true})).collect();
        json!({"TrustDomain": TRUST_DOMAIN, "Roots": roots}).to_string()
    }

    /// The identity that a handshake with this leaf would prove.
    pub(crate) fn peer(&self, spec: &Spec) -> PeerIdentity {
        let chain = [self.mesh.root.issue(spec, &Key::generate(KeyKind::P256))];
        let own = own_identity(&self.mesh);
        identity(&chain, &[self.mesh.root.pem()], TRUST_DOMAIN, &own, (self.clock())())
    }
}

fn own_identity(mesh: &Mesh) -> Arc<lictor_core::SpiffeService> {
    let key = Key::generate(KeyKind::P256);
    let der = mesh.root.issue(&mesh.leaf(), &key);
    let leaf =
        Leaf::from_pem(&pem("CERTIFICATE", &der), &pem("PRIVATE KEY", key.pkcs8().unwrap()), Grammar::Spiffe).unwrap();
    leaf.identity().clone()
}

/// Verifies a chain as an inbound handshake does.
pub(crate) fn identity(
    chain: &[CertificateDer<'static>],
    roots: &[String],
    trust_domain: &str,
    own: &Arc<lictor_core::SpiffeService>,
    now: UnixTime,
) -> PeerIdentity {
    let judge = Judge {
        expected: ExpectedPeer::ClientOf(own.clone()),
        roots: Arc::new(Roots::from_pem(1, trust_domain, roots.iter().map(String::as_str)).unwrap()),
        policy: Arc::new(PeerPolicy::default()),
        now,
    };
    verify_peer(&judge, chain, backend().signature_algorithms()).unwrap().identity
}

/// The certificates of a PEM text.
pub(crate) fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

pub(crate) fn leaf(issuer: &Authority, spec: &Spec) -> String {
    let key = Key::generate(KeyKind::P256);
    json!({
        "SerialNumber": "08",
        "CertPEM": pem("CERTIFICATE", &issuer.issue(spec, &key)),
        "PrivateKeyPEM": pem("PRIVATE KEY", key.pkcs8().unwrap()),
    })
    .to_string()
}

pub(crate) fn backend() -> Arc<RustlsBackend> {
    Arc::new(RustlsBackend::new().unwrap())
}

pub(crate) fn rotation(service: &str, clock: Clock) -> Arc<Rotation> {
    let service = OwnService::from(ServiceName::parse(service, Grammar::Spiffe).unwrap());
    Arc::new(Rotation::new(service, backend(), TlsPolicy::default(), Arc::new(PeerPolicy::default()), clock))
}

/// Keys for the embedded agent's authority, from the TLS library under test.
struct Keys;

impl KeyMaker for Keys {
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError> {
        Ok(Arc::new(MadeKey(backend().generate_p256().map_err(|error| KeyError(error.to_string()))?)))
    }
}

struct MadeKey(Box<dyn SigningKey>);

impl CaKey for MadeKey {
    fn public_point(&self) -> &[u8] {
        self.0.public_point()
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign_sha256(message).map_err(|error| KeyError(error.to_string()))
    }

    fn pkcs8_der(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.0.pkcs8().secret_der().to_vec())
    }
}

/// The embedded agent with a client of its own.
pub(crate) struct Scene {
    pub(crate) agent: Agent,
    pub(crate) handle: Handle,
    pub(crate) client: AgentClient,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        Self::start_with(Options::default(), ClientSettings::default()).await
    }

    pub(crate) async fn start_with(options: Options, settings: ClientSettings) -> Self {
        let agent = Agent::start(options, Arc::new(Keys)).await.unwrap();
        let handle = agent.handle();
        let client = http_client(&handle.url(), settings);
        Self { agent, handle, client }
    }
}

pub(crate) fn http_client(address: &str, settings: ClientSettings) -> AgentClient {
    let address = AgentAddress::parse(address, false).unwrap();
    let settings = ClientSettings { path_prefix: address.prefix().to_owned(), ..settings };
    AgentClient::new(Arc::new(HttpTransport::new(&address).unwrap()), settings)
}

/// Waits until `done` says so; fails after 20 s.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
