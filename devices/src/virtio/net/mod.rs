//! virtio-net (virtio 1.2, 5.1): slots, into which a tap or a stream socket is plugged while the guest runs.
//!
//! Opens nothing: it is given descriptors. One thread for each pair of queues, which moves frames, or has the host's kernel move them
//! (vhost-net) where that is plugged in with a tap. Checksums and large pieces of TCP and UDP pass
//! through between guest and tap as they are, so neither side computes what the other would.
//!
//! The hardware address is the slot's, by which the guest's agent finds the interface and gives it the one that it is to have:
//! a machine may be one of several that go on from the same saved one.

mod control;
mod handover;
mod offload;
mod pair;
mod receive;
mod requests;
mod slot;
mod spec;
mod stream;
mod tap;
mod transmit;
mod vhost;
mod wire;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::EventSet;

use self::control::Control;
use self::pair::Pair;
use self::receive::Receiver;
pub use self::slot::{NicError, NicKind, NicLimits, NicShape, NicSlot, PAIRS_MAX};
use self::spec::{
    FEATURE_CONTROL, FEATURE_CSUM, FEATURE_CTRL_GUEST_OFFLOADS, FEATURE_GUEST_CSUM, FEATURE_GUEST_ECN,
    FEATURE_GUEST_TSO4, FEATURE_GUEST_TSO6, FEATURE_GUEST_USO4, FEATURE_GUEST_USO6, FEATURE_HOST_ECN,
    FEATURE_HOST_TSO4, FEATURE_HOST_TSO6, FEATURE_HOST_USO, FEATURE_MAC, FEATURE_MERGE, FEATURE_MQ, FEATURE_MTU,
    FEATURE_STATUS, GUEST_OFFLOADS, QUEUE_SIZE, config_space,
};
use self::transmit::Transmitter;
pub use self::vhost::vhost_lacks;
use super::device::read_space;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceKind, GuestMemory, Interrupt, RestoreError, Ring, Role, SaveError,
    Threads, VirtioDevice, Worker,
};

/// A network device: a slot and the threads that serve it.
pub struct Net {
    slot: NicSlot,
    name: u8,
    queue_sizes: Vec<u16>,
    threads: Arc<dyn Threads>,
    workers: Vec<Worker<Pair>>,
    /// How many queues the driver could have set up, for those that come back.
    queues: usize,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("slot", &self.slot).field("threads", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Net {
    /// A device for what is or will be in `slot`, which is number `name`.
    pub fn new(slot: NicSlot, name: u8, threads: Arc<dyn Threads>) -> Self {
        // The control queue comes last (5.1.2).
        let queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(slot.0.shape.pairs) + 1];
        Net { slot, name, queue_sizes, threads, workers: Vec::new(), queues: 0 }
    }

    /// Starts the thread of pair `index`, if the driver has set its queues up.
    fn start(&mut self, index: u16, begin: &mut Beginning) -> Result<(), ActivateError> {
        let (receive, transmit) = (2 * index, 2 * index + 1);
        let (Some(first), Some(second)) = (begin.take(receive), begin.take(transmit)) else {
            // Only the first pair is needed: the driver says how many it uses.
            return if index == 0 { Err(ActivateError::MissingQueue(receive)) } else { Ok(()) };
        };
        let control = begin.control.filter(|_| index == 0).and_then(|at| Some((at, begin.take(at)?)));
        let control = control.map(|(at, queue)| (at, begin.ring(at, queue)));
        let (first, second) = (begin.ring(receive, first), begin.ring(transmit, second));
        let mut kicks = vec![(receive, first.kick().try_clone()?), (transmit, second.kick().try_clone()?)];
        if let Some((at, ring)) = &control {
            kicks.push((*at, ring.kick().try_clone()?));
        }
        let shared = &self.slot.0;
        let [receive_limit, transmit_limit] = shared.throttles()?;
        let pair = Pair {
            index,
            slot: Arc::clone(shared),
            features: begin.features,
            receiver: Receiver::new(first, begin.features, receive_limit),
            transmitter: Transmitter::new(second, begin.features, transmit_limit),
            control: control.map(|(_, ring)| Control::new(ring)),
            wake: shared.wake(index)?,
            wire: None,
            watched: None,
            wanted: EventSet::empty(),
            attended: true,
            gone: false,
            handed: false,
            kicks: [&kicks[0], &kicks[1]].map(|(index, kick)| (*index, kick.as_raw_fd())),
            interrupt: Arc::clone(&begin.interrupt),
        };
        let name = format!("virtio-net{}.{index}", self.name);
        let interrupt = Arc::clone(&begin.interrupt);
        self.workers.push(Worker::spawn(self.threads.as_ref(), &name, Role::Frames, kicks, interrupt, pair)?);
        Ok(())
    }

    /// Ends the threads; what was plugged in stays with the slot, and the queues come back.
    fn stop(&mut self) -> Vec<(u16, ActiveQueue)> {
        let mut queues = Vec::new();
        for mut pair in self.workers.drain(..).filter_map(Worker::stop) {
            if let Some(wire) = pair.wire.take() {
                self.slot.0.keep(pair.index, wire);
            }
            queues.push((pair.receiver.index(), pair.receiver.into_active()));
            queues.push((pair.transmitter.index(), pair.transmitter.into_active()));
            queues.extend(pair.control.map(|control| (control.index(), control.into_active())));
        }
        queues
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        let shape = &self.slot.0.shape;
        let mut features = FEATURE_MAC | FEATURE_STATUS | FEATURE_MERGE | FEATURE_CONTROL;
        if shape.pairs > 1 {
            features |= FEATURE_MQ;
        }
        if shape.mtu.is_some() {
            features |= FEATURE_MTU;
        }
        if let NicKind::Tap { cuts_udp } = shape.kind {
            features |= FEATURE_CSUM | FEATURE_GUEST_CSUM | FEATURE_CTRL_GUEST_OFFLOADS;
            features |= FEATURE_GUEST_TSO4 | FEATURE_GUEST_TSO6 | FEATURE_GUEST_ECN;
            features |= FEATURE_HOST_TSO4 | FEATURE_HOST_TSO6 | FEATURE_HOST_ECN;
            if cuts_udp {
                features |= FEATURE_GUEST_USO4 | FEATURE_GUEST_USO6 | FEATURE_HOST_USO;
            }
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let shape = &self.slot.0.shape;
        let space = config_space(shape.address, self.slot.0.show(), shape.pairs, shape.mtu.unwrap_or(0));
        read_space(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let pairs = if features & FEATURE_MQ != 0 { self.slot.0.shape.pairs } else { 1 };
        // Where it is depends on what the driver knows of (5.1.2).
        let control = (features & FEATURE_CONTROL != 0).then_some(2 * pairs);
        self.queues = queues.len();
        self.slot.0.listen(Arc::clone(&interrupt), features & GUEST_OFFLOADS);
        let mut begin = Beginning { memory, features, queues, interrupt, control };
        for index in 0..pairs {
            if let Err(error) = self.start(index, &mut begin) {
                self.stop();
                self.slot.0.forget();
                return Err(error);
            }
        }
        self.slot.0.serve(pairs);
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        let mut queues: Vec<Option<ActiveQueue>> = std::iter::repeat_with(|| None).take(self.queues).collect();
        for (index, queue) in self.stop() {
            if let Some(place) = queues.get_mut(usize::from(index)) {
                *place = Some(queue);
            }
        }
        queues
    }

    fn reset(&mut self) {
        self.stop();
        self.slot.0.forget();
        self.queues = 0;
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        Ok(self.slot.0.save())
    }

    fn restore(&mut self, saved: &[u8], _memory: &GuestMemory) -> Result<(), RestoreError> {
        if self.slot.0.restore(saved) { Ok(()) } else { Err(RestoreError::Device) }
    }
}

/// What an activation brought, while it is given out.
struct Beginning {
    memory: GuestMemory,
    features: u64,
    queues: Vec<Option<ActiveQueue>>,
    interrupt: Arc<dyn Interrupt>,
    control: Option<u16>,
}

impl Beginning {
    fn take(&mut self, index: u16) -> Option<ActiveQueue> {
        self.queues.get_mut(usize::from(index))?.take()
    }

    fn ring(&self, index: u16, queue: ActiveQueue) -> Ring {
        Ring::new(index, queue, self.memory.clone(), Arc::clone(&self.interrupt))
    }
}

#[cfg(test)]
mod tests;
