//! The slot through which a verdict crosses a library: one handshake, one question, one answer.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use lictor_conformance::{
    certs::Mesh,
    rows::Case,
    seed,
    verifier::{Side, judge},
};
use lictor_core::{
    Judge, RejectReason, SignatureAlgorithms, TlsBackend,
    judgement::{Verdict, decide, judging, not_judging},
};
use lictor_rustls::RustlsBackend;

struct Scene {
    algorithms: SignatureAlgorithms,
    judge: Judge,
    good: Case,
    bad: Case,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new(seed());
        let good = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
        let bad = Case::issued(&mesh.leaf(), &mesh.other_root("Somebody's CA"), &[], &[&mesh.root]);
        let algorithms = RustlsBackend::new().unwrap().signature_algorithms().clone();
        Self { algorithms, judge: judge(&mesh, &good, Side::Inbound), good, bad }
    }

    fn ask(&self, case: &Case) -> Result<(), RejectReason> {
        decide(&case.chain, &self.algorithms)
    }

    fn reason(verdict: &Option<Verdict>) -> Option<RejectReason> {
        verdict.as_ref().and_then(|verdict| verdict.as_ref().err().copied())
    }
}

#[test]
fn a_verdict_comes_out_of_the_call_in_which_it_was_formed() {
    let scene = Scene::new();
    let mut verdict = None;
    judging(&scene.judge, &mut verdict, || scene.ask(&scene.good)).unwrap();
    assert_eq!(verdict.unwrap().unwrap().identity.uri(), scene.good.uri);
}

#[test]
fn a_question_outside_a_handshake_is_refused() {
    let scene = Scene::new();
    assert_eq!(scene.ask(&scene.good), Err(RejectReason::SecondCertificate));
    assert_eq!(not_judging(|| scene.ask(&scene.good)), Err(RejectReason::SecondCertificate));
}

#[test]
fn a_second_question_in_one_call_takes_the_first_verdict_back() {
    let scene = Scene::new();
    let mut verdict = None;
    judging(&scene.judge, &mut verdict, || {
        assert_eq!(scene.ask(&scene.good), Ok(()));
        assert_eq!(scene.ask(&scene.good), Err(RejectReason::SecondCertificate));
    });
    assert_eq!(Scene::reason(&verdict), Some(RejectReason::SecondCertificate));
}

#[test]
fn a_second_question_in_a_later_call_is_refused() {
    let scene = Scene::new();
    let mut verdict = None;
    judging(&scene.judge, &mut verdict, || scene.ask(&scene.good)).unwrap();
    let again = judging(&scene.judge, &mut verdict, || scene.ask(&scene.bad));
    assert_eq!(again, Err(RejectReason::SecondCertificate));
    assert!(verdict.unwrap().is_ok(), "the verdict of the handshake is not touched");
}

#[test]
fn a_call_that_asks_nothing_leaves_no_verdict_of_its_neighbour() {
    let scene = Scene::new();
    let (mut first, mut second) = (None, None);
    judging(&scene.judge, &mut first, || scene.ask(&scene.good)).unwrap();
    judging(&scene.judge, &mut second, || ());
    assert!(first.is_some() && second.is_none());
}

#[test]
fn a_panic_of_the_library_empties_the_slot() {
    let scene = Scene::new();
    let mut verdict = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        judging(&scene.judge, &mut verdict, || {
            scene.ask(&scene.good).unwrap();
            panic!("as a library might");
        });
    }));
    assert!(panicked.is_err() && verdict.is_none());
    assert_eq!(scene.ask(&scene.good), Err(RejectReason::SecondCertificate));
    let mut next = None;
    judging(&scene.judge, &mut next, || ());
    assert!(next.is_none());
}

#[test]
fn a_verdict_of_one_thread_is_not_seen_on_another() {
    let scene = Scene::new();
    let mut verdict = None;
    judging(&scene.judge, &mut verdict, || {
        std::thread::scope(|threads| {
            let other = threads.spawn(|| scene.ask(&scene.good));
            assert_eq!(other.join().unwrap(), Err(RejectReason::SecondCertificate));
        });
        assert_eq!(scene.ask(&scene.bad), Err(RejectReason::UnknownIssuer));
    });
    assert_eq!(Scene::reason(&verdict), Some(RejectReason::UnknownIssuer));
}
