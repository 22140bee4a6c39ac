//! A pair's queues given to the host's kernel, and taken back.
//!
//! Where a tap comes with vhost, the kernel has the queues as long as the tap is plugged in and attended, and the driver is not to
//! stand still. The thread then passes interrupts on, hears of what vhost cannot use, and looks whether the tap is still there: of
//! that nothing tells but what tells of frames, so it is looked at once a second, and only while there are frames.

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

use super::pair::{Pair, TOKEN_CALL_RECEIVE, TOKEN_CALL_TRANSMIT, TOKEN_FAULT, TOKEN_LOOK};
use super::vhost::Vhost;
use super::wire::Wire;
use crate::virtio::{Fault, worker};

impl Pair {
    /// Gives the queues to vhost, if the tap has it and they are not there already.
    pub(super) fn hand_over(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let Some(tap) = self.wire.as_mut().and_then(Wire::tap_mut) else { return Ok(()) };
        if self.handed || self.gone || !self.attended || tap.vhost.is_none() {
            return Ok(());
        }
        self.handed = true;
        self.receiver.put_down();
        let rings = [self.receiver.ring(), self.transmitter.ring()];
        if let Err(error) = tap.hand_over(self.features, rings, self.interrupt.as_ref()) {
            if !tap.is_gone() {
                return Err(error.into());
            }
            self.take_back_rings()?;
            self.lose();
            return Ok(());
        }
        for kick in self.kicks {
            worker::heed(ops, kick, false)?;
        }
        for events in tap.vhost.iter().flat_map(events) {
            ops.add(events).map_err(std::io::Error::other)?;
        }
        self.wanted = EventSet::IN;
        Ok(())
    }

    /// Takes the queues back from vhost, if it has them; they are to be looked at then.
    pub(super) fn take_back(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        if !self.handed {
            return Ok(());
        }
        let tap = self.wire.as_ref().and_then(Wire::tap);
        for events in tap.and_then(|tap| tap.vhost.as_ref()).into_iter().flat_map(events) {
            ops.remove(events).map_err(std::io::Error::other)?;
        }
        self.take_back_rings()?;
        self.wanted = EventSet::empty();
        for (ring, kick) in [self.receiver.ring(), self.transmitter.ring()].into_iter().zip(self.kicks) {
            worker::heed(ops, kick, true)?;
            ring.kick().write(1)?;
        }
        Ok(())
    }

    /// The same, for a thread that ends or has heard nothing of vhost yet.
    pub(super) fn take_back_rings(&mut self) -> Result<(), Fault> {
        let tap = self.wire.as_mut().and_then(Wire::tap_mut);
        let Some(vhost) = tap.and_then(|tap| tap.vhost.as_mut()).filter(|_| self.handed) else { return Ok(()) };
        self.handed = false;
        vhost.stop([self.receiver.ring_mut(), self.transmitter.ring_mut()])?;
        let indexes = [self.receiver.index(), self.transmitter.index()];
        for (call, index) in vhost.calls.iter().zip(indexes) {
            pass_on(call, || self.interrupt.queue(index));
        }
        Ok(())
    }

    /// Something is to be heard of vhost.
    pub(super) fn heard(&mut self, token: u32) -> Result<(), Fault> {
        let Some(tap) = self.wire.as_mut().and_then(Wire::tap_mut).filter(|_| self.handed) else { return Ok(()) };
        let is_gone = token == TOKEN_FAULT && tap.is_gone();
        let Some(vhost) = tap.vhost.as_mut() else { return Ok(()) };
        let [receive, transmit] = &vhost.calls;
        match token {
            TOKEN_CALL_RECEIVE => pass_on(receive, || self.interrupt.queue(self.receiver.index())),
            TOKEN_CALL_TRANSMIT => pass_on(transmit, || self.interrupt.queue(self.transmitter.index())),
            TOKEN_FAULT => {
                // It never blocks, and is not needed any more.
                let _ = vhost.fault.read();
                if is_gone {
                    // It had a frame for a tap that was being deleted, and blames the ring for it.
                    self.lose();
                    return Ok(());
                }
                return Err(Fault::Request(format!("the host's vhost-net cannot use a ring of pair {}", self.index)));
            }
            _ => {
                vhost.looked()?;
                self.wanted = EventSet::IN;
            }
        }
        Ok(())
    }

    /// The tap, which vhost serves, is readable or no more a tap's.
    pub(super) fn glance(&mut self, set: EventSet) -> Result<(), Fault> {
        if set.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.lose();
        } else if let Some(vhost) = self.wire.as_mut().and_then(Wire::tap_mut).and_then(|tap| tap.vhost.as_mut()) {
            self.wanted = EventSet::empty();
            vhost.look_later()?;
        }
        Ok(())
    }
}

/// What is watched while vhost is at work.
fn events(vhost: &Vhost) -> [Events; 4] {
    let [receive, transmit] = &vhost.calls;
    [
        Events::with_data(receive, TOKEN_CALL_RECEIVE, EventSet::IN),
        Events::with_data(transmit, TOKEN_CALL_TRANSMIT, EventSet::IN),
        Events::with_data(&vhost.fault, TOKEN_FAULT, EventSet::IN),
        Events::with_data(&vhost.timer, TOKEN_LOOK, EventSet::IN),
    ]
}

fn pass_on(call: &EventFd, interrupt: impl FnOnce()) {
    // It never blocks: empty is an error.
    if call.read().is_ok() {
        interrupt();
    }
}
