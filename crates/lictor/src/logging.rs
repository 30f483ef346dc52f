//! The log: lines for people, or JSON, through a queue that never blocks the data plane.
//!
//! Standard error can be a pipe that nobody reads. A line that finds the queue full is dropped and counted, so that a
//! stuck reader costs log lines and not connections.

use std::io::{IsTerminal as _, Write};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    config::schema::Level,
    records::{OnlyRecords, Records},
    settings::Log,
};

/// How many lines may wait for a slow reader: a few seconds of a busy sidecar, some 2 MB.
const QUEUE: usize = 8192;

/// The running log. What is queued is written when it is dropped.
pub(crate) struct Logging {
    dropped: ErrorCounter,
    records: Records,
    _guard: WorkerGuard,
}

impl Logging {
    /// Begins to log to standard error.
    ///
    /// Other crates' lines below warnings stay out at every level: some of them print whole requests, tokens
    /// included.
    pub(crate) fn start(log: Log) -> Self {
        let (writer, guard) = queue(std::io::stderr());
        let dropped = writer.error_counter();
        let level = match log.level {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        };
        let targets = Targets::new()
            .with_default(tracing::Level::WARN.min(level))
            // All crates of the project: a target matches by its beginning.
            .with_target("lictor", level);
        let layer = if log.json {
            fmt::layer().json().flatten_event(true).with_writer(writer).boxed()
        } else {
            fmt::layer()
                .with_target(false)
                .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
                .with_writer(writer)
                .boxed()
        };
        // Fails only when there is a log already, which then serves as well.
        let records = Records::default();
        let _ = tracing_subscriber::registry()
            .with(layer.with_filter(targets))
            .with(records.clone().with_filter(OnlyRecords))
            .try_init();
        Self { dropped, records, _guard: guard }
    }

    /// The last connection records, whatever the level of the log.
    pub(crate) fn records(&self) -> Records {
        self.records.clone()
    }

    /// Counts the lines that were dropped.
    pub(crate) fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// A queue in front of `writer`, which drops what it cannot hold.
fn queue(writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE).thread_name("log").finish(writer)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A pipe that nobody reads until the other end of the channel goes.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_costs_lines_and_holds_nobody_up() {
        let (unstick, stuck) = channel();
        let (mut log, guard) = queue(Stuck(stuck));
        let dropped = log.error_counter();
        for _ in 0..QUEUE + 100 {
            log.write_all(b"a line\n").unwrap();
        }
        // One may be in the writer's hands.
        assert!((99..=100).contains(&dropped.dropped_lines()), "{} lines", dropped.dropped_lines());
        drop(unstick);
        drop(guard);
    }
}
