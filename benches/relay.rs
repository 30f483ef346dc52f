//! What the data plane costs over loopback sockets: two sidecars, `web` to `db`, in one process.
//!
//! Time is that of the whole chain with the applications at both ends, on shared cores; compare runs with each other,
//! not with anybody's product.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lictor_benches::backends;
use lictor_conformance::sidecars::Chain;
use tokio::runtime::Runtime;

/// What one bulk transfer moves.
const BULK: usize = 64 * 1024 * 1024;

/// A small message.
const SMALL: usize = 64;

/// What an application does with each connection.
type Serve = fn(TcpStream);

fn application(serve: Serve) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; SMALL];
    while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
}

/// Takes everything and answers with one byte.
fn sink(mut stream: TcpStream) {
    let mut bytes = vec![0; 256 * 1024];
    while stream.read(&mut bytes).is_ok_and(|n| n > 0) {}
    let _ = stream.write_all(b".");
}

/// Gives everything.
fn source(mut stream: TcpStream) {
    let bytes = vec![0x5a; 256 * 1024];
    for _ in 0..BULK / bytes.len() {
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn relay(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    for backend in backends() {
        let mut group = criterion.benchmark_group(format!("relay/{}", backend.name()));
        let chain = |serve| runtime.block_on(Chain::to(application(serve), backend.clone()));

        let echoing = chain(echo);
        let mut client = TcpStream::connect(echoing.upstream).expect("a connection");
        client.set_nodelay(true).expect("no delay");
        let mut bytes = [7; SMALL];
        group.bench_function(format!("{SMALL} bytes there and back"), |bencher| {
            bencher.iter(|| {
                client.write_all(&bytes).expect("a message goes");
                client.read_exact(&mut bytes).expect("it comes back");
            });
        });

        group.bench_function("connect, one message, close", |bencher| {
            bencher.iter(|| {
                let mut client = TcpStream::connect(echoing.upstream).expect("a connection");
                let mut bytes = [7; SMALL];
                client.write_all(&bytes).expect("a message goes");
                client.read_exact(&mut bytes).expect("it comes back");
            });
        });

        group.sample_size(10).throughput(Throughput::Bytes(BULK as u64));
        let sinking = chain(sink);
        let bulk = vec![0x5a; 256 * 1024];
        group.bench_function("bulk to the application", |bencher| {
            bencher.iter(|| {
                let mut client = TcpStream::connect(sinking.upstream).expect("a connection");
                for _ in 0..BULK / bulk.len() {
                    client.write_all(&bulk).expect("bytes go");
                }
                client.shutdown(Shutdown::Write).expect("a half-close");
                client.read_exact(&mut [0]).expect("all has come");
            });
        });
        let giving = chain(source);
        let mut room = vec![0; 256 * 1024];
        group.bench_function("bulk from the application", |bencher| {
            bencher.iter(|| {
                let mut client = TcpStream::connect(giving.upstream).expect("a connection");
                let mut got = 0;
                loop {
                    match client.read(&mut room).expect("bytes come") {
                        0 => break,
                        n => got += n,
                    }
                }
                assert_eq!(got, BULK);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, relay);
criterion_main!(benches);
