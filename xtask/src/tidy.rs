//! The rules of the house that no compiler checks.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    features::{CRYPTOGRAPHY, LEGAL},
    workspace::{cargo, output, root},
};

/// Which of our crates each of our crates may depend on, tests apart. What is not listed is not allowed.
const ARROWS: &[(&str, &[&str])] = &[
    ("lictor-core", &[]),
    ("lictor-agent", &[]),
    ("lictor-proxy", &["lictor-core"]),
    ("lictor-rustls", &["lictor-core"]),
    ("lictor", &["lictor-agent", "lictor-core", "lictor-proxy", "lictor-rustls"]),
    ("lictor-conformance", &["lictor-agent", "lictor-core", "lictor-proxy"]),
    ("lictor-benches", &["lictor-agent", "lictor-conformance", "lictor-core", "lictor-proxy", "lictor-rustls"]),
    ("lictor-integration", &["lictor-agent"]),
    ("xtask", &[]),
];

/// The files that every backend crate has, so that a diff of two crates is a diff of two libraries.
const BACKEND_FILES: &[&str] = &["context.rs", "error.rs", "lib.rs", "session.rs", "signature.rs"];

/// Crates in which the words of the Consul client may not appear: the data plane knows traits, not Consul.
const BLIND_TO_CONSUL: &[&str] = &["crates/proxy", "crates/rustls", "crates/conformance"];

/// Checks all rules and lists every breach.
pub(crate) fn run() -> Result<()> {
    println!("\n== tidiness");
    let mut breaches = Vec::new();
    arrows(&mut breaches)?;
    cryptography(&mut breaches)?;
    backend_files(&mut breaches)?;
    sources(&mut breaches)?;
    if breaches.is_empty() {
        println!("== tidiness: good");
        return Ok(());
    }
    for breach in &breaches {
        println!("tidy: {breach}");
    }
    bail!("{} breaches of the rules of the house", breaches.len())
}

/// Dependencies between our crates run one way.
fn arrows(breaches: &mut Vec<String>) -> Result<()> {
    let metadata: Value =
        serde_json::from_str(&output(&mut cargo(&["metadata", "--format-version=1", "--no-deps", "--locked"]))?)
            .context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        let Some((_, allowed)) = ARROWS.iter().find(|(crate_name, _)| *crate_name == name) else {
            breaches.push(format!("{name} has no line in the table of arrows (xtask/src/tidy.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if ours.contains(target) && !for_tests && !allowed.contains(&target) {
                breaches.push(format!("{name} depends on {target}, which is no arrow of the design"));
            }
        }
    }
    Ok(())
}

/// A binary built for one TLS library carries no other one's cryptography.
fn cryptography(breaches: &mut Vec<String>) -> Result<()> {
    for set in LEGAL {
        let features = format!("--features={}", set.features);
        let tree = output(&mut cargo(&[
            "tree",
            "-p",
            "lictor",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
            "--no-default-features",
            &features,
        ]))?;
        let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        for foreign in CRYPTOGRAPHY.iter().filter(|name| names.contains(**name) && !set.cryptography.contains(name)) {
            breaches.push(format!("the feature set {:?} carries {foreign}", set.features));
        }
        for wanted in set.cryptography.iter().filter(|name| !names.contains(**name)) {
            breaches
                .push(format!("the feature set {:?} does not carry {wanted}: is the table out of date?", set.features));
        }
    }
    Ok(())
}

/// Backend crates have the same files.
fn backend_files(breaches: &mut Vec<String>) -> Result<()> {
    for backend in ["rustls", "openssl", "boring"] {
        let folder = root().join("crates").join(backend).join("src");
        if !folder.exists() {
            continue;
        }
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            files.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        let wanted: BTreeSet<String> = BACKEND_FILES.iter().map(|file| (*file).to_owned()).collect();
        if files != wanted {
            breaches.push(format!("{} holds {files:?}, every backend holds {wanted:?}", folder.display()));
        }
    }
    Ok(())
}

/// Rules about the text of the sources.
fn sources(breaches: &mut Vec<String>) -> Result<()> {
    let tracked = output(Command::new("git").current_dir(root()).args(["ls-files", "*.rs"]))?;
    for path in tracked.lines() {
        let full = root().join(path);
        let Ok(text) = fs::read_to_string(&full) else { continue };
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        if is_root && path.starts_with("crates/") && !text.contains("forbid(unsafe_code)") {
            breaches.push(format!("{path} does not forbid unsafe code"));
        }
        if is_root && !text.starts_with("//!") {
            breaches.push(format!("{path} does not say what the crate is for"));
        }
        if BLIND_TO_CONSUL.iter().any(|folder| path.starts_with(folder)) && text.contains("lictor_core::consul") {
            breaches.push(format!("{path} uses core::consul; only the binary joins it to the data plane"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("#[allow(") {
                breaches.push(format!("{path}:{}: silences a lint; use #[expect(…, reason = …)]", number + 1));
            }
            if line.contains("thread::sleep")
                && (path.contains("/tests/") || path.starts_with("integration"))
                && !line.contains("// poll")
            {
                breaches.push(format!("{path}:{}: a test that sleeps; wait for an event", number + 1));
            }
        }
    }
    Ok(())
}
