//! The watches of leaf and roots against a scripted agent, in paused time.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

mod consul_support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use consul_support::{Asked, Reply, Scripted, World, leaf};
use lictor_core::{
    CertSource,
    consul::{ClientSettings, ConsulCertSource, find_sidecar},
};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// A source over `agent` for the service `web`.
fn start(world: &World, agent: &Arc<Scripted>) -> ConsulCertSource {
    start_with(world, agent, ClientSettings::default())
}

fn start_with(world: &World, agent: &Arc<Scripted>, settings: ClientSettings) -> ConsulCertSource {
    ConsulCertSource::start(&agent.client_with(settings), world.rotation("web"), world.clock())
}

fn serial(source: &ConsulCertSource) -> Option<String> {
    source.watch().borrow().as_ref().map(|material| material.leaf.serial().to_string())
}

/// Waits for a material other than `before`.
async fn next_serial(source: &ConsulCertSource, before: Option<&str>) -> String {
    let mut watch = source.watch();
    let material = timeout(
        600 * SECOND,
        watch.wait_for(|material| {
            material.as_ref().is_some_and(|material| Some(material.leaf.serial().as_str()) != before)
        }),
    );
    material.await.expect("a new leaf in time").unwrap().as_ref().unwrap().leaf.serial().to_string()
}

/// Holds a blocked call for the wait that it asks for.
async fn held(asked: &Asked) {
    let wait = asked.target.split("wait=").nth(1).unwrap().trim_end_matches("ms").parse().unwrap();
    sleep(Duration::from_millis(wait)).await;
}

fn is_leaf(asked: &Asked) -> bool {
    asked.path().contains("/leaf/")
}

#[tokio::test(start_paused = true)]
async fn a_403_on_a_blocked_leaf_call_is_followed_at_once_by_a_plain_one_whose_leaf_counts() {
    let world = World::new();
    let (first, second) = (world.leaf(&world.mesh.leaf()), world.leaf(&world.mesh.leaf()));
    let roots = world.roots(&[&world.mesh.root]);
    let refused = Arc::new(AtomicBool::new(false));
    let agent = Scripted::new(move |asked| {
        let (first, second, roots, refused) = (first.clone(), second.clone(), roots.clone(), refused.clone());
        async move {
            match (is_leaf(&asked), asked.blocks()) {
                (false, false) => Reply::ok(9, roots),
                (false, true) => Reply::Hang,
                (true, true) if !refused.load(Relaxed) => {
                    sleep(5 * SECOND).await;
                    refused.store(true, Relaxed);
                    Reply::status(403)
                }
                (true, true) => Reply::Hang,
                (true, false) if refused.load(Relaxed) => Reply::ok(57, second),
                (true, false) => Reply::ok(41, first),
            }
        }
    });
    let source = start(&world, &agent);
    let before = next_serial(&source, None).await;
    let began = Instant::now();
    next_serial(&source, Some(&before)).await;
    assert!(began.elapsed() <= 5 * SECOND + Duration::from_millis(10), "{:?}", began.elapsed());
    let asked = agent.asked_for("/leaf/");
    let targets: Vec<_> = asked.iter().map(|asked| asked.target.as_str()).collect();
    assert_eq!(
        targets[..3],
        [
            "/v1/agent/connect/ca/leaf/web",
            "/v1/agent/connect/ca/leaf/web?index=41&wait=60000ms",
            "/v1/agent/connect/ca/leaf/web"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_index_that_fell_is_forgotten_and_a_zero_counts_as_one() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let roots = world.roots(&[&world.mesh.root]);
    let calls = Arc::new(AtomicU64::new(0));
    let agent = Scripted::new(move |asked| {
        let (body, roots, calls) = (body.clone(), roots.clone(), calls.clone());
        async move {
            if !is_leaf(&asked) {
                return if asked.blocks() { Reply::Hang } else { Reply::ok(9, roots) };
            }
            match calls.fetch_add(1, Relaxed) {
                0 => Reply::ok(50, body),
                1 => Reply::ok(7, body),
                2 => Reply::ok(0, body),
                _ => Reply::Hang,
            }
        }
    });
    let source = start(&world, &agent);
    next_serial(&source, None).await;
    sleep(10 * SECOND).await;
    let asked = agent.asked_for("/leaf/");
    let queries: Vec<_> = asked.iter().map(|asked| asked.target.split_once('?').map(|(_, query)| query)).collect();
    assert_eq!(queries, [None, Some("index=50&wait=60000ms"), None, Some("index=1&wait=60000ms")]);
}

#[tokio::test(start_paused = true)]
async fn a_new_leaf_under_the_old_index_is_taken_over() {
    let world = World::new();
    let leaves = [world.leaf(&world.mesh.leaf()), world.leaf(&world.mesh.leaf())];
    let roots = world.roots(&[&world.mesh.root]);
    let agent = Scripted::new(move |asked| {
        let (leaves, roots) = (leaves.clone(), roots.clone());
        async move {
            match (is_leaf(&asked), asked.blocks()) {
                (false, true) => Reply::Hang,
                (false, false) => Reply::ok(9, roots),
                (true, false) => Reply::ok(15, &leaves[0]),
                (true, true) => {
                    sleep(SECOND).await;
                    Reply::ok(15, &leaves[1])
                }
            }
        }
    });
    let source = start(&world, &agent);
    let first = next_serial(&source, None).await;
    next_serial(&source, Some(&first)).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_answers_500_hears_of_each_watch_about_fifteen_times_a_minute() {
    let world = World::new();
    let agent = Scripted::new(|_| async { Reply::status(500) });
    let source = start(&world, &agent);
    sleep(60 * SECOND).await;
    for watch in ["/leaf/", "/roots"] {
        let asked = agent.asked_for(watch);
        assert!((10..=18).contains(&asked.len()), "{watch}: {}", asked.len());
        assert!(asked.iter().all(|asked| !asked.blocks()), "the index of an error was used");
    }
    assert_eq!(source.state().pending, ["roots", "leaf"]);
    assert!(source.state().problems.iter().any(|problem| problem.contains("500")), "{:?}", source.state());
}

#[tokio::test(start_paused = true)]
async fn plain_calls_that_work_do_not_hide_that_each_blocked_one_fails() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let roots = world.roots(&[&world.mesh.root]);
    let agent = Scripted::new(move |asked| {
        let (body, roots) = (body.clone(), roots.clone());
        async move {
            match (asked.blocks(), is_leaf(&asked)) {
                (true, _) => Reply::status(500),
                (false, true) => Reply::ok(15, body),
                (false, false) => Reply::ok(9, roots),
            }
        }
    });
    let source = start(&world, &agent);
    sleep(60 * SECOND).await;
    assert!(serial(&source).is_some(), "the last good state is kept");
    for watch in ["/leaf/", "/roots"] {
        let (all, blocked) = (agent.asked_for(watch), agent.asked_for(watch).iter().filter(|a| a.blocks()).count());
        assert!(all.len() <= 22 && blocked <= 15, "{watch}: {} calls, {blocked} of them blocked", all.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_blocked_call_that_never_returns_is_given_up_and_followed_by_a_plain_one() {
    let world = World::new();
    let leaves = [world.leaf(&world.mesh.leaf()), world.leaf(&world.mesh.leaf())];
    let roots = world.roots(&[&world.mesh.root]);
    let plain = Arc::new(AtomicU64::new(0));
    let agent = Scripted::new(move |asked| {
        let (leaves, roots, plain) = (leaves.clone(), roots.clone(), plain.clone());
        async move {
            match (asked.blocks(), is_leaf(&asked)) {
                (true, _) => std::future::pending().await,
                (false, false) => Reply::ok(9, roots),
                (false, true) => Reply::ok(15, &leaves[usize::from(plain.fetch_add(1, Relaxed) > 0)]),
            }
        }
    });
    let source = start(&world, &agent);
    let first = next_serial(&source, None).await;
    let began = Instant::now();
    next_serial(&source, Some(&first)).await;
    assert!(began.elapsed() <= 70 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_holds_calls_longer_than_asked_is_no_problem_and_one_that_then_stays_silent_is() {
    let world = World::new();
    let (leaf, roots) = (world.leaf(&world.mesh.leaf()), world.roots(&[&world.mesh.root]));
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = silent.clone();
    let agent = Scripted::new(move |asked| {
        let (leaf, roots, silent) = (leaf.clone(), roots.clone(), silent.clone());
        async move {
            match (asked.blocks() || silent.load(Relaxed), is_leaf(&asked)) {
                (true, _) => Reply::Hang,
                (false, true) => Reply::ok(15, leaf),
                (false, false) => Reply::ok(9, roots),
            }
        }
    });
    let source = start(&world, &agent);
    next_serial(&source, None).await;
    for _ in 0..600 {
        sleep(SECOND).await;
        assert_eq!(source.state().problems, Vec::<String>::new());
    }
    let asked = agent.asked_for("/leaf/");
    let plain = asked.iter().filter(|asked| !asked.blocks()).count();
    assert!((8..=12).contains(&plain), "{plain} plain calls of {}", asked.len());

    is_silent.store(true, Relaxed);
    sleep(150 * SECOND).await;
    let problems = source.state().problems;
    assert!(problems.iter().any(|problem| problem.starts_with("leaf: ")), "{problems:?}");
}

#[tokio::test(start_paused = true)]
async fn half_of_the_remaining_life_brings_a_plain_call_again_and_again() {
    let world = World::new();
    let now = world.mesh.now;
    let body = world.leaf(&world.mesh.leaf().valid(now - 60, now + 400));
    let roots = world.roots(&[&world.mesh.root]);
    let agent = Scripted::new(move |asked| {
        let (body, roots) = (body.clone(), roots.clone());
        async move {
            if asked.blocks() {
                held(&asked).await;
            }
            if is_leaf(&asked) { Reply::ok(15, body) } else { Reply::ok(9, roots) }
        }
    });
    let source = start(&world, &agent);
    next_serial(&source, None).await;
    sleep(395 * SECOND).await;
    let asked = agent.asked_for("/leaf/");
    let plain: Vec<u64> = asked.iter().filter(|asked| !asked.blocks()).map(|asked| asked.at.as_secs()).collect();
    for (at, expected) in plain.iter().zip([0, 200, 300, 350, 375, 388]) {
        assert!(at.abs_diff(expected) <= 3, "{plain:?}");
    }
    assert!(plain.len() >= 6, "{plain:?}");
    let longest = asked.iter().filter(|asked| asked.blocks()).all(|asked| {
        let wait: u64 = asked.target.split("wait=").nth(1).unwrap().trim_end_matches("ms").parse().unwrap();
        wait <= 60_000
    });
    assert!(longest, "a wait was longer than a minute");
}

#[tokio::test(start_paused = true)]
async fn fast_changing_roots_are_asked_for_slowly_and_the_newest_wins() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let old = world.mesh.other_root("Consul CA old");
    let lists = [world.roots(&[&world.mesh.root]), world.roots(&[&world.mesh.root, &old])];
    let index = Arc::new(AtomicU64::new(1));
    let churning = Arc::new(AtomicBool::new(true));
    let (counter, churn) = (index.clone(), churning.clone());
    let agent = Scripted::new(move |asked| {
        let (body, lists, index, churning) = (body.clone(), lists.clone(), counter.clone(), churn.clone());
        async move {
            if is_leaf(&asked) {
                return if asked.blocks() { Reply::Hang } else { Reply::ok(15, body) };
            }
            if asked.blocks() && !churning.load(Relaxed) && asked.target.contains("index=1000000") {
                return Reply::Hang;
            }
            if churning.load(Relaxed) {
                let now = index.fetch_add(100, Relaxed);
                Reply::ok(now, &lists[(now / 100 % 2) as usize])
            } else {
                Reply::ok(1_000_000, &lists[1])
            }
        }
    });
    let source = start(&world, &agent);
    sleep(60 * SECOND).await;
    let asked = agent.asked_for("/roots").len();
    assert!((20..=45).contains(&asked), "{asked} calls in a minute of churn");
    churning.store(false, Relaxed);
    sleep(3 * SECOND).await;
    let material = source.watch().borrow().clone().unwrap();
    assert_eq!(material.roots.anchors().len(), 2, "the newest list counts");
}

#[tokio::test(start_paused = true)]
async fn the_agents_return_is_noticed_within_two_seconds() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let roots = world.roots(&[&world.mesh.root]);
    let agent = Scripted::new(move |asked| {
        let (body, roots) = (body.clone(), roots.clone());
        async move {
            match (asked.at < 100 * SECOND, asked.blocks(), is_leaf(&asked)) {
                (true, _, _) => Reply::Refused,
                (_, true, _) => Reply::Hang,
                (_, _, true) => Reply::ok(15, body),
                (_, _, false) => Reply::ok(9, roots),
            }
        }
    });
    let source = start(&world, &agent);
    let began = Instant::now();
    next_serial(&source, None).await;
    assert!(began.elapsed() <= 102 * SECOND, "{:?}", began.elapsed());
    assert!(agent.asked_for("/leaf/").len() >= 90, "it is asked about once a second meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_waits_after_a_403_is_not_woken_by_others() {
    let world = World::new();
    let flip = Arc::new(AtomicBool::new(false));
    let agent = Scripted::new(move |asked| {
        let flip = flip.clone();
        async move {
            match asked.path() {
                "/v1/agent/services" if flip.fetch_xor(true, Relaxed) => Reply::Broken,
                "/v1/agent/services" => Reply::ok(1, "{}"),
                _ => Reply::status(403),
            }
        }
    });
    let client = agent.client();
    let source = ConsulCertSource::start(&client, world.rotation("web"), world.clock());
    for _ in 0..600 {
        let _ = find_sidecar(&client, "web").await;
        sleep(Duration::from_millis(100)).await;
    }
    assert!(agent.asked_for("/leaf/").len() <= 18, "{}", agent.asked_for("/leaf/").len());
    drop(source);
}

#[tokio::test(start_paused = true)]
async fn a_leaf_that_comes_before_its_root_makes_the_roots_be_asked_for_at_once() {
    let world = World::new();
    let new_root = world.mesh.other_root("Consul CA 2");
    let leaves = [world.leaf(&world.mesh.leaf()), leaf(&new_root, &world.mesh.leaf())];
    let lists = [world.roots(&[&world.mesh.root]), world.roots(&[&world.mesh.root, &new_root])];
    let agent = Scripted::new(move |asked| {
        let (leaves, lists) = (leaves.clone(), lists.clone());
        async move {
            let rotated = asked.at >= 10 * SECOND;
            match (is_leaf(&asked), asked.blocks()) {
                // The blocked roots call stays deaf, as an agent's own stale query can make it.
                (false, true) => Reply::Hang,
                (false, false) => Reply::ok(9, &lists[usize::from(rotated)]),
                (true, true) if !rotated => {
                    sleep(10 * SECOND - asked.at).await;
                    Reply::ok(16, &leaves[1])
                }
                (true, true) => Reply::Hang,
                (true, false) => Reply::ok(15, &leaves[usize::from(rotated)]),
            }
        }
    });
    let source = start(&world, &agent);
    let first = next_serial(&source, None).await;
    let began = Instant::now();
    next_serial(&source, Some(&first)).await;
    assert!(began.elapsed() <= 11 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_about_the_roots_asks_at_once_but_not_more_than_once_in_five_seconds() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let roots = world.roots(&[&world.mesh.root]);
    let agent = Scripted::new(move |asked| {
        let (body, roots) = (body.clone(), roots.clone());
        async move {
            match (asked.blocks(), is_leaf(&asked)) {
                (true, _) => Reply::Hang,
                (false, true) => Reply::ok(15, body),
                (false, false) => Reply::ok(9, roots),
            }
        }
    });
    let source = start(&world, &agent);
    next_serial(&source, None).await;
    sleep(SECOND).await;
    let before = agent.asked_for("/roots").len();
    for _ in 0..100 {
        source.suspect_stale_roots();
        sleep(Duration::from_millis(100)).await;
    }
    let plain = agent.asked_for("/roots")[before..].iter().filter(|asked| !asked.blocks()).count();
    assert_eq!(plain, 2, "one at once and one five seconds later");
}

#[tokio::test(start_paused = true)]
async fn an_empty_or_broken_list_of_roots_replaces_nothing() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let roots = world.roots(&[&world.mesh.root]);
    let calls = Arc::new(AtomicU64::new(0));
    let agent = Scripted::new(move |asked| {
        let (body, roots, calls) = (body.clone(), roots.clone(), calls.clone());
        async move {
            if is_leaf(&asked) {
                return if asked.blocks() { Reply::Hang } else { Reply::ok(15, body) };
            }
            match calls.fetch_add(1, Relaxed) {
                0 => Reply::ok(9, roots),
                1 => Reply::ok(10, r#"{"TrustDomain":"","Roots":[]}"#),
                2 => Reply::ok(11, r#"{"TrustDomain":"x.consul","Roots":null}"#),
                3 => Reply::ok(12, r#"{"Roots":"#),
                4 => Reply::ok(13, r#"["roots"]"#),
                _ => Reply::ok(14, "{}"),
            }
        }
    });
    let source = start(&world, &agent);
    next_serial(&source, None).await;
    sleep(30 * SECOND).await;
    let material = source.watch().borrow().clone().unwrap();
    assert_eq!(material.roots.anchors().len(), 1);
    assert!(source.state().problems.iter().any(|problem| problem.contains("no roots yet")), "{:?}", source.state());
}

#[tokio::test(start_paused = true)]
async fn one_entry_of_another_form_does_not_take_the_other_roots_with_it() {
    let world = World::new();
    let body = world.leaf(&world.mesh.leaf());
    let good: serde_json::Value = serde_json::from_str(&world.roots(&[&world.mesh.root])).unwrap();
    let roots = serde_json::json!({
        "TrustDomain": good["TrustDomain"],
        "Roots": [7, {"RootCert": 7}, {"RootCert": "garbage"}, good["Roots"][0]],
    })
    .to_string();
    let agent = Scripted::new(move |asked| {
        let (body, roots) = (body.clone(), roots.clone());
        async move {
            match (asked.blocks(), is_leaf(&asked)) {
                (true, _) => Reply::Hang,
                (false, true) => Reply::ok(15, body),
                (false, false) => Reply::ok(9, roots),
            }
        }
    });
    let source = start(&world, &agent);
    next_serial(&source, None).await;
    assert_eq!(source.state().problems.len(), 3, "{:?}", source.state());
}

#[tokio::test(start_paused = true)]
async fn namespace_and_partition_are_sent_only_when_configured_and_a_datacenter_never() {
    let world = World::new();
    let agent = Scripted::new(|_| async { Reply::status(500) });
    let _source = start(&world, &agent);
    sleep(SECOND).await;
    assert!(agent.asked().iter().all(|asked| !asked.target.contains('?')), "{:?}", agent.asked());
    let agent = Scripted::new(|_| async { Reply::status(500) });
    let settings = ClientSettings {
        namespace: Some("team".to_owned()),
        partition: Some("part".to_owned()),
        path_prefix: "/consul".to_owned(),
        ..ClientSettings::default()
    };
    let _source = start_with(&world, &agent, settings);
    sleep(SECOND).await;
    assert_eq!(agent.asked_for("/leaf/")[0].target, "/consul/v1/agent/connect/ca/leaf/web?ns=team&partition=part");
    assert_eq!(agent.asked_for("/roots")[0].target, "/consul/v1/agent/connect/ca/roots");
}

#[tokio::test(start_paused = true)]
async fn a_leaf_of_other_names_than_those_we_ask_by_is_refused_and_told() {
    let world = World::new();
    let trust_domain = lictor_conformance::certs::TRUST_DOMAIN;
    for (uri_tail, expected) in [
        ("ns/team/dc/dc1/svc/web", "namespace default"),
        ("ns/default/dc/dc2/svc/web", "datacenter dc1"),
        ("ns/default/dc/dc1/svc/db", "not ours"),
    ] {
        let key = lictor_conformance::keys::Key::generate(lictor_conformance::keys::KeyKind::P256);
        let spec = world.mesh.leaf();
        let spec = spec.without("2.5.29.17").uri(&format!("spiffe://{trust_domain}/{uri_tail}"));
        let body = serde_json::json!({
            "CertPEM": lictor_conformance::certs::pem("CERTIFICATE", &world.mesh.root.issue(&spec, &key)),
            "PrivateKeyPEM": lictor_conformance::certs::pem("PRIVATE KEY", key.pkcs8().unwrap()),
        })
        .to_string();
        let roots = world.roots(&[&world.mesh.root]);
        let agent = Scripted::new(move |asked| {
            let (body, roots) = (body.clone(), roots.clone());
            async move {
                match (asked.blocks(), is_leaf(&asked)) {
                    (true, _) => Reply::Hang,
                    (false, true) => Reply::ok(15, body),
                    (false, false) => Reply::ok(9, roots),
                }
            }
        });
        let source = start(&world, &agent);
        source.expect_datacenter("dc1".to_owned());
        sleep(SECOND).await;
        assert_eq!(serial(&source), None, "{uri_tail}");
        let state = source.state();
        assert!(state.problems.iter().any(|problem| problem.contains(expected)), "{uri_tail}: {state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_trouble_with_a_leaf_quotes_its_key() {
    let world = World::new();
    let secret = "hush-key-material";
    for body in [
        format!(r#""{secret}""#),
        format!(r#"{{"CertPEM":7,"PrivateKeyPEM":"{secret}"}}"#),
        format!(r#"{{"CertPEM":"x","PrivateKeyPEM":"{secret}"}}"#),
        format!(r#"{{"CertPEM":"x","PrivateKeyPEM":["{secret}"]}}"#),
    ] {
        let roots = world.roots(&[&world.mesh.root]);
        let answer = body.clone();
        let agent = Scripted::new(move |asked| {
            let (body, roots) = (answer.clone(), roots.clone());
            async move {
                match (asked.blocks(), is_leaf(&asked)) {
                    (true, _) => Reply::Hang,
                    (false, true) => Reply::ok(15, body),
                    (false, false) => Reply::ok(9, roots),
                }
            }
        });
        let source = start(&world, &agent);
        sleep(SECOND).await;
        let state = format!("{:?} {source:?}", source.state());
        assert!(state.contains("leaf") && !state.contains(secret), "{state}");
    }
}
