//! A command on a terminal: what a person at a keyboard does to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use crate::PATIENCE;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);
nix::ioctl_write_int_bad!(take_terminal, libc::TIOCSCTTY);

/// A command whose standard streams are a pseudo terminal, which is its controlling terminal too.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `command` on a new terminal.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let pair = openpty(&size(rows, columns), None).expect("a pseudo terminal");
        let slave = File::from(pair.slave);
        let clone = || slave.try_clone().expect("a descriptor");
        command.stdin(clone()).stdout(clone()).stderr(clone());
        own_session(&mut command);
        let child = command.spawn().expect("the command starts");
        drop((command, slave));

        let keyboard = File::from(pair.master);
        let mut reader = keyboard.try_clone().expect("a descriptor");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&screen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose last user went away reads as an error.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock().expect("not poisoned").extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, keyboard, screen }
    }

    /// Types `keys`.
    pub fn send(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Changes the window's size.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.keyboard, &size(rows, columns));
    }

    /// What stands on the screen.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("not poisoned")).into_owned()
    }

    /// Waits until `text` stands on the screen.
    pub fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.screen().contains(text) {
            assert!(Instant::now() < deadline, "{text:?} did not come; the screen: {}", self.screen());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the command's end and gives its exit status as a shell would.
    pub fn finish(mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(Instant::now() < deadline, "still running; the screen: {}", self.screen());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[allow(unsafe_code, reason = "TIOCSWINSZ has no safe wrapper")]
fn set_size(terminal: &File, size: &Winsize) {
    // SAFETY: the descriptor is open and the structure lives through the call.
    unsafe { set_window_size(terminal.as_raw_fd(), size) }.expect("the window can be resized");
}

#[allow(unsafe_code, reason = "a controlling terminal can only be taken in the child, between fork and exec")]
fn own_session(command: &mut Command) {
    let become_leader = || {
        nix::unistd::setsid()?;
        // SAFETY: standard input is the terminal; the call touches no memory.
        unsafe { take_terminal(0, 0) }?;
        Ok(())
    };
    // SAFETY: only two system calls happen between fork and exec; nothing is allocated.
    unsafe { command.pre_exec(become_leader) };
}
