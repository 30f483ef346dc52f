//! The far ends: applications, clients and the agent, in a process of their own.
//!
//! So the CPU time and the memory of the measuring process are those of the sidecars alone. The other process is the
//! same binary, told by a variable of its environment what it is; it takes orders as lines of JSON on its standard
//! input, answers each with a line, and ends with its input.

use std::{
    env, fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{self, SocketAddr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lictor_agent::{Agent, CaKey, KeyError, KeyMaker, Options};
use lictor_conformance::{certs::TRUST_DOMAIN, verifier::service};
use lictor_core::{
    Buf, ExpectedPeer, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, PeerPolicy, Roots, TlsBackend, TlsPolicy,
    identity::Grammar, rotation::system_clock, tls::SigningKey,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::backends::{Contender, backends};

/// Set in the other process, to the name of the backend that its clients use.
const ROLE: &str = "LICTOR_BENCH_ENDS";

/// A small message, in bytes.
pub const SMALL: usize = 64;

/// What one bulk read or write of an end moves at most.
const CHUNK: usize = 256 * 1024;

/// What the other process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Be an application that sends everything back; answered with [`Answer::At`].
    Echo,
    /// Be an application that takes everything and answers with one byte at the end.
    Sink,
    /// Be an application that gives so many bytes and ends.
    Source(usize),
    /// Be an agent in which `web` may call `db`; answered with its URL.
    Agent,
    /// Send so many bytes, end, and wait for one byte; so many times, each over a connection of its own.
    Upload(SocketAddr, usize, u64),
    /// Read until the end; so many times.
    Download(SocketAddr, u64),
    /// Connect, send a small message, get it back and close; so many times.
    Visit(SocketAddr, u64),
    /// Open so many connections and keep them.
    Dial(SocketAddr, usize),
    /// Over each kept connection at once, send a small message and wait until it is back, so many times.
    Chat(u64),
    /// Be `web` of the mesh.
    Be(Identity),
    /// Open so many mesh connections to `db` and keep them, too.
    Join(SocketAddr, usize),
    /// Over one mesh connection after the other, send so many bytes and wait until they are back.
    Exchange(usize),
    /// Close all that is kept.
    HangUp,
}

/// Certificate, key and root as PEM.
#[derive(Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Identity {
    pub certificate: String,
    pub key: String,
    pub root: String,
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What it says when that is done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// How long it took.
    Took(Duration),
    /// Where it listens.
    At(SocketAddr),
    /// Where the agent is.
    Url(String),
}

/// The other process, as seen from the measuring one. Dropped, it ends.
#[derive(Debug)]
pub struct Ends {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Ends {
    /// Starts it, with clients on the same backend.
    ///
    /// # Panics
    /// When the system gives no process.
    #[must_use]
    pub fn start(contender: &Contender) -> Self {
        let mut process = Command::new(env::current_exe().expect("our own binary"))
            .env(ROLE, contender.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("its output is a pipe"));
        Self { process, orders, answers }
    }

    /// Has something done, and waits for it.
    ///
    /// # Panics
    /// When it fails there.
    pub fn order(&mut self, order: &Order) -> Answer {
        let orders = self.orders.as_mut().expect("open until it is dropped");
        let line = serde_json::to_string(order).expect("an order is JSON");
        writeln!(orders, "{line}").expect("the other process lives");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the other process answers");
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{order:?} has failed"))
    }

    /// The same, for an order that takes its time.
    ///
    /// # Panics
    /// When it fails there.
    pub fn timed(&mut self, order: &Order) -> Duration {
        match self.order(order) {
            Answer::Took(time) => time,
            other => panic!("{order:?} was answered with {other:?}"),
        }
    }

    /// The same, for an application.
    ///
    /// # Panics
    /// When it fails there.
    pub fn application(&mut self, order: &Order) -> SocketAddr {
        match self.order(order) {
            Answer::At(address) => address,
            other => panic!("{order:?} was answered with {other:?}"),
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}

/// In the other process: serves until nobody gives orders any more, and returns true. Comes first in each `main`.
///
/// # Panics
/// When an order cannot be carried out, which ends the process and with it the bench.
#[must_use]
pub fn serves() -> bool {
    let Some(name) = env::var_os(ROLE) else { return false };
    lictor_proxy::limits::raise_descriptor_limit();
    let found = backends().into_iter().find(|contender| *contender.name == *name);
    let Contender { backend, .. } = found.expect("a backend by that name");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (tell, mut told) = mpsc::channel(1);
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let _ = tell.blocking_send(serde_json::from_str(&line).expect("an order"));
        }
    });
    runtime.block_on(async {
        let mut crew = Crew { backend, agent: None, context: None, plain: Vec::new(), mesh: Vec::new() };
        while let Some(order) = told.recv().await {
            let answer = crew.carry_out(order).await.expect("what was ordered can be done");
            let line = serde_json::to_string(&answer).expect("an answer is JSON");
            writeln!(io::stdout(), "{line}").expect("somebody listens");
        }
    });
    true
}

/// All that lives in the other process.
struct Crew {
    backend: Arc<dyn TlsBackend>,
    agent: Option<Agent>,
    context: Option<(Arc<dyn MeshContext>, Judge)>,
    plain: Vec<TcpStream>,
    mesh: Vec<(TcpStream, Box<dyn MeshSession>)>,
}

impl Crew {
    async fn carry_out(&mut self, order: Order) -> io::Result<Answer> {
        let begun = Instant::now();
        match order {
            Order::Echo => {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let address = listener.local_addr()?;
                tokio::spawn(echo(listener));
                return Ok(Answer::At(address));
            }
            Order::Sink => return application(sink).map(Answer::At),
            Order::Source(bytes) => return application(move |stream| source(stream, bytes)).map(Answer::At),
            Order::Agent => return self.agent().await,
            Order::Upload(to, bytes, times) => {
                let upload = move || (0..times).try_for_each(|_| upload(to, bytes));
                tokio::task::spawn_blocking(upload).await??;
            }
            Order::Download(from, times) => {
                let download = move || (0..times).try_for_each(|_| download(from));
                tokio::task::spawn_blocking(download).await??;
            }
            Order::Visit(to, times) => {
                for _ in 0..times {
                    let mut stream = dial(to).await?;
                    chat(&mut stream, 1).await?;
                }
            }
            Order::Dial(to, connections) => {
                for _ in 0..connections {
                    self.plain.push(dial(to).await?);
                }
                for stream in &mut self.plain {
                    // All are established through to the application before anything is measured.
                    chat(stream, 1).await?;
                }
            }
            Order::Chat(turns) => {
                let mut all = JoinSet::new();
                for mut stream in self.plain.drain(..) {
                    all.spawn(async move { chat(&mut stream, turns).await.map(|()| stream) });
                }
                for stream in all.join_all().await {
                    self.plain.push(stream?);
                }
            }
            Order::Be(identity) => self.be(&identity),
            Order::Join(to, connections) => {
                let (context, judge) = self.context.as_ref().expect("an identity comes first");
                for _ in 0..connections {
                    self.mesh.push(join(to, context.as_ref(), judge).await?);
                }
            }
            Order::Exchange(bytes) => {
                let data = vec![0x5a; bytes];
                let [mut wire, mut plain, mut out] = [(); 3].map(|()| Buf::with_capacity(CHUNK));
                for (stream, session) in &mut self.mesh {
                    session.seal(&data, &mut out).map_err(io::Error::other)?;
                    stream.write_all(out.data()).await?;
                    while plain.len() < bytes {
                        fill(stream, &mut wire).await?;
                        session.open(&mut wire, &mut plain, &mut out).map_err(io::Error::other)?;
                    }
                    [&mut wire, &mut plain, &mut out].into_iter().for_each(Buf::clear);
                }
            }
            Order::HangUp => {
                self.plain.clear();
                self.mesh.clear();
            }
        }
        Ok(Answer::Took(begun.elapsed()))
    }

    async fn agent(&mut self) -> io::Result<Answer> {
        let keys = Arc::new(BackendKeys(self.backend.clone()));
        let agent = Agent::start(Options::default(), keys).await.map_err(io::Error::other)?;
        agent.handle().allow("web", "db");
        let url = agent.handle().url();
        self.agent = Some(agent);
        Ok(Answer::Url(url))
    }

    fn be(&mut self, Identity { certificate, key, root }: &Identity) {
        let leaf = Leaf::from_pem(certificate, key, Grammar::Spiffe).expect("a good leaf");
        let roots = Roots::from_pem(1, TRUST_DOMAIN, [root.as_str()]).expect("a list of roots");
        let judge = Judge {
            expected: ExpectedPeer::Server(Arc::new(service("db"))),
            roots: Arc::new(roots),
            policy: Arc::new(PeerPolicy::default()),
            now: system_clock()(),
        };
        let context = self.backend.mesh_context(&leaf, &TlsPolicy::default()).expect("a context");
        self.context = Some((context, judge));
    }
}

/// An application on threads, for bulk.
fn application(serve: impl Fn(net::TcpStream) + Send + Sync + 'static) -> io::Result<SocketAddr> {
    let listener = net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn sink(mut stream: net::TcpStream) {
    let mut bytes = vec![0; CHUNK];
    while stream.read(&mut bytes).is_ok_and(|n| n > 0) {}
    let _ = stream.write_all(b".");
}

fn source(mut stream: net::TcpStream, bytes: usize) {
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 && stream.write_all(&chunk[..left.min(CHUNK)]).is_ok() {
        left -= left.min(CHUNK);
    }
}

fn upload(to: SocketAddr, bytes: usize) -> io::Result<()> {
    let mut stream = net::TcpStream::connect(to)?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        stream.write_all(&chunk[..left.min(CHUNK)])?;
        left -= left.min(CHUNK);
    }
    stream.shutdown(net::Shutdown::Write)?;
    stream.read_exact(&mut [0])
}

fn download(from: SocketAddr) -> io::Result<()> {
    let mut stream = net::TcpStream::connect(from)?;
    let mut bytes = vec![0; CHUNK];
    while stream.read(&mut bytes)? > 0 {}
    Ok(())
}

/// An application on tasks, for thousands of connections. An idle one keeps no buffer.
async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(n) = stream.read(&mut bytes).await
                && n > 0
                && stream.write_all(&bytes[..n]).await.is_ok()
            {}
        });
    }
}

async fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn chat(stream: &mut TcpStream, turns: u64) -> io::Result<()> {
    let mut bytes = [7; SMALL];
    for _ in 0..turns {
        stream.write_all(&bytes).await?;
        stream.read_exact(&mut bytes).await?;
    }
    Ok(())
}

async fn join(
    to: SocketAddr,
    context: &dyn MeshContext,
    judge: &Judge,
) -> io::Result<(TcpStream, Box<dyn MeshSession>)> {
    let mut stream = dial(to).await?;
    let mut session = context.connect(service("db").server_name().as_deref()).map_err(io::Error::other)?;
    let (mut wire, mut out) = (Buf::default(), Buf::default());
    loop {
        let step = session.handshake(judge, &mut wire, &mut out).map_err(io::Error::other)?;
        stream.write_all(&out.take()).await?;
        match step {
            HandshakeStep::NeedInput => fill(&mut stream, &mut wire).await?,
            HandshakeStep::Done(_) => return Ok((stream, session)),
        }
    }
}

async fn fill(stream: &mut TcpStream, wire: &mut Buf) -> io::Result<()> {
    match stream.read(wire.space(16 * 1024)).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => {
            wire.filled(n);
            Ok(())
        }
    }
}

/// Keys of the agent's authority, made by the backend.
struct BackendKeys(Arc<dyn TlsBackend>);

impl KeyMaker for BackendKeys {
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError> {
        let key = self.0.generate_p256().map_err(|error| KeyError(error.to_string()))?;
        Ok(Arc::new(BackendKey(key)))
    }
}

struct BackendKey(Box<dyn SigningKey>);

impl CaKey for BackendKey {
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
