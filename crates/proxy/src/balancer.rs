//! Which instance a new connection goes to: the better of two drawn by weight.
//!
//! "Better" is fewer open connections for its weight, with recent failures counted as connections, so that an
//! instance which accepts and resets at once does not look idle and draw everything.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use lictor_core::Instance;
use parking_lot::Mutex;
use rand::Rng;

/// How long a failure counts.
const MEMORY: Duration = Duration::from_secs(10);

/// How many open connections one recent failure weighs as much as.
const FAILURE_WEIGHT: u64 = 16;

/// How much is remembered about instances that are gone before it is cleared.
const MOST_REMEMBERED: usize = 4096;

/// What is known of an upstream's instances.
#[derive(Debug, Default)]
pub struct Balancer {
    loads: Mutex<HashMap<Key, Load>>,
}

type Key = (String, String, u16);

#[derive(Debug, Default)]
struct Load {
    open: u64,
    failures: u64,
    last_failure: Option<Instant>,
}

fn key(instance: &Instance) -> Key {
    (instance.id.clone(), instance.host.clone(), instance.port)
}

impl Balancer {
    /// Picks among `instances`, leaving out those whose index is in `excluded`; `None` when all are.
    pub fn pick(&self, instances: &[Instance], excluded: &[usize], now: Instant) -> Option<usize> {
        let candidates: Vec<usize> = (0..instances.len()).filter(|index| !excluded.contains(index)).collect();
        let total: u64 = candidates.iter().map(|index| u64::from(instances[*index].weight.max(1))).sum();
        if total == 0 {
            return None;
        }
        let draw = || {
            let mut at = rand::rng().random_range(0..total);
            for index in &candidates {
                let weight = u64::from(instances[*index].weight.max(1));
                if at < weight {
                    return *index;
                }
                at -= weight;
            }
            candidates[candidates.len() - 1]
        };
        let first = draw();
        let second = (0..4).map(|_| draw()).find(|index| *index != first).unwrap_or(first);
        let loads = self.loads.lock();
        let burden = |index: usize| {
            let load = loads.get(&key(&instances[index]));
            let counted = load.map_or(0, |load| {
                let recent = load.last_failure.is_some_and(|at| now.saturating_duration_since(at) < MEMORY);
                load.open + if recent { load.failures * FAILURE_WEIGHT } else { 0 }
            });
            // Compared as fractions of the weights, crosswise, so that nothing is rounded away.
            (counted + 1, u64::from(instances[index].weight.max(1)))
        };
        let ((a, a_weight), (b, b_weight)) = (burden(first), burden(second));
        Some(if b * a_weight < a * b_weight { second } else { first })
    }

    /// Counts a connection as open until the guard goes.
    pub fn open(self: &std::sync::Arc<Self>, instance: &Instance) -> Open {
        let key = key(instance);
        self.loads.lock().entry(key.clone()).or_default().open += 1;
        Open { balancer: self.clone(), key }
    }

    /// Counts a failure.
    pub fn failed(&self, instance: &Instance, now: Instant) {
        let mut loads = self.loads.lock();
        if loads.len() > MOST_REMEMBERED {
            loads.retain(|_, load| load.open > 0);
        }
        let load = loads.entry(key(instance)).or_default();
        let fresh = load.last_failure.is_none_or(|at| now.saturating_duration_since(at) >= MEMORY);
        load.failures = if fresh { 1 } else { (load.failures + 1).min(64) };
        load.last_failure = Some(now);
    }
}

/// An open connection to an instance.
#[derive(Debug)]
pub struct Open {
    balancer: std::sync::Arc<Balancer>,
    key: Key,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut loads = self.balancer.loads.lock();
        if let Some(load) = loads.get_mut(&self.key) {
            load.open -= 1;
            if load.open == 0 && load.last_failure.is_none() {
                loads.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn instances(weights: &[u32]) -> Vec<Instance> {
        let instance = |(index, weight): (usize, &u32)| Instance {
            id: format!("db-{index}"),
            host: "10.0.0.1".to_owned(),
            port: u16::try_from(index).unwrap(),
            service: "db".to_owned(),
            namespace: "default".to_owned(),
            partition: "default".to_owned(),
            datacenter: "dc1".to_owned(),
            weight: *weight,
        };
        weights.iter().enumerate().map(instance).collect()
    }

    /// How often each of `list` is picked in `rounds`, when connections stay open.
    fn picks(balancer: &Arc<Balancer>, list: &[Instance], rounds: usize, now: Instant) -> Vec<usize> {
        let mut counts = vec![0; list.len()];
        let mut open = Vec::new();
        for _ in 0..rounds {
            let index = balancer.pick(list, &[], now).unwrap();
            counts[index] += 1;
            open.push(balancer.open(&list[index]));
        }
        counts
    }

    proptest! {
        #[test]
        fn an_excluded_instance_is_never_picked_and_somebody_is_while_there_is_one(
            weights in proptest::collection::vec(0u32..5, 0..12),
            excluded in proptest::collection::vec(0usize..12, 0..12),
            failed in proptest::collection::vec(0usize..12, 0..12),
        ) {
            let (list, now) = (instances(&weights), Instant::now());
            let balancer = Balancer::default();
            failed.iter().filter_map(|index| list.get(*index)).for_each(|one| balancer.failed(one, now));
            let left = (0..list.len()).filter(|index| !excluded.contains(index)).count();
            match balancer.pick(&list, &excluded, now) {
                Some(index) => prop_assert!(index < list.len() && !excluded.contains(&index)),
                None => prop_assert_eq!(left, 0),
            }
        }
    }

    #[test]
    fn connections_spread_evenly_and_by_weight() {
        let now = Instant::now();
        let even = picks(&Arc::default(), &instances(&[1, 1, 1, 1]), 400, now);
        assert!(even.iter().all(|count| (80..=120).contains(count)), "{even:?}");
        let weighted = picks(&Arc::default(), &instances(&[3, 1]), 400, now);
        assert!((270..=330).contains(&weighted[0]), "{weighted:?}");
    }

    #[test]
    fn an_instance_that_resets_at_once_does_not_draw_everything() {
        let (balancer, list, now) = (Balancer::default(), instances(&[1, 1, 1]), Instant::now());
        let mut broken = 0;
        for _ in 0..300 {
            // None stays open, so without the memory of failures all would look idle.
            if balancer.pick(&list, &[], now).unwrap() == 0 {
                balancer.failed(&list[0], now);
                broken += 1;
            }
        }
        assert!(broken < 60, "{broken} of 300");
    }

    #[test]
    fn a_failure_is_forgotten_and_a_closed_connection_weighs_nothing() {
        let (balancer, list, now) = (Arc::new(Balancer::default()), instances(&[1, 1]), Instant::now());
        (0..5).for_each(|_| balancer.failed(&list[0], now));
        let counts = picks(&balancer, &list, 10, now);
        assert!(counts[0] <= 5, "{counts:?}");
        let later = picks(&balancer, &list, 200, now + MEMORY);
        assert!((60..=140).contains(&later[0]), "{later:?}");
        assert!(balancer.loads.lock().values().all(|load| load.open == 0));
    }

    #[test]
    fn what_is_remembered_of_instances_that_are_gone_is_bounded() {
        let (balancer, now) = (Balancer::default(), Instant::now());
        for index in 0..3 * MOST_REMEMBERED {
            let mut one = instances(&[1]).remove(0);
            one.id = index.to_string();
            balancer.failed(&one, now);
        }
        assert!(balancer.loads.lock().len() <= MOST_REMEMBERED + 1);
    }
}
