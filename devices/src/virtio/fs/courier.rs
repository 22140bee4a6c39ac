//! Carries one request from a checked chain to virtiofsd's library and its reply back.
//!
//! The library takes `virtio-queue`'s chains only, which it reads from memory, twice. So a chain that has been checked is written
//! down once more in memory that no guest can reach, and the library is shown that: the guest cannot change it any more. The
//! buffers themselves stay where they are, nothing is copied; except for requests without room for a reply, which are short.

use std::io;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::server::Server;
use vm_memory::{Bytes, GuestAddress};

use super::view::{Memory, View};
use crate::virtio::spec::{DESCRIPTOR_BYTES, DESCRIPTOR_NEXT, DESCRIPTOR_WRITE};
use crate::virtio::{Chain, Fault, GuestMemory, Segment, ring};

/// `struct fuse_in_header`: length, opcode, and 32 bytes that are virtiofsd's to read.
const IN_HEADER_BYTES: usize = 40;
/// `struct fuse_out_header`, which every reply begins with.
const OUT_HEADER_BYTES: u32 = 16;
/// FORGET, INTERRUPT, DESTROY, BATCH_FORGET: what needs no reply.
const SILENT_OPCODES: [u32; 4] = [2, 36, 38, 42];
/// The longest request without a reply. Linux sends 64 bytes.
const SILENT_BYTES: usize = 4096;

// The private memory: descriptor table, available ring, used ring (never used), a silent request.
const TABLE: GuestAddress = GuestAddress(0);

/// The private memory and the queue in it.
pub(super) struct Courier {
    view: View,
    desk: Memory,
    queue: Queue,
    size: u16,
    available: GuestAddress,
    request: GuestAddress,
}

impl Courier {
    /// A courier for chains of up to `size` descriptors, a power of two, with buffers in `memory`.
    pub(super) fn new(memory: &GuestMemory, size: u16) -> io::Result<Self> {
        let size = size.next_power_of_two();
        let available = GuestAddress(DESCRIPTOR_BYTES * u64::from(size));
        let used = GuestAddress((available.0 + 6 + 2 * u64::from(size)).next_multiple_of(16));
        let request = GuestAddress((used.0 + 6 + 8 * u64::from(size)).next_multiple_of(4096));
        let desk = Memory::from_ranges(&[(TABLE, request.0 as usize + SILENT_BYTES)]).map_err(io::Error::other)?;
        let mut queue = Queue::new(size).map_err(io::Error::other)?;
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_avail_ring_address(Some(available.0 as u32), None);
        queue.set_used_ring_address(Some(used.0 as u32), None);
        queue.set_ready(true);
        Ok(Courier { view: View::new(memory)?, desk, queue, size, available, request })
    }

    /// Has `server` answer `chain`; says how many bytes the reply has.
    pub(super) fn carry<F: FileSystem + Sync>(&mut self, chain: &Chain, server: &Server<F>) -> Result<u32, Fault> {
        if ring::total(chain.writable()) < OUT_HEADER_BYTES {
            return self.carry_silent(chain, server);
        }
        self.write_down(chain.readable(), chain.writable())?;
        answer(self.view.memory(), pick_up(&mut self.queue, &self.desk)?, server)
    }

    /// A request that leaves no room for a reply: virtiofsd would panic over any but the few that need none, and the guest could
    /// exchange one for another after it has been looked at. So it is copied first.
    fn carry_silent<F: FileSystem + Sync>(&mut self, chain: &Chain, server: &Server<F>) -> Result<u32, Fault> {
        let len = ring::total(chain.readable()) as usize;
        let mut bytes = [0; SILENT_BYTES];
        if !(IN_HEADER_BYTES..=SILENT_BYTES).contains(&len) {
            return Err(Fault::Request(format!("a request of {len} bytes without room for a reply")));
        }
        ring::read(self.view.guest(), chain.readable(), &mut bytes[..len]);
        let opcode = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if !SILENT_OPCODES.contains(&opcode) {
            return Err(Fault::Request(format!("FUSE request {opcode} without room for a reply")));
        }
        self.desk.write_slice(&bytes[..len], self.request).map_err(desk_failed)?;
        let copy = Segment { address: self.request, len: len as u32 };
        self.write_down(&[copy], &[])?;
        answer(&self.desk, pick_up(&mut self.queue, &self.desk)?, server)
    }

    /// Writes a chain down in private memory.
    fn write_down(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<(), Fault> {
        let segments = readable.len() + writable.len();
        if segments > usize::from(self.size) {
            return Err(Fault::Request(format!("a request in {segments} pieces")));
        }
        let all = readable.iter().map(|segment| (segment, 0)).chain(writable.iter().map(|s| (s, DESCRIPTOR_WRITE)));
        for (index, (segment, flag)) in all.enumerate() {
            let next = if index + 1 < segments { DESCRIPTOR_NEXT } else { 0 };
            let descriptor = Descriptor::new(segment.address.0, segment.len, flag | next, index as u16 + 1);
            let place = GuestAddress(TABLE.0 + DESCRIPTOR_BYTES * index as u64);
            self.desk.write_obj(descriptor, place).map_err(desk_failed)?;
        }
        // The ring's entries are all 0, the head of every chain here; one more of them is available each time.
        let available = self.queue.next_avail().wrapping_add(1);
        self.desk.write_obj(available.to_le(), GuestAddress(self.available.0 + 2)).map_err(desk_failed)
    }
}

/// Takes the chain that was written down, as the library's kind.
fn pick_up<'a>(queue: &mut Queue, desk: &'a Memory) -> Result<DescriptorChain<&'a Memory>, Fault> {
    let chain = queue.iter(desk).map_err(desk_failed)?.next();
    chain.ok_or_else(|| desk_failed("the chain is not there"))
}

fn answer<F: FileSystem + Sync>(
    memory: &Memory,
    sheet: DescriptorChain<&Memory>,
    server: &Server<F>,
) -> Result<u32, Fault> {
    let malformed = |error: &dyn std::fmt::Display| Fault::Request(error.to_string());
    let reader = Reader::new(memory, sheet.clone()).map_err(|error| malformed(&error))?;
    let writer = Writer::new(memory, sheet).map_err(|error| malformed(&error))?;
    // The last argument is for shared-memory windows over vhost-user, which there are none of here.
    let written = server.handle_message(reader, writer, None::<&mut ()>).map_err(|error| malformed(&error))?;
    u32::try_from(written).map_err(|_| Fault::Request(format!("a reply of {written} bytes")))
}

/// The private memory is ours, as large as it is to be, and mapped: it does not fail.
fn desk_failed(error: impl std::fmt::Display) -> Fault {
    Fault::Host(io::Error::other(format!("virtio-fs's private memory: {error}")))
}
