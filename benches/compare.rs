//! Lays what criterion has measured side by side, one column for each backend: `compare [prefix] [folder]`.
//!
//! Read are the baselines whose name begins with the prefix (default: `new`, the last run); of several the median
//! counts, so that rounds which took turns become one figure. The folder is `target/criterion` unless another is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::ExitCode,
};

use serde::{Deserialize, de::DeserializeOwned};

fn main() -> ExitCode {
    let prefix = env::args().nth(1).unwrap_or_else(|| "new".to_owned());
    let folder = env::args().nth(2).unwrap_or_else(|| "target/criterion".to_owned());
    let figures = read(Path::new(&folder), &prefix);
    if figures.is_empty() {
        say(&format!("nothing measured as {prefix}* in {folder}"));
        return ExitCode::FAILURE;
    }
    say(&table(&figures));
    ExitCode::SUCCESS
}

/// What criterion writes down about a bench; there is more.
#[derive(Deserialize)]
struct Bench {
    group_id: String,
    function_id: Option<String>,
    throughput: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// One bench of one backend: the nanoseconds of each baseline, and the bytes that one iteration moves.
#[derive(Default)]
struct Figure {
    times: Vec<f64>,
    bytes: Option<u64>,
}

/// By bench, then by backend.
type Figures = BTreeMap<String, BTreeMap<String, Figure>>;

fn read(folder: &Path, prefix: &str) -> Figures {
    let mut figures = Figures::new();
    for group in folders(folder) {
        for bench in folders(&group) {
            for baseline in folders(&bench) {
                let name = baseline.file_name().unwrap_or_default().to_string_lossy();
                if !name.starts_with(prefix) {
                    continue;
                }
                let (Some(bench), Some(estimates)) = (
                    json::<Bench>(&baseline.join("benchmark.json")),
                    json::<Estimates>(&baseline.join("estimates.json")),
                ) else {
                    continue;
                };
                let (Some((title, backend)), Some(function)) = (bench.group_id.rsplit_once('/'), &bench.function_id)
                else {
                    continue;
                };
                let row = figures.entry(format!("{title}: {function}")).or_default();
                let figure = row.entry(backend.to_owned()).or_default();
                figure.times.push(estimates.median.point_estimate);
                figure.bytes = bench.throughput.as_ref().and_then(|per| per.get("Bytes").copied());
            }
        }
    }
    figures
}

fn folders(of: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn table(figures: &Figures) -> String {
    let backends: BTreeSet<&String> = figures.values().flat_map(BTreeMap::keys).collect();
    let mut lines = vec![
        format!("| | {} |", backends.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" | ")),
        format!("|---{}|", "|---".repeat(backends.len())),
    ];
    for (bench, row) in figures {
        let cells = backends.iter().map(|name| row.get(*name).map_or_else(|| "–".to_owned(), Figure::text));
        lines.push(format!("| {bench} | {} |", cells.collect::<Vec<_>>().join(" | ")));
    }
    lines.join("\n")
}

impl Figure {
    fn text(&self) -> String {
        let nanoseconds = self.median();
        let time = time(nanoseconds);
        match self.bytes {
            Some(bytes) => format!("{time} ({:.2} GB/s)", bytes as f64 / nanoseconds),
            None => time,
        }
    }

    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let middle = times.len() / 2;
        if times.len() % 2 == 1 { times[middle] } else { f64::midpoint(times[middle - 1], times[middle]) }
    }
}

fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ..1e3 => (nanoseconds, "ns"),
        1e3..1e6 => (nanoseconds / 1e3, "µs"),
        _ => (nanoseconds / 1e6, "ms"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[expect(clippy::print_stdout, reason = "a tool reports on standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_stand_beside_each_other_with_the_median_of_all_rounds() {
        let figure = |times: &[f64], bytes| Figure { times: times.to_vec(), bytes };
        let mut figures = Figures::new();
        let row = figures.entry("records: seal".to_owned()).or_default();
        row.insert("rustls".to_owned(), figure(&[2_000.0, 1_000.0, 9_000.0], Some(16_000)));
        row.insert("boring".to_owned(), figure(&[100.0, 300.0], None));
        figures.entry("parts: verify".to_owned()).or_default().insert("rustls".to_owned(), figure(&[1.5e6], None));
        assert_eq!(
            table(&figures),
            "| | boring | rustls |\n|---|---|---|\n| parts: verify | – | 1.50 ms |\n\
             | records: seal | 200 ns | 2.00 µs (8.00 GB/s) |"
        );
    }
}
