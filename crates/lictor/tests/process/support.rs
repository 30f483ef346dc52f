//! Runs the binary.

use std::{
    process::{Child, Command, Output},
    sync::OnceLock,
};

use serde_json::Value;

/// A process that does not outlive its test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The binary with these arguments and no variables.
pub(crate) fn bare(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lictor"));
    command.args(arguments.split_whitespace()).env_clear();
    command
}

/// The binary with these arguments and a TLS library, since one must be named where several are linked.
pub(crate) fn lictor(arguments: &str) -> Command {
    let mut command = bare(arguments);
    command.env("LICTOR_TLS__BACKEND", &linked()[0]);
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub(crate) fn run(arguments: &str) -> (Option<i32>, String, String) {
    ended(lictor(arguments))
}

/// The end of a command: exit code, standard output, standard error.
pub(crate) fn ended(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what it prints is UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// What `lictor crypto -json` prints when nothing chooses a library.
pub(crate) fn crypto() -> &'static Value {
    static CRYPTO: OnceLock<Value> = OnceLock::new();
    CRYPTO.get_or_init(|| {
        let (code, stdout, stderr) = ended(bare("crypto -json"));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    })
}

/// The names of the TLS libraries that are linked.
pub(crate) fn linked() -> Vec<String> {
    serde_json::from_value(crypto()["linked"].clone()).expect("a list of names")
}

/// The name of one that is not.
pub(crate) fn not_linked() -> &'static str {
    let linked = linked();
    let mut known = ["rustls", "openssl", "boring"].into_iter();
    known.find(|name| !linked.iter().any(|linked| linked == name)).expect("two of them exclude each other")
}
