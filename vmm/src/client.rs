//! The server's side of a VMM: starts the process, hands it what it needs, hears what happens.
//!
//! Knows nothing of what goes on in the guest; reads nothing that a guest wrote, except console bytes, which it passes on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use tatami_devices::virtio::DiskPart;

use crate::boot::Origin;
use crate::child::{Child, Program};
use crate::config::{ConfigError, MemoryKind, VmConfig};
use crate::control::{Channel, ControlError, LogLevel, Notice, Order, OriginKind, Part, Received, Start, What, parse};
use crate::process::NAME;
use crate::snapshot::Snapshot;
use crate::stop::StopReason;

/// What a machine is given; every descriptor passes to the VMM, none stays open here.
#[derive(Debug)]
pub struct Resources {
    /// An open `/dev/kvm` ([`crate::probe::open`]).
    pub kvm: OwnedFd,
    /// What the guest begins as.
    pub origin: Origin,
    /// The file that the guest's memory is to lie in, if it is of the kind [`MemoryKind::File`]; it is made as long as that takes.
    pub memory: Option<File>,
    /// The folder that the guest sees under the tag `shared`; a mount point, whose mount is shared if what is mounted below
    /// it later is to arrive.
    pub shared_dir: PathBuf,
    /// Where host programs connect to the guest's ports.
    pub vsock_listener: UnixListener,
    /// For each of [`VmConfig::vhost_user`], a connected stream to the process that serves it.
    pub vhost_user: Vec<UnixStream>,
    /// The open folder of the cgroup that the process is to be in from its start.
    pub cgroup: Option<OwnedFd>,
}

/// Why no VMM could be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file for its memory.
    #[error("cannot use the file for guest memory: {0}")]
    Memory(io::Error),
    /// No process.
    #[error("cannot start the VMM process: {0}")]
    Process(io::Error),
    /// It went away at once.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Something that happened to a machine.
#[derive(Debug)]
pub enum Event {
    /// It is built.
    Created {
        /// Milliseconds since its process began.
        ms: u64,
    },
    /// Its vCPUs run.
    Booting {
        /// Milliseconds since its process began.
        ms: u64,
    },
    /// A guest program connected to a host port (context 2); dropping the stream hangs up.
    GuestConnected {
        /// The port.
        port: u32,
        /// This side's end.
        stream: UnixStream,
    },
    /// The guest wrote this on its serial line: at most 4 KiB, any bytes.
    Console(Vec<u8>),
    /// An order has been carried out, or not.
    Answer {
        /// As [`VmmProcess::attach_disk`] and its like gave it.
        order: u64,
        /// What there is to say of it; or why not.
        result: Result<String, String>,
    },
    /// It has stopped; told once, and the last event.
    Stopped(StopReason),
}

/// A VMM process. Dropping it kills it.
#[derive(Debug)]
pub struct VmmProcess {
    child: Child,
    channel: Channel,
    stopped: bool,
    /// How many orders were given.
    orders: u64,
}

impl VmmProcess {
    /// Starts a VMM: this very binary again, under the name [`NAME`].
    ///
    /// The process dies with the **thread** that calls this, so call it from one that lives as long as the server.
    ///
    /// # Errors
    /// When the configuration cannot be, or no process is to be had. What the VMM itself cannot do comes as
    /// [`Event::Stopped`].
    pub fn spawn(config: &VmConfig, resources: Resources) -> Result<VmmProcess, SpawnError> {
        VmmProcess::spawn_binary(Path::new("/proc/self/exe"), config, resources)
    }

    /// As [`VmmProcess::spawn`] with another binary that calls [`crate::process::main`], for tests.
    ///
    /// # Errors
    /// As [`VmmProcess::spawn`].
    pub fn spawn_binary(binary: &Path, config: &VmConfig, resources: Resources) -> Result<VmmProcess, SpawnError> {
        config.validate()?;
        let Resources { kvm, origin, memory, shared_dir, vsock_listener, vhost_user, cgroup } = resources;
        if (config.memory_kind == MemoryKind::File) != memory.is_some() {
            return Err(SpawnError::Memory(io::Error::other("a file is given for memory in a file, and for no other")));
        }
        if let Some(file) = &memory {
            file.set_len(config.all_memory_bytes()).map_err(SpawnError::Memory)?;
        }
        let (channel, theirs) = Channel::pair().map_err(SpawnError::Process)?;
        let program = Program {
            binary,
            name: NAME,
            stdin: theirs,
            own_processes: rustix::process::geteuid().is_root(),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        };
        let child = Child::spawn(program).map_err(SpawnError::Process)?;
        let process = VmmProcess { child, channel, stopped: false, orders: 0 };
        let (kind, files) = match &origin {
            Origin::Kernel { kernel, user_space: None } => (OriginKind::Kernel, vec![kernel]),
            Origin::Kernel { kernel, user_space: Some(image) } => (OriginKind::KernelAndUserSpace, vec![kernel, image]),
            Origin::Snapshot { files: Snapshot { memory, state }, root_disk } => {
                (OriginKind::Snapshot, [memory, state].into_iter().chain(root_disk).collect())
            }
        };
        let start = Start { config: config.clone(), shared_dir, origin: kind };
        let mut sent = vec![kvm.as_fd(), vsock_listener.as_fd()];
        sent.extend(files.into_iter().map(AsFd::as_fd));
        sent.extend(memory.iter().map(AsFd::as_fd));
        sent.extend(vhost_user.iter().map(AsFd::as_fd));
        process.channel.send(&start, &sent, true)?;
        Ok(process)
    }

    /// Readable when [`VmmProcess::next_event`] has something.
    pub fn control_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The next event, without waiting: `None` if nothing has happened.
    ///
    /// A VMM that ends without a word has its end told as [`Event::Stopped`] with the way it died. What it logs goes to `log`.
    ///
    /// # Errors
    /// When the VMM breaks the protocol, after which it should be killed; or when it has stopped already.
    pub fn next_event(&mut self) -> Result<Option<Event>, ControlError> {
        loop {
            let event = match self.channel.receive(false)? {
                None => return Ok(None),
                Some(Received::Console(bytes)) => Event::Console(bytes),
                Some(Received::Closed) if self.stopped => {
                    return Err(ControlError::Socket(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(Received::Forbidden(forbidden)) => {
                    // It ends itself, unless somebody has taken it over.
                    self.kill();
                    Event::Stopped(StopReason::Error(forbidden.to_string()))
                }
                Some(Received::Closed) => Event::Stopped(StopReason::Error(self.unexpected_end())),
                Some(Received::Json(body, mut sent)) => match parse::<Notice>(&body)? {
                    Notice::Created(ms) => Event::Created { ms },
                    Notice::Booting(ms) => Event::Booting { ms },
                    Notice::GuestConnected(port) => match sent.pop() {
                        Some(stream) => Event::GuestConnected { port, stream: stream.into() },
                        None => return Err(ControlError::Malformed("a connection without a stream".to_owned())),
                    },
                    Notice::Answer(order, result) => Event::Answer { order, result },
                    Notice::Stopped(reason) => Event::Stopped(reason),
                    Notice::Log(level, text) => {
                        self.log(level, &text);
                        continue;
                    }
                },
            };
            self.stopped |= matches!(event, Event::Stopped(_));
            return Ok(Some(event));
        }
    }

    /// Asks for a disk of `parts`, at most [`crate::DISK_PARTS_LIMIT`], in an empty slot. The answer comes as [`Event::Answer`] with the
    /// number that this returns; the descriptors may be closed at once.
    ///
    /// # Errors
    /// When the VMM is gone, or so busy that it reads no orders.
    pub fn attach_disk(&mut self, slot: u8, parts: &[DiskPart]) -> Result<u64, ControlError> {
        let images: Vec<_> = parts.iter().map(|part| part.image.as_fd()).collect();
        let described = |part: &DiskPart| Part { start: part.start, length: part.length, read_only: part.read_only };
        self.order(What::AttachDisk(slot, parts.iter().map(described).collect()), &images)
    }

    /// Asks for the disk in a slot to end with `length` bytes of its last image, which has at least as many, and are no fewer than before.
    /// Answered like [`VmmProcess::attach_disk`], when the guest has been told.
    ///
    /// # Errors
    /// As there.
    pub fn grow_disk(&mut self, slot: u8, length: u64) -> Result<u64, ControlError> {
        self.order(What::GrowDisk(slot, length), &[])
    }

    /// Asks for a slot to be emptied, of which the guest must make no use any more. Answered like [`VmmProcess::attach_disk`].
    ///
    /// # Errors
    /// As there.
    pub fn detach_disk(&mut self, slot: u8) -> Result<u64, ControlError> {
        self.order(What::DetachDisk(slot), &[])
    }

    /// Asks for `ends` to be plugged into a network slot, in place of what is there: the queues of a tap, one for each pair of queues,
    /// or a stream socket, as the slot's configuration says. Behind a tap's queues may come as many open `/dev/vhost-net`, in which
    /// [`crate::vhost_lacks`] has found nothing lacking. Answered like [`VmmProcess::attach_disk`]; the descriptors may be closed at
    /// once.
    ///
    /// # Errors
    /// As there.
    pub fn plug_nic(&mut self, slot: u8, ends: &[OwnedFd]) -> Result<u64, ControlError> {
        let ends: Vec<_> = ends.iter().map(AsFd::as_fd).collect();
        self.order(What::PlugNic(slot), &ends)
    }

    /// Asks for a network slot to be emptied: the guest's link goes down. Answered like [`VmmProcess::attach_disk`].
    ///
    /// # Errors
    /// As there.
    pub fn pull_nic(&mut self, slot: u8) -> Result<u64, ControlError> {
        self.order(What::PullNic(slot), &[])
    }

    /// Asks for the machine to be written to `files`, both empty and open for writing. It goes on afterwards. Answered like
    /// [`VmmProcess::attach_disk`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&mut self, files: &Snapshot) -> Result<u64, ControlError> {
        self.order(What::Save, &[files.memory.as_fd(), files.state.as_fd()])
    }

    /// Asks for the guest to stand still, vCPUs and devices; nothing if it does already. Answered like [`VmmProcess::attach_disk`].
    ///
    /// # Errors
    /// As there.
    pub fn pause(&mut self) -> Result<u64, ControlError> {
        self.order(What::Pause, &[])
    }

    /// Asks for it to go on; nothing if it does. Its clocks then say what time it is: to the guest, the pause was a long moment.
    /// Answered like [`VmmProcess::attach_disk`].
    ///
    /// # Errors
    /// As there.
    pub fn resume(&mut self) -> Result<u64, ControlError> {
        self.order(What::Resume, &[])
    }

    /// Asks where vCPUs, which stand still for a moment, and devices stand. Answered like [`VmmProcess::attach_disk`], with a text for
    /// people.
    ///
    /// # Errors
    /// As there.
    pub fn describe(&mut self) -> Result<u64, ControlError> {
        self.order(What::Describe, &[])
    }

    /// Asks for the guest to have `mib` MiB of memory in all, not less than it was started with nor more than it can have; it plugs
    /// or unplugs what it can, over time. Answered like [`VmmProcess::attach_disk`], when the guest has been told.
    ///
    /// # Errors
    /// As there.
    pub fn resize_memory(&mut self, mib: u32) -> Result<u64, ControlError> {
        self.order(What::ResizeMemory(mib), &[])
    }

    /// Asks for the guest to do without `mib` MiB of its memory, in all; it gives what it can, over time, and takes it back when
    /// it has none left. (What it does not use comes back without being asked for.) Answered like [`VmmProcess::resize_memory`].
    ///
    /// # Errors
    /// As there.
    pub fn inflate_balloon(&mut self, mib: u32) -> Result<u64, ControlError> {
        self.order(What::Balloon(mib), &[])
    }

    fn order(&mut self, what: What, descriptors: &[BorrowedFd<'_>]) -> Result<u64, ControlError> {
        self.orders += 1;
        // Without waiting: a VMM that a guest has taken over must not hold the server up.
        self.channel.send(&Order { number: self.orders, what }, descriptors, false)?;
        Ok(self.orders)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process, if it still lives.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When somebody else has waited for it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// How a process ended that closed its socket without saying why. It is killed first: it could have done just that.
    fn unexpected_end(&mut self) -> String {
        self.kill();
        match self.wait() {
            Ok(status) => format!("the VMM process ended unexpectedly ({status})"),
            Err(error) => format!("the VMM process ended unexpectedly, and how is unknown: {error}"),
        }
    }

    fn log(&self, level: LogLevel, text: &str) {
        let level = match level {
            LogLevel::Error => log::Level::Error,
            LogLevel::Warn => log::Level::Warn,
            LogLevel::Info => log::Level::Info,
        };
        // A VMM that a guest has taken over may send anything; control characters stay out of the server's log.
        log::log!(level, "vmm {}: {}", self.pid(), text.escape_debug());
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        self.kill();
        let _ = self.wait();
    }
}
