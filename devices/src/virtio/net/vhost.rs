//! The host kernel's vhost-net (`/dev/vhost-net`), which moves the frames of one pair of queues to and from a tap by itself.
//!
//! It is told where guest RAM is and where in it the driver's rings lie, which the transport has found good, and waits for kicks where
//! the driver's arrive. Opens nothing, knows no threads: when it is at work is said in `handover.rs`.
#![allow(
    unsafe_code,
    reason = "the crate has ioctls for any descriptor of vhost's but this one, which it would open itself"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use vhost::net::VhostNet;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::timerfd::TimerFd;

use super::spec::FEATURE_MERGE;
use crate::virtio::spec::TRANSPORT_FEATURES;
use crate::virtio::{GuestMemory, Interrupt, Ring};

/// The features that are vhost's business, all of which a driver may have negotiated. Offloads are the tap's.
const FEATURES: u64 = TRANSPORT_FEATURES | FEATURE_MERGE;

/// How often, at most, the tap is looked at while it has frames.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Which feature bits that a guest is offered an open `/dev/vhost-net` does not know: with any, it is of no use.
///
/// # Errors
/// When it is no such device, or of an architecture on which its requests have other numbers.
pub fn vhost_lacks(device: BorrowedFd<'_>) -> io::Result<u64> {
    let nowhere = GuestMemory::default();
    let kernel = Kernel { device: device.as_raw_fd(), memory: &nowhere };
    Ok(FEATURES & !kernel.get_features().map_err(failed("say what it knows"))?)
}

/// An open `/dev/vhost-net`, and what is heard of it.
#[derive(Debug)]
pub(super) struct Vhost {
    device: File,
    /// This process is its owner.
    owned: bool,
    /// Written when the driver is to be interrupted for its receive queue, or its transmit queue, where vhost cannot do that itself.
    pub(super) calls: [EventFd; 2],
    /// Written when it has met something in a ring that it cannot use.
    pub(super) fault: EventFd,
    /// Readable when the tap is to be looked at again.
    pub(super) timer: TimerFd,
}

impl Vhost {
    /// Takes over an open device.
    ///
    /// # Errors
    /// When no event descriptors are to be had.
    pub(super) fn new(device: OwnedFd) -> io::Result<Vhost> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Vhost { device: device.into(), owned: false, calls: [event()?, event()?], fault: event()?, timer })
    }

    /// Lets it move frames between `tap` and the rings of a driver that negotiated `features`, from where they stand; it raises
    /// `interrupt` by itself if it can, else it calls. Nobody else may touch the rings until [`Vhost::stop`], which is also due when this fails.
    ///
    /// # Errors
    /// The request that failed; perhaps the tap is gone.
    pub(super) fn start(
        &mut self,
        tap: &File,
        features: u64,
        rings: [&Ring; 2],
        interrupt: &dyn Interrupt,
    ) -> io::Result<()> {
        for event in self.calls.iter().chain([&self.fault]) {
            // What was meant for an earlier driver; empty is as good.
            let _ = event.read();
        }
        let memory = rings[0].memory();
        let kernel = Kernel { device: self.device.as_raw_fd(), memory };
        if !self.owned {
            kernel.set_owner().map_err(failed("work for this process"))?;
            self.owned = true;
        }
        kernel.set_features(features & FEATURES).map_err(failed("take the driver's features"))?;
        kernel.set_mem_table(&regions(memory)).map_err(failed("take the guest's memory"))?;
        for (index, (ring, call)) in rings.into_iter().zip(&self.calls).enumerate() {
            let queue = ring.queue();
            let call = interrupt.queue_event(ring.index()).unwrap_or(call);
            let set_up = kernel
                .set_vring_num(index, queue.size())
                .and_then(|()| kernel.set_vring_base(index, queue.next_avail()))
                .and_then(|()| kernel.set_vring_addr(index, &areas(ring)))
                .and_then(|()| kernel.set_vring_call(index, call))
                .and_then(|()| kernel.set_vring_err(index, &self.fault))
                .and_then(|()| kernel.set_vring_kick(index, ring.kick()));
            set_up.map_err(failed("take a queue"))?;
        }
        for index in 0..rings.len() {
            kernel.set_backend(index, Some(tap)).map_err(failed("take the tap"))?;
        }
        Ok(())
    }

    /// Has it let go of the rings, which are then behind what it has given back, in their order. It keeps frames that were on their way
    /// to a tap which was deleted just then: these are taken again.
    ///
    /// # Errors
    /// The request that failed. It may still have the rings then: close it.
    pub(super) fn stop(&mut self, rings: [&mut Ring; 2]) -> io::Result<()> {
        // A look that was due is of no use any more.
        self.looked()?;
        if !self.owned {
            return Ok(());
        }
        for (index, ring) in rings.into_iter().enumerate() {
            let kernel = Kernel { device: self.device.as_raw_fd(), memory: ring.memory() };
            kernel.set_backend(index, None).map_err(failed("let go of the tap"))?;
            ring.go_on().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Has the timer tell when the tap is to be looked at again.
    ///
    /// # Errors
    /// When it cannot be set.
    pub(super) fn look_later(&mut self) -> io::Result<()> {
        self.timer.reset(LOOK_AGAIN, None).map_err(io::Error::from)
    }

    /// The timer has been seen.
    ///
    /// # Errors
    /// When it cannot be set.
    pub(super) fn looked(&mut self) -> io::Result<()> {
        self.timer.clear().map_err(io::Error::from)
    }
}

/// Guest RAM, all of it and nothing else, by the addresses of both sides.
fn regions(memory: &GuestMemory) -> Vec<VhostUserMemoryRegionInfo> {
    let region = |region: &vm_memory::GuestRegionMmap| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        mmap_offset: 0,
        mmap_handle: -1,
    };
    memory.iter().map(region).collect()
}

fn areas(ring: &Ring) -> VringConfigData {
    let queue = ring.queue();
    VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: queue.desc_table(),
        used_ring_addr: queue.used_ring(),
        avail_ring_addr: queue.avail_ring(),
        log_addr: None,
    }
}

fn failed(what: &'static str) -> impl Fn(vhost::Error) -> io::Error {
    move |error| io::Error::other(format!("vhost-net does not {what}: {error}"))
}

/// The device as the crate speaks to it.
struct Kernel<'a> {
    device: RawFd,
    memory: &'a GuestMemory,
}

impl AsRawFd for Kernel<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.device
    }
}

impl<'a> VhostKernBackend for Kernel<'a> {
    type AS = &'a GuestMemory;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }

    /// The transport has held queues to more than this; the crate's own check refuses an area that ends where RAM does.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

impl VhostNet for Kernel<'_> {
    fn set_backend(&self, index: usize, tap: Option<&File>) -> vhost::Result<()> {
        let file = vhost_vring_file { index: index as u32, fd: tap.map_or(-1, File::as_raw_fd) };
        // SAFETY: the kernel reads one vhost_vring_file, which lives across the call.
        let result = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &file) };
        if result < 0 { Err(vhost::Error::IoctlError(io::Error::last_os_error())) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vm_memory::GuestAddress;

    #[test]
    fn it_is_told_of_all_ram_and_of_nothing_else() {
        let layout = [(GuestAddress(0x1000), 0x3000), (GuestAddress(0x10_0000), 0x2000)];
        let memory = GuestMemory::from_ranges(&layout).unwrap();
        let told = regions(&memory);
        let places: Vec<_> = told.iter().map(|region| (region.guest_phys_addr, region.memory_size)).collect();
        assert_eq!(places, [(0x1000, 0x3000), (0x10_0000, 0x2000)]);
        for region in told {
            let place = memory.get_host_address(GuestAddress(region.guest_phys_addr)).unwrap();
            assert_eq!(place as u64, region.userspace_addr);
        }
    }

    #[test]
    fn what_is_no_vhost_net_is_refused() {
        let null = File::open("/dev/null").unwrap();
        let error = vhost_lacks(null.as_fd()).unwrap_err().to_string();
        assert!(error.contains("vhost-net does not say"), "{error}");
    }
}
