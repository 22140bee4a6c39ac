//! A guest of ours in a VMM of its own, and what its process takes of the host.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{SysconfVar, sysconf};
use tatami_vmm::boot::Origin;
use tatami_vmm::{DiskPart, Event, NicConfig, NicKind, NicLimits, Resources, VmConfig, VmmProcess, probe};

/// The guest's RAM, in MiB: as the guest knows it.
const MEMORY_MIB: u32 = 64;
const SECRET: &str = "secret";
/// Bytes of its disk.
const DISK: u64 = 1 << 20;
/// Console text that is kept: a flood is not.
const CONSOLE: usize = 64 << 10;

/// What was logged since somebody looked.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Has what VMMs say kept.
pub(crate) fn keep_log() {
    struct Keep;
    impl log::Log for Keep {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Info
        }

        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata())
                && let Ok(mut lines) = LOG.lock()
            {
                lines.push(record.args().to_string());
            }
        }

        fn flush(&self) {}
    }
    if log::set_boxed_logger(Box::new(Keep)).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// What was logged since the last call.
pub(crate) fn log_since_last() -> Vec<String> {
    LOG.lock().map(|mut lines| std::mem::take(&mut *lines)).unwrap_or_default()
}

/// What a process takes.
#[derive(Debug)]
pub(crate) struct Usage {
    /// Resident memory beyond the guest's RAM.
    pub(crate) memory_kib: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    /// CPU time of all threads since the start.
    pub(crate) cpu: Duration,
}

/// A guest and its VMM.
pub(crate) struct Machine {
    pub(crate) vmm: VmmProcess,
    console: String,
    folder: Folder,
    disk: File,
    /// The other end of its network, which is read and thrown away.
    network: UnixStream,
}

impl Machine {
    /// Boots the guest with this word on its command line.
    pub(crate) fn start(word: &str) -> Result<Machine> {
        ensure!(!tatami_hostile::GUEST.is_empty(), "there is no hostile guest for this architecture yet");
        let folder = Folder::new()?;
        let kernel = folder.path("guest");
        fs::write(&kernel, tatami_hostile::GUEST)?;
        let config = VmConfig {
            memory_mib: MEMORY_MIB,
            command_line_extra: word.to_owned(),
            disk_slots: 1,
            nics: vec![NicConfig { kind: NicKind::Stream, queue_pairs: 1, mtu: None, limits: NicLimits::NONE }],
            console: true,
            ..VmConfig::default()
        };
        let resources = Resources {
            kvm: probe::open()?,
            origin: Origin::Kernel { kernel: File::open(kernel)?, user_space: None },
            memory: None,
            shared_dir: folder.path("above/shared"),
            vsock_listener: UnixListener::bind(folder.path("vsock"))?,
            vhost_user: Vec::new(),
            cgroup: None,
        };
        let mut vmm = VmmProcess::spawn(&config, resources)?;
        let disk = tempfile::tempfile()?;
        disk.set_len(DISK)?;
        vmm.attach_disk(0, &[DiskPart { image: disk.try_clone()?, start: 0, length: DISK, read_only: false }])?;
        let (network, theirs) = UnixStream::pair()?;
        network.set_nonblocking(true)?;
        vmm.plug_nic(0, &[OwnedFd::from(theirs)])?;
        Ok(Machine { vmm, console: String::new(), folder, disk, network })
    }

    /// Where the host reaches the guest's ports.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path("vsock")
    }

    /// The next event, if one comes within `patience`; console text is kept, too.
    pub(crate) fn event(&mut self, patience: Duration) -> Result<Option<Event>> {
        let event = match self.vmm.next_event()? {
            Some(event) => Some(event),
            None => {
                poll(&mut [PollFd::new(self.vmm.control_fd(), PollFlags::POLLIN)], PollTimeout::try_from(patience)?)?;
                self.vmm.next_event()?
            }
        };
        while self.network.read(&mut [0; 64 << 10]).is_ok_and(|count| count > 0) {}
        if let Some(Event::Answer { result: Err(error), .. }) = &event {
            bail!("it has no disk or no network: {error}");
        }
        if let Some(Event::Console(bytes)) = &event {
            self.console.push_str(&String::from_utf8_lossy(bytes));
            // Lines of a flood are all alike, and no attack's.
            if self.console.len() > CONSOLE {
                let kept: Vec<&str> = self.console.lines().filter(|line| line.starts_with("attack ")).collect();
                self.console = kept.join("\n") + "\n";
            }
        }
        Ok(event)
    }

    /// What the guest said, without floods.
    pub(crate) fn console(&self) -> &str {
        &self.console
    }

    /// Attacks, and what came of them.
    pub(crate) fn outcomes(&self) -> Vec<(String, String)> {
        let lines = self.console.lines().filter_map(|line| line.strip_prefix("attack ")?.rsplit_once(": "));
        lines.map(|(attack, outcome)| (attack.to_owned(), outcome.to_owned())).collect()
    }

    /// What its process takes now.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.vmm.pid()));
        let count = |folder: &str| Ok::<_, std::io::Error>(fs::read_dir(proc.join(folder))?.count());
        let stat = fs::read_to_string(proc.join("stat")).context("the VMM is gone")?;
        // proc(5): behind the name in parentheses, fields 14 and 15 of all, in clock ticks.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let hertz = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100) as u64;
        Ok(Usage {
            memory_kib: memory_beyond_ram(&fs::read_to_string(proc.join("smaps"))?)?,
            descriptors: count("fd")?,
            threads: count("task")?,
            cpu: Duration::from_millis(ticks * 1000 / hertz),
        })
    }

    /// Fails if anything beside the shared folder is not as it was, or the disk has another size.
    pub(crate) fn check_folder(&self) -> Result<()> {
        let names = |folder: PathBuf| -> Result<Vec<String>> {
            let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names = entries.collect::<Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        ensure!(fs::read_to_string(self.folder.path("outside"))? == SECRET, "a file beside the folder was changed");
        ensure!(names(self.folder.path("above"))? == ["shared"], "something was made above the folder");
        let beside = names(self.folder.path("."))?;
        ensure!(beside == ["above", "guest", "outside", "vsock"], "something was made beside the folder: {beside:?}");
        ensure!(self.disk.metadata()?.len() == DISK, "the disk's image has another size");
        Ok(())
    }
}

/// Resident memory of all mappings that are not the guest's RAM, in KiB (proc(5), smaps).
fn memory_beyond_ram(smaps: &str) -> Result<u64> {
    let kib = |line: &str, name: &str| {
        line.strip_prefix(name).and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|n| n.parse::<u64>().ok())
    };
    let (mut size, mut sum, mut found) = (0, 0, false);
    for line in smaps.lines() {
        if let Some(value) = kib(line, "Size:") {
            size = value;
        } else if let Some(value) = kib(line, "Rss:") {
            // The mapping may have grown together with a neighbour; nothing else is nearly as large.
            let is_ram = size >= u64::from(MEMORY_MIB) << 10;
            found |= is_ram;
            sum += if is_ram { 0 } else { value };
        }
    }
    if found { Ok(sum) } else { bail!("the guest's RAM is not among the VMM's mappings") }
}

/// The sandbox's folder with its mount, as the server makes them, and a file that is not the guest's.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Result<Folder> {
        let folder = Folder(tempfile::tempdir()?);
        let shared = folder.path("above/shared");
        fs::create_dir_all(&shared)?;
        mount(Some(&shared), &shared, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("binding needs root")?;
        mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>)?;
        fs::write(folder.path("outside"), SECRET)?;
        fs::write(shared.join("inside"), "inside")?;
        std::os::unix::fs::symlink("../../outside", shared.join("out"))?;
        Ok(folder)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let shared = self.path("above/shared");
        if let Err(errno) = umount2(&shared, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {errno}", shared.display());
        }
    }
}
