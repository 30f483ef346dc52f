//! The suite that every TLS backend of Lictor must pass, as functions over one trait.
//!
//! Unpublished. It makes its own certificates, keys and peers when it runs ([`certs`], [`keys`]), and judges a
//! backend by what its peers see: alerts, closed connections, an application that was never dialled. Which
//! certificates pass is one table of [`rows`], run at every level.
//!
//! Each family returns a [`Report`]; [`Report::conclude`] prints it as a table (with the seed of what varies) and
//! fails the test when a row failed. A row that could not be run is in the table as a gap, with its reason.

#![forbid(unsafe_code)]

pub mod bounds;
pub mod certs;
pub mod der;
pub mod handshake;
pub mod keys;
pub mod mutants;
pub mod pair;
pub mod records;
pub mod report;
pub mod rows;
pub mod session;
pub mod sidecars;
pub mod verifier;

pub use report::{Report, seed};
