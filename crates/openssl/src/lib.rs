//! The TLS backend of Lictor on OpenSSL 3.
//!
//! Sessions are OpenSSL's streams over two buffers in memory ([`lictor_core::engine`]), so OpenSSL does no I/O.
//!
//! Peers of the mesh are judged by [`lictor_core::verify`] alone, over OpenSSL's signature verification. The agent is
//! judged by OpenSSL in the ordinary way, by name.

#![deny(unsafe_code)]

mod context;
mod error;
mod session;
mod signature;

use std::{ptr, sync::Arc};

use lictor_core::{
    AgentContext, AgentTls, Crypto, Fips, Leaf, MeshContext, SignatureAlgorithms, TlsBackend, TlsPolicy,
    policy::SIGNATURE_SCHEMES,
    tls::{BuildError, SigningKey},
};
use openssl::{md::Md, version::version};

use crate::error::no_errors_left;

/// OpenSSL 3: the system's, or with the feature `vendored` the newest.
#[derive(Debug)]
pub struct OpensslBackend {
    algorithms: &'static SignatureAlgorithms,
}

impl OpensslBackend {
    /// Starts the library.
    ///
    /// # Errors
    /// [`BuildError`] when the library can hold nothing of the policy, as with a configuration that loads no provider.
    pub fn new() -> Result<Self, BuildError> {
        no_errors_left(|| {
            context::settings(&TlsPolicy::default())?;
            Ok(Self { algorithms: signature::algorithms() })
        })
    }
}

impl TlsBackend for OpensslBackend {
    fn name(&self) -> &'static str {
        "openssl"
    }

    fn library(&self) -> String {
        version().to_owned()
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        no_errors_left(|| {
            let (suites, groups) = (context::suites(policy), context::groups(policy));
            let missing = |wanted: Vec<&'static str>, served: &[&'static str], what: &str| -> Vec<String> {
                let left_out = wanted.into_iter().filter(|name| !served.contains(name));
                left_out.map(|name| format!("{} has no {what} {name}, so it is left out", version())).collect()
            };
            let mut differs = missing(policy.suites(), &suites, "suite");
            differs.extend(missing(policy.groups(), &groups, "group"));
            Crypto {
                backend: self.name(),
                library: self.library(),
                fips: fips(),
                versions: policy.versions(),
                suites,
                groups,
                signature_schemes: SIGNATURE_SCHEMES.to_vec(),
                differs,
            }
        })
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

/// What OpenSSL says of its FIPS provider. Whether it is used is for the machine's configuration to decide.
fn fips() -> Fips {
    let asked_for = asks_for_fips();
    // Without the provider such a configuration leaves OpenSSL with no cryptography at all.
    let there = Md::fetch(None, "SHA256", Some("provider=fips")).is_ok();
    match (asked_for, there) {
        (true, true) => Fips {
            enabled: true,
            means: "OpenSSL's FIPS provider, by the machine's OpenSSL configuration; which version of the provider, and \
                    whether there is a certificate for it, only the maker of the package can say",
            self_test: "passed: the provider checks itself when it is loaded, and is not loaded otherwise",
        },
        (_, true) => Fips {
            enabled: false,
            means: "OpenSSL's FIPS provider is loaded, but the machine's OpenSSL configuration does not ask for it",
            self_test: "passed, for a provider that is not used",
        },
        (..) => Fips { enabled: false, means: "not a FIPS module", self_test: "none" },
    }
}

/// Whether all that nobody asks for by name comes from a FIPS provider.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn asks_for_fips() -> bool {
    // SAFETY: null stands for the default library context, which is never freed.
    unsafe { openssl_sys::EVP_default_properties_is_fips_enabled(ptr::null_mut()) == 1 }
}
