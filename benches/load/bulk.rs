//! Long streams in one direction, each on a thread of its own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::sleep;

use crate::{
    Figures, Time,
    target::{Blocking, Target},
    usage::Parties,
};

/// What one read or write moves at most.
const CHUNK: usize = 256 * 1024;

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Direction {
    /// From the application.
    Down,
    /// To the application.
    Up,
}

/// Streams that run until the process ends.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    bytes: Arc<AtomicU64>,
    broken: Arc<Mutex<Option<String>>>,
}

impl Streams {
    pub(crate) async fn open(target: &Target, connections: usize, direction: Direction) -> Result<Self> {
        let streams = Self::default();
        for _ in 0..connections {
            let mode: &[u8] = if matches!(direction, Direction::Up) { b"k" } else { b"s" };
            let connection = target.blocking(mode).await?;
            let streams = streams.clone();
            thread::Builder::new().spawn(move || streams.carry(connection, direction))?;
        }
        Ok(streams)
    }

    /// Bytes that have been sent or received on this side so far.
    pub(crate) fn bytes(&self) -> Result<u64> {
        match self.broken.lock().ok().and_then(|mut broken| broken.take()) {
            Some(why) => bail!("a stream broke: {why}"),
            None => Ok(self.bytes.load(Ordering::Relaxed)),
        }
    }

    /// Bytes that have arrived so far: what goes up is counted by the application, since what has only been sent may
    /// still be waiting in front of the proxy.
    fn arrived(&self, application: Option<SocketAddr>) -> Result<u64> {
        let ours = self.bytes()?;
        let Some(application) = application else { return Ok(ours) };
        let mut stream = TcpStream::connect(application).context("cannot ask the application")?;
        stream.write_all(b"q")?;
        let mut count = [0; 8];
        stream.read_exact(&mut count).context("the application does not say what it got")?;
        Ok(u64::from_be_bytes(count))
    }

    fn carry(&self, mut connection: Box<dyn Blocking>, direction: Direction) {
        let mut buffer = vec![0x5a; CHUNK];
        let why = loop {
            let moved = match direction {
                Direction::Down => connection.read(&mut buffer),
                Direction::Up => connection.write(&buffer),
            };
            match moved {
                Ok(0) => break "it ended".to_owned(),
                Ok(count) => self.bytes.fetch_add(count as u64, Ordering::Relaxed),
                Err(error) => break error.to_string(),
            };
        };
        if let Ok(mut broken) = self.broken.lock() {
            broken.get_or_insert(why);
        }
    }
}

pub(crate) async fn run(
    target: &Target,
    time: Time,
    parties: &Parties,
    connections: usize,
    direction: Direction,
) -> Result<Figures> {
    let counter = parties.application_at.filter(|_| matches!(direction, Direction::Up));
    let streams = Streams::open(target, connections, direction).await?;
    sleep(time.warm()).await;
    let before = streams.arrived(counter)?;
    let window = parties.window()?;
    sleep(time.counted()).await;
    let bytes = streams.arrived(counter)?.checked_sub(before).context("bytes went back")?;
    let mut figures = window.close()?;
    ensure!(bytes > 0, "not one byte in {:?}", time.counted());
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    figures.insert("units", bytes as f64 / 1e9);
    Ok(figures)
}
