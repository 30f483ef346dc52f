//! What sealing and opening records costs, without a socket, on one thread.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main, measurement::Measurement as _};
use lictor_benches::{Contender, Pair, Scene, backends, usage::ThreadTime};
use lictor_core::{Buf, TlsPolicy};

/// Sizes of one call: a small message, one record, and what the relay hands over at once.
const SIZES: [(usize, &str); 3] = [(64, "64 B"), (16 * 1024, "16 KiB"), (256 * 1024, "256 KiB")];

/// How much is sealed before it is opened: so much that reading the clock costs nothing beside it, and no more than
/// stays in the cache.
const AHEAD: usize = 256 * 1024;

/// How many calls are that at most.
const MOST_CALLS: usize = 256;

fn records(criterion: &mut Criterion<ThreadTime>) {
    let scene = Scene::new();
    let judges = scene.judges();
    for Contender { name, backend } in backends() {
        let contexts = scene.contexts(backend.as_ref(), &TlsPolicy::default());
        let mut group = criterion.benchmark_group(format!("records/{name}"));
        for (size, title) in SIZES {
            let data = vec![0x5a; size];
            group.throughput(Throughput::Bytes(size as u64));

            let mut pair = Pair::shake_hands(&contexts, &judges);
            let mut wire = Buf::default();
            group.bench_function(format!("seal {title}"), |bencher| {
                bencher.iter(|| {
                    wire.clear();
                    pair.client.seal(&data, &mut wire).expect("data is sealed");
                });
            });

            let mut pair = Pair::shake_hands(&contexts, &judges);
            let mut wires: Vec<Buf> = (0..MOST_CALLS.min(AHEAD / size)).map(|_| Buf::default()).collect();
            let (mut plain, mut answers) = (Buf::default(), Buf::default());
            group.bench_function(format!("open {title}"), |bencher| {
                bencher.iter_custom(|times| {
                    let mut spent = Duration::ZERO;
                    let mut left = times;
                    while left > 0 {
                        let calls = usize::try_from(left).unwrap_or(usize::MAX).min(wires.len());
                        let wires = &mut wires[..calls];
                        for wire in &mut *wires {
                            pair.client.seal(&data, wire).expect("data is sealed");
                        }
                        let start = ThreadTime.start();
                        for wire in &mut *wires {
                            plain.clear();
                            pair.server.open(wire, &mut plain, &mut answers).expect("records are opened");
                            assert_eq!(plain.len(), size);
                        }
                        spent += ThreadTime.end(start);
                        left -= calls as u64;
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(ThreadTime);
    targets = records
}
criterion_main!(benches);
