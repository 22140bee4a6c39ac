//! The developer's terminal: its size, and raw mode that is undone however the client ends.

use std::io;
use std::os::fd::AsFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::termios::tcgetwinsize;
use tatami_testhost::wire::Size;

/// Size assumed where there is no terminal to ask.
const FALLBACK: Size = Size { rows: 24, cols: 80 };

/// The terminal's size now.
#[must_use]
pub(crate) fn size() -> Size {
    tcgetwinsize(io::stdin()).map_or(FALLBACK, |size| Size { rows: size.ws_row, cols: size.ws_col })
}

/// Raw mode on stdin: every key goes to the command. Dropped, the terminal is as before.
#[derive(Debug)]
pub(crate) struct Raw(Termios);

impl Raw {
    /// Enters raw mode; `None` where stdin is no terminal.
    #[must_use]
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(io::stdin().as_fd()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}
