//! The TLS backend of Lictor on OpenSSL 3.
//!
//! Sessions are OpenSSL's streams over two buffers in memory ([`lictor_core::engine`]), so OpenSSL does no I/O.
//!
//! Peers of the mesh are judged by [`lictor_core::verify`] alone, over OpenSSL's signature verification. The agent is
//! judged by OpenSSL in the ordinary way, by name.
//!
//! The library is the system's, or with the feature `vendored` the newest 3.x, compiled and linked statically.

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

/// OpenSSL 3.
#[derive(Debug)]
pub struct OpensslBackend {
    algorithms: &'static SignatureAlgorithms,
}

impl OpensslBackend {
    /// Starts the library.
    ///
    /// # Errors
    /// [`BuildError`] when OpenSSL cannot do the policy, as under a configuration that loads no provider.
    pub fn new() -> Result<Self, BuildError> {
        no_errors_left(|| policy::for_the_mesh(&TlsPolicy::default()))?;
        Ok(Self { algorithms: signature::algorithms() })
    }
}

impl TlsBackend for OpensslBackend {
    fn name(&self) -> &'static str {
        "openssl"
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
