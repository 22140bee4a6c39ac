//! The control queue (virtio 1.2, 5.1.6.5): how many pairs of queues the driver uses, and what offloads it takes.

use super::spec::{CLASS_GUEST_OFFLOADS, CLASS_MQ, CONTROL_ERROR, CONTROL_OK, GUEST_OFFLOADS_SET, MQ_PAIRS_SET};
use crate::virtio::{ActiveQueue, Chain, Fault, Progress, Ring, ring};

/// What a driver can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// It uses this many pairs.
    Pairs(u16),
    /// It takes these offloads, named by their feature bits.
    Offloads(u64),
}

/// The longest command, in bytes: class, command, a number of 64 bits.
const COMMAND_BYTES: usize = 10;

/// The queue.
pub(super) struct Control {
    ring: Ring,
}

impl Control {
    pub(super) fn new(ring: Ring) -> Control {
        Control { ring }
    }

    /// Its queue's number.
    pub(super) fn index(&self) -> u16 {
        self.ring.index()
    }

    /// Back to the queue.
    pub(super) fn into_active(self) -> ActiveQueue {
        self.ring.into_active()
    }

    /// Has `obey` carry out what the driver says; false refuses.
    ///
    /// # Errors
    /// When the driver broke a rule of the ring.
    pub(super) fn run(&mut self, mut obey: impl FnMut(Command) -> bool) -> Result<Progress, Fault> {
        let memory = self.ring.memory().clone();
        self.ring.drain(|chain: &Chain| {
            let mut bytes = [0; COMMAND_BYTES];
            let len = ring::read(&memory, chain.readable(), &mut bytes);
            let done = parse(&bytes[..len]).is_some_and(&mut obey);
            let answer = if done { CONTROL_OK } else { CONTROL_ERROR };
            Ok(ring::write(&memory, chain.writable(), &[answer]) as u32)
        })
    }
}

/// What the driver says, if it is something that this device knows.
fn parse(bytes: &[u8]) -> Option<Command> {
    let (&[class, command], data) = bytes.split_first_chunk()?;
    match (class, command) {
        (CLASS_MQ, MQ_PAIRS_SET) => Some(Command::Pairs(u16::from_le_bytes(*data.first_chunk()?))),
        (CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET) => Some(Command::Offloads(u64::from_le_bytes(*data.first_chunk()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_short_or_unknown_says_nothing() {
        assert_eq!(parse(&[4, 0, 3, 1]), Some(Command::Pairs(0x103)));
        assert_eq!(parse(&[5, 0, 1, 0, 0, 0, 0, 0, 0, 0x80]), Some(Command::Offloads(1 << 63 | 1)));
        for nothing in [&[][..], &[4], &[4, 0], &[4, 0, 1], &[4, 1, 1, 0], &[5, 0, 1], &[0, 0, 1], &[99, 0, 0, 0]] {
            assert_eq!(parse(nothing), None, "{nothing:?}");
        }
    }
}
