//! The file benchmark in the guest: a folder of the host, or of a container, through the page cache, which is emptied before it would
//! answer.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// MiB that are read and written in sequence.
const SEQUENTIAL: usize = 32;
/// Pieces of 4 KiB that are read and written here and there.
const RANDOM: usize = 1000;
/// Small files: as many as an emulated host makes in a minute or two.
const FILES: usize = 2000;
/// In so many folders.
const FOLDERS: usize = 100;

const FOLDER: &str = "/shared";

/// Name, requests, and what makes them.
type Case = (&'static str, usize, fn() -> Result<Duration>);

/// Those that read are of what the first has written.
const CASES: [Case; 7] = [
    ("write-1m", SEQUENTIAL, write),
    ("read-1m", SEQUENTIAL, read),
    ("read-4k", RANDOM, read_here_and_there),
    ("write-4k", RANDOM, write_here_and_there),
    ("create", FILES, create),
    ("look-up", FILES, look_up),
    ("remove", FILES, remove),
];

/// `NAME=REQUESTS/NANOSECONDS …`.
pub(crate) fn measure() -> Result<String> {
    fs::create_dir_all(FOLDER)?;
    mount(Some("shared"), FOLDER, Some("virtiofs"), MsFlags::empty(), None::<&str>).context("mounting the folder")?;
    fs::create_dir_all("/proc")?;
    mount(None::<&str>, "/proc", Some("proc"), MsFlags::empty(), None::<&str>).context("mounting /proc")?;
    let line = CASES.iter().map(run).collect::<Result<String>>()?;
    fs::remove_file(large())?;
    Ok(line)
}

/// The same of one case, in a container, whose own the folder is.
pub(crate) fn measure_one(name: &str) -> Result<String> {
    fs::create_dir_all(FOLDER)?;
    run(CASES.iter().find(|(known, ..)| *known == name).context("no such case")?)
}

fn run((name, requests, case): &Case) -> Result<String> {
    let took = case().with_context(|| *name)?;
    Ok(format!(" {name}={requests}/{}", took.as_nanos()))
}

fn large() -> String {
    format!("{FOLDER}/large")
}

fn small(number: usize) -> String {
    format!("{FOLDER}/{}/{number}", number % FOLDERS)
}

/// The guest's kernel forgets what it has read.
fn forget() -> Result<()> {
    nix::unistd::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn write() -> Result<Duration> {
    let piece = vec![7; 1 << 20];
    timed(|| {
        let mut file = File::create(large())?;
        (0..SEQUENTIAL).try_for_each(|_| file.write_all(&piece))?;
        Ok(file.sync_all()?)
    })
}

fn read() -> Result<Duration> {
    forget()?;
    let mut piece = vec![0; 1 << 20];
    timed(|| {
        let mut file = File::open(large())?;
        Ok((0..SEQUENTIAL).try_for_each(|_| file.read_exact(&mut piece))?)
    })
}

fn read_here_and_there() -> Result<Duration> {
    forget()?;
    let mut piece = [0; 4096];
    let file = File::open(large())?;
    timed(|| Ok(places().try_for_each(|place| file.read_exact_at(&mut piece, place))?))
}

fn write_here_and_there() -> Result<Duration> {
    let file = OpenOptions::new().write(true).open(large())?;
    timed(|| {
        places().try_for_each(|place| file.write_all_at(&[9; 4096], place))?;
        Ok(file.sync_all()?)
    })
}

/// Where in the large file, the same for everybody.
fn places() -> impl Iterator<Item = u64> {
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % (SEQUENTIAL as u64 * 256) * 4096
    })
    .take(RANDOM)
}

fn create() -> Result<Duration> {
    (0..FOLDERS).try_for_each(|folder| fs::create_dir(format!("{FOLDER}/{folder}")))?;
    timed(|| Ok((0..FILES).try_for_each(|number| fs::write(small(number), b"a few bytes"))?))
}

fn look_up() -> Result<Duration> {
    forget()?;
    timed(|| Ok((0..FILES).try_for_each(|number| fs::metadata(small(number)).map(drop))?))
}

fn remove() -> Result<Duration> {
    let took = timed(|| Ok((0..FILES).try_for_each(|number| fs::remove_file(small(number)))?))?;
    (0..FOLDERS).try_for_each(|folder| fs::remove_dir(format!("{FOLDER}/{folder}")))?;
    Ok(took)
}
