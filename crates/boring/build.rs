//! Records which boring-sys is linked, since the library itself does not say.
//!
//! The lock file is the one place that knows. Where there is none the version stays unsaid; nothing else depends on it.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let lock = Path::new(&manifest).ancestors().map(|folder| folder.join("Cargo.lock")).find(|path| path.is_file());
    let Some(lock) = lock else { return };
    println!("cargo::rerun-if-changed={}", lock.display());
    if let Some(version) = fs::read_to_string(&lock).ok().as_deref().and_then(boring_version) {
        println!("cargo::rustc-env=LICTOR_BORING_VERSION={version}");
    }
}

/// The version of boring-sys. Cargo links at most one, since the library is named as one that cannot be there twice.
fn boring_version(lock: &str) -> Option<&str> {
    let (_, package) = lock.split_once("name = \"boring-sys\"\nversion = \"")?;
    package.split_once('"').map(|(version, _)| version)
}
