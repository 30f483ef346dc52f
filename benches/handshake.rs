//! What a handshake costs: both sides of one, in memory, on one thread; and the parts of it.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use lictor_benches::{Contender, Pair, Scene, backends, usage::ThreadTime};
use lictor_core::{Judge, TlsPolicy, verify_peer};

fn handshakes(criterion: &mut Criterion<ThreadTime>) {
    let scene = Scene::new();
    let judges = scene.judges();
    for Contender { name, backend } in backends() {
        let mut group = criterion.benchmark_group(format!("handshake/{name}"));
        let mut measured = Vec::new();
        for hybrid_first in [false, true] {
            let policy = TlsPolicy { hybrid_first, ..TlsPolicy::default() };
            let contexts = scene.contexts(backend.as_ref(), &policy);
            let Pair { facts, .. } = Pair::shake_hands(&contexts, &judges);
            // Not every library has the hybrid group; one without it agrees on the same twice.
            if measured.contains(&facts.group) {
                continue;
            }
            measured.push(facts.group);
            group.bench_function(format!("full, {}", facts.group), |bencher| {
                let strangers = || scene.judges();
                bencher.iter_batched(strangers, |judges| Pair::shake_hands(&contexts, &judges), BatchSize::SmallInput);
            });
            group.bench_function(format!("full, {}, peers that met before", facts.group), |bencher| {
                bencher.iter(|| Pair::shake_hands(&contexts, &judges));
            });
        }
        group.finish();
    }
}

fn parts(criterion: &mut Criterion<ThreadTime>) {
    let scene = Scene::new();
    let leaf = scene.leaf("web");
    for Contender { name, backend } in backends() {
        let mut group = criterion.benchmark_group(format!("parts/{name}"));
        let verify = |judge: &Judge| verify_peer(black_box(judge), leaf.chain(), backend.signature_algorithms());
        group.bench_function("verify a peer", |bencher| {
            bencher.iter_batched_ref(|| scene.judges().1, |judge| verify(judge), BatchSize::SmallInput);
        });
        group.bench_function("verify a peer that came before", |bencher| {
            let (_, judge) = scene.judges();
            verify(&judge).expect("a good peer");
            bencher.iter(|| verify(&judge));
        });
        group.bench_function("build a context", |bencher| {
            bencher.iter(|| backend.mesh_context(black_box(&leaf), &TlsPolicy::default()));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = handshakes, parts
}
criterion_main!(benches);
