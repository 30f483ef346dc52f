//! What is counted, not timed: the hot paths, each run a few times between two marks that callgrind knows.
//!
//! Alone it only shows that they work. `cargo xtask instructions` runs it under valgrind: what happens inside of
//! [`marked`] counts, and [`finished`] closes the account of one path. For each it prints a line of JSON that says how
//! many units were done, and how often memory was allocated and the sockets were called for each.
//!
//! Everything runs on one thread over sockets in memory and an agent whose answers are at hand, so that the same
//! build on the same kind of processor counts the same.

mod memory;

use std::{
    alloc::System,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use lictor_benches::{
    Contender, Pair, Scene, backends,
    canned::{Canned, PERMITTED, health, upstream},
};
use lictor_conformance::{sidecars, verifier::service};
use lictor_core::{
    Authorizer, Buf, CertSource, Discovery, HandshakeStep, Inbound, Instance, Judge, Permit, ServiceName, TlsPolicy,
    consul::{ConsulAuthorizer, ConsulDiscovery},
    identity::Grammar,
    verify_peer,
};
use lictor_proxy::{
    balancer::Balancer,
    relay::{Budget, Leave, Relay},
};
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::runtime::{Builder, Runtime};

use crate::memory::{Calls, Nobody, Wire, drive};

/// How often each path is run; what differs from unit to unit, as the length of a signature, evens out.
const ROUNDS: usize = 24;

/// What the relay moves in one turn.
const BULK: usize = 256 * 1024;

/// How many instances an upstream has.
const INSTANCES: usize = 1000;

fn main() {
    say(&json!({ "cpu": cpu() }));
    for contender in backends() {
        handshakes(&contender);
        records(&contender);
        relays(&contender);
        agent(&contender);
    }
    balancer();
}

/// Callgrind sees no difference between calls of the allocator inside of [`counted`] and outside.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations inside of [`counted`] since the last path was finished.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// What `work` does is counted.
fn counted(work: &mut dyn FnMut()) {
    let region = Region::new(ALLOCATOR);
    marked(work);
    let change = region.change();
    ALLOCATIONS.fetch_add(change.allocations + change.reallocations, Ordering::Relaxed);
}

/// Never inlined, since callgrind finds it by its name.
#[inline(never)]
fn marked(work: &mut dyn FnMut()) {
    work();
    black_box(());
}

/// The end of one path: callgrind writes down what it has counted since the last one.
#[inline(never)]
fn finished(path: &str, units: usize, calls: Option<Calls>) {
    let each = |sum: f64| sum / units as f64;
    let allocations = each(ALLOCATIONS.swap(0, Ordering::Relaxed) as f64);
    let calls = calls.map(|calls| each(calls.get() as f64));
    say(&json!({ "path": path, "units": units, "allocations": allocations, "calls": calls }));
}

fn handshakes(Contender { backend, .. }: &Contender) {
    let scene = Scene::new();
    let contexts = scene.contexts(backend.as_ref(), &TlsPolicy::default());
    let name = service("db").server_name();
    // The first ones find all tables still unmade.
    let _ = Pair::shake_hands(&contexts, &scene.judges());
    for counts_server in [true, false] {
        let perhaps = |wanted: bool, work: &mut dyn FnMut()| if wanted { counted(work) } else { work() };
        for _ in 0..ROUNDS {
            // Strangers to each other: signatures that were good once are remembered with the roots.
            let judges = scene.judges();
            let (mut client, mut server) = (None, None);
            perhaps(!counts_server, &mut || client = contexts.0.connect(name.as_deref()).ok());
            perhaps(counts_server, &mut || server = contexts.1.accept().ok());
            let (mut client, mut server) = (client.expect("a session"), server.expect("a session"));
            let (mut to_server, mut to_client) = (Buf::default(), Buf::default());
            let (mut client_done, mut server_done) = (false, false);
            while !(client_done && server_done) {
                if !client_done {
                    perhaps(!counts_server, &mut || {
                        let step = client.handshake(&judges.0, &mut to_client, &mut to_server);
                        client_done = matches!(step.expect("the client goes on"), HandshakeStep::Done(_));
                    });
                }
                if !server_done {
                    perhaps(counts_server, &mut || {
                        let step = server.handshake(&judges.1, &mut to_server, &mut to_client);
                        server_done = matches!(step.expect("the server goes on"), HandshakeStep::Done(_));
                    });
                }
            }
        }
        finished(if counts_server { "handshake, server" } else { "handshake, client" }, ROUNDS, None);
    }

    let leaf = scene.leaf("web");
    let verify = |judge: &Judge| {
        counted(&mut || {
            let proof = verify_peer(black_box(judge), leaf.chain(), backend.signature_algorithms());
            assert!(black_box(proof).is_ok());
        });
    };
    (0..ROUNDS).for_each(|_| verify(&scene.judges().1));
    finished("verify a peer", ROUNDS, None);
    let (_, judge) = scene.judges();
    assert!(verify_peer(&judge, leaf.chain(), backend.signature_algorithms()).is_ok());
    (0..ROUNDS).for_each(|_| verify(&judge));
    finished("verify a peer that came before", ROUNDS, None);
}

fn records(Contender { backend, .. }: &Contender) {
    let scene = Scene::new();
    let contexts = scene.contexts(backend.as_ref(), &TlsPolicy::default());
    for (size, title) in [(64, "64 B"), (16 * 1024, "16 KiB"), (BULK, "256 KiB")] {
        let data = vec![0x5a; size];
        let mut pair = Pair::shake_hands(&contexts, &scene.judges());
        let (mut wire, mut plain, mut answers) = (Buf::default(), Buf::default(), Buf::default());
        // Sealed first and opened then: each of the two has an account of its own.
        let mut wires = Vec::new();
        for round in 0..=ROUNDS {
            wire.clear();
            let mut seal = || pair.client.seal(&data, &mut wire).expect("data is sealed");
            if round == 0 {
                seal()
            } else {
                counted(&mut seal)
            }
            wires.push(wire.data().to_vec());
        }
        finished(&format!("seal {title}"), ROUNDS, None);
        for (round, sealed) in wires.iter().enumerate() {
            wire.clear();
            wire.append(sealed);
            plain.clear();
            let mut open = || {
                pair.server.open(&mut wire, &mut plain, &mut answers).expect("records are opened");
            };
            if round == 0 {
                open()
            } else {
                counted(&mut open)
            }
            assert_eq!(plain.len(), size);
        }
        finished(&format!("open {title}"), ROUNDS, None);
    }
}

fn relays(Contender { backend, .. }: &Contender) {
    let scene = Scene::new();
    let contexts = scene.contexts(backend.as_ref(), &TlsPolicy::default());
    for (path, size, inwards, outwards) in [
        ("relay: 64 B there and back", 64, true, true),
        ("relay: 256 KiB to the application", BULK, true, false),
        ("relay: 256 KiB from the application", BULK, false, true),
    ] {
        let Pair { mut client, server, .. } = Pair::shake_hands(&contexts, &scene.judges());
        let (mut tls, mut application) = (Wire::default(), Wire::default());
        let (peer, service) = (tls.clone(), application.clone());
        let leave = Leave::Inbound(Permit::granted_by("the bench".to_owned(), SystemTime::UNIX_EPOCH));
        let budget = Budget::new(usize::MAX);
        let relay = Relay::new(leave, &mut tls, server, &mut application, Vec::new(), &budget, Nobody);
        let mut relay = Box::pin(relay.run(None));
        let data = vec![0x5a; size];
        let mut sealed = Buf::default();
        let mut calls = Calls::default();
        for round in 0..=ROUNDS {
            if round == 1 {
                calls = Calls::of([&peer, &service]);
            }
            for (goes, inwards) in [(inwards, true), (outwards, false)] {
                if !goes {
                    continue;
                }
                if inwards {
                    sealed.clear();
                    client.seal(&data, &mut sealed).expect("data is sealed");
                    peer.put(sealed.data());
                } else {
                    service.put(&data);
                }
                let mut turn = || drive(relay.as_mut());
                if round == 0 {
                    turn()
                } else {
                    counted(&mut turn)
                }
                let (moved, least) = if inwards { (service.take(), size) } else { (peer.take(), size + 1) };
                assert!(moved >= least, "{path}: {moved} bytes of {size}");
            }
        }
        finished(path, ROUNDS, Some(Calls::of([&peer, &service]) - calls));
    }
}

fn agent(Contender { backend, .. }: &Contender) {
    let runtime = runtime();
    let scene = Scene::new();
    let own = sidecars::Scene::new(backend.clone()).source("db");
    let (_, judge) = scene.judges();
    let proof = verify_peer(&judge, scene.leaf("web").chain(), backend.signature_algorithms()).expect("a good chain");
    let db = ServiceName::parse("db", Grammar::Spiffe).expect("a legal name");
    let inbound = Inbound { target: &db, peer: &proof.identity, within: Duration::from_secs(5) };
    let authorizer = runtime.block_on(async { ConsulAuthorizer::new(Canned::new(PERMITTED).client(), own.watch()) });
    for round in 0..=ROUNDS {
        let mut ask = || {
            let outcome = runtime.block_on(authorizer.authorize(&inbound));
            assert!(outcome.is_ok(), "the agent permits");
        };
        if round == 0 { ask() } else { counted(&mut ask) }
    }
    finished("authorize: a question and its answer", ROUNDS, None);

    // Each is as long as everything else together, and hardly differs from the next.
    let rounds = 2;
    let discovery = runtime.block_on(async { ConsulDiscovery::new(Canned::new(health("db", INSTANCES, 1)).client()) });
    let destination = upstream("db");
    for round in 0..=rounds {
        let mut ask = || {
            let list = runtime.block_on(discovery.instances(&destination)).expect("a list");
            assert_eq!(list.len(), INSTANCES);
            discovery.forget(&destination);
        };
        if round == 0 { ask() } else { counted(&mut ask) }
    }
    finished("health: an answer of 1000 instances", rounds, None);
}

fn balancer() {
    let instances: Vec<Instance> = (0..INSTANCES)
        .map(|n| sidecars::instance("db", ([10, 0, 0, 1], 21_000 + u16::try_from(n).unwrap_or_default()).into()))
        .collect();
    let balancer = Arc::new(Balancer::default());
    let now = Instant::now();
    let pick = || balancer.pick(&instances, &[], now).expect("one of them");
    // Some connections are open everywhere.
    let kept: Vec<_> = instances.iter().map(|instance| balancer.open(instance)).collect();
    for _ in 0..ROUNDS * 8 {
        counted(&mut || drop(black_box(balancer.open(&instances[pick()]))));
    }
    finished("balancer: a pick among 1000 instances", ROUNDS * 8, None);
    drop(kept);
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What the processor is said to be able to do: libraries choose their code by it, so counts of their code are the
/// same only where this is.
fn cpu() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let features = [
            ("adx", is_x86_feature_detected!("adx")),
            ("aes", is_x86_feature_detected!("aes")),
            ("avx", is_x86_feature_detected!("avx")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("bmi2", is_x86_feature_detected!("bmi2")),
            ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
            ("rdrand", is_x86_feature_detected!("rdrand")),
            ("rdseed", is_x86_feature_detected!("rdseed")),
            ("sha", is_x86_feature_detected!("sha")),
            ("vaes", is_x86_feature_detected!("vaes")),
        ];
        let there: Vec<&str> = features.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
        format!("x86_64 {}", there.join(" "))
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}

#[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
fn say(line: &serde_json::Value) {
    println!("{line}");
}
