//! What memory an idle inbound connection costs: one sidecar is all that this process holds; the application and the
//! clients are in another. Not a criterion bench, since memory is read once and not sampled.
//!
//! Counted is what the process has mapped. The kernel's own, sockets and their buffers, comes on top with every proxy.

use std::{sync::Arc, thread, time::Duration};

use lictor_benches::{
    Contender, backends,
    ends::{self, Ends, Identity, Order},
    usage::{Memory, is_brief},
};
use lictor_conformance::{
    certs::pem,
    sidecars::{ANY, Doorman, List, Scene, address_of, inbound, until},
};
use lictor_proxy::{Sidecar, limits};
use tokio::runtime::Builder;

/// The most connections that are opened, and how many for a trial.
const CONNECTIONS: usize = 5_000;
const BRIEF: usize = 50;

/// How many are opened and closed before anything is measured.
const FIRST: usize = 8;

/// What each sends and gets back before it is measured again.
const TRAFFIC: usize = 64 * 1024;

/// How long a process may take to give memory back.
const GRACE: Duration = Duration::from_secs(10);

fn main() {
    if ends::serves() {
        return;
    }
    let allowed = limits::connections_for(limits::raise_descriptor_limit());
    for contender in backends() {
        // A quarter of what is allowed is kept for connections outwards.
        idle(&contender, if is_brief() { BRIEF } else { CONNECTIONS }.min(allowed / 4 * 3));
    }
}

#[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
fn idle(contender: &Contender, connections: usize) {
    let mut ends = Ends::start(contender);
    let Contender { name, backend } = contender;
    let application = ends.application(&Order::Echo);
    // A thread of its own: the sidecar's control tasks must run while this one waits for the other process.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let scene = Scene::new(backend.clone());
    let (sidecar, address) = runtime.block_on(async {
        let deps = scene.deps(scene.source("db"), &Arc::new(Doorman::default()), &Arc::new(List::default()));
        let sidecar = Sidecar::start(deps, inbound("db", ANY, application)).expect("the sidecar starts");
        let address = address_of(&sidecar).await;
        (sidecar, address)
    });
    let leaf = scene.leaf(&scene.mesh.root, "web");
    ends.timed(&Order::Be(Identity {
        certificate: pem("CERTIFICATE", &leaf.chain()[0]),
        key: pem("PRIVATE KEY", leaf.key().secret_der()),
        root: scene.mesh.root.pem(),
    }));

    let open = || usize::try_from(sidecar.metrics().inbound.open).unwrap_or(usize::MAX);
    let wait_for = |wanted: usize| runtime.block_on(until(|| open() == wanted));

    // What comes into being with the first connections and stays is no part of what each costs.
    ends.timed(&Order::Join(address, FIRST));
    ends.timed(&Order::Exchange(TRAFFIC));
    ends.timed(&Order::HangUp);
    wait_for(0);
    let before = Memory::now();

    ends.timed(&Order::Join(address, connections));
    wait_for(connections);
    let idle = Memory::now();
    ends.timed(&Order::Exchange(TRAFFIC));
    let used = Memory::now();
    ends.timed(&Order::HangUp);
    wait_for(0);
    if is_brief() {
        // So few fit into what the first ones left behind: nothing to tell.
        return;
    }
    thread::sleep(GRACE);
    let after = Memory::now();

    let each = |of: Memory| of.proportional.saturating_sub(before.proportional) / connections as u64;
    println!("idle/{name}: {connections} inbound connections over a base of {} KiB", before.proportional / 1024);
    println!("idle/{name}: {} bytes for each, idle", each(idle));
    println!("idle/{name}: {} bytes for each, after {} KiB each way", each(used), TRAFFIC / 1024);
    println!("idle/{name}: {} bytes for each still held when all have been closed", each(after));
    println!("idle/{name}: {before:?}, {idle:?}, {used:?}, {after:?}");
}
