//! The guest's memory: how much has come to what it began with, as the host adds it and takes it back.
//!
//! Knows the kernel's numbers (proc_meminfo(5)); who adds, and when, is the host's.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::figures::kibibytes;

/// Where the kernel tells.
const FILE: &str = "/proc/meminfo";
/// How long is waited for what does not come: it may be that the kernel has nowhere to put it.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// What there was at first, bytes.
static FIRST: OnceLock<u64> = OnceLock::new();

/// Remembers how much there is at first: to be called before anything can have been added.
pub(crate) fn remember() {
    match total(Path::new(FILE)) {
        Ok(bytes) => drop(FIRST.set(bytes)),
        Err(cause) => log::warn!("how much memory there is: {cause}"),
    }
}

/// Returns when `wanted` bytes have come to what there was at first, or after [`PATIENCE`]; how much has come.
pub(crate) async fn added(wanted: u64) -> Result<u64, Error> {
    let first = *FIRST.get().ok_or_else(|| Error::Internal("nobody knows how much memory there was".to_owned()))?;
    added_to(Path::new(FILE), first, wanted, PATIENCE).await
}

async fn added_to(file: &Path, first: u64, wanted: u64, patience: Duration) -> Result<u64, Error> {
    let deadline = Instant::now() + patience;
    loop {
        let added = total(file)?.saturating_sub(first);
        if added >= wanted || Instant::now() > deadline {
            return Ok(added);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn total(file: &Path) -> Result<u64, Error> {
    let failed = |cause: &dyn std::fmt::Display| Error::Internal(format!("read {}: {cause}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|cause| failed(&cause))?;
    kibibytes(&text, "MemTotal").ok_or_else(|| failed(&"it has no MemTotal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn what_comes_is_waited_for_and_what_does_not_come_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("meminfo");
        std::fs::write(&file, "MemTotal:         262144 kB\nMemFree: 1 kB\n").unwrap();
        let short = Duration::from_millis(10);
        assert_eq!(run(added_to(&file, 256 * MIB, 0, short)).unwrap(), 0);
        assert_eq!(run(added_to(&file, 256 * MIB, MIB, short)).unwrap(), 0);
        let later = file.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(short);
            let new = later.with_extension("new");
            std::fs::write(&new, "MemTotal:  393216 kB\n").unwrap();
            std::fs::rename(new, later).unwrap();
        });
        assert_eq!(run(added_to(&file, 256 * MIB, 128 * MIB, PATIENCE)).unwrap(), 128 * MIB);
        writer.join().unwrap();
    }

    #[test]
    fn a_file_that_says_nothing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("meminfo");
        for text in ["", "MemTotal: x kB\n", "MemTotal:\n"] {
            std::fs::write(&file, text).unwrap();
            assert!(total(&file).unwrap_err().to_string().contains("meminfo"), "{text}");
        }
    }
}
