//! Guards of the hot paths: what each costs in instructions, allocations and calls of sockets, beside what it should.
//!
//! A bench executable runs the paths under callgrind, which counts instead of timing, so a busy machine changes nothing.
//! What is left of noise: keys and signatures differ from run to run, and so do the seeds of hash tables. Instructions of
//! Rust code are counted apart from those of C: libraries choose their code by the processor. Valgrind shows them one
//! of its own, the same on every host that has AVX2; where it is another one, C is not compared.
//!
//! What costs more than it should, by more than noise can be, fails. What costs less does not, and should be written
//! down with `cargo xtask instructions --update`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    setup,
    workspace::{cargo, output, root, target},
};

/// Where it is written down what should be.
const EXPECTED: &str = "benches/instructions/expected.json";

/// What is allowed over that, as a share: of instructions of Rust code, of other ones, and of allocations.
const TOLERANCE: Cost = Cost { rust: 0.03, other: 0.05, allocations: 0.02, calls: None };

/// What is allowed besides: the allocator's own paths, comparing names that the draw decides about.
const SLACK: f64 = 1500.0;

/// What is allowed in all where another compiler made the code.
const OTHER_COMPILER: f64 = 0.15;

/// What was counted, and with what.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counts {
    rustc: String,
    /// The processor that programs see.
    cpu: String,
    paths: BTreeMap<String, Cost>,
}

/// What one unit of a path costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Cost {
    /// Instructions of Rust code.
    rust: f64,
    /// All other instructions: cryptography in C and assembler, the C library.
    other: f64,
    /// Allocations and reallocations of Rust code.
    allocations: f64,
    /// Reads and writes of sockets, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<f64>,
}

/// What callgrind counted of a path in all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    rust: u64,
    other: u64,
}

/// Counts, and compares with what is written down, or writes it down.
pub(crate) fn run(update: bool) -> Result<()> {
    println!("\n== instructions of the hot paths");
    let now = count()?;
    let file = root().join(EXPECTED);
    if update {
        let mut text = serde_json::to_string_pretty(&now)?;
        text.push('\n');
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("written down in {EXPECTED}");
        return Ok(());
    }
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let expected: Counts =
        serde_json::from_str(&text).with_context(|| format!("{EXPECTED} is not what it should be"))?;
    let (lines, wrong) = compare(&expected, &now);
    lines.iter().for_each(|line| println!("{line}"));
    if !wrong.is_empty() {
        bail!(
            "hot paths have become dearer; where that is meant, run `cargo xtask instructions --update` and say why in \
             the commit:\n{}",
            wrong.join("\n")
        );
    }
    Ok(())
}

fn count() -> Result<Counts> {
    if !setup::on_path("valgrind") {
        bail!("valgrind is missing: `cargo xtask setup` installs it");
    }
    let program = executable()?;
    let folder = target().join("instructions");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let out = folder.join("out");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--tool=callgrind", "--collect-atstart=no", "--demangle=no"]);
    valgrind.args(["--toggle-collect=*12instructions6marked*", "--dump-after=*12instructions8finished*"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display())).arg(program);
    // So that no call is the first one of its function, which the loader would have to look up.
    let said = output(valgrind.env("LD_BIND_NOW", "1"))?;
    let mut lines = said.lines().map(|line| serde_json::from_str::<Said>(line).with_context(|| line.to_owned()));
    let Some(Said::Cpu { cpu }) = lines.next().transpose()? else { bail!("the benches do not say their processor") };
    let mut paths = BTreeMap::new();
    for (index, line) in lines.enumerate() {
        let Said::Path { path, units, allocations, calls } = line? else {
            bail!("the benches say their processor twice")
        };
        let file = PathBuf::from(format!("{}.{}", out.display(), index + 1));
        let counted = read(&file)?;
        if counted.rust == 0 {
            bail!("nothing was counted for {path}; the marks are not found by their names");
        }
        let each = |sum: u64| (sum as f64 / units as f64).round();
        let allocations = (allocations * 10.0).round() / 10.0;
        paths.insert(path, Cost { rust: each(counted.rust), other: each(counted.other), allocations, calls });
    }
    Ok(Counts { rustc: output(Command::new("rustc").arg("--version"))?.trim().to_owned(), cpu, paths })
}

/// A line that the executable prints.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Cpu { cpu: String },
    Path { path: String, units: u64, allocations: f64, calls: Option<f64> },
}

/// The executable, built as the gate tries the benches.
fn executable() -> Result<PathBuf> {
    let arguments = ["test", "--locked", "-p", "lictor-benches", "--bench", "instructions", "--profile", "checked"];
    let messages = output(cargo(&arguments).args(["--no-run", "--message-format=json"]))?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        if message["target"]["name"] != "instructions" {
            return None;
        }
        message["executable"].as_str().map(PathBuf::from)
    });
    executables.next_back().context("cargo names no program for the bench `instructions`")
}

fn read(file: &Path) -> Result<Sums> {
    let text = fs::read_to_string(file).with_context(|| format!("callgrind left no {}", file.display()))?;
    Ok(parse(&text))
}

/// Sums what callgrind wrote: of each function what it spent itself.
///
/// The format (Valgrind's manual, "Callgrind Format Specification"): `fn=(id) name` opens a function, its name is
/// given once; lines of positions and costs follow. `calls=` says that the next line is the cost of what was called,
/// which is no cost of the function itself. `cfn=` may be where a name is given first.
fn parse(text: &str) -> Sums {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut sums = Sums::default();
    let (mut function, mut is_of_calls) = ("", false);
    for line in text.lines() {
        if let Some(named) = line.strip_prefix("fn=") {
            function = resolve(&mut names, named);
        } else if let Some(named) = line.strip_prefix("cfn=") {
            resolve(&mut names, named);
        } else if line.starts_with("calls=") {
            is_of_calls = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '*')) {
            let cost = line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
            match (std::mem::take(&mut is_of_calls), is_rust(function)) {
                (true, _) => {}
                (false, true) => sums.rust += cost,
                (false, false) => sums.other += cost,
            }
        }
    }
    sums
}

fn resolve<'a>(names: &mut BTreeMap<&'a str, &'a str>, named: &'a str) -> &'a str {
    let (id, name) = named.split_once(' ').unwrap_or((named, ""));
    if name.is_empty() {
        return names.get(id).copied().unwrap_or_default();
    }
    // Recursion gets a number behind a quote.
    let name = name.split('\'').next().unwrap_or(name);
    names.insert(id, name);
    name
}

/// Whether a symbol is mangled as Rust does, in the old way or the new one.
fn is_rust(symbol: &str) -> bool {
    symbol.starts_with("_ZN") || symbol.starts_with("_R")
}

/// The table, and what is wrong.
fn compare(expected: &Counts, now: &Counts) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    let same_compiler = expected.rustc == now.rustc;
    let same_cpu = expected.cpu == now.cpu;
    if !same_compiler {
        lines.push(format!(
            "{} made the code, {} that of {EXPECTED}: {:.0} % are allowed",
            now.rustc,
            expected.rustc,
            OTHER_COMPILER * 100.0
        ));
    }
    if !same_cpu {
        lines.push(format!("this processor ({}) is not that of {EXPECTED}: C is not compared", now.cpu));
    }
    lines.push(format!("{:<40} {:>22} {:>22} {:>16} {:>12}", "each", "Rust", "C", "allocations", "socket calls"));
    for (path, cost) in &now.paths {
        let Some(before) = expected.paths.get(path) else {
            wrong.push(format!("{path}: is not in {EXPECTED}"));
            continue;
        };
        let mut cell = |what: &str, now: f64, before: f64, tolerance: f64, slack: f64| {
            let share = if before == 0.0 { 0.0 } else { now / before - 1.0 };
            if now > before * (1.0 + tolerance) + slack {
                wrong.push(format!("{path}: {now} {what}, {before} expected ({:+.1} %)", share * 100.0));
            }
            format!("{now} ({:+.1} %)", share * 100.0)
        };
        let tolerance = |of: f64| if same_compiler { of } else { OTHER_COMPILER };
        let rust = cell("instructions of Rust", cost.rust, before.rust, tolerance(TOLERANCE.rust), 0.0);
        let other = if same_cpu {
            cell("instructions of C", cost.other, before.other, tolerance(TOLERANCE.other), SLACK)
        } else {
            format!("{}", cost.other)
        };
        // Half an allocation: a table that grows once more in all the rounds.
        let allocations =
            cell("allocations", cost.allocations, before.allocations, tolerance(TOLERANCE.allocations), 0.5);
        let calls = match (cost.calls, before.calls) {
            (Some(now), Some(before)) => cell("calls of sockets", now, before, 0.0, 0.0),
            (None, None) => String::new(),
            _ => {
                wrong.push(format!("{path}: its sockets are counted in {EXPECTED} or here, and not in both"));
                String::new()
            }
        };
        lines.push(format!("{path:<40} {rust:>22} {other:>22} {allocations:>16} {calls:>12}"));
    }
    for path in expected.paths.keys().filter(|path| !now.paths.contains_key(*path)) {
        wrong.push(format!("{path}: is in {EXPECTED} and was not run"));
    }
    (lines, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
version: 1
events: Ir

ob=(1) /bin/bench
fl=(1) ???
fn=(1) _ZN4core4main17h0E
0 10
cob=(2) /lib/libc.so.6
cfi=(2) ???
cfn=(2) malloc
calls=3 0
0 300
+3 5

fn=(2)
0 290
cfn=(3) malloc_consolidate
calls=1 0
0 9

fn=(4) _RNvCs_3lib4work'2
* 7
totals: 312
";

    #[test]
    fn costs_are_summed_by_who_spent_them_and_what_was_called_counts_once() {
        assert_eq!(parse(DUMP), Sums { rust: 22, other: 290 });
    }

    fn counts(rust: f64, other: f64, allocations: f64, calls: f64) -> Counts {
        let cost = Cost { rust, other, allocations, calls: Some(calls) };
        Counts { rustc: "1".to_owned(), cpu: "a".to_owned(), paths: [("path".to_owned(), cost)].into() }
    }

    fn wrong(now: &Counts) -> usize {
        compare(&counts(1000.0, 1e6, 100.0, 4.0), now).1.len()
    }

    #[test]
    fn what_is_dearer_by_more_than_noise_fails_and_what_is_cheaper_does_not() {
        assert_eq!(wrong(&counts(1020.0, 1.04e6, 101.0, 4.0)), 0);
        assert_eq!(wrong(&counts(500.0, 500.0, 10.0, 1.0)), 0);
        assert_eq!(wrong(&counts(1031.0, 1e6, 100.0, 4.0)), 1);
        assert_eq!(wrong(&counts(1000.0, 1.06e6, 100.0, 4.0)), 1);
        assert_eq!(wrong(&counts(1000.0, 1e6, 103.0, 4.0)), 1);
        assert_eq!(wrong(&counts(1000.0, 1e6, 100.0, 4.1)), 1);
        let missing = Counts { paths: BTreeMap::new(), ..counts(0.0, 0.0, 0.0, 0.0) };
        assert_eq!(wrong(&missing), 1, "a path that is no longer run");
    }

    #[test]
    fn another_processor_hides_c_alone_and_another_compiler_widens_what_is_allowed() {
        let elsewhere = |rust, other| Counts { cpu: "b".to_owned(), ..counts(rust, other, 100.0, 4.0) };
        assert_eq!(wrong(&elsewhere(1000.0, 9e6)), 0);
        assert_eq!(wrong(&elsewhere(1031.0, 1e6)), 1);
        let made = |rust| Counts { rustc: "2".to_owned(), ..counts(rust, 1e6, 100.0, 4.0) };
        assert_eq!(wrong(&made(1140.0)), 0);
        assert_eq!(wrong(&made(1160.0)), 1);
    }
}
