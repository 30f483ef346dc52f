//! The data threads: each a runtime of its own that owns its connections.

use std::{io, thread};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How many data threads there are by default: two, so that one handshake flood does not stop all data, and not more,
/// since a sidecar shares its host with the service.
pub const DEFAULT_WORKERS: usize = 2;

/// A set of data threads.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<thread::JoinHandle<()>>,
    stop: CancellationToken,
}

impl Workers {
    /// Starts `count` threads, at least one and at most as many as there are cores.
    ///
    /// # Errors
    /// The system's, when a thread or its event queue cannot be made.
    pub fn start(count: usize) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let stop = CancellationToken::new();
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count.clamp(1, cores) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let stopped = stop.clone();
            let thread = thread::Builder::new().name(format!("lictor-data-{number}"));
            threads.push(thread.spawn(move || runtime.block_on(stopped.cancelled()))?);
        }
        Ok(Self { handles, threads, stop })
    }

    /// The threads' runtimes.
    pub(crate) fn all(&self) -> &[Handle] {
        &self.handles
    }
}

impl Drop for Workers {
    /// Ends the threads with all connections that are still on them.
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
