//! Frames on their way to the guest: from a wire into the buffers that the driver has posted.
//!
//! A frame goes straight into guest memory wherever the driver has room for any frame. Where it has not, one frame at most is held
//! here until there is room; the others wait where they are. Nothing but the driver's posting buffers is waited for then, and
//! with the ring's event index that cannot be missed: reception does not freeze.

use std::collections::VecDeque;
use std::io;

use super::super::buffers::Buffers;
use super::spec::{FEATURE_MERGE, FRAME_MAX, HEADER_BYTES, NUM_BUFFERS_AT};
use super::wire::{Got, Wire};
use crate::virtio::{ActiveQueue, Chain, Fault, Ring, Segment, Throttle, ring};

/// Frames received before the thread looks at its other duties.
const BUDGET: u32 = 256;
/// Enough segments of guest memory for one system call, whatever they hold.
const SEGMENTS_ENOUGH: usize = 512;

/// The receiving end of a pair.
pub(super) struct Receiver {
    ring: Ring,
    /// A frame may take several buffers.
    merge: bool,
    /// Buffers taken from the ring and not used yet, the bytes and the segments that they have together.
    stock: VecDeque<Chain>,
    room: usize,
    segments: usize,
    /// For what the stock has no room for.
    beside: Box<[u8; FRAME_MAX]>,
    /// Bytes of the frame in `beside` that waits for room; 0: none.
    held: usize,
    buffers: Buffers,
    /// Chains about to be given back.
    done: Vec<(Chain, u32)>,
    /// How fast.
    pub(super) throttle: Option<Throttle>,
    /// Frames that were larger than any room they could have.
    pub(super) dropped: u64,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The wire's being readable.
    Frames,
    /// The driver's kick.
    Buffers,
    /// The throttle's timer.
    Time,
    /// The wire is gone.
    Gone,
}

impl Receiver {
    /// For a driver that negotiated `features`.
    pub(super) fn new(ring: Ring, features: u64, throttle: Option<Throttle>) -> Receiver {
        Receiver {
            ring,
            merge: features & FEATURE_MERGE != 0,
            stock: VecDeque::new(),
            room: 0,
            segments: 0,
            beside: Box::new([0; FRAME_MAX]),
            held: 0,
            buffers: Buffers::default(),
            done: Vec::new(),
            throttle,
            dropped: 0,
        }
    }

    /// Its queue's number.
    pub(super) fn index(&self) -> u16 {
        self.ring.index()
    }

    /// Back to the queue, as if what was taken and not used had never been taken.
    pub(super) fn into_active(mut self) -> ActiveQueue {
        self.put_down();
        self.ring.into_active()
    }

    /// Puts buffers that are not used yet back into the ring; a frame that waits for room goes to nobody.
    pub(super) fn put_down(&mut self) {
        while let Some(chain) = self.stock.pop_back() {
            self.ring.put_back(chain);
        }
        self.dropped += u64::from(self.held > 0);
        (self.room, self.segments, self.held) = (0, 0, 0);
    }

    /// Its queue, which is somebody else's to work on after [`Receiver::put_down`].
    pub(super) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The same, for what that one has done.
    pub(super) fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Passes on what there is.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub(super) fn run(&mut self, wire: &mut Wire) -> Result<Next, Fault> {
        self.ring.disable_kicks()?;
        let mut budget = BUDGET + u32::from(self.ring.size());
        let next = loop {
            budget -= 1;
            if budget == 0 {
                // What has been read from a stream already is no reason for it to become readable.
                self.ring.kick().write(1)?;
                break Next::Frames;
            }
            self.refill()?;
            let lacking = if self.held > 0 { !self.deliver_held()? } else { self.stock.is_empty() };
            if lacking {
                // True: there are more, and no kick will tell.
                if self.ring.enable_kicks()? {
                    continue;
                }
                break Next::Buffers;
            }
            // How long a frame is, is known when it is there: it is paid for afterwards.
            if let Some(throttle) = &mut self.throttle
                && !throttle.admit(0)?
            {
                break Next::Time;
            }
            let got = self.receive(wire);
            if let (Some(throttle), Ok(Got::Direct(len) | Got::Beside(len))) = (&self.throttle, &got) {
                throttle.charge(len.saturating_sub(HEADER_BYTES) as u64);
            }
            match got {
                Ok(Got::Direct(0) | Got::Beside(0)) => break Next::Gone,
                Ok(Got::Direct(len)) => self.take_in(len)?,
                Ok(Got::Beside(len)) => self.held = len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Next::Frames,
                Err(_) => break Next::Gone,
            }
        };
        self.ring.notify()?;
        Ok(next)
    }

    /// Takes buffers until there is room for any frame.
    fn refill(&mut self) -> Result<(), Fault> {
        while self.wants_more() {
            let Some(chain) = self.ring.take()? else { break };
            self.room += ring::total(chain.writable()) as usize;
            self.segments += chain.writable().len();
            self.stock.push_back(chain);
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        match self.merge {
            true => self.room < FRAME_MAX && self.segments < SEGMENTS_ENOUGH,
            false => self.stock.is_empty(),
        }
    }

    fn receive(&mut self, wire: &mut Wire) -> io::Result<Got> {
        let memory = self.ring.memory();
        let segments = self.stock.iter().flat_map(|chain| chain.writable());
        wire.receive(&mut self.buffers, memory, segments, &mut self.beside)
    }

    /// A frame of `len` bytes has been read into the stock, and its end perhaps into `beside`.
    fn take_in(&mut self, len: usize) -> Result<(), Fault> {
        let Some(beyond) = len.checked_sub(self.room).filter(|&beyond| beyond > 0) else {
            return self.deliver(len);
        };
        if len > FRAME_MAX {
            self.dropped += 1;
            return Ok(());
        }
        // The whole of it is kept here, until there is room.
        self.beside.copy_within(..beyond, self.room);
        let segments: Vec<Segment> = self.stock.iter().flat_map(|chain| chain.writable()).copied().collect();
        ring::read(self.ring.memory(), &segments, &mut self.beside[..self.room]);
        self.held = len;
        Ok(())
    }

    /// Delivers the held frame if there is room, and drops it if there can be none. False: it is still held.
    fn deliver_held(&mut self) -> Result<bool, Fault> {
        let len = self.held;
        if len > self.room {
            let hopeless = !self.wants_more() || self.stock.len() >= usize::from(self.ring.size());
            if hopeless {
                self.held = 0;
                self.dropped += 1;
                // Buffers of no use to any frame go back, so that there may be better ones.
                self.give_back_first()?;
            }
            return Ok(hopeless);
        }
        let segments: Vec<Segment> = self.stock.iter().flat_map(|chain| chain.writable()).copied().collect();
        ring::write(self.ring.memory(), &segments, &self.beside[..len]);
        self.held = 0;
        self.deliver(len)?;
        Ok(true)
    }

    /// Gives the driver the first `len` bytes of the stock as a frame: all its buffers at once.
    fn deliver(&mut self, len: usize) -> Result<(), Fault> {
        let mut left = len;
        while left > 0 {
            let Some(chain) = self.pop() else { break };
            let share = left.min(ring::total(chain.writable()) as usize);
            left -= share;
            self.done.push((chain, share as u32));
        }
        let count = self.done.len() as u16;
        if let Some((first, _)) = self.done.first() {
            let place = ring::slice(first.writable(), NUM_BUFFERS_AT, (HEADER_BYTES as u32) - NUM_BUFFERS_AT);
            ring::write(self.ring.memory(), &place, &count.to_le_bytes());
        }
        self.ring.give_back_all(self.done.drain(..))?;
        Ok(())
    }

    fn give_back_first(&mut self) -> Result<(), Fault> {
        if let Some(chain) = self.pop() {
            self.ring.give_back(chain, 0)?;
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Chain> {
        let chain = self.stock.pop_front()?;
        self.room -= ring::total(chain.writable()) as usize;
        self.segments -= chain.writable().len();
        Some(chain)
    }
}
