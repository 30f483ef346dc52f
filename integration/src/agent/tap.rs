//! A forwarder in front of an agent: it counts what the sidecar under test asks, can be closed and opened, and answers
//! in the agent's place where it is told to. What it is told nothing about passes through it byte by byte.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::tamper::{Request, Tampering};

/// How many heads of requests are kept.
const MOST: usize = 200_000;

pub(crate) struct Tap {
    address: SocketAddr,
    target: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    tampering: Arc<Tampering>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Seen {
    heads: Vec<String>,
    open: usize,
    most: usize,
    opened: usize,
    /// Heads of the requests that wait for an answer, by the number of their connection.
    waiting: Vec<(usize, String)>,
}

impl Tap {
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let mut last = None;
        for _ in 0..8 {
            let tap = Self {
                address: crate::ports::free()?,
                target,
                seen: Arc::default(),
                tampering: Arc::new(Tampering::new(target)),
                task: Mutex::new(None),
            };
            // Another process may have taken the port since.
            match tap.open().await {
                Ok(()) => return Ok(tap),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt")?)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn target(&self) -> SocketAddr {
        self.target
    }

    /// Listens again, where it does not.
    pub(crate) async fn open(&self) -> Result<()> {
        let old = self.task.lock().take();
        if let Some(old) = old {
            // Its sockets are closed when the task is gone, not when it is told to go.
            old.abort();
            let _ = old.await;
        }
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address).with_context(|| format!("the tap at {}", self.address))?;
        let listener = socket.listen(1024)?;
        *self.task.lock() =
            Some(tokio::spawn(serve(listener, self.target, Arc::clone(&self.seen), Arc::clone(&self.tampering))));
        Ok(())
    }

    /// Refuses connections, and ends those that are open.
    pub(crate) fn close(&self) {
        if let Some(task) = &*self.task.lock() {
            task.abort();
        }
    }

    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        self.seen.lock().heads.iter().filter(|head| head.contains(part)).cloned().collect()
    }

    pub(crate) fn connections(&self) -> (usize, usize) {
        let seen = self.seen.lock();
        (seen.open, seen.most)
    }

    /// Requests that wait for an answer right now.
    pub(crate) fn waiting(&self, part: &str) -> usize {
        self.seen.lock().waiting.iter().filter(|(_, head)| head.contains(part)).count()
    }

    pub(super) fn tampering(&self) -> &Tampering {
        &self.tampering
    }

    pub(crate) fn opened(&self) -> usize {
        self.seen.lock().opened
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.close();
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, seen: Arc<Mutex<Seen>>, tampering: Arc<Tampering>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(forward(stream, target, Open::new(&seen), Arc::clone(&tampering)));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Counts a connection for as long as it lives.
struct Open {
    number: usize,
    seen: Arc<Mutex<Seen>>,
}

impl Open {
    fn new(seen: &Arc<Mutex<Seen>>) -> Self {
        let mut counts = seen.lock();
        counts.open += 1;
        counts.opened += 1;
        counts.most = counts.most.max(counts.open);
        Self { number: counts.opened, seen: Arc::clone(seen) }
    }

    /// A request has come, and waits for its answer.
    fn asked(&self, head: &str) {
        let mut seen = self.seen.lock();
        if seen.heads.len() < MOST {
            seen.heads.push(head.to_owned());
        }
        seen.waiting.push((self.number, head.to_owned()));
    }

    /// It has its answer.
    fn answered(&self) {
        self.seen.lock().waiting.retain(|(number, _)| *number != self.number);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.answered();
        self.seen.lock().open -= 1;
    }
}

/// Ends both sides as soon as one ends.
async fn forward(mut sidecar: TcpStream, target: SocketAddr, open: Open, tampering: Arc<Tampering>) -> Result<()> {
    let mut agent = TcpStream::connect(target).await?;
    sidecar.set_nodelay(true)?;
    agent.set_nodelay(true)?;
    let mut changed = tampering.changed();
    let mut came = Vec::new();
    let mut asked = vec![0; 64 * 1024];
    let mut answered = vec![0; 64 * 1024];
    // The request that is with the agent.
    let mut waiting: Option<Request> = None;
    loop {
        let mut suffers = None;
        tokio::select! {
            read = sidecar.read(&mut asked) => {
                let bytes = &asked[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                came.extend_from_slice(bytes);
                let Some(request) = Request::parse(&came)? else { continue };
                came.clear();
                open.asked(&request.head);
                match tampering.take(&request, false) {
                    Some(tamper) => suffers = Some((request, tamper, false)),
                    None => {
                        agent.write_all(&tampering.forwarded(&request)).await?;
                        waiting = Some(request);
                    }
                }
            }
            read = agent.read(&mut answered) => {
                let bytes = &answered[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                waiting = None;
                open.answered();
                sidecar.write_all(bytes).await?;
            }
            _ = changed.changed() => {}
        }
        if let Some(request) = waiting.take() {
            match tampering.take(&request, true) {
                None => waiting = Some(request),
                Some(tamper) => {
                    // The agent's own answer comes over the old connection, which nobody reads any more.
                    agent = TcpStream::connect(target).await?;
                    agent.set_nodelay(true)?;
                    suffers = Some((request, tamper, true));
                }
            }
        }
        if let Some((request, tamper, waited)) = suffers {
            let answer = tokio::select! {
                answer = tampering.answer(&request, tamper, waited) => answer?,
                // A sidecar sends nothing before it has its answer: it has gone.
                _ = sidecar.read(&mut asked) => return Ok(()),
            };
            open.answered();
            sidecar.write_all(&answer.bytes).await?;
            if answer.last {
                return Ok(());
            }
        }
    }
}
