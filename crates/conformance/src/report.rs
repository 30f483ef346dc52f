//! What a family of rows found: a table for people, lines for machines, and a verdict for the test.
//!
//! # The lines
//!
//! Where the environment variable `LICTOR_CONFORMANCE_REPORT` names a file, [`Report::conclude`] appends one JSON
//! object a line to it, so that the runs of several backends can be laid side by side. All values but `seed` are
//! strings:
//!
//! | key | value |
//! |---|---|
//! | `backend` | the name of the backend: `rustls`, `openssl`, `boring`; `webpki` for the verifier without any |
//! | `family` | the family of rows, one of [`crate::suite::families`] |
//! | `row` | the row's name, the same for every backend |
//! | `side` | `in` (we are the server), `out` (we are the client), or empty where the row has no side |
//! | `version` | `TLSv1.2`, `TLSv1.3`, or empty where the row is of no version |
//! | `wanted` | `accept`, `reject REASON` for rows about certificates, otherwise `holds` |
//! | `outcome` | `pass`, `fail` or `gap` |
//! | `got` | what was seen; empty for a gap. It may differ between backends: alerts, words of a library |
//! | `reason` | why it failed or was not run; empty for a pass |
//! | `seed` | the number that runs what varied once more (`LICTOR_SEED`) |
//!
//! `backend`, `family`, `row`, `side` and `version` together stand once in a run.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write as _},
};

use crate::{gaps, pair::Version, verifier::Side};

/// The outcome of one row on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted; the words say what was seen.
    Pass(String),
    /// Not as wanted.
    Fail(String),
    /// Not run, and why: a gap is printed, never passed over.
    Gap(String),
}

/// What of a row varies: the side and the version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The side that we are on, where the row has one.
    pub side: Option<Side>,
    /// The version that is spoken, where the row has one.
    pub version: Option<Version>,
}

impl Way {
    /// Neither side nor version.
    pub const NONE: Self = Self { side: None, version: None };
}

impl From<Side> for Way {
    fn from(side: Side) -> Self {
        Self { side: Some(side), version: None }
    }
}

impl From<Version> for Way {
    fn from(version: Version) -> Self {
        Self { side: None, version: Some(version) }
    }
}

impl From<(Side, Version)> for Way {
    fn from((side, version): (Side, Version)) -> Self {
        Self { side: Some(side), version: Some(version) }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> =
            [self.side.map(Side::name), self.version.map(Version::name)].into_iter().flatten().collect();
        f.pad(&words.join(" "))
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// The row, by the name that it has in the table of rows.
    pub row: String,
    /// What varies.
    pub way: Way,
    /// What should come of it.
    pub wanted: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// The lines of one family.
#[derive(Clone, Debug)]
pub struct Report {
    family: String,
    backend: String,
    seed: u64,
    lines: Vec<Line>,
}

/// What most rows want: that what their name says is so.
const HOLDS: &str = "holds";

impl Report {
    /// An empty report about `family` over `backend`, run with `seed`.
    #[must_use]
    pub fn new(family: &str, backend: &str, seed: u64) -> Self {
        Self { family: family.to_owned(), backend: backend.to_owned(), seed, lines: Vec::new() }
    }

    /// Adds a line that passes when `result` is `Ok`.
    pub fn add(&mut self, row: &str, way: impl Into<Way>, result: Result<String, String>) {
        self.add_wanted(row, way, HOLDS, result);
    }

    /// Adds a line whose row wants something else than that its name is so. What is listed in [`gaps`] is a gap.
    pub fn add_wanted(
        &mut self,
        row: &str,
        way: impl Into<Way>,
        wanted: impl fmt::Display,
        result: Result<String, String>,
    ) {
        let way = way.into();
        let outcome = match (result, gaps::find(&self.backend, &self.family, row, way)) {
            (Ok(seen), None) => Outcome::Pass(seen),
            (Ok(seen), Some(gap)) if gap.by_lot => Outcome::Pass(seen),
            (Ok(seen), Some(_)) => Outcome::Fail(format!("listed as a gap, and yet as wanted: {seen}")),
            (Err(seen), Some(gap)) if seen.contains(gap.like) => Outcome::Gap(format!("{} ({seen})", gap.why)),
            (Err(why), _) => Outcome::Fail(why),
        };
        self.lines.push(Line { row: row.to_owned(), way, wanted: wanted.to_string(), outcome });
    }

    /// Adds a line that says why something was not run.
    pub fn gap(&mut self, row: &str, way: impl Into<Way>, wanted: impl fmt::Display, why: &str) {
        let outcome = Outcome::Gap(why.to_owned());
        self.lines.push(Line { row: row.to_owned(), way: way.into(), wanted: wanted.to_string(), outcome });
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Appends the lines to the file that `LICTOR_CONFORMANCE_REPORT` names, and judges them.
    ///
    /// # Panics
    /// As [`judge`](Self::judge) does, or when the file cannot be written.
    pub fn conclude(self) {
        if let Some(path) = std::env::var_os("LICTOR_CONFORMANCE_REPORT") {
            self.append_to(path.as_ref()).expect("the file of LICTOR_CONFORMANCE_REPORT can be written");
        }
        self.judge();
    }

    /// Prints the table and judges it: for who runs a family once more in an odd way, which is no second entry.
    ///
    /// # Panics
    /// When a row failed, when one stands twice, or when none was run at all.
    #[expect(clippy::print_stdout, reason = "the table is what a person runs the suite for")]
    pub fn judge(self) {
        println!("{self}");
        let failed = self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Fail(_))).count();
        let passed = self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Pass(_))).count();
        let mut known = BTreeSet::new();
        for line in &self.lines {
            assert!(known.insert((&line.row, line.way.to_string())), "{}: {line:?} stands twice", self.family);
        }
        assert!(passed > 0, "{}: nothing was run", self.family);
        assert_eq!(
            failed,
            0,
            "{} over {}: {failed} of {} failed (seed {}), see the table",
            self.family,
            self.backend,
            passed + failed,
            self.seed
        );
    }

    /// One write for the whole family, since families run at once and append to one file.
    fn append_to(&self, path: &std::path::Path) -> io::Result<()> {
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(&self.json(line).to_string());
            text.push('\n');
        }
        std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())
    }

    fn json(&self, line: &Line) -> serde_json::Value {
        let (outcome, got, reason) = match &line.outcome {
            Outcome::Pass(seen) => ("pass", seen.as_str(), ""),
            Outcome::Fail(why) => ("fail", why.as_str(), why.as_str()),
            Outcome::Gap(why) => ("gap", "", why.as_str()),
        };
        serde_json::json!({
            "backend": self.backend,
            "family": self.family,
            "row": line.row,
            "side": line.way.side.map_or("", Side::name),
            "version": line.way.version.map_or("", Version::name),
            "wanted": line.wanted,
            "outcome": outcome,
            "got": got,
            "reason": reason,
            "seed": self.seed,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n== {} over {} (seed {}) ==", self.family, self.backend, self.seed)?;
        for Line { row, way, wanted, outcome } in &self.lines {
            let (mark, words) = match outcome {
                Outcome::Pass(words) => ("ok  ", words),
                Outcome::Fail(words) => ("FAIL", words),
                Outcome::Gap(words) => ("gap ", words),
            };
            let wanted = if wanted == HOLDS { String::new() } else { format!("{wanted}: ") };
            writeln!(f, "{mark} {row:<52} {way:<12} {wanted}{words}")?;
        }
        Ok(())
    }
}

/// The seed of this run: that of the environment variable `LICTOR_SEED`, or a new one.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("LICTOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_machines_holds_all_that_the_table_shows() {
        let mut report = Report::new("handshake", "rustls", 7);
        report.add_wanted(
            "N01 no \"names\"",
            (Side::Inbound, Version::Tls13),
            "reject no_uri",
            Ok("alert 42".to_owned()),
        );
        report.gap("A72", Way::NONE, "accept", "no clock");
        let lines: Vec<String> = report.lines().iter().map(|line| report.json(line).to_string()).collect();
        assert_eq!(
            lines[0],
            r#"{"backend":"rustls","family":"handshake","row":"N01 no \"names\"","side":"in","version":"TLSv1.3","wanted":"reject no_uri","outcome":"pass","got":"alert 42","reason":"","seed":7}"#
        );
        assert!(
            lines[1]
                .contains(r#""side":"","version":"","wanted":"accept","outcome":"gap","got":"","reason":"no clock""#)
        );
    }

    #[test]
    fn appended_lines_follow_those_that_are_there() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for family in ["one", "two"] {
            let mut report = Report::new(family, "rustls", 1);
            report.add("row", Side::Inbound, Ok(String::new()));
            report.append_to(file.path()).expect("written");
        }
        let text = std::fs::read_to_string(file.path()).expect("read");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_listed_gap_that_passes_or_fails_otherwise_is_a_failure() {
        let mut report = Report::new("key updates", "openssl", 1);
        let row = "in two records, cut anywhere, sealing between";
        report.add(row, (Side::Inbound, Version::Tls13), Err("cut at 4: the library would not seal".to_owned()));
        report.add(row, (Side::Outbound, Version::Tls13), Ok("sealed".to_owned()));
        report.add(row, (Side::Outbound, Version::Tls12), Err("something else".to_owned()));
        let outcomes: Vec<&Outcome> = report.lines().iter().map(|line| &line.outcome).collect();
        assert!(matches!(outcomes[..], [Outcome::Gap(_), Outcome::Fail(_), Outcome::Fail(_)]), "{outcomes:?}");
    }

    #[test]
    #[should_panic(expected = "stands twice")]
    fn a_row_that_stands_twice_is_a_fault_of_the_suite() {
        // Of no library, so that it counts for none where this run is reported.
        let mut report = Report::new("family", "none", 1);
        report.add("row", Side::Inbound, Ok(String::new()));
        report.add("row", Side::Inbound, Ok(String::new()));
        report.conclude();
    }
}
