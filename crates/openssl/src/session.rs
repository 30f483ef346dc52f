//! Sessions over OpenSSL's streams; what they promise is kept in [`lictor_core::engine`].

use libc::c_long;
use lictor_core::{
    SessionError, TlsFacts,
    engine::{Engine, Pipe, Stop},
    policy::SUITES,
};
use openssl::{
    error::ErrorStack,
    ssl::{Error, Ssl, SslContextRef, SslRef, SslStream, SslVersion},
};
use openssl_sys as ffi;

use crate::error::{internal, no_errors_left, stop};

/// `SSL_CTRL_GET_NEGOTIATED_GROUP`.
const GET_NEGOTIATED_GROUP: libc::c_int = 134;

/// How OpenSSL gives a group that has no number among its objects: this and the number of the IANA registry.
const GROUP_BY_REGISTRY: c_long = 0x0100_0000;

/// X25519MLKEM768 in the IANA registry.
const REGISTRY_HYBRID: c_long = 0x11ec;

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

    /// A client at its beginning, once `prepare` has said what is particular to this connection.
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
        no_errors_left(|| {
            let mut ssl = Ssl::new(context)?;
            prepare(&mut ssl)?;
            Ok(Self { stream: SslStream::new(ssl, Pipe::default())? })
        })
        .map_err(internal)
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
        self.call(SslStream::do_handshake)
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
        TlsFacts {
            version: match ssl.version2() {
                Some(SslVersion::TLS1_2) => "TLSv1.2",
                Some(SslVersion::TLS1_3) => "TLSv1.3",
                _ => "unknown",
            },
            suite: SUITES.into_iter().find(|name| *name == suite).unwrap_or("unknown"),
            group: group_name(negotiated_group(ssl)),
        }
    }
}

/// The group of the key exchange in OpenSSL's own numbers.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn negotiated_group(ssl: &SslRef) -> c_long {
    use foreign_types::ForeignTypeRef as _;
    // SAFETY: the pointer is that of a live connection, and this command reads neither of the last two arguments.
    unsafe { ffi::SSL_ctrl(ssl.as_ptr(), GET_NEGOTIATED_GROUP, 0, std::ptr::null_mut()) }
}

fn group_name(group: c_long) -> &'static str {
    const HYBRID: c_long = GROUP_BY_REGISTRY | REGISTRY_HYBRID;
    const X25519: c_long = ffi::NID_X25519 as c_long;
    const SECP256R1: c_long = ffi::NID_X9_62_prime256v1 as c_long;
    const SECP384R1: c_long = ffi::NID_secp384r1 as c_long;
    match group {
        HYBRID => "X25519MLKEM768",
        X25519 => "x25519",
        SECP256R1 => "secp256r1",
        SECP384R1 => "secp384r1",
        _ => "unknown",
    }
}
