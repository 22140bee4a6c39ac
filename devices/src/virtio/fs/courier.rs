//! Carries one request from a checked chain to virtiofsd's library and its reply back.
//!
//! The library takes `virtio-queue`'s chains only, and reads them, and the request, from memory, in its own time. So both are
//! first put on a desk that no guest can reach, and looked at there: the chain as a descriptor table, the request's parameters
//! as a copy. The guest cannot change any more what has been looked at. File data is not copied.

use std::io;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::FileSystem;
use virtiofsd::server::Server;
use vm_memory::{Bytes, GuestAddress};

use super::request::{HEAD_BYTES, Head};
use super::view::{DESK, Memory, View};
use crate::virtio::spec::{DESCRIPTOR_BYTES, DESCRIPTOR_NEXT, DESCRIPTOR_WRITE};
use crate::virtio::{Chain, Fault, GuestMemory, Segment, ring};

/// The longest parameters of a request: an extended attribute's value of 64 KiB (XATTR_SIZE_MAX) and its name.
const PARAMETER_BYTES: usize = 128 << 10;

/// The desk and the queue on it. In this order: descriptor table, available ring, used ring (which nobody uses), parameters.
pub(super) struct Courier {
    view: View,
    queue: Queue,
    size: u16,
    available: GuestAddress,
    parameters: GuestAddress,
    /// What is on its way to the desk.
    copy: Vec<u8>,
}

impl Courier {
    /// A courier for chains of up to `size` descriptors, a power of two, with buffers in `memory`.
    pub(super) fn new(memory: &GuestMemory, size: u16) -> io::Result<Self> {
        // The parameters' copy takes one more place, and so does a buffer that is only partly copied.
        let places = size.saturating_mul(2);
        let available = DESK.0 + DESCRIPTOR_BYTES * u64::from(places);
        let used = (available + 6 + 2 * u64::from(places)).next_multiple_of(16);
        let parameters = (used + 6 + 8 * u64::from(places)).next_multiple_of(4096);
        let view = View::new(memory, (parameters - DESK.0) as usize + PARAMETER_BYTES)?;
        let mut queue = Queue::new(places).map_err(io::Error::other)?;
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let [table, ring, unused] = [DESK.0, available, used].map(halves);
        queue.set_desc_table_address(table.0, table.1);
        queue.set_avail_ring_address(ring.0, ring.1);
        queue.set_used_ring_address(unused.0, unused.1);
        queue.set_ready(true);
        let (available, parameters) = (GuestAddress(available), GuestAddress(parameters));
        Ok(Courier { view, queue, size: places, available, parameters, copy: vec![0; PARAMETER_BYTES] })
    }

    /// Has `server` answer `chain`; says how many bytes the reply has.
    pub(super) fn carry<F: FileSystem + Sync>(&mut self, chain: &Chain, server: &Server<F>) -> Result<u32, Fault> {
        let request = chain.readable();
        let len = ring::total(request);
        let copied = self.copy_parameters(request, len)?;
        let head = Head::parse(first_chunk(&self.copy), len)?;
        head.check_room(ring::total(chain.writable()))?;
        head.check_names(&self.copy[..copied])?;

        self.view.memory().write_slice(&self.copy[..copied], self.parameters).map_err(desk_failed)?;
        let mut readable = vec![Segment { address: self.parameters, len: copied as u32 }];
        readable.extend(ring::slice(request, copied as u32, len - copied as u32));
        self.write_down(&readable, chain.writable())?;
        answer(self.view.memory(), pick_up(&mut self.queue, self.view.memory())?, server)
    }

    /// Copies what of a request is not file data. The head is read once, so that it cannot be two things.
    fn copy_parameters(&mut self, request: &[Segment], len: u32) -> Result<usize, Fault> {
        let guest = self.view.guest();
        if ring::read(guest, request, &mut self.copy[..HEAD_BYTES]) < HEAD_BYTES {
            return Err(Fault::Request(format!("a FUSE request of {len} bytes")));
        }
        let wanted = Head::parse(first_chunk(&self.copy), len)?.parameter_bytes(len as usize);
        let Some(rest) = self.copy.get_mut(HEAD_BYTES..wanted) else {
            return Err(Fault::Request(format!("a FUSE request with {wanted} bytes of parameters")));
        };
        ring::read(guest, &ring::slice(request, HEAD_BYTES as u32, rest.len() as u32), rest);
        Ok(wanted)
    }

    /// Writes a chain down on the desk.
    fn write_down(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<(), Fault> {
        let segments = readable.len() + writable.len();
        if segments > usize::from(self.size) {
            return Err(Fault::Request(format!("a FUSE request in {segments} pieces")));
        }
        let memory = self.view.memory();
        let all = readable.iter().map(|segment| (segment, 0)).chain(writable.iter().map(|s| (s, DESCRIPTOR_WRITE)));
        for (index, (segment, flag)) in all.enumerate() {
            let next = if index + 1 < segments { DESCRIPTOR_NEXT } else { 0 };
            let descriptor = Descriptor::new(segment.address.0, segment.len, flag | next, index as u16 + 1);
            let place = GuestAddress(DESK.0 + DESCRIPTOR_BYTES * index as u64);
            memory.write_obj(descriptor, place).map_err(desk_failed)?;
        }
        // The ring's entries are all 0, the head of every chain here; one more of them is available each time.
        let available = self.queue.next_avail().wrapping_add(1);
        memory.write_obj(available.to_le(), GuestAddress(self.available.0 + 2)).map_err(desk_failed)
    }
}

/// Takes the chain that was written down, as the library's kind.
fn pick_up<'a>(queue: &mut Queue, memory: &'a Memory) -> Result<DescriptorChain<&'a Memory>, Fault> {
    let chain = queue.iter(memory).map_err(desk_failed)?.next();
    chain.ok_or_else(|| desk_failed("the chain is not there"))
}

fn answer<F: FileSystem + Sync>(
    memory: &Memory,
    chain: DescriptorChain<&Memory>,
    server: &Server<F>,
) -> Result<u32, Fault> {
    let malformed = |error: &dyn std::fmt::Display| Fault::Request(error.to_string());
    let reader = Reader::new(memory, chain.clone()).map_err(|error| malformed(&error))?;
    let writer = Writer::new(memory, chain).map_err(|error| malformed(&error))?;
    // The last argument is for shared-memory windows over vhost-user, which there are none of here.
    let written = server.handle_message(reader, writer, None::<&mut ()>).map_err(|error| malformed(&error))?;
    u32::try_from(written).map_err(|_| Fault::Request(format!("a reply of {written} bytes")))
}

fn first_chunk(copy: &[u8]) -> &[u8; HEAD_BYTES] {
    copy.first_chunk().expect("the copy has room for a head: it is PARAMETER_BYTES long")
}

/// The desk is ours, as large as it is to be, and mapped: it does not fail.
fn desk_failed(error: impl std::fmt::Display) -> Fault {
    Fault::Host(io::Error::other(format!("virtio-fs's private memory: {error}")))
}
