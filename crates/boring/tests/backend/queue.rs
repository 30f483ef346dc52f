//! BoringSSL keeps a queue of errors for each thread, and asks it what the last call has come to. What one call leaves
//! there is the failure of the next, on whatever connection: so none may leave anything.

use std::{panic::catch_unwind, sync::Arc};

use boring::{error::ErrorStack, rsa::Rsa};
use lictor_boring::BoringBackend;
use lictor_conformance::{seed, suite};
use lictor_core::{
    AgentContext, AgentSession, AgentTls, Buf, Crypto, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, Progress,
    Session, SessionError, SignatureAlgorithms, TlsBackend, TlsPolicy,
    tls::{BuildError, SigningKey},
};

/// Asserts it, and empties the queue for what follows.
pub(crate) fn nothing_is_left() {
    let left = ErrorStack::get();
    assert!(left.errors().is_empty(), "a call left behind: {left:?}");
}

#[test]
fn no_call_leaves_an_error_for_the_next_one_whatever_it_came_to() {
    let backend: Arc<dyn TlsBackend> = Arc::new(Watched(BoringBackend::new().unwrap()));
    let about_sessions =
        ["verifier", "handshake", "pieces", "ends", "versions", "verdicts", "damage", "material", "agent"];
    for family in suite::families().iter().filter(|family| about_sessions.contains(&family.name)) {
        family.run(&backend, seed()).judge();
    }
}

#[test]
fn what_is_left_is_seen() {
    Rsa::public_key_from_der_pkcs1(&[1, 2, 3]).unwrap_err().put();
    assert!(catch_unwind(nothing_is_left).is_err());
    nothing_is_left();
}

/// The backend with a look into the queue after each call, and before it, for what the end of a session left there.
struct Watched<T>(T);

fn watched<R>(call: impl FnOnce() -> R) -> R {
    nothing_is_left();
    let result = call();
    nothing_is_left();
    result
}

impl TlsBackend for Watched<BoringBackend> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn library(&self) -> String {
        watched(|| self.0.library())
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        watched(|| self.0.crypto(policy))
    }

    fn signature_algorithms(&self) -> &SignatureAlgorithms {
        self.0.signature_algorithms()
    }

    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError> {
        watched(|| self.0.check_key(leaf))
    }

    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError> {
        Ok(Arc::new(Watched(watched(|| self.0.mesh_context(leaf, policy))?)))
    }

    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError> {
        Ok(Arc::new(Watched(watched(|| self.0.agent_context(settings))?)))
    }

    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError> {
        watched(|| self.0.generate_p256())
    }
}

impl MeshContext for Watched<Arc<dyn MeshContext>> {
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError> {
        Ok(Box::new(Watched(watched(|| self.0.accept())?)))
    }

    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError> {
        Ok(Box::new(Watched(watched(|| self.0.connect(server_name))?)))
    }
}

impl AgentContext for Watched<Arc<dyn AgentContext>> {
    fn connect(&self, server_name: &str) -> Result<Box<dyn AgentSession>, SessionError> {
        Ok(Box::new(Watched(watched(|| self.0.connect(server_name))?)))
    }
}

impl<S: Session + ?Sized> Session for Watched<Box<S>> {
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        watched(|| self.0.open(wire, plain, out))
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        watched(|| self.0.seal(plain, out))
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        watched(|| self.0.close(out))
    }
}

impl MeshSession for Watched<Box<dyn MeshSession>> {
    fn handshake(&mut self, judge: &Judge, wire: &mut Buf, out: &mut Buf) -> Result<HandshakeStep, SessionError> {
        watched(|| self.0.handshake(judge, wire, out))
    }
}

impl AgentSession for Watched<Box<dyn AgentSession>> {
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError> {
        watched(|| self.0.handshake(wire, out))
    }
}
