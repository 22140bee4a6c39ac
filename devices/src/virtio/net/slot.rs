//! A place for a network: what is plugged in, what the guest has been shown of it, and what the threads of the device share.
//!
//! Knows no rings. A guest finds its network interface by the slot's hardware address, and sees a link that is down until something
//! is plugged in, and again when that is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::wire::Wire;
use crate::virtio::rate_limit::RateLimiter;
use crate::virtio::{Interrupt, RateLimit, Throttle};

/// What can be plugged into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicKind {
    /// A tap with as many queues as the slot has pairs: IFF_VNET_HDR, headers of 12 bytes, little-endian.
    Tap {
        /// It cuts UDP (TUN_F_USO4, TUN_F_USO6; Linux 6.2).
        cuts_udp: bool,
    },
    /// A connected stream socket: each frame behind its length, four bytes in network order.
    Stream,
}

/// What a slot is, from the guest's start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicShape {
    /// The hardware address that the guest finds.
    pub address: [u8; 6],
    /// What is plugged in.
    pub kind: NicKind,
    /// Pairs of queues, 1 to [`PAIRS_MAX`].
    pub pairs: u16,
    /// The largest packet that the guest is told of; none: it decides.
    pub mtu: Option<u16>,
    /// How fast frames may come to the guest, and go from it, over all pairs.
    pub limits: NicLimits,
}

/// The limits of a network device; an operation is a frame, which may be a large piece of TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NicLimits {
    /// To the guest.
    pub receive: RateLimit,
    /// From the guest.
    pub transmit: RateLimit,
}

impl NicLimits {
    /// As fast as it can be.
    pub const NONE: NicLimits = NicLimits {
        receive: RateLimit { bytes: None, operations: None },
        transmit: RateLimit { bytes: None, operations: None },
    };
}

/// The most pairs of queues that a device has.
pub const PAIRS_MAX: u16 = 16;

/// Why nothing was plugged in.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// One descriptor for each pair.
    #[error("{found} queues of a tap for {expected} pairs of queues")]
    Queues {
        /// Descriptors.
        found: usize,
        /// Pairs.
        expected: usize,
    },
    /// The kernel moves frames as fast as it can, and knows taps only.
    #[error("vhost-net is for taps without a limit")]
    Vhost,
    /// The descriptor.
    #[error("cannot use what is plugged in: {0}")]
    Descriptor(#[from] io::Error),
}

/// What is plugged into a network device. Clones are the same slot; it can be plugged in and pulled out while the guest runs.
#[derive(Clone)]
pub struct NicSlot(pub(super) Arc<Shared>);

/// What threads, transport and VMM share.
pub(super) struct Shared {
    pub(super) shape: NicShape,
    state: Mutex<State>,
    /// One for each pair: written when its thread is to look here.
    wakes: Vec<EventFd>,
    /// What all pairs go by on the way to the guest, and from it.
    limiters: [Option<Arc<Mutex<RateLimiter>>>; 2],
    /// Frames lost on the way to the guest, and from it.
    lost: [AtomicU64; 2],
}

struct State {
    /// One for each pair.
    ports: Vec<Port>,
    /// Something is plugged in, and not known to be gone.
    up: bool,
    /// The link status that a driver has read last.
    shown: Option<bool>,
    /// The one that a driver has read that goes on from a saved machine, until it is there to be told of changes. That a transport looks
    /// meanwhile is not the driver's doing.
    read_before: Option<bool>,
    /// Whom to tell of changes; none while no driver is there.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// How many pairs have a thread, or would have if there were a driver.
    served: u16,
    /// How many pairs the driver uses.
    active: u16,
    /// What offloads it takes; none: what it negotiated.
    offloads: Option<u64>,
}

/// What lies between slot and thread.
pub(super) enum Port {
    /// The thread may keep what it has.
    Unchanged,
    /// It shall have this instead.
    Plugged(Wire),
    /// It shall have nothing.
    Pulled,
}

impl NicSlot {
    /// A slot with nothing in it.
    ///
    /// # Errors
    /// When event descriptors are not to be had.
    pub fn empty(shape: NicShape) -> io::Result<NicSlot> {
        let pairs = shape.pairs.clamp(1, PAIRS_MAX);
        let wakes = (0..pairs).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<Result<_, _>>()?;
        let ports = (0..pairs).map(|_| Port::Unchanged).collect();
        let state = State {
            ports,
            up: false,
            shown: None,
            read_before: None,
            interrupt: None,
            served: pairs,
            active: 1,
            offloads: None,
        };
        let (state, lost) = (Mutex::new(state), Default::default());
        let limiter = |limit: RateLimit| Arc::new(Mutex::new(RateLimiter::new(limit, Instant::now())));
        let limiters =
            [shape.limits.receive, shape.limits.transmit].map(|limit| (!limit.is_unlimited()).then(|| limiter(limit)));
        Ok(NicSlot(Arc::new(Shared { shape: NicShape { pairs, ..shape }, state, wakes, limiters, lost })))
    }

    /// Plugs something in, in place of what was there, and tells the guest that the link is up. `ends` are a descriptor for each pair
    /// of queues, and with a tap perhaps as many of `/dev/vhost-net` behind them, in which [`super::vhost_lacks`] has found nothing
    /// lacking.
    ///
    /// # Errors
    /// [`NicError`]; the slot is then as before.
    pub fn plug(&self, mut ends: Vec<OwnedFd>) -> Result<(), NicError> {
        let NicShape { kind, pairs, limits, .. } = self.0.shape;
        let (found, expected) = (ends.len(), usize::from(pairs));
        if found != expected && found != 2 * expected {
            return Err(NicError::Queues { found, expected });
        }
        let vhosts = ends.split_off(expected);
        if !vhosts.is_empty() && (kind == NicKind::Stream || limits != NicLimits::NONE) {
            return Err(NicError::Vhost);
        }
        let vhosts = vhosts.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let wires = ends.into_iter().zip(vhosts).map(|(end, vhost)| Wire::new(kind, end, vhost));
        let wires = wires.collect::<Result<Vec<_>, _>>()?;
        self.0.change(wires.into_iter().map(Port::Plugged).collect(), true);
        Ok(())
    }

    /// Pulls out what is plugged in, and tells the guest that the link is down.
    pub fn pull(&self) {
        self.0.change(self.0.wakes.iter().map(|_| Port::Pulled).collect(), false);
    }

    /// Whether something is plugged in, and not known to be gone.
    pub fn is_up(&self) -> bool {
        self.0.state().up
    }

    /// How many frames did not reach the guest, and how many of the guest's reached nobody.
    pub fn lost(&self) -> (u64, u64) {
        let [received, sent] = &self.0.lost;
        (received.load(Ordering::Relaxed), sent.load(Ordering::Relaxed))
    }
}

impl std::fmt::Debug for NicSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NicSlot").field("shape", &self.0.shape).field("up", &self.is_up()).finish()
    }
}

impl Shared {
    fn change(&self, ports: Vec<Port>, up: bool) {
        let mut state = self.state();
        state.ports = ports;
        state.quiet();
        state.set_up(up);
        drop(state);
        self.wake_all();
    }

    /// The link status, for a driver that asks for it.
    pub(super) fn show(&self) -> bool {
        let mut state = self.state();
        state.shown = Some(state.up);
        state.up
    }

    /// From now on, a driver is there to be told; at once, if what it read before is true no more. Says what offloads it takes, which
    /// are `negotiated` unless it has said otherwise.
    pub(super) fn listen(&self, interrupt: Arc<dyn Interrupt>, negotiated: u64) {
        let mut state = self.state();
        if state.read_before.take().or(state.shown).is_some_and(|read| read != state.up) {
            interrupt.config();
        }
        state.interrupt = Some(interrupt);
        state.offloads.get_or_insert(negotiated);
    }

    /// No driver is there any more, nor what it said.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        (state.interrupt, state.shown, state.offloads) = (None, None, None);
        state.read_before = None;
        (state.served, state.active) = (self.shape.pairs, 1);
    }

    /// Only this many pairs have a thread.
    pub(super) fn serve(&self, pairs: u16) {
        let mut state = self.state();
        state.served = pairs;
        state.quiet();
    }

    /// What is plugged in is gone.
    pub(super) fn lose(&self) {
        let mut state = self.state();
        if state.up {
            log::warn!("virtio-net: what was plugged in is gone; the guest's link is down");
            state.set_up(false);
        }
    }

    /// Whether there is something new for the thread of pair `index`.
    pub(super) fn has_new(&self, index: u16) -> bool {
        self.state().ports.get(usize::from(index)).is_some_and(|port| !matches!(port, Port::Unchanged))
    }

    /// Takes what is there for the thread of pair `index`.
    pub(super) fn take(&self, index: u16) -> Port {
        let mut state = self.state();
        state.ports.get_mut(usize::from(index)).map_or(Port::Unchanged, |port| std::mem::replace(port, Port::Unchanged))
    }

    /// Keeps a thread's wire for the next one, unless there is something newer.
    pub(super) fn keep(&self, index: u16, wire: Wire) {
        let mut state = self.state();
        match state.ports.get_mut(usize::from(index)) {
            Some(port) if matches!(port, Port::Unchanged) => *port = Port::Plugged(wire),
            _ => {}
        }
    }

    /// A duplicate of what wakes the thread of pair `index`.
    pub(super) fn wake(&self, index: u16) -> io::Result<EventFd> {
        self.wakes.get(usize::from(index)).ok_or(io::ErrorKind::NotFound)?.try_clone()
    }

    /// What a pair's thread goes by on the way to the guest, and from it.
    ///
    /// # Errors
    /// When no timers are to be had.
    pub(super) fn throttles(&self) -> io::Result<[Option<Throttle>; 2]> {
        let [receive, transmit] = &self.limiters;
        let throttle = |limiter: &Option<_>| limiter.as_ref().map(Throttle::sharing).transpose();
        Ok([throttle(receive)?, throttle(transmit)?])
    }

    fn wake_all(&self) {
        for wake in &self.wakes {
            // Fails only when the counter is at its end: then it is awake already.
            let _ = wake.write(1);
        }
    }

    /// How many pairs the driver uses.
    pub(super) fn active(&self) -> u16 {
        self.state().active
    }

    /// The driver uses so many pairs from now on.
    pub(super) fn set_active(&self, active: u16) {
        self.state().active = active;
        self.wake_all();
    }

    /// What offloads the driver takes.
    pub(super) fn offloads(&self) -> u64 {
        self.state().offloads.unwrap_or(0)
    }

    /// The driver takes these from now on.
    pub(super) fn set_offloads(&self, offloads: u64) {
        self.state().offloads = Some(offloads);
    }

    /// What a driver has said and has been shown.
    pub(super) fn save(&self) -> Vec<u8> {
        let state = self.state();
        let mut bytes = vec![state.read_before.or(state.shown).map_or(SHOWN_NOTHING, u8::from)];
        bytes.extend_from_slice(&state.active.to_le_bytes());
        bytes.push(state.offloads.is_some().into());
        bytes.extend_from_slice(&state.offloads.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// The same, the other way.
    pub(super) fn restore(&self, bytes: &[u8]) -> bool {
        let Ok([shown, pairs @ .., o0, o1, o2, o3, o4, o5, o6, o7]) = <[u8; 12]>::try_from(bytes) else { return false };
        let [low, high, said] = pairs;
        let active = u16::from_le_bytes([low, high]);
        if !(1..=self.shape.pairs).contains(&active) || said > 1 || shown > SHOWN_NOTHING {
            return false;
        }
        let mut state = self.state();
        state.shown = (shown != SHOWN_NOTHING).then_some(shown == 1);
        state.read_before = state.shown;
        state.active = active;
        state.offloads = (said == 1).then_some(u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]));
        true
    }

    /// Counts frames lost on the way to the guest, and from it.
    pub(super) fn count(&self, received: u64, sent: u64) {
        for (counter, new) in self.lost.iter().zip([received, sent]) {
            if new > 0 {
                counter.fetch_add(new, Ordering::Relaxed);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a saved state: no driver has read the link status.
const SHOWN_NOTHING: u8 = 2;

impl State {
    /// Has a tap give no frames to queues that nobody reads.
    fn quiet(&self) {
        for port in self.ports.iter().skip(self.served.into()) {
            if let Port::Plugged(wire) = port
                && let Some(Err(error)) = wire.tap().map(|tap| tap.attend(false))
            {
                log::warn!("virtio-net: frames may go to a queue of the tap that nobody reads: {error}");
            }
        }
    }

    fn set_up(&mut self, up: bool) {
        if std::mem::replace(&mut self.up, up) != up
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.config();
        }
    }
}
