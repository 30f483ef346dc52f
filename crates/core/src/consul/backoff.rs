//! Pauses after errors, and the limit on how fast a loop may turn.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

/// The first pause after an error.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause after an error.
pub(super) const LONGEST: Duration = Duration::from_secs(5);

/// Each pause is this many times the one before, so that an agent that only says 500 hears from each watch about 15
/// times a minute.
const FACTOR: u32 = 5;

/// The pause after the `failures`th error in a row (from 1): 100 ms, 500 ms, 2.5 s, then 5 s, a tenth more or less, so that
/// the sidecars of a host do not ask in step.
pub(super) fn pause(failures: u32) -> Duration {
    let steady = FACTOR.checked_pow(failures.saturating_sub(1)).map_or(LONGEST, |times| FIRST.saturating_mul(times));
    steady.min(LONGEST).mul_f64(rand::rng().random_range(0.9..1.1))
}

/// A token bucket: a loop that is woken over and over asks at most every [`Pace::REFILL`], and then gets the newest
/// state. A quiet loop never notices it.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: u32,
    refilled: Instant,
}

impl Pace {
    /// How many calls may follow one another at once.
    pub(super) const BURST: u32 = 8;
    /// How long one more call takes to earn.
    pub(super) const REFILL: Duration = Duration::from_secs(2);

    pub(super) fn new() -> Self {
        Self { tokens: Self::BURST, refilled: Instant::now() }
    }

    /// Takes leave for one call; waits for it where the bucket is empty.
    pub(super) async fn step(&mut self) {
        self.refill();
        if self.tokens == 0 {
            tokio::time::sleep_until(self.refilled + Self::REFILL).await;
            self.refill();
        }
        self.tokens = self.tokens.saturating_sub(1);
    }

    fn refill(&mut self) {
        let earned = self.refilled.elapsed().as_millis() / Self::REFILL.as_millis();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned >= Self::BURST - self.tokens {
            self.tokens = Self::BURST;
            self.refilled = Instant::now();
        } else {
            self.tokens += earned;
            self.refilled += Self::REFILL * earned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_a_tenth_of_a_second_to_five_and_stay_there() {
        for (failures, ms) in [(1, 100), (2, 500), (3, 2500), (4, 5000), (30, 5000), (u32::MAX, 5000)] {
            let pause = pause(failures).as_millis();
            assert!(pause >= ms * 9 / 10 && pause <= ms * 11 / 10, "{failures}: {pause}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_under_churn_is_slowed_down_and_a_quiet_one_is_not() {
        let mut pace = Pace::new();
        let started = Instant::now();
        for _ in 0..Pace::BURST {
            pace.step().await;
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
        for _ in 0..10 {
            pace.step().await;
        }
        let churned = started.elapsed();
        assert!(churned >= Pace::REFILL * 10 && churned < Pace::REFILL * 11, "{churned:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        let quiet = Instant::now();
        pace.step().await;
        assert_eq!(quiet.elapsed(), Duration::ZERO);
    }
}
