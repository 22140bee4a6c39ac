//! The conversation with the process that serves a device's queues: a question, an answer, and a bound on how long that may take.
//!
//! The `vhost` crate knows how a message looks; it waits for an answer as long as the other side keeps it waiting. So a thread
//! of its own watches the clock and hangs up. Nothing that went wrong once is tried again: whoever broke off, was silent or
//! answered nonsense is gone for good.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::VhostBackend as _;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};

use super::super::{FsError, Role, Threads};

/// How long one conversation may take, whatever is said in it.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 400 } else { 5000 });
/// The bit by which a back end says that it knows protocol features; a driver never sees it.
pub(super) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// What of the protocol is used here, where the back end knows it.
const WANTED: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::MQ.union(VhostUserProtocolFeatures::REPLY_ACK).union(VhostUserProtocolFeatures::CONFIG);

/// Why a device has no back end, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// It does not answer in time.
    #[error("the vhost-user back end did not answer within {PATIENCE:?}")]
    Silent,
    /// It is gone, or what it says is not the protocol.
    #[error("the vhost-user back end failed: {0}")]
    Broken(#[source] vhost::Error),
    /// It ended the connection.
    #[error("the vhost-user back end is gone")]
    Gone,
    /// It speaks without having been asked, which on this connection it never may.
    #[error("the vhost-user back end speaks without having been asked")]
    Unasked,
    /// Something that the device cannot be without.
    #[error("the vhost-user back end does not know {0}, without which it cannot be used")]
    Lacks(&'static str),
    /// A guest would be trusted to leave the disk as it is.
    #[error("the vhost-user back end lets the guest write: have it export the disk read-only, or give it without `:r`")]
    Writable,
    /// How far it says it has come in a queue, it cannot have.
    #[error("the vhost-user back end says that it is at {base} of queue {queue}, where that cannot be")]
    Position {
        /// Queue index.
        queue: usize,
        /// What it says.
        base: u32,
    },
    /// The name by which the guest is to mount it.
    #[error(transparent)]
    Tag(#[from] FsError),
    /// Memory that no other process can map.
    #[error("guest memory is not in files that another process could map")]
    PrivateMemory,
    /// No thread, or no descriptor.
    #[error("cannot speak with the vhost-user back end: {0}")]
    Resource(#[from] io::Error),
}

impl From<BackendError> for io::Error {
    fn from(error: BackendError) -> io::Error {
        io::Error::other(error)
    }
}

/// A back end. Clones are the same one.
#[derive(Clone)]
pub(super) struct Backend {
    frontend: Frontend,
    watch: Arc<Watch>,
    given_up: Arc<AtomicBool>,
    features: u64,
    protocol: VhostUserProtocolFeatures,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("features", &self.features).finish_non_exhaustive()
    }
}

impl Backend {
    /// Introduces itself to whoever is on the other side of `socket`, and finds out what that knows. At most `queues` will be used.
    ///
    /// # Errors
    /// When it does not answer as it should, or no thread is to be had.
    pub(super) fn new(socket: UnixStream, queues: u16, threads: &dyn Threads) -> Result<Self, BackendError> {
        let watch = Arc::new(Watch::start(socket.try_clone()?, threads)?);
        let frontend = Frontend::from_stream(socket, queues.into());
        let (given_up, protocol) = (Arc::default(), VhostUserProtocolFeatures::empty());
        let mut new = Backend { frontend, watch, given_up, features: 0, protocol };
        (new.features, new.protocol) = new.talk(|frontend| {
            frontend.set_owner()?;
            let features = frontend.get_features()?;
            if features & PROTOCOL_FEATURES == 0 {
                return Ok((features, VhostUserProtocolFeatures::empty()));
            }
            let protocol = frontend.get_protocol_features()? & WANTED;
            frontend.set_protocol_features(protocol)?;
            if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
            Ok((features, protocol))
        })?;
        Ok(new)
    }

    /// The feature bits that it offers, the one of its own protocol among them.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// How many queues it can serve, at least one.
    ///
    /// # Errors
    /// As [`Backend::talk`].
    pub(super) fn queues(&self) -> Result<u16, BackendError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            return Ok(1);
        }
        match self.talk(|frontend| frontend.get_queue_num())? {
            0 => Err(BackendError::Lacks("a single queue")),
            most => Ok(most.try_into().unwrap_or(u16::MAX)),
        }
    }

    /// The first bytes of its configuration space.
    ///
    /// # Errors
    /// As [`Backend::talk`]; [`BackendError::Lacks`] when it has none.
    pub(super) fn config<const N: usize>(&self) -> Result<[u8; N], BackendError> {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Err(BackendError::Lacks("how to tell its configuration (VHOST_USER_PROTOCOL_F_CONFIG)"));
        }
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self.talk(|frontend| frontend.get_config(0, N as u32, flags, &[0; N]))?;
        // The crate holds it to the length that was asked for.
        bytes.try_into().map_err(|_| BackendError::Lacks("its own configuration"))
    }

    /// Has one conversation. One that is not over in time, or fails, is the last.
    ///
    /// # Errors
    /// [`BackendError::Silent`], [`BackendError::Broken`].
    pub(super) fn talk<T>(&self, say: impl FnOnce(&mut Frontend) -> vhost::Result<T>) -> Result<T, BackendError> {
        self.watch.begin();
        let said = say(&mut self.frontend.clone());
        let in_time = self.watch.end();
        said.map_err(|error| {
            self.watch.hang_up();
            if in_time { BackendError::Broken(error) } else { BackendError::Silent }
        })
    }

    /// Says goodbye to it, once for all, and into the log why: whatever is asked later fails at once.
    pub(super) fn give_up(&self, why: &BackendError) {
        self.watch.hang_up();
        if !self.given_up.swap(true, Ordering::Relaxed) {
            log::error!("{why}: every request to its device fails from now on");
        }
    }
}

impl AsRawFd for Backend {
    /// The socket, on which nothing ever comes unless a conversation is going on.
    fn as_raw_fd(&self) -> RawFd {
        self.watch.socket.as_raw_fd()
    }
}

/// Hangs up when a conversation takes too long.
struct Watch {
    socket: UnixStream,
    clock: Arc<Clock>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Clock {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Quiet,
    /// A conversation is to end before.
    Until(Instant),
    /// One took too long.
    Passed,
    /// There will be no more.
    Over,
}

impl Watch {
    fn start(socket: UnixStream, threads: &dyn Threads) -> io::Result<Self> {
        let clock = Arc::new(Clock::default());
        let (hand, line) = (Arc::clone(&clock), socket.try_clone()?);
        let thread = threads.spawn("vhost-user-time", Role::Vhost, Box::new(move || hand.run(&line)))?;
        Ok(Watch { socket, clock, thread: Some(thread) })
    }

    fn begin(&self) {
        self.clock.set(State::Until(Instant::now() + PATIENCE));
    }

    /// Whether it is in time.
    fn end(&self) -> bool {
        self.clock.set(State::Quiet) != State::Passed
    }

    fn hang_up(&self) {
        // Fails only if the other side has done so before.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.clock.set(State::Over);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Clock {
    fn run(&self, socket: &UnixStream) {
        let mut state = self.lock();
        loop {
            state = match *state {
                State::Over => return,
                State::Quiet | State::Passed => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                State::Until(end) => match end.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => {
                        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                    _ => {
                        *state = State::Passed;
                        let _ = socket.shutdown(Shutdown::Both);
                        state
                    }
                },
            };
        }
    }

    fn set(&self, new: State) -> State {
        let old = std::mem::replace(&mut *self.lock(), new);
        self.changed.notify_one();
        old
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
