//! OpenSSL keeps a queue of errors for each thread, and asks it what the last call has come to. What one call leaves
//! there is the failure of the next, on whatever connection: so none may leave anything.

use std::{panic::catch_unwind, sync::Arc};

use lictor_conformance::{
    report::{Outcome, Report},
    seed, suite,
};
use lictor_core::{
    AgentContext, AgentSession, AgentTls, Buf, Crypto, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, Progress,
    Session, SessionError, SignatureAlgorithms, TlsBackend, TlsPolicy,
    tls::{BuildError, SigningKey},
};
use lictor_openssl::OpensslBackend;
use openssl::{error::ErrorStack, x509::X509};

/// Asserts it, and empties the queue for what follows.
pub(crate) fn nothing_is_left() {
    let left = ErrorStack::get();
    assert!(left.errors().is_empty(), "a call left behind: {left:?}");
}

#[test]
fn no_call_leaves_an_error_for_the_next_one_whatever_it_came_to() {
    let backend: Arc<dyn TlsBackend> = Arc::new(Watched(OpensslBackend::new().unwrap()));
    // These work in other threads, or on no session at all.
    let elsewhere = ["bounds", "mutants", "paths"];
    for family in suite::families().iter().filter(|family| !elsewhere.contains(&family.name)) {
        nothing_failed(&family.run(&backend, seed()));
    }
}

#[test]
fn what_is_left_is_seen() {
    X509::from_der(b"none").map(|_| ()).unwrap_err().put();
    assert!(catch_unwind(nothing_is_left).is_err());
    nothing_is_left();
}

/// Asserts it, without a second entry in what the suite writes down.
pub(crate) fn nothing_failed(report: &Report) {
    let failed = report.lines().iter().any(|line| matches!(line.outcome, Outcome::Fail(_)));
    assert!(!failed && !report.lines().is_empty(), "{report}");
}

/// The backend with a look into the queue after each call, and before it, for what the end of a session left there.
struct Watched<T>(T);

fn watched<R>(call: impl FnOnce() -> R) -> R {
    nothing_is_left();
    let result = call();
    nothing_is_left();
    result
}

impl TlsBackend for Watched<OpensslBackend> {
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

impl<T: Session + ?Sized> Session for Watched<Box<T>> {
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
