//! Listening sockets and their accept loops, which never end by an error.
//!
//! A socket is bound when the sidecar is told to and listens when there is something to serve with. It is cloned, not
//! bound again, for each data thread: the clones share one queue, so closing one of them resets nobody.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{config::UpstreamBind, metrics::PathMetrics, socket::tune, workers::Workers};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How many the kernel lets wait for a backlog of that size.
const MOST_WAITING: usize = BACKLOG as usize + 1;

/// The first and the longest pause after an accept that failed for want of something.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// A bound socket that does not listen yet, so that peers are refused and the address is ours.
pub(crate) enum Bound {
    Tcp(Socket),
    Unix(StdUnixListener, SocketFile),
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
        tune(&socket);
        socket.bind(&address.into())?;
        Ok(Self::Tcp(socket))
    }

    /// Binds what an upstream asks for.
    pub(crate) fn upstream(bind: &UpstreamBind) -> io::Result<Self> {
        match bind {
            UpstreamBind::Tcp(address) => Self::tcp(*address),
            UpstreamBind::Unix { path, mode } => {
                let (listener, file) = bind_unix(path, *mode)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// Begins to listen, with one clone for each data thread.
    pub(crate) fn listen(self) -> io::Result<Listening> {
        match self {
            Self::Tcp(socket) => {
                socket.listen(BACKLOG)?;
                Ok(Listening { socket: ListeningSocket::Tcp(socket.into()), file: None })
            }
            Self::Unix(listener, file) => Ok(Listening { socket: ListeningSocket::Unix(listener), file: Some(file) }),
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
    // Not waiting: a connect to a socket whose queue is full would, and a full queue is somebody's too.
    let asking = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    asking.set_nonblocking(true)?;
    match asking.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Err(in_the_way("is there and somebody listens on it")),
    }
}

/// Binds a unix socket that has its mode before anybody can find it: it is made under a name of its own and then moved
/// to its place.
fn bind_unix(path: &Path, mode: u32) -> io::Result<(StdUnixListener, SocketFile)> {
    remove_dead_socket(path)?;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Short, since the path of a socket may have 107 bytes and no more.
    let made = format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let made = path.with_file_name(made);
    remove_dead_socket(&made)?;
    let listener = StdUnixListener::bind(&made)?;
    let placed = std::fs::set_permissions(&made, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::symlink_metadata(&made))
        // Linked and not renamed, since renaming would replace what somebody else has put there meanwhile.
        .and_then(|metadata| std::fs::hard_link(&made, path).map(|()| metadata));
    let removed = std::fs::remove_file(&made);
    let metadata = placed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::ErrorKind::AddrInUse.into(),
        _ => error,
    })?;
    removed?;
    Ok((listener, SocketFile { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() }))
}

/// The file of a unix socket of ours: removed with it, as long as it is still that one.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |found: &std::fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| same(&found)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A socket that listens.
pub(crate) struct Listening {
    socket: ListeningSocket,
    file: Option<SocketFile>,
}

enum ListeningSocket {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

impl Listening {
    /// The address, where it is a TCP one.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener.local_addr().ok(),
            ListeningSocket::Unix(_) => None,
        }
    }
}

/// Accept loops on all data threads, until they are told to stop.
#[derive(Debug)]
pub(crate) struct Loops {
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Removed first, so that nobody finds a socket on which nobody accepts.
    file: Option<SocketFile>,
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
        let Listening { socket, file } = listening;
        let loops = Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), file };
        for handle in workers.handles() {
            let (stop, metrics, serve) = (loops.stop.clone(), metrics.clone(), serve.clone());
            match &socket {
                ListeningSocket::Tcp(listener) => {
                    let clone = listener.try_clone()?;
                    let accepting = async move { watched(TcpListener::from_std(clone), stop, &metrics, serve).await };
                    loops.tasks.spawn_on(accepting, handle);
                }
                ListeningSocket::Unix(listener) => {
                    let clone = listener.try_clone()?;
                    let accepting = async move { watched(UnixListener::from_std(clone), stop, &metrics, serve).await };
                    loops.tasks.spawn_on(accepting, handle);
                }
            }
        }
        loops.tasks.close();
        Ok(loops)
    }

    /// Accepts who is waiting already, closes the sockets, and returns when that is done.
    pub(crate) async fn stop(mut self) {
        self.file = None;
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What an accept loop needs of a listening socket.
trait Accept {
    /// What it accepts.
    type Accepted;

    /// The next connection. Dropping the future loses none.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Accepted>> + Send;

    /// Whoever is in the queue already, each asked for when the one before has been served; then the socket closes.
    fn waiting(self) -> impl Iterator<Item = Self::Accepted> + Send;
}

impl Accept for TcpListener {
    type Accepted = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        self.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer))
    }

    fn waiting(self) -> impl Iterator<Item = Accepted> + Send {
        // Asked without the runtime, which may not have heard yet of who has just come.
        let listener = self.into_std();
        std::iter::from_fn(move || {
            let (stream, peer) = listener.as_ref().ok()?.accept().ok()?;
            stream.set_nonblocking(true).ok()?;
            TcpStream::from_std(stream).ok().map(|stream| Accepted::Tcp(stream, peer))
        })
    }
}

impl Accept for UnixListener {
    type Accepted = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        self.accept().await.map(|(stream, _)| Accepted::Unix(stream))
    }

    fn waiting(self) -> impl Iterator<Item = Accepted> + Send {
        let listener = self.into_std();
        std::iter::from_fn(move || {
            let (stream, _) = listener.as_ref().ok()?.accept().ok()?;
            stream.set_nonblocking(true).ok()?;
            UnixStream::from_std(stream).ok().map(Accepted::Unix)
        })
    }
}

async fn watched<L: Accept>(
    listener: io::Result<L>,
    stop: CancellationToken,
    metrics: &PathMetrics,
    serve: impl Fn(L::Accepted),
) {
    match listener {
        Ok(listener) => accept_loop(listener, stop, metrics, serve).await,
        Err(error) => tracing::error!(%error, "a data thread cannot watch a listener; the others go on"),
    }
}

/// Accepts until told to stop; no error ends it.
async fn accept_loop<L: Accept>(
    listener: L,
    stop: CancellationToken,
    metrics: &PathMetrics,
    serve: impl Fn(L::Accepted),
) {
    let mut pause = PAUSE.0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => {
                metrics.accepted.add(1);
                pause = PAUSE.0;
                serve(accepted);
            }
            Err(error) => {
                metrics.accept_errors.add(1);
                // Some errors are those of one connection that went away in the queue; after those nothing is lost
                // by going on at once. The others are a want of descriptors or memory, which time may cure.
                let of_one =
                    [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
                if of_one.contains(&error.kind()) {
                    continue;
                }
                tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept; trying again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => break,
                }
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
    // Closing the last clone resets who waits in the queue, so whoever is there already is still served. No more than
    // a queue holds: a flood that keeps it full would otherwise keep this thread here.
    for accepted in listener.waiting().take(MOST_WAITING) {
        metrics.accepted.add(1);
        serve(accepted);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, os::unix::net::UnixStream as StdUnixStream};

    use parking_lot::Mutex;
    use tokio::time::Instant;

    use super::*;

    /// Gives what it was told to, then nothing; `queue` is who waits when it is told to stop.
    struct Script {
        answers: Mutex<VecDeque<io::Result<u32>>>,
        queue: Vec<u32>,
    }

    impl Accept for Script {
        type Accepted = u32;

        async fn accept(&self) -> io::Result<u32> {
            let next = self.answers.lock().pop_front();
            match next {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }

        fn waiting(self) -> impl Iterator<Item = u32> + Send {
            self.queue.into_iter()
        }
    }

    async fn run(answers: Vec<io::Result<u32>>, queue: Vec<u32>, until: u32) -> (Vec<u32>, u64, Duration) {
        let (stop, metrics, began) = (CancellationToken::new(), PathMetrics::default(), Instant::now());
        let (served, reached) = (Mutex::new(Vec::new()), Mutex::new(None));
        let serve = |number| {
            served.lock().push(number);
            if number == until {
                *reached.lock() = Some(began.elapsed());
                stop.cancel();
            }
        };
        accept_loop(Script { answers: Mutex::new(answers.into()), queue }, stop.clone(), &metrics, serve).await;
        let reached = reached.lock().expect("it came so far");
        (served.into_inner(), metrics.accept_errors.get(), reached)
    }

    fn error(number: rustix::io::Errno) -> io::Result<u32> {
        Err(io::Error::from_raw_os_error(number.raw_os_error()))
    }

    #[tokio::test(start_paused = true)]
    async fn want_of_descriptors_is_waited_out_with_growing_pauses() {
        let mut answers = vec![Ok(1)];
        answers.extend((0..20).map(|_| error(rustix::io::Errno::MFILE)));
        answers.push(Ok(2));
        let (served, errors, took) = run(answers, Vec::new(), 2).await;
        assert_eq!((served, errors), (vec![1, 2], 20));
        assert!(took > Duration::from_secs(10) && took < Duration::from_secs(20), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_makes_the_next_pause_short_again() {
        let mut answers: Vec<_> = (0..12).map(|_| error(rustix::io::Errno::NFILE)).collect();
        answers.extend([Ok(1), error(rustix::io::Errno::NOBUFS), Ok(2)]);
        let (_, _, with_relapse) = run(answers, Vec::new(), 2).await;
        let answers = (0..12).map(|_| error(rustix::io::Errno::NFILE)).chain([Ok(2)]).collect();
        let (_, _, without) = run(answers, Vec::new(), 2).await;
        assert!(with_relapse - without < Duration::from_millis(20), "{with_relapse:?} {without:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_went_away_in_the_queue_costs_no_pause() {
        let answers = vec![error(rustix::io::Errno::CONNABORTED), error(rustix::io::Errno::INTR), Ok(1)];
        let (served, errors, took) = run(answers, Vec::new(), 1).await;
        assert_eq!((served, errors, took), (vec![1], 2, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_the_queue_at_the_end_is_still_served() {
        let (served, ..) = run(vec![Ok(1)], vec![7, 8], 1).await;
        assert_eq!(served, [1, 7, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_at_the_end_is_served_no_further_than_a_queue_goes() {
        let (served, ..) = run(vec![Ok(1)], (2..100_000).collect(), 1).await;
        assert_eq!(served.len(), 1 + MOST_WAITING);
    }

    #[tokio::test]
    async fn the_clones_of_a_stopped_listener_serve_its_queue_and_free_its_port() {
        let workers = Workers::start(Some(2)).unwrap();
        let listening = Bound::tcp("127.0.0.1:0".parse().unwrap()).unwrap().listen().unwrap();
        let address = listening.local_address().unwrap();
        let metrics = Arc::new(PathMetrics::default());
        let loops = Loops::start(listening, &workers, &metrics, drop).unwrap();
        let clients: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        loops.stop().await;
        assert_eq!(metrics.accepted.get(), 50, "every connection that was made is accepted");
        assert!(std::net::TcpStream::connect(address).is_err());
        assert!(StdTcpListener::bind(address).is_ok());
        drop(clients);
    }

    #[test]
    fn a_bound_address_is_ours_and_refuses_until_it_listens() {
        let Ok(Bound::Tcp(socket)) = Bound::tcp("127.0.0.1:0".parse().unwrap()) else { panic!() };
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let refused = std::net::TcpStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn an_accepted_connection_has_what_the_listener_was_tuned_to() {
        let listening = Bound::tcp("127.0.0.1:0".parse().unwrap()).unwrap().listen().unwrap();
        let _peer = TcpStream::connect(listening.local_address().unwrap()).await.unwrap();
        let ListeningSocket::Tcp(listener) = listening.socket else { panic!("bound by TCP") };
        let Accepted::Tcp(accepted, _) = Accept::accept(&TcpListener::from_std(listener).unwrap()).await.unwrap()
        else {
            panic!("accepted by TCP")
        };
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }

    #[test]
    fn a_unix_socket_has_its_mode_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.sock");
        let bind = UpstreamBind::Unix { path: path.clone(), mode: 0o640 };
        let bound = Bound::upstream(&bind).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left there");
        StdUnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_dead_socket_of_ours_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.sock");
        let bind = UpstreamBind::Unix { path: path.clone(), mode: 0o600 };
        let kind = || Bound::upstream(&bind).map(drop).map_err(|error| error.kind());

        std::fs::write(&path, "precious").unwrap();
        assert_eq!(kind(), Err(io::ErrorKind::AddrInUse));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();

        let alive = StdUnixListener::bind(&path).unwrap();
        assert_eq!(kind(), Err(io::ErrorKind::AddrInUse));
        assert!(path.exists());
        drop(alive);
        assert_eq!(kind(), Ok(()), "the socket of a process that died is replaced");
    }

    #[test]
    fn a_socket_whose_owner_does_not_accept_is_left_alone_without_waiting_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.sock");
        let stuck = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        stuck.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        stuck.listen(0).unwrap();
        let _queued = StdUnixStream::connect(&path).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let bind = UpstreamBind::Unix { path, mode: 0o600 };
        std::thread::spawn(move || tell.send(Bound::upstream(&bind).map(drop).map_err(|error| error.kind())));
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Err(io::ErrorKind::AddrInUse)));
    }

    #[test]
    fn a_socket_that_somebody_else_put_in_its_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db.sock");
        let ours = Bound::upstream(&UpstreamBind::Unix { path: path.clone(), mode: 0o600 }).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = StdUnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
