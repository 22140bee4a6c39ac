//! The threads of the VMM: every one is started here, with its name, and confined by its role before it does anything.
//!
//! In a confined process one thread starts all others, because a thread inherits the filter of the one that starts it, and a
//! device's is asked for by a vCPU's (see [`crate::seccomp`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, JoinHandle};

use tatami_devices::virtio::{Role, Threads};

use crate::seccomp::{self, Facts, SeccompError, Who, report};

type Body = Box<dyn FnOnce() + Send>;

/// Starts threads for devices and vCPUs. By default they are not confined, which is for debugging and for tests.
#[derive(Clone, Debug, Default)]
pub struct VmmThreads {
    /// The thread that starts confined ones.
    spawner: Option<Sender<Request>>,
}

struct Request {
    name: String,
    role: Role,
    body: Body,
    answer: Sender<io::Result<JoinHandle<()>>>,
}

impl VmmThreads {
    /// From here on, threads are confined, and tell of forbidden calls over `control`, a socket that is never closed.
    ///
    /// # Errors
    /// When the kernel takes no filters, or there is no thread to be had.
    pub(crate) fn confined(control: BorrowedFd<'_>) -> Result<VmmThreads, ConfineError> {
        report::install(control.as_raw_fd())?;
        let facts = Facts::new(control.as_raw_fd());
        let (spawner, requests) = mpsc::channel();
        let (ready, confined) = mpsc::channel();
        Builder::new().name("spawner".to_owned()).spawn(move || {
            report::name_thread("spawner");
            let outcome = seccomp::confine(Who::Spawner, facts);
            let is_confined = outcome.is_ok();
            // Whoever asked waits for it.
            let _ = ready.send(outcome);
            if is_confined {
                serve(&requests, facts);
            }
        })?;
        // It answers unless it panics.
        confined.recv().map_err(io::Error::other)??;
        Ok(VmmThreads { spawner: Some(spawner) })
    }
}

/// Why threads cannot be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    #[error(transparent)]
    Filter(#[from] SeccompError),
    #[error("cannot confine the VMM's threads: {0}")]
    System(#[from] io::Error),
}

impl Threads for VmmThreads {
    /// Starts a thread called `name` (at most 15 bytes, which is what the kernel keeps) that does `role`.
    fn spawn(&self, name: &str, role: Role, body: Body) -> io::Result<JoinHandle<()>> {
        debug_assert!(name.len() <= 15, "{name} is too long for a thread's name");
        log::debug!("thread {name} starts as {role:?}");
        let Some(spawner) = &self.spawner else { return start(name.to_owned(), role, None, body) };
        let (answer, answered) = mpsc::channel();
        let request = Request { name: name.to_owned(), role, body, answer };
        spawner.send(request).map_err(|_| io::Error::other("the thread that starts threads is gone"))?;
        answered.recv().map_err(io::Error::other)?
    }
}

/// Starts what is asked for until nobody can ask any more.
fn serve(requests: &Receiver<Request>, facts: Facts) {
    while let Ok(Request { name, role, body, answer }) = requests.recv() {
        // Whoever asked waits for it.
        let _ = answer.send(start(name, role, Some(facts), body));
    }
}

fn start(name: String, role: Role, confine: Option<Facts>, body: Body) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.clone()).spawn(move || {
        if role == Role::Files {
            // The file server changes its working directory and umask for single calls; nobody else may see that.
            // It cannot fail: it takes no privilege, only memory for one small structure.
            if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS) {
                log::error!("the file server shares its working directory with other threads: {errno}");
            }
        }
        if let Some(facts) = confine {
            report::name_thread(&name);
            if let Err(error) = seccomp::confine(Who::Thread(role), facts) {
                log::error!("thread {name}: {error}");
                // Better no machine than one that is not confined.
                std::process::exit(1);
            }
        }
        body();
    })
}
