//! New connections as fast as so many clients in a row can make them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    Figures, Time,
    target::{Connection, Target},
    usage::Parties,
};

pub(crate) async fn run(target: &Arc<Target>, time: Time, parties: &Parties, connections: usize) -> Result<Figures> {
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let (target, done, stop) = (target.clone(), done.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut connection = target.greet(b"e", 1).await?;
                close(&mut *connection).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    sleep(time.warm()).await;
    let before = done.load(Ordering::Relaxed);
    let window = parties.window()?;
    sleep(time.counted()).await;
    let mut figures = window.close()?;
    let count = done.load(Ordering::Relaxed) - before;
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.context("a client broke")??;
    }
    ensure!(count > 0, "not one handshake in {:?}", time.counted());
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    figures.insert("units", count as f64);
    Ok(figures)
}

/// Says that it is over and waits a little for the proxy's end, so that the work of closing is counted as well.
async fn close(connection: &mut dyn Connection) {
    let ended = async {
        connection.shutdown().await?;
        let mut rest = [0; 64];
        while connection.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // A proxy that resets the connection instead has closed it too.
    let _ = timeout(Duration::from_millis(500), ended).await;
}
