//! The suite that every TLS backend of Lictor must pass, as functions over one trait.
//!
//! Unpublished. It makes its own certificates, keys and peers when it runs ([`certs`], [`keys`]), and judges a
//! backend by what its peers see: alerts, closed connections, an application that was never dialled. Which
//! certificates pass is one table of [`rows`], run at every level.
//!
//! [`suite`] lists the families. Each returns a [`Report`]; [`Report::conclude`] prints it as a table (with the seed of
//! what varies) and fails the test when a row failed. A row that could not be run, or that a library cannot meet
//! ([`gaps`]), is in the table as a gap, with its reason. [`report`] says how the tables of several backends become one.
//!
//! # The levels
//!
//! * [`signatures`]: a backend's signature verification; [`verifier`], [`bounds`], [`mutants`]: the verifier over it.
//! * [`handshake`], [`session`], [`policy`]: sessions in memory, both sides, TLS 1.2 and 1.3, against a peer that forges.
//! * [`agent`]: sessions with the agent, in memory.
//! * [`rotation`]: contexts and roots as they change, in memory and under load.
//! * [`paths`], [`streams`]: the inbound and outbound paths over loopback TCP.
//!
//! What a library says before our own code is asked is its own: its words, which alert, and whether there is one. The
//! class of the error and the reason that is counted are the same for all.
//!
//! # What is not tried, and why
//!
//! * P-224 keys name the curve's base point and sign nothing: no library at hand makes such a key. The leaf is refused
//!   for its curve before any of its signatures is looked at, and a CA of that curve would need one.
//! * Keys made by hand (RSA-1024, RSA-8192) and those that rustls cannot load (secp256k1) sign no handshake: the peer
//!   sends a signature that is none. All of them must be refused before it is looked at, and the rows ask for our
//!   own reason, so a backend that looked first would be found out.
//! * A72 needs a clock that stands still: the level of the paths lists it as a gap.
//! * An end of N89 by our own bound, and an empty list from a server, need no alert: rustls sends none.
//! * Vectors of other projects (x509-limbo, BetterTLS) are not imported.

#![forbid(unsafe_code)]

pub mod agent;
pub mod bounds;
pub mod certs;
pub mod der;
pub mod gaps;
pub mod handshake;
pub mod hello;
pub mod keys;
pub mod mutants;
pub mod pair;
pub mod paths;
pub mod policy;
pub mod records;
pub mod report;
pub mod rotation;
pub mod rows;
pub mod session;
pub mod sidecars;
pub mod signatures;
pub mod streams;
pub mod suite;
pub mod verifier;
pub mod watched;

pub use report::{Report, seed};
