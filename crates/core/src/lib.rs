//! What every part of Lictor agrees on: who a peer is, which certificates pass, and what the Consul agent says.
//!
//! The crate holds the identities of the mesh ([`identity`]), the one peer verifier ([`verify`]), the three traits
//! that the rest is built on ([`CertSource`], [`Authorizer`], [`TlsBackend`]) with the seam to service discovery
//! ([`Discovery`]), the rotation that keeps the last good state ([`rotation`]), and the client of the Consul agent
//! ([`consul`]).
//!
//! It links no TLS library on purpose: signatures are verified by whatever [`SignatureAlgorithms`] a backend hands
//! in, so rules of identity and policy cannot differ between libraries.
//!
//! # How trust travels
//!
//! Each step returns the value that the next one needs, so no step can be skipped:
//! agent JSON → [`Leaf`], [`Roots`] → [`Material`] → [`MeshContext`] → handshake → [`PeerProof`] → [`Permit`] →
//! dial the application → relay.

#![forbid(unsafe_code)]

pub mod authorizer;
pub mod buf;
pub mod cert_source;
pub mod consul;
pub mod discovery;
pub mod engine;
pub mod file_source;
pub mod identity;
pub mod judgement;
pub mod material;
pub mod policy;
pub mod records;
pub mod rotation;
pub mod session;
pub mod tls;
pub mod transport;
pub mod verify;

pub use authorizer::{Authorizer, Inbound, Permit, Refusal, RefusalKind};
pub use buf::Buf;
pub use cert_source::{CertSource, SourceState};
pub use discovery::{Destination, DestinationKind, Discovery, DiscoveryError, Instance};
pub use identity::{ServiceName, SpiffeId, SpiffeService, TrustDomain};
pub use judgement::{ExpectedPeer, Judge};
pub use material::{Leaf, Material, Roots};
pub use policy::{Crypto, Fips, TlsPolicy};
pub use tls::{
    AgentContext, AgentSession, AgentTls, Established, HandshakeStep, MeshContext, MeshSession, Progress, Session,
    SessionError, TlsBackend, TlsFacts,
};
pub use verify::{PeerIdentity, PeerPolicy, PeerProof, RejectReason, SignatureAlgorithms, verify_peer};
