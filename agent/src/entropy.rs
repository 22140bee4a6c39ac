//! The kernel's random generator, and bytes from the host for it.
#![allow(unsafe_code, reason = "two ioctls of /dev/urandom have no wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// `RNDADDENTROPY`, whose number is made of the two integers before the bytes, and `RNDRESEEDCRNG` of linux/random.h.
nix::ioctl_write_ptr!(add_entropy, b'R', 0x03, [libc::c_int; 2]);
nix::ioctl_none!(reseed, b'R', 0x07);

/// The most bytes taken at once.
const LIMIT: usize = 256;

/// `struct rand_pool_info`, with room.
#[repr(C)]
struct PoolInfo {
    bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; LIMIT],
}

/// Adds `bytes`, all of them counted as random, and makes the generator start anew from all that it has. Does nothing without bytes.
///
/// # Errors
/// The kernel's.
pub(crate) fn add(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let bytes = &bytes[..bytes.len().min(LIMIT)];
    let mut info = PoolInfo { bits: 8 * bytes.len() as i32, bytes: bytes.len() as i32, buffer: [0; LIMIT] };
    info.buffer[..bytes.len()].copy_from_slice(bytes);
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the structure, whose buffer is as long as it says.
    unsafe { add_entropy(device.as_raw_fd(), (&raw const info).cast()) }?;
    // SAFETY: this one takes no argument.
    unsafe { reseed(device.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_what_it_is_given() {
        add(&[]).unwrap();
        add(&[7; 32]).unwrap();
        add(&[7; 1000]).unwrap();
    }
}
