//! Plaintext sockets, TCP or unix, and how they end.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Idle time after which the kernel asks whether the other end is still there. No user timeout is set beside it: that
/// kills live peers that do not read.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A socket that a relay can end without losing what was written to it.
pub trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Whether the kernel has sent all that was written, so that a reset no longer throws it away.
    fn is_all_sent(&self) -> bool;
}

impl Socket for TcpStream {
    fn is_all_sent(&self) -> bool {
        let socket = SockRef::from(self);
        // With this mark at one byte a socket counts as writable when nothing waits to be sent, and not before.
        if socket.set_tcp_notsent_lowat(1).is_err() {
            return true;
        }
        let mut asked = [PollFd::new(self, PollFlags::OUT)];
        let answered = poll(&mut asked, Some(&Timespec::default())).is_ok();
        !answered || !asked[0].revents().is_empty()
    }
}

/// In memory: what was written is with the other end.
impl Socket for tokio::io::DuplexStream {
    fn is_all_sent(&self) -> bool {
        true
    }
}

/// A plaintext socket.
#[derive(Debug)]
pub enum Plain {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Socket for Plain {
    fn is_all_sent(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_all_sent(),
            // A unix socket has no queue of its own: what was written is in the reader's.
            Self::Unix(_) => true,
        }
    }
}

impl Plain {
    /// Arms the socket: from now on whatever ends it ends it by a reset, `kill -9` included, until
    /// [`end_cleanly`](Self::end_cleanly) says that both directions have ended well.
    ///
    /// A unix socket knows no reset; there a cut is seen as a write error or an early end.
    pub fn arm(&self) {
        if let Self::Tcp(stream) = self {
            reset_on_drop(stream);
        }
    }

    /// Lets the socket end by a FIN.
    pub fn end_cleanly(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(None);
        }
    }
}

/// No delay, since records are whole messages, and keep-alive. Sockets that a tuned listener accepts have it from there.
pub(crate) fn tune<S: AsFd>(socket: &S) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE / 3));
}

/// Ends a socket by a reset.
pub(crate) fn reset(stream: TcpStream) {
    reset_on_drop(&stream);
    drop(stream);
}

/// Lets a socket end by a reset as soon as it is dropped.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    async fn pair() -> (Plain, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Plain::Tcp(listener.accept().await.unwrap().0), other)
    }

    #[tokio::test]
    async fn an_armed_socket_ends_by_a_reset_until_it_may_end_cleanly() {
        let (ours, mut other) = pair().await;
        ours.arm();
        // Dropping closes the descriptor and nothing else, as the system does for a process that is killed.
        drop(ours);
        let end = other.read(&mut [0]).await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);

        let (ours, mut other) = pair().await;
        ours.arm();
        ours.end_cleanly();
        drop(ours);
        assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_peer_is_looked_after_by_keep_alive_and_never_killed_for_reading_slowly() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tune(&listener);
        let _ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let other = listener.accept().await.unwrap().0;
        let socket = SockRef::from(&other);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
