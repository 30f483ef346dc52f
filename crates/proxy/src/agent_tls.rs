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
    AgentContext, AgentSession, Buf, Progress, SessionError,
    transport::{Bounds, Transport, TransportError},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    task::JoinHandle,
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
    idle: Mutex<Vec<Line>>,
}

/// A connection to the agent.
struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// What drives it. It ends with the connection, and knows why where the sender knows only that it ended.
    driver: JoinHandle<Result<(), hyper::Error>>,
}

impl Line {
    /// Why a request failed: the connection's own reason where there is one.
    async fn why(self, error: hyper::Error) -> String {
        drop(self.sender);
        // A request is given up only when its connection ends, and the caller's deadline bounds the wait.
        match self.driver.await {
            Ok(Err(cause)) => in_words(&cause),
            Ok(Ok(())) | Err(_) => in_words(&error),
        }
    }
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

    async fn connect(&self, deadline: Instant) -> Result<Line, TransportError> {
        let failed = |error: &dyn std::fmt::Display| TransportError::Connect(error.to_string());
        let stream = self.dialler.tcp(&self.host, self.port, deadline).await.map_err(|error| failed(&error))?;
        let session = self.context.connect(&self.server_name).map_err(|error| failed(&error))?;
        let stream = TlsStream::shake(stream, session).await.map_err(|error| failed(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        Ok(Line { sender, driver: tokio::spawn(connection) })
    }

    /// A kept connection that is still good.
    async fn kept(&self) -> Option<Line> {
        loop {
            let mut line = self.idle.lock().pop()?;
            if !line.sender.is_closed() && line.sender.ready().await.is_ok() {
                return Some(line);
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
        let (mut line, outgoing) = match self.kept().await {
            Some(line) => (line, outgoing),
            None => (self.connect(deadline).await?, outgoing),
        };
        let answer = match line.sender.try_send_request(outgoing).await {
            Ok(answer) => answer,
            Err(mut error) => {
                // The agent closed a kept connection at this moment. Only a request that never left is repeated.
                let Some(unsent) = error.take_message() else {
                    return Err(TransportError::Broken(line.why(error.into_error()).await));
                };
                line = self.connect(deadline).await?;
                match line.sender.send_request(unsent).await {
                    Ok(answer) => answer,
                    Err(error) => return Err(TransportError::Broken(line.why(error).await)),
                }
            }
        };
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, bounds.max_body).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { TransportError::TooLarge(bounds.max_body) } else { broken(&error) }
        })?;
        if line.sender.ready().await.is_ok() {
            let mut idle = self.idle.lock();
            if idle.len() < MOST_IDLE {
                idle.push(line);
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

/// The last cause of an error: those above it tell only where it struck.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// A failed session in the words of whoever set up this side. An agent's alert says what it missed.
fn tls_error(error: SessionError) -> io::Error {
    let SessionError::PeerAlert(alert) = error else { return io::Error::other(error) };
    // RFC 8446, section 6. An agent of TLS 1.2 or an older Go says 42 or 40 where ours is missing.
    let (name, instead) = match alert {
        116 => {
            ("certificate_required", "it asks for a client certificate: set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY")
        }
        40 => {
            ("handshake_failure", "it may ask for a client certificate: check CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY")
        }
        42..=46 | 48 | 49 => (
            match alert {
                42 => "bad_certificate",
                43 => "unsupported_certificate",
                44 => "certificate_revoked",
                45 => "certificate_expired",
                46 => "certificate_unknown",
                48 => "unknown_ca",
                _ => "access_denied",
            },
            "it does not accept our client certificate, or misses one: check CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY",
        ),
        70 => ("protocol_version", "it speaks no TLS version that we do"),
        112 => ("unrecognized_name", "check CONSUL_TLS_SERVER_NAME"),
        _ => ("of another kind", "its log says more"),
    };
    io::Error::other(format!("the agent closed the connection with alert {alert} {name}: {instead}"))
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
            if done.map_err(tls_error)? {
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
        match self.session.open(&mut self.wire, &mut self.plain, &mut self.out).map_err(tls_error)? {
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
        this.session.seal(bytes, &mut this.out).map_err(tls_error)?;
        let _ = this.poll_out(cx)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.session.close(&mut this.out).map_err(tls_error)?;
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
