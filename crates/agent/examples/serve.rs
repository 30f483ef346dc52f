//! Runs the agent on fixed ports until it is interrupted: `cargo run -p lictor-agent --example serve [PORT] [old]`.
//!
//! The HTTP API stands on PORT (8500), the control listener on the port after it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use lictor_agent::{Agent, CaKey, Dialect, KeyError, KeyMaker, Options};
use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

struct Keys;

impl KeyMaker for Keys {
    fn p256(&self) -> Result<Arc<dyn CaKey>, KeyError> {
        let pair = KeyPair::generate().map_err(|e| KeyError(e.to_string()))?;
        Ok(Arc::new(Key(pair)))
    }
}

struct Key(KeyPair);

impl CaKey for Key {
    fn public_point(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn sign_sha256(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message).map_err(|e| KeyError(e.to_string()))
    }

    fn pkcs8_der(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.0.serialize_der())
    }
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example speaks to the person who runs it")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = match arguments.next() {
        Some(port) => port.parse()?,
        None => 8500,
    };
    let dialect = match arguments.next().as_deref() {
        Some("old") => Dialect::Old,
        _ => Dialect::Today,
    };
    let options = Options {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        control: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1))),
        dialect,
        ..Options::default()
    };
    let agent = Agent::start(options, Arc::new(Keys)).await?;
    println!("CONSUL_HTTP_ADDR={}", agent.address());
    std::future::pending().await
}
