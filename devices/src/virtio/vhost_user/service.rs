//! The device's thread: gives the queues to the back end, passes its calls on as interrupts, and takes the queues back.
//!
//! Kicks do not come by here. When the back end fails, the queues are orphans, which this thread serves from then on.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemory as _};
use vmm_sys_util::eventfd::EventFd;

use super::super::worker::Work;
use super::super::{ActiveQueue, Fault, GuestMemory, Interrupt, Progress};
use super::backend::{Backend, BackendError, PROTOCOL_FEATURES};
use super::ledger::Ledger;
use super::orphans::{Failing, Orphan};

/// Tokens: the socket; a queue's call descriptor, by index; an orphan's kick descriptor, by index.
const TOKEN_SOCKET: u32 = 0;
const TOKEN_CALLS: u32 = 0x1_0000;
const TOKEN_KICKS: u32 = 0x2_0000;

/// A queue, and what the back end signals when it has used buffers of it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) active: ActiveQueue,
    pub(super) call: EventFd,
    pub(super) ledger: Ledger,
}

/// Who has the queues.
enum Queues {
    /// The back end, by index.
    Lent(Vec<Option<Line>>),
    /// This thread, the back end having failed.
    Orphaned(Vec<Option<Orphan>>),
}

/// What the thread does.
pub(super) struct Service {
    backend: Backend,
    around: Surroundings,
    queues: Queues,
}

/// Where the queues are at work.
pub(super) struct Surroundings {
    /// What was agreed on with the driver.
    pub(super) features: u64,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// How requests fail when the back end is gone.
    pub(super) failing: Failing,
}

impl Service {
    /// Lends `lines` to `backend`.
    pub(super) fn new(backend: Backend, lines: Vec<Option<Line>>, around: Surroundings) -> Self {
        Service { backend, around, queues: Queues::Lent(lines) }
    }

    /// The queues as they stand, once the thread has ended.
    pub(super) fn into_queues(self) -> Vec<Option<ActiveQueue>> {
        match self.queues {
            Queues::Lent(lines) => lines.into_iter().map(|line| line.map(|line| line.active)).collect(),
            Queues::Orphaned(orphans) => orphans.into_iter().map(|orphan| orphan.map(Orphan::into_active)).collect(),
        }
    }

    /// Has the back end begin.
    fn lend(&self, lines: &[Option<Line>]) -> Result<(), BackendError> {
        let regions: Vec<_> = self
            .around
            .memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<_, _>>()
            .map_err(|_| BackendError::PrivateMemory)?;
        let features = self.around.features | self.backend.features() & PROTOCOL_FEATURES;
        self.backend.talk(|frontend| {
            frontend.set_features(features)?;
            frontend.set_mem_table(&regions)?;
            let lent = || lines.iter().enumerate().filter_map(|(index, line)| Some((index, line.as_ref()?)));
            for (index, line) in lent() {
                self.set_up(frontend, index, line)?;
            }
            if features & PROTOCOL_FEATURES != 0 {
                lent().try_for_each(|(index, _)| frontend.set_vring_enable(index, true))?;
            }
            Ok(())
        })?;
        for line in lines.iter().flatten() {
            // What was made available before the back end listened was perhaps kicked to nobody.
            line.active.kick.write(1)?;
        }
        Ok(())
    }

    fn set_up(&self, frontend: &mut Frontend, index: usize, line: &Line) -> vhost::Result<()> {
        let queue = &line.active.queue;
        // The back end knows memory by its addresses in this process.
        let here = |address| {
            let pointer = self.around.memory.get_host_address(GuestAddress(address));
            pointer.map(|pointer| pointer as u64).map_err(|_| vhost::Error::InvalidGuestMemory)
        };
        frontend.set_vring_num(index, queue.size())?;
        frontend.set_vring_base(index, queue.next_avail())?;
        frontend.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                desc_table_addr: here(queue.desc_table())?,
                used_ring_addr: here(queue.used_ring())?,
                avail_ring_addr: here(queue.avail_ring())?,
                ..VringConfigData::default()
            },
        )?;
        frontend.set_vring_call(index, &line.call)?;
        // Some begin when they have it.
        frontend.set_vring_kick(index, &line.active.kick)
    }

    /// Has the back end stop, and takes up where it says that it did.
    fn take_back(&mut self) -> Result<(), BackendError> {
        let Queues::Lent(lines) = &mut self.queues else { return Ok(()) };
        let lent = lines.iter_mut().enumerate().filter_map(|(index, line)| Some((index, line.as_mut()?)));
        let lent: Vec<_> = lent.collect();
        let bases: Vec<u32> = self.backend.talk(|frontend| {
            // All of them stop before one is judged.
            lent.iter().map(|(index, _)| frontend.get_vring_base(*index)).collect()
        })?;
        for ((queue, line), base) in lent.into_iter().zip(bases) {
            let ring = &mut line.active.queue;
            let used =
                ring.used_idx(&self.around.memory, Ordering::Acquire).map_err(|_| BackendError::PrivateMemory)?.0;
            match u16::try_from(base) {
                Ok(next) if next.wrapping_sub(used) <= ring.size() => {
                    ring.set_next_avail(next);
                    ring.set_next_used(used);
                }
                _ => return Err(BackendError::Position { queue, base }),
            }
        }
        Ok(())
    }

    /// Takes the queues from a back end that will not come back.
    fn give_up(&mut self, why: &BackendError, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.backend.give_up(why);
        let none = Queues::Orphaned(Vec::new());
        let Queues::Lent(lines) = std::mem::replace(&mut self.queues, none) else { return Ok(()) };
        let socket = self.backend.as_raw_fd();
        // Not there if the back end failed before it was watched.
        let _ = ops.remove(Events::empty_raw(socket));
        let mut orphans = Vec::new();
        for (index, line) in (0..).zip(lines) {
            let Some(Line { active, call, ledger }) = line else {
                orphans.push(None);
                continue;
            };
            let _ = ops.remove(Events::empty(&call));
            let orphan = Orphan::adopt(index, active, ledger, &self.around)?;
            let token = TOKEN_KICKS + u32::from(index);
            ops.add(Events::with_data(orphan.ring().kick(), token, EventSet::IN)).map_err(other)?;
            orphans.push(Some(orphan));
        }
        self.queues = Queues::Orphaned(orphans);
        Ok(())
    }

    /// Passes a call on.
    fn called(&mut self, index: usize) {
        if let Queues::Lent(lines) = &mut self.queues
            && let Some(Some(Line { active, call, ledger })) = lines.get_mut(index)
        {
            // Empty is as good.
            let _ = call.read();
            // Before the driver takes any back, and has room for more.
            ledger.follow(&active.queue, &self.around.memory);
            self.around.interrupt.queue(index as u16);
        }
    }
}

impl Work for Service {
    fn start(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let Queues::Lent(lines) = &self.queues else { return Ok(()) };
        if let Err(error) = self.lend(lines) {
            return self.give_up(&error, ops);
        }
        for (index, line) in (0..).zip(lines) {
            if let Some(line) = line {
                ops.add(Events::with_data(&line.call, TOKEN_CALLS + index, EventSet::IN)).map_err(other)?;
            }
        }
        let closed = EventSet::IN | EventSet::READ_HANG_UP;
        ops.add(Events::with_data_raw(self.backend.as_raw_fd(), TOKEN_SOCKET, closed)).map_err(other)
    }

    fn kicked(&mut self, _index: u16, _ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        Ok(Progress::Idle)
    }

    fn ready(&mut self, token: u32, set: EventSet, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        match (token, &mut self.queues) {
            (TOKEN_SOCKET, _) => {
                let gone = set.intersects(EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR);
                self.give_up(if gone { &BackendError::Gone } else { &BackendError::Unasked }, ops)
            }
            (TOKEN_KICKS.., Queues::Orphaned(orphans)) => match orphans.get_mut((token - TOKEN_KICKS) as usize) {
                Some(Some(orphan)) => orphan.serve(),
                _ => Ok(()),
            },
            _ => {
                self.called(token.wrapping_sub(TOKEN_CALLS) as usize);
                Ok(())
            }
        }
    }

    fn finish(&mut self) {
        if let Err(error) = self.take_back() {
            // Whoever has the queues next finds out again, and takes them over.
            self.backend.give_up(&error);
        }
    }
}

fn other(error: event_manager::Error) -> Fault {
    Fault::Host(std::io::Error::other(error))
}
