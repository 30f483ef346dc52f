//! What goes to standard output: lines for machines, and the words of `dev`, `validate` and `version`. The log goes to
//! standard error.

use std::{fmt, io::Write as _};

/// Prints one line. Nobody reading is no reason to fail: the pipe may be closed.
pub(crate) fn line(line: &dyn fmt::Display) {
    // In one piece, so that nothing comes between a line and its end.
    let text = format!("{line}\n");
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Prints the reason why the process ends to standard error.
pub(crate) fn failure(failure: &dyn fmt::Display) {
    note(failure);
}

/// Prints what a person should know to standard error, for commands without a log.
pub(crate) fn note(note: &dyn fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "lictor: {note}");
}
