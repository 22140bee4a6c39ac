//! The host kernel's vhost-net (`/dev/vhost-net`), which moves the frames of one pair of queues to and from a tap by itself.
//!
//! It is told where guest RAM is and where in it the driver's rings lie, which the transport has found good, and waits for kicks where
//! the driver's arrive. Opens nothing, knows no threads: when it is at work is said in `handover.rs`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vhost::vhost_kern::vhost_binding::{vhost_memory_region, vhost_vring_addr};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::requests::VhostNet;
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
/// When it is no such device.
pub fn vhost_lacks(device: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(FEATURES & !VhostNet(device).features().map_err(failed("say what it knows"))?)
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
        let kernel = VhostNet(self.device.as_fd());
        if !self.owned {
            kernel.set_owner().map_err(failed("work for this process"))?;
            self.owned = true;
        }
        kernel.set_features(features & FEATURES).map_err(failed("take the driver's features"))?;
        kernel.set_memory(&regions(memory)).map_err(failed("take the guest's memory"))?;
        for (index, (ring, call)) in (0..).zip(rings.into_iter().zip(&self.calls)) {
            let queue = ring.queue();
            let call = interrupt.queue_event(ring.index()).unwrap_or(call);
            let set_up = kernel
                .set_size(index, queue.size())
                .and_then(|()| kernel.set_base(index, queue.next_avail()))
                .and_then(|()| kernel.set_areas(&areas(index, ring)?))
                .and_then(|()| kernel.set_call(index, call))
                .and_then(|()| kernel.set_fault(index, &self.fault))
                .and_then(|()| kernel.set_kick(index, ring.kick()));
            set_up.map_err(failed("take a queue"))?;
        }
        for (index, _) in (0..).zip(&rings) {
            kernel.set_tap(index, Some(tap)).map_err(failed("take the tap"))?;
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
        for (index, ring) in (0..).zip(rings) {
            VhostNet(self.device.as_fd()).set_tap(index, None).map_err(failed("let go of the tap"))?;
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
fn regions(memory: &GuestMemory) -> Vec<vhost_memory_region> {
    let region = |region: &vm_memory::GuestRegionMmap| vhost_memory_region {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        flags_padding: 0,
    };
    memory.iter().map(region).collect()
}

/// Where the parts of a queue are, which the transport has held to be within RAM, by this process's addresses.
fn areas(index: u32, ring: &Ring) -> io::Result<vhost_vring_addr> {
    let queue = ring.queue();
    let here = |address: u64| match ring.memory().get_host_address(GuestAddress(address)) {
        Ok(place) => Ok(place as u64),
        Err(error) => Err(io::Error::other(error)),
    };
    Ok(vhost_vring_addr {
        index,
        flags: 0,
        desc_user_addr: here(queue.desc_table())?,
        used_user_addr: here(queue.used_ring())?,
        avail_user_addr: here(queue.avail_ring())?,
        log_guest_addr: 0,
    })
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::other(format!("vhost-net does not {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
