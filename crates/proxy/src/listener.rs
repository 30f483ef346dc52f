//! Listening sockets and their accept loops, which never end by an error.
//!
//! A socket is bound when the sidecar is told to and listens when there is something to serve with. It is cloned, not
//! bound again, for each data thread: the clones share one queue, so closing one of them resets nobody.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::UpstreamBind, metrics::PathMetrics, workers::Workers};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The first and the longest pause after an accept that failed for want of something.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A bound socket that does not listen yet, so that peers are refused and the address is ours.
pub(crate) enum Bound {
    Tcp(Socket),
    Unix(StdUnixListener),
}

/// What an accept loop hands on.
pub(crate) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Bound {
    /// Binds a TCP address.
    pub(crate) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(Self::Tcp(socket))
    }

    /// Binds what an upstream asks for.
    pub(crate) fn upstream(bind: &UpstreamBind) -> io::Result<Self> {
        match bind {
            UpstreamBind::Tcp(address) => Self::tcp(*address),
            UpstreamBind::Unix { path, mode } => {
                remove_dead_socket(path)?;
                let listener = StdUnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener))
            }
        }
    }

    /// Begins to listen, with one clone for each data thread.
    pub(crate) fn listen(self) -> io::Result<Listening> {
        match self {
            Self::Tcp(socket) => {
                socket.listen(BACKLOG)?;
                Ok(Listening::Tcp(socket.into()))
            }
            Self::Unix(listener) => Ok(Listening::Unix(listener)),
        }
    }
}

/// Removes a unix socket that is ours and on which nobody listens; anything else stays and is an error.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let in_the_way = |why| io::Error::new(io::ErrorKind::AddrInUse, format!("{} {why}", path.display()));
    if !metadata.file_type().is_socket() {
        return Err(in_the_way("is there and is no socket"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(in_the_way("is there and belongs to another user"));
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(in_the_way("is there and somebody listens on it")),
    }
}

/// A socket that listens.
pub(crate) enum Listening {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

impl Listening {
    /// The address, where it is a TCP one.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

/// Accept loops on all data threads, until they are told to stop.
#[derive(Debug)]
pub(crate) struct Loops {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Loops {
    /// Starts a loop on each data thread.
    pub(crate) fn start<F>(
        listening: Listening,
        workers: &Workers,
        metrics: &Arc<PathMetrics>,
        serve: F,
    ) -> io::Result<Self>
    where
        F: Fn(Accepted) + Clone + Send + Sync + 'static,
    {
        let loops = Self { stop: CancellationToken::new(), tasks: TaskTracker::new() };
        for handle in workers.handles() {
            let clone = match &listening {
                Listening::Tcp(listener) => Listening::Tcp(listener.try_clone()?),
                Listening::Unix(listener) => Listening::Unix(listener.try_clone()?),
            };
            let (stop, metrics, serve) = (loops.stop.clone(), metrics.clone(), serve.clone());
            loops.tasks.spawn_on(accept_loop(clone, stop, metrics, serve), handle);
        }
        loops.tasks.close();
        Ok(loops)
    }

    /// Accepts who is waiting already, closes the sockets, and returns when that is done.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

async fn accept_loop(
    listening: Listening,
    stop: CancellationToken,
    metrics: Arc<PathMetrics>,
    serve: impl Fn(Accepted),
) {
    let listener = match listening {
        Listening::Tcp(listener) => TcpListener::from_std(listener).map(Listener::Tcp),
        Listening::Unix(listener) => UnixListener::from_std(listener).map(Listener::Unix),
    };
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a data thread cannot watch a listener; the others go on");
            return;
        }
    };
    let mut pause = PAUSE.0;
    let mut stopping = false;
    loop {
        let accepted = if stopping {
            // Closing the last clone resets who waits in the queue, so whoever is there already is still served.
            match futures_util::FutureExt::now_or_never(listener.accept()) {
                Some(accepted) => accepted,
                None => return,
            }
        } else {
            tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => {
                    stopping = true;
                    continue;
                }
            }
        };
        match accepted {
            Ok(accepted) => {
                metrics.accepted.add(1);
                pause = PAUSE.0;
                serve(accepted);
            }
            Err(error) => {
                metrics.accept_errors.add(1);
                if stopping {
                    return;
                }
                // Some errors are those of one connection that went away in the queue; after those nothing is lost
                // by going on at once. The others are a want of descriptors or memory, which time may cure.
                let of_one =
                    [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
                if !of_one.contains(&error.kind()) {
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }
}
