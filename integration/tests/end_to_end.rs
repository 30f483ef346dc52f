//! All cases, against every agent that this machine has. See `integration/README.md`.

fn main() -> std::process::ExitCode {
    lictor_integration::run()
}
