//! The embedded development agent, in this process, with keys that the tests can look up.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use lictor_agent::{Acl, Agent, CaKey, Handle, KeyError, KeyMaker, Options as AgentOptions, Policy, StartError, Token};
use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

use super::{MANAGEMENT, Options, dialect};
use crate::forge::Forge;

pub(crate) struct Embedded {
    agent: Agent,
    keys: Arc<Keys>,
}

impl Embedded {
    pub(crate) async fn start(options: &Options) -> Result<Self> {
        let keys = Arc::new(Keys::default());
        let acl = options.acl.map(|default| {
            let default = if default == "allow" { Policy::Allow } else { Policy::Deny };
            Acl::new(default).with(MANAGEMENT, Token::management())
        });
        let mut start = AgentOptions {
            address: crate::ports::free()?,
            unix_socket: options.unix_socket.clone(),
            dialect: dialect(options),
            other_datacenters: options.other_datacenters.clone(),
            acl,
            ..AgentOptions::default()
        };
        if let Some(limit) = options.connection_limit {
            start.max_connections_per_client = limit;
        }
        let mut attempts = 0;
        loop {
            let maker: Arc<dyn KeyMaker> = Arc::<Keys>::clone(&keys);
            match Agent::start(start.clone(), maker).await {
                Ok(agent) => return Ok(Self { agent, keys }),
                // Another process may have taken the port since.
                Err(StartError::Listen { .. }) if attempts < 8 => start.address = crate::ports::free()?,
                Err(error) => return Err(error.into()),
            }
            attempts += 1;
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.agent.address()
    }

    pub(crate) fn handle(&self) -> Handle {
        self.agent.handle()
    }

    /// The key of the active root, found by its public point among all that were made.
    pub(crate) fn forge(&self) -> Result<Forge> {
        let root = self.agent.handle().root_pems().into_iter().next().context("an agent without a root")?;
        let point = Forge::public_point(&root)?;
        let keys = self.keys.0.lock();
        let key = keys.iter().find(|key| key.der_bytes() == point).context("the root's key was not made here")?;
        Forge::of(&root, &key.serialize_pem())
    }
}

/// Makes keys with aws-lc and remembers them.
#[derive(Default)]
struct Keys(Mutex<Vec<Arc<KeyPair>>>);

impl KeyMaker for Keys {
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError> {
        let key = KeyPair::generate().map_err(|error| KeyError(error.to_string()))?;
        let key = Arc::new(key);
        self.0.lock().push(Arc::clone(&key));
        Ok(Arc::new(Key(key)))
    }
}

struct Key(Arc<KeyPair>);

impl CaKey for Key {
    fn public_point(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(|error| KeyError(error.to_string()))
    }

    fn pkcs8_der(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.0.serialize_der())
    }
}
