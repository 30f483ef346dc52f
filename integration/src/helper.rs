//! Clients in another process: the test binary starts itself again with a variable set.

use std::{io::Read as _, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::{
    peer::{Client, Identity, Tls},
    process::Process,
};

const VARIABLE: &str = "LICTOR_INTEGRATION_HELPER";

/// Plays the helper where this process was started as one; says whether it was.
#[must_use]
pub fn run_if_asked() -> bool {
    let Some(task) = std::env::var_os(VARIABLE) else { return false };
    let task = task.to_string_lossy().into_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(play(&task)));
    if let Err(error) = done {
        println!("failed: {error:#}");
    }
    true
}

/// Opens mesh connections and leaves them alone until it is killed.
async fn play(task: &str) -> Result<()> {
    let mut words = task.split_whitespace();
    let address: SocketAddr = words.next().context("no address")?.parse()?;
    let count: usize = words.next().context("no count")?.parse()?;
    let chain = std::fs::read_to_string(words.next().context("no chain")?)?;
    let key = std::fs::read_to_string(words.next().context("no key")?)?;
    let client = Client::new(Identity::from_pem(&chain, &key)?).tls(Tls::V13);
    let mut open = Vec::with_capacity(count);
    let mut word = String::new();
    while open.len() < count {
        // A round trip each, so that a connection counts only when it has been authorized.
        match once(&client, address).await {
            Ok(stream) => open.push(stream),
            Err(error) => {
                word = format!(" ({error:#})");
                break;
            }
        }
    }
    println!("open: {}{word}", open.len());
    // Until whoever started us closes our standard input, or kills us.
    tokio::task::spawn_blocking(|| {
        let mut byte = [0];
        let _ = std::io::stdin().read(&mut byte);
        loop {
            std::thread::park_timeout(Duration::from_secs(3600));
        }
    })
    .await?;
    drop(open);
    Ok(())
}

async fn once(client: &Client, address: SocketAddr) -> Result<crate::peer::MeshClient> {
    let mut stream = client.connect(address).await?;
    crate::app::echoes(&mut stream, b"x").await?;
    Ok(stream)
}

/// Starts a helper that opens `count` idle connections; how many it got, and the process that holds them.
pub(crate) async fn idle_clients(
    folder: &std::path::Path,
    address: SocketAddr,
    count: usize,
    identity: &Identity,
    deadline: Duration,
) -> Result<(usize, Process)> {
    let (chain, key) = (folder.join("helper-chain.pem"), folder.join("helper-key.pem"));
    std::fs::write(&chain, &identity.chain_pem)?;
    std::fs::write(&key, &identity.key_pem)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env(VARIABLE, format!("{address} {count} {} {}", chain.display(), key.display()));
    let process = Process::start("idle clients", &mut command)?;
    let line = process.output().line(0, "open connections", deadline, |line| line.contains(':')).await?;
    let rest = line.strip_prefix("open: ").with_context(|| format!("the helper says: {line}"))?;
    let open = rest.split_whitespace().next().unwrap_or_default().parse()?;
    Ok((open, process))
}
