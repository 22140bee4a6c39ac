//! What a machine shall be, as plain data that travels from the server to the VMM.

use serde::{Deserialize, Serialize};
use tatami_arch::{DeviceSlot, Host, Machine};
use tatami_devices::virtio::{BLK_QUEUES_MAX, FS_QUEUES_MAX, FsCache, NicLimits, RateLimit};

use crate::verity::Verity;

/// A machine's configuration. Files and sockets travel beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// vCPUs that the guest starts by itself; at least one.
    pub vcpus: u8,
    /// vCPUs that it can bring online later, those included.
    pub max_vcpus: u8,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// RAM in MiB that the guest can be given later, beyond that: [`crate::VmmProcess::resize_memory`].
    pub spare_memory_mib: u32,
    /// What its RAM is made of on the host.
    pub memory_kind: MemoryKind,
    /// What it frees is the host's again soon, without being asked for (free page reporting).
    pub page_reporting: bool,
    /// Kernel parameters beyond those that the machine needs.
    pub command_line_extra: String,
    /// The guest's vsock address; 3 or more.
    pub vsock_cid: u32,
    /// The disk that the guest's user space is on, and not in an initrd. The guest only reads it.
    pub root_disk: Option<RootDisk>,
    /// The shared folder's device.
    pub folder: FolderConfig,
    /// Slots for disks, empty at the start: [`crate::VmmProcess::attach_disk`] fills them while the guest runs. The guest knows
    /// them by [`slot_serial`].
    pub disk_slots: u8,
    /// Queues of each slot, which a guest of several vCPUs fills side by side: at least one. It sets some 64 KiB aside for each.
    pub disk_queues: u8,
    /// How fast each slot's disk may be.
    pub disk_limit: RateLimit,
    /// Their requests go through io_uring, many at once, where the host has it; otherwise one after another.
    pub disk_uring: bool,
    /// Their images are opened without the host's page cache, by whoever fills the slots.
    pub disk_direct: bool,
    /// What the guest has flushed is not waited for: it may be lost if the host fails.
    pub disk_unflushed: bool,
    /// Slots for networks, empty at the start: [`crate::VmmProcess::plug_nic`] fills them while the guest runs. The guest knows them
    /// by [`nic_address`].
    pub nics: Vec<NicConfig>,
    /// Devices that other processes serve (vhost-user), each with a connected socket beside this; they need memory that others can
    /// map. The guest knows a disk by [`VmConfig::vhost_user_addresses`], files by [`vhost_user_tag`].
    pub vhost_user: Vec<VhostUserKind>,
    /// The guest's kernel talks on its serial line; otherwise only its last words are heard.
    pub console: bool,
    /// What the guest finds its virtio devices on.
    pub virtio_bus: VirtioBus,
    /// It talks on a virtio console instead, once it has found it: a buffer at a time, where the serial line takes a byte.
    pub virtio_console: bool,
}

/// A disk that a guest's own user space is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootDisk {
    /// Its file system is all that there is.
    Plain,
    /// The guest's kernel checks whatever it reads of it, and panics where it is not as it was.
    Verity(Verity),
}

/// What a guest finds its virtio devices on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VirtioBus {
    /// Memory's own (virtio-mmio).
    Mmio,
    /// PCI, where interrupts are messages.
    Pci,
}

impl Default for VirtioBus {
    /// Memory's own, on machines that have places there.
    fn default() -> VirtioBus {
        if Host::device_slot(0).is_some() { VirtioBus::Mmio } else { VirtioBus::Pci }
    }
}

impl VirtioBus {
    /// The place of device `index` on it; none beyond the last.
    pub(crate) fn slot(self, index: usize) -> Option<DeviceSlot> {
        match self {
            VirtioBus::Mmio => Host::device_slot(index),
            VirtioBus::Pci => Host::pci_slot(index),
        }
    }
}

/// How the folder that the server shares is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderConfig {
    /// Request queues, each with a thread of its own: at least one, and no use beyond the number of vCPUs.
    pub queues: u8,
    /// How long the guest believes what it has read.
    pub cache: FsCache,
}

impl Default for FolderConfig {
    fn default() -> FolderConfig {
        FolderConfig { queues: 1, cache: FsCache::default() }
    }
}

/// What guest RAM is made of on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryKind {
    /// The VMM's own, given as the guest touches it, in huge pages where the host has them to give.
    #[default]
    Anonymous,
    /// The same in ordinary pages, of which the host may keep one where several have the same contents (KSM), also of different
    /// machines. How long a write takes then tells a guest whether another has the same page.
    Mergeable,
    /// A file in memory (memfd), which other processes can map.
    Shared,
    /// The same in pages of 2 MiB that the host has set aside; all that the guest starts with is taken at the start.
    HugePages,
    /// A file that the VMM is handed, where whoever asks for it wants the memory to lie.
    File,
}

impl MemoryKind {
    /// Whether other processes can map it.
    fn is_mappable(self) -> bool {
        match self {
            MemoryKind::Anonymous | MemoryKind::Mergeable => false,
            MemoryKind::Shared | MemoryKind::HugePages | MemoryKind::File => true,
        }
    }
}

/// A slot for a network, as the guest finds it when it boots. What is plugged in later must be of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// What is plugged in.
    pub kind: NicKind,
    /// Pairs of queues: as many as a tap has queues, 1 for a stream; at most [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u8,
    /// The largest packet, in bytes, that the guest's kernel is told to send; none: whoever sets the guest's interface up decides.
    pub mtu: Option<u16>,
    /// How fast it may be.
    pub limits: NicLimits,
}

/// What can be plugged into a slot for a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum NicKind {
    /// A tap without packet information, with headers of 12 bytes (IFF_NO_PI, IFF_VNET_HDR, TUNSETVNETHDRSZ, TUNSETVNETLE).
    Tap {
        /// It cuts UDP for its reader and its writer (TUN_F_USO4 and TUN_F_USO6; Linux 6.2).
        cuts_udp: bool,
    },
    /// A connected stream socket to a network in user space: each frame behind its length, four bytes in network order.
    Stream,
}

/// The most slots for networks: the machine's places for devices, without those that other devices need.
pub const MAX_NICS: usize = 4;

/// The most pairs of queues that a network device has.
pub const MAX_QUEUE_PAIRS: u8 = 16;

/// The hardware address by which the guest finds the network device in `slot`: the order of devices means nothing. It is the
/// permanent one; whoever sets the interface up in the guest gives it the one that it is to have.
pub fn nic_address(slot: u8) -> [u8; 6] {
    // Locally administered; it never leaves the guest.
    [0x02, b't', b'a', b't', 0, slot]
}

/// What the guest reads as the serial number of the disk that its own user space is on.
pub(crate) const ROOT_SERIAL: &str = "root";

/// A device that another process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum VhostUserKind {
    /// A disk.
    Disk {
        /// The process must let nobody write to it.
        read_only: bool,
    },
    /// A file system.
    Files,
}

/// The most devices that other processes serve.
pub const MAX_VHOST_USER: usize = 4;

/// Devices that every machine has, and that come before those that other processes serve.
pub(crate) const FIXED_DEVICES: usize = 4;

/// The name by which the guest mounts the files of device number `index` of those that other processes serve.
pub fn vhost_user_tag(index: usize) -> String {
    format!("vhost{index}")
}

/// The most slots for disks: the machine's places for devices, without those that other devices need.
pub const MAX_DISK_SLOTS: u8 = 8;

/// What the guest reads as the serial number of the disk in `slot`, and finds it by: the order of devices means nothing.
pub fn slot_serial(slot: u8) -> String {
    format!("slot{slot}")
}

/// Why a configuration cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No vCPU, or more than the machine can describe.
    #[error("a sandbox has between 1 and {limit} vCPUs, {wanted} were asked for")]
    Vcpus {
        /// Asked for.
        wanted: u8,
        /// The machine's limit.
        limit: u8,
    },
    /// Fewer in all than at the start.
    #[error("a sandbox that starts with {vcpus} vCPUs cannot have {max} at most")]
    MaxVcpus {
        /// At the start.
        vcpus: u8,
        /// In all.
        max: u8,
    },
    /// Less than the machine's boot image needs.
    #[error("{wanted} MiB of memory are too little for a guest: it needs {least} MiB")]
    TooLittleMemory {
        /// Asked for.
        wanted: u32,
        /// Needed.
        least: u64,
    },
    /// The machine has none.
    #[error("this machine has no PCI bus: its virtio devices are found by virtio-mmio")]
    NoPci,
    /// Not a number of whole pages.
    #[error("memory in huge pages comes in multiples of 2 MiB, {0} MiB is none")]
    HugePages(u32),
    /// 0 to 2 have meanings of their own.
    #[error("the guest's vsock address must be 3 or more, not {0}")]
    VsockAddress(u32),
    /// None, or more than a folder can have.
    #[error("a shared folder has between 1 and {FS_QUEUES_MAX} queues, {0} were asked for")]
    FolderQueues(u8),
    /// More than the machine has places for.
    #[error("a sandbox has at most {MAX_DISK_SLOTS} slots for disks, {0} were asked for")]
    DiskSlots(u8),
    /// More than there are places for.
    #[error("a sandbox has at most {MAX_VHOST_USER} vhost-user devices, {0} were asked for")]
    VhostUser(usize),
    /// Nobody else can map that memory.
    #[error("vhost-user devices need memory that other processes can map: shared or huge pages, not anonymous")]
    VhostUserMemory,
    /// None, or more than a disk can have.
    #[error("a disk has between 1 and {BLK_QUEUES_MAX} queues, {0} were asked for")]
    DiskQueues(u8),
    /// More than the machine has places for.
    #[error("a sandbox has at most {MAX_NICS} network interfaces, {0} were asked for")]
    Nics(usize),
    /// None, or more than a device has.
    #[error("a network interface has 1 to {MAX_QUEUE_PAIRS} pairs of queues, not {0}")]
    QueuePairs(u8),
    /// Less than any network carries.
    #[error("a network interface's MTU is 68 or more, not {0}")]
    Mtu(u16),
}

impl Default for VmConfig {
    /// One vCPU, 128 MiB, nothing else.
    fn default() -> VmConfig {
        VmConfig {
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 128,
            spare_memory_mib: 0,
            memory_kind: MemoryKind::Anonymous,
            page_reporting: true,
            command_line_extra: String::new(),
            vsock_cid: 3,
            root_disk: None,
            folder: FolderConfig::default(),
            disk_slots: 0,
            disk_queues: 1,
            disk_limit: RateLimit::default(),
            disk_uring: true,
            disk_direct: false,
            disk_unflushed: false,
            nics: Vec::new(),
            vhost_user: Vec::new(),
            console: false,
            virtio_bus: VirtioBus::default(),
            virtio_console: false,
        }
    }
}

impl VmConfig {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// Names the first value that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for wanted in [self.vcpus, self.max_vcpus] {
            if wanted == 0 || wanted > Host::MAX_VCPUS {
                return Err(ConfigError::Vcpus { wanted, limit: Host::MAX_VCPUS });
            }
        }
        if self.max_vcpus < self.vcpus {
            return Err(ConfigError::MaxVcpus { vcpus: self.vcpus, max: self.max_vcpus });
        }
        if self.memory_bytes() < Host::MIN_MEMORY {
            return Err(ConfigError::TooLittleMemory { wanted: self.memory_mib, least: Host::MIN_MEMORY >> 20 });
        }
        if self.memory_kind == MemoryKind::HugePages && !self.memory_mib.is_multiple_of(2) {
            return Err(ConfigError::HugePages(self.memory_mib));
        }
        if self.virtio_bus == VirtioBus::Pci && Host::PCI.is_none() {
            return Err(ConfigError::NoPci);
        }
        if self.vsock_cid < 3 {
            return Err(ConfigError::VsockAddress(self.vsock_cid));
        }
        if self.folder.queues == 0 || self.folder.queues > FS_QUEUES_MAX {
            return Err(ConfigError::FolderQueues(self.folder.queues));
        }
        if self.disk_queues == 0 || self.disk_queues > BLK_QUEUES_MAX {
            return Err(ConfigError::DiskQueues(self.disk_queues));
        }
        if self.disk_slots > MAX_DISK_SLOTS {
            return Err(ConfigError::DiskSlots(self.disk_slots));
        }
        if self.nics.len() > MAX_NICS {
            return Err(ConfigError::Nics(self.nics.len()));
        }
        if self.vhost_user.len() > MAX_VHOST_USER {
            return Err(ConfigError::VhostUser(self.vhost_user.len()));
        }
        if !self.vhost_user.is_empty() && !self.memory_kind.is_mappable() {
            return Err(ConfigError::VhostUserMemory);
        }
        self.nics.iter().try_for_each(NicConfig::validate)
    }

    /// Where in the guest's memory the registers are of each of [`VmConfig::vhost_user`]: how the guest finds a disk, whose serial number
    /// is another process's affair.
    pub fn vhost_user_addresses(&self) -> Vec<u64> {
        // The disk of the guest's root comes before all others.
        let first = usize::from(self.root_disk.is_some()) + FIXED_DEVICES;
        let slots = (first..).map_while(|index| self.virtio_bus.slot(index)).map(|slot| slot.address);
        slots.take(self.vhost_user.len()).collect()
    }

    /// RAM that the guest has and RAM that can be added, in bytes.
    pub fn all_memory_bytes(&self) -> u64 {
        self.memory_bytes() + self.spare_memory_bytes()
    }

    /// RAM in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// RAM that can be added, in bytes.
    pub(crate) fn spare_memory_bytes(&self) -> u64 {
        u64::from(self.spare_memory_mib) << 20
    }
}

impl NicConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let most = if self.kind == NicKind::Stream { 1 } else { MAX_QUEUE_PAIRS };
        match (self.queue_pairs, self.mtu) {
            (pairs, _) if pairs == 0 || pairs > most => Err(ConfigError::QueuePairs(pairs)),
            (_, Some(mtu @ ..68)) => Err(ConfigError::Mtu(mtu)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        VmConfig::default().validate().unwrap();
    }

    #[test]
    fn each_impossible_value_is_named() {
        let error = |change: fn(&mut VmConfig)| {
            let mut config = VmConfig::default();
            change(&mut config);
            config.validate().unwrap_err()
        };
        let limit = Host::MAX_VCPUS;
        assert_eq!(error(|c| c.vcpus = 0), ConfigError::Vcpus { wanted: 0, limit });
        assert_eq!(error(|c| c.max_vcpus = 255), ConfigError::Vcpus { wanted: 255, limit });
        assert_eq!(error(|c| c.vcpus = 2), ConfigError::MaxVcpus { vcpus: 2, max: 1 });
        assert_eq!(
            error(|c| c.memory_mib = 8),
            ConfigError::TooLittleMemory { wanted: 8, least: Host::MIN_MEMORY >> 20 }
        );
        assert_eq!(
            error(|c| (c.memory_kind, c.memory_mib) = (MemoryKind::HugePages, 127)),
            ConfigError::HugePages(127)
        );
        assert_eq!(error(|c| c.vsock_cid = 2), ConfigError::VsockAddress(2));
        assert_eq!(error(|c| c.disk_slots = 9), ConfigError::DiskSlots(9));
        assert_eq!(error(|c| c.folder.queues = 0), ConfigError::FolderQueues(0));
        assert_eq!(error(|c| c.folder.queues = 17), ConfigError::FolderQueues(17));
        assert_eq!(error(|c| c.vhost_user = vec![VhostUserKind::Files; 5]), ConfigError::VhostUser(5));
        assert_eq!(error(|c| c.vhost_user = vec![VhostUserKind::Files]), ConfigError::VhostUserMemory);
        assert_eq!(error(|c| c.disk_queues = 0), ConfigError::DiskQueues(0));
        assert_eq!(error(|c| c.disk_queues = 9), ConfigError::DiskQueues(9));
        const TAP: NicKind = NicKind::Tap { cuts_udp: true };
        const NIC: NicConfig = NicConfig { kind: TAP, queue_pairs: 1, mtu: None, limits: NicLimits::NONE };
        assert_eq!(error(|c| c.nics = vec![NIC; 5]), ConfigError::Nics(5));
        assert_eq!(error(|c| c.nics = vec![NicConfig { queue_pairs: 17, ..NIC }]), ConfigError::QueuePairs(17));
        assert_eq!(error(|c| c.nics = vec![NicConfig { queue_pairs: 0, ..NIC }]), ConfigError::QueuePairs(0));
        let stream = |queue_pairs| NicConfig { kind: NicKind::Stream, queue_pairs, ..NIC };
        assert_eq!(stream(2).validate(), Err(ConfigError::QueuePairs(2)));
        assert_eq!(stream(1).validate(), Ok(()));
        assert_eq!(error(|c| c.nics = vec![NicConfig { mtu: Some(67), ..NIC }]), ConfigError::Mtu(67));
    }
}
