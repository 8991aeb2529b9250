//! A wait is a poll with a deadline, whose error says what was last seen.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::{Instant, sleep, timeout};

/// Short enough that a test does not dawdle, long enough to leave the machine to the others.
const INTERVAL: Duration = Duration::from_millis(25);

/// Polls until the closure answers `Ok`; its last `Err` becomes the cause when the deadline passes.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn f(agent: &e2e::agent::Agent) -> anyhow::Result<()> {
/// e2e::wait::eventually("two messages", Duration::from_secs(10), async || {
///     let seen = agent.messages().len();
///     anyhow::ensure!(seen >= 2, "{seen} messages");
///     Ok(())
/// })
/// .await
/// # }
/// ```
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut poll: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut last = anyhow!("the first look did not come back");
    loop {
        // A look that hangs must not outlive the deadline, and gets at least one interval.
        let left = end.saturating_duration_since(Instant::now()).max(INTERVAL);
        match timeout(left, poll()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => last = last.context("a look did not come back in time; seen before it"),
        }
        if Instant::now() >= end {
            return Err(last).with_context(|| format!("waited {deadline:?} for {what}; last seen"));
        }
        sleep(INTERVAL).await;
    }
}

/// Polls for the whole duration and fails as soon as the closure does: for what must not happen.
pub async fn throughout(
    what: &str,
    duration: Duration,
    mut poll: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < duration {
        poll().await.with_context(|| {
            format!("{what} was to hold for {duration:?}, it held for {:?}", start.elapsed())
        })?;
        sleep(INTERVAL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_tells_what_was_awaited_and_what_was_seen() {
        let mut looks = 0;
        let error = eventually("seven", Duration::from_millis(60), async || {
            looks += 1;
            Err::<(), _>(anyhow!("look {looks}"))
        })
        .await
        .expect_err("it never comes");
        let text = format!("{error:#}");
        assert!(text.contains("for seven") && text.contains("look "), "{text}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline() {
        let error = eventually("an answer", Duration::from_millis(30), async || {
            std::future::pending::<Result<()>>().await
        })
        .await
        .expect_err("it hangs");
        assert!(format!("{error:#}").contains("did not come back"));
    }

    #[tokio::test]
    async fn throughout_fails_at_the_first_failure() {
        let mut looks = 0;
        let error = throughout("quiet", Duration::from_secs(3600), async || {
            looks += 1;
            anyhow::ensure!(looks < 3, "a noise");
            Ok(())
        })
        .await
        .expect_err("a noise comes");
        assert!(format!("{error:#}").contains("a noise"));
    }
}
