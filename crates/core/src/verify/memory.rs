//! Remembers signatures that were good, so that a peer which comes again costs no second look at them.
//!
//! What is kept is the fact "this signature over these bytes is good under this key", which no time and no rotation
//! makes untrue. Everything else about a path, from validity to names, is judged anew each time; and that the peer
//! holds the key of its certificate is proven in its handshake, which is not remembered. A quarter of what a handshake
//! costs the server is the look at such signatures.

use std::{
    collections::HashSet,
    fmt, mem,
    sync::{Mutex, PoisonError},
};

use rustls_pki_types::SignatureVerificationAlgorithm;

/// Bytes of either generation, over which the younger becomes the older and the older is forgotten.
const MAX_GENERATION: usize = 256 * 1024;

/// One signature with all that it depends on, byte for byte. Never a digest: two that are equal are the same.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Signed(Box<[u8]>);

impl Signed {
    pub(super) fn new(
        algorithm: &dyn SignatureVerificationAlgorithm,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Self {
        let (of_key, of_signature) = (algorithm.public_key_alg_id(), algorithm.signature_alg_id());
        let parts = [of_key.as_ref(), of_signature.as_ref(), public_key, message, signature];
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| size_of::<usize>() + part.len()).sum());
        for part in parts {
            // With its length before it, no part can be taken for the end of another.
            bytes.extend_from_slice(&part.len().to_ne_bytes());
            bytes.extend_from_slice(part);
        }
        Self(bytes.into())
    }
}

/// The signatures on good paths to one list of roots, the latest few hundred of them: at most 512 KiB.
#[derive(Default)]
pub(crate) struct GoodSignatures(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashSet<Signed>,
    old: HashSet<Signed>,
    /// Bytes in `young`.
    size: usize,
}

impl GoodSignatures {
    pub(super) fn knows(&self, signed: &Signed) -> bool {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.young.contains(signed) {
            return true;
        }
        // What is still asked for grows young again.
        match generations.old.take(signed) {
            Some(known) => {
                generations.keep(known);
                true
            }
            None => false,
        }
    }

    /// Remembers the signatures of a path that was good as a whole: whoever presents one holds a certificate of the
    /// mesh, so nobody else can push out what is remembered.
    pub(super) fn remember(&self, path: impl IntoIterator<Item = Signed>) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        path.into_iter().for_each(|signed| generations.keep(signed));
    }
}

impl Generations {
    fn keep(&mut self, signed: Signed) {
        let size = signed.0.len();
        if self.size + size > MAX_GENERATION {
            self.old = mem::take(&mut self.young);
            self.size = 0;
        }
        if self.young.insert(signed) {
            self.size += size;
        }
    }
}

impl fmt::Debug for GoodSignatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GoodSignatures")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(size: usize, number: u8) -> Signed {
        Signed(vec![number; size].into())
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let memory = GoodSignatures::default();
        let favourite = signed(1024, 0);
        memory.remember([favourite.clone()]);
        for number in 1..=255 {
            for size in (8 * 1024..).take(8) {
                memory.remember([signed(size, number)]);
                assert!(memory.knows(&favourite), "forgotten at {number}");
                let generations = memory.0.lock().unwrap();
                assert!(generations.size <= MAX_GENERATION);
                assert!(generations.young.len() + generations.old.len() <= 2 * MAX_GENERATION / (8 * 1024) + 2);
            }
        }
        assert!(!memory.knows(&signed(8 * 1024, 1)), "what nobody asked for is forgotten");
    }
}
