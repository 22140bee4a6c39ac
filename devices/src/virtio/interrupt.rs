//! An interrupt line shared by a whole device: status bits that say why, and an event descriptor that says now.
//!
//! Does not know where the line leads: the VMM ties the descriptor to an interrupt controller (irqfd).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Interrupt;
use super::mmio::RegisterPage;
use super::spec::{INTERRUPT_CONFIG, INTERRUPT_USED};

/// Whom to tell that a configuration space has changed; nobody while no driver is there.
#[derive(Default)]
pub(super) struct ConfigListener(Mutex<Option<Arc<dyn Interrupt>>>);

impl ConfigListener {
    /// From now on, a driver is there to be told; or none any more.
    pub(super) fn set(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }

    /// Tells it of a change.
    pub(super) fn tell(&self) {
        if let Some(interrupt) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            interrupt.config();
        }
    }
}

/// The line, the interrupt status register behind it (virtio 1.2, 4.2.2), and what else a device can tell its driver.
#[derive(Debug)]
pub struct LineInterrupt {
    status: StatusRegister,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    line: EventFd,
}

/// Where the interrupt status register is.
#[derive(Debug)]
enum StatusRegister {
    /// Asked for.
    Here(AtomicU32),
    /// Read by the guest itself.
    Shown(Arc<RegisterPage>),
}

impl StatusRegister {
    fn bits(&self) -> &AtomicU32 {
        match self {
            StatusRegister::Here(bits) => bits,
            StatusRegister::Shown(page) => page.interrupt_status(),
        }
    }
}

impl LineInterrupt {
    /// A quiet line.
    ///
    /// # Errors
    /// When no event descriptor is to be had.
    pub fn new() -> io::Result<Self> {
        LineInterrupt::with_status(StatusRegister::Here(AtomicU32::new(0)))
    }

    /// One whose status the guest reads in `page`.
    pub(super) fn shown(page: Arc<RegisterPage>) -> io::Result<Self> {
        LineInterrupt::with_status(StatusRegister::Shown(page))
    }

    fn with_status(status: StatusRegister) -> io::Result<Self> {
        Ok(LineInterrupt {
            status,
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            line: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The descriptor that is written once for each interrupt.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// The interrupt status bits that the driver has not acknowledged.
    pub fn pending(&self) -> u32 {
        self.status.bits().load(Ordering::Acquire)
    }

    /// The driver has seen `bits`. Of used buffers, not every acknowledgement is heard where it reads the status by itself: there it is
    /// told of them until a reset.
    pub fn acknowledge(&self, bits: u32) {
        let heard = match &self.status {
            StatusRegister::Here(_) => bits,
            StatusRegister::Shown(_) => bits & !INTERRUPT_USED,
        };
        self.status.bits().fetch_and(!heard, Ordering::AcqRel);
    }

    /// The driver sees what is pending, and that acknowledges it (4.1.4.5).
    pub(super) fn take_pending(&self) -> u32 {
        self.status.bits().swap(0, Ordering::AcqRel)
    }

    /// Whether the device asked to be reset.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// A number that differs whenever the configuration space may differ (virtio 1.2, 2.5.1).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The driver has reset the device: nothing is pending any more.
    pub fn clear(&self) {
        self.status.bits().store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        // A line that was raised but not delivered must not reach the next driver.
        let _ = self.line.read();
    }

    /// Sets pending bits and the reset request as saved, and raises the line if the driver still owes an acknowledgement.
    pub fn restore(&self, pending: u32, needs_reset: bool) {
        self.needs_reset.store(needs_reset, Ordering::Release);
        if pending != 0 {
            self.raise(pending);
        }
    }

    /// Notes that the configuration space may differ from now on.
    pub(super) fn note_change(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that the device asks for a reset.
    pub(super) fn note_reset_needed(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        if let StatusRegister::Shown(page) = &self.status {
            page.ask_for_reset();
        }
    }

    /// Sets pending bits and leaves the line alone.
    pub(super) fn set_pending(&self, bits: u32) {
        self.status.bits().fetch_or(bits, Ordering::AcqRel);
    }

    /// Raises the line as it is.
    pub(super) fn signal(&self) {
        // Fails only when the counter is at its end: then the line is raised already.
        let _ = self.line.write(1);
    }

    fn raise(&self, bits: u32) {
        self.set_pending(bits);
        self.signal();
    }
}

impl Interrupt for LineInterrupt {
    fn queue(&self, _index: u16) {
        self.raise(INTERRUPT_USED);
    }

    fn queue_event(&self, _index: u16) -> Option<&EventFd> {
        let StatusRegister::Shown(_) = self.status else { return None };
        // From now on for as long as there is this driver, as its acknowledgements are not heard.
        self.set_pending(INTERRUPT_USED);
        Some(&self.line)
    }

    fn config(&self) {
        self.note_change();
        self.raise(INTERRUPT_CONFIG);
    }

    fn needs_reset(&self) {
        self.note_reset_needed();
        self.raise(INTERRUPT_CONFIG);
    }
}
