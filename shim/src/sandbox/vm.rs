//! The VMM process as the sandbox sees it: how far it has come, what its guest printed, and why it ended.
//!
//! One task reads the process's events and keeps the rest of the server informed. It parses nothing that a guest wrote:
//! console bytes are kept as they are. Knows nothing of the agent beyond the port it announces itself on.

#![allow(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tatami_protocol::READY_PORT;
use tatami_vmm::boot::Origin;
use tatami_vmm::snapshot::Snapshot;
use tatami_vmm::{ControlError, DiskPart, Event, Resources, SpawnError, StopReason, VmConfig, VmmProcess};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::console::ConsoleRing;

/// How many of the guest's last lines a message shows: on ppc64le, 28 tell of a panic.
const LINES: usize = 32;
/// How long, once a call to the guest has failed, the VMM has to say that it is the guest that ended.
const VERDICT: Duration = Duration::from_millis(500);
/// How long the VMM has to say where its machine stands.
const DESCRIPTION: Duration = Duration::from_secs(20);

/// How far the VM has come, and when.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The VM exists.
    pub created: Option<Instant>,
    /// Its first vCPU runs.
    pub booting: Option<Instant>,
    /// The agent said that it listens.
    pub ready: Option<Instant>,
    /// It is over, and why.
    pub stopped: Option<StopReason>,
}

/// Why there is no VM, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The process could not be started.
    #[error("cannot start the VMM: {0}")]
    Spawn(#[from] SpawnError),
    /// The server cannot watch it.
    #[error("cannot watch the VMM: {0}")]
    Watch(#[from] io::Error),
    /// It does not carry an order out.
    #[error("the VMM refuses: {0}")]
    Refused(String),
    /// It ended, unasked.
    #[error("{reason}{console}")]
    Stopped {
        /// What ended it.
        reason: String,
        /// The guest's last lines.
        console: ConsoleTail,
    },
    /// The guest did not get as far as it should in time.
    #[error("{phase} within {} s{console}", limit.as_secs())]
    Timeout {
        /// What did not happen.
        phase: &'static str,
        /// How long it was waited for.
        limit: Duration,
        /// The guest's last lines.
        console: ConsoleTail,
    },
}

/// How Linux panics when a disk is not what its root hash says; and what that is to whoever has the disk.
const VERITY_PANIC: &str = "dm-verity device corrupted";
const NOT_AS_BUILT: &str =
    "the disk of its root does not match its root hash: the image has been damaged or changed since it was built";

/// The last lines that a guest printed, as they end a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleTail(Vec<String>);

impl ConsoleTail {
    /// What the guest's kernel said when it panicked, if it did.
    fn panic(&self) -> Option<&str> {
        let said = self.0.iter().find_map(|line| line.split_once("Kernel panic - not syncing: "));
        said.map(|(_, reason)| if reason.starts_with(VERITY_PANIC) { NOT_AS_BUILT } else { reason })
    }
}

impl std::fmt::Display for ConsoleTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str("; the guest's last lines:")?;
        self.0.iter().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}

/// A view of the VM that any part of the server can hold. Cloning is cheap.
#[derive(Clone)]
pub struct VmWatch {
    progress: watch::Receiver<Progress>,
    console: Arc<Mutex<ConsoleRing>>,
    orders: mpsc::UnboundedSender<Order>,
    pid: u32,
}

/// What the VMM is to do while it runs, and who wants to know.
struct Order {
    what: VmOrder,
    answer: oneshot::Sender<Result<String, String>>,
}

/// What the VMM is asked while its guest runs.
#[derive(Debug)]
pub(super) enum VmOrder {
    /// Put a disk of these parts into this slot.
    Attach(u8, Vec<DiskPart>),
    /// Have the disk in this slot end with so many bytes of its last image.
    Grow(u8, u64),
    /// Empty this slot.
    Detach(u8),
    /// Plug these, as [`VmmProcess::plug_nic`] has them, into this network slot.
    Plug(u8, Vec<OwnedFd>),
    /// Let it have so many MiB of memory in all.
    ResizeMemory(u32),
    /// Have it do without so many MiB of its memory.
    Balloon(u32),
    /// Write the machine to these files, and let it go on unless it was paused.
    Save(Snapshot),
    /// Have it stand still.
    Pause,
    /// Let it go on.
    Resume,
    /// Say where everything in the machine stands.
    Describe,
}

/// The VM. Dropping it inside a runtime ends it soon; [`Vm::end`] says when.
pub struct Vm {
    watch: VmWatch,
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Vm {
    /// Starts the VMM process, which boots at once. With `live`, the guest's serial output goes to standard error.
    ///
    /// # Errors
    /// [`VmError::Spawn`] when there is no process to be had.
    pub fn start(config: &VmConfig, resources: Resources, live: bool) -> Result<Vm, VmError> {
        let restored = matches!(resources.origin, Origin::Snapshot { .. });
        let process = VmmProcess::spawn(config, resources)?;
        let control = process.control_fd().try_clone_to_owned()?;
        // SAFETY: an owned descriptor stays open until the registration is dropped with it.
        let control =
            unsafe { AsyncFd::register_with_interest(control, Interest::READABLE) }.map_err(io::Error::from)?;
        let pid = process.pid();
        let console = Arc::new(Mutex::new(ConsoleRing::default()));
        let (sender, progress) = watch::channel(Progress::default());
        let (end, ended) = oneshot::channel();
        let (orders, given) = mpsc::unbounded_channel();
        let observer = Observer {
            process,
            progress: sender,
            console: console.clone(),
            live,
            restored,
            unanswered: HashMap::new(),
        };
        let task = tokio::spawn(observer.watch_until(control, given, ended));
        Ok(Vm { watch: VmWatch { progress, console, orders, pid }, end: Some(end), task })
    }

    /// The view to hand out.
    pub fn watch(&self) -> &VmWatch {
        &self.watch
    }

    /// Ends the process, whatever it does, and returns when it is gone.
    pub async fn end(mut self) {
        drop(self.end.take());
        if let Err(error) = (&mut self.task).await {
            log::warn!("the task that watches the VMM: {error}");
        }
    }
}

impl VmWatch {
    /// The VMM's process id, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Plugs the queues of a tap, with vhost-net or without, or a stream socket into one of the VM's network slots: the guest sees its
    /// link come up.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn plug(&self, slot: u8, ends: Vec<OwnedFd>) -> Result<(), VmError> {
        self.order(VmOrder::Plug(slot, ends)).await
    }

    /// Lets the guest have `mib` MiB of memory in all, of those that its machine was made for; it takes them, or gives them back, over
    /// time.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn resize_memory(&self, mib: u32) -> Result<(), VmError> {
        self.order(VmOrder::ResizeMemory(mib)).await
    }

    /// Has the guest do without `mib` MiB of its memory in all, which are the host's meanwhile; it gives what it can, over time, and takes
    /// it back when it has none left.
    ///
    /// # Errors
    /// [`VmError`].
    pub async fn inflate_balloon(&self, mib: u32) -> Result<(), VmError> {
        self.order(VmOrder::Balloon(mib)).await
    }

    /// Where vCPUs and devices stand; a text for people, within [`DESCRIPTION`]. What any of them had missed, they look for again.
    pub async fn describe(&self) -> String {
        if self.orders.is_closed() {
            return "nowhere, its VMM is gone".to_owned();
        }
        match tokio::time::timeout(DESCRIPTION, self.ask(VmOrder::Describe)).await {
            // A VMM that a guest has taken over may say anything.
            Ok(Ok(text)) => text.escape_debug().to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("its VMM did not say within {} s", DESCRIPTION.as_secs()),
        }
    }

    /// Returns when the agent listens.
    ///
    /// # Errors
    /// [`VmError::Stopped`] when the VM ends before, [`VmError::Timeout`] when `limit` passes before.
    pub async fn ready(&self, limit: Duration) -> Result<(), VmError> {
        let mut progress = self.progress.clone();
        let wait = progress.wait_for(|progress| progress.ready.is_some() || progress.stopped.is_some());
        match tokio::time::timeout(limit, wait).await {
            Ok(Ok(progress)) if progress.stopped.is_none() => Ok(()),
            Ok(_) => Err(self.stopped()),
            Err(_) => {
                let whereabouts = self.describe().await;
                log::warn!("the agent has not announced itself; the guest stands: {whereabouts}");
                Err(VmError::Timeout { phase: self.progress().missing(), limit, console: self.tail() })
            }
        }
    }

    /// Returns what `work` returns, unless the VM ends first.
    ///
    /// # Errors
    /// [`VmError::Stopped`].
    pub async fn while_alive<T>(&self, work: impl Future<Output = T>) -> Result<T, VmError> {
        tokio::select! {
            biased;
            result = work => Ok(result),
            () = self.over() => Err(self.stopped()),
        }
    }

    /// Has the VMM carry out an order.
    ///
    /// # Errors
    /// [`VmError::Stopped`] when it ends before, [`VmError::Refused`] with its reason.
    pub(super) async fn order(&self, what: VmOrder) -> Result<(), VmError> {
        self.ask(what).await.map(drop)
    }

    /// The same, for what there is to say of it.
    async fn ask(&self, what: VmOrder) -> Result<String, VmError> {
        let (answer, answered) = oneshot::channel();
        // Neither fails unless the task is gone, which is at the VM's end.
        let _ = self.orders.send(Order { what, answer });
        match self.while_alive(answered).await? {
            Ok(result) => result.map_err(VmError::Refused),
            Err(_) => {
                self.over().await;
                Err(self.stopped())
            }
        }
    }

    /// After a call to the guest has failed: why the VM ended, if that is the reason.
    pub async fn verdict(&self) -> Option<VmError> {
        tokio::time::timeout(VERDICT, self.over()).await.ok().map(|()| self.stopped())
    }

    /// Returns when the VM has ended.
    pub async fn over(&self) {
        // An error means that the task is gone, and the process with it.
        let _ = self.progress.clone().wait_for(|progress| progress.stopped.is_some()).await;
    }

    /// The guest's last lines.
    pub fn tail(&self) -> ConsoleTail {
        ConsoleTail(self.console.lock().unwrap_or_else(PoisonError::into_inner).tail(LINES))
    }

    fn stopped(&self) -> VmError {
        let console = self.tail();
        let reason = match self.progress().stopped {
            Some(StopReason::GuestReset) => match console.panic() {
                Some(text) => format!("the guest's kernel panicked: {text}"),
                None => "the guest reset itself unexpectedly".to_owned(),
            },
            Some(StopReason::NoMemory(text) | StopReason::Error(text)) => text,
            None => "the VM was ended".to_owned(),
        };
        VmError::Stopped { reason, console }
    }
}

impl Progress {
    /// The first step that is not done, as a message says it.
    fn missing(&self) -> &'static str {
        match (self.created, self.booting) {
            (None, _) => "the VMM did not create the VM",
            (_, None) => "the VMM did not start the guest",
            _ => "the guest kernel started, but the agent did not announce itself",
        }
    }
}

/// The task's own: the process, and where to tell what it says.
struct Observer {
    process: VmmProcess,
    progress: watch::Sender<Progress>,
    console: Arc<Mutex<ConsoleRing>>,
    live: bool,
    /// The guest goes on from where its agent listened already.
    restored: bool,
    /// Who waits for which order's answer.
    unanswered: HashMap<u64, oneshot::Sender<Result<String, String>>>,
}

impl Observer {
    async fn watch_until(
        mut self,
        control: AsyncFd<OwnedFd>,
        orders: mpsc::UnboundedReceiver<Order>,
        end: oneshot::Receiver<()>,
    ) {
        let reason = tokio::select! {
            reason = self.follow(control, orders) => reason,
            _ = end => StopReason::Error("the VM was ended".to_owned()),
        };
        self.process.kill();
        let status = self.process.wait();
        log::debug!("the VMM process ended: {status:?}");
        self.progress.send_modify(|progress| {
            progress.stopped.get_or_insert(reason);
        });
    }

    /// Reads events, and passes orders on, until there are no more events; returns why.
    async fn follow(&mut self, control: AsyncFd<OwnedFd>, mut orders: mpsc::UnboundedReceiver<Order>) -> StopReason {
        loop {
            let ready = tokio::select! {
                ready = control.readable() => ready,
                Some(order) = orders.recv() => {
                    self.give(order);
                    continue;
                }
            };
            let mut guard = match ready {
                Ok(guard) => guard,
                Err(error) => return StopReason::Error(format!("the VMM cannot be watched any more: {error}")),
            };
            loop {
                match self.process.next_event() {
                    Ok(Some(event)) => {
                        if let Some(reason) = self.take(event) {
                            return reason;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return StopReason::Error(format!("the VMM was ended: {error}")),
                }
            }
            guard.clear_ready();
        }
    }

    fn give(&mut self, order: Order) {
        let given = match order.what {
            VmOrder::Attach(slot, parts) => self.process.attach_disk(slot, &parts),
            VmOrder::Grow(slot, length) => self.process.grow_disk(slot, length),
            VmOrder::Detach(slot) => self.process.detach_disk(slot),
            VmOrder::ResizeMemory(mib) => self.process.resize_memory(mib),
            VmOrder::Balloon(mib) => self.process.inflate_balloon(mib),
            VmOrder::Plug(slot, ends) => self.process.plug_nic(slot, &ends),
            VmOrder::Save(files) => self.process.save(&files),
            VmOrder::Pause => self.process.pause(),
            VmOrder::Resume => self.process.resume(),
            VmOrder::Describe => self.process.describe(),
        };
        match given {
            Ok(number) => {
                self.unanswered.insert(number, order.answer);
            }
            // It closed its end, and that will be told.
            Err(ControlError::Socket(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                // Who does not wait any more does not want to know.
                let _ = order.answer.send(Err(error.to_string()));
            }
        }
    }

    /// Notes one event; the reason if it is the last.
    fn take(&mut self, event: Event) -> Option<StopReason> {
        let now = Instant::now();
        match event {
            Event::Created { .. } => self.progress.send_modify(|progress| progress.created = Some(now)),
            Event::Booting { .. } => self.progress.send_modify(|progress| {
                progress.booting = Some(now);
                progress.ready = self.restored.then_some(now);
            }),
            Event::GuestConnected { port: READY_PORT, .. } => {
                self.progress.send_modify(|progress| progress.ready = progress.ready.or(Some(now)));
            }
            // Dropping the stream refuses the connection.
            Event::GuestConnected { port, .. } => log::warn!("the guest connects to port {port}, which nobody serves"),
            Event::Console(bytes) => {
                self.console.lock().unwrap_or_else(PoisonError::into_inner).push(&bytes);
                if self.live {
                    let _ = io::stderr().write_all(&bytes);
                }
            }
            Event::Answer { order, result } => {
                if let Some(answer) = self.unanswered.remove(&order) {
                    let _ = answer.send(result);
                }
            }
            Event::Stopped(reason) => return Some(reason),
        }
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    fn vm() -> (watch::Sender<Progress>, VmWatch) {
        let (sender, progress) = watch::channel(Progress::default());
        (sender, VmWatch { progress, console: Arc::default(), orders: mpsc::unbounded_channel().0, pid: 0 })
    }

    /// A view of a VM of which nothing is heard.
    pub(in crate::sandbox) fn watch() -> VmWatch {
        vm().1
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_time_out_names_the_step_that_is_missing() {
        let (sender, vm) = vm();
        let message = || block_on(vm.ready(LIMIT)).unwrap_err().to_string();
        assert!(message().starts_with("the VMM did not create the VM within"), "{}", message());
        sender.send_modify(|progress| progress.created = Some(Instant::now()));
        assert!(message().starts_with("the VMM did not start the guest"), "{}", message());
        sender.send_modify(|progress| progress.booting = Some(Instant::now()));
        assert!(message().contains("the agent did not announce itself"), "{}", message());
        sender.send_modify(|progress| progress.ready = Some(Instant::now()));
        block_on(vm.ready(LIMIT)).unwrap();
    }

    #[test]
    fn a_reset_after_a_panic_is_told_as_the_panic() {
        let (sender, vm) = vm();
        vm.console
            .lock()
            .unwrap()
            .push(b"[    1.0] Kernel panic - not syncing: no \x1binit\r\n[    1.1] Rebooting\r\n");
        sender.send_modify(|progress| progress.stopped = Some(StopReason::GuestReset));
        let message = block_on(vm.ready(LIMIT)).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 3);
        assert!(
            message.starts_with("the guest's kernel panicked: no \u{fffd}init; the guest's last lines:"),
            "{message}"
        );
        assert!(message.ends_with("\n  | [    1.1] Rebooting"), "{message}");
    }

    #[test]
    fn a_disk_that_is_not_as_it_was_built_is_told_as_that() {
        let (sender, vm) = vm();
        let line = b"[    0.1] Kernel panic - not syncing: dm-verity device corrupted\r\n";
        vm.console.lock().unwrap().push(line);
        sender.send_modify(|progress| progress.stopped = Some(StopReason::GuestReset));
        let message = block_on(vm.ready(LIMIT)).unwrap_err().to_string();
        assert!(message.starts_with("the guest's kernel panicked: the disk of its root does not match"), "{message}");
    }

    #[test]
    fn an_order_to_a_vm_that_is_gone_does_not_hang() {
        let (sender, vm) = vm();
        sender.send_modify(|progress| progress.stopped = Some(StopReason::Error("it broke".to_owned())));
        let error = block_on(vm.order(VmOrder::Detach(0))).unwrap_err();
        assert_eq!(error.to_string(), "it broke");
    }

    #[test]
    fn work_ends_with_the_vm_and_what_is_done_counts() {
        let (sender, vm) = vm();
        block_on(async {
            assert!(vm.verdict().await.is_none());
            let waiting = vm.while_alive(std::future::pending::<()>());
            let ending = async {
                sender.send_modify(|progress| progress.stopped = Some(StopReason::Error("it broke".to_owned())));
            };
            let (waited, ()) = tokio::join!(waiting, ending);
            assert_eq!(waited.unwrap_err().to_string(), "it broke");
            assert_eq!(vm.verdict().await.unwrap().to_string(), "it broke");
            assert_eq!(vm.while_alive(async { 7 }).await.unwrap(), 7);
        });
    }
}
