//! What a VMM reads before a guest runs: the kernel, a saved machine, and what comes over its control socket.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tatami_devices::virtio::{Blk, BlkConfig, Net, NicKind, Rng, Slot, VirtioDevice};
use tatami_vmm::snapshot::Snapshot;
use tatami_vmm::{NicConfig, VmConfig, fuzzing};

use crate::driver::threads;
use crate::{devices, nics};

/// The saved machine's memory, in bytes.
pub const MEMORY_BYTES: u64 = 32 << 20;

/// `bytes` in a file that is nowhere.
pub fn with(bytes: &[u8]) -> File {
    let file = devices::file(bytes.len() as u64);
    file.write_all_at(bytes, 0).expect("a file in memory");
    file
}

/// A kernel's file, and an initrd of the size that its last bytes say.
pub fn kernel(data: &[u8]) {
    let initrd = data.last_chunk::<8>().map_or(4096, |last| u64::from_le_bytes(*last));
    fuzzing::kernel(&mut with(data), initrd);
}

/// What a machine was saved as: no vCPUs, which only KVM can judge.
pub fn machine() -> VmConfig {
    let memory_mib = (MEMORY_BYTES >> 20) as u32;
    let nics = vec![NicConfig {
        kind: tatami_vmm::NicKind::Stream,
        queue_pairs: 1,
        mtu: None,
        limits: tatami_vmm::NicLimits::NONE,
    }];
    VmConfig { vcpus: 0, max_vcpus: 0, memory_mib, disk_slots: 1, nics, ..VmConfig::default() }
}

/// Its devices, as a machine has them.
pub fn machine_devices() -> Vec<Box<dyn VirtioDevice>> {
    let slot = Slot::empty("slot0");
    let config = BlkConfig { uring: false, ..BlkConfig::default() };
    let disk = Blk::new(slot, config, threads()).expect("a device without a limit");
    let nic = Net::new(nics::slot(NicKind::Stream, 1), 0, threads());
    vec![Box::new(Rng::new(threads())), Box::new(devices::Host::new().1), Box::new(disk), Box::new(nic)]
}

/// A saved machine's state file; its devices go to work as it says.
pub fn snapshot(data: &[u8]) {
    let snapshot = Snapshot { memory: devices::file(MEMORY_BYTES), state: with(data) };
    fuzzing::restore(&machine(), &snapshot, machine_devices());
}

/// A message on the control socket, as either side may be sent one by the other.
pub fn control(data: &[u8]) {
    let count = data.first().map_or(0, |first| usize::from(first & 3));
    let images: Vec<File> = (0..count).map(|_| devices::file(4096)).collect();
    fuzzing::message(data, &images);
    fuzzing::message(&[b"J", data].concat(), &images);
}
