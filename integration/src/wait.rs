//! Waiting for what another process does.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often another process is asked again.
const STEP: Duration = Duration::from_millis(20);

/// Long enough for anything that should happen at once, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Long enough for what an agent or another proxy does at its own pace: checks, replication, elections.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Asks until there is an answer; an error that names `what` and the last word when `deadline` has passed.
pub(crate) async fn until<T, F>(what: &str, deadline: Duration, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let begun = Instant::now();
    loop {
        let word = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(word) => word,
        };
        if begun.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}; last: {word:#}");
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Bounds a step by a deadline.
pub(crate) async fn within<T>(what: &str, deadline: Duration, step: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(deadline, step).await {
        Ok(done) => Ok(done),
        Err(_) => bail!("{what}: not within {deadline:?}"),
    }
}

/// Lets time pass, where time itself is what a case is about: an age, a pace, an outage.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}
