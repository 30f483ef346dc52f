//! Runs the cases against every agent that this machine has, and says of each which agent it met.

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::{
    agent::{Consul, Image, Kind, Version},
    cases,
    libraries::{self, Library},
    lictor, report,
    world::{NotRun, World},
};

/// How much may run at once: most cases wait most of their time, so more than there are cores.
const SLOTS: u32 = 6;

/// The time a case may take, with room for a machine that is busy.
const CASE: Duration = Duration::from_secs(120);

/// The time a drill may take.
const DRILL: Duration = Duration::from_secs(1800);

/// The oldest version that stages an ordinary case: it shows a single service, so a sidecar can follow its registration.
const ORDINARY: Version = Version(1, 3);

type Run = fn(Arc<World>) -> Pin<Box<dyn Future<Output = Result<()>>>>;

/// One case, written once for every agent.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    run: Run,
    /// Why there is nothing to see with the embedded agent.
    not_embedded: Option<&'static str>,
    /// Why there is nothing to see with a real one.
    not_real: Option<&'static str>,
    since: Version,
    before: Version,
    slots: u32,
    drill: bool,
}

impl Case {
    pub(crate) const fn new(name: &'static str, run: Run) -> Self {
        Self {
            name,
            run,
            not_embedded: None,
            not_real: None,
            since: ORDINARY,
            before: Version(u32::MAX, 0),
            slots: 1,
            drill: false,
        }
    }

    /// Only with the embedded agent; says why.
    pub(crate) const fn embedded(mut self, why: &'static str) -> Self {
        self.not_real = Some(why);
        self
    }

    /// Only with a real agent; says why.
    pub(crate) const fn real(mut self, why: &'static str) -> Self {
        self.not_embedded = Some(why);
        self
    }

    /// The oldest version of Consul that can stage it.
    pub(crate) const fn since(mut self, major: u32, minor: u32) -> Self {
        self.since = Version(major, minor);
        self
    }

    /// The first version of Consul that cannot stage it any more.
    pub(crate) const fn before(mut self, major: u32, minor: u32) -> Self {
        self.before = Version(major, minor);
        self
    }

    /// Takes cores or descriptors from its neighbours, so it has fewer of them.
    pub(crate) const fn heavy(mut self) -> Self {
        self.slots = SLOTS / 2;
        self
    }

    /// Runs alone.
    pub(crate) const fn alone(mut self) -> Self {
        self.slots = SLOTS;
        self
    }

    /// Needs minutes: runs only when drills are asked for.
    pub(crate) const fn drill(mut self) -> Self {
        self.drill = true;
        self.slots = SLOTS;
        self
    }

    /// Why it says nothing about one of the agents, where it does not.
    pub(crate) fn limits(&self) -> impl Iterator<Item = &'static str> {
        self.not_embedded.into_iter().chain(self.not_real)
    }

    /// Whether it runs only when drills are asked for.
    pub(crate) fn is_drill(&self) -> bool {
        self.drill
    }

    /// Why it cannot run against this agent.
    fn not_run(&self, agent: &Found) -> Option<String> {
        match agent {
            Found::Missing => Some("no real consul".to_owned()),
            Found::There(Kind::Embedded) => self.not_embedded.map(|why| format!("real agent only: {why}")),
            Found::There(kind) => {
                let version = kind.version()?;
                if let Some(why) = self.not_real {
                    Some(format!("embedded agent only: {why}"))
                } else if version >= self.before {
                    Some(format!("only a Consul before {} can stage it", self.before))
                } else if version >= self.since {
                    None
                } else if self.since == ORDINARY {
                    Some(format!(
                        "Consul before {ORDINARY} does not show a single service, so no registration can be followed; such a \
                         version is tested with managed proxies"
                    ))
                } else {
                    Some(format!("only Consul {} and later can stage it", self.since))
                }
            }
        }
    }
}

/// Names a case after its function.
macro_rules! case {
    ($name:ident) => {
        $crate::runner::Case::new(stringify!($name), |world| Box::pin($name(world)))
    };
}
pub(crate) use case;

/// An agent, or the place where one could be.
#[derive(Clone)]
enum Found {
    There(Kind),
    Missing,
}

/// How a case went against one agent.
#[derive(Clone)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    NotRun(String),
}

/// A case beside an agent that the command line asks for.
pub(crate) struct Planned {
    pub(crate) case: &'static str,
    pub(crate) agent: &'static str,
    /// It is a drill, and those were not asked for.
    pub(crate) ignored: bool,
}

/// Case, agent, and how it went.
type Results = Arc<Mutex<Vec<(String, &'static str, Outcome)>>>;

/// Runs what the command line asks for; for the test harness's `main`.
#[must_use]
pub fn run() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        arguments.test_threads = Some(SLOTS as usize);
    }
    let begun = match prepare(&arguments) {
        Ok(begun) => begun,
        Err(error) => {
            eprintln!("integration: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let results = Results::default();
    let gate = Arc::new(Semaphore::new(SLOTS as usize));
    let mut trials = vec![Trial::test("every_numbered_case_stands_in_the_table_and_no_stale_name_does", || {
        cases::table::check().map_err(|error| Failed::from(format!("{error:#}")))
    })];
    let mut planned = Vec::new();
    for case in cases::all() {
        for (label, agent) in [("embedded", Found::There(Kind::Embedded)), ("real", begun.real.clone())] {
            let trial = trial(case, label, &agent, &begun, &gate, &results);
            if !arguments.is_filtered_out(&trial) {
                planned.push(Planned { case: case.name, agent: label, ignored: arguments.is_ignored(&trial) });
            }
            trials.push(trial);
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let results = results.lock();
        report(&begun, &results);
        if let Err(error) = report::write(&begun.banners, &planned, &results) {
            eprintln!("integration: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    conclusion.exit_code()
}

/// What was found before the first case.
struct Begun {
    binary: PathBuf,
    libraries: Arc<[Library]>,
    real: Found,
    /// The lines that say which libraries and which agents there were.
    lines: [String; 2],
    /// What each agent says it is, by its label.
    banners: Vec<(&'static str, String)>,
}

fn prepare(arguments: &Arguments) -> Result<Begun> {
    if arguments.list {
        let (libraries, lines, banners) = (Arc::new([]), Default::default(), Vec::new());
        return Ok(Begun { binary: PathBuf::new(), libraries, real: Found::Missing, lines, banners });
    }
    let mut banners = vec![("embedded", "the embedded agent".to_owned())];
    let (real, line) = match (Image::find()?, Consul::find()?) {
        (Some(image), _) => {
            let line = format!("real consul: a container of {} ({})", image.name, image.banner);
            banners.push(("real", format!("{} in a container", image.banner)));
            (Found::There(Kind::Container(image)), line)
        }
        (None, Some(consul)) => {
            let line = format!("real consul: {} ({})", consul.path.display(), consul.banner);
            banners.push(("real", consul.banner.clone()));
            (Found::There(Kind::Consul(consul)), line)
        }
        (None, None) => {
            (Found::Missing, "real consul: none found on PATH; ran against the embedded agent only".to_owned())
        }
    };
    let binary = lictor::binary()?;
    println!("binary under test: {}", binary.display());
    let libraries: Arc<[Library]> = libraries::from_environment(&binary)?.into();
    let lines = [libraries::line(&libraries), line];
    lines.iter().for_each(|line| println!("{line}"));
    Ok(Begun { binary, libraries, real, lines, banners })
}

fn trial(
    case: Case,
    label: &'static str,
    agent: &Found,
    begun: &Begun,
    gate: &Arc<Semaphore>,
    results: &Results,
) -> Trial {
    let (agent, gate, results) = (agent.clone(), Arc::clone(gate), Arc::clone(results));
    let (binary, libraries) = (begun.binary.clone(), Arc::clone(&begun.libraries));
    let trial = Trial::ignorable_test(case.name, move || {
        let note = |outcome: Outcome| results.lock().push((case.name.to_owned(), label, outcome));
        if let Some(why) = case.not_run(&agent) {
            note(Outcome::NotRun(why.clone()));
            return Ok(Completion::ignored_with(format!("not run: {why}")));
        }
        let Found::There(kind) = agent else { return Err(Failed::from("no agent")) };
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(case, kind, binary, libraries, &gate)));
        match outcome {
            Ok(Ok(())) => {
                note(Outcome::Passed);
                Ok(Completion::Completed)
            }
            Ok(Err(error)) => match error.downcast_ref::<NotRun>() {
                Some(NotRun(why)) => {
                    note(Outcome::NotRun(why.clone()));
                    Ok(Completion::ignored_with(format!("not run: {why}")))
                }
                None => {
                    note(Outcome::Failed);
                    Err(Failed::from(format!("{error:#}")))
                }
            },
            Err(_) => {
                note(Outcome::Failed);
                Err(Failed::from("panicked"))
            }
        }
    });
    trial.with_kind(label).with_ignored_flag(case.drill)
}

fn play(case: Case, kind: Kind, binary: PathBuf, libraries: Arc<[Library]>, gate: &Semaphore) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let world = Arc::new(World::new(kind, binary, libraries)?);
    let outputs = world.outputs();
    let outcome = runtime.block_on(async {
        let _slots = gate.acquire_many(case.slots).await?;
        let begun = Instant::now();
        let limit = if case.drill { DRILL } else { CASE };
        let outcome = match tokio::time::timeout(limit, (case.run)(world)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("the case did not end within {limit:?}")),
        };
        if std::env::var_os("LICTOR_INTEGRATION_TIMES").is_some() {
            eprintln!("{:>7.2} s  {}", begun.elapsed().as_secs_f64(), case.name);
        }
        outcome
    });
    // What a case has left running must not hold up the next one.
    runtime.shutdown_background();
    outcome.map_err(|error| {
        if error.is::<NotRun>() {
            return error;
        }
        let mut text = format!("{error:#}");
        for (name, output) in outputs.lock().iter() {
            text.push_str(&format!("\n--- the end of the output of {name}\n{}", output.tail(40)));
        }
        anyhow::anyhow!(text)
    })
}

/// The table at the end: what ran against what, and what did not.
fn report(begun: &Begun, results: &[(String, &'static str, Outcome)]) {
    if results.is_empty() {
        return;
    }
    let word = |name: &str, label: &str| {
        let found = results.iter().find(|(case, agent, _)| case == name && *agent == label);
        match found.map(|(.., outcome)| outcome) {
            Some(Outcome::Passed) => "passed".to_owned(),
            Some(Outcome::Failed) => "FAILED".to_owned(),
            Some(Outcome::NotRun(why)) => format!("not run: {why}"),
            None => "not asked for".to_owned(),
        }
    };
    println!("{:<78} {:<9} real", "case", "embedded");
    for case in cases::all() {
        if !results.iter().any(|(name, ..)| name == case.name) {
            continue;
        }
        let embedded = word(case.name, "embedded");
        let real = word(case.name, "real");
        // A long reason stands in a line of its own, so that the columns stay readable.
        match embedded.strip_prefix("not run: ") {
            None => println!("{:<78} {embedded:<9} {real}", case.name),
            Some(why) => println!("{:<78} {:<9} {real}\n{:<78} embedded: {why}", case.name, "not run", ""),
        }
    }
    for (label, agent) in [("embedded", "the embedded agent"), ("real", "a real consul")] {
        let count = |wanted: fn(&Outcome) -> bool| {
            results.iter().filter(|(_, agent, outcome)| *agent == label && wanted(outcome)).count()
        };
        println!(
            "against {agent}: {} passed, {} failed, {} not run",
            count(|outcome| matches!(outcome, Outcome::Passed)),
            count(|outcome| matches!(outcome, Outcome::Failed)),
            count(|outcome| matches!(outcome, Outcome::NotRun(_))),
        );
    }
    begun.lines.iter().for_each(|line| println!("{line}"));
}
