//! Disks: the same guest, the same image, the same requests past the guest's page cache, by Tatami and by QEMU's microvm.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::boot::{microvm, tatami};
use crate::requests::{Contestant, exits, table};

/// Bytes of the image, which the host's page cache holds.
const IMAGE: usize = 64 << 20;

/// The image, gone with the benchmark.
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Both ways to use a disk: through the host's page cache, and past it.
pub(crate) fn tables(rounds: usize, clock: &str) -> Result<()> {
    let image = image()?;
    let path = image.0.display();
    let ours = |more: &str| tatami(&format!("--cmdline BENCH=disk --disk {path} {more}"));
    let theirs = |options: &str| {
        microvm(
            " BENCH=disk",
            &format!(
                "-global virtio-mmio.force-legacy=false -drive id=disk,if=none,format=raw,file={path},{options} \
                 -device virtio-blk-device,drive=disk"
            ),
        )
    };
    let cached = vec![
        Contestant::new("Tatami", ours("")?),
        Contestant::new("Tatami, no ring", ours("--no-uring")?),
        Contestant::new("QEMU threads", theirs("cache=writeback,aio=threads")?),
        Contestant::new("QEMU io_uring", theirs("cache=writeback,aio=io_uring")?),
    ];
    let direct = vec![
        Contestant::new("Tatami", ours("--direct")?),
        Contestant::new("QEMU io_uring", theirs("cache=none,aio=io_uring")?),
    ];
    table(&format!("disk in the host's page cache, {clock}"), cached, rounds)?;
    table(&format!("disk past the host's page cache, {clock}"), direct, rounds)?;
    exits(ours("")?, tatami(&format!("--disk {path}"))?)
}

/// Bytes that are not zero, on the host's own disk.
fn image() -> Result<Image> {
    let path = PathBuf::from("/var/tmp").join(format!("tatami-bench-{}.img", std::process::id()));
    let image = Image(path);
    let mut file = File::create(&image.0)?;
    for _ in 0..IMAGE >> 20 {
        file.write_all(&vec![0x5a; 1 << 20])?;
    }
    file.sync_all()?;
    Ok(image)
}
