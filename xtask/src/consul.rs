//! The end-to-end tests against every real `consul` there is, and one table of all of them: case × agent.
//!
//! The suite runs once for each agent and writes what it found to a file (`integration/src/report.rs` says what the lines
//! hold); here the files are laid beside each other.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    gate,
    workspace::{cargo, output, root, step, target},
};

/// The variable by which the suite is told where to write.
const REPORT: &str = "LICTOR_INTEGRATION_REPORT";

/// What the command line asks for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run the drills as well: each needs minutes, and an agent for itself.
    #[arg(long)]
    drills: bool,
    /// Leave out the embedded agent's column.
    #[arg(long)]
    no_embedded: bool,
    /// Also write the table to FILE, as Markdown with date, commit and versions.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only cases whose name holds this, such as `c2_`.
    filter: Option<String>,
}

/// Runs the suite against each agent and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let consuls = find()?;
    if consuls.is_empty() {
        bail!(
            "no real consul was found, and this command is for real ones: name some with CONSUL_BIN=PATH[,PATH…], put \
             one on the PATH, or name an image with LICTOR_CONSUL_IMAGE where a Docker daemon answers"
        );
    }
    consuls.iter().for_each(|consul| println!("real consul: {consul}"));
    let binary = gate::binary_under_test()?;
    let folder = target().join("consul");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut table = Table::default();
    let mut wrong = Vec::new();
    let embedded = (!arguments.no_embedded).then_some(&Agent::Embedded);
    for (number, agent) in embedded.into_iter().chain(&consuls).enumerate() {
        let report = folder.join(format!("{number}.jsonl"));
        fs::write(&report, "").with_context(|| format!("cannot write {}", report.display()))?;
        if let Err(error) = step(&format!("end-to-end tests: {agent}"), &mut suite(agent, &binary, &report, arguments))
        {
            // Which case it was is told by the table, beside what the other agents made of it.
            println!("{error:#}");
            wrong.push(agent.to_string());
        }
        let text = fs::read_to_string(&report).with_context(|| format!("cannot read {}", report.display()))?;
        if let Err(error) = table.add(&text) {
            println!("{error:#}");
            wrong.push(format!("{agent} ({error:#})"));
        }
    }
    println!("\n{}", table.plain());
    if let Some(file) = &arguments.markdown {
        let text = format!("{}\n{}", origin(&binary)?, table.markdown());
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("the same as Markdown: {}", file.display());
    }
    let failed = table.failed();
    ensure!(failed.is_empty(), "{} cases failed:\n{}", failed.len(), failed.join("\n"));
    ensure!(wrong.is_empty(), "the suite did not end well against {}", wrong.join(", "));
    Ok(())
}

/// Whom the suite meets in one run.
enum Agent {
    Embedded,
    Binary { path: PathBuf, banner: String },
    Image(String),
}

impl std::fmt::Display for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("the embedded agent"),
            Self::Binary { path, banner } => write!(f, "{banner} ({})", path.display()),
            Self::Image(name) => write!(f, "a container of {name}"),
        }
    }
}

/// The binaries that `CONSUL_BIN` names, else the one on the `PATH`; and the image that is named.
fn find() -> Result<Vec<Agent>> {
    let named = std::env::var("CONSUL_BIN").unwrap_or_default();
    let mut paths: Vec<PathBuf> = named.split(',').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&folders).map(|folder| folder.join("consul")).find(|path| path.is_file());
        paths.extend(found);
    }
    let mut agents = Vec::new();
    for path in paths {
        let said =
            output(Command::new(&path).arg("version")).with_context(|| format!("CONSUL_BIN: {}", path.display()))?;
        // The suite runs in another folder than this command.
        let path = fs::canonicalize(&path).with_context(|| format!("no such file: {}", path.display()))?;
        agents.push(Agent::Binary { path, banner: said.lines().next().unwrap_or_default().trim().to_owned() });
    }
    agents.extend(std::env::var("LICTOR_CONSUL_IMAGE").ok().filter(|name| !name.is_empty()).map(Agent::Image));
    Ok(agents)
}

fn suite(agent: &Agent, binary: &Path, report: &Path, arguments: &Arguments) -> Command {
    let mut tests = cargo(&["test", "--locked", "-p", "lictor-integration", "--"]);
    tests.env("LICTOR_BIN", binary).env(REPORT, report).env_remove("CONSUL_BIN").env_remove("LICTOR_CONSUL_IMAGE");
    match agent {
        Agent::Embedded => {}
        Agent::Binary { path, .. } => {
            tests.env("CONSUL_BIN", path);
        }
        Agent::Image(name) => {
            tests.env("LICTOR_CONSUL_IMAGE", name);
        }
    }
    tests.args(["--skip", if matches!(agent, Agent::Embedded) { "[real]" } else { "[embedded]" }]);
    if arguments.drills {
        tests.arg("--include-ignored");
    }
    tests.args(&arguments.filter);
    tests
}

/// When, of what, and with which binary.
fn origin(binary: &Path) -> Result<String> {
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?;
    let mut git = Command::new("git");
    let commit = output(git.current_dir(root()).args(["describe", "--always", "--dirty", "--exclude=*"]))?;
    let version = output(Command::new(binary).arg("version"))?;
    let version = version.lines().next().unwrap_or_default();
    Ok(format!("Run on {}, commit `{}`, `{}`.\n", date.trim(), commit.trim(), version.trim()))
}

/// One line of a report.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Agent { agent: String, banner: String },
    Case { number: String, case: String, agent: String, outcome: String, reason: String },
}

/// What all agents made of all cases.
#[derive(Default)]
struct Table {
    columns: Vec<Column>,
    /// In the order of the contract's numbers, then as the suite has them.
    rows: Vec<Row>,
    /// Why something was not run, in the order of their first use; cells name them by their place, from 1 on.
    reasons: Vec<String>,
}

struct Column {
    title: String,
    banner: String,
}

/// A number with all its cases, or a case beyond the numbers.
struct Row {
    name: String,
    /// What each agent, by the place of its column, made of each case: name, outcome, and the reason's place.
    results: Vec<(usize, String, Outcome)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    NotRun { reason: usize },
}

impl Table {
    /// Adds the columns of one run.
    fn add(&mut self, report: &str) -> Result<()> {
        let before = self.columns.len();
        let mut agents = Vec::new();
        for line in report.lines() {
            let line: Line = serde_json::from_str(line).with_context(|| format!("no line of a report: {line}"))?;
            match line {
                Line::Agent { agent, banner } => {
                    agents.push(agent);
                    self.columns.push(Column { title: title(&banner), banner });
                }
                Line::Case { number, case, agent, outcome, reason } => {
                    let column = agents.iter().position(|known| *known == agent);
                    let column = before + column.with_context(|| format!("a case of nobody: {case}"))?;
                    let outcome = match outcome.as_str() {
                        "passed" => Outcome::Passed,
                        // What is left out without a word may as well have failed.
                        "not-run" if !reason.is_empty() => Outcome::NotRun { reason: self.reason(reason) },
                        _ => Outcome::Failed,
                    };
                    let name = if number.is_empty() { case.clone() } else { number };
                    self.row(name).results.push((column, case, outcome));
                }
            }
        }
        ensure!(self.columns.len() > before, "the run left no results");
        // Stable: cases beyond the numbers stay in the order of the suite.
        self.rows.sort_by_key(|row| place(&row.name));
        Ok(())
    }

    fn row(&mut self, name: String) -> &mut Row {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name, results: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    fn reason(&mut self, reason: String) -> usize {
        self.reasons.iter().position(|known| *known == reason).unwrap_or_else(|| {
            self.reasons.push(reason);
            self.reasons.len() - 1
        })
    }

    /// `pass`, `FAIL`, or `–`, with the places of the reasons why all or some of its cases were not run.
    fn cell(&self, row: &Row, column: usize) -> String {
        let outcomes = || row.results.iter().filter(|(of, ..)| *of == column).map(|(.., outcome)| *outcome);
        let reasons: BTreeSet<usize> = outcomes()
            .filter_map(|outcome| if let Outcome::NotRun { reason } = outcome { Some(reason + 1) } else { None })
            .collect();
        let word = match () {
            // Others have it, so that somebody should have said why this one does not.
            () if outcomes().next().is_none() => return "missing".to_owned(),
            () if outcomes().any(|outcome| outcome == Outcome::Failed) => "FAIL",
            () if outcomes().any(|outcome| outcome == Outcome::Passed) => "pass",
            () => "–",
        };
        if reasons.is_empty() {
            return word.to_owned();
        }
        let places: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        format!("{word} ({})", places.join(","))
    }

    /// The cases that failed, each with its agent, and the places of the table that nobody filled.
    fn failed(&self) -> Vec<String> {
        let mut failed = Vec::new();
        for row in &self.rows {
            for (column, head) in self.columns.iter().enumerate() {
                let results: Vec<_> = row.results.iter().filter(|(of, ..)| *of == column).collect();
                if results.is_empty() {
                    failed.push(format!("{}: {} has no result, and others have one", head.title, row.name));
                }
                let wrong = results.into_iter().filter(|(.., outcome)| *outcome == Outcome::Failed);
                failed.extend(wrong.map(|(_, case, _)| format!("{}: {case}", head.title)));
            }
        }
        failed
    }

    /// Cases that passed, failed and were not run, by agent.
    fn counts(&self) -> String {
        let mut text = String::new();
        for (column, head) in self.columns.iter().enumerate() {
            let count = |wanted: fn(Outcome) -> bool| {
                let results = self.rows.iter().flat_map(|row| &row.results);
                results.filter(|(of, case, outcome)| *of == column && !case.is_empty() && wanted(*outcome)).count()
            };
            let _ = writeln!(
                text,
                "{}: {} cases passed, {} failed, {} could not be staged",
                head.title,
                count(|outcome| outcome == Outcome::Passed),
                count(|outcome| outcome == Outcome::Failed),
                count(|outcome| matches!(outcome, Outcome::NotRun { .. })),
            );
        }
        text
    }

    /// For a terminal.
    fn plain(&self) -> String {
        let mut lines = vec![[&["case".to_owned()], &self.titles()[..]].concat()];
        for row in &self.rows {
            let cells = (0..self.columns.len()).map(|column| self.cell(row, column));
            lines.push([row.name.clone()].into_iter().chain(cells).collect());
        }
        let widths: Vec<usize> = (0..=self.columns.len())
            .map(|at| lines.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for line in lines {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        }
        for (place, reason) in self.reasons.iter().enumerate() {
            let _ = writeln!(text, "({}) {reason}{}", place + 1, self.in_part(place));
        }
        for head in &self.columns {
            let _ = writeln!(text, "{}: {}", head.title, head.banner);
        }
        text + &self.counts()
    }

    /// For a page of the documentation.
    fn markdown(&self) -> String {
        let mut text = String::new();
        for (head, counts) in self.columns.iter().zip(self.counts().lines()) {
            let _ =
                writeln!(text, "* `{}`: {}", head.banner, counts.split_once(": ").map_or(counts, |(_, counts)| counts));
        }
        let _ =
            writeln!(text, "\n| case | {} |\n|---|{}", self.titles().join(" | "), "---|".repeat(self.columns.len()));
        for row in &self.rows {
            let name = if is_number(&row.name) { row.name.clone() } else { format!("`{}`", row.name) };
            let cells: Vec<String> = (0..self.columns.len()).map(|column| self.cell(row, column)).collect();
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        let _ = writeln!(text);
        for (place, reason) in self.reasons.iter().enumerate() {
            let _ = writeln!(text, "{}. {reason}{}", place + 1, self.in_part(place));
        }
        text
    }

    fn titles(&self) -> Vec<String> {
        self.columns.iter().map(|head| head.title.clone()).collect()
    }

    /// Which cases a reason is about, where their number has others that did run.
    fn in_part(&self, reason: usize) -> String {
        let mut cases = BTreeSet::new();
        for row in self.rows.iter() {
            for (column, case, outcome) in &row.results {
                let ran =
                    row.results.iter().any(|(of, _, other)| of == column && !matches!(other, Outcome::NotRun { .. }));
                if *outcome == (Outcome::NotRun { reason }) && ran {
                    cases.insert(format!("`{case}`"));
                }
            }
        }
        if cases.is_empty() {
            return String::new();
        }
        format!(" (of a number with several cases: {})", cases.into_iter().collect::<Vec<_>>().join(", "))
    }
}

/// `1.22.0` of `Consul v1.22.0`, with what stands behind it.
fn title(banner: &str) -> String {
    match banner.strip_prefix("Consul ") {
        Some(version) => version.trim_start_matches('v').to_owned(),
        None => banner.trim_start_matches("the ").trim_end_matches(" agent").to_owned(),
    }
}

/// `A1`, `D6a`: a letter, digits, and at most one letter more.
fn is_number(name: &str) -> bool {
    place(name).0 < usize::MAX
}

/// Where a row stands: by letter, number, and what follows; all others behind them.
fn place(name: &str) -> (usize, u32, String) {
    let behind = (usize::MAX, 0, String::new());
    let mut letters = name.chars();
    let Some(group @ 'A'..='I') = letters.next() else { return behind };
    let rest = letters.as_str();
    let digits = rest.len() - rest.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
    let (number, suffix) = rest.split_at(digits);
    match number.parse() {
        Ok(number) if suffix.len() <= 1 => (group as usize, number, suffix.to_owned()),
        _ => behind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(agent: &str, banner: &str) -> String {
        format!(r#"{{"agent":"{agent}","banner":"{banner}"}}"#)
    }

    fn case(number: &str, case: &str, agent: &str, outcome: &str, reason: &str) -> String {
        format!(
            r#"{{"number":"{number}","case":"{case}","agent":"{agent}","outcome":"{outcome}","reason":"{reason}"}}"#
        )
    }

    fn table(reports: &[&[String]]) -> Table {
        let mut table = Table::default();
        for report in reports {
            table.add(&report.join("\n")).expect("a good report");
        }
        table
    }

    fn cells(table: &Table, name: &str) -> Vec<String> {
        let row = table.rows.iter().find(|row| row.name == name).expect("the row");
        (0..table.columns.len()).map(|column| table.cell(row, column)).collect()
    }

    #[test]
    fn rows_stand_in_the_order_of_the_contract_and_others_behind_them() {
        let names = ["B2", "holds_x", "A10", "D6a", "D7", "D6", "A9", "crypto_y"];
        let mut report = vec![agent("real", "Consul v1.22.0")];
        report.extend(names.iter().map(|name| match is_number(name) {
            true => case(name, &format!("{}_case", name.to_lowercase()), "real", "passed", ""),
            false => case("", name, "real", "passed", ""),
        }));
        let table = table(&[&report]);
        let order: Vec<&str> = table.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(order, ["A9", "A10", "B2", "D6", "D6a", "D7", "holds_x", "crypto_y"]);
        assert_eq!(table.titles(), ["1.22.0"]);
        assert!(table.failed().is_empty());
    }

    #[test]
    fn the_cases_of_a_number_are_combined_and_the_worst_counts() {
        let report = [
            agent("real", "Consul v1.18.2"),
            case("A1", "a1_one", "real", "passed", ""),
            case("A1", "a1_two", "real", "failed", ""),
            case("A2", "a2_one", "real", "passed", ""),
            case("A2", "a2_two", "real", "not-run", "cannot"),
            case("A3", "a3_one", "real", "not-run", "cannot"),
            case("A3", "a3_two", "real", "not-run", "will not"),
            case("C31", "", "real", "not-run", "no case"),
        ];
        let table = table(&[&report]);
        assert_eq!(cells(&table, "A1"), ["FAIL"]);
        assert_eq!(cells(&table, "A2"), ["pass (1)"], "what was left out of it is told");
        assert_eq!(cells(&table, "A3"), ["– (1,2)"]);
        assert_eq!(cells(&table, "C31"), ["– (3)"]);
        assert_eq!(table.failed(), ["1.18.2: a1_two"]);
        assert!(table.in_part(0).contains("`a2_two`") && !table.in_part(0).contains("a3_one"));
        assert!(table.in_part(1).is_empty());
    }

    #[test]
    fn runs_lie_beside_each_other_and_share_their_reasons() {
        let first = [agent("embedded", "the embedded agent"), case("A1", "a1_one", "embedded", "passed", "")];
        let second = [agent("real", "Consul 1.5.3-dev"), case("A1", "a1_one", "real", "not-run", "too old for it")];
        let third = [agent("real", "Consul v1.3.1"), case("A1", "a1_one", "real", "not-run", "too old for it")];
        let table = table(&[&first, &second, &third]);
        assert_eq!(table.titles(), ["embedded", "1.5.3-dev", "1.3.1"]);
        assert_eq!(cells(&table, "A1"), ["pass", "– (1)", "– (1)"]);
        assert_eq!(table.reasons, ["too old for it"]);
        let markdown = table.markdown();
        assert!(
            markdown
                .contains("| case | embedded | 1.5.3-dev | 1.3.1 |\n|---|---|---|---|\n| A1 | pass | – (1) | – (1) |")
        );
        assert!(markdown.contains("1. too old for it"));
        assert!(table.plain().contains("(1) too old for it"));
    }

    #[test]
    fn nothing_is_left_out_in_silence() {
        let wordless = [agent("real", "Consul v1.22.0"), case("A1", "a1_one", "real", "not-run", "")];
        assert_eq!(table(&[&wordless]).failed().len(), 1, "without a reason");
        let first = [agent("embedded", "the embedded agent"), case("A1", "a1_one", "embedded", "passed", "")];
        let second = [agent("real", "Consul v1.22.0"), case("A2", "a2_one", "real", "passed", "")];
        let holes = table(&[&first, &second]);
        assert_eq!(cells(&holes, "A1"), ["pass", "missing"]);
        assert_eq!(holes.failed().len(), 2, "one has what the other lacks");
        assert!(Table::default().add("").is_err(), "a run that left nothing");
        assert!(Table::default().add("nonsense").is_err());
    }
}
