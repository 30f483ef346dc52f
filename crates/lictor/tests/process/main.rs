//! The built binary at its edges, as a child process.

mod command_line;
mod crypto;
#[cfg(feature = "dev")]
mod dev;
mod support;
