//! How far a pull or a load is, for whoever waits for it: a line that is written anew on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing is said before this long.
const QUIET: Duration = Duration::from_secs(2);
/// How often, where it cannot be written anew.
const RARELY: Duration = Duration::from_secs(10);
/// How often, where it can.
const OFTEN: Duration = Duration::from_millis(250);
/// Characters of the bar.
const WIDTH: u64 = 24;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Another process is at the same.
    Waiting,
    /// Bytes of which nobody knows how many there will be.
    Counting { done: u64 },
    /// Bytes of the image.
    Moving { done: u64, total: u64 },
}

/// Shows it on standard error.
pub(super) struct Show {
    started: Instant,
    last: Option<Instant>,
    terminal: bool,
    /// Also where nobody looks on.
    always: bool,
}

impl Show {
    /// On a terminal, or `always`.
    pub(super) fn new(always: bool) -> Show {
        Show { started: Instant::now(), last: None, terminal: std::io::stderr().is_terminal(), always }
    }

    /// One that says nothing.
    pub(super) fn quiet() -> Show {
        Show { started: Instant::now(), last: None, terminal: false, always: false }
    }

    /// Does `work`; tells meanwhile of `what` how far it is.
    pub(super) fn during<T>(
        &mut self,
        what: &str,
        progress: impl Fn() -> Progress + Send,
        work: impl FnOnce() -> T,
    ) -> T {
        let (working, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while ended.recv_timeout(OFTEN) == Err(RecvTimeoutError::Timeout) {
                    self.tell(what, progress());
                }
                self.end();
            });
            let result = work();
            drop(working);
            result
        })
    }

    /// Tells, if it is time to.
    fn tell(&mut self, what: &str, progress: Progress) {
        if !self.is_due(Instant::now()) {
            return;
        }
        let text = line(what, progress);
        // Fails only when nobody reads it.
        let _ = match self.terminal {
            true => write!(std::io::stderr(), "\r\x1b[K{text}"),
            false => writeln!(std::io::stderr(), "{text}"),
        };
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let interval = if self.terminal { Duration::ZERO } else { RARELY };
        let due = now >= self.last.map_or(self.started + QUIET, |last| last + interval);
        if due {
            self.last = Some(now);
        }
        due && (self.terminal || self.always)
    }

    /// Clears the line, if there is one.
    fn end(&mut self) {
        if self.terminal && self.last.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, progress: Progress) -> String {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    match progress {
        Progress::Waiting => format!("{what}: waiting for another process that is at the same"),
        Progress::Counting { done } => format!("{what}: {:.1} MB", mb(done)),
        Progress::Moving { done, total } => {
            let filled = done.min(total) * WIDTH / total.max(1);
            let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '-' }).collect();
            format!("{what} [{bar}] {:.1} of {:.1} MB", mb(done), mb(total))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_of_what_is_quick() {
        let mut show = Show { started: Instant::now(), last: None, terminal: false, always: true };
        let at = |seconds| show.started + Duration::from_secs(seconds);
        let times = [1, 2, 3, 11, 12, 13].map(at);
        assert_eq!(times.map(|time| show.is_due(time)), [false, true, false, false, true, false]);
    }

    #[test]
    fn the_bar_is_as_full_as_the_work_is_far() {
        let text = line("pulling x", Progress::Moving { done: 1_500_000, total: 3_000_000 });
        assert_eq!(text, "pulling x [############------------] 1.5 of 3.0 MB");
        assert!(line("x", Progress::Moving { done: 0, total: 0 }).contains("0.0 of 0.0 MB"));
        assert_eq!(line("loading x", Progress::Counting { done: 2_500_000 }), "loading x: 2.5 MB");
    }

    #[test]
    fn work_is_done_while_it_is_told_of() {
        assert_eq!(Show::quiet().during("x", || Progress::Waiting, || 7), 7);
    }
}
