//! The thread that watches volumes: marks their folders, reads what happens to them, and hands it on in batches.
//!
//! fanotify(7), because it says who did it: what the guest does itself goes through the VMM, and the guest's kernel has told of
//! it already. Inotify marks, not a mount's or a file system's, which would not tell of names or tell of everything. Who can
//! write below a volume cannot lead out of it: no link is followed and no mount crossed. Knows nothing of the agent.

#![allow(unsafe_code, reason = "name_to_handle_at has no safe wrapper")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tatami_protocol::agent::Change;
use tokio::sync::mpsc::Sender;

use super::record::{Event, Events};
use super::tree::{NodeId, Tree, Volume, VolumeId};

/// Folders of one volume that are watched, at most: each keeps an inode in the host's memory.
const MAX_FOLDERS: usize = 4096;
/// Folders that are marked before the thread looks again for what has happened.
const SLICE: usize = 32;
/// Bytes read at a time: some two hundred events.
const BUFFER: usize = 16 << 10;
/// How long the guest's own changes are left to collect.
const PAUSE: Duration = Duration::from_millis(2);
/// Of folders and what is in them.
const FOLDER_EVENTS: u64 = FILE_EVENTS
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_RENAME
    | libc::FAN_DELETE_SELF
    | libc::FAN_EVENT_ON_CHILD
    | libc::FAN_ONDIR;
/// Of a file.
const FILE_EVENTS: u64 = libc::FAN_MODIFY | libc::FAN_ATTRIB | libc::FAN_CLOSE_WRITE | libc::FAN_MOVE_SELF;

/// What the thread is asked.
pub(super) enum Order {
    /// Watch the volumes of a container: its id, its place in the shared folder, and where they are in that folder.
    Watch { container: String, place: String, volumes: Vec<String> },
    /// Forget those of the container at this place.
    Forget(String),
}

/// The thread's own.
pub(super) struct Watcher {
    group: Fanotify,
    /// The folder in which the volumes are.
    shared: PathBuf,
    /// Whose doings are the guest's.
    vmm: i32,
    tree: Tree,
    /// Folders whose content has not been looked at.
    unseen: VecDeque<NodeId>,
    overflowed: bool,
}

impl Watcher {
    /// One that watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no such thing to give: EMFILE when this user has as many as fs.fanotify.max_user_groups allows.
    pub(super) fn new(shared: &Path, vmm: u32) -> io::Result<Watcher> {
        let flags = libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_CLASS_NOTIF
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_REPORT_DFID_NAME_TARGET;
        let group = Fanotify::init(InitFlags::from_bits_retain(flags), EventFFlags::O_RDONLY)?;
        let (shared, vmm) = (shared.to_owned(), vmm.cast_signed());
        Ok(Watcher { group, shared, vmm, tree: Tree::default(), unseen: VecDeque::new(), overflowed: false })
    }

    /// Watches until nobody is there any more to give orders or to take changes. `wake` is readable when there are orders.
    pub(super) fn run(mut self, orders: &Receiver<Order>, wake: &OwnedFd, changes: &Sender<Vec<Change>>) {
        let mut buffer = vec![0; BUFFER];
        loop {
            // What costs the host time shall not cost it others' time.
            let idle = self.unseen.is_empty();
            let _ = rustix::process::setpriority_process(None, if idle { 0 } else { 19 });
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut ready =
                [PollFd::new(&self.group, PollFlags::IN), PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)];
            match rustix::event::poll(&mut ready, if idle { None } else { Some(&now) }) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return log::warn!("changes on the host are not told any more: {errno}"),
            }
            let happened = ready[0].revents().contains(PollFlags::IN);
            if !ready[1].revents().is_empty() {
                let _ = rustix::io::read(wake, &mut [0_u8; 8]);
                loop {
                    match orders.try_recv() {
                        Ok(Order::Watch { container, place, volumes }) => self.watch(&container, &place, volumes),
                        Ok(Order::Forget(place)) => self.forget(&place),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return,
                    }
                }
            }
            if happened {
                let batch = match rustix::io::read(&self.group, &mut buffer) {
                    Ok(length) => self.take(&buffer[..length]),
                    Err(Errno::AGAIN | Errno::INTR) => continue,
                    Err(errno) => return log::warn!("changes on the host are not told any more: {errno}"),
                };
                if batch.is_empty() {
                    // Only the guest's own: of what it goes on to write, the kernel makes one event instead of many.
                    std::thread::sleep(PAUSE);
                } else if changes.blocking_send(batch).is_err() {
                    // It waited for the one before: meanwhile the kernel collects, and forgets when it is too much.
                    return;
                }
            }
            for _ in 0..SLICE {
                let Some(node) = self.unseen.pop_front() else { break };
                self.look_into(node);
            }
        }
    }

    /// What the events in `read` mean to the guest.
    fn take(&mut self, read: &[u8]) -> Vec<Change> {
        let mut batch = Vec::new();
        for event in Events::new(read) {
            if event.mask & libc::FAN_Q_OVERFLOW != 0 {
                if !std::mem::replace(&mut self.overflowed, true) {
                    log::warn!(
                        "more changes on the host than could be told to watchers in the guest: some are left out"
                    );
                }
                continue;
            }
            // Before the guest hears of a folder: what happens in it from then on must not be missed.
            self.follow(&event);
            if event.pid != self.vmm {
                let shared = &self.shared;
                batch.extend(self.tree.tell(&event, |volume, path| is_there(shared, volume, path)));
            }
        }
        batch
    }

    fn follow(&mut self, event: &Event<'_>) {
        for (folder, name) in self.tree.follow(event) {
            self.enter(folder, name);
        }
    }

    /// Watches the volumes of a container, first themselves.
    fn watch(&mut self, container: &str, place: &str, volumes: Vec<String>) {
        for (number, name) in (0..).zip(volumes) {
            let path = self.shared.join(&name);
            let Ok(status) = rustix::fs::lstat(&path) else { continue };
            let volume = self.tree.add_volume(Volume::new(container, place, number, name));
            let watched = match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory => {
                    open(&path, b"", OFlags::RDONLY).and_then(|fd| self.mark_folder(volume, None, &fd))
                }
                _ => self.mark_file(volume, &path),
            };
            if let Err(errno) = watched {
                log::info!(
                    "changes of volume {number} of {container} on the host are not told to its watchers: {errno}"
                );
            }
        }
    }

    /// Forgets a container's volumes. What is marked stays so while there are others: they may be the same folders, as those of a
    /// container that was started again are.
    fn forget(&mut self, place: &str) {
        self.tree.forget(place);
        if self.tree.is_empty() {
            self.unseen.clear();
            let flushed = self.group.mark(MarkFlags::FAN_MARK_FLUSH, MaskFlags::empty(), CWD, None::<&Path>);
            flushed.unwrap_or_else(|errno| log::debug!("folders stay watched for nothing: {errno}"));
        }
    }

    /// Watches the folder `name` in a watched one.
    fn enter(&mut self, folder: NodeId, name: &[u8]) {
        let Some((path, id)) = self.locate(folder) else { return };
        let below = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
        let Some(volume) = self.tree.volume(id) else { return };
        if volume.folders >= MAX_FOLDERS {
            return;
        }
        // One that is gone again, another file system's, or no folder any more: nothing to watch.
        if let Ok(fd) = open(&root(&self.shared, volume), &below, OFlags::RDONLY) {
            let marked = self.mark_folder(id, Some((folder, name)), &fd);
            marked.unwrap_or_else(|errno| log::debug!("a folder of a volume is not watched: {errno}"));
        }
    }

    /// Watches the folders in a watched one.
    fn look_into(&mut self, node: NodeId) {
        let Some((path, id)) = self.locate(node) else { return };
        let Some(volume) = self.tree.volume(id) else { return };
        let Ok(fd) = open(&root(&self.shared, volume), &path, OFlags::RDONLY) else { return };
        let Ok(entries) = Dir::read_from(&fd) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || !is_folder(&fd, &entry) {
                continue;
            }
            if self.tree.volume(id).is_none_or(|volume| volume.folders >= MAX_FOLDERS) {
                return;
            }
            self.enter(node, name);
        }
    }

    fn locate(&self, node: NodeId) -> Option<(Vec<u8>, VolumeId)> {
        Some((self.tree.path(node)?, self.tree.volume_of(node)?))
    }

    fn mark_folder(&mut self, id: VolumeId, within: Option<(NodeId, &[u8])>, fd: &OwnedFd) -> Result<(), Errno> {
        self.mark(FOLDER_EVENTS, fd, None)?;
        let handle = handle_of(fd)?;
        if let Some(node) = self.tree.add(id, within, &handle) {
            self.unseen.push_back(node);
        }
        let Some(volume) = self.tree.volume(id) else { return Ok(()) };
        volume.folders += 1;
        if volume.folders == MAX_FOLDERS {
            log::warn!(
                "volume {} of {} has more than {MAX_FOLDERS} folders: changes on the host in further ones are not told to watchers",
                volume.number,
                volume.container
            );
        }
        Ok(())
    }

    fn mark_file(&mut self, volume: VolumeId, path: &Path) -> Result<(), Errno> {
        self.mark(FILE_EVENTS, CWD, Some(path))?;
        // Not opened to be read: it may be a fifo or a device.
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        self.tree.add(volume, None, &handle_of(&fd)?);
        Ok(())
    }

    fn mark(&self, events: u64, at: impl AsFd, path: Option<&Path>) -> Result<(), Errno> {
        let mut flags = MarkFlags::FAN_MARK_ADD;
        if path.is_some() {
            flags |= MarkFlags::FAN_MARK_DONT_FOLLOW;
        }
        let marked = self.group.mark(flags, MaskFlags::from_bits_retain(events), at, path);
        marked.map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }
}

/// Where a volume is.
fn root(shared: &Path, volume: &Volume) -> PathBuf {
    shared.join(&volume.name)
}

/// Opens the folder `path` below `root` without following a link or crossing a mount.
fn open(root: &Path, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags | OFlags::NOFOLLOW, Mode::empty())?;
    if path.is_empty() {
        return Ok(top);
    }
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(&top, path, flags, Mode::empty(), resolve)
}

/// Whether `path` below a volume is there now.
fn is_there(shared: &Path, volume: &Volume, path: &[u8]) -> bool {
    let at = path.iter().rposition(|&byte| byte == b'/');
    let (folder, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
    open(&root(shared, volume), folder, OFlags::PATH)
        .is_ok_and(|folder| rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok())
}

fn is_folder(within: &OwnedFd, entry: &rustix::fs::DirEntry) -> bool {
    match entry.file_type() {
        FileType::Directory => true,
        FileType::Unknown => rustix::fs::statat(within, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory),
        _ => false,
    }
}

/// What events call the file by: its file system's id and its handle, one after the other as in a record.
fn handle_of(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    /// `struct file_handle` with room for the largest handle.
    #[repr(C)]
    struct FileHandle {
        bytes: u32,
        kind: i32,
        handle: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    let fsid = rustix::fs::fstatvfs(fd)?.f_fsid;
    // Kernels before 6.5 know no handles that are only to be compared, and make others where the file system has them.
    for flags in [libc::AT_EMPTY_PATH | libc::AT_HANDLE_FID, libc::AT_EMPTY_PATH] {
        let mut handle =
            FileHandle { bytes: libc::MAX_HANDLE_SZ as u32, kind: 0, handle: [0; libc::MAX_HANDLE_SZ as usize] };
        let mut mount = 0;
        // SAFETY: the path is a C string, the structure has room for as many bytes as it says, and the mount's id is an integer.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut handle,
                &raw mut mount as *mut libc::c_int,
                flags,
            )
        };
        if result == 0 {
            let mut whole = Vec::new();
            [fsid as u32, (fsid >> 32) as u32].iter().for_each(|part| whole.extend(part.to_ne_bytes()));
            whole.extend(handle.bytes.to_ne_bytes());
            whole.extend(handle.kind.to_ne_bytes());
            whole.extend(&handle.handle[..(handle.bytes as usize).min(handle.handle.len())]);
            return Ok(whole);
        }
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::OPNOTSUPP))
}
