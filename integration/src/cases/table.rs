//! The table in `README.md` and the names of the cases agree.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

const README: &str = include_str!("../../README.md");

/// How many numbered cases each group has. `D6a` stands beside `D6`.
const GROUPS: &[(char, u32)] =
    &[('A', 20), ('B', 22), ('C', 33), ('D', 24), ('E', 9), ('F', 11), ('G', 9), ('H', 8), ('I', 7)];

/// Every numbered case has a row, every row names cases that exist or says why none does, and every case whose name
/// begins with a number stands in the row of that number.
pub(crate) fn check() -> Result<()> {
    let all = super::all();
    let names: BTreeSet<&str> = all.iter().map(|case| case.name).collect();
    ensure!(names.len() == all.len(), "two cases have one name");
    let mut wanted: BTreeSet<String> =
        GROUPS.iter().flat_map(|(group, count)| (1..=*count).map(move |number| format!("{group}{number}"))).collect();
    wanted.insert("D6a".to_owned());
    let mut listed = BTreeSet::new();
    for row in README.lines().filter_map(|line| line.strip_prefix("| ")) {
        let mut cells = row.split(" | ");
        let (Some(number), Some(what)) = (cells.next(), cells.next()) else { continue };
        if !wanted.contains(number) && number != "–" {
            continue;
        }
        wanted.remove(number);
        let named: Vec<&str> = what.split('`').skip(1).step_by(2).collect();
        ensure!(!named.is_empty() || what.len() > 20, "{number} names no case and gives no reason");
        for name in named {
            ensure!(names.contains(name), "the table names {name}, which does not exist");
            let prefix = name.split('_').next().unwrap_or_default();
            ensure!(
                number == "–" || prefix == number.to_lowercase() || !is_number(prefix),
                "{name} stands in the row of {number}"
            );
            listed.insert(name);
            let Some(case) = all.iter().find(|case| case.name == name) else { continue };
            for why in case.limits() {
                ensure!(row.contains(why), "the row of {name} does not say: {why}");
            }
            ensure!(!case.is_drill() || row.contains("drill"), "the row of {name} does not say that it is a drill");
        }
    }
    ensure!(wanted.is_empty(), "without a row in the table: {wanted:?}");
    let missing: Vec<_> = names.iter().filter(|name| !listed.contains(**name)).collect();
    ensure!(missing.is_empty(), "cases without a place in the table: {missing:?}");
    Ok(())
}

/// The number of the contract that a case is of, `D6a`; none beyond the numbers.
pub(crate) fn number(case: &str) -> Option<String> {
    let prefix = case.split('_').next().unwrap_or_default();
    is_number(prefix).then(|| prefix[..1].to_uppercase() + &prefix[1..])
}

/// The numbers without a case, each with the reason that the table gives.
pub(crate) fn without_a_case() -> Vec<(&'static str, &'static str)> {
    without_a_case_in(README)
}

fn without_a_case_in(table: &str) -> Vec<(&str, &str)> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| {
        let mut cells = row.split(" | ");
        Some((cells.next()?, cells.next()?))
    });
    cells.filter(|(number, what)| is_number(&number.to_lowercase()) && !what.contains('`')).collect()
}

fn is_number(prefix: &str) -> bool {
    let mut letters = prefix.chars();
    letters.next().is_some_and(|group| ('a'..='i').contains(&group))
        && letters.next().is_some_and(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_of_the_number_that_its_name_begins_with() {
        assert_eq!(number("d6a_lost_rights").as_deref(), Some("D6a"));
        assert_eq!(number("i7_no_leader").as_deref(), Some("I7"));
        assert_eq!(number("drill_of_minutes"), None);
        assert_eq!(number("acl_c3_default"), None);
    }

    #[test]
    fn a_row_without_a_case_is_its_own_reason() {
        let table =
            "| number | cases | agents |\n|---|---|---|\n| A1 | `a1_x` | both |\n| A2 | no case: not yet | – |\n";
        assert_eq!(without_a_case_in(table), [("A2", "no case: not yet")]);
    }
}
