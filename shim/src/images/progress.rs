//! How far a pull is, for whoever waits for it: a line that is written anew on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Nothing is said before this long.
const QUIET: Duration = Duration::from_secs(2);
/// How often, where it cannot be written anew.
const RARELY: Duration = Duration::from_secs(10);
/// Characters of the bar.
const WIDTH: u64 = 24;

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Another process fetches the same.
    Waiting,
    /// Bytes of the image.
    Fetching { done: u64, total: u64 },
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

    /// Tells, if it is time to.
    pub(super) fn tell(&mut self, name: &str, progress: Progress) {
        if !self.is_due(Instant::now()) {
            return;
        }
        let text = line(name, progress);
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
    pub(super) fn end(&mut self) {
        if self.terminal && self.last.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(name: &str, progress: Progress) -> String {
    match progress {
        Progress::Waiting => format!("pulling {name}: waiting for another process that fetches the same"),
        Progress::Fetching { done, total } => {
            let filled = done.min(total) * WIDTH / total.max(1);
            let bar: String = (0..WIDTH).map(|at| if at < filled { '#' } else { '-' }).collect();
            let mb = |bytes: u64| bytes as f64 / 1e6;
            format!("pulling {name} [{bar}] {:.1} of {:.1} MB", mb(done), mb(total))
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
    fn the_bar_is_as_full_as_the_pull_is_far() {
        let text = line("x", Progress::Fetching { done: 1_500_000, total: 3_000_000 });
        assert_eq!(text, "pulling x [############------------] 1.5 of 3.0 MB");
        assert!(line("x", Progress::Fetching { done: 0, total: 0 }).contains("0.0 of 0.0 MB"));
    }
}
