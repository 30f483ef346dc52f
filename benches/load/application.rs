//! The application behind the proxy. The first byte of a connection says what it does:
//!
//! * `e`: everything comes back;
//! * `s`: bytes without end;
//! * `k`: everything is taken;
//! * `q`: how many bytes have been taken so far over all connections (8 bytes, big-endian);
//! * `r` and a length (4 bytes, big-endian): each request of so many bytes is answered by as many.
//!
//! Bulk runs on a thread for each stream, so that a small request never waits for a turn of this process but only for
//! the processor. Connections of the other kinds share one buffer, so that ten thousand of them are cheap.

use std::{
    cell::RefCell,
    io::{self, Read, Write},
    net::{self, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::Figures;

/// The largest request that is answered.
pub(crate) const LARGEST: usize = 256 * 1024;

static TAKEN: AtomicU64 = AtomicU64::new(0);

static BYTES: [u8; LARGEST] = [0x5a; LARGEST];

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; LARGEST]);
}

pub(crate) async fn run(listen: SocketAddr) -> Result<Figures> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let listener = socket.listen(16_384)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // An end in the middle is the measuring side's to report.
        tokio::spawn(async move { serve(stream).await.ok() });
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        b'e' => {
            stream.write_all(b"e").await?;
            while let Some(count) = take(&stream).await? {
                stream.write_all(&BYTES[..count]).await?;
            }
            stream.shutdown().await
        }
        b'r' => {
            let size = stream.read_u32().await? as usize;
            if size == 0 || size > LARGEST {
                return Ok(());
            }
            let mut owed = 0;
            while let Some(count) = take(&stream).await? {
                owed += count;
                while owed >= size {
                    stream.write_all(&BYTES[..size]).await?;
                    owed -= size;
                }
            }
            stream.shutdown().await
        }
        b's' => on_a_thread(stream, |mut stream| while stream.write_all(&BYTES).is_ok() {}),
        b'k' => on_a_thread(stream, |mut stream| {
            let mut buffer = vec![0; LARGEST];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                TAKEN.fetch_add(count as u64, Ordering::Relaxed);
            }
        }),
        b'q' => stream.write_all(&TAKEN.load(Ordering::Relaxed).to_be_bytes()).await,
        _ => Ok(()),
    }
}

/// How many bytes came; none at the end.
async fn take(stream: &TcpStream) -> io::Result<Option<usize>> {
    loop {
        stream.readable().await?;
        match SHARED.with_borrow_mut(|buffer| stream.try_read(buffer)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) => return Ok(None),
            other => return other.map(Some),
        }
    }
}

fn on_a_thread(stream: TcpStream, work: impl FnOnce(net::TcpStream) + Send + 'static) -> io::Result<()> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    thread::Builder::new().spawn(move || work(stream)).map(drop)
}
