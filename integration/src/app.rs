//! Applications behind a sidecar, and the clients of applications: plain TCP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};

use crate::wait::{self, SOON};

/// What an application does with a connection.
#[derive(Clone, Copy)]
pub(crate) enum Manner {
    /// Sends back what comes, and ends when the client ends.
    Echo,
    /// Reads to the end, then answers with this many bytes and ends.
    ReplyAfterEnd(usize),
    /// Sends a greeting before anything comes, ends its side, and then counts what comes.
    GreetAndEnd,
    /// Sends a greeting before anything comes, then echoes.
    Greet,
    /// Hands each connection to the test.
    Hand,
}

/// What [`Manner::Greet`] says.
pub(crate) const GREETING: &[u8] = b"220 ready\r\n";

/// An application that listens on loopback. It counts connections and bytes, so that a test can say that none came.
pub(crate) struct App {
    address: SocketAddr,
    counts: Arc<Counts>,
    handed: tokio::sync::Mutex<mpsc::UnboundedReceiver<TcpStream>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    bytes: AtomicU64,
}

impl App {
    /// Listens on a free port.
    pub(crate) async fn start(manner: Manner) -> Result<Self> {
        Self::start_at("127.0.0.1:0".parse()?, manner).await
    }

    /// Listens on this address.
    pub(crate) async fn start_at(address: SocketAddr, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("an application at {address}"))?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let (hand, handed) = mpsc::unbounded_channel();
        let counted = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.accepted.fetch_add(1, Ordering::Relaxed);
                if matches!(manner, Manner::Hand) {
                    let _ = hand.send(stream);
                    continue;
                }
                let counts = Arc::clone(&counted);
                tokio::spawn(async move {
                    // The client's way of ending is the test's matter, and it looks at it from the other side.
                    let _ = serve(stream, manner, &counts).await;
                });
            }
        });
        Ok(Self { address, counts, handed: tokio::sync::Mutex::new(handed), task })
    }

    pub(crate) async fn echo() -> Result<Self> {
        Self::start(Manner::Echo).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections that have come so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::Relaxed)
    }

    /// Bytes that have come so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::Relaxed)
    }

    /// The next connection of [`Manner::Hand`].
    pub(crate) async fn next(&self) -> Result<TcpStream> {
        let mut handed = self.handed.lock().await;
        wait::within("a connection at the application", SOON, handed.recv()).await?.context("the application is gone")
    }

    /// Nothing has come: neither a connection nor a byte.
    pub(crate) fn untouched(&self) -> Result<()> {
        let (accepted, bytes) = (self.accepted(), self.bytes());
        ensure!(accepted == 0 && bytes == 0, "the application saw {accepted} connections and {bytes} bytes");
        Ok(())
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, manner: Manner, counts: &Counts) -> Result<()> {
    match manner {
        Manner::Hand => Ok(()),
        Manner::Echo => echo(&mut stream, counts).await,
        Manner::Greet => {
            stream.write_all(GREETING).await?;
            echo(&mut stream, counts).await
        }
        Manner::ReplyAfterEnd(length) => {
            drain(&mut stream, counts).await?;
            stream.write_all(&pattern(length)).await?;
            stream.shutdown().await?;
            Ok(())
        }
        Manner::GreetAndEnd => {
            stream.write_all(GREETING).await?;
            stream.shutdown().await?;
            drain(&mut stream, counts).await
        }
    }
}

async fn echo(stream: &mut TcpStream, counts: &Counts) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            stream.shutdown().await?;
            return Ok(());
        }
        counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn drain(stream: &mut TcpStream, counts: &Counts) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// Bytes that are not all alike, the same for the same length.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// How the other side of a connection ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By a FIN; over TLS, by a close_notify.
    Clean,
    /// By a reset, an alert, or a FIN without close_notify.
    Broken,
}

/// Sends `bytes` and reads them back.
pub(crate) async fn echoes(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    wait::within("an echo", SOON, async {
        stream.write_all(bytes).await.context("sending")?;
        stream.flush().await.context("sending")?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).await.context("reading the echo")?;
        ensure!(back == bytes, "the echo differs");
        Ok(())
    })
    .await?
}

/// Reads to the end: what came, and how it ended.
pub(crate) async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Vec<u8>, End)> {
    let mut all = Vec::new();
    let end = wait::within("the end of a connection", SOON, async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return End::Clean,
                Ok(read) => all.extend_from_slice(&buffer[..read]),
                Err(_) => return End::Broken,
            }
        }
    })
    .await?;
    Ok((all, end))
}

/// The connection ends, cleanly or not, without a byte.
pub(crate) async fn ends_without_a_byte(stream: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let (bytes, _) = read_to_end(stream).await?;
    ensure!(bytes.is_empty(), "{} bytes came on a connection that should have been refused", bytes.len());
    Ok(())
}

/// A connection to `address` ends without a byte, be it before `connect` has returned.
pub(crate) async fn is_closed(address: SocketAddr) -> Result<()> {
    match wait::within("a connection", SOON, TcpStream::connect(address)).await? {
        Ok(mut stream) => {
            let _ = stream.write_all(b"a byte that must not arrive").await;
            ends_without_a_byte(&mut stream).await
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot connect to {address}")),
    }
}

/// The connection ends by a reset.
pub(crate) async fn is_reset(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0; 4096];
    wait::within("a reset", SOON, async {
        loop {
            match stream.read(&mut byte).await {
                Ok(0) => bail!("the connection ended cleanly, not by a reset"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => bail!("not a reset: {error}"),
            }
        }
    })
    .await?
}

/// Connects within a deadline.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = wait::within(&format!("a connection to {address}"), SOON, TcpStream::connect(address)).await?;
    stream.with_context(|| format!("cannot connect to {address}"))
}

/// Waits until somebody listens at `address`, who may close what is opened at once.
pub(crate) async fn listening(address: SocketAddr) -> Result<()> {
    wait::until(&format!("a listener at {address}"), SOON, || listens(address)).await
}

/// Somebody listens at `address` now.
pub(crate) async fn listens(address: SocketAddr) -> Result<()> {
    match TcpStream::connect(address).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).with_context(|| format!("nobody listens at {address}")),
    }
}

/// Waits until nobody listens at `address`.
pub(crate) async fn not_listening(address: SocketAddr) -> Result<()> {
    wait::until(&format!("no listener at {address}"), SOON, || async {
        match listens(address).await {
            Ok(()) => bail!("somebody listens"),
            Err(_) => Ok(()),
        }
    })
    .await
}
