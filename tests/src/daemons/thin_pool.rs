//! A pool of thinly provisioned disks for containerd's devmapper snapshotter: two files, loop devices on them, and dm-thin on
//! those.
//!
//! Knows what `dmsetup` and `losetup` say; nothing of what containerd makes of the pool.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::loop_disk;
use crate::running::said;

/// What the names of the files behind a pool begin with.
pub(crate) const FILES: &str = "thin-pool.";
/// Bytes that the disks of a pool may hold together. Sparse: what is not written takes no place.
const DATA_BYTES: u64 = 1 << 30;
/// Bytes for what the pool notes about them.
const META_BYTES: u64 = 16 << 20;
/// Bytes of a sector, device mapper's unit.
const SECTOR: u64 = 512;
/// Sectors that are provided at a time: 64 KiB.
const BLOCK: u64 = 128;

/// A pool. Dropped, it is removed, with every disk that is left in it.
pub(crate) struct ThinPool {
    name: String,
}

impl ThinPool {
    /// Makes the pool `name` from files in `folder`.
    ///
    /// # Panics
    /// When it cannot be made: no dmsetup, no dm-thin-pool in the kernel.
    pub(crate) fn new(name: &str, folder: &Path) -> Self {
        let [meta, data] = [("meta", META_BYTES), ("data", DATA_BYTES)].map(|(file, bytes)| {
            let path = folder.join(format!("{FILES}{file}"));
            File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file");
            loop_disk::attach(&path)
        });
        let table = format!("0 {} thin-pool {meta} {data} {BLOCK} 0 1 skip_block_zeroing", DATA_BYTES / SECTOR);
        said(dmsetup().args(["create", name, "--table", &table]));
        // They are in use, so they go when the pool goes, whoever removes it.
        said(Command::new("losetup").args(["--detach", &meta, &data]));
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The disks that are active in it, by their names.
    pub(crate) fn disks(&self) -> Vec<String> {
        active(&self.name)
    }
}

impl Drop for ThinPool {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the pool `name` and its disks. Best effort: what is in use stays.
pub(crate) fn remove(name: &str) {
    for device in active(name).into_iter().chain([name.to_owned()]) {
        let _ = dmsetup().args(["remove", "--retry", &device]).output();
    }
}

/// What has device mapper's programs make the device nodes themselves, where there is nobody else to do it.
pub(crate) fn environment() -> Option<(&'static str, &'static str)> {
    (!Path::new("/run/udev/control").exists()).then_some(("DM_DISABLE_UDEV", "1"))
}

/// As containerd names them: the pool's name, `-snap-`, a number.
fn active(pool: &str) -> Vec<String> {
    let prefix = format!("{pool}-snap-");
    names().into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

/// The names of all of device mapper's devices.
fn names() -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = devices.filter_map(|device| fs::read_to_string(device.path().join("dm/name")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

fn dmsetup() -> Command {
    let mut command = Command::new("dmsetup");
    command.envs(environment());
    command
}
