//! The thread of one pair of queues: a receive queue, a transmit queue, with the first pair the control queue, and a wire.
//!
//! Decides what to wait for: a wire is watched for frames while there are buffers for them, and for room while something waits
//! to be sent. While the host's kernel has the two queues (`handover.rs`), it leaves them alone.

use std::os::fd::RawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

use super::control::{Command, Control};
use super::offload;
use super::receive::{Next, Receiver};
use super::slot::{Port, Shared};
use super::transmit::{Sent, Transmitter};
use super::wire::Wire;
use crate::virtio::worker::Work;
use crate::virtio::{Fault, Interrupt, Progress};

const TOKEN_WAKE: u32 = 0;
const TOKEN_WIRE: u32 = 1;
const TOKEN_RECEIVE: u32 = 2;
const TOKEN_TRANSMIT: u32 = 3;
pub(super) const TOKEN_CALL_RECEIVE: u32 = 4;
pub(super) const TOKEN_CALL_TRANSMIT: u32 = 5;
pub(super) const TOKEN_FAULT: u32 = 6;
pub(super) const TOKEN_LOOK: u32 = 7;

/// What one thread has.
pub(super) struct Pair {
    pub(super) index: u16,
    pub(super) slot: Arc<Shared>,
    pub(super) features: u64,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) control: Option<Control>,
    pub(super) wake: EventFd,
    pub(super) wire: Option<Wire>,
    /// What the wire is watched for; none: it is not registered.
    pub(super) watched: Option<EventSet>,
    /// What it should be watched for.
    pub(super) wanted: EventSet,
    /// Whether the tap gives this queue frames.
    pub(super) attended: bool,
    /// The wire is to be let go of.
    pub(super) gone: bool,
    /// The host's kernel has the receive and the transmit queue.
    pub(super) handed: bool,
    /// Their numbers, and the descriptors by which the thread hears of kicks.
    pub(super) kicks: [(u16, RawFd); 2],
    /// For interrupts that the kernel asks for.
    pub(super) interrupt: Arc<dyn Interrupt>,
}

impl Work for Pair {
    fn start(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        ops.add(Events::with_data(&self.wake, TOKEN_WAKE, EventSet::IN)).map_err(std::io::Error::other)?;
        let throttles = [(TOKEN_RECEIVE, &self.receiver.throttle), (TOKEN_TRANSMIT, &self.transmitter.throttle)];
        for (token, throttle) in throttles {
            if let Some(throttle) = throttle {
                let events = Events::with_data(throttle.timer(), token, EventSet::IN);
                ops.add(events).map_err(std::io::Error::other)?;
            }
        }
        self.look(ops)
    }

    fn kicked(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        let progress = if index == self.receiver.index() {
            self.receive()?;
            Progress::Idle
        } else if index == self.transmitter.index() {
            self.transmit()?
        } else {
            self.obey()?
        };
        self.watch(ops)?;
        Ok(progress)
    }

    fn ready(&mut self, token: u32, set: EventSet, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        if token == TOKEN_WAKE {
            // It never blocks; empty is as good.
            let _ = self.wake.read();
            return self.look(ops);
        }
        if let TOKEN_RECEIVE | TOKEN_TRANSMIT = token {
            return self.allowed(token, ops);
        }
        if let TOKEN_CALL_RECEIVE..=TOKEN_LOOK = token {
            self.heard(token)?;
            return self.watch(ops);
        }
        if self.handed {
            self.glance(set)?;
            return self.watch(ops);
        }
        if !self.attended {
            // A tap's queue that gets no frames says that it is in error.
            return self.watch(ops);
        }
        if set.contains(EventSet::OUT) {
            self.wanted.remove(EventSet::OUT);
            let flushed = self.wire.as_mut().map_or(Ok(()), Wire::flush);
            match flushed {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.wanted.insert(EventSet::OUT),
                Err(_) => self.lose(),
                // The rest of a ringful is a matter for its kick.
                Ok(()) => {
                    if self.transmit()? == Progress::More {
                        self.transmitter.kick()?;
                    }
                }
            }
        }
        if set.contains(EventSet::IN) {
            self.receive()?;
        } else if set.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            // These come unasked, again and again, until the wire is let go of.
            self.lose();
        }
        self.watch(ops)
    }

    fn finish(&mut self) {
        if let Err(fault) = self.take_back_rings() {
            log::error!("virtio-net: {fault}");
            // Closed, it lets go of everything.
            self.wire = None;
            self.slot.lose();
        }
    }
}

impl Pair {
    /// Takes from the slot what is new there.
    fn look(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        match self.slot.take(self.index) {
            Port::Unchanged => {}
            Port::Pulled => self.unplug(ops)?,
            Port::Plugged(wire) => {
                self.unplug(ops)?;
                if let (true, Some(tap)) = (self.slot.shape.pairs > 1, wire.tap()) {
                    // It does unless another driver did not use this pair; then it refuses.
                    let _ = tap.attend(true);
                }
                self.wire = Some(wire);
                self.attended = true;
                if self.index == 0 {
                    self.tell_offloads(self.slot.offloads());
                }
            }
        }
        self.attend(ops)?;
        self.hand_over(ops)?;
        self.receive()?;
        if self.transmit()? == Progress::More {
            self.transmitter.kick()?;
        }
        self.watch(ops)
    }

    /// A throttle lets more through.
    fn allowed(&mut self, token: u32, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let throttle = match token {
            TOKEN_RECEIVE => &mut self.receiver.throttle,
            _ => &mut self.transmitter.throttle,
        };
        if let Some(throttle) = throttle {
            throttle.ready()?;
        }
        if token == TOKEN_RECEIVE {
            self.receive()?;
        } else if self.transmit()? == Progress::More {
            self.transmitter.kick()?;
        }
        self.watch(ops)
    }

    fn receive(&mut self) -> Result<(), Fault> {
        if self.handed {
            return Ok(());
        }
        let Some(wire) = self.wire.as_mut().filter(|_| self.attended) else { return Ok(()) };
        let next = self.receiver.run(wire)?;
        self.wanted.set(EventSet::IN, next == Next::Frames);
        if next == Next::Gone {
            self.lose();
        }
        self.slot.count(std::mem::take(&mut self.receiver.dropped), 0);
        Ok(())
    }

    fn transmit(&mut self) -> Result<Progress, Fault> {
        if self.handed || self.wanted.contains(EventSet::OUT) {
            return Ok(Progress::Idle);
        }
        let unplugged = self.wire.is_none();
        // The guest may have been told, a moment ago, of a link that this thread has yet to take up: its frames wait for that.
        let coming = || unplugged && self.slot.has_new(self.index);
        let sent = self.transmitter.run(self.wire.as_mut().filter(|_| self.attended), coming)?;
        self.slot.count(0, std::mem::take(&mut self.transmitter.dropped));
        let full = self.wire.as_ref().is_some_and(Wire::is_full);
        self.wanted.set(EventSet::OUT, full || sent == Sent::Room);
        match sent {
            Sent::Ring(progress) => Ok(progress),
            Sent::Room | Sent::Time => Ok(Progress::Idle),
            Sent::Gone => {
                self.lose();
                // What is left is dropped.
                Ok(Progress::More)
            }
        }
    }

    fn obey(&mut self) -> Result<Progress, Fault> {
        let Some(mut control) = self.control.take() else { return Ok(Progress::Idle) };
        let progress = control.run(|command| self.carry_out(command));
        self.control = Some(control);
        progress
    }

    fn carry_out(&mut self, command: Command) -> bool {
        match command {
            Command::Pairs(pairs) if (1..=self.slot.shape.pairs).contains(&pairs) => {
                // Its thread wakes the others and itself.
                self.slot.set_active(pairs);
                true
            }
            Command::Offloads(offloads) if offload::may_take(self.features, offloads) => {
                self.slot.set_offloads(offloads);
                self.tell_offloads(offloads);
                true
            }
            Command::Pairs(_) | Command::Offloads(_) => false,
        }
    }

    /// Has a tap give this pair frames if, and only if, the driver uses it.
    fn attend(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let attend = self.index < self.slot.active();
        if self.slot.shape.pairs == 1 || attend == self.attended {
            return Ok(());
        }
        self.take_back(ops)?;
        if let Some(tap) = self.wire.as_ref().and_then(Wire::tap) {
            match tap.attend(attend) {
                Ok(()) => self.attended = attend,
                Err(error) => log::warn!("virtio-net: queue {} of the tap stays as it is: {error}", self.index),
            }
        }
        Ok(())
    }

    fn tell_offloads(&self, offloads: u64) {
        if let Some(tap) = self.wire.as_ref().and_then(Wire::tap)
            && let Err(error) = tap.set_offloads(offloads)
        {
            log::warn!("virtio-net: the tap keeps the offloads that it has: {error}");
        }
    }

    /// The wire is of no use any more. It is let go of when what is watched is looked at next.
    pub(super) fn lose(&mut self) {
        self.slot.lose();
        self.wanted = EventSet::empty();
        self.gone = true;
    }

    /// Brings what is watched in line with what is wanted.
    fn watch(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        if self.gone {
            self.unplug(ops)?;
            // What waited for room in it is dropped.
            return Ok(self.transmitter.kick()?);
        }
        let Some(wire) = &self.wire else { return Ok(()) };
        if !self.attended {
            return self.unwatch(ops);
        }
        let events = Events::with_data(wire, TOKEN_WIRE, self.wanted);
        match self.watched {
            None => ops.add(events),
            Some(watched) if watched == self.wanted => return Ok(()),
            Some(_) => ops.modify(events),
        }
        .map_err(std::io::Error::other)?;
        self.watched = Some(self.wanted);
        Ok(())
    }

    fn unplug(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.gone = false;
        self.take_back(ops)?;
        self.unwatch(ops)?;
        self.wire = None;
        Ok(())
    }

    /// No event of the wire comes any more.
    fn unwatch(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.wanted = EventSet::empty();
        if let (Some(wire), Some(_)) = (&self.wire, self.watched.take()) {
            ops.remove(Events::with_data(wire, TOKEN_WIRE, EventSet::empty())).map_err(std::io::Error::other)?;
        }
        Ok(())
    }
}
