//! Questions to the agent about inbound connections, against a scripted agent in paused time.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is how these tests fail")]

mod consul_support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use consul_support::{Reply, Scripted, World};
use lictor_core::{
    Authorizer as _, CertSource as _, Inbound, Leaf, PeerIdentity, Permit, Refusal, RefusalKind, Roots, ServiceName,
    consul::{AgentClient, ClientSettings, ConsulAuthorizer, Token},
    identity::Grammar,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

const SECOND: Duration = Duration::from_secs(1);
const YES: &str = r#"{"Authorized":true,"Reason":"Matched intention"}"#;
const NO: &str = r#"{"Authorized":false,"Reason":"Denied by intention"}"#;

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An authorizer for the service `web` with its certificate, and the world around it.
struct Desk {
    world: World,
    authorizer: ConsulAuthorizer,
}

impl Desk {
    fn new(client: AgentClient) -> Self {
        let world = World::new();
        let rotation = world.rotation("web");
        let root = world.mesh.root.pem();
        rotation.offer_roots(Roots::from_pem(0, lictor_conformance::certs::TRUST_DOMAIN, [root.as_str()]).unwrap());
        let body: serde_json::Value = serde_json::from_str(&world.leaf(&world.mesh.leaf())).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        let leaf = Leaf::from_pem(&text("CertPEM"), &text("PrivateKeyPEM"), Grammar::Spiffe).unwrap();
        rotation.offer_leaf(leaf).unwrap();
        Self { world, authorizer: ConsulAuthorizer::new(client, rotation.watch()) }
    }

    fn peer(&self) -> PeerIdentity {
        self.world.peer(&self.world.mesh.leaf_of("client"))
    }

    async fn ask(&self, peer: &PeerIdentity) -> Result<Permit, Refusal> {
        self.ask_about("web", peer).await
    }

    async fn ask_about(&self, target: &str, peer: &PeerIdentity) -> Result<Permit, Refusal> {
        let target = ServiceName::parse(target, Grammar::Spiffe).unwrap();
        self.authorizer.authorize(&Inbound { target: &target, peer, within: Duration::from_secs(10) }).await
    }
}

#[tokio::test(start_paused = true)]
async fn the_question_holds_exactly_target_uri_and_serial() {
    let agent = Scripted::new(|_| async { Reply::ok(1, YES) });
    let desk = Desk::new(agent.client());
    let peer = desk.peer();
    assert_eq!(desk.ask(&peer).await.unwrap().rule(), "Matched intention");
    let asked = &agent.asked()[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/v1/agent/connect/authorize"));
    let expected = format!(
        r#"{{"Target":"web","ClientCertURI":"{}","ClientCertSerial":"{}"}}"#,
        peer.uri(),
        peer.serial().as_str()
    );
    assert_eq!(asked.body, expected);
    assert_eq!(asked.headers["content-type"], "application/json");
}

#[tokio::test(start_paused = true)]
async fn each_failure_refuses_under_its_own_kind() {
    for (reply, kind) in [
        (Reply::ok(1, NO), RefusalKind::Denied),
        (Reply::status(400), RefusalKind::BadRequest),
        (Reply::status(403), RefusalKind::Forbidden),
        (Reply::status(429), RefusalKind::Overloaded),
        (Reply::status(500), RefusalKind::AgentError),
        (Reply::status(503), RefusalKind::AgentError),
        (Reply::status(301), RefusalKind::AgentError),
        (Reply::Answer(204, Vec::new(), YES.to_owned()), RefusalKind::AgentError),
        (Reply::Hang, RefusalKind::Timeout),
        (Reply::Refused, RefusalKind::Unreachable),
        (Reply::Broken, RefusalKind::Unreachable),
        (Reply::ok(1, "true"), RefusalKind::Unparsable),
        (Reply::ok(1, format!("{YES}{}", " ".repeat(70_000))), RefusalKind::Unparsable),
    ] {
        let reply = Arc::new(Mutex::new(Some(reply)));
        let agent = Scripted::new(move |_| {
            let reply = {
                let mut once = reply.lock().unwrap();
                match &*once {
                    Some(Reply::Answer(status, headers, body)) => {
                        Some(Reply::Answer(*status, headers.clone(), body.clone()))
                    }
                    Some(Reply::Broken) => Some(Reply::Broken),
                    _ => once.take(),
                }
            };
            async move { reply.unwrap() }
        });
        let desk = Desk::new(agent.client());
        let began = Instant::now();
        let refusal = desk.ask(&desk.peer()).await.unwrap_err();
        assert_eq!(refusal.kind, kind, "{refusal}");
        assert!(began.elapsed() <= 9 * SECOND, "{kind} took {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_managed_proxy_whose_token_the_agent_does_not_know_here_is_told_once_what_to_do() {
    let log = Log::default();
    let writer = log.clone();
    let _log = tracing::subscriber::set_default(
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish(),
    );
    let refused =
        |words: &'static str| Scripted::new(move |_| async move { Reply::Answer(403, Vec::new(), words.into()) });
    for (managed, words, expected) in
        [(false, "ACL not found", 0), (true, "Permission denied", 0), (true, "ACL not found", 1)]
    {
        log.0.lock().unwrap().clear();
        let mut desk = Desk::new(refused(words).client());
        if managed {
            desk.authorizer = desk.authorizer.of_managed_proxy();
        }
        for _ in 0..3 {
            assert_eq!(desk.ask(&desk.peer()).await.unwrap_err().kind, RefusalKind::Forbidden);
        }
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.matches("Consul 1.2.0 and 1.2.1").count(), expected, "{words}: {said}");
        assert_eq!(said.matches("-token-file").count(), expected, "{words}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_overrun_agent_is_asked_again_within_the_deadline() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let agent = Scripted::new(move |_| {
        let call = counter.fetch_add(1, Relaxed);
        async move {
            match call {
                0 => Reply::status(429),
                1 => Reply::Broken,
                2 => Reply::status(429),
                _ => Reply::ok(1, YES),
            }
        }
    });
    let desk = Desk::new(agent.client());
    desk.ask(&desk.peer()).await.unwrap();
    assert_eq!(calls.load(Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_cannot_wait_hears_the_agents_own_reason_in_its_time() {
    let within = Duration::from_secs(1);
    for kind in [RefusalKind::Timeout, RefusalKind::Overloaded] {
        let reply = move |_| async move { if kind == RefusalKind::Timeout { Reply::Hang } else { Reply::status(429) } };
        let desk = Desk::new(Scripted::new(reply).client());
        let target = ServiceName::parse("web", Grammar::Spiffe).unwrap();
        let (begun, peer) = (Instant::now(), desk.peer());
        let refusal = desk.authorizer.authorize(&Inbound { target: &target, peer: &peer, within }).await.unwrap_err();
        assert_eq!(refusal.kind, kind);
        assert!(begun.elapsed() <= within, "{kind}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn identical_questions_that_come_together_are_asked_once() {
    let agent = Scripted::new(|_| async {
        sleep(SECOND).await;
        Reply::ok(1, YES)
    });
    let desk = Desk::new(agent.client());
    let peer = desk.peer();
    let answers = futures_util::future::join_all((0..50).map(|_| desk.ask(&peer))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(agent.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_the_answer_to_a_question_that_was_sent_before_they_came() {
    let calls = Arc::new(AtomicUsize::new(0));
    let agent = Scripted::new(move |_| {
        let call = calls.fetch_add(1, Relaxed);
        async move {
            sleep(SECOND).await;
            // The intention turns while the first question is on its way.
            Reply::ok(1, if call == 0 { YES } else { NO })
        }
    });
    let desk = Desk::new(agent.client());
    let peer = desk.peer();
    let late = async {
        sleep(SECOND / 2).await;
        futures_util::future::join_all((0..20).map(|_| desk.ask(&peer))).await
    };
    let (early, late) = tokio::join!(desk.ask(&peer), late);
    assert!(early.is_ok());
    assert!(late.iter().all(Result::is_err));
    assert_eq!(agent.asked().len(), 2, "the late ones share one question");
}

#[tokio::test(start_paused = true)]
async fn one_identity_with_many_certificates_takes_two_slots_and_leaves_the_others() {
    let gate = Arc::new(Semaphore::new(0));
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gated, counting, highest) = (gate.clone(), inside.clone(), most.clone());
    let agent = Scripted::new(move |asked| {
        let (gate, inside, most) = (gated.clone(), counting.clone(), highest.clone());
        async move {
            if asked.body.contains("/svc/other") {
                return Reply::ok(1, YES);
            }
            most.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
            gate.acquire().await.unwrap().forget();
            inside.fetch_sub(1, Relaxed);
            Reply::ok(1, YES)
        }
    });
    let desk = Desk::new(agent.client());
    let flood: Vec<PeerIdentity> = (0..30).map(|_| desk.peer()).collect();
    let other = desk.world.peer(&desk.world.mesh.leaf_of("other"));
    let flooding = futures_util::future::join_all(flood.iter().map(|peer| desk.ask(peer)));
    let bystander = async {
        sleep(SECOND).await;
        let began = Instant::now();
        desk.ask(&other).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        gate.add_permits(1000);
    };
    let (answers, ()) = tokio::join!(flooding, bystander);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(most.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_does_not_take_the_answer_from_the_others() {
    let agent = Scripted::new(|_| async {
        sleep(SECOND).await;
        Reply::ok(1, YES)
    });
    let desk = Desk::new(agent.client());
    let peer = desk.peer();
    let impatient = tokio::time::timeout(SECOND / 2, desk.ask(&peer));
    let (gone, stayed) = tokio::join!(impatient, desk.ask(&peer));
    assert!(gone.is_err() && stayed.is_ok());
    assert!(desk.ask(&peer).await.is_ok(), "the desk is clear afterwards");
    assert_eq!(agent.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_agent_is_never_asked_about_another_service_than_our_certificate_names() {
    let agent = Scripted::new(|_| async { Reply::ok(1, YES) });
    let desk = Desk::new(agent.client());
    let refusal = desk.ask_about("db", &desk.peer()).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::BadRequest);
    let elsewhere = ClientSettings { namespace: Some("team".to_owned()), ..ClientSettings::default() };
    let desk = Desk::new(agent.client_with(elsewhere));
    assert_eq!(desk.ask(&desk.peer()).await.unwrap_err().kind, RefusalKind::BadRequest);
    assert!(agent.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_certificate_of_ours_nobody_is_let_in() {
    let agent = Scripted::new(|_| async { Reply::ok(1, YES) });
    let desk = Desk::new(agent.client());
    let empty = desk.world.rotation("web");
    let desk = Desk { authorizer: ConsulAuthorizer::new(agent.client(), empty.watch()), ..desk };
    assert!(desk.ask(&desk.peer()).await.is_err());
    assert!(agent.asked().is_empty());
}

#[tokio::test]
async fn a_403_with_a_token_file_that_has_changed_is_asked_again_with_the_new_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "old").unwrap();
    let settings = ClientSettings { token: Token::file(path.clone()).unwrap(), ..ClientSettings::default() };
    let agent = Scripted::new(|asked| async move {
        if asked.headers["x-consul-token"] == "newer" { Reply::ok(1, YES) } else { Reply::status(403) }
    });
    let desk = Desk::new(agent.client_with(settings));
    let peer = desk.peer();
    assert_eq!(desk.ask(&peer).await.unwrap_err().kind, RefusalKind::Forbidden);
    std::fs::write(&path, "newer").unwrap();
    assert!(desk.ask(&peer).await.is_ok());
    assert_eq!(agent.asked().len(), 3);
}

#[tokio::test]
async fn a_token_file_that_hangs_does_not_hold_up_the_question() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "old").unwrap();
    let settings = ClientSettings { token: Token::file(path.clone()).unwrap(), ..ClientSettings::default() };
    std::fs::remove_file(&path).unwrap();
    // Opening a pipe to which nobody writes takes for ever.
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let agent = Scripted::new(|_| async { Reply::ok(1, YES) });
    let desk = Desk::new(agent.client_with(settings));
    let answer = tokio::time::timeout(8 * SECOND, desk.ask(&desk.peer())).await;
    drop(std::fs::OpenOptions::new().write(true).open(&path).unwrap());
    assert!(answer.is_ok_and(|answer| answer.is_ok()));
    assert_eq!(agent.asked()[0].headers["x-consul-token"], "old");
}
