//! How much an image may unpack to: what the file system has room for.
//!
//! A layer of a few kilobytes can decompress to any size. The bound is not a number out of the air but the free space
//! of the file system that would have to hold it, less a reserve, so that a bomb fails before the disk is full.

use rustix::fs::fstatvfs;
use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::AsFd;

/// Space that unpacking leaves free, in bytes.
const RESERVE_BYTES: u64 = 32 << 20;
/// File entries that unpacking leaves free.
const RESERVE_ENTRIES: u64 = 1000;
/// The largest number of archive entries in one image, however large the disk is.
const MAX_ENTRIES: u64 = 4_000_000;

/// Bytes that may still be written on the file system of `fd`, with the reserve taken off.
pub(crate) fn free_bytes(fd: impl AsFd) -> io::Result<u64> {
    let stat = fstatvfs(fd)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(RESERVE_BYTES))
}

/// What is left for an image while it is unpacked.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Cell<u64>,
    entries: Cell<u64>,
}

/// The image wants more than there is.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// More bytes than the disk has free.
    #[error("it unpacks to more than the free disk space")]
    Bytes,
    /// More files than the file system or any sane image has.
    #[error("it holds more files than the file system has room for")]
    Entries,
}

impl Budget {
    /// The budget of the file system that `fd` is on.
    pub(super) fn of(fd: impl AsFd) -> io::Result<Budget> {
        let stat = fstatvfs(&fd)?;
        // btrfs and others without a fixed number of inodes say 0 in both.
        let entries = if stat.f_files == 0 { MAX_ENTRIES } else { stat.f_favail.saturating_sub(RESERVE_ENTRIES) };
        Ok(Budget::new(free_bytes(fd)?, entries.min(MAX_ENTRIES)))
    }

    /// A budget of so many bytes and entries.
    pub(super) fn new(bytes: u64, entries: u64) -> Budget {
        Budget { bytes: Cell::new(bytes), entries: Cell::new(entries) }
    }

    /// Takes one entry.
    pub(super) fn take_entry(&self) -> Result<(), BudgetError> {
        self.entries.set(self.entries.get().checked_sub(1).ok_or(BudgetError::Entries)?);
        Ok(())
    }

    /// Takes bytes.
    pub(super) fn take_bytes(&self, count: u64) -> Result<(), BudgetError> {
        self.bytes.set(self.bytes.get().checked_sub(count).ok_or(BudgetError::Bytes)?);
        Ok(())
    }
}

/// Lets a stream through as long as the budget lasts.
pub(super) struct BudgetReader<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<'a, R: Read> BudgetReader<'a, R> {
    pub(super) fn new(inner: R, budget: &'a Budget) -> BudgetReader<'a, R> {
        BudgetReader { inner, budget }
    }
}

impl<R: Read> Read for BudgetReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget.take_bytes(count as u64).map_err(|error| io::Error::new(io::ErrorKind::StorageFull, error))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_beyond_the_budget_fails() {
        let budget = Budget::new(10, 0);
        let error = io::copy(&mut BudgetReader::new(&[0; 11][..], &budget), &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let budget = Budget::new(11, 0);
        assert_eq!(io::copy(&mut BudgetReader::new(&[0; 11][..], &budget), &mut io::sink()).unwrap(), 11);
        assert!(matches!(budget.take_entry(), Err(BudgetError::Entries)));
    }
}
