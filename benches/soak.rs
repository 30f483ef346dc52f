//! Whether memory grows with the number of handshakes: `soak 1000000` does a million full ones with failures of every
//! kind between them, and says what the process holds after its warm-up and at the end. It exits with 1 when that has
//! grown by more than [`BOUND`].
//!
//! Everything is in memory and on one thread. Each full handshake verifies both sides: in TLS 1.3 two sessions of the
//! backend meet; in TLS 1.2, which two of them would never choose, one meets a peer on rustls, on either side. What
//! must come out is checked each time, so that a run in which everything fails is not taken for a good one.

use std::{env, process::ExitCode, sync::Arc, time::Instant};

use criterion::measurement::Measurement as _;
use lictor_benches::{
    Contender, Scene, backends,
    usage::{Memory, ThreadTime},
};
use lictor_conformance::{
    certs::{Authority, HOUR},
    keys::{Key, KeyKind},
    pair::{Ours, Peer, PeerSettings, Version, Witness, talk},
    verifier::Side,
};
use lictor_core::{Judge, MeshContext, RejectReason, SessionError, TlsPolicy};
use rustls::{ClientConfig, ServerConfig};

/// By how many bytes the process may grow between the end of its warm-up and its own end.
///
/// What a library forgets to free is at least a block of the allocator, 32 bytes: in a million handshakes 32 MB, and
/// still 2 MB when one kind of failure alone forgets it, each of which comes once in about twenty handshakes. What
/// grows in a good run is the allocator's fragments, a few hundred kilobytes that do not depend on the number.
const BOUND: u64 = 1024 * 1024;

/// How many full handshakes when nobody says.
const FULL: u64 = 100_000;

/// Of all handshakes, the part that comes before memory is first read: by then all pools and tables have their size.
const WARM_UP: u64 = 20;

/// How many rounds a context serves before a rotation replaces it.
const ROTATION: u64 = 256;

fn main() -> ExitCode {
    let full = match env::args().nth(1).map(|number| number.replace('_', "").parse()) {
        None => FULL,
        Some(Ok(full)) => full,
        Some(Err(_)) => {
            say("usage: soak [number of full handshakes]");
            return ExitCode::from(2);
        }
    };
    let grown = backends().iter().filter(|contender| soak(contender, full) > BOUND).count();
    if grown == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Does `full` full handshakes and more, and returns by how many bytes the process has grown.
fn soak(contender: &Contender, full: u64) -> u64 {
    let title = format!("soak/{}", contender.name);
    let mut stage = Stage::new(contender);
    let (mut round, mut done, mut failures) = (0, 0, 0);
    let mut go_on = |until: u64| {
        while done < until {
            if round % ROTATION == 0 {
                stage.rotate();
            }
            done += stage.successes(round);
            failures += stage.failures(round);
            round += 1;
        }
        (done, failures)
    };
    go_on(full / WARM_UP);
    let before = Memory::now().resident;
    say(&format!("{title}: {} KiB resident after {} full handshakes", before / 1024, full / WARM_UP));
    let (started, cpu) = (Instant::now(), ThreadTime.start());
    let mut after = before;
    for tenth in 1..=10 {
        let (done, failures) = go_on(full * tenth / 10);
        after = Memory::now().resident;
        say(&format!("{title}: {} KiB resident after {done} full handshakes and {failures} failures", after / 1024));
    }
    let grown = after.saturating_sub(before);
    let (took, cpu) = (started.elapsed().as_secs(), ThreadTime.end(cpu).as_secs());
    let verdict = if grown > BOUND { "it leaks" } else { "it holds" };
    say(&format!(
        "{title}: grown by {} KiB of at most {} in {took} s, {cpu} s of CPU: {verdict}",
        grown / 1024,
        BOUND / 1024
    ));
    grown
}

/// Everything that meets.
struct Stage<'a> {
    contender: &'a Contender,
    scene: Scene,
    /// What the client, and what the server among two of ours goes by.
    judges: (Judge, Judge),
    /// The contexts of `web` and `db`, until the next rotation.
    contexts: Option<(Arc<dyn MeshContext>, Arc<dyn MeshContext>)>,
    /// Good peers of TLS 1.2.
    good: Far,
    /// Peers that are to be refused, with the reason.
    bad: Vec<(Far, RejectReason)>,
    /// Peers that send no certificate.
    bare: Vec<Far>,
}

impl<'a> Stage<'a> {
    fn new(contender: &'a Contender) -> Self {
        let scene = Scene::new();
        let mesh = &scene.mesh;
        let foreign = mesh.other_root("Nobody's CA");
        let outdated = mesh.leaf().valid(mesh.now - 2 * HOUR, mesh.now - HOUR);
        let bad = Version::BOTH.into_iter().flat_map(|version| {
            [
                (Far::new(&foreign, &mesh.leaf(), version), RejectReason::UnknownIssuer),
                (Far::new(&mesh.root, &outdated, version), RejectReason::Expired),
            ]
        });
        let bad = bad.collect();
        let bare = Version::BOTH.map(Far::without_certificate).into();
        let good = Far::new(&mesh.root, &mesh.leaf(), Version::Tls12);
        let judges = scene.judges();
        Self { contender, judges, contexts: None, good, bad, bare, scene }
    }

    /// New keys, new certificates, new contexts; the old ones are let go of.
    fn rotate(&mut self) {
        self.contexts = Some(self.scene.contexts(self.contender.backend.as_ref(), &TlsPolicy::default()));
    }

    /// Ends well: returns how many handshakes.
    fn successes(&self, round: u64) -> u64 {
        for end in [round, round + 1] {
            let (mut client, mut server) = self.two_of_ours();
            converse(&mut client, &mut server, usize::MAX, None);
            finished(&client, "TLSv1.3");
            finished(&server, "TLSv1.3");
            client.send(b"a question");
            server.send(b"an answer");
            // Some close in order, some in one direction, some just go.
            if end % 3 > 0 {
                client.close();
            }
            if end % 3 > 1 {
                server.close();
            }
            converse(&mut client, &mut server, usize::MAX, None);
            assert_eq!((server.received(), client.received()), (&b"a question"[..], &b"an answer"[..]));
            assert_eq!((server.closed, client.closed), (end % 3 > 0, end % 3 > 1));
        }
        let closes = round.is_multiple_of(2);
        for side in Side::BOTH {
            let (mut ours, mut peer) = (self.ours(side), self.good.on(side));
            talk(&mut ours, &mut peer, usize::MAX);
            finished(&ours, "TLSv1.2");
            ours.send(b"an answer");
            peer.send(b"a question");
            if closes {
                peer.connection.send_close_notify();
            }
            talk(&mut ours, &mut peer, usize::MAX);
            assert_eq!((ours.received(), &peer.received[..]), (&b"a question"[..], &b"an answer"[..]));
            assert_eq!(ours.closed, closes);
        }
        4
    }

    /// Ends badly in one of many ways: returns how often.
    fn failures(&self, round: u64) -> u64 {
        let side = Side::BOTH[pick(round, 2)];
        let (far, reason) = &self.bad[pick(round / 2, self.bad.len())];
        let mut ours = self.ours(side);
        talk(&mut ours, &mut far.on(side), usize::MAX);
        failed(&ours, |error| *error == SessionError::Rejected(*reason));

        // Where the handshake breaks, byte by byte over the rounds: more than the longest of them has.
        let at = pick(round, 5_000);
        match round % 6 {
            0 => {
                let mut ours = self.ours(Side::Inbound);
                talk(&mut ours, &mut self.bare[pick(round / 6, 2)].on(Side::Inbound), usize::MAX);
                failed(&ours, |error| *error == SessionError::Rejected(RejectReason::NoCertificate));
            }
            1 => {
                // Both fall silent.
                let (mut client, mut server) = self.two_of_ours();
                converse(&mut client, &mut server, at, None);
                assert_eq!((&client.failed, &server.failed), (&None, &None));
            }
            2 => {
                // One bit is wrong. It may be one that nobody reads, so anything may come out that keeps the promises.
                let (mut client, mut server) = self.two_of_ours();
                converse(&mut client, &mut server, usize::MAX, Some(at));
                assert_eq!((&client.broken_promise, &server.broken_promise), (&None, &None));
            }
            3 => {
                let mut ours = self.ours(side);
                ours.take(b"GET / HTTP/1.1\r\nHost: db\r\n\r\n");
                failed(&ours, |error| *error == SessionError::NotTls);
            }
            4 => {
                let (mut client, mut server) = self.two_of_ours();
                converse(&mut client, &mut server, usize::MAX, None);
                client.send(b"a question");
                let mut sent = client.sent();
                *sent.last_mut().expect("a record") ^= 1;
                server.take(&sent);
                failed(&server, |error| *error == SessionError::BadRecord);
                client.take(&server.sent());
                failed(&client, |error| matches!(error, SessionError::PeerAlert(_)));
            }
            _ => {
                let (mut client, mut server) = self.two_of_ours();
                converse(&mut client, &mut server, at, None);
                client.close();
                server.close();
                converse(&mut client, &mut server, usize::MAX, None);
            }
        }
        2
    }

    fn contexts(&self) -> &(Arc<dyn MeshContext>, Arc<dyn MeshContext>) {
        self.contexts.as_ref().expect("a rotation comes first")
    }

    /// `web` dials `db`.
    fn two_of_ours(&self) -> (Ours, Ours) {
        let (web, db) = self.contexts();
        let client = Ours::new(web.as_ref(), self.judges.0.clone(), Side::Outbound);
        (client, Ours::new(db.as_ref(), self.judges.1.clone(), Side::Inbound))
    }

    /// `db`, to whom `web` comes, or who comes to `web`.
    fn ours(&self, side: Side) -> Ours {
        Ours::new(self.contexts().1.as_ref(), Judge { expected: side.expected(), ..self.judges.1.clone() }, side)
    }
}

/// A peer on rustls, for as many connections as one likes.
struct Far {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    witness: Arc<Witness>,
}

impl Far {
    fn new(issuer: &Authority, spec: &lictor_conformance::certs::Spec, version: Version) -> Self {
        let key = Arc::new(Key::generate(KeyKind::P256));
        Self::of(&PeerSettings::new(vec![issuer.issue(spec, &key)], key, version))
    }

    fn without_certificate(version: Version) -> Self {
        Self::of(&PeerSettings::new(Vec::new(), Arc::new(Key::generate(KeyKind::P256)), version))
    }

    fn of(settings: &PeerSettings) -> Self {
        let witness = Arc::new(Witness::default());
        let (client, server) = (settings.client(&witness), settings.server(&witness));
        Self { client: Arc::new(client), server: Arc::new(server), witness }
    }

    /// The peer when we are on `side`.
    fn on(&self, side: Side) -> Peer {
        match side {
            Side::Inbound => Peer::client(self.client.clone(), self.witness.clone()),
            Side::Outbound => Peer::server(self.server.clone(), self.witness.clone()),
        }
    }
}

/// Carries what either says to the other, until both are silent or `most` bytes have gone; of the byte at `flip`, one
/// bit is turned.
fn converse(one: &mut Ours, other: &mut Ours, most: usize, flip: Option<usize>) {
    let mut gone = 0;
    let mut carry = |from: &mut Ours, to: &mut Ours| {
        let mut bytes = from.sent();
        if let Some(byte) = flip.and_then(|at| bytes.get_mut(at.checked_sub(gone)?)) {
            *byte ^= 0x10;
        }
        bytes.truncate(most - gone);
        gone += bytes.len();
        to.take(&bytes);
        !bytes.is_empty()
    };
    while carry(one, other) | carry(other, one) {}
}

fn finished(ours: &Ours, version: &str) {
    let Some(established) = &ours.established else { panic!("no handshake: {:?}", ours.failed) };
    assert_eq!(established.facts.version, version);
}

fn failed(ours: &Ours, as_wanted: impl FnOnce(&SessionError) -> bool) {
    assert_eq!(ours.broken_promise, None);
    assert!(ours.failed.as_ref().is_some_and(as_wanted), "failed with {:?}", ours.failed);
}

fn pick(round: u64, of: usize) -> usize {
    usize::try_from(round).unwrap_or_default() % of
}

#[expect(clippy::print_stdout, reason = "a tool reports on standard output")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_soak_comes_to_its_end() {
        for contender in backends() {
            soak(&contender, 100);
        }
    }
}
