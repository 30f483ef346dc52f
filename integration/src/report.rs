//! What a run found, one JSON object a line, for `cargo xtask consul`, which lays several runs beside each other.
//!
//! The first lines name the agents (`agent`, `banner`); each further one is what a case made of an agent: `number` (that
//! of the contract, or empty), `case`, `agent`, `outcome` (`passed`, `failed`, `not-run`) and the `reason` of what was
//! not run. A number that has no case stands there with an empty `case`.

use std::{fmt::Write as _, io::Write as _};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    cases::table,
    runner::{Outcome, Planned},
};

/// The variable that names the file.
const FILE: &str = "LICTOR_INTEGRATION_REPORT";

/// Appends to the file that the environment names, where it does.
pub(crate) fn write(
    banners: &[(&'static str, String)],
    planned: &[Planned],
    results: &[(String, &'static str, Outcome)],
) -> Result<()> {
    let Some(path) = std::env::var_os(FILE).filter(|path| !path.is_empty()) else { return Ok(()) };
    let mut text = String::new();
    for line in lines(banners, planned, results) {
        writeln!(text, "{line}")?;
    }
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).context(FILE)?;
    file.write_all(text.as_bytes()).context(FILE)
}

fn lines(
    banners: &[(&'static str, String)],
    planned: &[Planned],
    results: &[(String, &'static str, Outcome)],
) -> Vec<Value> {
    let asked = |agent: &str| planned.iter().any(|plan| plan.agent == agent);
    let agents: Vec<_> = banners.iter().filter(|(agent, _)| asked(agent)).collect();
    let mut lines: Vec<Value> =
        agents.iter().map(|(agent, banner)| json!({ "agent": agent, "banner": banner })).collect();
    for plan in planned.iter().filter(|plan| agents.iter().any(|(agent, _)| *agent == plan.agent)) {
        let found = results.iter().find(|(case, agent, _)| case == plan.case && *agent == plan.agent);
        let (outcome, reason) = match found.map(|(.., outcome)| outcome) {
            Some(Outcome::Passed) => ("passed", ""),
            Some(Outcome::Failed) => ("failed", ""),
            Some(Outcome::NotRun(why)) => ("not-run", why.as_str()),
            None if plan.ignored => ("not-run", "a drill, which needs minutes and runs only when it is asked for"),
            None => ("failed", "it was to run and gave no result"),
        };
        let number = table::number(plan.case).unwrap_or_default();
        lines.push(json!({
            "number": number, "case": plan.case, "agent": plan.agent, "outcome": outcome, "reason": reason,
        }));
    }
    for (number, reason) in table::without_a_case() {
        for (agent, _) in &agents {
            lines.push(json!({
                "number": number, "case": "", "agent": agent, "outcome": "not-run", "reason": reason,
            }));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(case: &'static str, agent: &'static str, ignored: bool) -> Planned {
        Planned { case, agent, ignored }
    }

    #[test]
    fn every_planned_case_has_a_line_and_what_gave_no_result_has_failed() {
        let banners = [("embedded", "the embedded agent".to_owned()), ("real", "Consul v1.22.0".to_owned())];
        let plan = [
            planned("a1_one", "real", false),
            planned("d6a_two", "real", false),
            planned("e3_three", "real", true),
            planned("holds_four", "real", false),
        ];
        let results = [
            ("a1_one".to_owned(), "real", Outcome::Passed),
            ("a1_one".to_owned(), "embedded", Outcome::Failed),
            ("d6a_two".to_owned(), "real", Outcome::NotRun("why".to_owned())),
        ];
        let lines = lines(&banners, &plan, &results);
        let of = |case: &str| lines.iter().find(|line| line["case"] == case).cloned().unwrap_or_default();
        assert_eq!(lines[0], json!({ "agent": "real", "banner": "Consul v1.22.0" }), "only what was asked for");
        assert_eq!((&of("a1_one")["number"], &of("a1_one")["outcome"]), (&json!("A1"), &json!("passed")));
        assert_eq!((&of("d6a_two")["number"], &of("d6a_two")["reason"]), (&json!("D6a"), &json!("why")));
        assert_eq!(of("e3_three")["outcome"], "not-run");
        assert_eq!((&of("holds_four")["number"], &of("holds_four")["outcome"]), (&json!(""), &json!("failed")));
        assert!(
            lines.iter().all(|line| line["outcome"] != "not-run" || line["reason"] != ""),
            "a gap without a reason"
        );
    }
}
