//! Dials hosts by name or address, within a bound of time.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    config::Application,
    socket::{Plain, tune},
};

/// How long an answer of the resolver is used again: long enough that a flood of connections is one question.
const MEMORY: Duration = Duration::from_secs(5);

/// Questions to the resolver at the same time. Each takes a thread of the runtime's pool.
const QUESTIONS: usize = 8;

/// The most names that are remembered.
const MOST_REMEMBERED: usize = 1024;

/// Resolves names, with a short memory.
#[derive(Debug)]
pub(crate) struct Dialler {
    known: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
    questions: Semaphore,
}

impl Dialler {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), questions: Semaphore::new(QUESTIONS) }
    }

    /// Connects to `host` at `port`, trying each of its addresses in turn, until `deadline`.
    pub(crate) async fn tcp(&self, host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
        let addresses = timeout_at(deadline, self.resolve(host)).await.map_err(|_| late())??;
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for (index, address) in addresses.iter().enumerate() {
            // One silent address must not use up the time of those behind it.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / u32::try_from(addresses.len() - index).unwrap_or(1);
            match timeout_at(share, TcpStream::connect(SocketAddr::new(*address, port))).await {
                Ok(Ok(stream)) => {
                    tune(&stream);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = late(),
            }
        }
        Err(last)
    }

    /// Connects to the application.
    pub(crate) async fn application(&self, application: &Application, deadline: Instant) -> io::Result<Plain> {
        let plain = match application {
            Application::Tcp { host, port } => Plain::Tcp(self.tcp(host, *port, deadline).await?),
            Application::Unix(path) => {
                let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
                Plain::Unix(timeout_at(deadline, UnixStream::connect(path)).await.map_err(late)??)
            }
        };
        plain.arm();
        Ok(plain)
    }

    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        if let Some(known) = self.remembered(host) {
            return Ok(known);
        }
        let Ok(_asking) = self.questions.acquire().await else {
            return Err(io::Error::other("the resolver is shut down"));
        };
        // Whoever waited for the same question finds its answer here.
        if let Some(known) = self.remembered(host) {
            return Ok(known);
        }
        let mut addresses: Vec<IpAddr> = lookup_host((host, 0)).await?.map(|address| address.ip()).collect();
        addresses.dedup();
        let mut known = self.known.lock();
        if known.len() >= MOST_REMEMBERED {
            known.clear();
        }
        known.insert(host.to_owned(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }

    fn remembered(&self, host: &str) -> Option<Vec<IpAddr>> {
        let known = self.known.lock();
        known.get(host).filter(|(at, _)| at.elapsed() < MEMORY).map(|(_, addresses)| addresses.clone())
    }
}
