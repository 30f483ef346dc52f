//! The large buffers, which belong to the thread and are lent to a connection for one poll.
//!
//! Size of one read and one write decides what bulk costs, more than the cipher: 256 KiB at a time is about a third of
//! the price of 8 KiB. A buffer of that size in each connection would cost 10,000 idle ones gigabytes; in each thread
//! it costs one megabyte in all.

use std::cell::RefCell;

use lictor_core::Buf;

/// Bytes that one turn reads and writes at most in each direction.
pub(crate) const LENT_BYTES: usize = 256 * 1024;

/// What a thread lends.
#[derive(Debug)]
pub(crate) struct Lent {
    /// Ciphertext that has come.
    pub(crate) wire: Buf,
    /// Plaintext, of either direction.
    pub(crate) plain: Buf,
    /// Ciphertext to send.
    pub(crate) out: Buf,
}

impl Lent {
    fn new() -> Self {
        let room = || Buf::with_capacity(LENT_BYTES + 4096);
        Self { wire: room(), plain: room(), out: room() }
    }
}

thread_local! {
    static LENT: RefCell<Lent> = RefCell::new(Lent::new());
}

/// Lends the thread's buffers, empty, for one synchronous call. Nothing inside may await or lend again.
pub(crate) fn lend<R>(call: impl FnOnce(&mut Lent) -> R) -> R {
    LENT.with_borrow_mut(|lent| {
        lent.wire.clear();
        lent.plain.clear();
        lent.out.clear();
        call(lent)
    })
}
