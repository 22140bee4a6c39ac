//! Bytes between a descriptor and buffers in guest memory, in one system call.
//!
//! Knows no rings and no headers.
#![allow(unsafe_code, reason = "readv and writev straight into guest memory, which no safe reference may point into")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::GuestMemory as _;

use super::{GuestMemory, Segment};

/// Most buffers in one system call (IOV_MAX).
const BUFFERS_MAX: usize = 1024;

/// A list of buffers, filled for one call and used again for the next.
#[derive(Default)]
pub(super) struct Buffers(Vec<libc::iovec>);

// SAFETY: the pointers are used only by the call for which they were put in, and taken out before it returns.
unsafe impl Send for Buffers {}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Buffers").field(&self.0.len()).finish()
    }
}

/// A system call that moves bytes between a descriptor and buffers.
type Move = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int) -> isize;

impl Buffers {
    /// Writes `head`, and then the segments from byte `skip` on; says how many bytes were taken.
    ///
    /// # Errors
    /// The system call's.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        memory: &GuestMemory,
        head: &[u8],
        (segments, skip): (&[Segment], u32),
    ) -> io::Result<usize> {
        self.0.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
        self.collect(memory, segments.iter(), skip).and_then(|()| self.transfer(libc::writev, fd))
    }

    /// Reads into the segments, and what they have no room for into `rest`; says how many bytes there were.
    ///
    /// # Errors
    /// The system call's.
    pub(super) fn read<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        memory: &GuestMemory,
        segments: impl Iterator<Item = &'a Segment>,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        self.collect(memory, segments, 0)?;
        self.0.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() });
        self.transfer(libc::readv, fd)
    }

    /// Reads at most `most` bytes into several lists of segments, one after the other, of each from byte `skip` on, as far as one call
    /// takes them; says how many bytes there were.
    ///
    /// # Errors
    /// The system call's.
    pub(super) fn scatter<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        memory: &GuestMemory,
        (lists, skip): (impl Iterator<Item = &'a [Segment]>, u32),
        most: u32,
    ) -> io::Result<usize> {
        for list in lists {
            self.collect(memory, list.iter(), skip)?;
        }
        // The rest is for another time.
        self.0.truncate(BUFFERS_MAX);
        let mut left = most as usize;
        for buffer in &mut self.0 {
            buffer.iov_len = buffer.iov_len.min(left);
            left -= buffer.iov_len;
        }
        self.transfer(libc::readv, fd)
    }

    fn collect<'a>(
        &mut self,
        memory: &GuestMemory,
        segments: impl Iterator<Item = &'a Segment>,
        mut skip: u32,
    ) -> io::Result<()> {
        for segment in segments {
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            // Cannot fail: a segment lies within RAM.
            let whole = memory.get_slice(segment.address, segment.len as usize).map_err(io::Error::other);
            let slice =
                whole.and_then(|whole| whole.offset(std::mem::take(&mut skip) as usize).map_err(io::Error::other));
            match slice {
                Ok(slice) => {
                    let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                    self.0.push(libc::iovec { iov_base, iov_len: slice.len() });
                }
                Err(error) => {
                    self.0.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn transfer(&mut self, call: Move, fd: BorrowedFd<'_>) -> io::Result<usize> {
        if self.0.len() > BUFFERS_MAX {
            self.0.clear();
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let count = loop {
            // SAFETY: the buffers are this process's own, borrowed for the call, or lie in guest RAM, which `memory` keeps mapped; the
            // guest may write there at the same time, and nothing here has a reference into it.
            let count = unsafe { call(fd.as_raw_fd(), self.0.as_ptr(), self.0.len() as libc::c_int) };
            if count >= 0 {
                break Ok(count as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                break Err(error);
            }
        };
        self.0.clear();
        count
    }
}
