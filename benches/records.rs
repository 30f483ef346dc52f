//! What sealing and opening records costs, without a socket.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lictor_benches::{Pair, Scene, backends};
use lictor_core::{Buf, TlsPolicy};

/// Sizes of one call: a small message, one record, and what the relay hands over at once.
const SIZES: [usize; 3] = [64, 16 * 1024, 256 * 1024];

fn records(criterion: &mut Criterion) {
    let scene = Scene::new();
    let judges = scene.judges();
    for backend in backends() {
        let contexts = scene.contexts(backend.as_ref(), &TlsPolicy::default());
        let mut group = criterion.benchmark_group(format!("records/{}", backend.name()));
        for size in SIZES {
            let data = vec![0x5a; size];
            let mut pair = Pair::shake_hands(&contexts, &judges);
            let (mut wire, mut plain, mut answers) = (Buf::default(), Buf::default(), Buf::default());
            group.throughput(Throughput::Bytes(size as u64));
            group.bench_function(format!("seal and open {size} bytes"), |bencher| {
                bencher.iter(|| {
                    pair.client.seal(&data, &mut wire).expect("data is sealed");
                    pair.server.open(&mut wire, &mut plain, &mut answers).expect("records are opened");
                    assert_eq!(plain.len(), size);
                    plain.clear();
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, records);
criterion_main!(benches);
