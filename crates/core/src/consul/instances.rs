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
    /// How many entries are healthy or not, the unusable ones included, holes not.
    pub(super) entries: usize,
    /// Why entries were left out, apart from their health.
    pub(super) problems: Vec<String>,
}

/// Reads an answer about `destination`. An entry that cannot be used is left out and does not take the list with it.
///
/// # Errors
/// What is wrong with the answer as a whole, in words.
pub(super) fn parse(body: &[u8], destination: &Destination) -> Result<InstanceList, String> {
    let read = match destination.kind {
        DestinationKind::Service => serde_json::from_slice::<Nullable>(body).map(|list| list.0),
        DestinationKind::PreparedQuery => serde_json::from_slice::<Executed>(body).map(|answer| answer.nodes.0),
    }
    .map_err(|error| words(&error.to_string()))?;
    let mut list = InstanceList::default();
    for (index, entry) in read.into_iter().enumerate() {
        list.entries += usize::from(!matches!(entry, Entry::Hole));
        match entry {
            Entry::Hole => {}
            Entry::Usable { instance, worst, peer } => {
                if let Some(why) = foreign(&instance, peer.as_deref(), destination) {
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

/// Why an instance is none of what was asked for. Names are matched without regard to case by the catalog; what a
/// query leads to is the query's business.
///
/// Agents that do not know a parameter answer for their own cluster instead: those before 1.13 a `peer`, those of the
/// Community Edition before 1.11 a `partition`. Its instances would prove to be exactly who the list says they are.
fn foreign(instance: &Instance, peer: Option<&str>, destination: &Destination) -> Option<String> {
    let Destination { kind, name, datacenter, namespace, partition, peer: wanted_peer } = destination;
    let other = |asked: &Option<String>, is: &str| asked.as_ref().is_some_and(|asked| !asked.eq_ignore_ascii_case(is));
    let is_query = *kind == DestinationKind::PreparedQuery;
    if !is_query && !instance.service.eq_ignore_ascii_case(name) {
        return Some(format!("it is an instance of {:?}", instance.service));
    }
    if peer != wanted_peer.as_deref() {
        let whose = peer.map_or_else(|| "our own cluster".to_owned(), |of| format!("the peer {of:?}"));
        return Some(format!("it is an instance of {whose}"));
    }
    if !is_query && other(datacenter, &instance.datacenter) {
        return Some(format!("it is an instance in datacenter {:?}", instance.datacenter));
    }
    if other(namespace, &instance.namespace) {
        return Some(format!("it is an instance in namespace {:?}", instance.namespace));
    }
    // Where a peer shares a service, the partition is that of the other cluster.
    if peer.is_none() && other(partition, &instance.partition) {
        return Some(format!("it is an instance in partition {:?}", instance.partition));
    }
    None
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
    Usable {
        instance: Instance,
        worst: Health,
        /// The peered cluster that it is in (1.13 and later).
        peer: Option<String>,
    },
    Unusable(String),
    /// Neither node nor service: Consul 1.3 filters the list that it keeps in memory in place, and leaves these where
    /// an instance was that does not pass. There is nothing behind them to tell anybody about.
    Hole,
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
    let is_null = |key| value.get(key).is_some_and(Value::is_null);
    if is_null("Node") && is_null("Service") {
        return Entry::Hole;
    }
    let mut problems = Problems::new();
    match read(value, &mut problems) {
        Ok((instance, worst, peer)) if problems.is_empty() => Entry::Usable { instance, worst, peer },
        Ok(_) => Entry::Unusable(problems.join(", ")),
        Err(why) => {
            problems.push(why.to_owned());
            Entry::Unusable(problems.join(", "))
        }
    }
}

fn read(value: &Value, problems: &mut Problems) -> Result<(Instance, Health, Option<String>), &'static str> {
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
    let weight = weights.number(if worst == Health::Passing { "Passing" } else { "Warning" }, u64::MAX, problems);
    let host = service.text("Address", problems).or_else(|| node.text("Address", problems));
    let host = host.filter(|host| host.len() <= 255 && host.bytes().all(|byte| byte.is_ascii_graphic()));
    let namespace = service.text("Namespace", problems);
    let partition = service.text("Partition", problems).or_else(|| node.text("Partition", problems));
    let host = host.ok_or("it has no address")?;
    let port = service.port("Port", problems).ok_or("it has no port")?;
    // The ID only tells instances apart, which name and address do as well.
    let id =
        service.text("ID", problems).or_else(|| Some(format!("{} {host}:{port}", service.text("Service", problems)?)));
    let instance = Instance {
        id: id.ok_or("it has neither ID nor name")?,
        host,
        port,
        service: name.ok_or("it does not say which service it stands for")?,
        namespace: namespace.unwrap_or_else(|| DEFAULT.to_owned()),
        partition: partition.map_or_else(|| DEFAULT.to_owned(), |partition| partition.to_ascii_lowercase()),
        datacenter: node.text("Datacenter", problems).ok_or("its node has no datacenter")?,
        weight: weight.and_then(|weight| u32::try_from(weight.min(MAX_WEIGHT)).ok()).unwrap_or(1),
    };
    let peer = service.text("PeerName", problems).filter(|peer| !peer.is_empty());
    Ok((instance, worst, peer))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::captured::captured, *};

    fn destination(kind: DestinationKind) -> Destination {
        let name = "db".to_owned();
        Destination { kind, name, datacenter: None, namespace: None, partition: None, peer: None }
    }

    fn service(body: &[u8]) -> InstanceList {
        parse(body, &destination(DestinationKind::Service)).unwrap()
    }

    fn shown(list: &InstanceList) -> Vec<String> {
        let show =
            |i: &Instance| format!("{} {}:{} {}.{}.{}", i.id, i.host, i.port, i.service, i.namespace, i.datacenter);
        list.instances.iter().map(show).collect()
    }

    fn entry(change: impl FnOnce(&mut Value)) -> Value {
        let mut entry = json!({
            "Node": {"Address": "10.0.0.1", "Datacenter": "dc1"},
            "Service": {
                "Kind": "connect-proxy", "ID": "p", "Address": "10.0.0.2", "Port": 21000,
                "Weights": {"Passing": 5, "Warning": 2}, "Proxy": {"DestinationServiceName": "db"},
            },
            "Checks": [{"Status": "passing"}],
        });
        change(&mut entry);
        entry
    }

    #[test]
    fn the_lists_of_real_agents_are_read() {
        let list = service(&captured!("health-connect"));
        assert_eq!(
            shown(&list),
            ["db-manual-proxy 127.0.0.1:25433 db.default.dc1", "db-native 127.0.0.1:25432 db.default.dc1"],
            "the critical sidecar is left out, the native instance has its node's address"
        );
        assert_eq!(shown(&service(&captured!("v122-health-connect"))).len(), 2);
        assert_eq!(shown(&service(&captured!("v12-health-connect"))), ["db-1-proxy 127.0.0.1:25004 db.default.dc1"]);
        let query = parse(&captured!("query-execute-connect"), &destination(DestinationKind::PreparedQuery)).unwrap();
        assert_eq!(shown(&query).len(), 2);
        assert_eq!(query.problems, Vec::<String>::new());
    }

    #[test]
    fn what_the_agent_took_for_the_default_is_none_of_what_was_asked_for() {
        let elsewhere = |change: fn(&mut Destination)| {
            let mut asked = destination(DestinationKind::Service);
            change(&mut asked);
            asked
        };
        let asked = [
            (elsewhere(|of| of.namespace = Some("team".to_owned())), "namespace"),
            (elsewhere(|of| of.partition = Some("team".to_owned())), "partition"),
            (elsewhere(|of| of.datacenter = Some("dc2".to_owned())), "datacenter"),
            (elsewhere(|of| of.peer = Some("cloud".to_owned())), "our own cluster"),
        ];
        let own = json!([entry(|_| {})]).to_string();
        assert_eq!(service(own.as_bytes()).instances.len(), 1);
        for (asked, why) in &asked {
            let list = parse(own.as_bytes(), asked).unwrap();
            assert_eq!((list.instances.len(), list.problems.len()), (0, 1), "{asked:?}");
            assert!(list.problems[0].contains(why), "{:?}", list.problems);
        }
        // And what is where it was asked for, is.
        let there = json!([entry(|entry| {
            entry["Node"]["Datacenter"] = json!("dc2");
            entry["Service"]["Namespace"] = json!("team");
            entry["Service"]["Partition"] = json!("team");
            entry["Service"]["PeerName"] = json!("cloud");
        })])
        .to_string();
        let mut all = destination(DestinationKind::Service);
        (all.namespace, all.datacenter) = (Some("team".to_owned()), Some("dc2".to_owned()));
        (all.partition, all.peer) = (Some("Team".to_owned()), Some("cloud".to_owned()));
        assert_eq!(parse(there.as_bytes(), &all).unwrap().instances.len(), 1);
        assert_eq!(service(there.as_bytes()).instances.len(), 0, "a peer's instance where none was asked for");
    }

    #[test]
    fn null_absent_and_empty_lists_mean_none() {
        assert_eq!(service(b"null"), InstanceList::default());
        assert_eq!(service(b"[]"), InstanceList::default());
        let query = |body: &[u8]| parse(body, &destination(DestinationKind::PreparedQuery)).unwrap();
        assert_eq!(query(br#"{"Nodes":null}"#), InstanceList::default());
        assert_eq!(query(b"{}"), InstanceList::default());
        assert!(parse(b"{}", &destination(DestinationKind::Service)).is_err());
        assert!(parse(b"<html>", &destination(DestinationKind::Service)).is_err());
    }

    #[test]
    fn an_entry_that_cannot_be_used_is_left_out_and_the_others_stay() {
        let faults: [fn(&mut Value); 15] = [
            |e| *e = json!(7),
            |e| *e = json!(null),
            |e| e["Node"] = json!([]),
            |e| e["Service"]["Port"] = json!(0),
            |e| e["Service"]["Port"] = json!(70_000),
            |e| e["Service"]["Port"] = json!("x"),
            |e| e["Service"]["Address"] = json!(7),
            |e| e["Service"]["Address"] = json!("a b"),
            |e| e["Service"]["ID"] = json!(""),
            |e| e["Service"] = json!(null),
            |e| e["Service"]["Proxy"] = json!(null),
            |e| e["Service"]["Proxy"]["DestinationServiceName"] = json!(7),
            |e| e["Service"]["Proxy"]["DestinationServiceName"] = json!("other"),
            |e| e["Node"]["Datacenter"] = json!(null),
            |e| e["Checks"] = json!("passing"),
        ];
        for fault in faults {
            let body = json!([entry(fault), entry(|_| {})]).to_string();
            let list = service(body.as_bytes());
            assert_eq!((list.instances.len(), list.entries, list.problems.len()), (1, 2, 1), "{body}");
        }
    }

    #[test]
    fn what_an_agent_filtered_in_its_memory_is_no_entry_and_no_problem() {
        // Recorded from 1.3.1, asked with passing=1&cached while instances come and go.
        let hole = json!({"Node": null, "Service": null, "Checks": []});
        let list = service(json!([entry(|_| {}), hole]).to_string().as_bytes());
        assert_eq!((list.instances.len(), list.entries, list.problems), (1, 1, Vec::new()));
        // A list of nothing else counts as empty, so that the agent is asked without its memory.
        assert_eq!(service(json!([hole]).to_string().as_bytes()), InstanceList::default());
    }

    #[test]
    fn an_instance_without_an_id_is_told_apart_by_name_and_address() {
        let one = entry(|e| {
            e["Service"]["ID"] = json!("");
            e["Service"]["Service"] = json!("db-proxy");
        });
        let list = service(json!([one]).to_string().as_bytes());
        assert_eq!(list.instances[0].id, "db-proxy 10.0.0.2:21000");
        assert_eq!(list.problems, Vec::<String>::new());
    }

    #[test]
    fn only_passing_instances_of_a_service_count_and_a_query_keeps_its_warnings() {
        for (status, in_service, in_query) in
            [("passing", 1, 1), ("warning", 0, 1), ("critical", 0, 0), ("maintenance", 0, 0), ("", 0, 0)]
        {
            let one = entry(|e| e["Checks"] = json!([{"Status": "passing"}, {"Status": status}]));
            assert_eq!(service(json!([one]).to_string().as_bytes()).instances.len(), in_service, "{status}");
            let body = json!({ "Nodes": [one] }).to_string();
            let query = parse(body.as_bytes(), &destination(DestinationKind::PreparedQuery)).unwrap();
            assert_eq!(query.instances.len(), in_query, "{status}");
            if status == "warning" {
                assert_eq!(query.instances[0].weight, 2);
            }
        }
    }

    #[test]
    fn places_weights_and_numbers_in_texts_are_read() {
        let body = json!([
            entry(|e| {
                e["Service"]["Namespace"] = json!("team");
                e["Service"]["Partition"] = json!("Part");
                e["Service"]["Port"] = json!("21001");
            }),
            entry(|e| e["Service"]["Weights"] = json!({"Passing": 100_000})),
            entry(|e| e["Service"]["Weights"] = json!(null)),
            entry(|e| e["Service"]["Weights"] = json!({"Passing": 0})),
        ])
        .to_string();
        let list = service(body.as_bytes());
        let weights: Vec<u32> = list.instances.iter().map(|instance| instance.weight).collect();
        assert_eq!(weights, [5, 65_535, 1, 1]);
        let one = &list.instances[0];
        let read = (one.namespace.as_str(), one.partition.as_str(), one.port);
        assert_eq!(read, ("team", "part", 21001));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(body in proptest::prelude::any::<Vec<u8>>(), text in "\\PC{0,80}") {
            for kind in [DestinationKind::Service, DestinationKind::PreparedQuery] {
                let _ = parse(&body, &destination(kind));
                let changed = entry(|e| e["Service"]["ID"] = json!(text));
                let _ = parse(json!([changed, { "Node": text }]).to_string().as_bytes(), &destination(kind));
            }
        }
    }
}
