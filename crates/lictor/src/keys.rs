//! Keys for the embedded agent's certificate authority, made by the TLS backend: one cryptographic library in the
//! binary, not two.

use std::sync::Arc;

use lictor_agent::{CaKey, KeyError, KeyMaker};
use lictor_core::{TlsBackend, tls::SigningKey};

/// Makes keys with a TLS backend.
pub(crate) struct BackendKeys(pub(crate) Arc<dyn TlsBackend>);

impl KeyMaker for BackendKeys {
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError> {
        let key = self.0.generate_p256().map_err(|error| KeyError(error.to_string()))?;
        Ok(Arc::new(BackendKey(key)))
    }
}

struct BackendKey(Box<dyn SigningKey>);

impl CaKey for BackendKey {
    fn public_point(&self) -> &[u8] {
        self.0.public_point()
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign_sha256(message).map_err(|error| KeyError(error.to_string()))
    }

    fn pkcs8_der(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.0.pkcs8().secret_der().to_vec())
    }
}
