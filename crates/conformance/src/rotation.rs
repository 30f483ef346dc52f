//! Roots and leaves that rotate, as Consul does it: the new root is listed beside the old one, leaves of it follow with a
//! certificate by which the old root vouches for the new, and at last the old root goes.
//!
//! The promise is that nobody is refused as long as everybody is at most one step behind.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use lictor_core::{
    CertSource as _, ExpectedPeer, Judge, Leaf, RejectReason, ServiceName, SessionError, TlsBackend, TlsPolicy,
    identity::Grammar,
    rotation::{Changed, Rotation, UpdateRefused, system_clock},
    tls::BuildError,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    certs::{Authority, DAY, MINUTE, Mesh, pem},
    keys::{Key, KeyKind},
    pair::{Ours, talk_to_each_other},
    report::{Report, Way},
    sidecars::{Chain, PATIENCE, roots, until},
    verifier::{Side, service},
};

type Scene = Result<String, String>;

/// Runs the family.
///
/// # Panics
/// When the machine has no loopback, threads or descriptors for it.
#[must_use]
pub fn run(backend: &Arc<dyn TlsBackend>, seed: u64) -> Report {
    let mut report = Report::new("rotation", backend.name(), seed);
    let stage = Stage::new(backend, seed);
    for (client, of_client) in STEPS {
        for (server, of_server) in STEPS {
            let row = format!("{of_client} calls {of_server}");
            // With the old root gone, a leaf of it alone is a stranger's.
            let is_behind = |step: Step, other: Step| step.has_old_leaf() && other == Step::OldGone;
            let passes = !is_behind(client, server) && !is_behind(server, client);
            let wanted = if passes { "accept" } else { "reject unknown_issuer" };
            report.add_wanted(&row, Way::NONE, wanted, stage.meet(client, server, passes));
        }
    }
    report.add("a leaf that comes before its root is held, and then serves", Way::NONE, stage.leaf_before_root());
    report.add("a leaf with another's key changes nothing", Way::NONE, stage.leaf_with_another_key());
    report.add("a root that is gone ends trust at once", Way::NONE, stage.old_root_gone());
    let runtime = tokio::runtime::Runtime::new().expect("threads for a runtime");
    report.add("no call fails while everything rotates three times", Way::NONE, runtime.block_on(under_load(backend)));
    report
}

/// How far a service has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Before,
    NewListed,
    NewLeaf,
    OldGone,
}

impl Step {
    fn has_old_leaf(self) -> bool {
        matches!(self, Self::Before | Self::NewListed)
    }
}

const STEPS: [(Step, &str); 4] = [
    (Step::Before, "a service before the rotation"),
    (Step::NewListed, "one that knows the new root"),
    (Step::NewLeaf, "one with a new leaf"),
    (Step::OldGone, "one without the old root"),
];

struct Stage {
    backend: Arc<dyn TlsBackend>,
    mesh: Mesh,
    new: Authority,
}

impl Stage {
    fn new(backend: &Arc<dyn TlsBackend>, seed: u64) -> Self {
        let mesh = Mesh::new(seed);
        Self { backend: backend.clone(), new: mesh.other_root("Consul CA 2"), mesh }
    }

    /// A source at this step.
    fn source(&self, name: &str, step: Step) -> Result<Rotation, String> {
        let source = self.empty(name);
        let old = &self.mesh.root;
        source.offer_roots(roots(&[old]));
        offer(&source, leaf(&self.mesh, old, None, name))?;
        if step != Step::Before {
            source.offer_roots(roots(&[&self.new, old]));
        }
        if !step.has_old_leaf() {
            offer(&source, leaf(&self.mesh, &self.new, Some(old), name))?;
        }
        if step == Step::OldGone {
            source.offer_roots(roots(&[&self.new]));
        }
        Ok(source)
    }

    fn empty(&self, name: &str) -> Rotation {
        let name = ServiceName::parse(name, Grammar::Spiffe).expect("a legal name");
        let policy = Arc::default();
        Rotation::new(name.into(), self.backend.clone(), TlsPolicy::default(), policy, system_clock())
    }

    /// One side of a connection, as the data plane makes it of the newest material.
    fn ours(&self, source: &Rotation, side: Side) -> Result<Ours, String> {
        let material = source.watch().borrow().clone().ok_or("no material")?;
        let context =
            self.backend.mesh_context(&material.leaf, &TlsPolicy::default()).map_err(|error| error.to_string())?;
        let expected = match side {
            Side::Inbound => ExpectedPeer::ClientOf(Arc::new(service("db"))),
            Side::Outbound => ExpectedPeer::Server(Arc::new(service("db"))),
        };
        let judge = Judge { expected, roots: material.roots.clone(), policy: Arc::default(), now: self.mesh.time() };
        Ok(Ours::new(context.as_ref(), judge, side))
    }

    fn joined(&self, client: &Rotation, server: &Rotation) -> Result<(Ours, Ours), String> {
        let (mut client, mut server) = (self.ours(client, Side::Outbound)?, self.ours(server, Side::Inbound)?);
        talk_to_each_other(&mut client, &mut server, usize::MAX);
        Ok((client, server))
    }

    fn meet(&self, client: Step, server: Step, passes: bool) -> Scene {
        let (client, server) = self.joined(&self.source("web", client)?, &self.source("db", server)?)?;
        if passes {
            return proven(&client, &server);
        }
        let refused = SessionError::Rejected(RejectReason::UnknownIssuer);
        if [&client.failed, &server.failed].into_iter().flatten().any(|error| *error == refused) {
            return Ok("unknown_issuer".to_owned());
        }
        Err(format!("{:?} and {:?}", client.failed, server.failed))
    }

    fn leaf_before_root(&self) -> Scene {
        let (source, other) = (self.source("web", Step::Before)?, self.source("db", Step::NewListed)?);
        let early = source.offer_leaf(leaf(&self.mesh, &self.new, None, "web"));
        if early != Ok(Changed::Held(RejectReason::UnknownIssuer)) {
            return Err(format!("{early:?}"));
        }
        let (client, server) = self.joined(&source, &other)?;
        proven(&client, &server)?;
        let before = server.established.map(|established| established.peer.chain);
        source.offer_roots(roots(&[&self.new, &self.mesh.root]));
        let (client, server) = self.joined(&source, &other)?;
        proven(&client, &server)?;
        let after = server.established.map(|established| established.peer.chain);
        if before == after { Err("the old leaf serves on".to_owned()) } else { Ok("held, then shown".to_owned()) }
    }

    fn leaf_with_another_key(&self) -> Scene {
        let (source, other) = (self.source("web", Step::NewListed)?, self.source("db", Step::NewListed)?);
        let (key, stranger) = (Key::generate(KeyKind::P256), Key::generate(KeyKind::P256));
        let chain = pem("CERTIFICATE", &self.new.issue(&self.mesh.leaf_of("web"), &key));
        let bad = source.offer_leaf(parsed(&chain, &stranger));
        if bad != Err(UpdateRefused::Unusable(BuildError::KeyMismatch)) {
            return Err(format!("{bad:?}"));
        }
        let (client, server) = self.joined(&source, &other)?;
        proven(&client, &server)
    }

    /// Trust goes with the list, also for a peer that passed a moment before with the same leaf.
    fn old_root_gone(&self) -> Scene {
        let (old, other) = (self.source("web", Step::Before)?, self.source("db", Step::NewLeaf)?);
        let (client, server) = self.joined(&old, &other)?;
        proven(&client, &server)?;
        other.offer_roots(roots(&[&self.new]));
        let (_, server) = self.joined(&old, &other)?;
        match server.failed {
            Some(SessionError::Rejected(RejectReason::UnknownIssuer)) => Ok("unknown_issuer".to_owned()),
            other => Err(format!("{other:?}")),
        }
    }
}

fn proven(client: &Ours, server: &Ours) -> Scene {
    match (&client.established, &server.established, &client.failed, &server.failed) {
        (Some(_), Some(_), None, None) => Ok("both proven".to_owned()),
        (.., client, server) => Err(format!("{client:?} and {server:?}")),
    }
}

fn offer(source: &Rotation, leaf: Leaf) -> Result<(), String> {
    match source.offer_leaf(leaf) {
        Ok(Changed::Applied) => Ok(()),
        other => Err(format!("a good leaf was offered: {other:?}")),
    }
}

/// A leaf of `issuer`, with the certificate by which an older root vouches for it.
fn leaf(mesh: &Mesh, issuer: &Authority, older: Option<&Authority>, name: &str) -> Leaf {
    let key = Key::generate(KeyKind::P256);
    let mut chain = pem("CERTIFICATE", &issuer.issue(&mesh.leaf_of(name), &key));
    if let Some(older) = older {
        // Consul's cross certificates live for a week.
        let spec = mesh.ca("").valid(mesh.now - MINUTE, mesh.now + 7 * DAY);
        chain += &pem("CERTIFICATE", &older.cross_sign(&spec, issuer));
    }
    parsed(&chain, &key)
}

fn parsed(chain: &str, key: &Key) -> Leaf {
    let key = pem("PRIVATE KEY", key.pkcs8().expect("a key of the library"));
    Leaf::from_pem(chain, &key, Grammar::Spiffe).expect("a well-formed leaf")
}

/// How many calls must have succeeded before the next thing changes.
const CALLS_BETWEEN: usize = 8;

/// `web` calls `db` without pause through two sidecars, one call a connection and one connection for all, while the
/// two learn of every change one after the other.
async fn under_load(backend: &Arc<dyn TlsBackend>) -> Scene {
    let application = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = application.local_addr().map_err(|error| error.to_string())?;
    let echo = tokio::spawn(async move {
        while let Ok((mut stream, _)) = application.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let chain = Chain::to(address, backend.clone()).await;
    let (upstream, calls) = (chain.upstream, Arc::new(Calls::default()));
    let mut lasting = TcpStream::connect(upstream).await.map_err(|error| error.to_string())?;
    call_over(&mut lasting, 0).await?;
    let callers: Vec<_> = (0..4).map(|_| tokio::spawn(calls.clone().go_on(upstream))).collect();

    let mesh = &chain.scene.mesh;
    let (mut old, mut changes) = (mesh.root.clone(), 0);
    for round in 0..3 {
        let new = mesh.other_root(&format!("Consul CA {}", round + 2));
        for list in [&[&new, &old][..], &[&new]] {
            if list.len() == 1 {
                for (source, name) in [(&chain.db_source, "db"), (&chain.web_source, "web")] {
                    offer(source, leaf(mesh, &new, Some(&old), name))?;
                    changes += 1;
                    calls.more().await;
                }
            }
            for source in [&chain.web_source, &chain.db_source] {
                source.offer_roots(roots(list));
                changes += 1;
                calls.more().await;
            }
        }
        call_over(&mut lasting, round + 1).await?;
        old = new;
    }
    calls.ended.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.map_err(|error| error.to_string())?;
    }
    chain.web.abort();
    chain.db.abort();
    echo.abort();
    let failed = calls.failed.lock().clone();
    if let Some(first) = failed.first() {
        return Err(format!("{} calls failed, the first: {first}", failed.len()));
    }
    Ok(format!("{changes} changes in {} calls", calls.done.load(Ordering::SeqCst)))
}

#[derive(Default)]
struct Calls {
    done: AtomicUsize,
    failed: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Calls {
    async fn go_on(self: Arc<Self>, upstream: SocketAddr) {
        while !self.ended.load(Ordering::SeqCst) {
            match call(upstream).await {
                Ok(()) => _ = self.done.fetch_add(1, Ordering::SeqCst),
                Err(error) => self.failed.lock().push(error),
            }
        }
    }

    /// Waits until calls have seen what has just changed, or one has failed.
    async fn more(&self) {
        let wanted = self.done.load(Ordering::SeqCst) + CALLS_BETWEEN;
        until(|| self.done.load(Ordering::SeqCst) >= wanted || !self.failed.lock().is_empty()).await;
    }
}

async fn call(upstream: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect(upstream).await.map_err(|error| error.to_string())?;
    call_over(&mut stream, 7).await?;
    stream.shutdown().await.map_err(|error| error.to_string())?;
    match timeout(PATIENCE, stream.read(&mut [0])).await {
        Ok(Ok(0)) => Ok(()),
        other => Err(format!("the end is {other:?}")),
    }
}

async fn call_over(stream: &mut TcpStream, byte: u8) -> Result<(), String> {
    stream.write_all(&[byte]).await.map_err(|error| error.to_string())?;
    let mut answer = [0; 1];
    match timeout(PATIENCE, stream.read_exact(&mut answer)).await {
        Ok(Ok(_)) if answer == [byte] => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
