//! What is left of older machines: a serial line, a clock, and the keyboard controller's reset command.
//!
//! The registers are vm-superio's; here they get an address and a lock.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use vm_superio::rtc_pl031::NoEvents;
use vm_superio::{I8042Device, Rtc, Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::stop::StopSignal;

/// The serial line's interrupt.
pub(crate) struct SerialInterrupt(EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550 whose output goes to `W`. Nothing comes in.
pub(crate) struct SerialPort<W: Write>(Mutex<Serial<SerialInterrupt, vm_superio::serial::NoEvents, W>>);

impl<W: Write> SerialPort<W> {
    /// A serial line, and the event that its interrupt is to be connected to.
    ///
    /// # Errors
    /// When no event descriptor is to be had.
    pub(crate) fn new(out: W) -> io::Result<(SerialPort<W>, EventFd)> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let serial = Serial::new(SerialInterrupt(event.try_clone()?), out);
        Ok((SerialPort(Mutex::new(serial)), event))
    }
}

impl<W: Write + Send> BusDevice for SerialPort<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in data {
            *byte = serial.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in data {
            // A listener that is gone is not the guest's fault: its output is lost, as on an unplugged line.
            let _ = serial.write(offset as u8, *byte);
        }
    }
}

/// A terminal that the guest writes to by calls. Nothing comes in.
pub(crate) struct Terminal<W: Write>(Mutex<W>);

impl<W: Write> Terminal<W> {
    /// One whose output goes to `out`.
    pub(crate) fn new(out: W) -> Terminal<W> {
        Terminal(Mutex::new(out))
    }
}

impl<W: Write + Send> BusDevice for Terminal<W> {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        // As with a serial line whose listener is gone.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(data);
    }
}

/// The time of day (pl031). It has an alarm, which nobody here hears.
#[derive(Default)]
pub(crate) struct Clock(Mutex<Rtc<NoEvents>>);

impl BusDevice for Clock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Its registers are words; whatever else is asked of them reads as nothing.
        match data.try_into() {
            Ok(word) => self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset as u16, word),
            Err(_) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(word) = data.try_into() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset as u16, word);
        }
    }
}

/// The keyboard controller, which knows one command: reset.
pub(crate) struct ResetPort(Mutex<I8042Device<StopSignal>>);

impl ResetPort {
    /// `stop` is given when the guest asks for a reset.
    pub(crate) fn new(stop: StopSignal) -> ResetPort {
        ResetPort(Mutex::new(I8042Device::new(stop)))
    }
}

impl BusDevice for ResetPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset as u8));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for byte in data {
            let Ok(()) = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset as u8, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop::StopReason;

    #[test]
    fn a_byte_to_the_data_register_comes_out() {
        let (port, _event) = SerialPort::new(Vec::new()).unwrap();
        port.write(0, b"a");
        port.write(0, b"bc");
        assert_eq!(port.0.lock().unwrap().writer().as_slice(), b"abc");
    }

    #[test]
    fn a_terminal_takes_whole_calls() {
        let terminal = Terminal::new(Vec::new());
        terminal.write(0, b"Hello, ");
        terminal.write(0, b"world");
        assert_eq!(terminal.0.lock().unwrap().as_slice(), b"Hello, world");
    }

    #[test]
    fn the_clock_tells_the_time_in_words() {
        let clock = Clock::default();
        let mut word = [0; 4];
        clock.read(0, &mut word);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(now.abs_diff(u32::from_le_bytes(word).into()) < 10);
        clock.write(0, &[1]);
        let mut byte = [7];
        clock.read(0, &mut byte);
        assert_eq!(byte, [0]);
    }

    #[test]
    fn only_the_reset_command_resets() {
        let stop = StopSignal::new().unwrap();
        let port = ResetPort::new(stop.clone());
        port.write(0, &[0xfe]);
        port.write(4, &[0xd1]);
        let mut status = [0xff];
        port.read(4, &mut status);
        assert_eq!((stop.reason(), status), (None, [0]));
        port.write(4, &[0xfe]);
        assert_eq!(stop.reason(), Some(StopReason::GuestReset));
    }
}
