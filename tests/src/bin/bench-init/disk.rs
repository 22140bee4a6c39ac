//! The disk benchmark in the guest: /dev/vda past the guest's page cache, with io_uring.
#![allow(unsafe_code, reason = "io_uring takes buffers by address")]

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use nix::mount::{MsFlags, mount};

/// What is measured.
struct Case {
    name: &'static str,
    write: bool,
    random: bool,
    bytes: usize,
    depth: usize,
    requests: usize,
}

const fn case(name: &'static str, write: bool, random: bool, bytes: usize, depth: usize, requests: usize) -> Case {
    Case { name, write, random, bytes, depth, requests }
}

const CASES: [Case; 6] = [
    case("read-4k-1", false, true, 4096, 1, 200),
    case("write-4k-1", true, true, 4096, 1, 200),
    case("read-4k-32", false, true, 4096, 32, 1600),
    case("write-4k-32", true, true, 4096, 32, 1600),
    case("read-1m", false, false, 1 << 20, 1, 32),
    case("write-1m", true, false, 1 << 20, 1, 32),
];

/// Aligned as O_DIRECT wants it.
#[derive(Clone)]
#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "only its place in memory matters")] [u8; 4096]);

/// `NAME=REQUESTS/NANOSECONDS …`.
pub(crate) fn measure() -> Result<String> {
    fs::create_dir_all("/dev")?;
    mount(None::<&str>, "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>).context("mounting /dev")?;
    let mut disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open("/dev/vda")?;
    let size = disk.seek(SeekFrom::End(0))?;
    let mut line = String::new();
    for case in &CASES {
        // Once for the caches of whoever has some, once for the clock.
        run(&disk, size, case, case.requests / 8)?;
        let took = run(&disk, size, case, case.requests).with_context(|| case.name)?;
        line += &format!(" {}={}/{}", case.name, case.requests, took.as_nanos());
    }
    Ok(line)
}

/// How long `requests` requests take of which `depth` are always under way.
fn run(disk: &File, size: u64, case: &Case, requests: usize) -> Result<Duration> {
    let mut ring: IoUring = IoUring::builder().build(32)?;
    let mut buffers = vec![Page([7; 4096]); case.depth * case.bytes / 4096];
    let places = size / case.bytes as u64;
    let (mut dice, mut begun, mut ended) = (0x9e37_79b9_7f4a_7c15_u64, 0_usize, 0);
    let mut vacant: Vec<usize> = (0..case.depth).collect();
    let start = Instant::now();
    while ended < requests {
        while begun < requests
            && let Some(slot) = vacant.pop()
        {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let place = if case.random { dice % places } else { begun as u64 % places } * case.bytes as u64;
            let (image, len) = (types::Fd(disk.as_raw_fd()), case.bytes as u32);
            let buffer = buffers[slot * case.bytes / 4096..].as_mut_ptr().cast::<u8>();
            let entry = match case.write {
                true => opcode::Write::new(image, buffer, len).offset(place).build(),
                false => opcode::Read::new(image, buffer, len).offset(place).build(),
            };
            // SAFETY: the buffer is in `buffers`, which outlives the ring's use of it: all requests are awaited below.
            unsafe { ring.submission().push(&entry.user_data(slot as u64)) }.context("a full ring")?;
            begun += 1;
        }
        ring.submit_and_wait(1)?;
        for answer in ring.completion() {
            ensure!(answer.result() == case.bytes as i32, "a request ended with {}", answer.result());
            vacant.push(answer.user_data() as usize);
            ended += 1;
        }
    }
    Ok(start.elapsed())
}
