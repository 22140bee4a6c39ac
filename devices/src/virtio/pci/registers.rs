//! The common configuration (virtio 1.2, 4.1.4.3): which of [`Transport`]'s affairs each register is.
//!
//! Each is accessed with its own width (4.1.3.1), the addresses of 64 bits also by halves.

use super::PciTransport;
use super::spec::common::{
    CONFIG_GENERATION, CONFIG_VECTOR, DEVICE_FEATURE, DEVICE_FEATURE_SELECT, DEVICE_STATUS, DRIVER_FEATURE,
    DRIVER_FEATURE_SELECT, NUM_QUEUES, QUEUE_AREAS, QUEUE_AREAS_END, QUEUE_ENABLE, QUEUE_NOTIFY_OFF, QUEUE_SELECT,
    QUEUE_SIZE, QUEUE_VECTOR,
};
#[cfg(doc)]
use crate::virtio::Transport;

impl PciTransport {
    /// The driver reads at `at`; `data` holds zeros, and keeps them where no register of that width is.
    pub(super) fn read_common(&self, at: u32, data: &mut [u8]) {
        match data {
            [byte] => *byte = self.byte(at),
            [_, _] => data.copy_from_slice(&self.half(at).to_le_bytes()),
            [_, _, _, _] => data.copy_from_slice(&self.word(at).to_le_bytes()),
            [low @ .., _, _, _, _] if low.len() == 4 && is_area(at) => {
                let (low, high) = data.split_at_mut(4);
                low.copy_from_slice(&self.word(at).to_le_bytes());
                high.copy_from_slice(&self.word(at + 4).to_le_bytes());
            }
            _ => {}
        }
    }

    /// The driver writes at `at`; nothing happens where no register of that width is.
    pub(super) fn write_common(&mut self, at: u32, data: &[u8]) {
        match *data {
            [status] if at == DEVICE_STATUS => self.set_status(status),
            [low, high] => self.set_half(at, u16::from_le_bytes([low, high])),
            [a, b, c, d] => self.set_word(at, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if is_area(at) => {
                self.set_word(at, u32::from_le_bytes([a, b, c, d]));
                self.set_word(at + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn byte(&self, at: u32) -> u8 {
        match at {
            DEVICE_STATUS => self.transport.status(),
            CONFIG_GENERATION => self.transport.interrupt().generation() as u8,
            _ => 0,
        }
    }

    fn set_status(&mut self, status: u8) {
        self.transport.set_status(status);
        if status == 0 {
            self.interrupt.forget_driver();
        }
    }

    fn half(&self, at: u32) -> u16 {
        let selected = self.transport.selected_queue();
        match at {
            CONFIG_VECTOR => self.interrupt.config_vector(),
            NUM_QUEUES => self.transport.kicks().len() as u16,
            QUEUE_SELECT => selected as u16,
            QUEUE_SIZE => self.transport.queue().map_or(0, |queue| queue.size as u16),
            QUEUE_VECTOR => self.interrupt.queue_vector(selected),
            QUEUE_ENABLE => self.transport.is_queue_ready().into(),
            // One register each, in their order.
            QUEUE_NOTIFY_OFF => selected as u16,
            _ => 0,
        }
    }

    fn set_half(&mut self, at: u32, value: u16) {
        match at {
            CONFIG_VECTOR => self.interrupt.set_config_vector(value),
            QUEUE_SELECT => self.transport.select_queue(value.into()),
            QUEUE_SIZE => self.transport.set_up_queue(|queue| queue.size = value.into()),
            QUEUE_VECTOR => self.interrupt.set_queue_vector(self.transport.selected_queue(), value),
            // Only a reset takes a queue back (4.1.4.3.2).
            QUEUE_ENABLE if value == 1 => self.transport.set_up_queue(|queue| queue.ready = true),
            _ => {}
        }
    }

    fn word(&self, at: u32) -> u32 {
        match at {
            DEVICE_FEATURE_SELECT => self.transport.feature_pages().0,
            DEVICE_FEATURE => self.transport.device_features(),
            DRIVER_FEATURE_SELECT => self.transport.feature_pages().1,
            DRIVER_FEATURE => self.transport.driver_features(),
            _ => match (half_of_area(at), self.transport.queue()) {
                (Some((area, shift)), Some(queue)) => (queue.areas[area] >> shift) as u32,
                _ => 0,
            },
        }
    }

    fn set_word(&mut self, at: u32, value: u32) {
        match at {
            DEVICE_FEATURE_SELECT => self.transport.select_device_features(value),
            DRIVER_FEATURE_SELECT => self.transport.select_driver_features(value),
            DRIVER_FEATURE => self.transport.set_driver_features(value),
            _ => {
                if let Some((area, shift)) = half_of_area(at) {
                    let mask = u64::from(u32::MAX) << shift;
                    self.transport.set_up_queue(|queue| {
                        queue.areas[area] = queue.areas[area] & !mask | u64::from(value) << shift;
                    });
                }
            }
        }
    }
}

/// Whether a queue's area has its address there.
fn is_area(at: u32) -> bool {
    (QUEUE_AREAS..QUEUE_AREAS_END).contains(&at) && at.is_multiple_of(8)
}

/// Which half of which of a queue's areas has its address there, as index and shift.
fn half_of_area(at: u32) -> Option<(usize, u32)> {
    let place = at.checked_sub(QUEUE_AREAS).filter(|place| place.is_multiple_of(4) && at < QUEUE_AREAS_END)?;
    Some(((place / 8) as usize, place % 8 * 8))
}
