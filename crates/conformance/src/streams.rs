//! Connections over the data plane: peers that stall, directions that end, and ends that are none.
//!
//! The data plane is one for all libraries; what this family shows is that each library's sessions keep their promises
//! under it: a deadline ends what waits, close_notify is the only clean end, and one direction outlives the other.

use std::{io, sync::Arc, time::Duration};

use lictor_core::TlsBackend;
use rustls::HandshakeKind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    certs::Mesh,
    pair::{Peer, PeerSettings, Version, ways},
    paths::{GREETING, PATIENCE, Scene, Stand, connect},
    records::{self, Forger},
    report::Report,
    rows::{Case, Row, rows},
    session::{records_of_a_handshake, second_handshake},
    verifier::Side,
};

type Outcome = Result<String, String>;

/// The deadline of handshakes for peers that stall.
const DEADLINE: Duration = Duration::from_millis(500);

/// Runs the family.
///
/// # Panics
/// When the machine has no loopback, threads or descriptors for it.
#[must_use]
pub fn run(backend: &Arc<dyn TlsBackend>, seed: u64) -> Report {
    let mut report = Report::new("streams", backend.name(), seed);
    let runtime = tokio::runtime::Runtime::new().expect("threads for a runtime");
    let mesh = Mesh::new(seed);
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let stand = Stand::new(backend, &mesh);
    runtime.block_on(async {
        let scene = stand.scene(&mesh, &case, None).await;
        for (side, version, way) in ways() {
            let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
            report.add("a peer that stalls in every state", way, stalled(&stand, &mesh, &case, &settings, side).await);
            for end in End::ALL {
                let row = format!("the peer ends {}", end.words());
                report.add(&row, way, peer_ends(&scene, &settings, side, end).await);
            }
            report.add(&title("N95"), way, resumption(&scene, &settings, side).await);
            report.add(&title("N96"), way, second_certificate(&scene, &settings, side).await);
            report.add("the application ends first", way, application_ends(&scene, &settings, side).await);
            if version == Version::Tls13 {
                report.add("keys change between data", way, keys_change(&scene, &settings, side).await);
            }
        }
        scene.abort();
    });
    report
}

/// The name of a row of the table.
fn title(id: &str) -> String {
    rows().iter().find(|row| row.id == id).map(Row::title).unwrap_or_default()
}

/// How a peer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    CloseNotify,
    Fin,
    MidRecord,
    Reset,
    Damage,
}

impl End {
    const ALL: [Self; 5] = [Self::CloseNotify, Self::Fin, Self::MidRecord, Self::Reset, Self::Damage];

    fn words(self) -> &'static str {
        match self {
            Self::CloseNotify => "with close_notify, and is still answered",
            Self::Fin => "without close_notify",
            Self::MidRecord => "in the middle of a record",
            Self::Reset => "by a reset",
            Self::Damage => "with a damaged record",
        }
    }
}

/// A peer over its socket, and the application that it meets.
struct Joined {
    peer: Peer,
    stream: TcpStream,
    application: TcpStream,
}

impl Joined {
    /// A connection in which the greeting has gone from the peer to the application.
    async fn new(scene: &Scene, settings: &PeerSettings, side: Side) -> Result<Self, String> {
        let mut peer = Peer::new(settings, side);
        let (mut stream, mut application) = match side {
            Side::Inbound => {
                let mut stream = connect(scene.mesh_side).await?;
                shake(&mut peer, &mut stream).await?;
                (stream, None)
            }
            Side::Outbound => {
                let server = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
                scene.dials(&server)?;
                let application = connect(scene.upstream).await?;
                let mut stream = accepted(&server).await?;
                shake(&mut peer, &mut stream).await?;
                (stream, Some(application))
            }
        };
        peer.send(GREETING);
        write(&mut peer, &mut stream).await?;
        if application.is_none() {
            application = Some(scene.application_is_dialled().await?);
        }
        let mut joined = Self { peer, stream, application: application.ok_or("no application")? };
        joined.application_hears(GREETING).await?;
        Ok(joined)
    }

    async fn application_hears(&mut self, wanted: &[u8]) -> Result<(), String> {
        let mut got = vec![0; wanted.len()];
        let read = timeout(PATIENCE, self.application.read_exact(&mut got)).await;
        read.map_err(|_| "the application hears nothing".to_owned())?.map_err(|error| error.to_string())?;
        if got == wanted { Ok(()) } else { Err(format!("the application heard {got:?}")) }
    }

    /// What the application reads until its end, and how that ends.
    async fn application_ends(&mut self) -> Result<(Vec<u8>, io::Result<usize>), String> {
        read_out(&mut self.application).await
    }

    /// Takes what comes until the peer has received so much, or has seen an end.
    async fn peer_hears(&mut self, wanted: usize) -> Result<(), String> {
        while self.peer.received.len() < wanted && read(&mut self.peer, &mut self.stream).await? {
            write(&mut self.peer, &mut self.stream).await?;
        }
        Ok(())
    }

    /// Whether the peer sees our close_notify: its reader then ends without an error.
    async fn peer_sees_a_clean_end(&mut self) -> Result<(), String> {
        let mut byte = [0; 1];
        loop {
            match io::Read::read(&mut self.peer.connection.reader(), &mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err("more than was wanted arrived".to_owned()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("no close_notify: {error}")),
            }
            if !read(&mut self.peer, &mut self.stream).await? {
                return Err("the connection ends without close_notify".to_owned());
            }
        }
    }
}

async fn peer_ends(scene: &Scene, settings: &PeerSettings, side: Side, end: End) -> Outcome {
    let mut joined = Joined::new(scene, settings, side).await?;
    joined.peer.send(b"last words");
    match end {
        End::CloseNotify => joined.peer.connection.send_close_notify(),
        End::Fin | End::Reset => {}
        End::MidRecord | End::Damage => {
            write(&mut joined.peer, &mut joined.stream).await?;
            joined.peer.send(b"cut or damaged");
            let mut record = joined.peer.sent();
            if end == End::Damage {
                record.iter_mut().last().into_iter().for_each(|last| *last ^= 1);
            } else {
                record.truncate(record.len() - 5);
            }
            joined.stream.write_all(&record).await.map_err(|error| error.to_string())?;
        }
    }
    write(&mut joined.peer, &mut joined.stream).await?;
    joined.application_hears(b"last words").await?;
    match end {
        End::CloseNotify => {
            let (got, end) = joined.application_ends().await?;
            if !got.is_empty() || end.is_err() {
                return Err(format!("the application saw {end:?} behind {got:?}"));
            }
            // The other direction goes on for as long as the application likes.
            let answer = vec![7; 200_000];
            let (written, heard) = tokio::join!(
                async {
                    joined.application.write_all(&answer).await?;
                    joined.application.shutdown().await
                },
                async {
                    while joined.peer.received.len() < answer.len() {
                        if !read(&mut joined.peer, &mut joined.stream).await? {
                            return Err("the answer was cut".to_owned());
                        }
                    }
                    Ok(())
                }
            );
            written.map_err(|error| error.to_string())?;
            heard?;
            joined.peer_sees_a_clean_end().await?;
            return Ok("a clean end each way, one after the other".to_owned());
        }
        End::Fin | End::MidRecord => {
            joined.stream.shutdown().await.map_err(|error| error.to_string())?;
        }
        End::Reset => {
            joined.stream.set_zero_linger().map_err(|error| error.to_string())?;
            let Joined { stream, mut application, peer } = joined;
            drop(stream);
            return is_reset(read_out(&mut application).await?, &peer);
        }
        End::Damage => {}
    }
    let seen = joined.application_ends().await?;
    is_reset(seen, &joined.peer)
}

fn is_reset((got, end): (Vec<u8>, io::Result<usize>), peer: &Peer) -> Outcome {
    match (got, end) {
        (got, Err(error)) if got.is_empty() && error.kind() == io::ErrorKind::ConnectionReset => {
            Ok("a reset at the application".to_owned())
        }
        other => Err(format!("the application saw {other:?} instead of a reset; {:?} {:?}", peer.alert, peer.error)),
    }
}

/// A peer that would resume meets a full handshake, and so a full verdict, each time.
async fn resumption(scene: &Scene, settings: &PeerSettings, side: Side) -> Outcome {
    let witness = Arc::default();
    let mut settings = settings.clone();
    match side {
        Side::Inbound => settings.memory = Some(Arc::new(settings.client(&witness))),
        Side::Outbound => settings.memory_as_server = Some(Arc::new(settings.server(&witness))),
    }
    for round in 0..3 {
        let joined = Joined::new(scene, &settings, side).await?;
        match joined.peer.connection.handshake_kind() {
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => {}
            other => return Err(format!("handshake {round} was {other:?}")),
        }
    }
    Ok("full handshakes".to_owned())
}

/// Under a permit there is one certificate: who begins anew is cut off from the application.
async fn second_certificate(scene: &Scene, settings: &PeerSettings, side: Side) -> Outcome {
    let Joined { peer, mut stream, mut application } = Joined::new(scene, settings, side).await?;
    let leaf = settings.chain.first().ok_or("no certificate")?.clone();
    let mut forger = Forger::take_over(peer, settings.version);
    let message = second_handshake(&leaf, side, settings.version);
    let record = forger.seal(records::HANDSHAKE, &message);
    stream.write_all(&record).await.map_err(|error| error.to_string())?;
    match read_out(&mut application).await? {
        (got, Err(error)) if got.is_empty() && error.kind() == io::ErrorKind::ConnectionReset => {
            Ok("a reset at the application".to_owned())
        }
        other => Err(format!("the application saw {other:?} instead of a reset")),
    }
}

async fn application_ends(scene: &Scene, settings: &PeerSettings, side: Side) -> Outcome {
    let mut joined = Joined::new(scene, settings, side).await?;
    joined.application.write_all(b"last words").await.map_err(|error| error.to_string())?;
    joined.application.shutdown().await.map_err(|error| error.to_string())?;
    joined.peer_hears(b"last words".len()).await?;
    if joined.peer.received != b"last words" {
        return Err(format!("the peer heard {:?}", joined.peer.received));
    }
    joined.peer_sees_a_clean_end().await?;
    joined.peer.send(b"still here");
    write(&mut joined.peer, &mut joined.stream).await?;
    joined.application_hears(b"still here").await?;
    joined.peer.connection.send_close_notify();
    write(&mut joined.peer, &mut joined.stream).await?;
    match joined.application_ends().await? {
        (got, Ok(0)) if got.is_empty() => Ok("a clean end each way, one after the other".to_owned()),
        other => Err(format!("the application saw {other:?}")),
    }
}

async fn keys_change(scene: &Scene, settings: &PeerSettings, side: Side) -> Outcome {
    let mut joined = Joined::new(scene, settings, side).await?;
    for round in 1..=20_usize {
        joined.peer.connection.refresh_traffic_keys().map_err(|error| error.to_string())?;
        joined.peer.send(b"question");
        write(&mut joined.peer, &mut joined.stream).await?;
        joined.application_hears(b"question").await?;
        joined.application.write_all(b"answer").await.map_err(|error| error.to_string())?;
        joined.peer_hears(round * b"answer".len()).await?;
    }
    if joined.peer.received == b"answer".repeat(20) {
        Ok("asked and answered twenty times".to_owned())
    } else {
        Err(format!("{} bytes arrived: {:?} {:?}", joined.peer.received.len(), joined.peer.alert, joined.peer.error))
    }
}

/// Peers that say one record more each, and then nothing: the deadline ends them all, and the application never learns
/// of them.
async fn stalled(stand: &Stand, mesh: &Mesh, case: &Case, settings: &PeerSettings, side: Side) -> Outcome {
    let states = records_of_a_handshake(stand.backend.as_ref(), mesh, settings, side)?;
    let scene = stand.scene(mesh, case, Some(DEADLINE)).await;
    let mut waiting = Vec::new();
    for count in 0..states {
        let mut peer = Peer::new(settings, side);
        let (mut stream, application) = match side {
            Side::Inbound => (connect(scene.mesh_side).await?, None),
            Side::Outbound => {
                let server = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
                scene.dials(&server)?;
                let application = connect(scene.upstream).await?;
                (accepted(&server).await?, Some(application))
            }
        };
        say_records(&mut peer, &mut stream, count).await;
        waiting.push((stream, application));
    }
    for (state, (mut stream, application)) in waiting.into_iter().enumerate() {
        let mut rest = Vec::new();
        // A FIN or a reset: who was waited for in vain is owed neither.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .map_err(|_| format!("after {state} records the connection is kept"))?;
        if let Some(mut application) = application {
            let mut got = Vec::new();
            let end = timeout(PATIENCE, application.read_to_end(&mut got)).await;
            if !matches!(&end, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset) || !got.is_empty() {
                return Err(format!("after {state} records the application saw {end:?}"));
            }
        }
    }
    let timed_out = scene.timed_out(side, states).await;
    let bothered = scene.nobody_was_bothered(0);
    scene.abort();
    timed_out?;
    bothered?;
    Ok(format!("a time-out in each of {states} states"))
}

/// Says the first `count` records of the handshake.
async fn say_records(peer: &mut Peer, stream: &mut TcpStream, count: usize) {
    let mut said = 0;
    loop {
        let theirs = peer.sent();
        let all = records::split(&theirs);
        let now = &all[..(count - said).min(all.len())];
        let gone = stream.write_all(&now.concat()).await.is_err();
        said += now.len();
        // On a machine that is busy the deadline may come before the last word; what is counted tells.
        if said == count || gone || !matches!(read(peer, stream).await, Ok(true)) {
            return;
        }
    }
}

async fn shake(peer: &mut Peer, stream: &mut TcpStream) -> Result<(), String> {
    loop {
        write(peer, stream).await?;
        if peer.is_done() {
            return Ok(());
        }
        if !read(peer, stream).await? {
            return Err(format!("no handshake: {:?} {:?}", peer.alert, peer.error));
        }
    }
}

async fn write(peer: &mut Peer, stream: &mut TcpStream) -> Result<(), String> {
    stream.write_all(&peer.sent()).await.map_err(|error| error.to_string())
}

/// Reads once; false at the end of the stream.
async fn read(peer: &mut Peer, stream: &mut TcpStream) -> Result<bool, String> {
    let mut buffer = vec![0; 64 * 1024];
    let read = timeout(PATIENCE, stream.read(&mut buffer)).await.map_err(|_| "nothing comes".to_owned())?;
    match read {
        Ok(0) => Ok(false),
        Ok(n) => {
            peer.take(&buffer[..n]);
            Ok(true)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What comes until the end, and how that ends.
async fn read_out(stream: &mut TcpStream) -> Result<(Vec<u8>, io::Result<usize>), String> {
    let mut got = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut got)).await;
    Ok((got, end.map_err(|_| "the application sees no end".to_owned())?))
}

async fn accepted(server: &TcpListener) -> Result<TcpStream, String> {
    let accepted = timeout(PATIENCE, server.accept()).await.map_err(|_| "the server was not dialled".to_owned())?;
    Ok(accepted.map_err(|error| error.to_string())?.0)
}
