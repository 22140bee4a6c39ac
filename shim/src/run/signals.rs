//! The signals that this process passes on, and when they stop being requests.
//!
//! Knows nothing of containers.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What is passed on to the container, besides the change of the window's size, which becomes a call of its own.
const PASSED_ON: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGTERM];

/// This many SIGINT or SIGTERM, each within [`STREAK`] of the one before, end the sandbox by force.
const INSISTENCE: u32 = 3;
const STREAK: Duration = Duration::from_secs(3);

/// The signals that this process catches from now on.
pub struct Signals {
    streams: Vec<(i32, Signal)>,
}

impl Signals {
    /// Starts catching them.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn catch() -> io::Result<Signals> {
        let catch = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        let streams = PASSED_ON.into_iter().chain([libc::SIGWINCH]).map(catch).collect::<io::Result<_>>()?;
        Ok(Signals { streams })
    }

    /// The next one, unless `deadline` passes first.
    pub async fn next_before(&mut self, deadline: Option<Instant>) -> Option<i32> {
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), self.next()).await.ok(),
            None => Some(self.next().await),
        }
    }

    /// The next one.
    pub async fn next(&mut self) -> i32 {
        poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether a signal ends a sandbox whose command does not run yet: there is nobody to pass it on to.
pub fn ends_a_start(signal: i32) -> bool {
    matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM)
}

/// Counts how often somebody insists.
#[derive(Debug, Default)]
pub struct Insistence {
    last: Option<Instant>,
    count: u32,
}

impl Insistence {
    /// Takes a signal that came at `now`; whether it is to be obeyed by force.
    pub fn insists(&mut self, signal: i32, now: Instant) -> bool {
        if !matches!(signal, libc::SIGINT | libc::SIGTERM) {
            return false;
        }
        let streak = self.last.is_some_and(|last| now.saturating_duration_since(last) <= STREAK);
        self.count = if streak { self.count + 1 } else { 1 };
        self.last = Some(now);
        self.count >= INSISTENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_row_insist() {
        let mut insistence = Insistence::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!insistence.insists(libc::SIGINT, at(0)));
        assert!(!insistence.insists(libc::SIGTERM, at(100)));
        assert!(!insistence.insists(libc::SIGUSR1, at(150)));
        assert!(insistence.insists(libc::SIGINT, at(200)));
    }

    #[test]
    fn three_in_a_lifetime_do_not() {
        let mut insistence = Insistence::default();
        let start = Instant::now();
        for minute in 0..10 {
            assert!(!insistence.insists(libc::SIGINT, start + Duration::from_secs(60 * minute)));
        }
    }

    #[test]
    fn what_is_caught_arrives_with_its_number() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let got = runtime.block_on(async {
            let mut signals = Signals::catch().unwrap();
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).unwrap();
            signals.next().await
        });
        assert_eq!(got, libc::SIGUSR2);
    }
}
