//! Arbitrary bytes, read as decisions: which of several, how much, what number. Never ends: behind the last byte come zeros.

/// A cursor over what the fuzzer made up.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `bytes` from the first on.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// Whether nothing but zeros comes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number: mostly small or at a border.
    pub fn word(&mut self) -> u32 {
        match self.byte() {
            kind @ 0..=0x7f => u32::from(kind),
            kind @ 0x80..=0x9f => 1 << (kind - 0x80),
            kind @ 0xa0..=0xbf => (1 << (kind - 0xa0)) - 1,
            kind @ 0xc0..=0xcf => u32::MAX - u32::from(kind - 0xc0),
            0xd0..=0xdf => u32::from(self.half()),
            _ => u32::from_le_bytes(self.array()),
        }
    }

    /// A larger number, of the same kind.
    pub fn double(&mut self) -> u64 {
        match self.byte() {
            kind @ 0..=0x7f => u64::from(kind),
            kind @ 0x80..=0xbf => 1 << (kind - 0x80),
            kind @ 0xc0..=0xcf => u64::MAX - u64::from(kind - 0xc0),
            0xd0..=0xdf => u64::from(self.word()),
            _ => u64::from_le_bytes(self.array()),
        }
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// At most `most` bytes, after two that say how many.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let wanted = usize::from(self.half()) % (most + 1);
        let (bytes, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let count = N.min(self.0.len());
        array[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        array
    }
}
