//! What only the OpenSSL backend must be held to, beyond the conformance suite. All in memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod bounds;
mod groups;
mod keys;
mod machine;
mod queue;
