//! Lictor beside other proxies, in one run: `cargo xtask peers`.
//!
//! Everything that is measured does the same work for the same load and takes turns with the others, so that what the
//! machine does meanwhile hits all alike. What counts is the ratio to the best peer. `benches/load` is the load and
//! the application; `benches/peers` holds the peers' configurations.

mod candidates;
mod instance;
mod measures;
mod place;
mod report;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use self::{
    candidates::Candidate,
    instance::{Agent, Instance, Role, Scene},
    measures::{MEASUREMENTS, Work},
    place::Place,
    report::Sample,
};
use crate::{
    features::{FeatureSet, LEGAL},
    workspace::{cargo, output, root, step, target},
};

/// What the load generator says, by name.
type Figures = BTreeMap<String, f64>;

/// Memory is measured in so many rounds at most: each needs half a minute, and it hardly varies.
const MEMORY_ROUNDS: usize = 3;

/// What the command line asks for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Libraries whose release builds of Lictor are measured beside each other: rustls, openssl, boring …; "none" for
    /// no build.
    #[arg(long, value_delimiter = ',', default_value = "rustls")]
    sets: Vec<String>,
    /// Another binary of Lictor to measure, such as the one before a change; may be repeated.
    #[arg(long, value_name = "NAME=FILE")]
    lictor: Vec<String>,
    /// Only candidates whose name holds one of these, such as envoy,nginx,lictor.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these of: handshake, chain-handshake, bulk, chain-bulk, closed-loop, rate, beside, memory, start, size.
    #[arg(long, value_delimiter = ',')]
    measures: Vec<String>,
    /// How often each is measured, in turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The core of the proxies.
    #[arg(long, default_value_t = 1)]
    proxy_core: usize,
    /// The core of the load, the application and the agent.
    #[arg(long, default_value_t = 0)]
    load_core: usize,
    /// Stay in the network namespace that this machine has already.
    #[arg(long)]
    no_namespace: bool,
    /// The load generator; said by this program to itself in its new namespace.
    #[arg(long, hide = true)]
    load: Option<PathBuf>,
    /// Likewise: there is a namespace.
    #[arg(long, hide = true)]
    namespace: bool,
}

/// Builds, changes into a network namespace, measures, and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds: at least one");
    let known = |key: &String| MEASUREMENTS.iter().any(|measurement| measurement.key == key);
    if let Some(unknown) = arguments.measures.iter().find(|key| !known(key)) {
        bail!("--measures: there is no {unknown:?}; `cargo xtask peers --help` lists them");
    }
    let Some(load) = &arguments.load else { return build_and_enter(arguments) };
    if arguments.namespace {
        place::furnish_namespace()?;
    }
    measure(arguments, load)
}

/// Cargo may need the network, so it runs before this program gives it up.
fn build_and_enter(arguments: &Arguments) -> Result<()> {
    let mut lictors = Vec::new();
    for name in arguments.sets.iter().filter(|name| *name != "none") {
        lictors.push(format!("{name}={}", build(set(name)?, name)?.display()));
    }
    let mut load = cargo(&["build", "--release", "--locked", "-p", "lictor-benches", "--bin", "load"]);
    step("the load generator", &mut load)?;
    let namespace = if arguments.no_namespace { None } else { place::namespace() };
    let inside = namespace.is_some();
    if !inside && !arguments.no_namespace {
        eprintln!("peers: no network namespace of our own (it needs root, unshare and ip): other traffic disturbs");
    }
    let own = std::env::current_exe().context("where is this program?")?;
    let mut command = namespace.unwrap_or_else(|| Command::new("env"));
    command.arg(own).args(std::env::args_os().skip(1));
    command.arg("--load").arg(target().join("release/load"));
    command.args(lictors.iter().flat_map(|lictor| ["--lictor", lictor]));
    command.args(inside.then_some("--namespace"));
    let status = command.stdin(Stdio::null()).status().context("cannot run this program again")?;
    ensure!(status.success(), "the measurement failed");
    Ok(())
}

/// The set of a library, with the embedded agent where there are both.
fn set(name: &str) -> Result<&'static FeatureSet> {
    let wanted = |set: &&FeatureSet| set.features == name || set.features == format!("{name},dev");
    LEGAL.iter().find(wanted).with_context(|| format!("--sets: there is no feature set {name:?}"))
}

/// The release binary of a set, under a name that the next set does not overwrite.
fn build(set: &FeatureSet, name: &str) -> Result<PathBuf> {
    let arguments = ["build", "--release", "--locked", "-p", "lictor", "--no-default-features", &set.argument()];
    step(&format!("Lictor, {name}"), &mut cargo(&arguments))?;
    let folder = target().join("peers");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kept = folder.join(name);
    let new = kept.with_extension("new");
    fs::copy(target().join("release/lictor"), &new).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, &kept).with_context(|| format!("cannot name {}", kept.display()))?;
    Ok(kept)
}

fn measure(arguments: &Arguments, load: &Path) -> Result<()> {
    let chosen = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|word| named(name, word));
    let (mut candidates, missing) = candidates::installed();
    for lictor in &arguments.lictor {
        let (name, file) = lictor.split_once('=').context("--lictor: NAME=FILE")?;
        candidates.push(Candidate::lictor(name, Path::new(file))?);
    }
    candidates.retain(|candidate| chosen(&candidate.name));
    ensure!(!candidates.is_empty(), "nothing to measure: {}", missing.join("; "));
    let place = Place::new(load, arguments.proxy_core, arguments.load_core)?;
    let files = place.room("certificates")?;
    place.load(&["certificates".to_owned(), files.display().to_string()])?;
    let (application, application_port) = place.application()?;
    let consul = candidates::consul();
    let lictor = candidates.iter().find(|candidate| candidate.lictor).map(|candidate| candidate.program.as_path());
    let needs_agent = candidates.iter().any(|candidate| candidate.mesh);
    let (agent, no_agent) = match needs_agent.then(|| Agent::start(&place, consul.as_deref(), lictor)) {
        None => (None, String::new()),
        Some(Ok(agent)) => (Some(agent), String::new()),
        Some(Err(why)) => (None, format!("{why:#}")),
    };
    let scene = Scene {
        place: &place,
        agent: agent.as_ref(),
        no_agent: &no_agent,
        application: application.id()?,
        application_port,
        files: &files,
    };
    let mut run = Run { arguments, scene, candidates: &candidates, samples: Vec::new(), started: 0 };
    for role in [Role::Inbound, Role::Chain] {
        run.under_load(role);
    }
    run.alone();
    let samples = run.samples;
    println!("\n{}", origin()?);
    println!("* {}", place.words(arguments.namespace));
    println!(
        "* medians (least–greatest) of {} rounds in turns (memory: at most {MEMORY_ROUNDS}), {} s each",
        arguments.rounds, arguments.seconds
    );
    println!("* TLS 1.3, AES-128-GCM, X25519, P-256, client certificate required, no resumption");
    println!("* memory: {} connections", Place::connections());
    println!("* agent: {}", agent.as_ref().map_or("none", |agent| &agent.words));
    for candidate in &candidates {
        println!("* {}: {}", candidate.name, candidate.version);
    }
    for line in missing.iter().filter(|line| chosen(line)) {
        println!("* {line}");
    }
    println!("\n{}", report::tables(&candidates, &samples));
    let failures = report::failures(&candidates, &samples);
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    ensure!(samples.iter().any(|sample| sample.outcome.is_ok()), "nothing could be measured");
    Ok(())
}

/// The measuring itself; what fails becomes a sample that says so, and the others go on.
struct Run<'a> {
    arguments: &'a Arguments,
    scene: Scene<'a>,
    candidates: &'a [Candidate],
    samples: Vec<Sample>,
    started: usize,
}

impl Run<'_> {
    /// All that is measured on proxies which run all the time.
    fn under_load(&mut self, role: Role) {
        let measurements: Vec<(usize, &str)> = MEASUREMENTS
            .iter()
            .enumerate()
            .filter(|(_, measurement)| measurement.role == role && self.wants(measurement.key))
            .filter_map(|(index, measurement)| match measurement.work {
                Work::Load(words) => Some((index, words)),
                _ => None,
            })
            .collect();
        if measurements.is_empty() {
            return;
        }
        let mut instances = Vec::new();
        for index in 0..self.candidates.len() {
            if role == Role::Chain && self.candidates[index].outbound.is_none() {
                continue;
            }
            match self.start(index, role) {
                Ok(instance) => instances.push((index, instance)),
                Err(why) => measurements.iter().for_each(|(measurement, _)| {
                    self.keep(index, *measurement, Err(anyhow::anyhow!("cannot start it: {why:#}")));
                }),
            }
        }
        for (measurement, words) in measurements {
            for round in 0..self.arguments.rounds {
                eprintln!("peers: {role:?}, {words}, round {}", round + 1);
                // Each round begins with another, so that nobody always follows the same neighbour.
                for turn in 0..instances.len() {
                    let (index, instance) = &instances[(turn + round) % instances.len()];
                    let outcome = twice(|| self.under(instance, words));
                    self.keep(*index, measurement, outcome);
                }
            }
        }
    }

    /// All for which a proxy is started anew.
    fn alone(&mut self) {
        for (measurement, work) in MEASUREMENTS.iter().enumerate().map(|(index, it)| (index, it.work)) {
            let key = MEASUREMENTS[measurement].key;
            if matches!(work, Work::Load(_)) || !self.wants(key) {
                continue;
            }
            let rounds = match work {
                Work::Memory => self.arguments.rounds.min(MEMORY_ROUNDS),
                Work::Size => 1,
                _ => self.arguments.rounds,
            };
            for round in 0..rounds {
                eprintln!("peers: {key}, round {}", round + 1);
                for index in 0..self.candidates.len() {
                    let outcome = match work {
                        Work::Memory => twice(|| self.memory(index)),
                        Work::Start => twice(|| self.starting(index)),
                        Work::Size => self.size(index),
                        Work::Load(_) => continue,
                    };
                    self.keep(index, measurement, outcome);
                }
            }
        }
    }

    fn under(&self, instance: &Instance, words: &str) -> Result<Figures> {
        let mut load: Vec<String> = words.split(' ').map(str::to_owned).collect();
        load.push(format!("--seconds={}", self.arguments.seconds));
        load.extend_from_slice(instance.target());
        load.extend(instance.parties(&self.scene)?);
        self.scene.place.load(&load)
    }

    fn memory(&mut self, index: usize) -> Result<Figures> {
        let instance = self.start(index, Role::Inbound)?;
        let mut load = vec!["memory".to_owned(), format!("--connections={}", Place::connections())];
        load.extend(["--traffic=65536".to_owned(), "--after=10".to_owned()]);
        load.extend_from_slice(instance.target());
        load.extend(instance.parties(&self.scene)?);
        self.scene.place.load(&load)
    }

    fn starting(&mut self, index: usize) -> Result<Figures> {
        let mut instance = self.start(index, Role::Inbound)?;
        instance.stop();
        let mut load = vec!["start".to_owned()];
        load.extend_from_slice(instance.target());
        load.push("--".to_owned());
        load.extend(instance.restart(self.scene.place, &self.candidates[index].program));
        self.scene.place.load(&load)
    }

    /// The length of the program's file without its symbols.
    fn size(&self, index: usize) -> Result<Figures> {
        let program = fs::canonicalize(&self.candidates[index].program)?;
        let stripped = self.scene.place.folder.path().join("stripped");
        let strip = Command::new("strip").arg("-o").arg(&stripped).arg(&program).stderr(Stdio::null()).status();
        let measured = if strip.is_ok_and(|status| status.success()) { &stripped } else { &program };
        #[expect(clippy::cast_precision_loss, reason = "no program has 2^52 bytes")]
        let size = fs::metadata(measured)?.len() as f64;
        Ok(Figures::from([("size".to_owned(), size)]))
    }

    fn start(&mut self, index: usize, role: Role) -> Result<Instance> {
        self.started += 1;
        Instance::start(&self.scene, &self.candidates[index], role, self.started)
    }

    fn keep(&mut self, candidate: usize, measurement: usize, outcome: Result<Figures>) {
        if let Err(why) = &outcome {
            eprintln!("peers: {}: {why:#}", self.candidates[candidate].name);
        }
        self.samples.push(Sample { candidate, measurement, outcome: outcome.map_err(|why| format!("{why:#}")) });
    }

    fn wants(&self, key: &str) -> bool {
        self.arguments.measures.is_empty() || self.arguments.measures.iter().any(|wanted| wanted == key)
    }
}

/// Once more when it fails: a busy machine may keep the load from its rate.
fn twice(mut work: impl FnMut() -> Result<Figures>) -> Result<Figures> {
    work().or_else(|why| {
        eprintln!("peers: once more, {why:#}");
        work()
    })
}

/// Whether a candidate's name holds a word, whatever the case.
fn named(name: &str, word: &str) -> bool {
    name.to_ascii_lowercase().contains(&word.to_ascii_lowercase())
}

/// Date, commit and machine.
fn origin() -> Result<String> {
    let git = |arguments: &[&str]| output(Command::new("git").current_dir(root()).args(arguments));
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = if git(&["status", "--porcelain", "-uno"])?.is_empty() { "" } else { ", with changes" };
    let date = output(Command::new("date").args(["-u", "+%-d %B %Y"]))?;
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(format!(
        "{}, commit {}{changed}: {cores} cores of {model}, Linux {}; load average at the end {}",
        date.trim(),
        commit.trim(),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default()
    ))
}
