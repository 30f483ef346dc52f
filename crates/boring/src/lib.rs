//! The TLS backend of Lictor on BoringSSL.
//!
//! Sessions are BoringSSL's streams over two buffers in memory ([`lictor_core::engine`]), so BoringSSL does no I/O.
//!
//! Peers of the mesh are judged by [`lictor_core::verify`] alone, over BoringSSL's signature verification. The agent is
//! judged by BoringSSL in the ordinary way, by name.
//!
//! With the feature `fips` all of the cryptography, key generation and signature verification included, is that of
//! BoringSSL's FIPS module, and only what BoringSSL's own FIPS policy admits is served.

#![deny(unsafe_code)]

mod context;
mod error;
mod policy;
mod session;
mod signature;

use std::sync::Arc;

use lictor_core::{
    AgentContext, AgentTls, Crypto, Leaf, MeshContext, SignatureAlgorithms, TlsBackend, TlsPolicy,
    tls::{BuildError, SigningKey},
};

use crate::error::no_errors_left;

/// BoringSSL.
#[derive(Debug)]
pub struct BoringBackend {
    algorithms: &'static SignatureAlgorithms,
}

impl BoringBackend {
    /// Starts the library.
    ///
    /// # Errors
    /// [`BuildError`] when this is a FIPS build and the cryptography is not the FIPS module, or when BoringSSL cannot do
    /// the policy.
    pub fn new() -> Result<Self, BuildError> {
        policy::must_be_fips()?;
        no_errors_left(|| policy::for_the_mesh(&TlsPolicy::default()))?;
        Ok(Self { algorithms: signature::algorithms() })
    }
}

impl TlsBackend for BoringBackend {
    fn name(&self) -> &'static str {
        "boring"
    }

    fn library(&self) -> String {
        policy::library()
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        no_errors_left(|| policy::crypto(self.name(), self.library(), policy))
    }

    fn signature_algorithms(&self) -> &SignatureAlgorithms {
        self.algorithms
    }

    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError> {
        no_errors_left(|| context::certified_key(leaf.chain(), leaf.key()).map(|_| ()))
    }

    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError> {
        no_errors_left(|| Ok(Arc::new(context::Mesh::build(leaf, policy, self.algorithms)?) as _))
    }

    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError> {
        no_errors_left(|| Ok(Arc::new(context::Agent::build(settings)?) as _))
    }

    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError> {
        no_errors_left(|| Ok(Box::new(signature::P256::generate()?) as _))
    }
}
