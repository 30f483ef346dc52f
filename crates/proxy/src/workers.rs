//! The data threads: each a runtime of its own that owns its connections from accept to end.

use std::{
    fmt, io,
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    thread::JoinHandle,
};

use tokio::{runtime::Handle, sync::oneshot};

/// How many data threads there are unless somebody says otherwise. Two carry more than most services ever see and
/// leave the machine to the application; never more than there are cores.
pub const DEFAULT_WORKERS: usize = 2;

/// The most data threads that are started, whatever is asked for.
pub const MAX_WORKERS: usize = 256;

/// The data threads of a process; sidecars share them.
///
/// Dropping them stops the threads, and with them every connection that is still open.
pub struct Workers {
    threads: Vec<Thread>,
    next: AtomicUsize,
}

struct Thread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    joined: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, or as many as [`default_count`](Self::default_count) says.
    ///
    /// # Errors
    /// When the system has no thread or no epoll instance left.
    pub fn start(count: Option<usize>) -> io::Result<Self> {
        let count = count.unwrap_or_else(Self::default_count).clamp(1, MAX_WORKERS);
        let threads = (0..count).map(start_thread).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { threads, next: AtomicUsize::new(0) })
    }

    /// [`DEFAULT_WORKERS`], or the number of cores this process may use where that is less.
    #[must_use]
    pub fn default_count() -> usize {
        std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(DEFAULT_WORKERS)
    }

    /// How many threads there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// The runtimes of all threads, to give each its share of a listening socket.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.threads.iter().map(|thread| &thread.handle)
    }

    /// The runtime of the next thread in turn.
    ///
    /// # Panics
    /// Never: there is always one.
    #[must_use]
    pub fn next(&self) -> &Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.threads[next % self.threads.len()].handle
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.stop = None;
        }
        for thread in &mut self.threads {
            // A task on a data thread may hold the last reference; a thread cannot wait for itself.
            let joined = thread.joined.take().filter(|joined| joined.thread().id() != std::thread::current().id());
            if let Some(Err(_)) = joined.map(JoinHandle::join) {
                tracing::error!("a data thread had panicked");
            }
        }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({})", self.threads.len())
    }
}

fn start_thread(index: usize) -> io::Result<Thread> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let joined = std::thread::Builder::new().name(format!("lictor-data-{index}")).spawn(move || {
        // The sender is only ever dropped.
        let _ = runtime.block_on(stopped);
        // A question to the resolver that hangs must not hold up the end.
        runtime.shutdown_background();
    })?;
    Ok(Thread { handle, stop: Some(stop), joined: Some(joined) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tasks_run_on_the_thread_they_were_given_to_and_threads_end_with_their_owner() {
        let workers = Workers::start(Some(2)).unwrap();
        let names: Vec<_> = workers
            .handles()
            .map(|handle| {
                let (send, receive) = std::sync::mpsc::channel();
                handle.spawn(async move { send.send(std::thread::current().name().map(str::to_owned)) });
                receive.recv().unwrap().unwrap()
            })
            .collect();
        assert_eq!(names, ["lictor-data-0", "lictor-data-1"]);

        let (held, released) = std::sync::mpsc::channel::<()>();
        workers.next().spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(workers);
        assert!(released.recv().is_err(), "a task outlived its thread");
    }

    #[test]
    fn a_resolver_that_hangs_does_not_hold_up_the_end() {
        let workers = Workers::start(Some(1)).unwrap();
        let (release, hanging) = std::sync::mpsc::channel::<()>();
        let (began, begun) = std::sync::mpsc::channel();
        workers.next().spawn_blocking(move || {
            began.send(()).unwrap();
            hanging.recv()
        });
        begun.recv().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(workers);
            tell.send(())
        });
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(release);
    }

    #[test]
    fn counts_out_of_range_are_clamped() {
        assert_eq!(Workers::start(Some(0)).unwrap().count(), 1);
    }
}
