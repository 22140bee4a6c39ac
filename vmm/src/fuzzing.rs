//! Entry points of the fuzz targets: what the process reads from files and from its socket, without KVM behind it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::SendFlags;
use tatami_arch::{BootInputs, Extent, Host, Machine, Region};
use tatami_devices::virtio::{GuestMemory, MmioTransport, NicLimits, TransportState, VirtioDevice};
use vm_memory::GuestMemory as _;

use crate::config::{MemoryKind, NicConfig, NicKind, VmConfig};
use crate::control::{Channel, Notice, Order, Received, Start, What, parse};
use crate::kvm::MachineState;
use crate::memory::Ram;
use crate::snapshot::{Snapshot, State};
use crate::supervisor::Adjustable;
use crate::virtio::{DeviceState, VirtioState};
use crate::{kernel, memory};

/// Loads `file` as a kernel into the least memory that a machine has, with an initrd of `initrd` bytes beside it.
///
/// # Panics
/// When what was loaded is not where it is said to be.
pub fn kernel(file: &mut File, initrd: u64) {
    let ram = Host::ram(Host::MIN_MEMORY);
    let regions: Vec<_> = ram.iter().map(|r| (vm_memory::GuestAddress(r.start), r.size as usize)).collect();
    let memory = GuestMemory::from_ranges(&regions).expect("memory for a small machine");
    let Ok(loaded) = kernel::load_kernel(&memory, file) else { return };
    let is_ram = |extent: Extent| memory.check_range(vm_memory::GuestAddress(extent.start), extent.size as usize);
    assert!(is_ram(loaded.extent), "the kernel is said to be at {:?}", loaded.extent);
    let initrd = Host::place_initrd(&ram, loaded.extent, initrd).ok();
    assert!(initrd.is_none_or(|initrd| initrd.size == 0 || is_ram(initrd)), "the initrd goes to {initrd:?}");
    let inputs = BootInputs {
        ram: &ram,
        max_vcpus: 1,
        command_line: "quiet",
        entry: loaded.entry,
        initrd,
        seed: [0; 32],
        devices: &[],
        variant: Default::default(),
    };
    Host::boot_image(&inputs).expect("a short command line");
}

fn ram(regions: &[Region]) -> Ram<'_> {
    Ram { regions, closed: None, kind: MemoryKind::Anonymous, file: None }
}

/// Takes up a saved machine as far as that goes without KVM: state, memory, devices, which then go to work.
pub fn restore(config: &VmConfig, snapshot: &Snapshot, devices: Vec<Box<dyn VirtioDevice>>) {
    let Ok(state) = snapshot.read(config) else { return };
    let Ok(memory) = snapshot.map(&state, ram(&Host::ram(config.memory_bytes()))) else { return };
    let mut restored = Vec::new();
    for (device, saved) in devices.into_iter().zip(&state.virtio.devices) {
        let DeviceState::Mmio(saved) = saved else { continue };
        let mut transport = MmioTransport::new(device, memory.clone()).expect("event descriptors");
        if transport.restore(saved).is_ok() {
            transport.transport_mut().resume();
        }
        for queue in 0..8 {
            transport.transport().kick(queue);
        }
        restored.push(transport);
    }
    for transport in &mut restored {
        transport.transport_mut().pause();
        let again = transport.save().expect("what can be written down");
        transport.restore(&again).expect("a device's own state");
    }
}

/// A saved machine of `config`, which has no vCPUs, whose devices stand as in `devices` and whose memory is empty.
///
/// # Panics
/// When the files cannot be written.
pub fn save(config: &VmConfig, snapshot: &Snapshot, devices: Vec<TransportState>) {
    let devices = devices.into_iter().map(DeviceState::Mmio).collect();
    let virtio = VirtioState { devices, pci_address: 0 };
    let state = State::new(config.clone(), MachineState::default(), Vec::new(), virtio);
    let memory = memory::create(ram(&Host::ram(config.memory_bytes()))).expect("memory for a small machine");
    snapshot.write(&memory, &[], &[], state).expect("files in memory");
}

/// One message over the socket, with `images` beside it, as both sides read it. What is an order for disks or
/// networks is carried out.
pub fn message(bytes: &[u8], images: &[File]) {
    let (here, there) = Channel::pair().expect("a pair of sockets");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = images.iter().map(AsFd::as_fd).collect();
    ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors));
    let sent = rustix::net::sendmsg(&there, &[std::io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    if sent.is_err() {
        return;
    }
    let Ok(Some(Received::Json(body, received))) = here.receive(false) else { return };
    if let Ok(start) = parse::<Start>(&body) {
        let _ = start.config.validate();
    }
    if let Ok(Notice::Log(_, text)) = parse::<Notice>(&body) {
        assert!(!text.escape_debug().to_string().contains('\n'), "a line of a log that is two");
    }
    if let Ok(Order { what, .. }) = parse::<Order>(&body) {
        obey(what, received);
    }
}

fn obey(what: What, received: Vec<OwnedFd>) {
    let nic = |kind, queue_pairs| NicConfig { kind, queue_pairs, mtu: None, limits: NicLimits::NONE };
    let nics = vec![nic(NicKind::Stream, 1), nic(NicKind::Tap { cuts_udp: false }, 2)];
    let config = VmConfig { disk_slots: 2, nics, spare_memory_mib: 256, ..VmConfig::default() };
    let adjustable = Adjustable::new(&config).expect("event descriptors");
    let _ = adjustable.carry_out(what, received);
    let spare = adjustable.spare.expect("memory that can be added");
    assert!(spare.requested() <= config.spare_memory_bytes(), "{spare:?}");
}
