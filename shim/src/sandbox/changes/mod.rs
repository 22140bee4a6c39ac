//! Changes that somebody on the host makes to the files of containers' volumes, for those in the guest who watch them.
//!
//! virtio-fs shows a change, but tells nobody of it. A thread that exists once a container has volumes watches them
//! ([`watcher`]), and a task passes on what it finds, a batch at a time: while the guest has not taken one, the next waits in
//! the kernel's queue, which is bounded. Whatever fails here is said once, and costs a container nothing else.

mod record;
mod tree;
mod watcher;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::EventfdFlags;
use tatami_protocol::agent::Change;
use tokio::sync::mpsc::Receiver;
use ttrpc::Code;

use super::Error;
use super::agent::AgentError;
use super::guest::Guest;
use watcher::{Order, Watcher};

/// Bytes of the thread's stack, which holds nothing large.
const STACK: usize = 128 << 10;

/// The watch over all volumes of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Changes {
    thread: Mutex<Option<Thread>>,
}

/// Dropping it ends the thread.
#[derive(Debug)]
struct Thread {
    orders: Option<Sender<Order>>,
    wake: Arc<OwnedFd>,
}

impl Changes {
    /// Watches `volumes`, below `shared`, of a container of `guest` whose place is `place`. Call it inside a runtime; it does not wait.
    pub(super) fn watch(&self, shared: &Path, container: &str, place: &str, volumes: Vec<String>, guest: &Guest) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            match Thread::start(shared, guest) {
                Ok(started) => *thread = Some(started),
                Err(error) => return log::warn!("changes on the host are not told to the guest: {error}"),
            }
        }
        if let Some(thread) = &*thread {
            thread.give(Order::Watch { container: container.to_owned(), place: place.to_owned(), volumes });
        }
    }

    /// Forgets the container at `place`.
    pub(super) fn forget(&self, place: &str) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.give(Order::Forget(place.to_owned()));
        }
    }

    /// Watches nothing any more.
    pub(super) fn stop(&self) {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Thread {
    fn start(shared: &Path, guest: &Guest) -> std::io::Result<Thread> {
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let (orders, given) = std::sync::mpsc::channel();
        // One batch on its way, and one that waits.
        let (sender, changes) = tokio::sync::mpsc::channel(1);
        let (shared, vmm, woken) = (shared.to_owned(), guest.vm().pid(), wake.clone());
        std::thread::Builder::new().name("host-changes".to_owned()).stack_size(STACK).spawn(move || {
            match Watcher::new(&shared, vmm) {
                Ok(watcher) => watcher.run(&given, &woken, &sender),
                Err(error) => log::warn!(
                    "changes on the host are not told to watchers in the guest: {error} (fanotify; each sandbox with volumes \
                     takes one of fs.fanotify.max_user_groups)"
                ),
            }
        })?;
        tokio::spawn(pass_on(changes, guest.clone()));
        Ok(Thread { orders: Some(orders), wake })
    }

    /// A thread that has ended does not mind.
    fn give(&self, order: Order) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
        self.ring();
    }

    fn ring(&self) {
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.orders = None;
        self.ring();
    }
}

/// Tells the guest, until there is nothing more to tell, or nobody.
async fn pass_on(mut changes: Receiver<Vec<Change>>, guest: Guest) {
    while let Some(batch) = changes.recv().await {
        match guest.call(guest.agent().tell_changes(batch)).await {
            Ok(()) => {}
            Err(Error::Agent(AgentError::Refused { code: Code::UNIMPLEMENTED, message, .. })) => {
                return log::warn!("{message}");
            }
            Err(error) if error.is_of_dead_guest() => return,
            Err(error) => log::debug!("changes on the host were not told: {error}"),
        }
    }
}
