//! How fast a device may work: token buckets for bytes and for operations.
//!
//! Pure: time is whatever the caller says it is, so that tests need not wait. [`super::Throttle`] puts a limiter on a device's
//! thread. A bucket holds what may be used at once, its burst, and fills steadily; whoever finds too little in it is told how
//! long to wait. Over any stretch of time no more than `burst + per_second × time` gets through, and all of that can.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const NANOS: u128 = 1_000_000_000;

/// How much of something may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// How much a second, in the long run.
    pub per_second: NonZeroU64,
    /// How much at once after a time of quiet, before it is slowed down to that.
    pub burst: NonZeroU64,
}

/// Of what may be used in a second, so much may be used at once.
const BURST_SHARE: u64 = 10;
/// But no fewer bytes than this, which is a large piece of TCP or a large request of a disk.
const LEAST_BURST: NonZeroU64 = NonZeroU64::new(64 << 10).expect("more than none");

impl Allowance {
    /// So many bytes a second, with a burst that fits.
    pub fn of_bytes(per_second: NonZeroU64) -> Allowance {
        Allowance::with_burst_of(LEAST_BURST, per_second)
    }

    /// So many requests or packets a second, with a burst that fits.
    pub fn of_operations(per_second: NonZeroU64) -> Allowance {
        Allowance::with_burst_of(NonZeroU64::MIN, per_second)
    }

    fn with_burst_of(least: NonZeroU64, per_second: NonZeroU64) -> Allowance {
        let share = NonZeroU64::new(per_second.get() / BURST_SHARE);
        Allowance { per_second, burst: share.map_or(least, |share| share.max(least)) }
    }
}

/// The limits of one device, or of one direction of it. What is not limited costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes.
    pub bytes: Option<Allowance>,
    /// Operations: requests of a disk, packets of a network.
    pub operations: Option<Allowance>,
}

impl RateLimit {
    /// Whether it limits anything.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }
}

/// A device's buckets. Starts with both full.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimiter {
    /// Full buckets at `now`.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let bucket = |allowance: Allowance| Bucket::full(allowance, now);
        RateLimiter { bytes: limit.bytes.map(bucket), operations: limit.operations.map(bucket) }
    }

    /// Takes one operation of `bytes` bytes out of the buckets.
    ///
    /// One that is larger than a whole bucket is let through when the bucket is full; those after it pay for it.
    ///
    /// # Errors
    /// When there is too little in one of them, how long to wait until there is enough, if nothing else is taken. Nothing is
    /// taken then. Never zero.
    pub fn admit(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut wait = None;
        for (bucket, cost) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait(cost));
            }
        }
        if let Some(wait) = wait {
            return Err(wait);
        }
        for (bucket, cost) in [(&mut self.bytes, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(cost);
            }
        }
        Ok(())
    }

    /// Takes `bytes` more for an operation that was let through when its size was not known yet. Those after it pay for it.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }
}

/// One bucket. Counts in billionths, which is what comes in a nanosecond at one a second: nothing is lost to rounding.
#[derive(Clone, Debug)]
struct Bucket {
    allowance: Allowance,
    /// Below zero after something larger than the bucket.
    level: i128,
    filled: Instant,
}

impl Bucket {
    fn full(allowance: Allowance, now: Instant) -> Self {
        Bucket { allowance, level: billionths(allowance.burst.get()), filled: now }
    }

    /// Lets in what has come since the last call. A clock that goes backwards brings nothing.
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        // A second number of 64 bits times one of 96 would not fit; long before that, the bucket is full.
        let gained = elapsed.saturating_mul(u128::from(self.allowance.per_second.get()));
        let gained = i128::try_from(gained).unwrap_or(i128::MAX);
        self.level = self.level.saturating_add(gained).min(billionths(self.allowance.burst.get()));
        self.filled = self.filled.max(now);
    }

    /// How long until `cost` can be taken; none: it can be now.
    fn wait(&self, cost: u64) -> Option<Duration> {
        let needed = billionths(cost.min(self.allowance.burst.get()));
        let missing = u128::try_from(needed - self.level).ok().filter(|&missing| missing > 0)?;
        let nanos = missing.div_ceil(u128::from(self.allowance.per_second.get()));
        Some(Duration::new(
            (nanos / NANOS).try_into().unwrap_or(u64::MAX),
            // Less than a billion.
            (nanos % NANOS) as u32,
        ))
    }

    fn take(&mut self, cost: u64) {
        self.level = self.level.saturating_sub(billionths(cost));
    }
}

/// At most 2^94.
fn billionths(count: u64) -> i128 {
    i128::from(count) * NANOS as i128
}

#[cfg(test)]
mod tests;
