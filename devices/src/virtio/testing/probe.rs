//! A device that does nothing but remember what its transport did with it.

use std::sync::{Arc, Mutex};

use crate::virtio::{ActivateError, Activation, ActiveQueue, DeviceKind, VirtioDevice};

/// What it offers beside the transport's own.
pub(crate) const FEATURE: u64 = 1 << 5;
/// Its queues.
pub(crate) const SIZES: [u16; 2] = [256, 64];

/// What happened to a [`Probe`].
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) activation: Option<Activation>,
    pub(crate) activations: usize,
    pub(crate) resets: usize,
    pub(crate) written: Vec<(u64, Vec<u8>)>,
    /// The first byte of the configuration space; each further one is one more.
    pub(crate) first: u8,
}

/// A device that does nothing but remember.
#[derive(Clone, Default)]
pub(crate) struct Probe(Arc<Mutex<Seen>>);

impl Probe {
    pub(crate) fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    pub(crate) fn is_active(&self) -> bool {
        self.seen(|seen| seen.activation.is_some())
    }
}

impl VirtioDevice for Probe {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let first = self.seen(|seen| seen.first).wrapping_add(offset as u8);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = first.wrapping_add(index as u8);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.seen(|seen| seen.written.push((offset, data.to_vec())));
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues[0].is_none() {
            return Err(ActivateError::MissingQueue(0));
        }
        self.seen(|seen| {
            seen.activation = Some(activation);
            seen.activations += 1;
        });
        Ok(())
    }

    fn pause(&mut self) -> Vec<Option<ActiveQueue>> {
        self.seen(|seen| seen.activation.take()).map(|activation| activation.queues).unwrap_or_default()
    }

    fn reset(&mut self) {
        self.seen(|seen| {
            seen.activation = None;
            seen.resets += 1;
        });
    }
}
