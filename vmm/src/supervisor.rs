//! Carries out the server's orders until the guest stops or the server goes away.
//!
//! The one place that stops and starts vCPUs while the guest lives. What an order changes is the device's whose handle is here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use tatami_devices::virtio::{BalloonSize, MemSize};

use crate::boot::{self, BootError, BuiltVm, RunningVm};
use crate::config::VmConfig;
use crate::control::{Channel, ControlError, Notice, Order, Received, What, bounded, parse};
use crate::disks::DiskSlots;
use crate::nics::NicSlots;
use crate::snapshot::Snapshot;
use crate::stop::StopReason;

/// Why the machine ends although neither guest nor server wanted it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupervisorError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("the VMM's event loop failed: {0}")]
    Loop(#[from] event_manager::Error),
}

/// What the server may change while the machine lives.
pub(crate) struct Adjustable {
    pub(crate) disks: DiskSlots,
    pub(crate) nics: NicSlots,
    pub(crate) balloon: BalloonSize,
    /// Memory that can be added, where there is any.
    pub(crate) spare: Option<MemSize>,
    memory_mib: u32,
    spare_mib: u32,
}

impl Adjustable {
    /// As it is when a machine of this configuration starts.
    ///
    /// # Errors
    /// When no event descriptors are to be had.
    pub(crate) fn new(config: &VmConfig) -> io::Result<Adjustable> {
        Ok(Adjustable {
            disks: DiskSlots::new(config.disk_slots),
            nics: NicSlots::new(&config.nics)?,
            balloon: BalloonSize::default(),
            spare: boot::spare_memory(config),
            memory_mib: config.memory_mib,
            spare_mib: config.spare_memory_mib,
        })
    }

    /// Carries out an order that vCPUs need not stand still for.
    ///
    /// # Errors
    /// What the server is told.
    pub(crate) fn carry_out(&self, what: What, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        match what {
            What::AttachDisk(slot, parts) => told(self.disks.attach(slot, parts, descriptors)),
            What::GrowDisk(slot, length) => told(self.disks.grow(slot, length)),
            What::DetachDisk(slot) => told(self.disks.detach(slot)),
            What::PlugNic(slot) => told(self.nics.plug(slot, descriptors)),
            What::PullNic(slot) => told(self.nics.pull(slot)),
            What::ResizeMemory(mib) => self.resize_memory(mib),
            What::Balloon(mib) => self.inflate(mib),
            What::Save | What::Pause | What::Resume | What::Describe => {
                Err("that is an order for the whole machine".to_owned())
            }
        }
    }

    /// Lets the guest have so much memory in all.
    fn resize_memory(&self, mib: u32) -> Result<(), String> {
        let (least, most) = (self.memory_mib, self.memory_mib.saturating_add(self.spare_mib));
        if !(least..=most).contains(&mib) {
            return Err(format!("this guest can have between {least} and {most} MiB of memory, not {mib}"));
        }
        match &self.spare {
            Some(spare) => told(spare.request(u64::from(mib - least) << 20)),
            None => Ok(()),
        }
    }

    /// Has the guest do without so much of it.
    fn inflate(&self, mib: u32) -> Result<(), String> {
        if mib >= self.memory_mib {
            return Err(format!("a guest of {} MiB cannot do without {mib} MiB", self.memory_mib));
        }
        self.balloon.set(u64::from(mib) << 20);
        Ok(())
    }
}

/// The machine, in one of its states.
enum Machine {
    Running(RunningVm),
    Paused(BuiltVm),
    /// It has ended, or an error has taken it.
    Gone,
}

/// Watches over `vm` to its end; says what that was.
///
/// # Errors
/// When the machine cannot go on for a reason that is not the guest's.
pub(crate) fn supervise(
    vm: RunningVm,
    adjustable: Adjustable,
    channel: &Arc<Channel>,
) -> Result<StopReason, SupervisorError> {
    let mut manager = EventManager::new()?;
    let machine = Machine::Running(vm);
    let id = manager.add_subscriber(Supervisor { machine, adjustable, channel: Arc::clone(channel), end: None });
    loop {
        if let Some(end) = manager.subscriber_mut(id)?.end.take() {
            return end;
        }
        manager.run()?;
    }
}

struct Supervisor {
    machine: Machine,
    adjustable: Adjustable,
    channel: Arc<Channel>,
    end: Option<Result<StopReason, SupervisorError>>,
}

const TOKEN_STOPPED: u32 = 0;
const TOKEN_CONTROL: u32 = 1;

impl Supervisor {
    /// Carries out what the server has ordered.
    fn obey(&mut self) -> Result<(), SupervisorError> {
        match self.channel.receive(false)? {
            Some(Received::Json(body, descriptors)) => {
                let Order { number, what } = parse(&body)?;
                let result = match what {
                    What::Save => self.save(descriptors)?,
                    What::Pause => self.pause()?,
                    What::Resume => self.resume()?,
                    What::Describe => {
                        let described = self.describe()?.map(bounded);
                        return Ok(self.channel.send(&Notice::Answer(number, described), &[], true)?);
                    }
                    what => self.adjustable.carry_out(what, descriptors),
                };
                let result = result.map(|()| String::new()).map_err(bounded);
                Ok(self.channel.send(&Notice::Answer(number, result), &[], true)?)
            }
            None => Ok(()),
            Some(Received::Closed) => std::process::exit(1),
            Some(Received::Console(_) | Received::Forbidden(_)) => {
                Err(ControlError::Malformed("the server sends what only a VMM may".to_owned()).into())
            }
        }
    }

    fn pause(&mut self) -> Result<Result<(), String>, SupervisorError> {
        self.machine = match std::mem::replace(&mut self.machine, Machine::Gone) {
            Machine::Running(vm) => Machine::Paused(vm.pause()?),
            other => other,
        };
        Ok(self.alive())
    }

    fn resume(&mut self) -> Result<Result<(), String>, SupervisorError> {
        self.machine = match std::mem::replace(&mut self.machine, Machine::Gone) {
            Machine::Paused(vm) => Machine::Running(vm.start()?),
            other => other,
        };
        Ok(self.alive())
    }

    /// Says where everything stands.
    fn describe(&mut self) -> Result<Result<String, String>, SupervisorError> {
        let (machine, text) = match std::mem::replace(&mut self.machine, Machine::Gone) {
            Machine::Running(vm) => {
                let (vm, text) = vm.describe()?;
                (Machine::Running(vm), text)
            }
            Machine::Paused(vm) => {
                let text = vm.describe();
                (Machine::Paused(vm), text)
            }
            Machine::Gone => (Machine::Gone, String::new()),
        };
        self.machine = machine;
        Ok(self.alive().map(|()| text))
    }

    fn alive(&self) -> Result<(), String> {
        if matches!(self.machine, Machine::Gone) { Err("the machine has stopped".to_owned()) } else { Ok(()) }
    }

    /// Writes the machine to the files sent, and lets it go on, if it did before, whether or not that could be done.
    fn save(&mut self, files: Vec<OwnedFd>) -> Result<Result<(), String>, SupervisorError> {
        let Ok([memory, state]) = <[OwnedFd; 2]>::try_from(files) else {
            return Ok(Err("two files are needed to save a machine".to_owned()));
        };
        let ran = matches!(self.machine, Machine::Running(_));
        if let gone @ Err(_) = self.pause()? {
            return Ok(gone);
        }
        let saved = match &self.machine {
            Machine::Paused(vm) => vm.save(&Snapshot { memory: memory.into(), state: state.into() }),
            Machine::Running(_) | Machine::Gone => return Ok(self.alive()),
        };
        if ran {
            // It was there just now.
            let _ = self.resume()?;
        }
        Ok(told(saved))
    }
}

/// A failure as the server is told of it.
fn told<E: std::error::Error>(result: Result<(), E>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let control = self.channel.as_fd().as_raw_fd();
        let added = match &self.machine {
            Machine::Running(vm) => ops
                .add(Events::with_data(vm.stopped(), TOKEN_STOPPED, EventSet::IN))
                .and_then(|()| ops.add(Events::with_data_raw(control, TOKEN_CONTROL, EventSet::IN))),
            Machine::Paused(_) | Machine::Gone => Ok(()),
        };
        self.end = added.err().map(|error| Err(error.into()));
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            TOKEN_STOPPED => {
                let (reason, counts) = match std::mem::replace(&mut self.machine, Machine::Gone) {
                    Machine::Running(vm) => (vm.stop_reason(), vm.stop()),
                    // It came to its end just as it was paused.
                    Machine::Paused(vm) => (vm.stop_reason(), vm.counts()),
                    Machine::Gone => return,
                };
                log::info!(
                    "the guest left its vCPUs {} times for device memory and {} times for ports",
                    counts.memory,
                    counts.ports
                );
                let (received, sent) = self.adjustable.nics.lost();
                if received + sent > 0 {
                    log::info!("{received} frames did not reach the guest, {sent} of the guest's reached nobody");
                }
                self.end = Some(Ok(reason.unwrap_or(StopReason::GuestReset)));
            }
            _ => {
                if let Err(error) = self.obey() {
                    self.end = Some(Err(error));
                }
            }
        }
    }
}
