//! How many lines may be logged: what a guest can cause, it can cause without end.
//!
//! Knows neither lines nor clocks: a burst is free, then there is one each so often.

use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 32;
/// How long it takes until one more may.
const INTERVAL: Duration = Duration::from_secs(10);

/// What is left.
#[derive(Debug)]
pub(crate) struct Ration {
    left: u32,
    /// The time up to which intervals have been counted.
    counted: Instant,
    withheld: u64,
}

impl Ration {
    /// A whole burst.
    pub(crate) fn new(now: Instant) -> Ration {
        Ration { left: BURST, counted: now, withheld: 0 }
    }

    /// Takes leave for one line at `now`: how many were withheld since the last one, or none if this one is, too.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        while self.left < BURST && now.saturating_duration_since(self.counted) >= INTERVAL {
            self.left += 1;
            self.counted += INTERVAL;
        }
        if self.left == BURST {
            self.counted = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.withheld))
            }
            None => {
                self.withheld += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_a_flood_is_not() {
        let start = Instant::now();
        let mut ration = Ration::new(start);
        let granted = |ration: &mut Ration, at: Duration, lines: u32| {
            (0..lines).filter(|_| ration.take(start + at).is_some()).count()
        };
        assert_eq!(granted(&mut ration, Duration::ZERO, 10_000), BURST as usize);
        assert_eq!(granted(&mut ration, INTERVAL - Duration::from_millis(1), 10_000), 0);
        assert_eq!(ration.take(start + INTERVAL), Some(10_000 - u64::from(BURST) + 10_000));
        assert_eq!(ration.take(start + INTERVAL), None);
        assert_eq!(granted(&mut ration, 5 * INTERVAL, 10), 4, "one for each interval since the last");
        assert_eq!(
            granted(&mut ration, 10_000 * INTERVAL, 10_000),
            BURST as usize,
            "a long silence is one burst's worth"
        );
    }
}
