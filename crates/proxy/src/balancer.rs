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
pub(crate) struct Balancer {
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
    pub(crate) fn pick(&self, instances: &[Instance], excluded: &[usize], now: Instant) -> Option<usize> {
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
    pub(crate) fn open(self: &std::sync::Arc<Self>, instance: &Instance) -> Open {
        let key = key(instance);
        self.loads.lock().entry(key.clone()).or_default().open += 1;
        Open { balancer: self.clone(), key }
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, instance: &Instance, now: Instant) {
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
pub(crate) struct Open {
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
