//! The conformance suite of all TLS libraries side by side: row × side × version × library.
//!
//! Each library's run writes its lines to a file (`lictor_conformance::report` says what they hold); here they are laid
//! beside each other. A row that failed, or that one library has and another lacks, is a failure; a gap must say why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace::{cargo, output, step, target};

/// The variable by which the suite is told where to write.
pub(crate) const REPORT: &str = "LICTOR_CONFORMANCE_REPORT";

/// The libraries of the table, in the order of its columns.
const BACKENDS: [&str; 3] = ["rustls", "openssl", "boring"];

/// One line of a report.
#[derive(Deserialize)]
struct Line {
    backend: String,
    family: String,
    row: String,
    side: String,
    version: String,
    wanted: String,
    outcome: String,
    reason: String,
}

/// What a library made of a row.
struct Cell {
    outcome: String,
    reason: String,
}

/// Family, row, side, version, and what is wanted.
type Key = (String, String, String, String, String);

/// Rows by what they are, each with the cells of the libraries.
#[derive(Default)]
struct Table(BTreeMap<Key, BTreeMap<String, Cell>>);

/// Runs the suite over all libraries and prints the whole table.
pub(crate) fn run() -> Result<()> {
    let file = fresh()?;
    for backend in BACKENDS {
        let mut tests = cargo(&["test", "--locked", "-p", &format!("lictor-{backend}"), "--test", "conformance"]);
        // A failed row is told by the table, beside what the others made of it.
        if let Err(error) = step(&format!("conformance of {backend}"), tests.env(REPORT, &file)) {
            println!("{error:#}");
        }
    }
    let table = Table::read(&file)?;
    table.print();
    table.judge()
}

/// An empty file for a run to write to.
pub(crate) fn fresh() -> Result<PathBuf> {
    let file = target().join("conformance.jsonl");
    fs::write(&file, "").with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Builds the suite over `backend` and says where its program is.
pub(crate) fn executable(backend: &str) -> Result<PathBuf> {
    let package = format!("lictor-{backend}");
    let arguments = ["test", "--locked", "-p", &package, "--test", "conformance", "--no-run", "--message-format=json"];
    let messages = output(&mut cargo(&arguments))?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_suite = message["target"]["name"] == "conformance" && message["profile"]["test"] == true;
        if is_suite { message["executable"].as_str().map(PathBuf::from) } else { None }
    });
    executables.next_back().with_context(|| format!("cargo names no test program for {package}"))
}

/// Judges the lines that a run left, without printing the table.
pub(crate) fn judge(file: &Path) -> Result<()> {
    Table::read(file)?.judge()
}

impl Table {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        for line in text.lines() {
            let line: Line = serde_json::from_str(line).with_context(|| format!("no line of a report: {line}"))?;
            // The verifier is also run alone, without any library.
            if !BACKENDS.contains(&line.backend.as_str()) {
                continue;
            }
            let key = (line.family, line.row, line.side, line.version, line.wanted);
            let cell = Cell { outcome: line.outcome, reason: line.reason };
            let cells = table.0.entry(key).or_default();
            // A backend's own tests may run a family once more. What went wrong once is wrong.
            if cells.get(&line.backend).is_none_or(|known| known.outcome == "pass") {
                cells.insert(line.backend, cell);
            }
        }
        Ok(table)
    }

    fn print(&self) {
        println!("\n{:<12} {:<4} {:<8} {:<28} {:<24} row", "family", "side", "version", "wanted", BACKENDS.join(" "));
        for ((family, row, side, version, wanted), cells) in &self.0 {
            let outcomes: Vec<String> = BACKENDS
                .iter()
                .map(|backend| {
                    let outcome = cells.get(*backend).map_or("missing", |cell| cell.outcome.as_str());
                    format!("{outcome:<width$}", width = backend.len())
                })
                .collect();
            println!("{family:<12} {side:<4} {version:<8} {wanted:<28} {:<24} {row}", outcomes.join(" "));
        }
    }

    /// Counts, lists what is not as wanted, and fails when there is any.
    fn judge(&self) -> Result<()> {
        let mut wrong = Vec::new();
        let mut gaps = BTreeSet::new();
        let mut passed = BTreeMap::new();
        for ((family, row, side, version, _), cells) in &self.0 {
            for backend in BACKENDS {
                let place = format!("{backend}: {family}, {row} {side} {version}");
                match cells.get(backend) {
                    Some(cell) if cell.outcome == "pass" => *passed.entry(backend).or_insert(0) += 1,
                    Some(cell) if cell.outcome == "gap" && !cell.reason.is_empty() => {
                        gaps.insert(format!("{place}: {}", cell.reason));
                    }
                    Some(cell) => wrong.push(format!("{place}: {} {}", cell.outcome, cell.reason)),
                    None => wrong.push(format!("{place}: was not run, and others ran it")),
                }
            }
        }
        println!("\nconformance: {} rows × side × version; passed: {passed:?}", self.0.len());
        for gap in &gaps {
            println!("gap: {gap}");
        }
        if self.0.is_empty() {
            bail!("no row was run");
        }
        if !wrong.is_empty() {
            bail!("{} rows are not as wanted:\n{}", wrong.len(), wrong.join("\n"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(backend: &str, outcome: &str, reason: &str) -> String {
        format!(
            r#"{{"backend":"{backend}","family":"f","row":"P1","side":"in","version":"TLSv1.3","wanted":"accept","outcome":"{outcome}","got":"","reason":"{reason}","seed":1}}"#
        )
    }

    fn judged(lines: &[String]) -> Result<()> {
        Table::parse(&lines.join("\n"))?.judge()
    }

    #[test]
    fn a_row_that_failed_once_or_is_missing_is_found() {
        let good = BACKENDS.map(|backend| line(backend, "pass", ""));
        assert!(judged(&good).is_ok());
        assert!(judged(&[]).is_err(), "nothing was run");
        assert!(judged(&good[..2]).is_err(), "one library lacks it");
        assert!(judged(&[good[0].clone(), good[1].clone(), line("boring", "fail", "why")]).is_err());
        let once_more = |outcome| good.iter().cloned().chain([line("openssl", outcome, "")]).collect::<Vec<_>>();
        assert!(judged(&once_more("pass")).is_ok());
        assert!(judged(&once_more("fail")).is_err(), "in one of two runs");
        let failed_first = [line("openssl", "fail", "")].into_iter().chain(good.clone()).collect::<Vec<_>>();
        assert!(judged(&failed_first).is_err(), "in the first of two runs");
    }

    #[test]
    fn a_gap_counts_only_with_its_reason() {
        let with = |reason| [line("rustls", "pass", ""), line("openssl", "gap", reason), line("boring", "pass", "")];
        assert!(judged(&with("it cannot")).is_ok());
        assert!(judged(&with("")).is_err());
    }
}
