//! The caller's terminal: its size, and raw mode that is left again on every way out.
//!
//! Knows nothing of what is typed into it. Should the process die without running any of this, the undertaker restores the
//! terminal.

#![allow(unsafe_code, reason = "asking a terminal for its size")]

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

nix::ioctl_read_bad!(
    /// Asks a terminal for its size.
    window_size, libc::TIOCGWINSZ,
    libc::winsize
);

/// Rows and columns of the terminal that standard output or input is, if either is one.
pub fn size() -> Option<(u16, u16)> {
    [io::stdout().as_raw_fd(), io::stdin().as_raw_fd()].into_iter().find_map(|fd| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel fills the structure that the pointer names.
        unsafe { window_size(fd, &raw mut size) }.ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    })
}

/// Standard input's terminal and its present attributes, if it is one.
pub fn saved() -> Option<(OwnedFd, Termios)> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    Some((stdin.as_fd().try_clone_to_owned().ok()?, tcgetattr(&stdin).ok()?))
}

/// Whether standard input was a terminal that has been hung up since.
pub fn is_gone() -> bool {
    matches!(tcgetattr(io::stdin()), Err(Errno::EIO))
}

/// Raw mode, as long as it lives: every key goes to the container, none to this host.
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Enters it on standard input.
    ///
    /// # Errors
    /// When standard input is no terminal.
    pub fn enter() -> io::Result<RawMode> {
        let (terminal, before) = saved().ok_or_else(|| io::Error::other("standard input is not a terminal"))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(RawMode { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if is_gone() {
            return;
        }
        if let Err(error) = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before) {
            log::warn!("cannot restore the terminal: {error}");
        }
    }
}
