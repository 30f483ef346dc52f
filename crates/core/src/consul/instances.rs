//! Reading the agent's lists of instances.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::Value;

use super::{
    client::words,
    json::{Fields, Problems},
};
use crate::{
    discovery::{Destination, DestinationKind, Instance},
    identity::DEFAULT,
};

/// The largest weight that counts.
const MAX_WEIGHT: u64 = 65_535;

/// The problems with entries that are kept in words; the rest is counted.
const MAX_PROBLEMS: usize = 8;

/// A list of instances as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InstanceList {
    pub(super) instances: Vec<Instance>,
    /// How many entries are healthy or not, the unusable ones included.
    pub(super) entries: usize,
    /// Why entries were left out, apart from their health.
    pub(super) problems: Vec<String>,
}

/// Reads an answer about `destination`. An entry that cannot be used is left out and does not take the list with it.
///
/// # Errors
/// What is wrong with the answer as a whole, in words.
pub(super) fn parse(body: &[u8], destination: &Destination) -> Result<InstanceList, String> {
    let mut reader = match destination.kind {
        DestinationKind::Service => serde_json::from_slice::<Nullable>(body).map(|list| list.0),
        DestinationKind::PreparedQuery => serde_json::from_slice::<Executed>(body).map(|answer| answer.nodes.0),
    }
    .map_err(|error| words(&error.to_string()))?;
    let mut list = InstanceList { entries: reader.len(), ..InstanceList::default() };
    for (index, entry) in reader.drain(..).enumerate() {
        match entry {
            Entry::Usable { instance, worst } => {
                if let Some(why) = foreign(&instance, destination) {
                    list.problem(index, why);
                } else if wanted(worst, destination.kind) {
                    list.instances.push(instance);
                }
            }
            Entry::Unusable(why) => list.problem(index, why),
        }
    }
    Ok(list)
}

impl InstanceList {
    fn problem(&mut self, index: usize, why: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(format!("entry {index}: {why}"));
        }
    }
}

/// Why an instance is none of the service that was asked for. Names are matched without regard to case by the
/// catalog; what a query leads to is the query's business.
fn foreign(instance: &Instance, destination: &Destination) -> Option<String> {
    let other =
        destination.kind == DestinationKind::Service && !instance.service.eq_ignore_ascii_case(&destination.name);
    other.then(|| format!("it is an instance of {:?}", instance.service))
}

/// Whether an instance in this state is to be dialled: a service's must pass all checks, as `passing=1` has it; what
/// a query lets through beside the critical ones is the query's business.
fn wanted(worst: Health, kind: DestinationKind) -> bool {
    match kind {
        DestinationKind::Service => worst == Health::Passing,
        DestinationKind::PreparedQuery => worst != Health::Critical,
    }
}

/// The state of a check; a state that is not known counts as critical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Passing,
    Warning,
    Critical,
}

enum Entry {
    Usable { instance: Instance, worst: Health },
    Unusable(String),
}

/// The answer of a query's execution.
#[derive(Deserialize)]
struct Executed {
    #[serde(rename = "Nodes", default)]
    nodes: Nullable,
}

/// A list of entries, or `null` for an empty one. Each entry is taken apart as it is read, so that only what we keep
/// of a large list is ever held.
#[derive(Default)]
struct Nullable(Vec<Entry>);

impl<'de> Deserialize<'de> for Nullable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntriesVisitor).map(Self)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of instances")
    }

    fn visit_unit<E>(self) -> Result<Vec<Entry>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Entry>, A::Error> {
        let mut entries = Vec::new();
        while let Some(value) = list.next_element::<Value>()? {
            entries.push(entry(&value));
        }
        Ok(entries)
    }
}

fn entry(value: &Value) -> Entry {
    let mut problems = Problems::new();
    match read(value, &mut problems) {
        Ok((instance, worst)) if problems.is_empty() => Entry::Usable { instance, worst },
        Ok(_) => Entry::Unusable(problems.join(", ")),
        Err(why) => {
            problems.push(why.to_owned());
            Entry::Unusable(problems.join(", "))
        }
    }
}

fn read(value: &Value, problems: &mut Problems) -> Result<(Instance, Health), &'static str> {
    let entry = Fields::of(value, "", problems);
    let node = entry.fields("Node", problems);
    let service = entry.fields("Service", problems);
    let proxy = service.fields("Proxy", problems);
    let native = service.fields("Connect", problems).flag("Native", problems);
    // 1.2 has no Proxy and says ProxyDestination instead.
    let name = if native {
        service.text("Service", problems)
    } else {
        proxy.text("DestinationServiceName", problems).or_else(|| service.text("ProxyDestination", problems))
    };
    let worst = entry
        .list("Checks", problems)
        .iter()
        .map(|check| match check.get("Status").and_then(Value::as_str) {
            Some("passing") => Health::Passing,
            Some("warning") => Health::Warning,
            _ => Health::Critical,
        })
        .max()
        .unwrap_or(Health::Passing);
    let weights = service.fields("Weights", problems);
    let weight = weights.number(if worst == Health::Passing { "Passing" } else { "Warning" }, MAX_WEIGHT, problems);
    let host = service.text("Address", problems).or_else(|| node.text("Address", problems));
    let host = host.filter(|host| host.len() <= 255 && host.bytes().all(|byte| byte.is_ascii_graphic()));
    let namespace = service.text("Namespace", problems);
    let partition = service.text("Partition", problems).or_else(|| node.text("Partition", problems));
    let instance = Instance {
        id: service.text("ID", problems).ok_or("it has no ID")?,
        host: host.ok_or("it has no address")?,
        port: service.port("Port", problems).ok_or("it has no port")?,
        service: name.ok_or("it does not say which service it stands for")?,
        namespace: namespace.unwrap_or_else(|| DEFAULT.to_owned()),
        partition: partition.map_or_else(|| DEFAULT.to_owned(), |partition| partition.to_ascii_lowercase()),
        datacenter: node.text("Datacenter", problems).ok_or("its node has no datacenter")?,
        weight: weight.and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1),
    };
    Ok((instance, worst))
}
