//! A volume that becomes larger while containers have it: first the part of its disk, then the file system on it.
#![allow(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no safe wrapper")]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::fstatfs;
use rustix::ioctl::{Opcode, opcode};

use super::device::{Device, ioctl};
use crate::error::Error;

/// linux/magic.h
const EXT4: u64 = 0xef53;
/// linux/ext4.h: to so many blocks.
const RESIZE: Opcode = opcode::write::<u64>(b'f', 16);

/// What grows.
#[derive(Debug)]
pub(crate) struct Growth {
    pub(super) device: Device,
    /// Where its file system is mounted, if it has one.
    pub(super) mounted: Option<PathBuf>,
}

impl Growth {
    /// Grows to `length` bytes. May be done again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what does not grow, or not so far.
    pub(crate) async fn carry_out(self, length: u64) -> Result<(), Error> {
        self.device.grow(length).await?;
        let Some(path) = self.mounted else { return Ok(()) };
        // It writes as much as the file system needs for its tables.
        let grown = tokio::task::spawn_blocking(move || grow(&path, length)).await;
        let grown = grown.map_err(io::Error::from).flatten();
        grown.map_err(|cause| Error::InvalidArgument(format!("the file system does not grow: {cause}")))
    }
}

fn grow(path: &Path, length: u64) -> io::Result<()> {
    let folder = File::open(path)?;
    let status = fstatfs(&folder)?;
    if status.f_type as u64 != EXT4 {
        return Err(io::Error::other("only ext4 does"));
    }
    let blocks = length / status.f_bsize as u64;
    // SAFETY: the kernel reads the number, which lives until it returns.
    unsafe { ioctl(&folder, RESIZE, (&raw const blocks).cast()) }
}
