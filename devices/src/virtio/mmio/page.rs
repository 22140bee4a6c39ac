//! A device's registers as a page of memory that its guest may read: the values stand there, and no read leaves the guest.
//!
//! A driver reads the interrupt status with every interrupt; trapped, that is an exit to user space a request. Knows no registers
//! but those of which devices' threads set bits while a driver looks: that one, whose home is here, and the device status.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

use super::{INTERRUPT_STATUS, REGION_BYTES, STATUS};
use crate::virtio::spec::STATUS_NEEDS_RESET;

/// [`REGION_BYTES`] of memory, page-aligned, to be mapped where the device answers, for reading only.
pub struct RegisterPage(MmapRegion);

impl fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegisterPage").field(&self.0.as_ptr()).finish()
    }
}

impl RegisterPage {
    /// A page of zeros.
    pub(super) fn new() -> io::Result<RegisterPage> {
        Ok(RegisterPage(MmapRegion::new(REGION_BYTES as usize).map_err(io::Error::other)?))
    }

    /// Where it is in this process, for as long as it lives.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    /// The interrupt status register.
    pub(in crate::virtio) fn interrupt_status(&self) -> &AtomicU32 {
        self.word(INTERRUPT_STATUS)
    }

    /// The device asks for a reset.
    pub(in crate::virtio) fn ask_for_reset(&self) {
        self.word(STATUS).fetch_or(u32::from(STATUS_NEEDS_RESET).to_le(), Ordering::SeqCst);
    }

    /// Makes the 32 bits at `offset` (a multiple of 4 in the page) those of `value`; whether they were others before.
    pub(super) fn set(&self, offset: u64, value: u32) -> bool {
        let (word, value) = (self.word(offset), value.to_le());
        let differs = word.load(Ordering::Relaxed) != value;
        if differs {
            word.store(value, Ordering::SeqCst);
        }
        differs
    }

    /// What a guest reads at `offset`.
    #[cfg(test)]
    pub(super) fn get(&self, offset: u64) -> u32 {
        u32::from_le(self.word(offset).load(Ordering::Acquire))
    }

    fn word(&self, offset: u64) -> &AtomicU32 {
        self.0.get_atomic_ref(offset as usize).expect("an aligned word of the page")
    }
}
