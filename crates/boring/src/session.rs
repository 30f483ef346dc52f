//! Sessions over BoringSSL's streams; what they promise is kept in [`lictor_core::engine`].

use boring::{
    error::ErrorStack,
    fips,
    ssl::{Error, Ssl, SslContextRef, SslRef, SslStream},
};
use boring_sys as ffi;
use foreign_types::ForeignTypeRef as _;
use lictor_core::{
    SessionError, TlsFacts,
    engine::{Engine, Pipe, Stop},
};

use crate::{
    error::{internal, no_errors_left, stop},
    policy,
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

    /// Refuses what FIPS does not approve of although BoringSSL's own policy lets it pass: keys of TLS 1.2 that do not
    /// come of the whole handshake (RFC 7627). A server has refused them at the hello.
    #[expect(unsafe_code, reason = "the crate has no call for it")]
    fn must_be_approved(&self) -> Result<(), Stop> {
        // SAFETY: the pointer is that of a live connection.
        if !fips::enabled() || unsafe { ffi::SSL_get_extms_support(self.stream.ssl().as_ptr()) } == 1 {
            return Ok(());
        }
        let why = "the server does not have the extended master secret, which FIPS asks for".to_owned();
        Err(Stop::Failed(SessionError::NothingInCommon(why)))
    }

    /// Bounds what the peer may send after the handshake: nothing as large as a list of certificates.
    #[expect(unsafe_code, reason = "the crate has no call for it")]
    fn expect_small_messages(&mut self) {
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
        self.must_be_approved()
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
