//! What a handshake costs: both sides of one, in memory, on one thread; and the parts of it.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use lictor_benches::{Pair, Scene, backends};
use lictor_core::{TlsPolicy, verify_peer};

fn handshakes(criterion: &mut Criterion) {
    let scene = Scene::new();
    let judges = scene.judges();
    for backend in backends() {
        let mut group = criterion.benchmark_group(format!("handshake/{}", backend.name()));
        for (name, policy) in [
            ("full, X25519", TlsPolicy { hybrid_first: false, ..TlsPolicy::default() }),
            ("full, X25519MLKEM768", TlsPolicy::default()),
        ] {
            let contexts = scene.contexts(backend.as_ref(), &policy);
            group.bench_function(name, |bencher| bencher.iter(|| Pair::shake_hands(&contexts, &judges)));
        }
        group.finish();
    }
}

fn parts(criterion: &mut Criterion) {
    let scene = Scene::new();
    let (_, judge) = scene.judges();
    let leaf = scene.leaf("web");
    for backend in backends() {
        let mut group = criterion.benchmark_group(format!("parts/{}", backend.name()));
        group.bench_function("verify a peer", |bencher| {
            bencher.iter(|| verify_peer(black_box(&judge), leaf.chain(), backend.signature_algorithms()));
        });
        group.bench_function("build a context", |bencher| {
            bencher.iter(|| backend.mesh_context(black_box(&leaf), &TlsPolicy::default()));
        });
        group.finish();
    }
}

criterion_group!(benches, handshakes, parts);
criterion_main!(benches);
