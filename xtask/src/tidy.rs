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
    ("lictor-openssl", &["lictor-core"]),
    ("lictor-boring", &["lictor-core"]),
    ("lictor", &["lictor-agent", "lictor-boring", "lictor-core", "lictor-openssl", "lictor-proxy", "lictor-rustls"]),
    ("lictor-conformance", &["lictor-agent", "lictor-core", "lictor-proxy"]),
    (
        "lictor-benches",
        &[
            "lictor-agent",
            "lictor-boring",
            "lictor-conformance",
            "lictor-core",
            "lictor-openssl",
            "lictor-proxy",
            "lictor-rustls",
        ],
    ),
    ("lictor-integration", &["lictor-agent"]),
    ("xtask", &[]),
];

/// The files that every backend crate has, so that a diff of two crates is a diff of two libraries.
const BACKEND_FILES: &[&str] = &["context.rs", "error.rs", "lib.rs", "policy.rs", "session.rs", "signature.rs"];

/// The crates that may hold unsafe code.
const MAY_BE_UNSAFE: &[&str] = &["crates/boring/src/lib.rs", "crates/openssl/src/lib.rs"];

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
    hardening(&mut breaches)?;
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
        let tree = output(&mut cargo(&[
            "tree",
            "-p",
            "lictor",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "--format={p} {f}",
            "--no-default-features",
            &set.argument(),
        ]))?;
        if tree.contains("faults") {
            breaches.push(format!("the feature set {:?} carries faults that only the tests may turn on", set.features));
        }
        let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        for foreign in CRYPTOGRAPHY.iter().filter(|name| names.contains(**name) && !set.packages.contains(name)) {
            breaches.push(format!("the feature set {:?} carries {foreign}", set.features));
        }
        for wanted in set.packages.iter().filter(|name| !names.contains(**name)) {
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
        // The two libraries in C need some: they deny it, and say at each place why it is there.
        let rule = if MAY_BE_UNSAFE.contains(&path) { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        if is_root && path.starts_with("crates/") && !text.contains(rule) {
            breaches.push(format!("{path} does not say {rule}"));
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

/// The page that says which test stands against which danger.
const HARDENING: &str = "docs/hardening.md";

/// What that page names exists: tests by their function, files, and rows of the conformance table.
fn hardening(breaches: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root().join(HARDENING)).with_context(|| format!("cannot read {HARDENING}"))?;
    let tracked = output(Command::new("git").current_dir(root()).args(["ls-files", "--cached", "--others", "*.rs"]))?;
    let mut files = Vec::new();
    for path in tracked.lines() {
        // One that is deleted and not yet committed is still listed.
        if let Ok(text) = fs::read_to_string(root().join(path)) {
            files.push((path.to_owned(), text));
        }
    }
    for name in named(&page) {
        if !exists(name, &files) {
            breaches.push(format!("{HARDENING} names {name}, which does not exist"));
        }
    }
    for row in page.lines().filter(|line| line.starts_with("| **")) {
        let proof = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        if proof.len() < 5 || row.split(" | ").count() != 4 {
            breaches.push(format!("{HARDENING}: a danger has neither test nor reason: {row}"));
        }
    }
    Ok(())
}

/// What stands in backticks and is a test, a file or a row.
fn named(page: &str) -> impl Iterator<Item = &str> {
    let quoted = page.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.filter(|text| !text.contains('…') && (text.contains("::") || text.ends_with(".rs") || is_row(text)))
}

/// `P16`, `N90a`.
fn is_row(text: &str) -> bool {
    let digits = text.trim_start_matches(['A', 'N', 'P']).trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    text.len() - digits.len() <= 2 && digits.len() == 2 && digits.chars().all(|digit| digit.is_ascii_digit())
}

/// Whether there is such a thing in `files`, which are pairs of path and text.
fn exists(name: &str, files: &[(String, String)]) -> bool {
    let Some((module, function)) = name.rsplit_once("::") else {
        return if is_row(name) {
            let row = format!("\"{name}\" \"");
            files.iter().any(|(path, text)| path.ends_with("conformance/src/rows.rs") && text.contains(&row))
        } else {
            files.iter().any(|(path, _)| path == name)
        };
    };
    let (package, module) = module.split_once("::").unwrap_or((module, ""));
    let module = module.replace("::", "/");
    let places = ["src", "tests"].map(|kind| format!("crates/{package}/{kind}/{module}"));
    let endings = [".rs", "/mod.rs", "/tests.rs"];
    let function = format!("fn {function}(");
    files.iter().any(|(path, text)| {
        let is_place = |place: &String| path.strip_prefix(place).is_some_and(|ending| endings.contains(&ending));
        places.iter().any(is_place) && text.lines().any(|line| is_test(line, &function))
    })
}

/// Whether this line begins `function`, given as `fn name(`, or names it in the list of the conformance suite's families.
fn is_test(line: &str, function: &str) -> bool {
    let line = line.trim_start();
    let name = function.trim_start_matches("fn ").trim_end_matches('(');
    let is_family = line.starts_with('"') && line.split(' ').any(|word| word.strip_suffix(':') == Some(name));
    is_family || line.trim_start_matches("async ").starts_with(function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_on_hardening_names_exists() {
        let mut breaches = Vec::new();
        hardening(&mut breaches).unwrap();
        assert!(breaches.is_empty(), "{breaches:#?}");
    }

    #[test]
    fn a_name_is_found_where_it_says_and_nowhere_else() {
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let files = [
            file("crates/proxy/src/relay/tests.rs", "#[test]\nfn it_holds() {}"),
            file("crates/core/tests/slot.rs", "    async fn it_waits() {}"),
            file("crates/conformance/src/rows.rs", "\"P16\" \"a row\": Accept"),
            file("crates/conformance/src/suite.rs", "    \"ends\" it_ends: run;"),
        ];
        for name in [
            "conformance::suite::it_ends",
            "proxy::relay::it_holds",
            "core::slot::it_waits",
            "P16",
            "crates/core/tests/slot.rs",
        ] {
            assert!(exists(name, &files), "{name}");
        }
        for name in ["core::relay::it_holds", "core::slot::it_wait", "P17", "crates/core/src/slot.rs", "slot::x"] {
            assert!(!exists(name, &files), "{name}");
        }
        let page = "`a word` `P16` `N90a` `core::x::y` `core::x::…` `src/a.rs` `P1`";
        assert_eq!(named(page).collect::<Vec<_>>(), ["P16", "N90a", "core::x::y", "src/a.rs"]);
    }
}
