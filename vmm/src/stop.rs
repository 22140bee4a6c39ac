//! Why a machine stopped, told once: by whichever thread notices first.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How a guest's life ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The guest reset the machine: it was told to shut down, or it panicked (its last words are on the console).
    GuestReset,
    /// The host does not give the machine the memory that it is to have, in the words of the text; another time, it may.
    NoMemory(String),
    /// The machine cannot go on; the text says why.
    Error(String),
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StopReason::GuestReset => f.write_str("the guest reset the machine"),
            StopReason::NoMemory(reason) | StopReason::Error(reason) => f.write_str(reason),
        }
    }
}

/// Where threads leave the reason; clones share it.
#[derive(Clone)]
pub(crate) struct StopSignal {
    reason: Arc<Mutex<Option<StopReason>>>,
    given: Arc<AtomicBool>,
    event: Arc<EventFd>,
}

impl StopSignal {
    /// A signal that nobody has given yet.
    ///
    /// # Errors
    /// When no event descriptor is to be had.
    pub(crate) fn new() -> io::Result<StopSignal> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(StopSignal { reason: Arc::default(), given: Arc::default(), event: Arc::new(event) })
    }

    /// Says that the machine has stopped; the first reason counts.
    pub(crate) fn give(&self, reason: StopReason) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.given.store(true, Ordering::Release);
        // Fails only when it is set already.
        let _ = self.event.write(1);
    }

    /// Whether there is a reason; for where it is asked often.
    pub(crate) fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// The reason, once there is one.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable once the machine has stopped.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

impl vm_superio::Trigger for StopSignal {
    type E = std::convert::Infallible;

    /// The keyboard controller's reset pin.
    fn trigger(&self) -> Result<(), Self::E> {
        self.give(StopReason::GuestReset);
        Ok(())
    }
}
