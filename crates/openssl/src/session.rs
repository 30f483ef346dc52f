//! Sessions over OpenSSL's streams; what they promise is kept in [`lictor_core::engine`].

use lictor_core::{
    SessionError, TlsFacts,
    engine::{Engine, Pipe, Stop},
};
use openssl::{
    error::ErrorStack,
    ssl::{Error, Ssl, SslContextRef, SslRef, SslStream},
};

use crate::{
    context::handshaking,
    error::{internal, no_errors_left, stop},
    policy,
};

/// One connection of OpenSSL.
pub(crate) struct Session {
    stream: SslStream<Pipe>,
}

impl Session {
    /// A server at its beginning.
    pub(crate) fn accept(context: &SslContextRef) -> Result<Self, SessionError> {
        Self::begin(context, |ssl| {
            ssl.set_accept_state();
            Ok(())
        })
    }

    /// A client at its beginning, once `prepare` has said what this connection is for.
    pub(crate) fn connect(
        context: &SslContextRef,
        prepare: impl FnOnce(&mut SslRef) -> Result<(), ErrorStack>,
    ) -> Result<Self, SessionError> {
        Self::begin(context, |ssl| {
            ssl.set_connect_state();
            prepare(ssl)
        })
    }

    fn begin(
        context: &SslContextRef,
        prepare: impl FnOnce(&mut SslRef) -> Result<(), ErrorStack>,
    ) -> Result<Self, SessionError> {
        let begun = || {
            let mut ssl = Ssl::new(context)?;
            prepare(&mut ssl)?;
            Ok(Self { stream: SslStream::new(ssl, Pipe::default())? })
        };
        no_errors_left(begun).map_err(internal)
    }

    fn call<R>(&mut self, call: impl FnOnce(&mut SslStream<Pipe>) -> Result<R, Error>) -> Result<R, Stop> {
        no_errors_left(|| call(&mut self.stream).map_err(|error| stop(self.stream.ssl(), &error)))
    }
}

impl Engine for Session {
    fn pipe(&mut self) -> &mut Pipe {
        self.stream.get_mut()
    }

    fn handshake(&mut self) -> Result<(), Stop> {
        handshaking(|| self.call(SslStream::do_handshake))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Stop> {
        self.call(|stream| stream.ssl_read(into))
    }

    fn write(&mut self, plain: &[u8]) -> Result<usize, Stop> {
        self.call(|stream| stream.ssl_write(plain))
    }

    fn close(&mut self) -> Result<(), Stop> {
        self.call(SslStream::shutdown).map(|_| ())
    }

    fn resumed(&self) -> bool {
        self.stream.ssl().session_reused()
    }

    fn facts(&self) -> TlsFacts {
        policy::facts(self.stream.ssl())
    }
}
