//! Medians, ratios and the tables.

use std::fmt::Write as _;

use super::{
    Figures,
    candidates::Candidate,
    measures::{MEASUREMENTS, Measurement, Row, Rule, Work},
};

/// What one measurement of one candidate in one round gave.
pub(crate) struct Sample {
    /// Index among the candidates.
    pub(crate) candidate: usize,
    /// Index among [`MEASUREMENTS`].
    pub(crate) measurement: usize,
    /// The figures, or why there are none.
    pub(crate) outcome: Result<Figures, String>,
}

/// Middle, least and greatest of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    greatest: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, least, greatest })
    }
}

/// How far a Lictor has come in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Aim,
    Must,
    Missed,
}

impl Verdict {
    fn of(value: f64, must: f64, aim: f64) -> Self {
        match value {
            _ if value <= aim => Self::Aim,
            _ if value <= must => Self::Must,
            _ => Self::Missed,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Aim => "aim",
            Self::Must => "must",
            Self::Missed => "**missed**",
        }
    }
}

/// Both tables as Markdown: how each Lictor stands to the best peer, and what everybody needed.
pub(crate) fn tables(candidates: &[Candidate], samples: &[Sample]) -> String {
    let lictors: Vec<usize> = (0..candidates.len()).filter(|&index| candidates[index].lictor).collect();
    let mut judged = String::from("| measure | unit | best peer | must | aim |");
    for &lictor in &lictors {
        let _ = write!(judged, " {} |", candidates[lictor].name);
    }
    judged.push_str(&format!("\n|---|---|---|---|---|{}\n", "---|".repeat(lictors.len())));
    let mut all = String::from("| measure | unit |");
    for candidate in candidates {
        let _ = write!(all, " {} |", candidate.name);
    }
    let _ = writeln!(all, " strangers |\n|---|---|{}---|", "---|".repeat(candidates.len()));
    for (index, measurement) in MEASUREMENTS.iter().enumerate() {
        let mine: Vec<&Sample> = samples.iter().filter(|sample| sample.measurement == index).collect();
        if mine.is_empty() {
            continue;
        }
        for row in measurement.rows {
            let spreads: Vec<Option<Spread>> =
                (0..candidates.len()).map(|candidate| spread(&mine, candidate, row)).collect();
            if !matches!(row.rule, Rule::Told) && !lictors.is_empty() {
                judged.push_str(&judged_line(row, candidates, &spreads, &lictors));
            }
            all.push_str(&line(row, &spreads, &mine));
        }
    }
    format!("{judged}\n{all}")
}

/// What failed: a line for each reason of each candidate.
pub(crate) fn failures(candidates: &[Candidate], samples: &[Sample]) -> Vec<String> {
    let mut reasons: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for sample in samples {
        if let (Err(why), Some(candidate)) = (&sample.outcome, candidates.get(sample.candidate)) {
            let Measurement { key, work, .. } = &MEASUREMENTS[sample.measurement];
            let what = if let Work::Load(arguments) = work { *arguments } else { *key };
            match reasons.iter_mut().find(|(name, reason, _)| *name == candidate.name && *reason == why.as_str()) {
                Some((.., all)) if all.contains(&what) => {}
                Some((.., all)) => all.push(what),
                None => reasons.push((&candidate.name, why, vec![what])),
            }
        }
    }
    reasons.iter().map(|(name, why, all)| format!("{name} ({}): {why}", all.join("; "))).collect()
}

fn spread(samples: &[&Sample], candidate: usize, row: &Row) -> Option<Spread> {
    let of_it = samples.iter().filter(|sample| sample.candidate == candidate);
    Spread::of(of_it.filter_map(|sample| Some(row.figure.of(sample.outcome.as_ref().ok()?)? * row.scale)))
}

fn judged_line(row: &Row, candidates: &[Candidate], spreads: &[Option<Spread>], lictors: &[usize]) -> String {
    let (must, aim) = match row.rule {
        Rule::Ratio { must, aim, .. } => (format!("× {must:.2}"), format!("× {aim:.2}")),
        Rule::AtLeast { must, aim } => (format!("> {must}"), format!("> {aim}")),
        Rule::AimAtMost(aim) => ("–".into(), format!("≤ {aim}")),
        Rule::Told => return String::new(),
    };
    let best = best(row.rule, candidates, spreads);
    let named = best.map_or_else(|| "–".into(), |(name, value)| format!("{name} {}", short(value)));
    let mut line = format!("| {} | {} | {named} | {must} | {aim} |", row.name, row.unit);
    for &lictor in lictors {
        let Some(Spread { median, .. }) = spreads[lictor] else {
            line.push_str(" failed |");
            continue;
        };
        let cell = match (row.rule, best) {
            (Rule::Ratio { must, aim, .. }, Some((_, best))) => {
                let ratio = median / best;
                format!("× {ratio:.2} ({}), {}", short(median), Verdict::of(ratio, must, aim).word())
            }
            (Rule::AtLeast { must, aim }, _) => {
                format!("{}, {}", short(median), Verdict::of(-median, -must, -aim).word())
            }
            (Rule::AimAtMost(aim), _) => {
                format!("{}, {}", short(median), if median <= aim { "aim" } else { "aim missed" })
            }
            _ => short(median),
        };
        let _ = write!(line, " {cell} |");
    }
    line.push('\n');
    line
}

/// The peer that does best by a rule, with its median.
fn best<'a>(rule: Rule, candidates: &'a [Candidate], spreads: &[Option<Spread>]) -> Option<(&'a str, f64)> {
    let peers = candidates.iter().zip(spreads).filter(|(candidate, _)| !candidate.lictor);
    let figures = peers.filter_map(|(candidate, spread)| Some((candidate.name.as_str(), (*spread)?.median)));
    match rule {
        Rule::Ratio { against, .. } => figures
            .filter(|(name, value)| *value > 0.0 && (against.is_empty() || against.contains(name)))
            .min_by(|a, b| a.1.total_cmp(&b.1)),
        Rule::AtLeast { .. } => figures.max_by(|a, b| a.1.total_cmp(&b.1)),
        Rule::AimAtMost(_) | Rule::Told => figures.min_by(|a, b| a.1.total_cmp(&b.1)),
    }
}

fn line(row: &Row, spreads: &[Option<Spread>], samples: &[&Sample]) -> String {
    let mut line = format!("| {} | {} |", row.name, row.unit);
    for (candidate, spread) in spreads.iter().enumerate() {
        let tried = samples.iter().any(|sample| sample.candidate == candidate);
        let cell = match spread {
            Some(Spread { median, least, greatest }) if least == greatest => short(*median),
            Some(Spread { median, least, greatest }) => {
                format!("{} ({}–{})", short(*median), short(*least), short(*greatest))
            }
            None if tried => "failed".to_owned(),
            None => "–".to_owned(),
        };
        let _ = write!(line, " {cell} |");
    }
    let strangers = samples.iter().filter_map(|sample| sample.outcome.as_ref().ok()?.get("strangers").copied());
    let cell = Spread::of(strangers)
        .map_or_else(|| "–".into(), |strangers| format!("{:.2} (at most {:.2})", strangers.median, strangers.greatest));
    let _ = writeln!(line, " {cell} |");
    line
}

/// Three digits that count, thousands apart.
fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        let whole = format!("{size:.0}");
        let mut out = String::new();
        for (place, digit) in whole.chars().enumerate() {
            if place > 0 && (whole.len() - place).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        return if value < 0.0 { format!("-{out}") } else { out };
    }
    match size {
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::peers::candidates::Recipe;

    fn candidate(name: &str, lictor: bool) -> Candidate {
        let recipe = Recipe { config: None, arguments: "" };
        Candidate {
            name: name.to_owned(),
            program: PathBuf::new(),
            version: String::new(),
            lictor,
            mesh: false,
            inbound: recipe,
            outbound: None,
            environment: &[],
        }
    }

    fn sample(candidate: usize, cpu: f64) -> Sample {
        let figures = [("cpu", cpu), ("units", 1000.0), ("agent_cpu", 0.0), ("strangers", 0.25)];
        let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Sample { candidate, measurement: 0, outcome: Ok(figures) }
    }

    fn failed(candidate: usize) -> Sample {
        Sample { candidate, measurement: 0, outcome: Err("it fell over".to_owned()) }
    }

    #[test]
    fn a_median_is_in_the_middle_whatever_the_order() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, greatest: 3.0 }));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_ratio_is_to_the_best_peer_and_not_to_another_lictor() {
        let candidates =
            [candidate("Envoy", false), candidate("nginx", false), candidate("A", true), candidate("B", true)];
        let samples = [sample(0, 0.3), sample(1, 0.9), sample(2, 0.24), sample(3, 0.2), sample(3, 0.18)];
        let tables = tables(&candidates, &samples);
        let line = tables.lines().find(|line| line.contains("inbound handshake")).unwrap();
        assert!(line.contains("| Envoy 0.300 | × 0.90 | × 0.70 |"), "{line}");
        assert!(line.ends_with("| × 0.80 (0.240), must | × 0.63 (0.190), aim |"), "{line}");
    }

    #[test]
    fn a_missed_must_stands_out() {
        let candidates = [candidate("Envoy", false), candidate("A", true)];
        let tables = tables(&candidates, &[sample(0, 0.3), sample(1, 0.3)]);
        assert!(tables.contains("× 1.00 (0.300), **missed**"), "{tables}");
    }

    #[test]
    fn who_fails_is_told_and_does_not_hide_the_others() {
        let candidates = [candidate("Envoy", false), candidate("nginx", false), candidate("A", true)];
        let samples = [failed(0), failed(0), sample(1, 0.9), sample(2, 0.45)];
        let tables = tables(&candidates, &samples);
        assert!(tables.contains("| nginx 0.900 |") && tables.contains("| failed | 0.900 | 0.450 |"), "{tables}");
        assert_eq!(failures(&candidates, &samples), ["Envoy (handshakes --connections=16): it fell over"]);
    }

    #[test]
    fn a_latency_is_compared_with_the_named_peers_alone() {
        let candidates = [candidate("Envoy", false), candidate("stunnel", false)];
        let spreads = [100.0, 50.0].map(|value| Spread::of([value]));
        let rule = Rule::Ratio { must: 1.0, aim: 1.0, against: &["Envoy"] };
        assert_eq!(best(rule, &candidates, &spreads), Some(("Envoy", 100.0)));
        assert_eq!(
            best(Rule::Ratio { must: 1.0, aim: 1.0, against: &[] }, &candidates, &spreads),
            Some(("stunnel", 50.0))
        );
    }

    #[test]
    fn more_is_better_where_at_least_so_much_is_asked() {
        assert_eq!(Verdict::of(-85.0, -50.0, -80.0), Verdict::Aim);
        assert_eq!(Verdict::of(-60.0, -50.0, -80.0), Verdict::Must);
        assert_eq!(Verdict::of(-20.0, -50.0, -80.0), Verdict::Missed);
    }

    #[test]
    fn figures_have_three_digits_that_count() {
        assert_eq!(
            [0.0123, 1.234, 23.45, 234.5, 23_700.0, 1_234_567.0].map(short),
            ["0.012", "1.23", "23.4", "234", "23,700", "1,234,567"]
        );
    }
}
