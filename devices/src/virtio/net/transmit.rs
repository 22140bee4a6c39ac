//! Frames on their way from the guest: from the ring to a wire.
//!
//! What cannot be sent is dropped and counted, as on any cable; what the wire has no room for now stays in the ring.

use std::io;

use super::super::buffers::Buffers;
use super::offload;
use super::spec::HEADER_BYTES;
use super::wire::{Wire, is_gone};
use crate::virtio::{ActiveQueue, Chain, Fault, Progress, Ring, Throttle, ring};

/// The sending end of a pair.
pub(super) struct Transmitter {
    ring: Ring,
    features: u64,
    buffers: Buffers,
    /// How fast.
    pub(super) throttle: Option<Throttle>,
    /// The throttle has let the next frame through, which found no room.
    admitted: bool,
    /// Frames that nobody got.
    pub(super) dropped: u64,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The driver's kick, or the next turn if there is more.
    Ring(Progress),
    /// The wire's being writable.
    Room,
    /// The throttle's timer.
    Time,
    /// The wire is gone; so is what was to be sent on it.
    Gone,
}

impl Transmitter {
    /// For a driver that negotiated `features`.
    pub(super) fn new(ring: Ring, features: u64, throttle: Option<Throttle>) -> Transmitter {
        Transmitter { ring, features, buffers: Buffers::default(), throttle, admitted: false, dropped: 0 }
    }

    /// Its queue's number.
    pub(super) fn index(&self) -> u16 {
        self.ring.index()
    }

    /// Has the thread look at it again, after its other duties.
    ///
    /// # Errors
    /// When the descriptor cannot be written.
    pub(super) fn kick(&self) -> io::Result<()> {
        self.ring.kick().write(1)
    }

    /// Back to the queue.
    pub(super) fn into_active(self) -> ActiveQueue {
        self.ring.into_active()
    }

    /// Its queue, in which nothing is under way between two runs.
    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The same, for what somebody else has done there.
    pub(super) fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Sends what there is, at most a ringful; drops it where there is no wire, unless one is `coming`.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub(super) fn run(&mut self, mut wire: Option<&mut Wire>, coming: impl Fn() -> bool) -> Result<Sent, Fault> {
        let mut budget = self.ring.size();
        loop {
            self.ring.disable_kicks()?;
            while let Some(chain) = self.ring.take()? {
                if wire.is_none() && coming() {
                    self.ring.put_back(chain);
                    self.ring.notify()?;
                    return Ok(Sent::Ring(Progress::Idle));
                }
                if wire.is_some() && !self.admit(&chain)? {
                    self.ring.put_back(chain);
                    self.ring.notify()?;
                    return Ok(Sent::Time);
                }
                match wire.as_mut().map_or(Ok(false), |wire| self.send(wire, &chain)) {
                    Ok(true) => {}
                    Ok(false) => self.dropped += 1,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.admitted = true;
                        self.ring.put_back(chain);
                        self.ring.notify()?;
                        return Ok(Sent::Room);
                    }
                    Err(_) => {
                        self.ring.put_back(chain);
                        return Ok(Sent::Gone);
                    }
                }
                self.ring.give_back(chain, 0)?;
                budget -= 1;
                if budget == 0 {
                    self.ring.notify()?;
                    return Ok(Sent::Ring(Progress::More));
                }
            }
            self.ring.notify()?;
            if !self.ring.enable_kicks()? {
                return Ok(Sent::Ring(Progress::Idle));
            }
        }
    }

    /// Whether a frame may go now; if not, the throttle's timer tells when.
    fn admit(&mut self, chain: &Chain) -> io::Result<bool> {
        let Some(throttle) = &mut self.throttle else { return Ok(true) };
        let bytes = ring::total(chain.readable()).saturating_sub(HEADER_BYTES as u32);
        Ok(std::mem::take(&mut self.admitted) || throttle.admit(bytes.into())?)
    }

    /// Sends one frame. False: nobody could; the cause is in the frame, or passes.
    ///
    /// # Errors
    /// `WouldBlock`, or the wire is gone.
    fn send(&mut self, wire: &mut Wire, chain: &Chain) -> io::Result<bool> {
        let memory = self.ring.memory();
        let segments = chain.readable();
        let mut header = [0; HEADER_BYTES];
        ring::read(memory, segments, &mut header);
        // Judged on a copy, which is what is sent: the guest may change its own meanwhile.
        let Some(header) = offload::judge(header, ring::total(segments) as usize, self.features) else {
            return Ok(false);
        };
        match wire.send(&mut self.buffers, memory, &header, segments) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_gone(&error) => Err(error),
            Err(_) => Ok(false),
        }
    }
}
