//! What a family of rows found: a table for people, and a verdict for the test.

use std::fmt;

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

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    /// The row, by the name that it has in the table of rows.
    pub row: String,
    /// What varies: side, TLS version, level.
    pub way: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// The lines of one family.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    seed: u64,
    lines: Vec<Line>,
}

impl Report {
    /// An empty report about `title`, run with `seed`.
    #[must_use]
    pub fn new(title: &str, seed: u64) -> Self {
        Self { title: title.to_owned(), seed, lines: Vec::new() }
    }

    /// Adds a line that passes when `result` is `Ok`.
    pub fn add(&mut self, row: &str, way: &str, result: Result<String, String>) {
        let outcome = match result {
            Ok(seen) => Outcome::Pass(seen),
            Err(why) => Outcome::Fail(why),
        };
        self.lines.push(Line { row: row.to_owned(), way: way.to_owned(), outcome });
    }

    /// Adds a line that says why something was not run.
    pub fn gap(&mut self, row: &str, way: &str, why: &str) {
        self.lines.push(Line { row: row.to_owned(), way: way.to_owned(), outcome: Outcome::Gap(why.to_owned()) });
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Prints the table.
    ///
    /// # Panics
    /// When a row failed, or none was run at all.
    #[expect(clippy::print_stdout, reason = "the table is what a person runs the suite for")]
    pub fn conclude(self) {
        println!("{self}");
        let failed = self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Fail(_))).count();
        let passed = self.lines.iter().filter(|line| matches!(line.outcome, Outcome::Pass(_))).count();
        assert!(passed > 0, "{}: nothing was run", self.title);
        assert_eq!(
            failed,
            0,
            "{}: {failed} of {} failed (seed {}), see the table",
            self.title,
            passed + failed,
            self.seed
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n== {} (seed {}) ==", self.title, self.seed)?;
        for Line { row, way, outcome } in &self.lines {
            let (mark, words) = match outcome {
                Outcome::Pass(words) => ("ok  ", words),
                Outcome::Fail(words) => ("FAIL", words),
                Outcome::Gap(words) => ("gap ", words),
            };
            writeln!(f, "{mark} {row:<52} {way:<14} {words}")?;
        }
        Ok(())
    }
}

/// The seed of this run: that of the environment variable `LICTOR_SEED`, or a new one.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("LICTOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}
