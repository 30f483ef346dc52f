//! A forwarder in front of an agent: it counts what the sidecar under test asks, and can be closed and opened.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// How many heads of requests are kept.
const MOST: usize = 200_000;

pub(crate) struct Tap {
    address: SocketAddr,
    target: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Seen {
    heads: Vec<String>,
    open: usize,
    most: usize,
    opened: usize,
}

impl Tap {
    pub(crate) async fn start(target: SocketAddr) -> Result<Self> {
        let mut last = None;
        for _ in 0..8 {
            let tap = Self { address: crate::ports::free()?, target, seen: Arc::default(), task: Mutex::new(None) };
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
        *self.task.lock() = Some(tokio::spawn(serve(listener, self.target, Arc::clone(&self.seen))));
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

    pub(crate) fn opened(&self) -> usize {
        self.seen.lock().opened
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.close();
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, seen: Arc<Mutex<Seen>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(forward(stream, target, Open::new(&seen)));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Counts a connection for as long as it lives.
struct Open(Arc<Mutex<Seen>>);

impl Open {
    fn new(seen: &Arc<Mutex<Seen>>) -> Self {
        let mut counts = seen.lock();
        counts.open += 1;
        counts.opened += 1;
        counts.most = counts.most.max(counts.open);
        Self(Arc::clone(seen))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}

/// Ends both sides as soon as one ends.
async fn forward(mut sidecar: TcpStream, target: SocketAddr, open: Open) -> Result<()> {
    let mut agent = TcpStream::connect(target).await?;
    sidecar.set_nodelay(true)?;
    agent.set_nodelay(true)?;
    let mut asked = vec![0; 64 * 1024];
    let mut answered = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            read = sidecar.read(&mut asked) => {
                let bytes = &asked[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                note(bytes, &open.0);
                agent.write_all(bytes).await?;
            }
            read = agent.read(&mut answered) => {
                let bytes = &answered[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                sidecar.write_all(bytes).await?;
            }
        }
    }
}

/// A client writes the head of a request at once, so a chunk that begins like one is one.
fn note(bytes: &[u8], seen: &Mutex<Seen>) {
    let begins = [&b"GET /"[..], b"PUT /", b"POST /", b"DELETE /"].iter().any(|method| bytes.starts_with(method));
    if begins {
        let text = String::from_utf8_lossy(bytes);
        let head = text.split("\r\n\r\n").next().unwrap_or_default().to_owned();
        let mut seen = seen.lock();
        if seen.heads.len() < MOST {
            seen.heads.push(head);
        }
    }
}
