//! Lictor: a sidecar proxy for Consul's service mesh.
//!
//! The binary is thin: it reads flags, variables and files ([`settings`]), joins the parts that the other crates hold
//! ([`mesh`]), shows how they are ([`admin`]) and ends with an exit code that says why ([`exit`]). The only file that
//! knows which TLS libraries are linked is [`backends`].

#![forbid(unsafe_code)]

mod admin;
mod agent_client;
#[cfg(feature = "dev")]
mod agent_command;
mod backends;
mod cli;
mod config;
mod crypto;
mod crypto_command;
mod definition;
#[cfg(feature = "dev")]
mod dev;
mod env;
mod exit;
#[cfg(feature = "dev")]
mod keys;
mod logging;
mod mesh;
mod output;
mod proxy_command;
mod records;
mod settings;
mod signals;
mod status;

use std::process::ExitCode;

use crate::{
    cli::Action,
    exit::{Exit, Failure},
    settings::Settings,
};

fn main() -> ExitCode {
    let action = match cli::parse(std::env::args_os()) {
        Ok(action) => action,
        Err(error) => {
            // Help and version go to standard output with 0, mistakes to standard error with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(action) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(action: Action) -> Result<Exit, Failure> {
    match action {
        Action::Proxy(flags) => proxy_command::run(&flags),
        #[cfg(feature = "dev")]
        Action::Dev(flags) => dev::run(flags),
        #[cfg(feature = "dev")]
        Action::Agent(flags) => agent_command::run(&flags),
        Action::Crypto(flags) => crypto_command::run(&flags),
        Action::Validate(path) => {
            let settings = Settings::of_path(&path)?;
            if settings.tls.require_fips {
                crypto::start(&settings.tls)?;
            }
            output::line(&format_args!("{} is valid: {settings}", path.display()));
            Ok(Exit::Clean)
        }
        Action::Version => {
            output::line(&format_args!("lictor {}", env!("CARGO_PKG_VERSION")));
            for backend in backends::linked() {
                let library = backend.start().map_or_else(|failure| failure.to_string(), |backend| backend.library());
                output::line(&format_args!("TLS library: {} ({library})", backend.name));
            }
            Ok(Exit::Clean)
        }
    }
}
