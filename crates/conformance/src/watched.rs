//! A backend with a look around each of its calls, for what a library keeps outside of its sessions.

use std::sync::Arc;

use lictor_core::{
    AgentContext, AgentSession, AgentTls, Buf, Crypto, HandshakeStep, Judge, Leaf, MeshContext, MeshSession, Progress,
    Session, SessionError, SignatureAlgorithms, TlsBackend, TlsPolicy,
    tls::{BuildError, SigningKey},
};

/// The backend `inner`, with `look` called before and after each call of it, of its contexts and of its sessions.
///
/// Before, since the end of a session may leave something, too.
pub fn watched(inner: impl TlsBackend, look: fn()) -> Arc<dyn TlsBackend> {
    Arc::new(Watched { inner, look })
}

struct Watched<T> {
    inner: T,
    look: fn(),
}

impl<T> Watched<T> {
    fn watch<R>(&self, call: impl FnOnce(&T) -> R) -> R {
        (self.look)();
        let result = call(&self.inner);
        (self.look)();
        result
    }

    fn watch_mut<R>(&mut self, call: impl FnOnce(&mut T) -> R) -> R {
        (self.look)();
        let result = call(&mut self.inner);
        (self.look)();
        result
    }

    /// What a call gave, watched as this is.
    fn around<U>(&self, inner: U) -> Watched<U> {
        Watched { inner, look: self.look }
    }
}

impl<T: TlsBackend> TlsBackend for Watched<T> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn library(&self) -> String {
        self.watch(T::library)
    }

    fn crypto(&self, policy: &TlsPolicy) -> Crypto {
        self.watch(|inner| inner.crypto(policy))
    }

    fn signature_algorithms(&self) -> &SignatureAlgorithms {
        self.inner.signature_algorithms()
    }

    fn check_key(&self, leaf: &Leaf) -> Result<(), BuildError> {
        self.watch(|inner| inner.check_key(leaf))
    }

    fn mesh_context(&self, leaf: &Leaf, policy: &TlsPolicy) -> Result<Arc<dyn MeshContext>, BuildError> {
        Ok(Arc::new(self.around(self.watch(|inner| inner.mesh_context(leaf, policy))?)))
    }

    fn agent_context(&self, settings: &AgentTls) -> Result<Arc<dyn AgentContext>, BuildError> {
        Ok(Arc::new(self.around(self.watch(|inner| inner.agent_context(settings))?)))
    }

    fn generate_p256(&self) -> Result<Box<dyn SigningKey>, BuildError> {
        self.watch(T::generate_p256)
    }
}

impl MeshContext for Watched<Arc<dyn MeshContext>> {
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError> {
        Ok(Box::new(self.around(self.watch(|inner| inner.accept())?)))
    }

    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError> {
        Ok(Box::new(self.around(self.watch(|inner| inner.connect(server_name))?)))
    }
}

impl AgentContext for Watched<Arc<dyn AgentContext>> {
    fn connect(&self, server_name: &str) -> Result<Box<dyn AgentSession>, SessionError> {
        Ok(Box::new(self.around(self.watch(|inner| inner.connect(server_name))?)))
    }
}

impl<T: Session + ?Sized> Session for Watched<Box<T>> {
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        self.watch_mut(|inner| inner.open(wire, plain, out))
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        self.watch_mut(|inner| inner.seal(plain, out))
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        self.watch_mut(|inner| inner.close(out))
    }
}

impl MeshSession for Watched<Box<dyn MeshSession>> {
    fn handshake(&mut self, judge: &Judge, wire: &mut Buf, out: &mut Buf) -> Result<HandshakeStep, SessionError> {
        self.watch_mut(|inner| inner.handshake(judge, wire, out))
    }
}

impl AgentSession for Watched<Box<dyn AgentSession>> {
    fn handshake(&mut self, wire: &mut Buf, out: &mut Buf) -> Result<bool, SessionError> {
        self.watch_mut(|inner| inner.handshake(wire, out))
    }
}
