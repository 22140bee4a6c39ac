//! Bytes from the guest that wait for a host which does not read at the moment.
//!
//! Bounded by its user (never more than the credit window is pushed); holds no memory while it is empty. Knows nothing of
//! packets.

use std::io;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileSlice};

/// The waiting bytes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Bytes before `taken` are gone already.
    bytes: Vec<u8>,
    taken: usize,
}

impl Outbox {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    /// Copies `slice` behind the bytes that wait.
    pub(super) fn push<B: BitmapSlice>(&mut self, slice: &VolatileSlice<B>) {
        // Dropping the dead front only once it is the larger part keeps copying linear and memory below twice what waits.
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + slice.len(), 0);
        let copied = slice.read(&mut self.bytes[start..], 0).unwrap_or(0);
        debug_assert_eq!(copied, slice.len());
        self.bytes.truncate(start + copied);
    }

    /// Offers the bytes that wait to `sink` until none is left or it takes no more; says how many went.
    ///
    /// # Errors
    /// What `sink` said, unless it merely could not take more now; bytes that went before that are gone.
    pub(super) fn drain_to(&mut self, sink: &mut impl io::Write) -> io::Result<usize> {
        let start = self.taken;
        while !self.is_empty() {
            match sink.write(&self.bytes[self.taken..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(self.taken - start),
                Err(error) => return Err(error),
            }
        }
        let count = self.taken - start;
        self.clear();
        Ok(count)
    }

    /// Forgets everything and returns the memory.
    pub(super) fn clear(&mut self) {
        *self = Outbox::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then would block.
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl io::Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_keep_their_order_and_memory_stays_bounded() {
        let mut outbox = Outbox::default();
        let mut sink = Narrow { room: 0, taken: Vec::new() };
        let mut sent = Vec::new();
        for round in 0..1000_u32 {
            let mut chunk = [(round % 251) as u8; 100];
            outbox.push(&VolatileSlice::from(&mut chunk[..]));
            sent.extend_from_slice(&chunk);
            sink.room = if round < 10 { 0 } else { 100 };
            outbox.drain_to(&mut sink).unwrap();
            assert!(outbox.bytes.len() <= 2 * 1100, "{} bytes held for 1000 waiting", outbox.bytes.len());
        }
        sink.room = usize::MAX;
        outbox.drain_to(&mut sink).unwrap();
        assert_eq!(sink.taken, sent);
        assert!(outbox.is_empty());
        assert_eq!(outbox.bytes.capacity(), 0, "an idle outbox holds no memory");
    }
}
