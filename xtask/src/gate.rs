//! The gate: what must pass before anything lands, and its longer relatives.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    conformance,
    features::{FeatureSet, Gate, ILLEGAL, LEGAL},
    instructions, setup, symbols, tidy,
    workspace::{cargo, output, root, side_by_side, step, target},
};

/// The profile of the binary that the end-to-end tests drive: optimised, with the checks of a debug build.
const CHECKED: &str = "checked";

/// The test programs that run longest; they begin first.
const LONGEST: [&str; 3] = [" backend", " conformance", " consul_agent"];

/// The whole gate.
pub(crate) fn test() -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    tidy::run()?;
    if let Some(deny) = setup::cargo_deny() {
        let mut check = Command::new(deny);
        check.current_dir(root());
        // Advisories need a database from the network, which a gate must not depend on.
        step("licences, bans, sources", check.args(["check", "licenses", "bans", "sources"]))?;
    }
    step("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    for set in with(Gate::Full) {
        lints(set)?;
    }
    let mut docs = cargo(&["doc", "--locked", "--no-deps", "--workspace", "--document-private-items"]);
    step("docs", docs.env("RUSTDOCFLAGS", "-D warnings"))?;
    sets()?;
    let report = conformance::fresh()?;
    workspace_tests(&report)?;
    conformance::judge(&report)?;
    // The workspace has tested the binary with its default features.
    for set in with(Gate::Full).skip(1) {
        binary_tests(set)?;
    }
    for set in LEGAL.iter().filter(|set| set.gate == Gate::Conformance) {
        conformance_of(set)?;
    }
    // Two at a time: one uses a third of two cores, and three would find the time short in which things must happen.
    // Built first, so that none of them waits for cargo.
    step("end-to-end tests, built", &mut cargo(&["test", "--locked", "-p", "lictor-integration", "--no-run"]))?;
    let runs = with(Gate::Full).map(|set| end_to_end(set, &[])).collect::<Result<Vec<_>>>()?;
    side_by_side(2, runs)?;
    step(
        "benches, one round each",
        &mut cargo(&["test", "--locked", "-p", "lictor-benches", "--benches", "--profile", CHECKED]),
    )?;
    instructions::run(false)
}

/// Links every legal set and looks whose cryptography it carries; sees that the others do not build.
pub(crate) fn sets() -> Result<()> {
    illegal()?;
    LEGAL.iter().try_for_each(link)
}

/// All that the gate does to a library in full, for the FIPS builds.
pub(crate) fn fips() -> Result<()> {
    for set in LEGAL.iter().filter(|set| set.is_fips()) {
        lints(set)?;
        for (backend, variant) in set.backends() {
            let package = format!("lictor-{backend}");
            let mut tests = cargo(&["test", "--locked", "-p", &package]);
            step(&format!("tests of {package}, {}", set.name), tests.args(features_of(variant)))?;
        }
        binary_tests(set)?;
        link(set)?;
        run_end_to_end(set, &[])?;
    }
    Ok(())
}

/// The end-to-end tests over the built binary of the default features.
pub(crate) fn integration(arguments: &[String]) -> Result<()> {
    for set in with(Gate::Full) {
        build(set, CHECKED)?;
    }
    run_end_to_end(&LEGAL[0], arguments)
}

/// The binary that the end-to-end tests drive: the one that `LICTOR_BIN` names, else that of the default features.
pub(crate) fn binary_under_test() -> Result<PathBuf> {
    match std::env::var_os("LICTOR_BIN").filter(|path| !path.is_empty()) {
        Some(path) => fs::canonicalize(&path).with_context(|| format!("LICTOR_BIN: {}", PathBuf::from(path).display())),
        None => build(&LEGAL[0], CHECKED),
    }
}

/// The drills that need minutes.
pub(crate) fn drills() -> Result<()> {
    let binary = build(&LEGAL[0], CHECKED)?;
    let mut tests =
        cargo(&["test", "--locked", "-p", "lictor-integration", "--", "--ignored", "--nocapture", "--test-threads=1"]);
    tests.env("LICTOR_BIN", binary);
    step("drills", &mut tests)
}

/// Criterion, for one TLS library.
pub(crate) fn bench(backend: &str, arguments: &[String]) -> Result<()> {
    let features = format!("--features={backend}");
    let mut bench = cargo(&["bench", "--locked", "-p", "lictor-benches", "--no-default-features", &features]);
    if !arguments.is_empty() {
        bench.arg("--").args(arguments);
    }
    step(&format!("benches of {backend}"), &mut bench)
}

/// Many handshakes, good and bad, and the memory of the process after them.
pub(crate) fn soak(handshakes: u64) -> Result<()> {
    for set in with(Gate::Full) {
        for (backend, _) in set.backends() {
            let features = format!("--features={backend}");
            let count = handshakes.to_string();
            let mut soak = cargo(&["run", "--release", "--locked", "-p", "lictor-benches", "--bin", "soak"]);
            soak.args(["--no-default-features", &features, "--", &count]);
            step(&format!("{handshakes} handshakes of {backend}"), &mut soak)?;
        }
    }
    Ok(())
}

/// The conformance suite of the backends on C libraries under valgrind: no bad access, no memory lost.
///
/// Left out are the families that never reach the library's sessions or would take hours there.
pub(crate) fn sanitize(backends: &[String]) -> Result<()> {
    const LEFT_OUT: [&str; 4] = [
        "every_row_gets_its_verdict_from_the_verifier",
        "every_row_gets_its_verdict_in_the_data_plane",
        "the_search_for_a_path_stays_within_its_counted_bounds",
        "what_is_accepted_of_a_mutant_keeps_every_rule",
    ];
    if !setup::on_path("valgrind") {
        bail!("valgrind is missing: apt-get install valgrind");
    }
    for backend in backends {
        let suite = conformance::executable(backend)?;
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["-q", "--leak-check=full", "--errors-for-leak-kinds=definite", "--show-leak-kinds=definite"]);
        valgrind.args(["--error-exitcode=9", "--num-callers=30"]).arg(suite).arg("--test-threads=1");
        valgrind.args(LEFT_OUT.iter().flat_map(|family| ["--skip", family]));
        step(&format!("{backend} under valgrind"), &mut valgrind)?;
    }
    Ok(())
}

/// The release binary of each legal feature set.
pub(crate) fn dist() -> Result<()> {
    let dist = target().join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("cannot create {}", dist.display()))?;
    for set in LEGAL {
        let arguments = ["build", "--release", "--locked", "-p", "lictor", "--no-default-features", &set.argument()];
        step(set.name, &mut cargo(&arguments))?;
        let packed = dist.join(set.name);
        fs::copy(target().join("release/lictor"), &packed)
            .with_context(|| format!("cannot write {}", packed.display()))?;
        println!("{}: {}", packed.display(), output(Command::new(&packed).arg("version"))?.trim());
    }
    Ok(())
}

/// The sets that get at least this much.
fn with(gate: Gate) -> impl Iterator<Item = &'static FeatureSet> {
    LEGAL.iter().filter(move |set| set.gate >= gate)
}

fn lints(set: &FeatureSet) -> Result<()> {
    let arguments = ["clippy", "-p", "lictor", "--all-targets", "--no-default-features", &set.argument(), "--locked"];
    step(&format!("lints of {}", set.name), cargo(&arguments).args(["--", "-D", "warnings"]))
}

/// Unit, property and conformance tests, in one build of the workspace.
///
/// Cargo runs one test program after the other, and the longest of them work on one thread or wait; so they are run
/// from here, two at a time.
fn workspace_tests(report: &Path) -> Result<()> {
    const WORKSPACE: [&str; 5] = ["test", "--locked", "--workspace", "--exclude", "lictor-integration"];
    println!("\n== unit, property and conformance tests, built");
    let begun = Instant::now();
    let messages = output(cargo(&WORKSPACE).args(["--no-run", "--message-format=json-render-diagnostics"]))?;
    println!("== unit, property and conformance tests, built: good after {:.0?}", begun.elapsed());
    let mut programs: Vec<(String, Command)> = messages.lines().filter_map(|line| test_program(line, report)).collect();
    if programs.is_empty() {
        bail!("cargo names no test program");
    }
    programs.sort_by_key(|(name, _)| LONGEST.iter().position(|long| name.ends_with(long)).unwrap_or(LONGEST.len()));
    side_by_side(2, programs)?;
    step("tests in docs", cargo(&WORKSPACE).arg("--doc"))
}

/// The test program that a message of cargo's names, run as cargo would run it.
fn test_program(message: &str, report: &Path) -> Option<(String, Command)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    if message["profile"]["test"] != true {
        return None;
    }
    let mut program = Command::new(message["executable"].as_str()?);
    let package = Path::new(message["manifest_path"].as_str()?).parent()?;
    program.current_dir(package).env("CARGO_MANIFEST_DIR", package).env(conformance::REPORT, report);
    let name = format!("{} {}", package.file_name()?.display(), message["target"]["name"].as_str()?);
    Some((name, program))
}

fn binary_tests(set: &FeatureSet) -> Result<()> {
    let arguments = ["test", "--locked", "-p", "lictor", "--no-default-features", &set.argument()];
    step(&format!("tests of the binary, {}", set.name), &mut cargo(&arguments))
}

/// Links the binary, looks whose cryptography it carries, and asks it what it thinks of that.
fn link(set: &FeatureSet) -> Result<()> {
    let binary = build(set, if set.gate == Gate::Full { CHECKED } else { "dev" })?;
    symbols::check(set, &binary)?;
    let report = output(Command::new(&binary).args(["crypto", "--json"]))?;
    let report: serde_json::Value =
        serde_json::from_str(&report).with_context(|| format!("{}: lictor crypto is not JSON", set.name))?;
    let libraries = report["libraries"].as_array().context("lictor crypto lists no libraries")?;
    let said: Vec<_> = libraries.iter().map(|of| (of["backend"].as_str(), of["fips"]["enabled"].as_bool())).collect();
    let wanted: Vec<_> = set.backends().map(|(backend, _)| (Some(backend), Some(set.is_fips()))).collect();
    if said != wanted {
        bail!("{}: lictor crypto says {said:?} where this set is {wanted:?}", set.name);
    }
    Ok(())
}

/// The conformance suite in a build that is not one of the three main ones.
fn conformance_of(set: &FeatureSet) -> Result<()> {
    for (backend, variant) in set.backends() {
        let package = format!("lictor-{backend}");
        let mut tests = cargo(&["test", "--locked", "-p", &package, "--test", "conformance"]);
        step(&format!("conformance of {}", set.name), tests.args(features_of(variant)))?;
    }
    Ok(())
}

fn run_end_to_end(set: &FeatureSet, arguments: &[String]) -> Result<()> {
    let (name, mut tests) = end_to_end(set, arguments)?;
    step(&name, &mut tests)
}

/// The end-to-end tests over the binary of one set, with those of the other libraries as its peers.
fn end_to_end(set: &FeatureSet, arguments: &[String]) -> Result<(String, Command)> {
    let mut tests = cargo(&["test", "--locked", "-p", "lictor-integration"]);
    tests.env("LICTOR_BIN", build(set, CHECKED)?);
    // Those that were built before; a FIPS set may be tested without them.
    let others: Vec<String> = with(Gate::Full)
        .filter(|set| kept(set).is_file())
        .flat_map(|set| set.backends().map(|(backend, _)| format!("{backend}={}", kept(set).display())))
        .collect();
    tests.env("LICTOR_BINS", others.join(","));
    if !arguments.is_empty() {
        tests.arg("--").args(arguments);
    }
    Ok((format!("end-to-end tests of {}", set.name), tests))
}

/// Builds the binary of `set` alone, so that no test's dependency unifies its features into it.
fn build(set: &FeatureSet, profile: &str) -> Result<PathBuf> {
    let arguments = ["build", "--locked", "-p", "lictor", "--no-default-features", &set.argument(), "--profile"];
    step(&format!("the binary {}", set.name), cargo(&arguments).arg(profile))?;
    // Each set overwrites what cargo calls `lictor`.
    let made = target().join(if profile == "dev" { "debug" } else { profile }).join("lictor");
    let kept = kept(set);
    fs::create_dir_all(target().join("sets")).context("cannot create the folder for the binaries")?;
    // Renamed into its place, since the one that is there may be running.
    let new = kept.with_extension("new");
    fs::copy(&made, &new).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, &kept).with_context(|| format!("cannot name {}", kept.display()))?;
    Ok(kept)
}

/// Where the binary of `set` is kept.
fn kept(set: &FeatureSet) -> PathBuf {
    target().join("sets").join(set.name)
}

/// Feature sets that make no sense are refused by words for a person.
fn illegal() -> Result<()> {
    println!("\n== sets that must not build");
    for (features, word) in ILLEGAL {
        let mut check = cargo(&["check", "--locked", "-p", "lictor", "--no-default-features", "--features", features]);
        let result = check.stdin(Stdio::null()).output().context("cannot run cargo")?;
        let words = String::from_utf8_lossy(&result.stderr);
        if result.status.success() {
            bail!("the feature set {features:?} builds, and must not");
        }
        if !words.contains(word) {
            bail!("the feature set {features:?} does not build, but for no reason that a person understands:\n{words}");
        }
        println!("{features}: refused in words");
    }
    Ok(())
}

fn features_of(variant: Option<&str>) -> Vec<String> {
    variant.map(|variant| vec!["--features".to_owned(), variant.to_owned()]).unwrap_or_default()
}
