//! Records which rustls is linked, since the library itself does not say.
//!
//! The lock file is the one place that knows. Where there is none the version stays unsaid; nothing else depends on it.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let lock = Path::new(&manifest).ancestors().map(|folder| folder.join("Cargo.lock")).find(|path| path.is_file());
    let Some(lock) = lock else { return };
    println!("cargo::rerun-if-changed={}", lock.display());
    if let Some(version) = fs::read_to_string(&lock).ok().as_deref().and_then(rustls_version) {
        println!("cargo::rustc-env=LICTOR_RUSTLS_VERSION={version}");
    }
}

/// The version of rustls that this package depends on.
fn rustls_version(lock: &str) -> Option<&str> {
    let own = packages(lock).find(|package| field(package, "name") == Some(env!("CARGO_PKG_NAME")))?;
    let meant = own.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("\"rustls")?.strip_suffix("\",")?;
        (rest.is_empty() || rest.starts_with(' ')).then_some(rest)
    })?;
    // When several versions are locked, the entry of this package names the one it means: "rustls 0.23.46".
    match meant.trim().split(' ').next() {
        Some(version) if !version.is_empty() => Some(version),
        _ => packages(lock)
            .find(|package| field(package, "name") == Some("rustls"))
            .and_then(|package| field(package, "version")),
    }
}

fn packages(lock: &str) -> impl Iterator<Item = &str> {
    lock.split("[[package]]").skip(1)
}

fn field<'a>(package: &'a str, name: &str) -> Option<&'a str> {
    package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'))
}
