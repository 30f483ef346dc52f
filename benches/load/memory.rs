//! Memory of the proxy with many connections that say nothing.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::sleep,
};

use crate::{
    Figures,
    application::LARGEST,
    target::{Connection, Target},
    usage::Parties,
};

/// How many connections are opened, or carry traffic, at once.
const AT_ONCE: usize = 32;

/// What the proxy gets to come to rest before its memory is read.
const REST: Duration = Duration::from_millis(1500);

#[derive(clap::Args)]
pub(crate) struct Load {
    #[arg(long)]
    connections: usize,
    /// Bytes that each connection carries both ways before memory is read again.
    #[arg(long)]
    traffic: usize,
    /// Seconds after all have been closed until memory is read for the last time.
    #[arg(long)]
    after: f64,
}

/// Bytes for each new connection and for each after traffic, and the share of the memory that is given back.
pub(crate) async fn run(target: &Arc<Target>, parties: &Parties, load: &Load) -> Result<Figures> {
    ensure!(load.connections > 0 && (1..=LARGEST).contains(&load.traffic), "no such load");
    let greeting = [b"r".as_slice(), &u32::try_from(load.traffic)?.to_be_bytes()].concat();
    let window = parties.window()?;
    sleep(REST).await;
    let base = parties.memory()?;
    let mut held = Vec::with_capacity(load.connections);
    // Each says something at its beginning, since a proxy may dial the application only then.
    each(0..load.connections, &mut held, |_| {
        let (target, greeting) = (target.clone(), greeting.clone());
        async move { target.greet(&greeting, 0).await }
    })
    .await?;
    sleep(REST).await;
    let new = parties.memory()?;
    let mut warm = Vec::with_capacity(held.len());
    let traffic = load.traffic;
    each(held, &mut warm, |mut connection: Box<dyn Connection>| async move {
        let mut bytes = vec![0; traffic];
        connection.write_all(&bytes).await?;
        connection.flush().await?;
        connection.read_exact(&mut bytes).await.context("a quiet connection was dead")?;
        Ok(connection)
    })
    .await?;
    sleep(REST).await;
    let after = parties.memory()?;
    drop(warm);
    sleep(Duration::from_secs_f64(load.after.clamp(0.0, 60.0))).await;
    let rest = parties.memory()?;
    let mut figures = window.close()?;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let count = load.connections as f64;
    let peak = new.max(after);
    figures.extend([
        ("units", count),
        ("base", base),
        ("idle", (new - base) / count),
        ("idle_after", (after - base) / count),
        ("given_back", (peak - rest) / (peak - base)),
    ]);
    Ok(figures)
}

/// Does `work` for each, a few at once, and keeps what comes of it.
async fn each<I, F>(items: I, into: &mut Vec<Box<dyn Connection>>, work: impl Fn(I::Item) -> F) -> Result<()>
where
    I: IntoIterator,
    F: Future<Output = Result<Box<dyn Connection>>> + Send + 'static,
{
    let mut items = items.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE
            && let Some(item) = items.next()
        {
            running.spawn(work(item));
        }
        let Some(done) = running.join_next().await else { return Ok(()) };
        into.push(done.context("a client broke")??);
    }
}
