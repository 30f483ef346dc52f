//! Runs the binary.

use std::process::{Child, Command, Output};

/// A process that does not outlive its test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary with these arguments and no variables.
pub(crate) fn lictor(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lictor"));
    command.args(arguments.split_whitespace()).env_clear();
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub(crate) fn run(arguments: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = lictor(arguments).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what it prints is UTF-8");
    (status.code(), text(stdout), text(stderr))
}
