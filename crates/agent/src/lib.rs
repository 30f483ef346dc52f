//! An embedded development agent that speaks the HTTP wire of a Consul agent.
//!
//! It is an honest double: it has a certificate authority that really signs and rotates, a catalog with health
//! checks that are really performed, intentions, access control, and the blocking queries with their quirks. It
//! is made for development on one machine and for tests; it keeps everything in memory and has no peers.
//!
//! ```no_run
//! # async fn run(keys: std::sync::Arc<dyn lictor_agent::KeyMaker>) -> Result<(), Box<dyn std::error::Error>> {
//! use lictor_agent::{Agent, Options};
//!
//! let agent = Agent::start(Options::default(), keys).await?;
//! let handle = agent.handle();
//! handle.register(serde_json::json!({
//!     "Name": "web", "Port": 8080, "Connect": {"SidecarService": {}}
//! }))?;
//! handle.deny("*", "web");
//! println!("CONSUL_HTTP_ADDR={}", handle.url());
//! agent.stop().await;
//! # Ok(()) }
//! ```
//!
//! # What it plays and what not
//!
//! Two [`Dialect`]s are played, 1.22 and 1.10; `tests/captures.rs` holds its answers beside recorded ones of both.
//! A [`Handle`] (or the [`control`] listener) drives it, makes it misbehave, and shows what it has seen.
//!
//! Not played: HTTPS, gRPC, xDS; other nodes than by [`Handle::add_instance`]; a secondary datacenter's chain and
//! roots other than P-256 (the built-in CA of Consul makes P-256 by default); filter expressions (500 and a text that
//! says so); HTTP, gRPC and script checks (400); chains other than the plain one; Enterprise features (400, as in
//! CE). Key identifiers are SHA-1 of the key and not SHA-256; nobody may rely on how they were made.
//!
//! # Independence
//!
//! It depends on no other crate of this project, so that it cannot share a fault with the parsers that it is there
//! to test, and it links no cryptography: keys come from a [`KeyMaker`].

#![forbid(unsafe_code)]

mod acl;
mod agent_api;
mod answer;
mod authorize;
mod ca;
mod catalog;
mod catalog_api;
mod chain;
mod checks;
mod config_entries;
pub mod control;
mod dialect;
mod handle;
mod health;
mod intentions;
mod keys;
mod leaf;
mod managed;
mod misbehave;
mod options;
mod policy;
mod query;
mod register;
mod request;
mod roots;
mod routes;
mod server;
mod servers;
mod stats;
mod store;
mod tokens;
mod views;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;

pub use acl::{Access, Acl, Policy, Token};
pub use checks::Status;
pub use dialect::Dialect;
pub use handle::{Handle, HandleError, Instance, Issued};
pub use keys::{CaKey, KeyError, KeyMaker};
pub use leaf::LeafFault;
pub use managed::ManagedProxy;
pub use misbehave::{Calls, Fault, Rule};
pub use options::Options;
pub use roots::RootsFault;
pub use stats::{AuthorizeCall, Endpoint, Seen, Stats};

use store::Shared;

/// A running agent. Dropping it closes its sockets.
#[derive(Debug)]
pub struct Agent {
    handle: Handle,
    tasks: Vec<JoinHandle<()>>,
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address, or the path of the unix socket.
        address: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// No root could be made.
    #[error("cannot make a certificate authority: {0}")]
    Ca(String),
}

impl Agent {
    /// Makes a CA, listens, and serves until the agent is stopped or dropped. The tasks run on the current tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound or the keys for the root cannot be made.
    pub async fn start(options: Options, keys: Arc<dyn KeyMaker>) -> Result<Self, StartError> {
        let failed = |address: String| move |error| StartError::Listen { address, error };
        let address = options.address;
        let unix = options.unix_socket.clone();
        let listener = handle::listen_again(address).map_err(failed(address.to_string()))?;
        let shared = Arc::new(Shared::new(options, keys).map_err(|e| StartError::Ca(e.to_string()))?);
        let place = unix.as_ref().map_or_else(|| address.to_string(), |p| p.display().to_string());
        let handle = Handle::start(Arc::clone(&shared), listener, unix)
            .await
            .map_err(|e| StartError::Listen { address: place, error: std::io::Error::other(e.to_string()) })?;
        let mut tasks = Vec::new();
        if let Some(address) = shared.options.control {
            let place = address.to_string();
            let listener = handle::listen_again(address).map_err(failed(place.clone()))?;
            handle.set_control(listener.local_addr().map_err(failed(place))?);
            tasks.push(tokio::spawn(control::serve(handle.clone(), listener)));
        }
        tasks.push(tokio::spawn(checks::keep(Arc::clone(&shared))));
        tasks.push(tokio::spawn(leaf::keep(shared)));
        Ok(Self { handle, tasks })
    }

    /// Address of the HTTP API.
    pub fn address(&self) -> SocketAddr {
        self.handle.address()
    }

    /// A handle to drive the agent with.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Closes all sockets and ends all tasks; when it returns, the port is free.
    pub async fn stop(mut self) {
        self.handle.stop_listening().await;
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.handle.abort();
    }
}
