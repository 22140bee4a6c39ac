//! Which blocks of a region are plugged, and how much of it shall be: numbers only.
//!
//! Knows no queues and no memory: it decides, the device carries out.

use std::ops::Range;

use super::spec::{Plugged, Response};

/// Where the memory lies that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRegion {
    /// Its first guest-physical address, a multiple of `block`.
    pub start: u64,
    /// Bytes, a multiple of `block`; may be none.
    pub size: u64,
    /// Bytes that come and go together; a power of two.
    pub block: u64,
}

/// The blocks of a region.
#[derive(Debug)]
pub(super) struct Blocks {
    region: MemRegion,
    plugged: Vec<bool>,
    /// How many of them are.
    count: u64,
    /// Bytes that shall be plugged.
    requested: u64,
}

impl Blocks {
    /// None plugged, none wanted.
    pub(super) fn new(region: MemRegion) -> Blocks {
        let blocks = region.size / region.block;
        Blocks { region, plugged: vec![false; blocks as usize], count: 0, requested: 0 }
    }

    pub(super) fn region(&self) -> MemRegion {
        self.region
    }

    pub(super) fn requested(&self) -> u64 {
        self.requested
    }

    /// Wants so many bytes, rounded up to blocks; false where there are not as many.
    pub(super) fn request(&mut self, bytes: u64) -> bool {
        let rounded = bytes.checked_next_multiple_of(self.region.block).filter(|bytes| *bytes <= self.region.size);
        if let Some(bytes) = rounded {
            self.requested = bytes;
        }
        rounded.is_some()
    }

    /// Bytes that are plugged.
    pub(super) fn bytes(&self) -> u64 {
        self.count * self.region.block
    }

    /// `count` blocks from `address` on, by index; none unless they are whole blocks of the region.
    pub(super) fn range(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.region.start).filter(|offset| offset % self.region.block == 0)?;
        let (first, count) = (offset / self.region.block, u64::from(count));
        let end = first.checked_add(count).filter(|end| *end <= self.plugged.len() as u64)?;
        (count > 0).then_some(first as usize..end as usize)
    }

    /// Whether these may be plugged (5.15.6.2.1).
    pub(super) fn judge_plug(&self, range: &Range<usize>) -> Response {
        let more = range.len() as u64 * self.region.block;
        match self.state(range) {
            Plugged::None if self.bytes() + more > self.requested => Response::Nack,
            Plugged::None => Response::Ack,
            _ => Response::Error,
        }
    }

    /// Whether these may be unplugged (5.15.6.2.2).
    pub(super) fn judge_unplug(&self, range: &Range<usize>) -> Response {
        if self.state(range) == Plugged::All { Response::Ack } else { Response::Error }
    }

    pub(super) fn state(&self, range: &Range<usize>) -> Plugged {
        let blocks = &self.plugged[range.clone()];
        match blocks.iter().filter(|plugged| **plugged).count() {
            0 => Plugged::None,
            count if count == blocks.len() => Plugged::All,
            _ => Plugged::Some,
        }
    }

    pub(super) fn set(&mut self, range: Range<usize>, plugged: bool) {
        for block in &mut self.plugged[range] {
            self.count = self.count + u64::from(plugged) - u64::from(*block);
            *block = plugged;
        }
    }

    /// The guest-physical addresses of these.
    pub(super) fn addresses(&self, range: &Range<usize>) -> Range<u64> {
        let address = |index: usize| self.region.start + index as u64 * self.region.block;
        address(range.start)..address(range.end)
    }

    /// All that are plugged, or all that are not, those that follow one another together.
    pub(super) fn stretches(&self, plugged: bool) -> Vec<Range<usize>> {
        let mut stretches: Vec<Range<usize>> = Vec::new();
        for (index, _) in self.plugged.iter().enumerate().filter(|(_, block)| **block == plugged) {
            match stretches.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => stretches.push(index..index + 1),
            }
        }
        stretches
    }

    /// As bytes, for [`Blocks::restore`].
    pub(super) fn save(&self) -> Vec<u8> {
        let bits = self
            .plugged
            .chunks(8)
            .map(|blocks| blocks.iter().enumerate().fold(0, |byte, (bit, plugged)| byte | u8::from(*plugged) << bit));
        self.requested.to_le_bytes().into_iter().chain(bits).collect()
    }

    /// Takes up what was saved of a region like this; false, and unchanged, if it was not.
    pub(super) fn restore(&mut self, saved: &[u8]) -> bool {
        let Some((requested, bits)) = saved.split_first_chunk().map(|(word, bits)| (u64::from_le_bytes(*word), bits))
        else {
            return false;
        };
        let plugged: Vec<bool> = bits.iter().flat_map(|byte| (0..8).map(move |bit| byte & (1 << bit) != 0)).collect();
        let blocks = self.plugged.len();
        let spare = plugged.get(blocks..).is_some_and(|spare| spare.len() < 8 && !spare.contains(&true));
        if !spare || requested > self.region.size || requested % self.region.block != 0 {
            return false;
        }
        self.requested = requested;
        self.plugged.copy_from_slice(&plugged[..blocks]);
        self.count = self.plugged.iter().filter(|plugged| **plugged).count() as u64;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 2 << 20;

    fn blocks() -> Blocks {
        Blocks::new(MemRegion { start: 4 << 30, size: 11 * BLOCK, block: BLOCK })
    }

    #[test]
    fn ranges_are_whole_blocks_of_the_region() {
        let blocks = blocks();
        assert_eq!(blocks.range(4 << 30, 11), Some(0..11));
        assert_eq!(blocks.range((4 << 30) + 10 * BLOCK, 1), Some(10..11));
        for (address, count) in [
            ((4 << 30) - BLOCK, 1),
            (4 << 30, 0),
            (4 << 30, 12),
            ((4 << 30) + 4096, 1),
            (0, 1),
            (u64::MAX, 1),
            (!(BLOCK - 1), u16::MAX),
        ] {
            assert_eq!(blocks.range(address, count), None, "{count} at {address:#x}");
        }
    }

    #[test]
    fn no_more_is_plugged_than_is_wanted_and_none_twice() {
        let mut blocks = blocks();
        assert_eq!(blocks.judge_plug(&(0..1)), Response::Nack);
        assert!(blocks.request(3 * BLOCK - 5) && blocks.requested() == 3 * BLOCK);
        assert_eq!(blocks.judge_plug(&(0..4)), Response::Nack);
        assert_eq!(blocks.judge_plug(&(4..6)), Response::Ack);
        blocks.set(4..6, true);
        assert_eq!(blocks.judge_plug(&(5..6)), Response::Error);
        assert_eq!(blocks.judge_plug(&(6..8)), Response::Nack);
        assert_eq!(blocks.judge_unplug(&(3..5)), Response::Error);
        assert_eq!(blocks.judge_unplug(&(5..6)), Response::Ack);
        assert_eq!([3..5, 4..6, 0..4].map(|range| blocks.state(&range)), [Plugged::Some, Plugged::All, Plugged::None]);
        blocks.set(5..6, false);
        assert_eq!(blocks.bytes(), BLOCK);
        assert!(!blocks.request(12 * BLOCK) && !blocks.request(u64::MAX) && blocks.requested() == 3 * BLOCK);
    }

    #[test]
    fn what_was_saved_comes_back_and_nothing_else_does() {
        let mut first = blocks();
        first.request(5 * BLOCK);
        first.set(1..4, true);
        first.set(10..11, true);
        let saved = first.save();
        let mut second = blocks();
        assert!(second.restore(&saved));
        assert_eq!((second.bytes(), second.requested()), (4 * BLOCK, 5 * BLOCK));
        assert_eq!(second.stretches(true), [1..4, 10..11]);
        assert_eq!(second.stretches(false), [0..1, 4..10]);
        let mut wrong = vec![vec![], saved[..9].to_vec(), [&saved[..], &[0]].concat(), vec![0; 8]];
        wrong.push({
            let mut beyond = saved.clone();
            beyond[9] |= 1 << 3;
            beyond
        });
        wrong.push([&(12 * BLOCK).to_le_bytes()[..], &saved[8..]].concat());
        wrong.push([&5_u64.to_le_bytes()[..], &saved[8..]].concat());
        for saved in wrong {
            assert!(!second.restore(&saved), "{saved:?}");
        }
        assert_eq!(second.stretches(true), [1..4, 10..11]);
        let mut none = Blocks::new(MemRegion { start: 4 << 30, size: 0, block: BLOCK });
        assert!(none.restore(&none.save()) && none.stretches(false).is_empty());
    }
}
