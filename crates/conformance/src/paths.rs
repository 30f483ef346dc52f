//! The rows at the level of the data plane: the real inbound and outbound paths over loopback TCP.
//!
//! Inbound, a refused peer reaches neither the authorizer nor the application, and its reason is counted. Outbound, a
//! refused server gets not one byte of the application. Each row has a sidecar of its own, with the row's roots and
//! policy, that serves both ways.

use std::{
    io,
    net::{SocketAddr, TcpListener as Listener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use lictor_core::{
    Authorizer, CertSource, Destination, DestinationKind, Discovery, DiscoveryError, Inbound, Instance, Leaf, Material,
    Permit, Refusal, RejectReason, Roots, ServiceName, SourceState, TlsBackend, TlsPolicy, identity::Grammar,
};
use lictor_proxy::{
    Application, Deps, InboundConfig, Limits, ListenerState, Sidecar, SidecarConfig, UpstreamBind, UpstreamConfig,
    Workers,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use crate::{
    certs::Mesh,
    handshake::{misbehaving, said_by_library},
    pair::{Peer, PeerSettings, Version, our_leaf, ways},
    report::Report,
    rows::{Build, Case, Row, Want, rows},
    verifier::{Side, judge},
};

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Rows that hold in one second only.
const NEEDS_A_STOPPED_CLOCK: [&str; 1] = ["A72"];

pub(crate) const GREETING: &[u8] = b"what the client says";
const ANSWER: &[u8] = b"what the server answers";

/// Runs every row through the data plane, both ways over both versions.
///
/// # Panics
/// When the machine has no loopback, threads or descriptors for it.
#[must_use]
pub fn run(backend: &Arc<dyn TlsBackend>, seed: u64) -> Report {
    let mut report = Report::new("paths", backend.name(), seed);
    let runtime = tokio::runtime::Runtime::new().expect("threads for a runtime");
    let stand = Stand::new(backend, &Mesh::new(seed));
    runtime.block_on(async {
        for row in rows() {
            if NEEDS_A_STOPPED_CLOCK.contains(&row.id) {
                for (side, _, way) in ways() {
                    let why = "the data plane judges by the system's clock, which goes on";
                    report.gap(&row.title(), way, side.want(&row), why);
                }
                continue;
            }
            // The data plane goes by the system's clock, so each row gets a mesh of its own moment.
            let mesh = Mesh::new(seed);
            let (case, settings) = match row.build {
                Build::Chain(build) => {
                    let case = build(&mesh);
                    let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), Version::Tls13);
                    (case, settings)
                }
                Build::Elsewhere(_) => match misbehaving(&mesh, row.id) {
                    Some(both) => both,
                    // About more than one handshake: those are among the streams.
                    None => continue,
                },
            };
            let scene = stand.scene(&mesh, &case, None).await;
            for (side, version, way) in ways() {
                let settings = PeerSettings { version, ..settings.clone() };
                let result = match side {
                    Side::Inbound => scene.inbound(&row, &case, &settings).await,
                    Side::Outbound => scene.outbound(&row, &settings).await,
                };
                report.add_wanted(&row.title(), way, side.want(&row), result);
            }
            scene.abort();
        }
        for version in Version::BOTH {
            let mesh = Mesh::new(seed);
            let result = root_removed_meanwhile(&stand, &mesh, version).await;
            report.add("a root removed while the authorizer thinks", (Side::Inbound, version), result);
        }
    });
    report
}

/// What the sidecars of a run share.
pub(crate) struct Stand {
    pub(crate) backend: Arc<dyn TlsBackend>,
    workers: Arc<Workers>,
    leaf: Arc<Leaf>,
}

impl Stand {
    pub(crate) fn new(backend: &Arc<dyn TlsBackend>, mesh: &Mesh) -> Self {
        let workers = Arc::new(Workers::start(None).expect("data threads"));
        Self { backend: backend.clone(), workers, leaf: Arc::new(our_leaf(mesh)) }
    }

    /// A sidecar that judges by the roots and the policy of `case`, and gives handshakes this long.
    pub(crate) async fn scene(&self, mesh: &Mesh, case: &Case, deadline: Option<Duration>) -> Scene {
        let application = Listener::bind("127.0.0.1:0").expect("a port of loopback");
        application.set_nonblocking(true).expect("a socket that does not block");
        let roots = judge(mesh, case, Side::Inbound).roots;
        let source = Arc::new(Source::new(Material { generation: 1, leaf: self.leaf.clone(), roots }));
        let doorman = Arc::new(Doorman { source: source.clone(), ..Doorman::default() });
        let list = Arc::new(List::default());
        let deps = Deps {
            certs: source.clone(),
            authorizer: doorman.clone(),
            discovery: list.clone(),
            backend: self.backend.clone(),
            tls_policy: TlsPolicy::default(),
            peer_policy: Arc::new(case.policy.clone()),
            workers: self.workers.clone(),
            control: tokio::runtime::Handle::current(),
        };
        let at = application.local_addr().expect("a bound socket");
        let sidecar = Sidecar::start(deps, config(at, deadline)).expect("ports of loopback");
        let mesh_side = listening(&sidecar, None).await;
        let upstream = listening(&sidecar, Some("web")).await;
        Scene { sidecar, doorman, list, application, mesh_side, upstream }
    }
}

/// A sidecar with what stands around it.
pub(crate) struct Scene {
    sidecar: Sidecar,
    doorman: Arc<Doorman>,
    list: Arc<List>,
    application: Listener,
    pub(crate) mesh_side: SocketAddr,
    pub(crate) upstream: SocketAddr,
}

impl Scene {
    pub(crate) fn abort(&self) {
        self.sidecar.abort();
    }

    /// Makes `server` the one instance of `web`.
    pub(crate) fn dials(&self, server: &tokio::net::TcpListener) -> Result<(), String> {
        let address = server.local_addr().map_err(|error| error.to_string())?;
        *self.list.0.lock().expect("a test that goes on") = vec![instance(address)];
        Ok(())
    }

    /// Waits until at least `wanted` handshakes of this side have run into their deadline.
    pub(crate) async fn timed_out(&self, side: Side, wanted: usize) -> Result<u64, String> {
        let count = || {
            let metrics = self.sidecar.metrics();
            let failures = match side {
                Side::Inbound => metrics.inbound.handshake_failures,
                Side::Outbound => {
                    metrics.upstreams.get("web").map(|path| path.handshake_failures.clone()).unwrap_or_default()
                }
            };
            failures.iter().find(|(name, _)| *name == "handshake_timeout").map_or(0, |(_, count)| *count)
        };
        let polled = async {
            while count() < wanted as u64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = timeout(PATIENCE, polled).await;
        let seen = count();
        if seen == wanted as u64 { Ok(seen) } else { Err(format!("{seen} of {wanted} handshakes timed out")) }
    }

    async fn inbound(&self, row: &Row, case: &Case, settings: &PeerSettings) -> Result<String, String> {
        let before = (self.doorman.asked.load(Ordering::SeqCst), self.sidecar.metrics().inbound.rejected);
        let mut peer = Peer::new(settings, Side::Inbound);
        let mut stream = connect(self.mesh_side).await?;
        let served = async {
            if row.inbound == Want::Accept {
                let mut application = self.application_is_dialled().await?;
                expect_bytes(&mut application, GREETING).await?;
                application.write_all(ANSWER).await.map_err(|error| error.to_string())?;
            }
            Ok::<(), String>(())
        };
        let (end, served) = tokio::join!(converse(&mut peer, &mut stream, Some(GREETING), ANSWER), served);
        served?;
        end?;
        drop(stream);
        match row.inbound {
            Want::Accept => {
                if peer.received != ANSWER {
                    return Err(format!("the answer did not arrive: {:?} {:?}", peer.alert, peer.error));
                }
                let asked = self.doorman.asked.load(Ordering::SeqCst) - before.0;
                let question = self.doorman.question.lock().expect("a test that goes on").clone();
                match question {
                    Some((uri, serial)) if asked == 1 && uri == case.uri => {
                        if case.serial.is_some_and(|wanted| wanted != serial) {
                            return Err(format!("asked with serial {serial}"));
                        }
                        Ok("authorized once, application reached".to_owned())
                    }
                    other => Err(format!("asked {asked} times, last {other:?}")),
                }
            }
            Want::Reject(reason) => {
                let counted = counted(|| self.sidecar.metrics().inbound.rejected, &before.1, reason).await?;
                self.nobody_was_bothered(before.0)?;
                alerted(&peer, reason, counted, row)
            }
        }
    }

    async fn outbound(&self, row: &Row, settings: &PeerSettings) -> Result<String, String> {
        let rejected =
            || self.sidecar.metrics().upstreams.get("web").map(|path| path.rejected.clone()).unwrap_or_default();
        let before = rejected();
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        self.dials(&server)?;
        let mut client = connect(self.upstream).await?;
        client.write_all(GREETING).await.map_err(|error| error.to_string())?;
        let (mut stream, _) = (timeout(PATIENCE, server.accept()).await)
            .map_err(|_| "the server was not dialled".to_owned())?
            .map_err(|error| error.to_string())?;
        let mut peer = Peer::new(settings, Side::Outbound);
        converse(&mut peer, &mut stream, None, GREETING).await?;
        match row.outbound {
            Want::Accept => {
                if peer.received != GREETING {
                    return Err(format!("the application was not heard: {:?} {:?}", peer.alert, peer.error));
                }
                peer.send(ANSWER);
                stream.write_all(&peer.sent()).await.map_err(|error| error.to_string())?;
                expect_bytes(&mut client, ANSWER).await?;
                Ok("heard and answered".to_owned())
            }
            Want::Reject(reason) => {
                drop(stream);
                let counted = counted(rejected, &before, reason).await?;
                if !peer.received.is_empty() {
                    return Err("a refused server got bytes of the application".to_owned());
                }
                let mut got = Vec::new();
                let end = timeout(PATIENCE, client.read_to_end(&mut got)).await;
                if !matches!(&end, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset) || !got.is_empty()
                {
                    return Err(format!("the application saw {end:?} instead of a reset"));
                }
                alerted(&peer, reason, counted, row)
            }
        }
    }

    /// Waits until the application is dialled.
    pub(crate) async fn application_is_dialled(&self) -> Result<TcpStream, String> {
        let polled = async {
            loop {
                match self.application.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
                        return TcpStream::from_std(stream).map_err(|error| error.to_string());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        timeout(PATIENCE, polled).await.map_err(|_| "the application was not dialled".to_owned())?
    }

    /// Checks that no question was asked since, and that nobody waits in the application's queue.
    pub(crate) fn nobody_was_bothered(&self, asked_before: usize) -> Result<(), String> {
        if self.doorman.asked.load(Ordering::SeqCst) != asked_before {
            return Err("the authorizer was asked about a refused peer".to_owned());
        }
        self.application_was_not_dialled()
    }

    fn application_was_not_dialled(&self) -> Result<(), String> {
        match self.application.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => Err(format!("the application was dialled for a refused peer: {other:?}")),
        }
    }
}

/// The roots change between the verdict and the permit: the peer is judged once more, and the application stays
/// undialled.
async fn root_removed_meanwhile(stand: &Stand, mesh: &Mesh, version: Version) -> Result<String, String> {
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let scene = stand.scene(mesh, &case, None).await;
    let other =
        Case { roots: vec![mesh.other_root("Consul CA 2").pem()], ..Case::issued(&mesh.leaf(), &mesh.root, &[], &[]) };
    let roots = Roots::clone(&judge(mesh, &other, Side::Inbound).roots).with_generation(2);
    let next = Material { generation: 2, leaf: stand.leaf.clone(), roots: Arc::new(roots) };
    *scene.doorman.meanwhile.lock().expect("a test that goes on") = Some(next);
    let before = scene.sidecar.metrics().inbound.rejected;
    let mut peer = Peer::new(&PeerSettings::new(case.chain.clone(), case.key.clone(), version), Side::Inbound);
    let mut stream = connect(scene.mesh_side).await?;
    converse(&mut peer, &mut stream, Some(GREETING), ANSWER).await?;
    let wanted = RejectReason::UnknownIssuer;
    let counted = counted(|| scene.sidecar.metrics().inbound.rejected, &before, wanted).await?;
    let asked = scene.doorman.asked.load(Ordering::SeqCst);
    let bothered = scene.application_was_not_dialled();
    scene.abort();
    bothered?;
    if counted != wanted.name() {
        return Err(format!("{counted} instead of {wanted}"));
    }
    if asked != 1 || !peer.received.is_empty() {
        return Err(format!("asked {asked} times, {:?} received", peer.received));
    }
    Ok("unknown_issuer after the permit".to_owned())
}

/// Moves bytes between a peer and its socket until it has `wanted`, was told off, or the connection ends.
async fn converse(
    peer: &mut Peer,
    stream: &mut TcpStream,
    greeting: Option<&[u8]>,
    wanted: &[u8],
) -> Result<(), String> {
    let mut greeting = greeting;
    let mut buffer = vec![0; 64 * 1024];
    let talk = async {
        loop {
            if peer.is_done()
                && let Some(greeting) = greeting.take()
            {
                peer.send(greeting);
            }
            // Whoever was refused may find its socket closed; what it was told is what counts.
            let gone = stream.write_all(&peer.sent()).await.is_err();
            if peer.received.len() >= wanted.len() || peer.alert.is_some() || peer.error.is_some() {
                return;
            }
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => peer.take(&buffer[..n]),
                _ => return,
            }
            if gone {
                return;
            }
        }
    };
    timeout(PATIENCE, talk).await.map_err(|_| "the connection hangs".to_owned())
}

/// Waits until a refusal is counted, and returns the reason under which it was.
async fn counted(
    rejected: impl Fn() -> Vec<(&'static str, u64)>,
    before: &[(&'static str, u64)],
    reason: RejectReason,
) -> Result<&'static str, String> {
    let mut found = Vec::new();
    let polled = async {
        while found.is_empty() {
            let was = |name: &str| before.iter().find(|(other, _)| *other == name).map_or(0, |(_, count)| *count);
            found = rejected().into_iter().filter(|(name, count)| *count > was(name)).collect();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if timeout(PATIENCE, polled).await.is_err() {
        return Err(format!("{reason} was not counted"));
    }
    match found[..] {
        [(name, _)] => Ok(name),
        _ => Err(format!("counted under {found:?}, wanted {reason}")),
    }
}

/// Checks the name under which a refusal was counted, and the alert that the peer saw.
fn alerted(peer: &Peer, reason: RejectReason, counted: &str, row: &Row) -> Result<String, String> {
    if counted != reason.name() {
        return Err(format!("{counted} instead of {reason}, alert {:?}", peer.alert));
    }
    let ours = matches!(row.build, Build::Chain(_));
    match peer.alert {
        Some(alert) if !ours || alert == reason.alert() || said_by_library(reason, alert) => {
            Ok(format!("{counted}, alert {alert}"))
        }
        None if !ours => Ok(format!("{counted}, no alert")),
        other => Err(format!("{counted}, alert {other:?}: {:?}", peer.error)),
    }
}

/// Our certificate and the roots, as the test sets them.
struct Source(watch::Sender<Option<Arc<Material>>>);

impl Source {
    fn new(material: Material) -> Self {
        Self(watch::Sender::new(Some(Arc::new(material))))
    }
}

impl CertSource for Source {
    fn watch(&self) -> watch::Receiver<Option<Arc<Material>>> {
        self.0.subscribe()
    }

    fn state(&self) -> SourceState {
        SourceState { usable: true, ..SourceState::default() }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

/// Permits everybody, counts, and remembers the last question.
#[derive(Default)]
struct Doorman {
    asked: AtomicUsize,
    question: std::sync::Mutex<Option<(String, String)>>,
    source: Arc<Source>,
    /// What becomes the material while the next question is thought about.
    meanwhile: std::sync::Mutex<Option<Material>>,
}

#[async_trait]
impl Authorizer for Doorman {
    async fn authorize(&self, inbound: &Inbound<'_>) -> Result<Permit, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let question = (inbound.peer.uri().to_owned(), inbound.peer.serial().to_string());
        *self.question.lock().expect("a test that goes on") = Some(question);
        if let Some(material) = self.meanwhile.lock().expect("a test that goes on").take() {
            self.source.0.send_replace(Some(Arc::new(material)));
        }
        Ok(Permit::granted_by("everybody may".to_owned(), SystemTime::now()))
    }
}

/// The one instance of `web`.
#[derive(Default)]
struct List(std::sync::Mutex<Vec<Instance>>);

#[async_trait]
impl Discovery for List {
    async fn instances(&self, _: &Destination) -> Result<Arc<[Instance]>, DiscoveryError> {
        Ok(self.0.lock().expect("a test that goes on").clone().into())
    }

    fn forget(&self, _: &Destination) {}
}

/// Waits until a listener is open, and tells where.
async fn listening(sidecar: &Sidecar, upstream: Option<&str>) -> SocketAddr {
    let polled = async {
        loop {
            let listener = sidecar.listeners().into_iter().find(|listener| listener.upstream.as_deref() == upstream);
            match listener.map(|listener| listener.state) {
                Some(ListenerState::Listening(Some(address))) => return address,
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(PATIENCE, polled).await.expect("the listener opens in time")
}

fn config(application: SocketAddr, deadline: Option<Duration>) -> SidecarConfig {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let destination = Destination {
        kind: DestinationKind::Service,
        name: "web".to_owned(),
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
    };
    let application = Application::Tcp { host: application.ip().to_string(), port: application.port() };
    let mut inbound = InboundConfig::new(any, application);
    let mut upstream = UpstreamConfig::new(UpstreamBind::Tcp(any), destination);
    if let Some(deadline) = deadline {
        (inbound.handshake_timeout, upstream.connect_timeout) = (deadline, deadline);
    }
    SidecarConfig {
        service: ServiceName::parse("db", Grammar::Spiffe).expect("a legal name"),
        inbound: Some(inbound),
        upstreams: [("web".to_owned(), upstream)].into(),
        limits: Limits::default(),
    }
}

fn instance(address: SocketAddr) -> Instance {
    Instance {
        id: format!("web-{}", address.port()),
        host: address.ip().to_string(),
        port: address.port(),
        service: "web".to_owned(),
        namespace: "default".to_owned(),
        partition: "default".to_owned(),
        datacenter: "dc1".to_owned(),
        weight: 1,
    }
}

pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
    connected.map_err(|_| "no connection in time".to_owned())?.map_err(|error| error.to_string())
}

async fn expect_bytes(stream: &mut TcpStream, wanted: &[u8]) -> Result<(), String> {
    let mut got = vec![0; wanted.len()];
    let read = timeout(PATIENCE, stream.read_exact(&mut got)).await.map_err(|_| "no bytes in time".to_owned())?;
    read.map_err(|error| error.to_string())?;
    if got == wanted { Ok(()) } else { Err(format!("{got:?} arrived")) }
}
