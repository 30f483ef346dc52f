//! What one question to the agent costs, over a connection that is kept open. The agent is the embedded one, in
//! another process, so the CPU time is that of our side.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group};
use futures_util::future::try_join_all;
use lictor_benches::{
    Contender, Scene, backends,
    ends::{self, Answer, Ends, Order},
    usage::Spent,
};
use lictor_conformance::sidecars;
use lictor_core::{
    Authorizer, CertSource, Inbound, PeerIdentity, ServiceName, TlsBackend,
    consul::{AgentAddress, AgentClient, ClientSettings, ConsulAuthorizer, HttpTransport},
    identity::Grammar,
    verify_peer,
};
use tokio::runtime::Builder;

/// How many peers come at once.
const CROWD: usize = 16;

fn authorize(criterion: &mut Criterion) {
    // One thread for the calls, as in the product.
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    for contender in backends() {
        let mut ends = Ends::start(&contender);
        let Contender { name, backend } = contender;
        let Answer::Url(url) = ends.order(&Order::Agent) else { panic!("an agent has a URL") };
        let scene = Scene::new();
        let own = sidecars::Scene::new(backend.clone()).source("db");
        let authorizer = runtime.block_on(async { ConsulAuthorizer::new(client(&url), own.watch()) });
        let db = ServiceName::parse("db", Grammar::Spiffe).expect("a legal name");
        let ask = |peer| {
            let inbound = Inbound { target: &db, peer, within: Duration::from_secs(5) };
            let authorizer = &authorizer;
            async move { authorizer.authorize(&inbound).await }
        };

        let title = format!("authorize/{name}");
        let mut group = criterion.benchmark_group(&title);
        let peers: Vec<PeerIdentity> = std::iter::once("web".to_owned())
            .chain((1..CROWD).map(|n| format!("web-{n}")))
            .map(|name| identity(&scene, backend.as_ref(), &name))
            .collect();
        for (crowd, name) in [(1, "one question"), (CROWD, "16 questions about different peers at once")] {
            group.throughput(Throughput::Elements(crowd as u64));
            let mut questions = Spent::default();
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|times| {
                    questions.on(times as f64 * crowd as f64, || {
                        let begun = Instant::now();
                        for _ in 0..times {
                            runtime.block_on(try_join_all(peers[..crowd].iter().map(ask))).expect("all may connect");
                        }
                        begun.elapsed()
                    })
                });
            });
            questions.report(&format!("{title}/{name}"), "question");
        }
        group.finish();
    }
}

fn client(url: &str) -> AgentClient {
    let address = AgentAddress::parse(url, false).expect("the address of an agent");
    AgentClient::new(Arc::new(HttpTransport::new(&address).expect("a transport")), ClientSettings::default())
}

/// What a handshake with the service proves.
fn identity(scene: &Scene, backend: &dyn TlsBackend, service: &str) -> PeerIdentity {
    let (_, judge) = scene.judges();
    let proof = verify_peer(&judge, scene.leaf(service).chain(), backend.signature_algorithms());
    proof.expect("a good chain").identity
}

criterion_group!(benches, authorize);

fn main() {
    if !ends::serves() {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}
