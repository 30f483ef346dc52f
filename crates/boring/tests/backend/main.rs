//! What only the BoringSSL backend must be held to, beyond the conformance suite. All in memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

#[cfg(feature = "fips")]
mod fips;
mod keys;
mod queue;
mod reasons;
