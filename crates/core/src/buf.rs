//! A byte buffer with a filled window, the unit in which sessions and sockets exchange bytes.
//!
//! Sessions do no I/O: ciphertext and plaintext travel through these. A worker thread owns a few large ones and lends
//! them for one poll; what a connection must keep in between is taken out in an exact-size vector.

/// Bytes between a start and an end, in storage that grows when asked and never shrinks by itself.
#[derive(Default)]
pub struct Buf {
    storage: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buf {
    /// A buffer that holds `capacity` bytes before it has to grow.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { storage: vec![0; capacity], start: 0, end: 0 }
    }

    /// The bytes that are filled and not yet consumed.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// The same, for a library that decrypts in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.end]
    }

    /// How many bytes are filled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True when nothing is filled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Writable room of at least `min` bytes behind the filled part.
    ///
    /// Filled bytes move to the front when that makes the room; the storage grows only when it must.
    pub fn space(&mut self, min: usize) -> &mut [u8] {
        if self.storage.len() - self.end < min {
            self.storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.storage.len() - self.end < min {
                self.storage.resize(self.end + min, 0);
            }
        }
        &mut self.storage[self.end..]
    }

    /// Counts `n` bytes that were written into [`space`](Self::space) as filled.
    ///
    /// # Panics
    /// When `n` is more than the room there was, which is a fault of the caller.
    pub fn filled(&mut self, n: usize) {
        assert!(n <= self.storage.len() - self.end, "more bytes filled than there was room for");
        self.end += n;
    }

    /// Drops the first `n` filled bytes.
    ///
    /// # Panics
    /// When `n` is more than what is filled, which is a fault of the caller.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "more bytes consumed than were filled");
        self.start += n;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Appends a copy of `bytes`.
    pub fn append(&mut self, bytes: &[u8]) {
        self.space(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Forgets what is filled and keeps the storage.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Copies the filled bytes out into a vector of exactly their size and empties the buffer.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        let taken = self.data().to_vec();
        self.clear();
        taken
    }

    /// How many bytes of storage the buffer holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.storage.len()
    }
}

impl std::fmt::Debug for Buf {
    /// The size alone: the bytes may be anybody's plaintext.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len(), self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_out_in_the_order_they_went_in(steps in proptest::collection::vec((any::<Vec<u8>>(), 0usize..64), 0..40)) {
            let mut buf = Buf::with_capacity(16);
            let mut model = Vec::new();
            for (bytes, eaten) in steps {
                buf.append(&bytes);
                model.extend_from_slice(&bytes);
                let eaten = eaten.min(model.len());
                buf.consume(eaten);
                model.drain(..eaten);
                prop_assert_eq!(buf.data(), &model[..]);
            }
            prop_assert_eq!(buf.take(), model);
            prop_assert!(buf.is_empty());
        }
    }

    #[test]
    fn room_is_made_by_moving_before_growing() {
        let mut buf = Buf::with_capacity(8);
        buf.append(&[1; 8]);
        buf.consume(6);
        assert!(buf.space(6).len() >= 6);
        assert_eq!(buf.capacity(), 8);
        assert_eq!(buf.data(), [1, 1]);
    }
}
