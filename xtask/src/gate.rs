//! The gate: what must pass before anything lands, and its longer relatives.

use std::fs;

use anyhow::{Context, Result};

use crate::{
    features::LEGAL,
    setup, tidy,
    workspace::{cargo, output, step, target},
};

/// The profile of the binary that the end-to-end tests drive: optimised, with the checks of a debug build.
const CHECKED: &str = "checked";

/// The whole gate.
pub(crate) fn test() -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    tidy::run()?;
    if let Some(deny) = setup::cargo_deny() {
        let mut check = std::process::Command::new(deny);
        check.current_dir(crate::workspace::root());
        // Advisories need a database from the network, which a gate must not depend on.
        step("licences, bans, sources", check.args(["check", "licenses", "bans", "sources"]))?;
    }
    step("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    for set in LEGAL {
        let features = format!("--features={}", set.features);
        let arguments = ["clippy", "-p", "lictor", "--all-targets", "--no-default-features", &features, "--locked"];
        step(&format!("lints of {}", set.name), cargo(&arguments).args(["--", "-D", "warnings"]))?;
    }
    step(
        "unit, property and conformance tests",
        &mut cargo(&["test", "--locked", "--workspace", "--exclude", "lictor-integration"]),
    )?;
    integration(&[])?;
    let mut docs = cargo(&["doc", "--locked", "--no-deps", "--workspace", "--document-private-items"]);
    step("docs", docs.env("RUSTDOCFLAGS", "-D warnings"))?;
    step(
        "benches, one round each",
        &mut cargo(&["test", "--locked", "-p", "lictor-benches", "--benches", "--profile", CHECKED]),
    )?;
    Ok(())
}

/// The end-to-end tests over the built binary.
pub(crate) fn integration(arguments: &[String]) -> Result<()> {
    build_checked()?;
    let mut tests = cargo(&["test", "--locked", "-p", "lictor-integration"]);
    tests.env("LICTOR_BIN", target().join(CHECKED).join("lictor"));
    if !arguments.is_empty() {
        tests.arg("--").args(arguments);
    }
    step("end-to-end tests", &mut tests)
}

/// The drills that need minutes.
pub(crate) fn drills() -> Result<()> {
    build_checked()?;
    let mut tests =
        cargo(&["test", "--locked", "-p", "lictor-integration", "--", "--ignored", "--nocapture", "--test-threads=1"]);
    tests.env("LICTOR_BIN", target().join(CHECKED).join("lictor"));
    step("drills", &mut tests)
}

/// Criterion.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let mut bench = cargo(&["bench", "--locked", "-p", "lictor-benches"]);
    if !arguments.is_empty() {
        bench.arg("--").args(arguments);
    }
    step("benches", &mut bench)
}

/// The release binary of each legal feature set.
pub(crate) fn dist() -> Result<()> {
    let dist = target().join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("cannot create {}", dist.display()))?;
    for set in LEGAL {
        let features = format!("--features={}", set.features);
        step(
            set.name,
            &mut cargo(&["build", "--release", "--locked", "-p", "lictor", "--no-default-features", &features]),
        )?;
        let packed = dist.join(set.name);
        fs::copy(target().join("release/lictor"), &packed)
            .with_context(|| format!("cannot write {}", packed.display()))?;
        println!("{}: {}", packed.display(), output(std::process::Command::new(&packed).arg("version"))?.trim());
    }
    Ok(())
}

/// Builds the binary alone, so that no test's dependency unifies its features into it.
fn build_checked() -> Result<()> {
    step("the binary under test", &mut cargo(&["build", "--locked", "-p", "lictor", "--profile", CHECKED]))
}
