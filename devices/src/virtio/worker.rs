//! A device's thread: waits for kicks and whatever else the device watches, and ends when it is told to or the driver errs.
//!
//! Knows no device. Every device uses it, so that starting, stopping, fairness and the answer to a malformed queue are written
//! once.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Interrupt, RingError, Role, Threads};

/// Why a device stops of itself. Logged once; the driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The driver broke a rule of the ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The driver broke a rule of the device.
    #[error("malformed request: {0}")]
    Request(String),
    /// The host failed the device in a way that no single request can answer for.
    #[error("the host failed: {0}")]
    Host(#[from] io::Error),
}

/// Whether a queue has more to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left, or nothing can be done before something else happens: wait for the next kick or event.
    Idle,
    /// There may be more: call again after a look at the other descriptors.
    More,
}

/// What a device does on its thread. Dropped, or handed back by [`Worker::stop`], when the thread ends.
pub trait Work: Send + 'static {
    /// Called on the thread before anything else. Descriptors beyond the kicks are watched with
    /// `ops.add(Events::with_data(&fd, token, set))`, tokens below [`TOKEN_LIMIT`]; they are level-triggered. A descriptor must be
    /// removed from `ops` before it is closed.
    ///
    /// # Errors
    /// When the device cannot start.
    fn start(&mut self, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(())
    }

    /// The driver kicked queue `index`, or said [`Progress::More`] last time. Also called once for each queue at the start.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn kicked(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<Progress, Fault>;

    /// A watched descriptor is ready. Nothing but kicks comes to a device that watches nothing else.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn ready(&mut self, _token: u32, _set: EventSet, _ops: &mut EventOps<'_>) -> Result<(), Fault> {
        Ok(())
    }

    /// Called on the thread after everything else, however it ends: nothing of this device's may touch guest memory or a queue
    /// afterwards. A device that does all its work within the calls above has nothing to add.
    fn finish(&mut self) {}
}

/// Tokens from here on are the worker's own.
pub const TOKEN_LIMIT: u32 = 0xffff_0000;
const TOKEN_STOP: u32 = u32::MAX;

/// Has kicks of queue `index`, whose descriptor `kick` the worker was given, come to [`Work::kicked`] or not: they do not while
/// somebody else has the queue. Those that nobody took meanwhile come afterwards.
///
/// # Errors
/// When the descriptor is not watched.
pub(super) fn heed(ops: &EventOps<'_>, (index, kick): (u16, RawFd), heed: bool) -> io::Result<()> {
    let set = if heed { EventSet::IN } else { EventSet::empty() };
    ops.modify(Events::with_data_raw(kick, TOKEN_LIMIT + u32::from(index), set)).map_err(other)
}

/// A running thread and the work it does. Dropping it stops the thread.
#[derive(Debug)]
pub struct Worker<W> {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    /// Where the thread leaves its work when it ends.
    left: Arc<Mutex<Option<W>>>,
}

impl<W: Work> Worker<W> {
    /// Starts thread `name` (at most 15 bytes) in `role` on `work`. `kicks` are the queues to serve, by index.
    ///
    /// # Errors
    /// When the thread or an event descriptor cannot be had.
    pub fn spawn(
        threads: &dyn Threads,
        name: &str,
        role: Role,
        kicks: Vec<(u16, EventFd)>,
        interrupt: Arc<dyn Interrupt>,
        work: W,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let left = Arc::new(Mutex::new(None));
        let turn = Turn { name: name.to_owned(), work, kicks, stop: stop.try_clone()?, interrupt, end: None };
        let slot = Arc::clone(&left);
        let mut manager = EventManager::new().map_err(other)?;
        let body = move || {
            let work = serve(&mut manager, turn);
            // Poisoning cannot happen: nobody panics with the lock held.
            *slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = work;
        };
        let thread = threads.spawn(name, role, Box::new(body))?;
        Ok(Worker { stop, thread: Some(thread), left })
    }

    /// Ends the thread and gives its work back. On return it runs no more. None only if it panicked.
    pub fn stop(mut self) -> Option<W> {
        self.end();
        self.left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

impl<W> Worker<W> {
    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Fails only when it has been written before, and is not read: then the thread is ending already.
            let _ = self.stop.write(1);
            let _ = thread.join();
        }
    }
}

impl<W> Drop for Worker<W> {
    fn drop(&mut self) {
        self.end();
    }
}

/// The thread's whole state.
struct Turn<W> {
    name: String,
    work: W,
    kicks: Vec<(u16, EventFd)>,
    stop: EventFd,
    interrupt: Arc<dyn Interrupt>,
    /// Set when the thread is to end: in order, or by a fault.
    end: Option<Result<(), Fault>>,
}

fn serve<W: Work>(manager: &mut EventManager<Turn<W>>, turn: Turn<W>) -> Option<W> {
    let id = manager.add_subscriber(turn);
    let outcome = loop {
        match manager.subscriber_mut(id).map(|turn| turn.end.take()) {
            Ok(Some(end)) => break end,
            Ok(None) => {}
            Err(error) => break Err(Fault::Host(other(error))),
        }
        if let Err(error) = manager.run() {
            break Err(Fault::Host(other(error)));
        }
    };
    let mut turn = manager.remove_subscriber(id).ok()?;
    turn.work.finish();
    if let Err(fault) = outcome {
        log::error!("{}: the device stops until it is reset: {fault}", turn.name);
        turn.interrupt.needs_reset();
    }
    Some(turn.work)
}

impl<W: Work> Turn<W> {
    fn begin(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        ops.add(Events::with_data(&self.stop, TOKEN_STOP, EventSet::IN)).map_err(other)?;
        for (index, kick) in &self.kicks {
            ops.add(Events::with_data(kick, TOKEN_LIMIT + u32::from(*index), EventSet::IN)).map_err(other)?;
        }
        self.work.start(ops)?;
        for (_, kick) in &self.kicks {
            // What was made available before this thread ran was perhaps kicked to nobody (after a restore, for one).
            kick.write(1)?;
        }
        Ok(())
    }

    fn dispatch(&mut self, events: &Events, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let token = events.data();
        if token < TOKEN_LIMIT {
            return self.work.ready(token, events.event_set(), ops);
        }
        let index = (token - TOKEN_LIMIT) as u16;
        let Some((_, kick)) = self.kicks.iter().find(|(queue, _)| *queue == index) else {
            return Ok(());
        };
        // Before serving, so that a kick that comes meanwhile is not lost. It never blocks; empty is as good.
        let _ = kick.read();
        if self.work.kicked(index, ops)? == Progress::More {
            kick.write(1)?;
        }
        Ok(())
    }
}

impl<W: Work> MutEventSubscriber for Turn<W> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(fault) = self.begin(ops) {
            self.end = Some(Err(fault));
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.end.is_some() {
            return;
        }
        if events.data() == TOKEN_STOP {
            self.end = Some(Ok(()));
        } else if let Err(fault) = self.dispatch(&events, ops) {
            self.end = Some(Err(fault));
        }
    }
}

fn other(error: event_manager::Error) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests;
