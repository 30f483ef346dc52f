//! The TLS backend of Lictor on rustls and aws-lc.
//!
//! Sessions run on rustls's *unbuffered* connections: records are opened where they lie and sealed straight into the
//! caller's buffer, and a connection at rest holds no buffer at all. That interface asks much of its caller;
//! `session.rs` is the one place that meets it.
//!
//! Peers of the mesh are judged by [`lictor_core::verify`] alone, over aws-lc's signature verification. The agent is
//! judged by webpki in the ordinary way, by name.
//!
//! With the feature `fips` all of the cryptography, key generation and signature verification included, is that of
//! AWS-LC's FIPS module, and only what FIPS approves of is served. The ordinary AWS-LC is linked besides, unused,
//! because rustls and webpki ask for it in either build.

#![forbid(unsafe_code)]

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

/// rustls with aws-lc-rs as its cryptography.
#[derive(Debug)]
pub struct RustlsBackend {
    algorithms: SignatureAlgorithms,
}

impl RustlsBackend {
    /// Starts the library.
    ///
    /// # Errors
    /// [`BuildError`] when this is a FIPS build and the cryptography is not the FIPS module.
    pub fn new() -> Result<Self, BuildError> {
        policy::must_be_fips(policy::provider(&TlsPolicy::default(), signature::MESH_ALGORITHMS).fips())?;
        Ok(Self { algorithms: signature::algorithms() })
    }
}

impl TlsBackend for RustlsBackend {
    fn name(&self) -> &'static str {
        "rustls"
    }

    fn library(&self) -> String {
        let rustls = option_env!("LICTOR_RUSTLS_VERSION").unwrap_or("of an unrecorded version");
        let module = if aws_lc_rs::try_fips_mode().is_ok() { "AWS-LC FIPS" } else { "AWS-LC" };
        format!("rustls {rustls} with {module} {}", aws_lc_rs::awslc_version())
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        policy::crypto(self.name(), self.library(), policy)
    }

    fn signature_algorithms(&self) -> &SignatureAlgorithms {
        &self.algorithms
    }

    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError> {
        context::certified_key(leaf.chain(), leaf.key()).map(|_| ())
    }

    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError> {
        Ok(Arc::new(context::Mesh::build(leaf, policy, &self.algorithms)?))
    }

    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError> {
        Ok(Arc::new(context::Agent::build(settings)?))
    }

    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError> {
        Ok(Box::new(signature::P256::generate()?))
    }
}
