//! HTTPS to the agent, over the chosen library's sessions.
//!
//! It stands here because it shares the sessions, not because the data plane needed an agent: it knows a host, a
//! context and HTTP. Between HTTP and TLS lies memory and no socket, so nobody can sit in between.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use lictor_core::{
    AgentContext, AgentSession, Buf, Progress,
    transport::{Bounds, Transport, TransportError},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{dial::Dialler, relay::poll_read_into};

/// Connections that are kept for later. The caps of the calls keep them fewer.
const MOST_IDLE: usize = 16;

/// Ciphertext that is read at once: the agent's answers are small.
const READ: usize = 16 * 1024;

/// One agent over HTTPS, with its connections kept alive.
pub struct TlsTransport {
    context: Arc<dyn AgentContext>,
    host: String,
    port: u16,
    server_name: String,
    host_header: HeaderValue,
    dialler: Dialler,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl TlsTransport {
    /// An agent at `host` (a name or an address without brackets) and `port`, whose certificate must be for
    /// `server_name`.
    ///
    /// # Errors
    /// [`TransportError::Connect`] when the host cannot stand in an HTTP header.
    pub fn new(
        context: Arc<dyn AgentContext>,
        host: &str,
        port: u16,
        server_name: Option<&str>,
    ) -> Result<Self, TransportError> {
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let host_header =
            HeaderValue::from_str(&authority).map_err(|error| TransportError::Connect(error.to_string()))?;
        Ok(Self {
            context,
            host: host.to_owned(),
            port,
            server_name: server_name.unwrap_or(host).to_owned(),
            host_header,
            dialler: Dialler::new(),
            idle: Mutex::default(),
        })
    }

    async fn connect(&self, deadline: Instant) -> Result<SendRequest<Full<Bytes>>, TransportError> {
        let failed = |error: &dyn std::fmt::Display| TransportError::Connect(error.to_string());
        let stream = self.dialler.tcp(&self.host, self.port, deadline).await.map_err(|error| failed(&error))?;
        let session = self.context.connect(&self.server_name).map_err(|error| failed(&error))?;
        let stream = TlsStream::shake(stream, session).await.map_err(|error| failed(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the agent ended");
            }
        });
        Ok(sender)
    }

    /// A kept connection that is still good.
    async fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        loop {
            let mut sender = self.idle.lock().pop()?;
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn send(
        &self,
        request: &Request<Bytes>,
        bounds: Bounds,
        deadline: Instant,
    ) -> Result<Response<Bytes>, TransportError> {
        let broken = |error: &dyn std::fmt::Display| TransportError::Broken(error.to_string());
        let mut outgoing = Request::builder().method(request.method()).uri(request.uri().clone());
        if let Some(headers) = outgoing.headers_mut() {
            headers.clone_from(request.headers());
            headers.entry(header::HOST).or_insert_with(|| self.host_header.clone());
        }
        let outgoing = outgoing.body(Full::new(request.body().clone())).map_err(|error| broken(&error))?;
        let (mut sender, answer) = match self.kept().await {
            Some(mut sender) => match sender.try_send_request(outgoing).await {
                Ok(answer) => (sender, answer),
                Err(mut error) => {
                    // The agent closed a kept connection at this moment. Only a request that never left is repeated.
                    let Some(unsent) = error.take_message() else { return Err(broken(error.error())) };
                    let mut sender = self.connect(deadline).await?;
                    let answer = sender.send_request(unsent).await.map_err(|error| broken(&error))?;
                    (sender, answer)
                }
            },
            None => {
                let mut sender = self.connect(deadline).await?;
                let answer = sender.send_request(outgoing).await.map_err(|error| broken(&error))?;
                (sender, answer)
            }
        };
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, bounds.max_body).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { TransportError::TooLarge(bounds.max_body) } else { broken(&error) }
        })?;
        if sender.ready().await.is_ok() {
            let mut idle = self.idle.lock();
            if idle.len() < MOST_IDLE {
                idle.push(sender);
            }
        }
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

#[async_trait]
impl Transport for TlsTransport {
    async fn exchange(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, TransportError> {
        let deadline = Instant::now() + bounds.deadline;
        timeout_at(deadline, self.send(&request, bounds, deadline))
            .await
            .unwrap_or(Err(TransportError::Timeout(bounds.deadline)))
    }
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TlsTransport({}:{})", self.host, self.port)
    }
}

/// A session and its socket as one stream.
struct TlsStream {
    socket: TcpStream,
    session: Box<dyn AgentSession>,
    wire: Buf,
    plain: Buf,
    out: Buf,
    ended: bool,
}

impl TlsStream {
    async fn shake(mut socket: TcpStream, mut session: Box<dyn AgentSession>) -> io::Result<Self> {
        let (mut wire, mut out) = (Buf::default(), Buf::default());
        loop {
            let done = session.handshake(&mut wire, &mut out);
            socket.write_all(&out.take()).await?;
            if done.map_err(io::Error::other)? {
                break;
            }
            let n = socket.read(wire.space(READ)).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            wire.filled(n);
        }
        let mut stream = Self { socket, session, wire, plain: Buf::default(), out, ended: false };
        stream.open()?;
        Ok(stream)
    }

    fn open(&mut self) -> io::Result<()> {
        match self.session.open(&mut self.wire, &mut self.plain, &mut self.out).map_err(io::Error::other)? {
            Progress::NeedInput => {}
            Progress::PeerClosed => self.ended = true,
        }
        Ok(())
    }

    /// Sends what is sealed; ready when all of it has gone.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let n = ready!(Pin::new(&mut self.socket).poll_write(cx, self.out.data()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.consume(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.plain.is_empty() {
                let n = this.plain.len().min(buf.remaining());
                buf.put_slice(&this.plain.data()[..n]);
                this.plain.consume(n);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            // Answers that the protocol asks for must not wait for somebody to write.
            let _ = this.poll_out(cx)?;
            if ready!(poll_read_into(cx, &mut this.socket, &mut this.wire, READ)?) == 0 {
                // Without close_notify this is a cut, and half an answer is none.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.open()?;
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Nothing more is sealed while something waits, so what is held stays as large as one write.
        ready!(this.poll_out(cx))?;
        this.session.seal(bytes, &mut this.out).map_err(io::Error::other)?;
        let _ = this.poll_out(cx)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.session.close(&mut this.out).map_err(io::Error::other)?;
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
