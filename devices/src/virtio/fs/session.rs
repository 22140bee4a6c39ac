//! What host and guest have agreed about files: opened afresh, written down, and taken up by another device over a folder that
//! holds the same names.
//!
//! What is written down is virtiofsd's own form: inode numbers with the paths below the root that lead to them, open files with
//! their flags, and what was negotiated at the mount. A file that was removed while it was open has no path: the guest gets an
//! error from it afterwards, and from nothing else. All of it makes a file server's system calls, so it runs on a thread of that
//! role, whoever asks.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use virtiofsd::filesystem::SerializableFileSystem;
use virtiofsd::passthrough::{CachePolicy, Config, MigrationMode, MigrationOnError, PassthroughFs};
use virtiofsd::server::Server;

use super::{FsCache, FsConfig, FsError, RESERVED_DESCRIPTORS};
use crate::virtio::{Role, Threads};

/// How long something is believed that nobody else changes.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A session, which its threads and whoever writes it down share.
pub(super) type Session = Arc<Server<PassthroughFs>>;

/// A fresh session: no file open, no folder known.
pub(super) fn open(config: &FsConfig) -> Result<Session, FsError> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let guest_fd_limit =
        limit.checked_sub(RESERVED_DESCRIPTORS).filter(|&left| left > 0).ok_or(FsError::TooFewDescriptors(limit))?;
    // As virtiofsd's own --cache.
    let (cache_policy, believed) = match config.cache {
        FsCache::Never => (CachePolicy::Never, Duration::ZERO),
        FsCache::Auto => (CachePolicy::Auto, Duration::from_secs(1)),
        FsCache::Metadata => (CachePolicy::Metadata, DAY),
        FsCache::Always => (CachePolicy::Always, DAY),
    };
    let passthrough = config.proc_self_fd.try_clone().and_then(|proc_self_fd| {
        PassthroughFs::new(Config {
            entry_timeout: believed,
            attr_timeout: believed,
            cache_policy,
            root_dir: config.root.clone(),
            // A file's capabilities are an extended attribute; where the file system has none, each call says so itself.
            xattr: true,
            // Without it the guest asks for a file's capabilities before each write.
            killpriv_v2: true,
            announce_submounts: true,
            proc_sfd_rawfd: Some(proc_self_fd),
            guest_fd_limit,
            // Not by handles, with which files outside the folder could be opened.
            migration_mode: MigrationMode::FindPaths,
            // One file that is gone is no reason to lose all others.
            migration_on_error: MigrationOnError::GuestError,
            ..Config::default()
        })
    });
    let failed = |source| FsError::Server { root: config.root.clone(), source };
    passthrough.map(Server::new).map(Arc::new).map_err(failed)
}

/// Writes `session` down, which nobody serves meanwhile.
pub(super) fn save(session: &Session, threads: &dyn Threads) -> io::Result<Vec<u8>> {
    let session = Arc::clone(session);
    on_thread(threads, "virtio-fs-save", move || {
        session.prepare_serialization(Arc::new(AtomicBool::new(false)));
        let mut file = scratch()?;
        session.serialize(file.try_clone()?)?;
        file.rewind()?;
        let mut saved = Vec::new();
        file.read_to_end(&mut saved)?;
        Ok(saved)
    })
}

/// Has `session`, which nobody serves yet, be what was `saved`.
pub(super) fn restore(session: &Session, saved: &[u8], threads: &dyn Threads) -> io::Result<()> {
    let (session, saved) = (Arc::clone(session), saved.to_vec());
    on_thread(threads, "virtio-fs-load", move || {
        let mut file = scratch()?;
        file.write_all(&saved)?;
        file.rewind()?;
        session.deserialize_and_apply(file)
    })
}

/// A file in memory: the library takes and gives nothing else.
fn scratch() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("session", MemfdFlags::CLOEXEC)?))
}

/// Does `work` where a file server's calls may be made, and waits for it.
fn on_thread<T: Send + 'static>(
    threads: &dyn Threads,
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = mpsc::channel();
    let body = move || {
        // Whoever asked waits for it.
        let _ = tell.send(work());
    };
    let thread = threads.spawn(name, Role::Files, Box::new(body))?;
    let result = told.recv();
    let _ = thread.join();
    result.map_err(|_| io::Error::other("the thread that does it has panicked"))?
}
