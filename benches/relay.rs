//! What the data plane costs over loopback sockets: two sidecars, `web` to `db`, in this process; the applications at
//! both ends in another.
//!
//! Time is that of the whole chain, on shared cores: compare runs with each other, not with anybody's product. CPU
//! time is that of the two sidecars together.

use criterion::{Criterion, Throughput, criterion_group};
use lictor_benches::{
    backends,
    ends::{self, Ends, Order, SMALL},
    usage::Spent,
};
use lictor_conformance::sidecars::Chain;
use tokio::runtime::Runtime;

/// What one bulk transfer moves.
const BULK: usize = 64 * 1024 * 1024;

/// How many connections send small messages at once.
const MANY: usize = 64;

fn relay(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    for contender in backends() {
        let title = format!("relay/{}", contender.name);
        let mut group = criterion.benchmark_group(&title);
        let mut ends = Ends::start(&contender);
        let backend = contender.backend;
        let chain =
            |ends: &mut Ends, application| runtime.block_on(Chain::to(ends.application(&application), backend.clone()));

        let echoing = chain(&mut ends, Order::Echo);
        let mut visits = Spent::default();
        group.bench_function("connect, one message, close", |bencher| {
            bencher.iter_custom(|times| visits.on(times as f64, || ends.timed(&Order::Visit(echoing.upstream, times))));
        });
        visits.report(&format!("{title}/connect, one message, close"), "connection");

        for (connections, name) in [(1, "64 bytes there and back"), (MANY, "64 bytes there and back, on 64 at once")] {
            ends.timed(&Order::Dial(echoing.upstream, connections));
            group.throughput(Throughput::Elements(connections as u64));
            let mut messages = Spent::default();
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|times| {
                    messages.on((times as usize * connections) as f64, || ends.timed(&Order::Chat(times)))
                });
            });
            messages.report(&format!("{title}/{name}"), "message");
            ends.timed(&Order::HangUp);
        }

        group.sample_size(10).throughput(Throughput::Bytes(BULK as u64));
        let sinking = chain(&mut ends, Order::Sink);
        let giving = chain(&mut ends, Order::Source(BULK));
        for (name, order) in [
            (
                "bulk to the application",
                &(|times| Order::Upload(sinking.upstream, BULK, times)) as &dyn Fn(u64) -> Order,
            ),
            ("bulk from the application", &|times| Order::Download(giving.upstream, times)),
        ] {
            let mut gigabytes = Spent::default();
            group.bench_function(name, |bencher| {
                bencher
                    .iter_custom(|times| gigabytes.on(BULK as f64 * times as f64 / 1e9, || ends.timed(&order(times))));
            });
            gigabytes.report(&format!("{title}/{name}"), "GB");
        }
        group.finish();
        assert_eq!(SMALL, 64, "as the names say");
    }
}

criterion_group!(benches, relay);

fn main() {
    if !ends::serves() {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
