//! The rustls backend against itself, against rustls's own buffered connections, and against a forger that holds the
//! keys of a connection. All in memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod agent;
#[cfg(feature = "fips")]
mod fips;
mod handshake;
mod keys;
mod peers;
mod pki;
mod records;
