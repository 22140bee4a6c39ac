//! Reaps every child that PID 1 has or inherits, and hands each exit to whoever watches for it.
//!
//! A child may end before its pid is known here (a container's process is the grandchild of a creator that tells it), so while
//! a creator is under way, exits that nobody watches yet are kept. Outside that time an unknown child is an orphan, whose exit is
//! nobody's business: keeping it would only lie about a later process with the same number.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::{clock, syscalls};

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0 to 255, or 128 + n for a process that signal n ended.
    pub(crate) status: u32,
    /// Nanoseconds since 1970.
    pub(crate) at_ns: i64,
}

impl Exit {
    /// An end at this moment.
    pub(crate) fn now(status: u32) -> Self {
        Self { status, at_ns: clock::now_ns() }
    }
}

/// The one place that waits for children. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    watched: HashMap<i32, oneshot::Sender<Exit>>,
    unclaimed: HashMap<i32, Exit>,
    launches: usize,
}

/// While it lives, exits of unknown children are kept for [`Reaper::watch`].
pub(crate) struct Launching {
    reaper: Reaper,
}

impl Reaper {
    /// Announces that a child may appear whose pid is told later.
    pub(crate) fn launching(&self) -> Launching {
        self.lock().launches += 1;
        Launching { reaper: self.clone() }
    }

    /// The exit of `pid`, which may have happened already if a [`Launching`] has been held since before it started.
    pub(crate) fn watch(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        match state.unclaimed.remove(&pid) {
            Some(exit) => drop(sender.send(exit)),
            None => drop(state.watched.insert(pid, sender)),
        }
        receiver
    }

    /// Sends signal `number` to `pid`, if that is still the process being watched and not a later one of that number.
    ///
    /// # Errors
    /// `ESRCH` when it has ended, `EINVAL` for a number that is no signal.
    pub(crate) fn signal(&self, pid: i32, number: i32) -> io::Result<()> {
        // Only this thread reaps, so a pid in the map cannot be reused during the call.
        match self.lock().watched.contains_key(&pid) {
            true => syscalls::send(pid, number),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Subscribes to SIGCHLD; must precede the first child.
    ///
    /// # Errors
    /// When the signal cannot be watched.
    pub(crate) fn subscribe() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Reaps for ever.
    pub(crate) async fn run(self, mut children: Signal) {
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return;
            }
        }
    }

    fn reap(&self) {
        // An error is ECHILD: no children at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.record(pid.as_raw_nonzero().get(), Exit::now(exit_status(status)));
        }
    }

    fn record(&self, pid: i32, exit: Exit) {
        let mut state = self.lock();
        match state.watched.remove(&pid) {
            // Nobody listening any more is fine: the process was deleted.
            Some(watcher) => drop(watcher.send(exit)),
            None if state.launches > 0 => drop(state.unclaimed.insert(pid, exit)),
            None => log::debug!("reaped orphan {pid}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.launches -= 1;
        if state.launches == 0 {
            state.unclaimed.clear();
        }
    }
}

fn exit_status(status: WaitStatus) -> u32 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.unwrap_or(255) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> Exit {
        Exit { status, at_ns: 1 }
    }

    #[test]
    fn an_exit_before_the_question_is_kept_while_launching() {
        let reaper = Reaper::default();
        let launching = reaper.launching();
        reaper.record(7, exit(3));
        drop(launching.reaper.launching());
        assert_eq!(reaper.watch(7).try_recv().unwrap(), exit(3));
    }

    #[test]
    fn an_orphans_exit_is_not_mistaken_for_a_later_process() {
        let reaper = Reaper::default();
        reaper.record(7, exit(3));
        let launching = reaper.launching();
        reaper.record(8, exit(4));
        drop(launching);
        assert!(reaper.watch(7).try_recv().is_err());
        assert!(reaper.watch(8).try_recv().is_err());
    }

    #[test]
    fn an_exit_after_the_question_is_delivered_and_ends_signalling() {
        let reaper = Reaper::default();
        let mut watch = reaper.watch(7);
        assert!(watch.try_recv().is_err());
        reaper.record(7, exit(137));
        assert_eq!(watch.try_recv().unwrap(), exit(137));
        assert_eq!(reaper.signal(7, 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
