//! Two services of one mesh, `web` and `db`, each with a sidecar on the backend under test, an authorizer that the
//! test drives, and a list of instances that it writes.
//!
//! Sockets are real, on loopback, at ports that the system chooses; nothing else is.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use lictor_core::{
    Authorizer, CertSource, Destination, DestinationKind, Discovery, DiscoveryError, Inbound, Instance, Leaf,
    PeerPolicy, Permit, Refusal, RefusalKind, Roots, ServiceName, TlsBackend, TlsPolicy,
    identity::Grammar,
    rotation::{Rotation, system_clock},
};
use lictor_proxy::{
    Application, Deps, InboundConfig, Limits, ListenerState, Sidecar, SidecarConfig, UpstreamBind, UpstreamConfig,
    Workers,
};
use parking_lot::Mutex;

use crate::{
    certs::{Authority, Mesh, TRUST_DOMAIN, pem},
    keys::{Key, KeyKind},
};

/// The longest that anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Any port of loopback.
pub const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A mesh, a backend, and data threads for its sidecars.
pub struct Scene {
    /// The mesh.
    pub mesh: Mesh,
    /// The backend under test.
    pub backend: Arc<dyn TlsBackend>,
    workers: Arc<Workers>,
}

impl Scene {
    /// A new mesh with two data threads.
    ///
    /// # Panics
    /// When the system gives no threads.
    #[must_use]
    pub fn new(backend: Arc<dyn TlsBackend>) -> Self {
        let workers = Workers::start(Some(2)).expect("data threads");
        Self { mesh: Mesh::new(crate::seed()), backend, workers: Arc::new(workers) }
    }

    /// A source for `service` that has nothing yet.
    ///
    /// # Panics
    /// When `service` is no legal name.
    #[must_use]
    pub fn empty_source(&self, service: &str) -> Arc<Rotation> {
        Arc::new(Rotation::new(
            ServiceName::parse(service, Grammar::Spiffe).expect("a legal name").into(),
            self.backend.clone(),
            TlsPolicy::default(),
            Arc::new(PeerPolicy::default()),
            system_clock(),
        ))
    }

    /// A source with the mesh's root and a good leaf of `service`.
    ///
    /// # Panics
    /// When the backend refuses good material.
    #[must_use]
    pub fn source(&self, service: &str) -> Arc<Rotation> {
        let source = self.empty_source(service);
        source.offer_roots(roots(&[&self.mesh.root]));
        source.offer_leaf(self.leaf(&self.mesh.root, service)).expect("a good leaf");
        source
    }

    /// A leaf of `service` that `issuer` signs.
    ///
    /// # Panics
    /// Never: the leaf is good.
    #[must_use]
    pub fn leaf(&self, issuer: &Authority, service: &str) -> Leaf {
        let key = Key::generate(KeyKind::P256);
        let certificate = pem("CERTIFICATE", &issuer.issue(&self.mesh.leaf_of(service), &key));
        let key = pem("PRIVATE KEY", key.pkcs8().expect("a key of the library"));
        Leaf::from_pem(&certificate, &key, Grammar::Spiffe).expect("a good leaf")
    }

    /// What a sidecar works with; must be called on a runtime.
    #[must_use]
    pub fn deps(&self, certs: Arc<dyn CertSource>, doorman: &Arc<Doorman>, list: &Arc<List>) -> Deps {
        Deps {
            certs,
            authorizer: doorman.clone(),
            discovery: list.clone(),
            backend: self.backend.clone(),
            tls_policy: TlsPolicy::default(),
            peer_policy: Arc::new(PeerPolicy::default()),
            workers: self.workers.clone(),
            control: tokio::runtime::Handle::current(),
        }
    }
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scene({:?}, {})", self.mesh, self.backend.name())
    }
}

/// An authorizer that says yes unless it is told otherwise, and counts.
#[derive(Debug, Default)]
pub struct Doorman {
    /// Whether it says no.
    pub denies: AtomicBool,
    /// How often it was asked.
    pub asked: AtomicUsize,
}

#[async_trait]
impl Authorizer for Doorman {
    async fn authorize(&self, _: &Inbound<'_>) -> Result<Permit, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.denies.load(Ordering::SeqCst) {
            return Err(Refusal { kind: RefusalKind::Denied, detail: "told so by the test".to_owned() });
        }
        Ok(Permit::granted_by("told so by the test".to_owned(), SystemTime::now()))
    }
}

/// The instances of every upstream.
#[derive(Debug, Default)]
pub struct List(pub Mutex<Vec<Instance>>);

#[async_trait]
impl Discovery for List {
    async fn instances(&self, _: &Destination) -> Result<Arc<[Instance]>, DiscoveryError> {
        Ok(self.0.lock().clone().into())
    }

    fn forget(&self, _: &Destination) {}
}

/// `web` calls `db` through two sidecars.
#[derive(Debug)]
pub struct Chain {
    /// What all is made of; its data threads serve as long as it lives.
    pub scene: Scene,
    /// The authorizer of `db`.
    pub doorman: Arc<Doorman>,
    /// The instances of `db`.
    pub list: Arc<List>,
    /// The sidecar of `web`.
    pub web: Sidecar,
    /// The sidecar of `db`.
    pub db: Sidecar,
    /// The source of `web`.
    pub web_source: Arc<Rotation>,
    /// The source of `db`.
    pub db_source: Arc<Rotation>,
    /// Where `web` reaches `db`.
    pub upstream: SocketAddr,
    /// Where the sidecar of `db` listens for the mesh.
    pub mesh_side: SocketAddr,
}

impl Chain {
    /// Sidecars in front of `application`, which is `db`; must be called on a runtime.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn to(application: SocketAddr, backend: Arc<dyn TlsBackend>) -> Self {
        let scene = Scene::new(backend);
        let (doorman, list) = (Arc::new(Doorman::default()), Arc::new(List::default()));
        let (web_source, db_source) = (scene.source("web"), scene.source("db"));
        let deps = scene.deps(db_source.clone(), &doorman, &list);
        let db = Sidecar::start(deps, inbound("db", ANY, application)).expect("the sidecar of db starts");
        let mesh_side = address_of(&db).await;
        list.0.lock().push(instance("db", mesh_side));
        let deps = scene.deps(web_source.clone(), &doorman, &list);
        let web = Sidecar::start(deps, outbound("web", "db", ANY)).expect("the sidecar of web starts");
        let upstream = address_of(&web).await;
        Self { scene, doorman, list, web, db, web_source, db_source, upstream, mesh_side }
    }
}

/// A list of these roots.
///
/// # Panics
/// When it is empty.
#[must_use]
pub fn roots(list: &[&Authority]) -> Roots {
    let list: Vec<String> = list.iter().map(|root| root.pem()).collect();
    Roots::from_pem(0, TRUST_DOMAIN, list.iter().map(String::as_str)).expect("a list of roots")
}

/// Where the one listener of `sidecar` is open, as soon as it is.
///
/// # Panics
/// When it does not open in time.
pub async fn address_of(sidecar: &Sidecar) -> SocketAddr {
    let open = || match sidecar.listeners().first().map(|listener| listener.state.clone()) {
        Some(ListenerState::Listening(address)) => address,
        _ => None,
    };
    until(|| open().is_some()).await;
    open().expect("it is open")
}

/// An instance of `service` at `address`.
#[must_use]
pub fn instance(service: &str, address: SocketAddr) -> Instance {
    Instance {
        id: format!("{service}-{}", address.port()),
        host: address.ip().to_string(),
        port: address.port(),
        service: service.to_owned(),
        namespace: "default".to_owned(),
        partition: "default".to_owned(),
        datacenter: "dc1".to_owned(),
        weight: 1,
    }
}

/// A sidecar that only lets in.
///
/// # Panics
/// When `service` is no legal name.
#[must_use]
pub fn inbound(service: &str, bind: SocketAddr, application: SocketAddr) -> SidecarConfig {
    let application = Application::Tcp { host: application.ip().to_string(), port: application.port() };
    SidecarConfig {
        service: ServiceName::parse(service, Grammar::Spiffe).expect("a legal name"),
        inbound: Some(InboundConfig::new(bind, application)),
        upstreams: BTreeMap::new(),
        limits: Limits::default(),
    }
}

/// A sidecar that only lets out.
///
/// # Panics
/// When `service` is no legal name.
#[must_use]
pub fn outbound(service: &str, upstream: &str, bind: SocketAddr) -> SidecarConfig {
    let destination = Destination {
        kind: DestinationKind::Service,
        name: upstream.to_owned(),
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
    };
    SidecarConfig {
        service: ServiceName::parse(service, Grammar::Spiffe).expect("a legal name"),
        inbound: None,
        upstreams: [(upstream.to_owned(), UpstreamConfig::new(UpstreamBind::Tcp(bind), destination))].into(),
        limits: Limits::default(),
    }
}

/// Waits for something that another thread does.
///
/// # Panics
/// When it does not happen in time.
pub async fn until(mut happened: impl FnMut() -> bool) {
    let polled = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polled).await.expect("it happens in time");
}
