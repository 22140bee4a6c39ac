//! The socket device itself: its queues, its thread, the listening socket, and the clock.
//!
//! Carries packets between rings and muxer, and events between epoll and muxer; knows nothing of what a packet means.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use super::HostPorts;
use super::muxer::{FIRST_PORT, Muxer, Watcher};
use super::packet::{Frame, Packet};
use super::spec::{EVENT_QUEUE, EVENT_TRANSPORT_RESET, FEATURE_STREAM, FIRST_GUEST_CID, RX_QUEUE, TX_QUEUE};
use super::table::{CAPACITY, SlotId};
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, Chain, DeviceKind, Fault, GuestMemory, Progress, RestoreError, Ring, Role,
    SaveError, Threads, VirtioDevice, Work, Worker, ring,
};

/// Descriptors of each queue. Linux keeps the receive queue full of 4 KiB buffers, so this is also half a megabyte of its memory.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// Packets in one go and one direction, before other descriptors get a look.
const BUDGET: u32 = 256;
/// Receive buffers that one stream fills with one read at most: 256 KiB with those that Linux gives.
const BURST: u32 = 64;
/// Clients accepted in one go.
const ACCEPTS: u32 = 64;
/// How long to leave new clients alone when the host has no descriptor or memory for them.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

const TOKEN_LISTENER: u32 = CAPACITY as u32;
const TOKEN_TIMER: u32 = TOKEN_LISTENER + 1;

/// The socket device (virtio 1.2, 5.10), with host programs behind unix sockets.
///
/// A host program reaches guest port *p* by connecting to the listening socket and sending `CONNECT p` and a line feed; once the
/// guest has accepted it gets `OK`, the host port that the guest sees, and a line feed, and from there on the socket is the stream.
/// A refusal closes the socket. Clients that come before the guest's driver is up wait in the listening socket's backlog. A
/// guest program reaches what [`HostPorts`] offers.
///
/// Writing to a socket whose other end is gone must not kill the process: SIGPIPE has to be ignored, as it is in Rust programs.
pub struct Vsock {
    guest_cid: u64,
    listener: Arc<UnixListener>,
    host: Arc<Mutex<Box<dyn HostPorts>>>,
    threads: Arc<dyn Threads>,
    state: State,
    /// The driver knows streams of another device, in whose place this one is.
    moved: bool,
    /// The host port of the first client. What streams another device had, the guest's driver keeps until their owners close them:
    /// none of them must be taken for a new one.
    first_port: u32,
}

enum State {
    /// No driver; no streams.
    Idle,
    /// The thread is at work.
    Running(Worker<Engine>),
    /// Streams are kept for the queues that come back.
    Paused(Box<Muxer>),
}

/// A device cannot be made as asked.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Contexts 0 to 2 and the largest number are reserved (virtio 1.2, 5.10.4).
    #[error("{0} cannot be a guest's context id: take one from 3 to 4294967294")]
    ReservedCid(u64),
    /// The listening socket could not be made non-blocking.
    #[error("cannot prepare the listening socket: {0}")]
    Listener(#[from] io::Error),
}

impl Vsock {
    /// A socket device of guest `guest_cid`. `listener` is bound and listening.
    ///
    /// # Errors
    /// When `guest_cid` is a reserved number, or `listener` cannot be made non-blocking.
    pub fn new(
        guest_cid: u64,
        listener: UnixListener,
        host: Box<dyn HostPorts>,
        threads: Arc<dyn Threads>,
    ) -> Result<Vsock, VsockError> {
        if !(FIRST_GUEST_CID..u64::from(u32::MAX)).contains(&guest_cid) {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        listener.set_nonblocking(true)?;
        Ok(Vsock {
            guest_cid,
            listener: Arc::new(listener),
            host: Arc::new(Mutex::new(host)),
            threads,
            state: State::Idle,
            moved: false,
            first_port: FIRST_PORT,
        })
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // 5.10.4: guest_cid, eight bytes, is all there is.
        let config = self.guest_cid.to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
        let count = data.len().min(config.len() - from);
        data.fill(0);
        data[..count].copy_from_slice(&config[from..from + count]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let rx = queues.next().flatten().ok_or(ActivateError::MissingQueue(RX_QUEUE))?;
        let tx = queues.next().flatten().ok_or(ActivateError::MissingQueue(TX_QUEUE))?;
        let events = queues.next().flatten();
        let mut kicks = vec![(RX_QUEUE, rx.kick.try_clone()?), (TX_QUEUE, tx.kick.try_clone()?)];
        let moved = std::mem::take(&mut self.moved);
        if let (true, Some(events)) = (moved, &events) {
            kicks.push((EVENT_QUEUE, events.kick.try_clone()?));
        }
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let muxer = match std::mem::replace(&mut self.state, State::Idle) {
            State::Paused(muxer) => *muxer,
            State::Idle | State::Running(_) => Muxer::new(self.guest_cid, self.first_port),
        };
        let engine = Engine {
            listener: Arc::clone(&self.listener),
            host: Arc::clone(&self.host),
            muxer,
            rx: Ring::new(RX_QUEUE, rx, memory.clone(), Arc::clone(&interrupt)),
            tx: Ring::new(TX_QUEUE, tx, memory.clone(), Arc::clone(&interrupt)),
            events: events.map(|events| Ring::new(EVENT_QUEUE, events, memory, Arc::clone(&interrupt))),
            moved,
            burst: 1,
            unheard: None,
            wants_rx_kicks: false,
            tx_used: false,
            tx_waits: false,
            timer,
            timer_at: None,
            accept_again: None,
        };
        let worker = Worker::spawn(self.threads.as_ref(), "vsock", Role::Socket, kicks, interrupt, engine)?;
        self.state = State::Running(worker);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let worker = match std::mem::replace(&mut self.state, State::Idle) {
            State::Running(worker) => worker,
            other => {
                self.state = other;
                return Vec::new();
            }
        };
        let Some(engine) = worker.stop() else { return Vec::new() };
        self.moved = engine.unheard.is_some();
        let (muxer, rx, tx, events) = engine.dismantle();
        self.state = State::Paused(Box::new(muxer));
        vec![Some(rx), Some(tx), events]
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        let next = match &self.state {
            State::Paused(muxer) => muxer.next_port(),
            State::Idle | State::Running(_) => self.first_port,
        };
        Ok(next.to_le_bytes().to_vec())
    }

    fn restore(&mut self, saved: &[u8], _memory: &GuestMemory) -> Result<(), RestoreError> {
        self.first_port = u32::from_le_bytes(saved.try_into().map_err(|_| RestoreError::Device)?);
        self.moved = true;
        Ok(())
    }

    fn reset(&mut self) {
        self.moved = false;
        self.first_port = FIRST_PORT;
        // Dropping the thread joins it, and its streams close with it.
        self.state = State::Idle;
    }
}

/// What runs on the device's thread.
struct Engine {
    listener: Arc<UnixListener>,
    host: Arc<Mutex<Box<dyn HostPorts>>>,
    muxer: Muxer,
    rx: Ring,
    tx: Ring,
    events: Option<Ring>,
    /// How many receive buffers to take at a time.
    burst: u32,
    /// The driver is to be told that its streams are gone.
    moved: bool,
    /// It was told and has not taken notice yet: so many event buffers it will have given when it has. A stream that began before
    /// would end with the old ones, and a packet of an old one would be taken for an orderly end.
    unheard: Option<usize>,
    /// The driver is known to have been asked to kick the receive queue. After a pause nothing is known.
    wants_rx_kicks: bool,
    /// The driver is to be told of packets that were taken from it.
    tx_used: bool,
    /// The transmit queue is left alone until the driver has taken packets.
    tx_waits: bool,
    timer: TimerFd,
    /// When the timer goes off, if it is set.
    timer_at: Option<Instant>,
    /// When to listen to new clients again, if that is off for lack of resources.
    accept_again: Option<Instant>,
}

impl Work for Engine {
    fn start(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        ops.add(Events::with_data(&self.timer, TOKEN_TIMER, EventSet::IN)).map_err(other)?;
        if std::mem::take(&mut self.moved) {
            self.unheard = self.tell_of_move()?;
        }
        if self.unheard.is_some() {
            return Ok(());
        }
        self.listen(ops)
    }

    fn kicked(&mut self, index: u16, ops: &mut EventOps<'_>) -> Result<Progress, Fault> {
        if let Some(before) = self.unheard {
            if self.event_buffers()? >= before {
                self.unheard = None;
                self.tx.kick().write(1)?;
                self.listen(ops)?;
            }
            return Ok(Progress::Idle);
        }
        if index == EVENT_QUEUE {
            return Ok(Progress::Idle);
        }
        let progress = if index == TX_QUEUE { self.hear() } else { Ok(Progress::Idle) };
        self.finish(ops, progress)
    }

    fn ready(&mut self, token: u32, set: EventSet, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        let done = match token {
            TOKEN_LISTENER => self.accept(ops),
            TOKEN_TIMER => self.tick(ops),
            slot => {
                self.muxer.socket_event(slot, set);
                Ok(())
            }
        };
        self.finish(ops, done)
    }
}

impl Engine {
    fn listen(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        ops.add(Events::with_data(&*self.listener, TOKEN_LISTENER, EventSet::IN)).map_err(other)?;
        self.finish(ops, Ok(()))
    }

    /// Tells the driver that all its streams are gone; how many event buffers it will have given when it knows. None for a driver
    /// that wants no events, or has given no buffers for them yet: such a one has no streams.
    fn tell_of_move(&mut self) -> Result<Option<usize>, Fault> {
        let Some(events) = &mut self.events else { return Ok(None) };
        let mut buffers = take_all(events)?;
        // Now the next one that comes is what a kick is asked for.
        events.enable_kicks()?;
        let count = buffers.len();
        put_back_all(events, buffers.split_off(count.min(1)));
        let Some(first) = buffers.pop() else { return Ok(None) };
        let written = ring::write(events.memory(), first.writable(), &EVENT_TRANSPORT_RESET.to_le_bytes());
        events.give_back(first, written as u32)?;
        events.notify()?;
        Ok(Some(count))
    }

    /// How many event buffers the driver has given that are not used.
    fn event_buffers(&mut self) -> Result<usize, Fault> {
        let Some(events) = &mut self.events else { return Ok(0) };
        let buffers = take_all(events)?;
        let count = buffers.len();
        put_back_all(events, buffers);
        Ok(count)
    }

    /// Takes what the guest sent.
    fn hear(&mut self) -> Result<Progress, Fault> {
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = BUDGET;
        let progress = loop {
            self.tx.disable_kicks()?;
            while left > 0 && !self.muxer.is_congested() {
                let Some(chain) = self.tx.take()? else { break };
                self.muxer.hear(&Packet::parse(self.tx.memory(), &chain)?, host.as_mut());
                self.tx.give_back(chain, 0)?;
                left -= 1;
            }
            if left == 0 {
                break Progress::More;
            }
            self.tx_waits = self.muxer.is_congested();
            if self.tx_waits || !self.tx.enable_kicks()? {
                break Progress::Idle;
            }
        };
        self.tx_used |= left < BUDGET;
        Ok(progress)
    }

    /// Ends every turn of the thread: sends the guest what there is for it and gets ready to wait; after a fault, leaves nobody on
    /// the host waiting for a device that does nothing any more.
    fn finish<T>(&mut self, ops: &mut EventOps<'_>, done: Result<T, Fault>) -> Result<T, Fault> {
        let done = done.and_then(|done| self.send().map(|()| done));
        if done.is_err() {
            self.muxer.close_all();
        }
        let now = Instant::now();
        self.muxer.settle(&mut Epoll(ops), now);
        self.set_timer(now)?;
        done
    }

    fn send(&mut self) -> Result<(), Fault> {
        let (mut left, mut filled) = (BUDGET, Vec::new());
        while self.muxer.has_packets() {
            if left == 0 {
                // The driver may give buffers back as fast as they are filled: others want their turn.
                self.rx.kick().write(1)?;
                break;
            }
            let mut chains = self.take_buffers(self.burst.min(left))?;
            if chains.is_empty() {
                break;
            }
            let frames =
                chains.iter().map(|chain| Frame::new(self.rx.memory(), chain)).collect::<Result<Vec<_>, _>>()?;
            self.muxer.fill(&frames, &mut filled);
            let rest = chains.split_off(filled.len());
            // Who fills all that there is may have more, now or in the next turn; most have not, and then taking buffers is in vain.
            let used = filled.len() as u32;
            self.burst = if rest.is_empty() { (4 * self.burst).min(BURST) } else { used.max(self.burst / 2).max(1) };
            left -= used;
            self.rx.give_back_all(chains.into_iter().zip(filled.drain(..)))?;
            put_back_all(&mut self.rx, rest);
        }
        if left < BUDGET {
            self.rx.notify()?;
        }
        // Only now, so that the driver is interrupted once for what it gave and for what it gets.
        if std::mem::take(&mut self.tx_used) {
            self.tx.notify()?;
        }
        if self.tx_waits && !self.muxer.is_congested() {
            self.tx_waits = false;
            self.tx.kick().write(1)?;
        }
        Ok(())
    }

    /// Up to so many receive buffers. If there is none, the driver will kick when there is.
    fn take_buffers(&mut self, most: u32) -> Result<Vec<Chain>, Fault> {
        let mut chains = Vec::new();
        while chains.len() < most as usize {
            match self.rx.take()? {
                Some(chain) => chains.push(chain),
                None if !chains.is_empty() || std::mem::replace(&mut self.wants_rx_kicks, true) => break,
                None if !self.rx.enable_kicks()? => break,
                None => {}
            }
        }
        if !chains.is_empty() && std::mem::take(&mut self.wants_rx_kicks) {
            self.rx.disable_kicks()?;
        }
        Ok(chains)
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        for _ in 0..ACCEPTS {
            match self.listener.accept().and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
                Ok(stream) => self.muxer.admit(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(error) => {
                    log::error!("vsock: no new clients for {} s: {error}", ACCEPT_PAUSE.as_secs());
                    ops.remove(Events::empty(&*self.listener)).map_err(other)?;
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    break;
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, ops: &mut EventOps<'_>) -> Result<(), Fault> {
        self.timer.wait().map_err(io::Error::from)?;
        self.timer_at = None;
        let now = Instant::now();
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            ops.add(Events::with_data(&*self.listener, TOKEN_LISTENER, EventSet::IN)).map_err(other)?;
        }
        self.muxer.expire(now);
        Ok(())
    }

    /// Sets the timer to the next deadline. It may be left set to an earlier one that has become void: going off for nothing once
    /// costs less than being set for every stream.
    fn set_timer(&mut self, now: Instant) -> Result<(), Fault> {
        let Some(next) = self.muxer.next_deadline().into_iter().chain(self.accept_again).min() else { return Ok(()) };
        if self.timer_at.is_none_or(|at| next < at) {
            // A time of zero would switch it off.
            let wait = next.saturating_duration_since(now).max(Duration::from_millis(1));
            self.timer.reset(wait, None).map_err(io::Error::from)?;
            self.timer_at = Some(next);
        }
        Ok(())
    }

    fn dismantle(mut self) -> (Muxer, ActiveQueue, ActiveQueue, Option<ActiveQueue>) {
        self.muxer.unwatch_all();
        (self.muxer, self.rx.into_active(), self.tx.into_active(), self.events.map(Ring::into_active))
    }
}

fn take_all(ring: &mut Ring) -> Result<Vec<Chain>, Fault> {
    let mut chains = Vec::new();
    while let Some(chain) = ring.take()? {
        chains.push(chain);
    }
    Ok(chains)
}

fn put_back_all(ring: &mut Ring, mut chains: Vec<Chain>) {
    while let Some(chain) = chains.pop() {
        ring.put_back(chain);
    }
}

/// Watches sockets through the thread's epoll.
struct Epoll<'a, 'b>(&'a mut EventOps<'b>);

impl Watcher for Epoll<'_, '_> {
    fn watch(
        &mut self,
        stream: &UnixStream,
        id: SlotId,
        old: Option<EventSet>,
        new: Option<EventSet>,
    ) -> io::Result<()> {
        match (old, new) {
            (None, None) => Ok(()),
            (None, Some(set)) => self.0.add(Events::with_data(stream, id, set)),
            (Some(_), Some(set)) => self.0.modify(Events::with_data(stream, id, set)),
            (Some(_), None) => self.0.remove(Events::empty(stream)),
        }
        .map_err(other)
    }
}

fn other(error: event_manager::Error) -> io::Error {
    io::Error::other(error)
}
