//! The device's end of a split virtqueue (virtio 1.2, 2.7), with every rule that a guest could break checked in one place.
//!
//! `virtio-queue` bounds a chain and the available index, but ends a bad chain silently and lets a head be used twice. Here a
//! chain is walked once, copied out of guest memory, and is either wholly good or a [`RingError`]: what the guest changes
//! afterwards changes nothing. Knows no device: what the bytes of a chain mean is the caller's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::spec::{AVAIL_NO_INTERRUPT, DESCRIPTOR_BYTES, DESCRIPTOR_INDIRECT, DESCRIPTOR_NEXT, DESCRIPTOR_WRITE};
use super::{ActiveQueue, Fault, GuestMemory, Interrupt, Progress};

/// How many segment lists a ring keeps to use again.
const SPARES: usize = 64;

/// What a driver did to a ring that no driver may do. The device stops and asks for a reset.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The available index is further ahead than the ring is long.
    #[error("queue {queue}: {ahead} chains made available in a ring of {size}")]
    TooManyAvailable {
        /// Queue index.
        queue: u16,
        /// Available index minus the device's position.
        ahead: u16,
        /// Ring size.
        size: u16,
    },
    /// A chain's head, or the next descriptor of one, lies beyond its table.
    #[error("queue {queue}: descriptor {index} in a table of {size}")]
    IndexOutOfTable {
        /// Queue index.
        queue: u16,
        /// The offending index.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A head was made available again before the device gave it back.
    #[error("queue {queue}: chain {head} was made available while in use")]
    HeadInUse {
        /// Queue index.
        queue: u16,
        /// The chain's head.
        head: u16,
    },
    /// A chain has more descriptors than the queue, so it may be a loop.
    #[error("queue {queue}: chain {head} is longer than the ring's {size} descriptors")]
    TooLong {
        /// Queue index.
        queue: u16,
        /// The chain's head.
        head: u16,
        /// Ring size.
        size: u16,
    },
    /// An indirect table of a bad length, inside another, with a successor, or writable.
    #[error("queue {queue}: chain {head} has a bad indirect table")]
    BadIndirect {
        /// Queue index.
        queue: u16,
        /// The chain's head.
        head: u16,
    },
    /// A buffer for the device to read comes after one for it to write (2.7.4.2).
    #[error("queue {queue}: chain {head} has a readable buffer after a writable one")]
    Order {
        /// Queue index.
        queue: u16,
        /// The chain's head.
        head: u16,
    },
    /// A chain holds 4 GiB or more (2.7.5.2 forbids more than 2^32 bytes).
    #[error("queue {queue}: chain {head} holds 4 GiB or more")]
    TooManyBytes {
        /// Queue index.
        queue: u16,
        /// The chain's head.
        head: u16,
    },
    /// A buffer or table lies outside guest RAM.
    #[error("queue {queue}: {len} bytes at {address:#x} are not guest RAM")]
    NotRam {
        /// Queue index.
        queue: u16,
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// The ring itself could not be read or written; it was in RAM when the queue was set up.
    #[error("queue {queue}: the ring is out of reach: {source}")]
    Unreachable {
        /// Queue index.
        queue: u16,
        /// What `virtio-queue` or the memory said.
        source: virtio_queue::Error,
    },
}

/// A stretch of guest RAM that lies within one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub address: GuestAddress,
    /// Bytes; never 0.
    pub len: u32,
}

/// A checked copy of one descriptor chain. Goes back to its ring by [`Ring::give_back`], exactly once.
#[derive(Debug)]
#[must_use = "a chain that is not given back is lost to the driver"]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// How many of `segments` are the device's to read; the rest are its to write.
    readable: usize,
}

impl Chain {
    /// The index of its first descriptor: the name by which the driver knows it.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device is to fill.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..]
    }
}

/// The bytes of some segments together; less than 4 GiB for those of one chain.
pub fn total(segments: &[Segment]) -> u32 {
    segments.iter().map(|segment| segment.len).sum()
}

/// The part of `segments` that begins at byte `skip` and is at most `len` bytes long.
pub fn slice(segments: &[Segment], skip: u32, len: u32) -> Vec<Segment> {
    let (mut skip, mut left) = (skip, len);
    let mut out = Vec::with_capacity(segments.len());
    for segment in segments {
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        let len = (segment.len - skip).min(left);
        if len == 0 {
            break;
        }
        out.push(Segment { address: segment.address.unchecked_add(u64::from(skip)), len });
        (skip, left) = (0, left - len);
    }
    out
}

/// Copies guest bytes into `bytes`, from the start of `segments`; says how many there were.
pub fn read(memory: &GuestMemory, segments: &[Segment], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let len = (segment.len as usize).min(bytes.len() - done);
        // Segments are inside one region, so the copy is whole.
        if len == 0 || memory.read_slice(&mut bytes[done..done + len], segment.address).is_err() {
            break;
        }
        done += len;
    }
    done
}

/// Copies `bytes` to the guest, to the start of `segments`; says how many there was room for.
pub fn write(memory: &GuestMemory, segments: &[Segment], bytes: &[u8]) -> usize {
    let mut done = 0;
    for segment in segments {
        let len = (segment.len as usize).min(bytes.len() - done);
        if len == 0 || memory.write_slice(&bytes[done..done + len], segment.address).is_err() {
            break;
        }
        done += len;
    }
    done
}

/// A queue at work: takes chains, gives them back, and interrupts the driver when it wants to be interrupted.
pub struct Ring {
    index: u16,
    queue: Queue,
    kick: EventFd,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    /// One bit a head, set while the device has the chain.
    in_use: Vec<u64>,
    /// Segment lists to use again, so that taking chains allocates nothing in the long run.
    spare: Vec<Vec<Segment>>,
    /// The used index that the driver was told of, or did not want to be told of, last.
    told: u16,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("index", &self.index).field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Ring {
    /// Puts queue number `index` of a device to work.
    pub fn new(index: u16, active: ActiveQueue, memory: GuestMemory, interrupt: Arc<dyn Interrupt>) -> Self {
        let words = usize::from(active.queue.size()).div_ceil(64);
        let told = active.queue.next_used();
        Ring {
            index,
            queue: active.queue,
            kick: active.kick,
            memory,
            interrupt,
            in_use: vec![0; words],
            spare: Vec::new(),
            told,
        }
    }

    /// Back to what [`Ring::new`] took, at the place the ring has reached.
    pub fn into_active(self) -> ActiveQueue {
        ActiveQueue { queue: self.queue, kick: self.kick }
    }

    /// Queue number within its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it lies and how far it has come, for somebody else who has it for a while; [`Ring::go_on`] comes afterwards.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Goes on behind what whoever had the queue meanwhile has given back, in the order in which it was made available. What that one
    /// took and kept is taken again.
    ///
    /// # Errors
    /// When the used ring is out of reach.
    pub fn go_on(&mut self) -> Result<(), RingError> {
        let used = self.queue.used_idx(&self.memory, Ordering::Acquire).map_err(|source| self.unreachable(source))?.0;
        self.queue.set_next_avail(used);
        self.queue.set_next_used(used);
        self.told = used;
        Ok(())
    }

    /// How many descriptors the driver gave it.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Signalled when the driver has made chains available.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The memory that the ring's chains point into.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes the next chain that the driver made available, if there is one.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring; nothing more can be taken from it then.
    pub fn take(&mut self) -> Result<Option<Chain>, RingError> {
        let (queue, size) = (self.index, self.queue.size());
        let position = self.queue.next_avail();
        let available =
            self.queue.avail_idx(&self.memory, Ordering::Acquire).map_err(|source| self.unreachable(source))?;
        let ahead = available.0.wrapping_sub(position);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > size {
            return Err(RingError::TooManyAvailable { queue, ahead, size });
        }
        let slot = GuestAddress(self.queue.avail_ring()).unchecked_add(4 + 2 * u64::from(position % size));
        let head = self
            .memory
            .load::<u16>(slot, Ordering::Acquire)
            .map(u16::from_le)
            .map_err(|source| self.unreachable(virtio_queue::Error::GuestMemory(source)))?;
        let chain = self.inherit(head)?;
        self.queue.set_next_avail(position.wrapping_add(1));
        Ok(Some(chain))
    }

    /// Takes a chain that the driver made available to somebody else, who is gone and did not give it back.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub fn inherit(&mut self, head: u16) -> Result<Chain, RingError> {
        let (queue, size) = (self.index, self.queue.size());
        if head >= size {
            return Err(RingError::IndexOutOfTable { queue, index: head, size });
        }
        if self.is_in_use(head) {
            return Err(RingError::HeadInUse { queue, head });
        }
        let chain = self.walk(head)?;
        self.in_use[usize::from(head / 64)] |= 1 << (head % 64);
        Ok(chain)
    }

    /// Gives `chain` back to the driver, `written` bytes of its writable part filled.
    ///
    /// # Errors
    /// When the used ring is out of reach.
    pub fn give_back(&mut self, chain: Chain, written: u32) -> Result<(), RingError> {
        self.give_back_all(std::iter::once((chain, written)))
    }

    /// Gives several chains back at once: the driver sees all of them, or none yet.
    ///
    /// # Errors
    /// When the used ring is out of reach.
    pub fn give_back_all(&mut self, chains: impl Iterator<Item = (Chain, u32)>) -> Result<(), RingError> {
        let (ring, size) = (GuestAddress(self.queue.used_ring()), self.queue.size());
        let unreachable =
            |queue, source| RingError::Unreachable { queue, source: virtio_queue::Error::GuestMemory(source) };
        let mut next = self.queue.next_used();
        for (chain, written) in chains {
            let entry = [u32::from(chain.head).to_le(), written.to_le()];
            let slot = ring.unchecked_add(4 + 8 * u64::from(next % size));
            self.memory.write_obj(entry, slot).map_err(|source| unreachable(self.index, source))?;
            next = next.wrapping_add(1);
            self.release(chain);
        }
        self.queue.set_next_used(next);
        let index = ring.unchecked_add(2);
        self.memory.store(next.to_le(), index, Ordering::Release).map_err(|source| unreachable(self.index, source))
    }

    /// Undoes the last [`Ring::take`], whose chain this is: it will be taken again. Of several, the one taken last comes first.
    pub fn put_back(&mut self, chain: Chain) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
        self.release(chain);
    }

    fn release(&mut self, chain: Chain) {
        self.in_use[usize::from(chain.head / 64)] &= !(1 << (chain.head % 64));
        if self.spare.len() < SPARES {
            self.spare.push(chain.segments);
        }
    }

    /// Interrupts the driver, unless it does not want to hear of what was given back since the last call.
    ///
    /// # Errors
    /// When the available ring is out of reach.
    pub fn notify(&mut self) -> Result<(), RingError> {
        let by_index = self.queue.event_idx_enabled();
        // The flags, or behind the ring the used index whose passing the driver wants to hear of (2.7.7, 2.7.10).
        let skip = if by_index { 4 + 2 * u64::from(self.queue.size()) } else { 0 };
        // What was given back must be visible before this is read.
        std::sync::atomic::fence(Ordering::SeqCst);
        let word = self
            .memory
            .load::<u16>(GuestAddress(self.queue.avail_ring()).unchecked_add(skip), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|source| self.unreachable(virtio_queue::Error::GuestMemory(source)))?;
        let now = self.queue.next_used();
        let new = now.wrapping_sub(std::mem::replace(&mut self.told, now));
        let wanted = match by_index {
            true => now.wrapping_sub(word).wrapping_sub(1) < new,
            false => word & AVAIL_NO_INTERRUPT == 0,
        };
        if wanted {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to kick for now; a hint, so kicks may still come.
    ///
    /// # Errors
    /// When the used ring is out of reach.
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        self.queue.disable_notification(&self.memory).map_err(|source| self.unreachable(source))
    }

    /// Asks the driver to kick again. True: chains were made available meanwhile, and no kick will tell of them.
    ///
    /// # Errors
    /// When the rings are out of reach.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        self.queue.enable_notification(&self.memory).map_err(|source| self.unreachable(source))
    }

    /// Serves what is available, at most a ringful, so that a driver that never stops cannot keep the thread from its other
    /// duties. `serve` gets each chain and says how many bytes it wrote to it.
    ///
    /// # Errors
    /// When the driver broke a rule, or `serve` says so.
    pub fn drain(&mut self, mut serve: impl FnMut(&Chain) -> Result<u32, Fault>) -> Result<Progress, Fault> {
        let mut budget = self.queue.size();
        loop {
            self.disable_kicks()?;
            while let Some(chain) = self.take()? {
                let written = serve(&chain)?;
                self.give_back(chain, written)?;
                self.notify()?;
                budget -= 1;
                if budget == 0 {
                    return Ok(Progress::More);
                }
            }
            if !self.enable_kicks()? {
                return Ok(Progress::Idle);
            }
        }
    }

    fn is_in_use(&self, head: u16) -> bool {
        self.in_use[usize::from(head / 64)] & (1 << (head % 64)) != 0
    }

    fn walk(&mut self, head: u16) -> Result<Chain, RingError> {
        let mut segments = self.spare.pop().unwrap_or_default();
        segments.clear();
        let mut walk = Walk { queue: self.index, head, size: self.queue.size(), memory: &self.memory };
        let readable = walk.run(self.queue.desc_table(), &mut segments)?;
        Ok(Chain { head, segments, readable })
    }

    fn unreachable(&self, source: virtio_queue::Error) -> RingError {
        RingError::Unreachable { queue: self.index, source }
    }
}

/// One walk along a chain.
struct Walk<'a> {
    queue: u16,
    head: u16,
    size: u16,
    memory: &'a GuestMemory,
}

impl Walk<'_> {
    /// Appends the chain's buffers to `segments`; says how many of them come before the first writable one.
    fn run(&mut self, table: u64, segments: &mut Vec<Segment>) -> Result<usize, RingError> {
        let (queue, head, size) = (self.queue, self.head, self.size);
        let (mut table, mut entries, mut index) = (table, size, head);
        let (mut indirect, mut bytes, mut readable) = (false, 0_u32, None);
        // A chain may not have more buffers than the ring has descriptors (2.7.5.3.1), so a loop ends here, too.
        let mut left = size;
        loop {
            if index >= entries {
                return Err(RingError::IndexOutOfTable { queue, index, size: entries });
            }
            let descriptor = self.descriptor(table, index)?;
            let flags = descriptor.flags();
            if flags & DESCRIPTOR_INDIRECT != 0 {
                entries = self.indirect_entries(&descriptor, indirect)?;
                (table, index, indirect) = (descriptor.addr().0, 0, true);
                continue;
            }
            left = left.checked_sub(1).ok_or(RingError::TooLong { queue, head, size })?;
            bytes = bytes.checked_add(descriptor.len()).ok_or(RingError::TooManyBytes { queue, head })?;
            if flags & DESCRIPTOR_WRITE != 0 {
                readable.get_or_insert(segments.len());
            } else if readable.is_some() {
                return Err(RingError::Order { queue, head });
            }
            self.append(descriptor.addr(), descriptor.len(), segments)?;
            if flags & DESCRIPTOR_NEXT == 0 {
                return Ok(readable.unwrap_or(segments.len()));
            }
            index = descriptor.next();
        }
    }

    fn descriptor(&self, table: u64, index: u16) -> Result<Descriptor, RingError> {
        let not_ram = RingError::NotRam { queue: self.queue, address: table, len: DESCRIPTOR_BYTES as u32 };
        let Some(address) = GuestAddress(table).checked_add(DESCRIPTOR_BYTES * u64::from(index)) else {
            return Err(not_ram);
        };
        self.memory.read_obj(address).map_err(|_| not_ram)
    }

    fn indirect_entries(&self, descriptor: &Descriptor, nested: bool) -> Result<u16, RingError> {
        let bad = RingError::BadIndirect { queue: self.queue, head: self.head };
        let entries = u64::from(descriptor.len()) / DESCRIPTOR_BYTES;
        let ragged = u64::from(descriptor.len()) % DESCRIPTOR_BYTES != 0;
        if nested || ragged || entries == 0 || descriptor.flags() & (DESCRIPTOR_NEXT | DESCRIPTOR_WRITE) != 0 {
            return Err(bad);
        }
        u16::try_from(entries).map_err(|_| bad)
    }

    /// Cuts a buffer at the borders of memory regions; a buffer that leaves RAM is an error.
    fn append(&self, address: GuestAddress, len: u32, segments: &mut Vec<Segment>) -> Result<(), RingError> {
        let not_ram = || RingError::NotRam { queue: self.queue, address: address.0, len };
        let (mut at, mut left) = (address, len);
        while left > 0 {
            let region = self.memory.find_region(at).ok_or_else(not_ram)?;
            let room = region.last_addr().0 - at.0;
            let here = u64::from(left).min(room.saturating_add(1)) as u32;
            segments.push(Segment { address: at, len: here });
            left -= here;
            if left > 0 {
                at = at.checked_add(u64::from(here)).ok_or_else(not_ram)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
