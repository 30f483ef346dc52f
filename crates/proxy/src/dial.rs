//! Dials hosts by name or address, within a bound of time.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
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

/// How long a failure is believed: short, since it may be that of a name which is just being made.
const MEMORY_OF_FAILURE: Duration = Duration::from_secs(1);

/// Questions to the resolver at the same time. Each takes a thread of the runtime's pool.
const QUESTIONS: usize = 8;

/// The most names that are remembered.
const MOST_REMEMBERED: usize = 1024;

/// Resolves names, with a short memory.
#[derive(Debug)]
pub(crate) struct Dialler {
    known: Arc<Mutex<HashMap<String, Known>>>,
    questions: Arc<Semaphore>,
}

/// What the resolver said, and when.
#[derive(Clone, Debug)]
struct Known {
    at: Instant,
    answer: Result<Vec<IpAddr>, String>,
}

impl Dialler {
    pub(crate) fn new() -> Self {
        Self { known: Arc::default(), questions: Arc::new(Semaphore::new(QUESTIONS)) }
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
            return known;
        }
        let Ok(asking) = self.questions.clone().acquire_owned().await else {
            return Err(io::Error::other("the resolver is shut down"));
        };
        // Whoever waited for the same question finds its answer here.
        if let Some(known) = self.remembered(host) {
            return known;
        }
        let (known, name) = (self.known.clone(), host.to_owned());
        // A task of its own: the resolver's thread cannot be called back, so it holds its permit until it is done,
        // even when nobody waits for the answer any more.
        let answer = tokio::spawn(async move {
            let answer = match lookup_host((&*name, 0)).await {
                Ok(found) => {
                    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                    addresses.dedup();
                    Ok(addresses)
                }
                Err(error) => Err(format!("cannot resolve {name}: {error}")),
            };
            let mut known = known.lock();
            if known.len() >= MOST_REMEMBERED {
                known.clear();
            }
            known.insert(name, Known { at: Instant::now(), answer: answer.clone() });
            drop(asking);
            answer
        });
        answer.await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    fn remembered(&self, host: &str) -> Option<io::Result<Vec<IpAddr>>> {
        let known = self.known.lock();
        let Known { at, answer } = known.get(host)?;
        let memory = if answer.is_ok() { MEMORY } else { MEMORY_OF_FAILURE };
        (at.elapsed() < memory).then(|| answer.clone().map_err(io::Error::other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn an_address_needs_no_resolver() {
        let dialler = Dialler::new();
        dialler.questions.close();
        assert_eq!(dialler.resolve("::1").await.unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        assert!(dialler.resolve("localhost").await.is_err(), "a name does");
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_then_remembered() {
        let dialler = Dialler::new();
        let found = dialler.resolve("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
        dialler.questions.close();
        assert_eq!(dialler.resolve("localhost").await.unwrap(), found);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_ends_and_that_of_a_failure_sooner() {
        let dialler = Dialler::new();
        let remember = |name: &str, answer| {
            dialler.known.lock().insert(name.to_owned(), Known { at: Instant::now(), answer });
        };
        remember("good", Ok(vec![IpAddr::from([127, 0, 0, 1])]));
        remember("bad", Err("no such host".to_owned()));
        assert!(dialler.remembered("good").unwrap().is_ok() && dialler.remembered("bad").unwrap().is_err());
        tokio::time::advance(MEMORY_OF_FAILURE).await;
        assert!(dialler.remembered("good").is_some() && dialler.remembered("bad").is_none());
        tokio::time::advance(MEMORY).await;
        assert!(dialler.remembered("good").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_is_asked_by_a_few_and_costs_the_others_their_deadline() {
        let dialler = Dialler::new();
        let hanging = dialler.questions.clone().acquire_many_owned(u32::try_from(QUESTIONS).unwrap()).await.unwrap();
        let began = Instant::now();
        let error = dialler.tcp("localhost", 1, soon()).await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, Duration::from_secs(10)));
        assert!(dialler.known.lock().is_empty(), "nobody has asked");
        drop(hanging);
        dialler.resolve("localhost").await.unwrap();
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialler = Dialler::new();
        let addresses = vec![IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 1])];
        dialler.known.lock().insert("two".to_owned(), Known { at: Instant::now(), answer: Ok(addresses) });
        let stream = dialler.tcp("two", port, soon()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_host_without_an_address_is_an_error_that_names_it() {
        let dialler = Dialler::new();
        dialler.known.lock().insert("none".to_owned(), Known { at: Instant::now(), answer: Ok(Vec::new()) });
        let error = dialler.tcp("none", 1, soon()).await.unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
