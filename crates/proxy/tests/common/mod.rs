//! Two services of one mesh, each with a sidecar, an authorizer that the test drives, and a list of instances.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use lictor_conformance::{
    certs::{Authority, Mesh, TRUST_DOMAIN, pem},
    keys::{Key, KeyKind},
};
use lictor_core::{
    Authorizer, CertSource, Destination, DestinationKind, Discovery, DiscoveryError, Inbound, Instance, Leaf,
    PeerPolicy, Permit, Refusal, RefusalKind, Roots, ServiceName, TlsPolicy,
    identity::Grammar,
    rotation::{Rotation, system_clock},
};
use lictor_proxy::{
    Application, Deps, InboundConfig, Limits, ListenerState, Sidecar, SidecarConfig, UpstreamBind, UpstreamConfig,
    Workers,
};
use lictor_rustls::RustlsBackend;
use parking_lot::Mutex;

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh of `web` and `db`.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) workers: Arc<Workers>,
}

/// Says yes, or no, and counts.
#[derive(Default)]
pub(crate) struct Doorman {
    pub(crate) denies: AtomicBool,
    pub(crate) asked: AtomicUsize,
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

/// A list of instances that the test writes.
#[derive(Default)]
pub(crate) struct List(pub(crate) Mutex<Vec<Instance>>);

#[async_trait]
impl Discovery for List {
    async fn instances(&self, _: &Destination) -> Result<Arc<[Instance]>, DiscoveryError> {
        Ok(self.0.lock().clone().into())
    }

    fn forget(&self, _: &Destination) {}
}

impl Scene {
    pub(crate) fn new() -> Self {
        let mesh = Mesh::new(lictor_conformance::report::seed());
        Self { mesh, workers: Arc::new(Workers::start(Some(2)).unwrap()) }
    }

    /// A source with a good leaf of `service`.
    pub(crate) fn source(&self, service: &str) -> Arc<Rotation> {
        let source = self.empty_source(service);
        source.offer_roots(roots(&[&self.mesh.root]));
        source.offer_leaf(self.leaf(&self.mesh.root, service)).unwrap();
        source
    }

    /// A source that has nothing yet.
    pub(crate) fn empty_source(&self, service: &str) -> Arc<Rotation> {
        Arc::new(Rotation::new(
            ServiceName::parse(service, Grammar::Spiffe).unwrap().into(),
            Arc::new(RustlsBackend::new().unwrap()),
            TlsPolicy::default(),
            Arc::new(PeerPolicy::default()),
            system_clock(),
        ))
    }

    pub(crate) fn leaf(&self, issuer: &Authority, service: &str) -> Leaf {
        let key = Key::generate(KeyKind::P256);
        let certificate = pem("CERTIFICATE", &issuer.issue(&self.mesh.leaf_of(service), &key));
        Leaf::from_pem(&certificate, &pem("PRIVATE KEY", key.pkcs8().unwrap()), Grammar::Spiffe).unwrap()
    }

    pub(crate) fn deps(&self, source: Arc<dyn CertSource>, doorman: &Arc<Doorman>, list: &Arc<List>) -> Deps {
        Deps {
            certs: source,
            authorizer: doorman.clone(),
            discovery: list.clone(),
            backend: Arc::new(RustlsBackend::new().unwrap()),
            tls_policy: TlsPolicy::default(),
            peer_policy: Arc::new(PeerPolicy::default()),
            workers: self.workers.clone(),
            control: tokio::runtime::Handle::current(),
        }
    }
}

pub(crate) fn roots(list: &[&Authority]) -> Roots {
    let list: Vec<String> = list.iter().map(|root| root.pem()).collect();
    Roots::from_pem(0, TRUST_DOMAIN, list.iter().map(String::as_str)).unwrap()
}

/// Any port of loopback: the system chooses, and the listener tells which.
pub(crate) const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Where the one listener of `sidecar` is open, as soon as it is.
pub(crate) async fn address_of(sidecar: &Sidecar) -> SocketAddr {
    let open = || match sidecar.listeners().first().map(|listener| listener.state.clone()) {
        Some(ListenerState::Listening(address)) => address,
        _ => None,
    };
    until(|| open().is_some()).await;
    open().unwrap()
}

pub(crate) fn instance(service: &str, address: SocketAddr) -> Instance {
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

pub(crate) fn inbound(service: &str, bind: SocketAddr, application: SocketAddr) -> SidecarConfig {
    let application = Application::Tcp { host: application.ip().to_string(), port: application.port() };
    SidecarConfig {
        service: ServiceName::parse(service, Grammar::Spiffe).unwrap(),
        inbound: Some(InboundConfig::new(bind, application)),
        upstreams: Default::default(),
        limits: Limits::default(),
    }
}

pub(crate) fn outbound(service: &str, upstream: &str, bind: SocketAddr) -> SidecarConfig {
    let destination = Destination {
        kind: DestinationKind::Service,
        name: upstream.to_owned(),
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
    };
    SidecarConfig {
        service: ServiceName::parse(service, Grammar::Spiffe).unwrap(),
        inbound: None,
        upstreams: [(upstream.to_owned(), UpstreamConfig::new(UpstreamBind::Tcp(bind), destination))].into(),
        limits: Limits::default(),
    }
}

/// `web` calls `db` through two sidecars.
pub(crate) struct Chain {
    #[expect(dead_code, reason = "the scene's threads serve as long as it lives")]
    scene: Scene,
    pub(crate) doorman: Arc<Doorman>,
    pub(crate) list: Arc<List>,
    pub(crate) web: Sidecar,
    pub(crate) db: Sidecar,
    /// Where `web` reaches `db`.
    pub(crate) upstream: SocketAddr,
    /// Where the sidecar of `db` listens.
    pub(crate) mesh_side: SocketAddr,
}

impl Chain {
    pub(crate) async fn to(application: SocketAddr) -> Self {
        let scene = Scene::new();
        let (doorman, list) = (Arc::new(Doorman::default()), Arc::new(List::default()));
        let deps = scene.deps(scene.source("db"), &doorman, &list);
        let db = Sidecar::start(deps, inbound("db", ANY, application)).unwrap();
        let mesh_side = address_of(&db).await;
        list.0.lock().push(instance("db", mesh_side));
        let deps = scene.deps(scene.source("web"), &doorman, &list);
        let web = Sidecar::start(deps, outbound("web", "db", ANY)).unwrap();
        let upstream = address_of(&web).await;
        Self { scene, doorman, list, web, db, upstream, mesh_side }
    }
}

/// Waits for something that another thread does.
pub(crate) async fn until(mut happened: impl FnMut() -> bool) {
    let polled = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polled).await.expect("it happens in time");
}
