//! Rotation: what is taken over, what is held, and that nothing broken replaces what is good.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use lictor_conformance::{
    certs::{Authority, DAY, HOUR, MINUTE, Mesh, OTHER_TRUST_DOMAIN, Spec, TRUST_DOMAIN, pem},
    keys::{Key, KeyKind},
};
use lictor_core::{
    CertSource, Leaf, PeerPolicy, RejectReason, Roots, ServiceName, TlsPolicy,
    file_source::{FileSource, Files},
    identity::Grammar,
    rotation::{Changed, Rotation, UpdateRefused},
};
use lictor_rustls::RustlsBackend;
use rustls_pki_types::UnixTime;

/// A mesh, a rotation for its service `web`, and the clock of both.
struct Scene {
    mesh: Mesh,
    now: Arc<AtomicI64>,
    rotation: Arc<Rotation>,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new(lictor_conformance::report::seed());
        let now = Arc::new(AtomicI64::new(mesh.now));
        let ticking = now.clone();
        let clock = move || {
            let seconds = u64::try_from(ticking.load(Ordering::Relaxed)).unwrap();
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
        };
        let rotation = Rotation::new(
            ServiceName::parse("web", Grammar::Spiffe).unwrap().into(),
            Arc::new(RustlsBackend::new().unwrap()),
            TlsPolicy::default(),
            Arc::new(PeerPolicy::default()),
            Arc::new(clock),
        );
        Self { mesh, now, rotation: Arc::new(rotation) }
    }

    /// A scene in which the mesh's root and a good leaf serve.
    fn serving() -> Self {
        let scene = Self::new();
        assert_eq!(scene.rotation.offer_roots(roots(&[&scene.mesh.root])), Changed::Applied);
        assert_eq!(scene.rotation.offer_leaf(scene.leaf(&scene.mesh.leaf())), Ok(Changed::Applied));
        scene
    }

    fn leaf(&self, spec: &Spec) -> Leaf {
        leaf(&self.mesh.root, spec)
    }

    fn generation(&self) -> Option<u64> {
        self.rotation.watch().borrow().as_ref().map(|material| material.generation)
    }

    fn serial(&self) -> Option<String> {
        self.rotation.watch().borrow().as_ref().map(|material| material.leaf.serial().to_string())
    }

    fn anchors(&self) -> usize {
        self.rotation.watch().borrow().as_ref().map_or(0, |material| material.roots.anchors().len())
    }
}

fn leaf(issuer: &Authority, spec: &Spec) -> Leaf {
    let key = Key::generate(KeyKind::P256);
    pair(&[issuer.issue(spec, &key)], &key)
}

fn pair(chain: &[rustls_pki_types::CertificateDer<'static>], key: &Key) -> Leaf {
    let certificates: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    Leaf::from_pem(&certificates, &pem("PRIVATE KEY", key.pkcs8().unwrap()), Grammar::Spiffe).unwrap()
}

fn roots(list: &[&Authority]) -> Roots {
    let list: Vec<String> = list.iter().map(|root| root.pem()).collect();
    Roots::from_pem(0, TRUST_DOMAIN, list.iter().map(String::as_str)).unwrap()
}

#[test]
fn there_is_no_material_until_leaf_and_roots_are_there_in_either_order() {
    let scene = Scene::new();
    assert_eq!(scene.rotation.state().pending, ["roots", "leaf"]);
    assert_eq!(scene.rotation.offer_leaf(scene.leaf(&scene.mesh.leaf())), Ok(Changed::HeldForRoots));
    assert_eq!(scene.generation(), None);
    assert_eq!(scene.rotation.offer_roots(roots(&[&scene.mesh.root])), Changed::Applied);
    assert_eq!(scene.generation(), Some(1));
    let state = scene.rotation.state();
    assert!(state.usable && state.pending.is_empty() && state.problems.is_empty(), "{state:?}");
}

#[test]
fn the_same_again_changes_nothing() {
    let scene = Scene::serving();
    let before = scene.generation();
    let key = Key::generate(KeyKind::P256);
    let chain = [scene.mesh.root.issue(&scene.mesh.leaf(), &key)];
    assert_eq!(scene.rotation.offer_leaf(pair(&chain, &key)), Ok(Changed::Applied));
    assert_eq!(scene.rotation.offer_leaf(pair(&chain, &key)), Ok(Changed::Nothing));
    assert_eq!(scene.rotation.offer_roots(roots(&[&scene.mesh.root])), Changed::Nothing);
    assert_eq!(scene.generation(), before.map(|generation| generation + 1));
}

#[test]
fn a_leaf_that_comes_before_its_root_waits_for_it_while_the_old_one_serves() {
    let scene = Scene::serving();
    let old = scene.serial();
    let next = scene.mesh.other_root("Consul CA 2");
    let renewed = leaf(&next, &scene.mesh.leaf());
    let serial = renewed.serial().to_string();
    assert_eq!(scene.rotation.offer_leaf(renewed), Ok(Changed::Held(RejectReason::UnknownIssuer)));
    assert_eq!(scene.serial(), old);
    assert!(scene.rotation.state().problems.iter().any(|problem| problem.contains("held back")));
    scene.rotation.offer_roots(roots(&[&scene.mesh.root, &next]));
    assert_eq!(scene.serial(), Some(serial));
    assert!(scene.rotation.state().problems.is_empty());
}

#[test]
fn a_removed_root_stops_counting_at_once_although_our_own_leaf_hangs_on_it() {
    let scene = Scene::serving();
    let next = scene.mesh.other_root("Consul CA 2");
    assert_eq!(scene.rotation.offer_roots(roots(&[&next])), Changed::Applied);
    let material = scene.rotation.watch().borrow().clone().unwrap();
    assert!(material.roots.anchors().iter().all(|root| *root.certificate() != scene.mesh.root.certificate));
    let state = scene.rotation.state();
    assert!(!state.usable);
    assert!(state.problems.iter().any(|problem| problem.contains("peers refuse our leaf")), "{state:?}");
}

#[test]
fn a_list_without_a_usable_root_is_taken_over_and_then_nobody_passes() {
    let scene = Scene::serving();
    let garbage = Roots::from_pem(0, TRUST_DOMAIN, ["no PEM at all"]).unwrap();
    assert_eq!(scene.rotation.offer_roots(garbage), Changed::Applied);
    assert_eq!(scene.anchors(), 0);
    let state = scene.rotation.state();
    assert!(state.problems.iter().any(|problem| problem.contains("no usable root")), "{state:?}");
}

#[test]
fn an_empty_list_or_a_foreign_trust_domain_text_is_no_list() {
    use lictor_core::material::RootsError;
    assert_eq!(Roots::from_pem(0, TRUST_DOMAIN, []).unwrap_err(), RootsError::Empty);
    let scene = Scene::new();
    let pem = scene.mesh.root.pem();
    assert_eq!(Roots::from_pem(0, "", [pem.as_str()]).unwrap_err(), RootsError::TrustDomain);
    let many = vec![pem.as_str(); 200];
    assert_eq!(Roots::from_pem(0, TRUST_DOMAIN, many).unwrap_err(), RootsError::TooMany);
}

#[test]
fn one_bad_entry_does_not_cost_the_others() {
    let scene = Scene::new();
    let (root, p224_like) = (scene.mesh.root.pem(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let list = Roots::from_pem(0, TRUST_DOMAIN, [p224_like, root.as_str(), "garbage"]).unwrap();
    assert_eq!((list.anchors().len(), list.ignored().len()), (1, 2), "{list:?}");
}

#[test]
fn a_key_that_does_not_match_never_replaces_a_good_pair() {
    let scene = Scene::serving();
    let before = scene.generation();
    let (right, wrong) = (Key::generate(KeyKind::P256), Key::generate(KeyKind::P256));
    let mixed = pair(&[scene.mesh.root.issue(&scene.mesh.leaf(), &right)], &wrong);
    assert!(matches!(scene.rotation.offer_leaf(mixed), Err(UpdateRefused::Unusable(_))));
    assert_eq!(scene.generation(), before);
    assert!(scene.rotation.state().problems.iter().any(|problem| problem.contains("does not match")));
    assert!(scene.rotation.state().usable);
}

#[test]
fn the_leaf_of_another_service_never_replaces_ours() {
    let scene = Scene::serving();
    let before = scene.generation();
    let foreign = scene.leaf(&scene.mesh.leaf_of("db"));
    assert!(matches!(scene.rotation.offer_leaf(foreign), Err(UpdateRefused::NotOurs(_))));
    assert_eq!(scene.generation(), before);
}

#[test]
fn an_expired_leaf_never_replaces_a_good_one() {
    let scene = Scene::serving();
    let before = scene.generation();
    let now = scene.mesh.now;
    let expired = scene.leaf(&scene.mesh.leaf().valid(now - DAY, now - 1));
    assert_eq!(scene.rotation.offer_leaf(expired), Err(UpdateRefused::PeersWouldRefuse(RejectReason::Expired)));
    assert_eq!(scene.generation(), before);
}

#[test]
fn an_older_leaf_does_not_replace_a_newer_one_that_is_good() {
    let scene = Scene::serving();
    let before = scene.serial();
    let now = scene.mesh.now;
    let older = scene.leaf(&scene.mesh.leaf().valid(now - HOUR, now + DAY));
    assert_eq!(scene.rotation.offer_leaf(older), Err(UpdateRefused::Stale));
    assert_eq!(scene.serial(), before);
}

#[test]
fn an_older_leaf_is_better_than_one_that_peers_refuse() {
    let scene = Scene::serving();
    let now = scene.mesh.now;
    let older = scene.mesh.leaf().valid(now - HOUR, now + 30 * DAY);
    scene.now.store(now + 4 * DAY, Ordering::Relaxed);
    assert!(!scene.rotation.state().usable, "the leaf that serves has expired");
    assert_eq!(scene.rotation.offer_leaf(scene.leaf(&older)), Ok(Changed::Applied));
    assert!(scene.rotation.state().usable);
}

#[test]
fn a_leaf_of_the_future_is_held_until_its_time_comes() {
    let scene = Scene::serving();
    let now = scene.mesh.now;
    let key = Key::generate(KeyKind::P256);
    let chain = [scene.mesh.root.issue(&scene.mesh.leaf().valid(now + 5 * MINUTE, now + DAY), &key)];
    assert_eq!(scene.rotation.offer_leaf(pair(&chain, &key)), Ok(Changed::Held(RejectReason::NotYetValid)));
    scene.now.store(now + 6 * MINUTE, Ordering::Relaxed);
    assert_eq!(scene.rotation.offer_leaf(pair(&chain, &key)), Ok(Changed::Applied));
}

#[test]
fn a_leaf_of_a_new_trust_domain_waits_for_the_roots_that_name_it() {
    let scene = Scene::serving();
    let uri = format!("spiffe://{OTHER_TRUST_DOMAIN}/ns/default/dc/dc1/svc/web");
    let rebuilt = scene.mesh.other_root("Consul CA 2");
    let renewed = leaf(&rebuilt, &scene.mesh.leaf().uri(&uri));
    assert!(matches!(scene.rotation.offer_leaf(renewed), Ok(Changed::Held(_))));
    let list = Roots::from_pem(0, OTHER_TRUST_DOMAIN, [rebuilt.pem().as_str()]).unwrap();
    scene.rotation.offer_roots(list);
    let material = scene.rotation.watch().borrow().clone().unwrap();
    assert_eq!(material.leaf.identity().to_string(), uri);
}

#[test]
fn a_cross_signed_chain_serves_peers_that_know_only_the_old_root() {
    let scene = Scene::serving();
    let next = scene.mesh.other_root("Consul CA 2");
    let cross = scene.mesh.root.cross_sign(&scene.mesh.ca("Consul CA 2"), &next);
    let key = Key::generate(KeyKind::P256);
    let chain = [next.issue(&scene.mesh.leaf(), &key), cross];
    assert_eq!(scene.rotation.offer_leaf(pair(&chain, &key)), Ok(Changed::Applied), "the old root is enough");
    assert_eq!(scene.rotation.offer_roots(roots(&[&scene.mesh.root, &next])), Changed::Applied);
    assert!(scene.rotation.state().usable);
}

#[test]
fn no_key_appears_in_debug_output() {
    let scene = Scene::new();
    let key = Key::generate(KeyKind::P256);
    let leaf = pair(&[scene.mesh.root.issue(&scene.mesh.leaf(), &key)], &key);
    let text = format!("{leaf:?}");
    let secret: String = key.pkcs8().unwrap()[40..60].iter().map(|byte| format!("{byte}, ")).collect();
    assert!(!text.contains(&secret) && text.contains("svc/web"), "{text}");
}

#[test]
fn broken_files_leave_the_last_good_state_and_say_which_file_is_at_fault() {
    let scene = Scene::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let key = Key::generate(KeyKind::P256);
    std::fs::write(path("roots.pem"), scene.mesh.root.pem()).unwrap();
    std::fs::write(path("leaf.pem"), pem("CERTIFICATE", &scene.mesh.root.issue(&scene.mesh.leaf(), &key))).unwrap();
    std::fs::write(path("key.pem"), pem("PRIVATE KEY", key.pkcs8().unwrap())).unwrap();
    let files = Files {
        certificates: path("leaf.pem"),
        key: path("key.pem"),
        roots: path("roots.pem"),
        trust_domain: TRUST_DOMAIN.to_owned(),
    };
    let source = FileSource::new(files, scene.rotation.clone());
    source.reload().unwrap();
    let before = scene.generation();
    assert_eq!(before, Some(1));
    for file in ["leaf.pem", "key.pem", "roots.pem"] {
        let good = std::fs::read_to_string(path(file)).unwrap();
        std::fs::write(path(file), "nonsense").unwrap();
        let told = source.reload().unwrap_err().to_string();
        assert!(told.contains(file), "{told}");
        assert_eq!(scene.generation(), before, "{file}");
        std::fs::write(path(file), good).unwrap();
    }
    source.reload().unwrap();
}
