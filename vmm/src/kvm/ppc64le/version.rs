//! What a guest takes its processor for, and whether it may go on on another one.
//!
//! Guests see the processor's own version register, which no hypervisor can change, and programs in them have looked at it. Plain data that
//! compiles, and is tested, everywhere.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A processor, as a guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Processor {
    /// Its version and revision (Power ISA 3.0B, book III, section 4.3.1).
    pub(crate) version: u32,
    /// The version of the architecture that it behaves as, or 0 for its own.
    pub(crate) compatible: u32,
}

impl Processor {
    /// Whether what ran on this one can go on on that.
    ///
    /// # Errors
    /// Says on what it can.
    pub(crate) fn can_be(self, other: Processor) -> Result<(), String> {
        if self == other {
            return Ok(());
        }
        Err(format!("it was saved on {self}, and this host has {other}: restore it on a host like that one"))
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a processor of version {:#x}", self.version)?;
        match self.compatible {
            0 => Ok(()),
            compatible => write!(f, " that behaves as one of {compatible:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_on_on_another_processor() {
        let power9 = Processor { version: 0x4e_1202, compatible: 0 };
        assert_eq!(power9.can_be(power9), Ok(()));
        let told = power9.can_be(Processor { version: 0x80_0200, compatible: 0 }).unwrap_err();
        assert!(
            told.contains(
                "saved on a processor of version 0x4e1202, and this host has a processor of version 0x800200"
            ),
            "{told}"
        );
        let told = power9.can_be(Processor { compatible: 0xf00_0004, ..power9 }).unwrap_err();
        assert!(told.contains("behaves as one of 0xf000004"), "{told}");
    }
}
