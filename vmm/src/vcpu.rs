//! A vCPU on its thread: runs the guest and carries its accesses to the bus, until told to stop.

#![allow(unsafe_code, reason = "signalling a thread and the vCPU's exit flag")]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tatami_arch::Space;
use tatami_devices::virtio::{Role, Threads};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::kvm::{Exit, Kicker, Vcpu};
use crate::stop::{StopReason, StopSignal};

/// How often a guest needed this process, which is what its speed hangs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts {
    /// Accesses to device memory.
    pub memory: u64,
    /// Accesses to ports, and on the guest's calls.
    pub ports: u64,
    /// Signals.
    pub interrupted: u64,
}

impl std::ops::AddAssign for ExitCounts {
    fn add_assign(&mut self, other: ExitCounts) {
        self.memory += other.memory;
        self.ports += other.ports;
        self.interrupted += other.interrupted;
    }
}

/// A vCPU that runs.
pub(crate) struct RunningVcpu {
    kicker: Kicker,
    stop: Arc<AtomicBool>,
    // Taken when the vCPU is stopped.
    thread: Option<JoinHandle<()>>,
    /// Where the thread leaves the vCPU when it ends, so that it exists for as long as `kicker` is used.
    left: Arc<Mutex<Option<(Vcpu, ExitCounts)>>>,
}

impl RunningVcpu {
    /// Lets `vcpu`, which is number `id`, run on a thread of its own; `ended` is told when the machine cannot go on.
    ///
    /// # Errors
    /// When no thread is to be had.
    pub(crate) fn start(
        mut vcpu: Vcpu,
        id: u8,
        bus: Arc<Bus>,
        ended: StopSignal,
        threads: &dyn Threads,
    ) -> io::Result<RunningVcpu> {
        let kicker = vcpu.kicker();
        let stop = Arc::new(AtomicBool::new(false));
        let left = Arc::new(Mutex::new(None));
        let (told, place) = (Arc::clone(&stop), Arc::clone(&left));
        let body = move || {
            let counts = run(&mut vcpu, &bus, &told, &ended);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some((vcpu, counts));
        };
        let thread = threads.spawn(&format!("vcpu{id}"), Role::Vcpu, Box::new(body))?;
        Ok(RunningVcpu { kicker, stop, thread: Some(thread), left })
    }

    /// Stops the vCPU wherever it is, and gives it back with what it needed meanwhile.
    pub(crate) fn stop(mut self) -> Option<(Vcpu, ExitCounts)> {
        self.end()
    }

    fn end(&mut self) -> Option<(Vcpu, ExitCounts)> {
        let thread = self.thread.take()?;
        self.stop.store(true, Ordering::SeqCst);
        // SAFETY: the vCPU is owned by the thread until it is joined below, and by its result afterwards.
        unsafe { self.kicker.set(true) };
        // SAFETY: the thread has not been joined, so its handle is valid; the signal has a handler.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
        thread.join().ok()?;
        let ended = self.left.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // SAFETY: as above; `ended` holds the vCPU.
        unsafe { self.kicker.set(false) };
        Some(ended)
    }
}

impl Drop for RunningVcpu {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(vcpu: &mut Vcpu, bus: &Bus, stop: &AtomicBool, ended: &StopSignal) -> ExitCounts {
    let mut counts = ExitCounts::default();
    // The flag is looked at only when something interrupted: what sets it interrupts as well. What this vCPU wrote may have been
    // the reset command, after which it has nothing more to do.
    loop {
        match vcpu.run() {
            Exit::Read(space, address, data) => {
                counts.add(space);
                bus.read(space, address, data);
            }
            Exit::Write(space, address, data) => {
                counts.add(space);
                bus.write(space, address, data);
                if ended.is_given() {
                    return counts;
                }
            }
            Exit::Interrupted => {
                counts.interrupted += 1;
                if stop.load(Ordering::SeqCst) {
                    return counts;
                }
            }
            Exit::Reset => {
                ended.give(StopReason::GuestReset);
                return counts;
            }
            Exit::Failed(reason) => {
                ended.give(StopReason::Error(format!("{reason}{}", vcpu.whereabouts())));
                return counts;
            }
        }
    }
}

impl ExitCounts {
    fn add(&mut self, space: Space) {
        match space {
            Space::Memory => self.memory += 1,
            Space::Ports | Space::Configuration | Space::Terminal => self.ports += 1,
        }
    }
}

/// Makes vCPUs interruptible: a signal interrupts a running guest only if it has a handler; that handler has nothing to do.
///
/// # Errors
/// When the kernel takes no handler.
pub(crate) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    Ok(register_signal_handler(SIGRTMIN(), nothing)?)
}
