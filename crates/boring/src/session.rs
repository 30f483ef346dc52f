//! Sessions over BoringSSL's streams; what they promise is kept in [`lictor_core::engine`].

use boring::{
    error::ErrorStack,
    ssl::{Error, Ssl, SslContextRef, SslRef, SslStream, SslVersion},
};
use boring_sys as ffi;
use lictor_core::{
    SessionError, TlsFacts,
    engine::{Engine, Pipe, Stop},
    policy::SUITES,
};

use crate::{
    context::GROUPS,
    error::{internal, no_errors_left, stop},
};

/// One connection of BoringSSL.
///
/// It has no `Debug`, and must not: the crate would ask the connection for what one with the mesh does not hold.
pub(crate) struct Session {
    stream: SslStream<Pipe>,
    role: Role,
}

#[derive(Clone, Copy)]
enum Role {
    Server,
    Client,
}

impl Session {
    /// A server at its beginning.
    pub(crate) fn accept(context: &SslContextRef) -> Result<Self, SessionError> {
        Self::begin(context, Role::Server, |_| Ok(()))
    }

    /// A client at its beginning, once `prepare` has said what is particular to this connection.
    pub(crate) fn connect(
        context: &SslContextRef,
        prepare: impl FnOnce(&mut SslRef) -> Result<(), ErrorStack>,
    ) -> Result<Self, SessionError> {
        Self::begin(context, Role::Client, prepare)
    }

    fn begin(
        context: &SslContextRef,
        role: Role,
        prepare: impl FnOnce(&mut SslRef) -> Result<(), ErrorStack>,
    ) -> Result<Self, SessionError> {
        no_errors_left(|| {
            let mut ssl = Ssl::new(context)?;
            prepare(&mut ssl)?;
            Ok(Self { stream: SslStream::new(ssl, Pipe::default())?, role })
        })
        .map_err(internal)
    }

    fn call<R>(&mut self, call: impl FnOnce(&mut SslStream<Pipe>) -> Result<R, Error>) -> Result<R, Stop> {
        no_errors_left(|| call(&mut self.stream).map_err(|error| stop(self.stream.ssl(), &error)))
    }

    /// Bounds what the peer may send after the handshake: nothing as large as a list of certificates.
    #[expect(unsafe_code, reason = "the crate has no call for it")]
    fn expect_small_messages(&mut self) {
        use foreign_types::ForeignTypeRef as _;
        // SAFETY: the pointer is that of a live connection, and the call writes no more than a number into it.
        unsafe { ffi::SSL_set_max_cert_list(self.stream.ssl().as_ptr(), 0) }
    }
}

impl Engine for Session {
    fn pipe(&mut self) -> &mut Pipe {
        self.stream.get_mut()
    }

    fn handshake(&mut self) -> Result<(), Stop> {
        let role = self.role;
        self.call(|stream| match role {
            Role::Server => stream.accept(),
            Role::Client => stream.connect(),
        })?;
        self.expect_small_messages();
        Ok(())
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
        let ssl = self.stream.ssl();
        let suite = ssl.current_cipher().and_then(|cipher| cipher.standard_name()).unwrap_or_default();
        let group = ssl.curve_name().unwrap_or_default();
        TlsFacts {
            version: match ssl.version2() {
                Some(SslVersion::TLS1_2) => "TLSv1.2",
                Some(SslVersion::TLS1_3) => "TLSv1.3",
                _ => "unknown",
            },
            suite: SUITES.into_iter().find(|name| *name == suite).unwrap_or("unknown"),
            group: GROUPS.into_iter().find(|(_, called)| *called == group).map_or("unknown", |(name, _)| name),
        }
    }
}
