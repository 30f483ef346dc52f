//! All cases, against every agent that this machine has. See `integration/README.md`.

fn main() -> std::process::ExitCode {
    if lictor_integration::run_helper_if_asked() {
        return std::process::ExitCode::SUCCESS;
    }
    lictor_integration::run()
}
