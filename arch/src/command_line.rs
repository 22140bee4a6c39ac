//! Puts the kernel's command line together, so that nothing a caller adds can break out of it.
//!
//! Knows the parameters common to all machines; each [`crate::Machine`] adds its own.

use linux_loader::cmdline::Cmdline;
use vm_memory::GuestAddress;

use crate::machine::{DeviceSlot, Machine};

/// Why a command line cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// Longer than the kernel reads.
    #[error("the kernel command line has more than {0} bytes: pass fewer kernel parameters")]
    TooLong(usize),
    /// A byte that is not printable ASCII.
    #[error("kernel parameters may hold printable ASCII only: {0:?}")]
    NotPrintable(String),
}

/// A kernel command line in the making.
pub struct CommandLine {
    inner: Cmdline,
}

impl CommandLine {
    /// The most bytes that Linux reads on every architecture we know (its `COMMAND_LINE_SIZE`), with the final zero.
    pub const CAPACITY: usize = 2048;

    /// Quiet, quick, and a reset instead of a hang: what every guest gets.
    ///
    /// Drivers probe the devices that are there and nothing else, and no network interface stands for none; a panic resets at once,
    /// which the VMM notices; the host vouches for the seed; grace periods are short because a booting guest waits for many of them;
    /// a disk's queue is long for the sake of long requests, not of many.
    const COMMON: &'static str = "panic=-1 random.trust_cpu=on random.trust_bootloader=on rcupdate.rcu_expedited=1 \
                                  cryptomgr.notests dummy.numdummies=0 virtio_blk.queue_depth=128";

    /// Starts with what `M` needs to boot `vcpus` processors; `console` lets the guest's kernel talk on its serial line,
    /// where otherwise only its last words are heard.
    ///
    /// # Errors
    /// Never for the parameters built in; kept fallible because the line is bounded.
    pub fn new<M: Machine>(vcpus: u8, console: Option<&str>) -> Result<CommandLine, CommandLineError> {
        let mut line =
            CommandLine { inner: Cmdline::new(Self::CAPACITY).map_err(|_| CommandLineError::TooLong(Self::CAPACITY))? };
        // The kernel reads these in order: silence must come before the early console that it silences. Without a console there
        // is nothing for the serial driver to probe, and the early console stays for last words.
        match console {
            Some(console) => line.add(&format!("console={console}"))?,
            None if M::SERIAL.is_some() => line.add("quiet loglevel=1 keep_bootcon 8250.nr_uarts=0")?,
            // A terminal needs no probing, and the kernel speaks through it unasked: kept beside it, an early console says all twice.
            None => line.add("quiet loglevel=1")?,
        }
        line.add(Self::COMMON)?;
        line.add(M::command_line())?;
        line.add(&format!("maxcpus={vcpus}"))?;
        Ok(line)
    }

    /// Appends parameters, separated by blanks.
    ///
    /// # Errors
    /// When the line would be too long or `parameters` holds anything but printable ASCII.
    pub fn add(&mut self, parameters: &str) -> Result<(), CommandLineError> {
        let parameters = parameters.trim();
        if parameters.is_empty() {
            return Ok(());
        }
        if !parameters.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(CommandLineError::NotPrintable(parameters.to_owned()));
        }
        self.inner.insert_str(parameters).map_err(|_| CommandLineError::TooLong(Self::CAPACITY))
    }

    /// Announces a virtio-mmio device (Linux: `virtio_mmio.device=`).
    ///
    /// # Errors
    /// When the line would be too long.
    pub fn add_device(&mut self, slot: DeviceSlot) -> Result<(), CommandLineError> {
        self.inner
            .add_virtio_mmio_device(slot.size, GuestAddress(slot.address), slot.irq, None)
            .map_err(|_| CommandLineError::TooLong(Self::CAPACITY))
    }

    /// The line as the kernel will read it, without the final zero.
    ///
    /// # Errors
    /// When it is too long after all.
    pub fn finish(self) -> Result<String, CommandLineError> {
        let line = self.inner.as_cstring().map_err(|_| CommandLineError::TooLong(Self::CAPACITY))?;
        line.into_string().map_err(|_| CommandLineError::NotPrintable(String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppc64le::Ppc64le;
    use crate::x86_64::X86_64;

    #[test]
    fn says_what_the_kernel_needs() {
        let mut line = CommandLine::new::<X86_64>(2, None).unwrap();
        line.add_device(X86_64::device_slot(0).unwrap()).unwrap();
        line.add(" a=b  ").unwrap();
        let line = line.finish().unwrap();
        assert!(line.starts_with("quiet loglevel=1 keep_bootcon 8250.nr_uarts=0 "), "{line}");
        assert!(line.ends_with(" maxcpus=2 virtio_mmio.device=4K@0xd0000000:5 a=b"), "{line}");
        assert!(!line.contains("console="), "{line}");
    }

    #[test]
    fn what_the_kernel_speaks_through_unasked_needs_no_second_console() {
        let line = CommandLine::new::<Ppc64le>(1, None).unwrap().finish().unwrap();
        assert!(line.starts_with("quiet loglevel=1 panic=-1 "), "{line}");
    }

    #[test]
    fn a_console_ends_the_silence() {
        let line = CommandLine::new::<X86_64>(1, Some("ttyS0")).unwrap().finish().unwrap();
        assert!(line.starts_with("console=ttyS0 "), "{line}");
        assert!(!line.contains("quiet"), "{line}");
    }

    #[test]
    fn refuses_control_characters_and_excess() {
        let mut line = CommandLine::new::<X86_64>(1, None).unwrap();
        assert!(matches!(line.add("init=/bin/sh\nx"), Err(CommandLineError::NotPrintable(_))));
        assert_eq!(line.add(&"x".repeat(CommandLine::CAPACITY)), Err(CommandLineError::TooLong(2048)));
    }
}
