//! Sockets in memory that count how often they are called, and what drives a relay over them by hand.

use std::{
    cell::RefCell,
    future::Future,
    io,
    ops::Sub,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use lictor_proxy::{relay::Count, socket::Socket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One socket; a clone is the same one, seen from the far end.
#[derive(Clone, Default)]
pub(crate) struct Wire(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    /// What is there to read, and how much of it has been.
    input: Vec<u8>,
    read: usize,
    /// How much was written.
    written: usize,
    calls: u64,
}

impl Wire {
    /// From the far end: something comes.
    pub(crate) fn put(&self, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        assert_eq!(state.read, state.input.len(), "what came before has been read");
        state.input.clear();
        state.input.extend_from_slice(bytes);
        state.read = 0;
    }

    /// From the far end: how much has come since it was asked last.
    pub(crate) fn take(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().written)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;
        let state = &mut *state;
        let left = &state.input[state.read..];
        if left.is_empty() {
            return Poll::Pending;
        }
        let n = left.len().min(into.remaining());
        into.put_slice(&left[..n]);
        state.read += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;
        state.written += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket for Wire {
    fn is_all_sent(&self) -> bool {
        true
    }
}

/// How often sockets were read and written, in vain or not. tokio keeps some of the calls in vain from the kernel.
#[derive(Clone, Copy, Default)]
pub(crate) struct Calls(u64);

impl Calls {
    /// Those of these sockets, until now.
    pub(crate) fn of(wires: [&Wire; 2]) -> Self {
        Self(wires.iter().map(|wire| wire.0.borrow().calls).sum())
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl Sub for Calls {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self(self.0 - before.0)
    }
}

/// Counts nothing.
pub(crate) struct Nobody;

impl Count for Nobody {
    fn came_from_peer(&self, _: usize) {}
    fn went_to_peer(&self, _: usize) {}
}

/// Polls until it waits for others and no longer for itself.
pub(crate) fn drive<F: Future>(mut work: Pin<&mut F>) {
    struct Again(AtomicBool);
    impl Wake for Again {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let again = Arc::new(Again(AtomicBool::new(true)));
    let waker = Waker::from(again.clone());
    while again.0.swap(false, Ordering::Relaxed) {
        assert!(work.as_mut().poll(&mut Context::from_waker(&waker)).is_pending(), "the relay goes on");
    }
}
