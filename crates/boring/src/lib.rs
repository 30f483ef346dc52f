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
mod session;
mod signature;

use std::sync::Arc;

use boring::{fips, version::version};
use lictor_core::{
    AgentContext, AgentTls, Crypto, Fips, Leaf, MeshContext, SignatureAlgorithms, TlsBackend, TlsPolicy,
    policy::SIGNATURE_SCHEMES,
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
    /// [`BuildError`] when this is a FIPS build and the cryptography is not the FIPS module. A module that fails its
    /// self-test ends the process before that.
    pub fn new() -> Result<Self, BuildError> {
        if cfg!(feature = "fips") && !fips::enabled() {
            let why = "this is a FIPS build, and BoringSSL says that it is not in FIPS mode".to_owned();
            return Err(BuildError::Refused { what: "policy", why });
        }
        Ok(Self { algorithms: signature::algorithms() })
    }
}

impl TlsBackend for BoringBackend {
    fn name(&self) -> &'static str {
        "boring"
    }

    fn library(&self) -> String {
        // BoringSSL has no releases. What tells one from another is the version of its interface, and of the package
        // that its sources come with.
        let package = option_env!("LICTOR_BORING_VERSION").unwrap_or("of an unrecorded version");
        format!("{}, API version {}, through boring-sys {package}", version(), boring_sys::BORINGSSL_API_VERSION)
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        let (suites, groups, schemes) =
            (context::suites(policy), context::groups(policy), context::signature_schemes());
        let missing = |wanted: Vec<&'static str>, served: &[&'static str]| -> Vec<String> {
            let left_out = wanted.into_iter().filter(|name| !served.contains(name));
            left_out.map(|name| format!("BoringSSL's FIPS policy does not admit {name}, so it is left out")).collect()
        };
        Crypto {
            backend: self.name(),
            library: self.library(),
            fips: module(),
            versions: policy.versions(),
            differs: [
                missing(policy.suites(), &suites),
                missing(policy.groups(), &groups),
                missing(SIGNATURE_SCHEMES.to_vec(), &schemes),
            ]
            .concat(),
            suites,
            groups,
            signature_schemes: schemes,
        }
    }

    fn signature_algorithms(&self) -> &SignatureAlgorithms {
        self.algorithms
    }

    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError> {
        no_errors_left(|| context::certified_key(leaf.chain(), leaf.key()).map(|_| ()))
    }

    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError> {
        no_errors_left(|| Ok(Arc::new(context::Mesh::build(leaf, policy)?) as _))
    }

    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError> {
        no_errors_left(|| Ok(Arc::new(context::Agent::build(settings)?) as _))
    }

    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError> {
        no_errors_left(|| Ok(Box::new(signature::P256::generate()?) as _))
    }
}

/// What BoringSSL says of its module.
fn module() -> Fips {
    if !fips::enabled() {
        return Fips { enabled: false, means: "not a FIPS module", self_test: "none" };
    }
    Fips {
        enabled: true,
        means: "FIPS-mode BoringCrypto of the update stream, which is built from BoringSSL as it is today; not a \
                certified snapshot",
        self_test: "passed: the module checks its own integrity when the process starts, and ends it otherwise",
    }
}
