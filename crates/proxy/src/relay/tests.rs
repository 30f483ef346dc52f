//! The relay over real sockets, with a session that frames instead of encrypting.

use std::{io::ErrorKind, time::SystemTime};

use lictor_core::{HandshakeStep, Judge, Session};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::socket::Plain;

const PATIENCE: Duration = Duration::from_secs(30);

/// The largest payload of a record, as in TLS.
const RECORD: usize = 16 * 1024;

const DATA: u8 = 1;
const CLOSE: u8 = 2;
const ALERT: u8 = 3;
const ASKS: u8 = 4;
const ANSWER: u8 = 5;

/// A record is its kind, its length and its bytes, each turned over so that plaintext is not ciphertext.
fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut record = vec![kind];
    record.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
    record.extend(bytes.iter().map(|byte| !byte));
    record
}

fn frames(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(RECORD).flat_map(|chunk| frame(DATA, chunk)).collect()
}

#[derive(Default)]
struct Framing {
    closed: bool,
}

impl Session for Framing {
    fn open(&mut self, wire: &mut Buf, plain: &mut Buf, out: &mut Buf) -> Result<Progress, SessionError> {
        while let Some((kind, length)) = header(wire.data()) {
            if wire.len() < 3 + length {
                break;
            }
            let bytes: Vec<u8> = wire.data()[3..3 + length].iter().map(|byte| !byte).collect();
            wire.consume(3 + length);
            match kind {
                DATA => plain.append(&bytes),
                CLOSE => self.closed = true,
                ASKS => out.append(&frame(ANSWER, &[])),
                ALERT => return Err(SessionError::PeerAlert(bytes[0])),
                _ => {
                    out.append(&frame(ALERT, &[20]));
                    return Err(SessionError::BadRecord);
                }
            }
        }
        Ok(if self.closed { Progress::PeerClosed } else { Progress::NeedInput })
    }

    fn seal(&mut self, plain: &[u8], out: &mut Buf) -> Result<(), SessionError> {
        out.append(&frames(plain));
        Ok(())
    }

    fn close(&mut self, out: &mut Buf) -> Result<(), SessionError> {
        out.append(&frame(CLOSE, &[]));
        Ok(())
    }
}

impl MeshSession for Framing {
    fn handshake(&mut self, _: &Judge, _: &mut Buf, _: &mut Buf) -> Result<HandshakeStep, SessionError> {
        Err(SessionError::Internal("this session has no handshake".to_owned()))
    }
}

fn header(wire: &[u8]) -> Option<(u8, usize)> {
    match wire {
        [kind, high, low, ..] => Some((*kind, usize::from(u16::from_be_bytes([*high, *low])))),
        _ => None,
    }
}

/// What a peer read: the data, how many answers, and whether a close_notify came.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    data: Vec<u8>,
    answers: usize,
    closed: bool,
    alert: Option<u8>,
}

fn hear(mut wire: &[u8]) -> Heard {
    let mut heard = Heard::default();
    while let Some((kind, length)) = header(wire) {
        let bytes = wire[3..3 + length].iter().map(|byte| !byte);
        match kind {
            DATA => heard.data.extend(bytes),
            ANSWER => heard.answers += 1,
            CLOSE => heard.closed = true,
            ALERT => heard.alert = bytes.clone().next_back(),
            kind => panic!("kind {kind}"),
        }
        wire = &wire[3 + length..];
    }
    assert!(wire.is_empty(), "half a record at the end");
    heard
}

struct Silent;

impl Count for Silent {
    fn came_from_peer(&self, _: usize) {}
    fn went_to_peer(&self, _: usize) {}
}

fn permit() -> Leave {
    Leave::Inbound(Permit::granted_by("the test".to_owned(), SystemTime::UNIX_EPOCH))
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

/// A peer, an application, and a relay between them.
struct Rig {
    peer: TcpStream,
    application: TcpStream,
    relay: JoinHandle<End>,
    budget: Arc<Budget>,
}

async fn rig() -> Rig {
    rig_with(Vec::new()).await
}

async fn rig_with(early: Vec<u8>) -> Rig {
    let ((peer, mut tls), (application, dialled)) = tokio::join!(pair(), pair());
    let mut dialled = Plain::Tcp(dialled);
    dialled.arm();
    let budget = Budget::new(usize::MAX);
    let relay = tokio::spawn({
        let budget = budget.clone();
        async move {
            let session = Box::new(Framing::default());
            let relay = Relay::new(permit(), &mut tls, session, &mut dialled, early, &budget, Silent);
            let end = relay.run(None).await;
            if end.0 == EndReason::Finished {
                dialled.end_cleanly();
            }
            end
        }
    });
    Rig { peer, application, relay, budget }
}

async fn reason(relay: JoinHandle<End>) -> EndReason {
    timeout(PATIENCE, relay).await.expect("the relay ends").unwrap().0
}

async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the stream ends");
    (bytes, end.err().map(|error| error.kind()))
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ seed).collect()
}

#[tokio::test]
async fn a_client_that_half_closes_still_gets_its_whole_answer() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    peer.write_all(&frames(b"request")).await.unwrap();
    peer.write_all(&frame(CLOSE, &[])).await.unwrap();
    peer.shutdown().await.unwrap();
    assert_eq!(read_all(&mut application).await, (b"request".to_vec(), None));
    let answer = pattern(200_000, 1);
    let (_, (wire, error)) = tokio::join!(
        async {
            application.write_all(&answer).await.unwrap();
            application.shutdown().await.unwrap();
        },
        read_all(&mut peer)
    );
    assert_eq!(error, None);
    let heard = hear(&wire);
    assert!(heard.data == answer && heard.closed);
    assert_eq!(reason(relay).await, EndReason::Finished);
}

#[tokio::test]
async fn an_application_that_half_closes_still_gets_all_that_the_client_sends() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    application.write_all(b"greeting").await.unwrap();
    application.shutdown().await.unwrap();
    let (wire, error) = read_all(&mut peer).await;
    assert_eq!(error, None);
    assert_eq!(hear(&wire), Heard { data: b"greeting".to_vec(), closed: true, ..Heard::default() });
    let upload = pattern(200_000, 2);
    let (_, (bytes, error)) = tokio::join!(
        async {
            peer.write_all(&frames(&upload)).await.unwrap();
            peer.write_all(&frame(CLOSE, &[])).await.unwrap();
        },
        read_all(&mut application)
    );
    assert_eq!(error, None, "both directions ended cleanly, so no reset");
    assert!(bytes == upload);
    assert_eq!(reason(relay).await, EndReason::Finished);
}

#[tokio::test]
async fn transfers_both_ways_at_once_arrive_byte_for_byte() {
    let Rig { peer, application, relay, budget } = rig().await;
    let (up, down) = (pattern(8 << 20, 3), pattern(8 << 20, 4));
    let (mut peer_read, mut peer_write) = peer.into_split();
    let (mut application_read, mut application_write) = application.into_split();
    let (sent_up, sent_down) = (frames(&up), down.clone());
    let writers = async {
        let from_peer = async {
            // Cut anywhere, so that records come in pieces.
            for piece in sent_up.chunks(77_777) {
                peer_write.write_all(piece).await.unwrap();
            }
            peer_write.write_all(&frame(CLOSE, &[])).await.unwrap();
        };
        let from_application = async {
            application_write.write_all(&sent_down).await.unwrap();
            application_write.shutdown().await.unwrap();
        };
        tokio::join!(from_peer, from_application)
    };
    let readers = async {
        let (mut wire, mut bytes) = (Vec::new(), Vec::new());
        let (one, other) = tokio::join!(peer_read.read_to_end(&mut wire), application_read.read_to_end(&mut bytes));
        one.unwrap();
        other.unwrap();
        (wire, bytes)
    };
    let (_, (wire, bytes)) = timeout(PATIENCE, async { tokio::join!(writers, readers) }).await.unwrap();
    assert!(bytes == up && hear(&wire).data == down);
    assert_eq!(reason(relay).await, EndReason::Finished);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn a_cut_is_a_reset_after_all_that_had_come() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    peer.write_all(&frames(b"half an answ")).await.unwrap();
    drop(peer);
    let (bytes, error) = read_all(&mut application).await;
    assert_eq!((&*bytes, error), (&b"half an answ"[..], Some(ErrorKind::ConnectionReset)));
    assert_eq!(reason(relay).await, EndReason::Truncated);
}

#[tokio::test]
async fn a_cut_inside_a_record_is_one_too() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    let record = frame(DATA, &[1; 1000]);
    peer.write_all(&record[..500]).await.unwrap();
    drop(peer);
    assert_eq!(read_all(&mut application).await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(reason(relay).await, EndReason::Truncated);
}

#[tokio::test]
async fn a_slow_application_gets_all_that_came_before_a_cut() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    SockRef::from(&application).set_recv_buffer_size(16 * 1024).unwrap();
    let sent = pattern(400_000, 5);
    peer.write_all(&frames(&sent)).await.unwrap();
    drop(peer);
    // It begins to read only when the relay knows of the cut and is waiting for it.
    let mut bytes = vec![0; 100_000];
    tokio::task::yield_now().await;
    timeout(PATIENCE, application.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert!(!relay.is_finished(), "the rest is not delivered yet");
    let (rest, error) = read_all(&mut application).await;
    bytes.extend(rest);
    assert!(bytes == sent, "{} of {} bytes", bytes.len(), sent.len());
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
    assert_eq!(reason(relay).await, EndReason::Truncated);
}

#[tokio::test]
async fn an_application_that_resets_never_looks_like_a_clean_end() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    application.write_all(b"last words").await.unwrap();
    let mut first = [0; 3 + 10];
    timeout(PATIENCE, peer.read_exact(&mut first)).await.unwrap().unwrap();
    reset(application);
    let (wire, error) = read_all(&mut peer).await;
    assert_eq!(error, None, "a FIN, so that nothing in flight is thrown away");
    assert_eq!(hear(&first).data, b"last words");
    assert_eq!(hear(&wire), Heard::default(), "no close_notify");
    assert_eq!(reason(relay).await, EndReason::ApplicationReset);
}

#[tokio::test]
async fn the_answer_of_an_application_that_stops_listening_is_delivered() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    // Small enough to have left the application's own kernel, which drops what has not.
    let (answer, upload) = (pattern(20_000, 6), frames(&pattern(4 << 20, 7)));
    let mut some = [0; 1000];
    peer.write_all(&upload[..100_000]).await.unwrap();
    timeout(PATIENCE, application.read_exact(&mut some)).await.unwrap().unwrap();
    application.write_all(&answer).await.unwrap();
    // The rest of the upload is unread, so this is a reset behind the answer.
    drop(application);
    let mut wire = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(n) = timeout(PATIENCE, peer.read(&mut chunk)).await.unwrap() {
        if n == 0 {
            break;
        }
        wire.extend_from_slice(&chunk[..n]);
    }
    let heard = hear(&wire);
    assert!(heard.data == answer, "{} of {} bytes", heard.data.len(), answer.len());
    assert!(!heard.closed);
    assert_eq!(reason(relay).await, EndReason::ApplicationReset);
}

#[tokio::test]
async fn a_peer_that_resets_resets_the_application() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    peer.write_all(&frames(b"hello")).await.unwrap();
    let mut got = [0; 5];
    timeout(PATIENCE, application.read_exact(&mut got)).await.unwrap().unwrap();
    reset(peer);
    assert_eq!(read_all(&mut application).await, (Vec::new(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(reason(relay).await, EndReason::PeerReset);
}

#[tokio::test]
async fn a_damaged_record_delivers_what_was_good_before_it_and_tells_the_peer() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    let mut wire = frames(b"good");
    wire.extend(frame(99, b"forged"));
    peer.write_all(&wire).await.unwrap();
    let (bytes, error) = read_all(&mut application).await;
    assert_eq!((&*bytes, error), (&b"good"[..], Some(ErrorKind::ConnectionReset)));
    let (wire, _) = read_all(&mut peer).await;
    assert_eq!(hear(&wire).alert, Some(20));
    drop(peer);
    assert_eq!(reason(relay).await, EndReason::BadRecord);
}

#[tokio::test]
async fn an_alert_of_the_peer_is_its_own_reason() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    peer.write_all(&frame(ALERT, &[48])).await.unwrap();
    drop(peer);
    assert_eq!(read_all(&mut application).await.1, Some(ErrorKind::ConnectionReset));
    let (reason, detail) = timeout(PATIENCE, relay).await.unwrap().unwrap();
    assert_eq!(reason, EndReason::PeerAlert);
    assert!(detail.contains("48"), "{detail}");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_without_a_byte_of_the_client() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    application.write_all(b"220 ready").await.unwrap();
    let mut first = [0; 3 + 9];
    timeout(PATIENCE, peer.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(hear(&first).data, b"220 ready");
    relay.abort();
}

#[tokio::test]
async fn data_that_came_with_the_handshake_is_delivered_without_another_byte() {
    let Rig { peer: _peer, mut application, relay, .. } = rig_with(frames(b"early")).await;
    let mut got = [0; 5];
    timeout(PATIENCE, application.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"early");
    relay.abort();
}

#[tokio::test]
async fn answers_that_the_protocol_asks_for_are_sent_while_nobody_writes() {
    let Rig { mut peer, application: _application, relay, .. } = rig().await;
    peer.write_all(&frame(ASKS, &[])).await.unwrap();
    let mut answer = [0; 3];
    timeout(PATIENCE, peer.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(hear(&answer).answers, 1);
    relay.abort();
}

#[tokio::test]
async fn a_reader_that_stands_still_holds_up_its_writer_and_not_memory() {
    let Rig { mut peer, application, relay, budget } = rig().await;
    let piece = frames(&[7; RECORD]);
    // Far more than all the kernel's buffers on the way take.
    let mut sent = 0;
    while sent < 256 << 20 {
        match timeout(Duration::from_millis(300), peer.write(&piece)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    assert!(sent < 256 << 20, "the writer was never held up");
    assert!(budget.held() > 0 && budget.held() <= LENT_BYTES + RECORD, "{} bytes held", budget.held());
    relay.abort();
    drop(application);
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_moves_ends_at_its_limit_and_not_before() {
    let (mut peer, mut tls) = tokio::io::duplex(4096);
    let (mut application, mut dialled) = tokio::io::duplex(4096);
    let relay = tokio::spawn(async move {
        let (session, budget) = (Box::new(Framing::default()), Budget::new(usize::MAX));
        let relay = Relay::new(permit(), &mut tls, session, &mut dialled, Vec::new(), &budget, Silent);
        relay.run(Some(Duration::from_secs(60))).await
    });
    let began = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(50)).await;
    peer.write_all(&frames(b"x")).await.unwrap();
    let mut got = [0; 1];
    application.read_exact(&mut got).await.unwrap();
    assert_eq!(relay.await.unwrap().0, EndReason::Idle);
    let lived = began.elapsed();
    assert!(lived >= Duration::from_secs(110) && lived < Duration::from_secs(117), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_goes_on_taking_what_is_left_is_not_idle() {
    let (mut peer, mut tls) = tokio::io::duplex(1 << 20);
    let (mut application, mut dialled) = tokio::io::duplex(64);
    let relay = tokio::spawn(async move {
        let (session, budget) = (Box::new(Framing::default()), Budget::new(usize::MAX));
        let relay = Relay::new(permit(), &mut tls, session, &mut dialled, Vec::new(), &budget, Silent);
        relay.run(Some(Duration::from_secs(60))).await
    });
    let sent = pattern(1000, 9);
    peer.write_all(&frames(&sent)).await.unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < sent.len() {
        tokio::time::sleep(Duration::from_secs(50)).await;
        let mut some = [0; 50];
        application.read_exact(&mut some).await.unwrap();
        bytes.extend(some);
    }
    assert!(bytes == sent);
    assert_eq!(relay.await.unwrap().0, EndReason::Idle);
}

#[tokio::test]
async fn a_peer_that_asks_for_answers_after_our_close_notify_still_delivers_all_it_has() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    application.shutdown().await.unwrap();
    assert!(hear(&read_all(&mut peer).await.0).closed);
    let mut wire = frame(ASKS, &[]);
    wire.extend(frames(b"an upload"));
    wire.extend(frame(CLOSE, &[]));
    peer.write_all(&wire).await.unwrap();
    assert_eq!(read_all(&mut application).await, (b"an upload".to_vec(), None));
    assert_eq!(reason(relay).await, EndReason::Finished);
}

#[tokio::test]
async fn a_peer_that_closes_its_socket_behind_its_close_notify_has_finished() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    peer.write_all(&frames(b"request")).await.unwrap();
    application.write_all(b"answer").await.unwrap();
    let mut answer = [0; 3 + 6];
    timeout(PATIENCE, peer.read_exact(&mut answer)).await.unwrap().unwrap();
    peer.write_all(&frame(CLOSE, &[])).await.unwrap();
    // Nothing obliges it to wait for our close_notify (RFC 8446, section 6.1), which its kernel answers by a reset.
    drop(peer);
    assert_eq!(read_all(&mut application).await, (b"request".to_vec(), None));
    drop(application);
    assert_eq!(reason(relay).await, EndReason::Finished);
}

#[tokio::test]
async fn an_answer_that_a_closed_peer_cannot_take_is_no_finish() {
    let Rig { mut peer, mut application, relay, .. } = rig().await;
    peer.write_all(&frame(CLOSE, &[])).await.unwrap();
    drop(peer);
    assert_eq!(read_all(&mut application).await, (Vec::new(), None));
    application.write_all(b"an answer that nobody takes").await.unwrap();
    application.shutdown().await.unwrap();
    assert_eq!(reason(relay).await, EndReason::PeerReset);
}

#[test]
fn over_budget_connections_read_in_small_steps_until_readers_catch_up() {
    let budget = Budget::new(100);
    assert_eq!(budget.read_size(), LENT_BYTES);
    let mut leftover = Leftover::new(budget.clone());
    leftover.bytes = vec![0; 101];
    budget.held.fetch_add(101, Ordering::Relaxed);
    assert_eq!(budget.read_size(), SMALL_READ);
    drop(leftover);
    assert_eq!((budget.held(), budget.read_size()), (0, LENT_BYTES));
}
