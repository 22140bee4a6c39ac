//! Boots a kernel in this very process, unjailed, with its serial line on stdout: for debugging and for measuring.
//!
//! `boot --kernel K [--initrd I] [--cmdline PARAMETERS] [--memory MIB] [--cpus N] [--shared DIR] [--vsock SOCKET] [--rng] [--balloon]
//! [--quiet] [--transport mmio|pci] [--disk IMAGE] [--direct] [--no-uring] [--queues N] [--tap INTERFACE [--vhost]]`
//! ends when the guest resets, with the time it took, the exits it needed and what KVM counted (where debugfs is mounted) on
//! stderr. It has no device but those that are asked for: of entropy, for memory given back; files of DIR appear under the tag `shared`, and SOCKET
//! is made; the guest reaches whoever listens at SOCKET_PORT. IMAGE is the guest's disk, past the host's page cache with `--direct`;
//! INTERFACE a tap of one queue, whose frames the host's kernel moves with `--vhost`.
#![allow(unsafe_code, reason = "a tap is opened by ioctl, which has no safe wrapper")]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use tatami_devices::virtio::{
    Balloon, BalloonSize, Blk, BlkConfig, DiskPart, Fs, FsCache, FsConfig, HostPorts, Net, NicKind, NicLimits,
    NicShape, NicSlot, Rng, Slot, Threads, VirtioDevice, Vsock,
};
use tatami_vmm::boot::{BuiltVm, Origin, Parts};
use tatami_vmm::{RamBacking, StopReason, VirtioBus, VmConfig, VmmThreads, nic_address, open_files};
use vmm_sys_util::poll::PollContext;

struct Arguments {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    shared: Option<PathBuf>,
    vsock: Option<PathBuf>,
    disk: Option<PathBuf>,
    direct: bool,
    uring: bool,
    tap: Option<String>,
    vhost: bool,
    rng: bool,
    balloon: bool,
    config: VmConfig,
}

fn main() -> anyhow::Result<()> {
    let arguments = arguments()?;
    open_files::raise()?;
    let started = Instant::now();
    let open = |path: &PathBuf| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let parts = Parts {
        kvm: File::options().read(true).write(true).open("/dev/kvm").context("cannot open /dev/kvm")?.into(),
        origin: Origin::Kernel {
            kernel: open(&arguments.kernel)?,
            user_space: arguments.initrd.as_ref().map(open).transpose()?,
        },
        memory: None,
        devices: devices(&arguments)?,
        spare: None,
        serial: Box::new(Console),
        threads: Arc::new(VmmThreads::default()),
    };
    let vm = BuiltVm::new(&arguments.config, parts)?;
    let built = started.elapsed();
    let vm = vm.start()?;
    let poll = PollContext::<u32>::new()?;
    poll.add(vm.stopped(), 0)?;
    poll.wait()?;
    let ran = started.elapsed() - built;
    let reason = vm.stop_reason();
    print_statistics();
    let counts = vm.stop();
    eprintln!(
        "boot: built in {} ms, ran {} ms; exits: {} memory, {} ports, {} interrupted",
        built.as_millis(),
        ran.as_millis(),
        counts.memory,
        counts.ports,
        counts.interrupted
    );
    match reason {
        Some(StopReason::NoMemory(reason) | StopReason::Error(reason)) => bail!(reason),
        _ => Ok(()),
    }
}

fn devices(arguments: &Arguments) -> anyhow::Result<Vec<Box<dyn VirtioDevice>>> {
    let threads: Arc<dyn Threads> = Arc::new(VmmThreads::default());
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    if arguments.rng {
        devices.push(Box::new(Rng::new(Arc::clone(&threads))));
    }
    if arguments.balloon {
        let backing = RamBacking::new(arguments.config.memory_kind, false);
        devices.push(Box::new(Balloon::new(BalloonSize::default(), Arc::new(backing), Arc::clone(&threads))));
    }
    if let Some(shared) = &arguments.shared {
        let root = shared.canonicalize()?.to_string_lossy().into_owned();
        let (cache, queues) = (FsCache::default(), 1);
        let config = FsConfig { tag: "shared".into(), root, cache, queues, proc_self_fd: File::open("/proc/self/fd")? };
        devices.push(Box::new(Fs::new(config, Arc::clone(&threads))?));
    }
    if let Some(socket) = &arguments.vsock {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot make {}", socket.display()))?;
        let cid = arguments.config.vsock_cid.into();
        devices.push(Box::new(Vsock::new(cid, listener, Box::new(Services(socket.clone())), Arc::clone(&threads))?));
    }
    if let Some(disk) = &arguments.disk {
        let flags = if arguments.direct { libc::O_DIRECT } else { 0 };
        let image = File::options().read(true).write(true).custom_flags(flags).open(disk);
        let image = image.with_context(|| format!("cannot open {}", disk.display()))?;
        let (length, slot) = (image.metadata()?.len(), Slot::empty("disk"));
        slot.insert(vec![DiskPart { image, start: 0, length, read_only: false }])?;
        let config = BlkConfig { queues: arguments.config.disk_queues, uring: arguments.uring, ..BlkConfig::default() };
        devices.push(Box::new(Blk::new(slot, config, Arc::clone(&threads))?));
    }
    if let Some(name) = &arguments.tap {
        let mut ends = vec![tap(name).with_context(|| format!("cannot open the tap {name}"))?];
        if arguments.vhost {
            let vhost = File::options().read(true).write(true).open("/dev/vhost-net");
            ends.push(vhost.context("cannot open /dev/vhost-net")?.into());
        }
        let kind = NicKind::Tap { cuts_udp: false };
        let slot =
            NicSlot::empty(NicShape { address: nic_address(0), kind, pairs: 1, mtu: None, limits: NicLimits::NONE })?;
        slot.plug(ends)?;
        devices.push(Box::new(Net::new(slot, 0, threads)));
    }
    Ok(devices)
}

/// A tap of one queue, with virtio's header of twelve bytes (Linux, tuntap.rst).
fn tap(name: &str) -> std::io::Result<OwnedFd> {
    const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
    const SET_HEADER_SIZE: libc::c_ulong = 0x4004_54d8;
    let device = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags };
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte as _);
    let header: libc::c_int = 12;
    // SAFETY: both arguments are valid for the calls, which keep neither.
    let failed = unsafe {
        libc::ioctl(device.as_raw_fd(), SET_INTERFACE as _, &request) != 0
            || libc::ioctl(device.as_raw_fd(), SET_HEADER_SIZE as _, &header) != 0
    };
    if failed { Err(std::io::Error::last_os_error()) } else { Ok(device.into()) }
}

/// What the guest finds at the host's ports: who listens at SOCKET_PORT.
struct Services(PathBuf);

impl HostPorts for Services {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        let mut path = self.0.clone().into_os_string();
        path.push(format!("_{port}"));
        UnixStream::connect(&path).inspect_err(|error| eprintln!("boot: host port {port}: {error}")).ok()
    }
}

/// What KVM counted for this process's machine.
fn print_statistics() {
    let prefix = format!("{}-", std::process::id());
    let machines = std::fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten();
    for machine in machines.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
        let mut counts = Vec::new();
        collect(&machine.path(), &mut counts);
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let text: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        eprintln!("boot: KVM counted {}", text.join(", "));
    }
}

fn collect(folder: &Path, counts: &mut Vec<(String, u64)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some(count) = text.trim().parse().ok().filter(|count| *count > 0) {
            counts.push((entry.file_name().to_string_lossy().into_owned(), count));
        }
    }
}

/// Standard output without a buffer, so that nothing is lost when a guest hangs.
struct Console;

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut config = VmConfig { console: true, ..VmConfig::default() };
    let (mut kernel, mut initrd, mut shared, mut vsock, mut balloon) = (None, None, None, None, false);
    let (mut disk, mut direct, mut uring) = (None, false, true);
    let (mut tap, mut vhost, mut rng) = (None, false, false);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().with_context(|| format!("{name} wants a value"));
        match name.as_str() {
            "--kernel" => kernel = Some(value()?.into()),
            "--initrd" => initrd = Some(value()?.into()),
            "--shared" => shared = Some(value()?.into()),
            "--vsock" => vsock = Some(value()?.into()),
            "--cmdline" => config.command_line_extra = value()?,
            "--memory" => config.memory_mib = value()?.parse()?,
            "--cpus" => config.vcpus = value()?.parse()?,
            "--disk" => disk = Some(value()?.into()),
            "--direct" => direct = true,
            "--no-uring" => uring = false,
            "--queues" => config.disk_queues = value()?.parse()?,
            "--tap" => tap = Some(value()?),
            "--vhost" => vhost = true,
            "--rng" => rng = true,
            "--balloon" => balloon = true,
            "--quiet" => config.console = false,
            "--transport" => {
                config.virtio_bus = match value()?.as_str() {
                    "mmio" => VirtioBus::Mmio,
                    "pci" => VirtioBus::Pci,
                    other => bail!("no transport is called {other}"),
                }
            }
            _ => bail!("unknown argument {name}"),
        }
    }
    config.max_vcpus = config.vcpus;
    let kernel = kernel.context("--kernel is missing")?;
    Ok(Arguments { kernel, initrd, shared, vsock, disk, direct, uring, tap, vhost, rng, balloon, config })
}
