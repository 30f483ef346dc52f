//! What a hostile chain may cost: the bounds of the path search, by counting and never by a clock.
//!
//! Signature checks are counted from outside, by a counter around each algorithm. Steps are the search's own; they
//! are counted by chains that need exactly as many as are allowed, and one more.

use std::{cell::Cell, time::Duration};

use lictor_core::{
    Judge, RejectReason, SignatureAlgorithms,
    verify::{MAX_CANDIDATE_PATHS, MAX_PATH_STEPS, MAX_SIGNATURE_CHECKS},
    verify_peer,
};
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, UnixTime,
};

use crate::{
    certs::{Authority, Mesh},
    keys::KeyKind,
    report::Report,
    rows::{Build, Case, rows},
    verifier::{Side, judge},
};

/// After which no certificate of a row is valid.
const A_CENTURY: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

thread_local! {
    static CHECKS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the checks of one thread.
#[derive(Debug)]
struct Counter(&'static dyn SignatureVerificationAlgorithm);

impl SignatureVerificationAlgorithm for Counter {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        CHECKS.set(CHECKS.get() + 1);
        self.0.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }
}

/// How many checks a chain may cost.
#[derive(Clone, Copy, Debug)]
enum Cost {
    Exactly(usize),
    AtMost(usize),
}

/// Runs the rows of the search's bounds, and holds every other row to the bound on signature checks.
#[must_use]
pub fn run(backend: &str, algorithms: &SignatureAlgorithms, seed: u64) -> Report {
    let mut report = Report::new("bounds", backend, seed);
    let mesh = Mesh::new(seed);
    let counted = algorithms.all().iter().map(|algorithm| {
        // The list holds algorithms for ever, so the few counters of a test run may stay, too.
        let counter: &'static Counter = Box::leak(Box::new(Counter(*algorithm)));
        counter as &'static dyn SignatureVerificationAlgorithm
    });
    let counted = SignatureAlgorithms::new(counted.collect());

    type Shape = (&'static str, fn(&Mesh) -> Case, Result<(), RejectReason>, Cost);
    let too_complex = Err(RejectReason::PathTooComplex);
    let shapes: &[Shape] = &[
        ("as many steps as are allowed", |m| twin_roots(m, MAX_PATH_STEPS, true), Ok(()), Cost::Exactly(1)),
        ("one step more", |m| twin_roots(m, MAX_PATH_STEPS + 1, true), too_complex, Cost::Exactly(0)),
        ("as many paths as are allowed", |m| twin_roots(m, MAX_CANDIDATE_PATHS, false), Ok(()), Cost::Exactly(4)),
        ("one path more", |m| twin_roots(m, MAX_CANDIDATE_PATHS + 1, false), too_complex, Cost::Exactly(4)),
        ("the check that is one too many", three_long_ways, too_complex, Cost::Exactly(MAX_SIGNATURE_CHECKS)),
        ("one root", |m| twin_roots(m, 1, true), Ok(()), Cost::Exactly(1)),
        ("key ids put the right root first", |m| twin_roots(m, 12, true), Ok(()), Cost::Exactly(1)),
    ];
    for (what, build, want, cost) in shapes {
        let case = build(&mesh);
        for side in Side::BOTH {
            report.add(what, side, check(&mesh, &case, side, Some(*want), *cost, &counted));
        }
    }
    for row in rows() {
        let Build::Chain(build) = row.build else { continue };
        let cost = match row.id {
            // Without a root of that name no path is whole, so nothing is checked.
            "N90a" | "N90c" => Cost::Exactly(0),
            "P01" | "P08" => Cost::Exactly(1),
            "P04" | "P05" | "P06" => Cost::Exactly(2),
            _ => Cost::AtMost(MAX_SIGNATURE_CHECKS),
        };
        let case = build(&mesh);
        for side in Side::BOTH {
            report.add(&row.title(), side, check(&mesh, &case, side, None, cost, &counted));
        }
    }
    report
}

fn check(
    mesh: &Mesh,
    case: &Case,
    side: Side,
    want: Option<Result<(), RejectReason>>,
    cost: Cost,
    algorithms: &SignatureAlgorithms,
) -> Result<String, String> {
    let mut judge = judge(mesh, case, side);
    let (verdict, checks) = counted(&judge, &case.chain, algorithms);
    let within = match cost {
        Cost::Exactly(wanted) => checks == wanted,
        Cost::AtMost(most) => checks <= most,
    };
    if !within {
        return Err(format!("{checks} signature checks, wanted {cost:?}"));
    }
    if want.is_some_and(|want| want != verdict) {
        return Err(format!("{verdict:?}, wanted {want:?}"));
    }
    // The same chain again, for whose signatures the roots have a memory: it spares the checks of the good path, not
    // those of bad ones that are tried before it, and changes no verdict.
    let (again, checks_again) = counted(&judge, &case.chain, algorithms);
    if again != verdict {
        return Err(format!("{again:?} when it came again, {verdict:?} at first"));
    }
    if checks_again > checks || (verdict.is_ok() && checks_again == checks) {
        return Err(format!("{checks_again} signature checks when it came again, {checks} at first"));
    }
    if verdict.is_ok() {
        let mut forged = case.chain.clone();
        forged[0] = with_its_last_bit_flipped(&forged[0]);
        if counted(&judge, &forged, algorithms).0.is_ok() {
            return Err("its last bit flipped, it passes by memory".to_owned());
        }
        judge.now = UnixTime::since_unix_epoch(Duration::from_secs(judge.now.as_secs()) + A_CENTURY);
        let (late, _) = counted(&judge, &case.chain, algorithms);
        if !matches!(late, Err(RejectReason::Expired | RejectReason::CaExpired)) {
            return Err(format!("{late:?} when all was expired"));
        }
    }
    Ok(format!("{checks} signature checks"))
}

/// The verdict, and the signature checks that it cost.
fn counted(
    judge: &Judge,
    chain: &[CertificateDer<'_>],
    algorithms: &SignatureAlgorithms,
) -> (Result<(), RejectReason>, usize) {
    CHECKS.set(0);
    let verdict = verify_peer(judge, chain, algorithms).map(|_| ());
    (verdict, CHECKS.get())
}

/// The last bit of a certificate is one of its signature.
fn with_its_last_bit_flipped(certificate: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut der = certificate.to_vec();
    if let Some(last) = der.last_mut() {
        *last ^= 1;
    }
    der.into()
}

/// A leaf of the last of many roots of one name, with or without key identifiers to find it by.
fn twin_roots(mesh: &Mesh, count: usize, identified: bool) -> Case {
    let spec = |spec: crate::certs::Spec| if identified { spec } else { spec.plain() };
    let twins: Vec<Authority> = (0..count).map(|_| Authority::root(&spec(mesh.ca("Twin")), KeyKind::P256)).collect();
    Case::issued(&spec(mesh.leaf()), &twins[count - 1], &[], &twins.iter().collect::<Vec<_>>())
}

/// Three paths of five signatures each, of which the one that is checked last is bad.
fn three_long_ways(mesh: &Mesh) -> Case {
    let upper = mesh.intermediate("Way 1");
    let middle = upper.intermediate(&mesh.ca("Way 2"));
    let lower = middle.intermediate(&mesh.ca("Way 3"));
    let ways: Vec<Authority> = (0..3).map(|_| lower.intermediate(&mesh.ca("Way 4"))).collect();
    let stranger = mesh.other_root("Way 4");
    let mut others: Vec<&Authority> = vec![&upper, &middle, &lower];
    others.extend(&ways);
    Case::issued(&mesh.leaf().plain(), &stranger, &others, &[&mesh.root])
}
