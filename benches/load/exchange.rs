//! Requests and answers of one size, as fast as they return or at a fixed rate, where wanted beside bulk streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, unix::AsyncFd},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

use crate::{
    Figures, Time,
    application::LARGEST,
    bulk::{Direction, Streams},
    target::{Connection, Target},
    usage::Parties,
};

#[derive(clap::Args)]
pub(crate) struct Load {
    #[arg(long)]
    connections: usize,
    /// Bytes of a request and of its answer.
    #[arg(long)]
    size: usize,
    /// Requests in a second over all connections; without it each follows on the answer before.
    #[arg(long)]
    rate: Option<u32>,
    /// How many streams fill the proxy meanwhile, from the application.
    #[arg(long, default_value_t = 0)]
    beside: usize,
}

pub(crate) async fn run(target: &Arc<Target>, time: Time, parties: &Parties, load: &Load) -> Result<Figures> {
    ensure!((1..=LARGEST).contains(&load.size), "a request has 1 to {LARGEST} bytes");
    let counting = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let (mut due, mut clients) = (Vec::new(), JoinSet::new());
    for _ in 0..load.connections {
        let size = u32::try_from(load.size)?;
        let connection = target.greet(&[b"r".as_slice(), &size.to_be_bytes()].concat(), 0).await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        due.push(sender);
        let client = Client {
            connection,
            due: load.rate.map(|_| receiver),
            size: load.size,
            counting: counting.clone(),
            stop: stop.clone(),
        };
        clients.spawn(client.run());
    }
    let streams = Streams::open(target, load.beside, Direction::Down).await?;
    let pacer = load.rate.map(|rate| tokio::spawn(pace(due, rate)));
    sleep(time.warm()).await;
    let carried = streams.bytes()?;
    counting.store(true, Ordering::Relaxed);
    let window = parties.window()?;
    sleep(time.counted()).await;
    let mut figures = window.close()?;
    counting.store(false, Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    ensure!(load.beside == 0 || streams.bytes()? > carried, "the streams beside stood still");
    let mut latencies = Vec::new();
    // A little longer than the proxy may owe an answer, so that the pacer wakes each client once more.
    sleep(Duration::from_millis(50)).await;
    if let Some(pacer) = pacer {
        pacer.abort();
    }
    while let Some(client) = clients.join_next().await {
        latencies.append(&mut client.context("a client broke")??);
    }
    ensure!(!latencies.is_empty(), "not one answer in {:?}", time.counted());
    if let Some(rate) = load.rate {
        let expected = f64::from(rate) * figures.get("seconds").copied().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let answered = latencies.len() as f64;
        ensure!(answered > 0.9 * expected, "{answered} answers of {expected:.0} requests: the rate is not kept");
    }
    latencies.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    figures.insert("units", latencies.len() as f64);
    figures.insert("p50", quantile(&latencies, 50));
    figures.insert("p99", quantile(&latencies, 99));
    Ok(figures)
}

/// Seconds that so many of a hundred did not exceed; `sorted` is not empty.
fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(index).map_or(f64::NAN, Duration::as_secs_f64)
}

struct Client {
    connection: Box<dyn Connection>,
    /// The moments at which requests are due; without them each follows on the answer before.
    due: Option<mpsc::UnboundedReceiver<Instant>>,
    size: usize,
    counting: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Client {
    /// Asks until it is stopped; how long each counted answer took, from the moment its request was due.
    async fn run(mut self) -> Result<Vec<Duration>> {
        let (request, mut answer) = (vec![1; self.size], vec![0; self.size]);
        let mut latencies = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let due = match &mut self.due {
                None => Instant::now(),
                Some(due) => match due.recv().await {
                    Some(moment) => moment,
                    None => break,
                },
            };
            self.connection.write_all(&request).await?;
            self.connection.flush().await?;
            self.connection.read_exact(&mut answer).await?;
            if self.counting.load(Ordering::Relaxed) {
                latencies.push(due.elapsed());
            }
        }
        Ok(latencies)
    }
}

/// Hands out the moments, round robin. The runtime's own timers are too coarse, so the kernel's wakes this.
async fn pace(clients: Vec<mpsc::UnboundedSender<Instant>>, rate: u32) -> Result<()> {
    let step = Duration::from_secs(1) / rate.max(1);
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let every = Timespec { tv_sec: i64::try_from(step.as_secs())?, tv_nsec: step.subsec_nanos().into() };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: every, it_value: every })?;
    let begun = Instant::now();
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for things that may give their descriptor away; this does not"
    )]
    let timer = AsyncFd::new(timer)?;
    let mut count = 0_u32;
    let mut turn = clients.iter().cycle();
    loop {
        let mut ready = timer.readable().await?;
        let mut ticks = [0; 8];
        match rustix::io::read(timer.get_ref(), &mut ticks) {
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            outcome => outcome?,
        };
        for _ in 0..u64::from_ne_bytes(ticks) {
            count += 1;
            let Some(client) = turn.next() else { return Ok(()) };
            // A client that has failed says so itself.
            let _ = client.send(begun + step * count);
        }
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_seen() {
        let ms: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(quantile(&ms, 50), 0.1);
        assert_eq!(quantile(&ms, 99), 0.198);
        assert_eq!(quantile(&ms[..1], 99), 0.001);
    }
}
