//! A [`RateLimiter`] on a device's thread: by the system's clock, with a timer to wait on.
//!
//! ```text
//! start():   ops.add(Events::with_data(throttle.timer(), TOKEN, EventSet::IN))
//! kicked():  take a chain; throttle.admit(bytes)? or ring.put_back(chain) and leave the queue, kicks still off
//! ready():   throttle.ready(); serve the queues again
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::rate_limit::{RateLimit, RateLimiter};

/// The longest time that the timer is set to, so that a limiter that asks for centuries does not overflow it.
const LONGEST: Duration = Duration::from_secs(3600);

/// A limiter, perhaps shared with other threads, and this one's timer.
#[derive(Debug)]
pub struct Throttle {
    limiter: Arc<Mutex<RateLimiter>>,
    timer: TimerFd,
}

impl Throttle {
    /// A throttle for `limit`; none, and no descriptor, when it limits nothing.
    ///
    /// # Errors
    /// When no timer is to be had.
    pub fn new(limit: RateLimit) -> io::Result<Option<Self>> {
        if limit.is_unlimited() {
            return Ok(None);
        }
        let limiter = Arc::new(Mutex::new(RateLimiter::new(limit, Instant::now())));
        Throttle::sharing(&limiter).map(Some)
    }

    /// A throttle by a limiter that others go by as well: together they get what it allows.
    ///
    /// # Errors
    /// When no timer is to be had.
    pub fn sharing(limiter: &Arc<Mutex<RateLimiter>>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Throttle { limiter: Arc::clone(limiter), timer })
    }

    /// Readable when it is worth asking again: to be watched.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Whether one operation of `bytes` bytes may go now. If not, the timer is set to when it may.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn admit(&mut self, bytes: u64) -> io::Result<bool> {
        let admitted = self.limiter().admit(bytes, Instant::now());
        match admitted {
            Ok(()) => Ok(true),
            Err(wait) => {
                self.timer.reset(wait.min(LONGEST), None).map_err(io::Error::from)?;
                Ok(false)
            }
        }
    }

    /// Has an operation that was let through cost `bytes` bytes more.
    pub fn charge(&self, bytes: u64) {
        self.limiter().charge(bytes);
    }

    fn limiter(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note that the timer has been seen, and sets it no more until something is refused again: serve what may have been.
    /// Never blocks, also when the timer has been set anew since it was seen.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn ready(&mut self) -> io::Result<()> {
        self.timer.clear().map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rate_limit::Allowance;
    use super::*;

    #[test]
    fn no_limit_needs_no_timer() {
        assert!(Throttle::new(RateLimit::default()).unwrap().is_none());
    }

    #[test]
    fn after_the_timer_it_may_go_on() {
        let allowance = Allowance { per_second: 100.try_into().unwrap(), burst: 1.try_into().unwrap() };
        let limit = RateLimit { operations: Some(allowance), bytes: None };
        let mut throttle = Throttle::new(limit).unwrap().unwrap();
        assert!(throttle.admit(0).unwrap());
        let began = Instant::now();
        assert!(!throttle.admit(0).unwrap());
        throttle.timer.wait().unwrap();
        throttle.ready().unwrap();
        assert!(throttle.admit(0).unwrap());
        assert!(began.elapsed() >= Duration::from_millis(5));
    }
}
