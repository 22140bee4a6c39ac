//! The test host's initrd: our init and the kernel modules that lead to the disk, as a cpio archive ("newc").
//!
//! The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The archive's bytes: `/init`, `/dev/console`, and all of `modules` as `/modules`.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn build(init: &Path, modules: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Archive::default();
    archive.folder("dev");
    // The kernel opens it for PID 1 before there is a devtmpfs.
    archive.entry("dev/console", 0o020_600, (5, 1), &[]);
    archive.entry("init", 0o100_755, (0, 0), &read(init)?);
    archive.folder("modules");
    let mut files: Vec<_> = fs::read_dir(modules).context("modules")?.collect::<Result<_, _>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    for file in files {
        archive.entry(&format!("modules/{}", file.file_name().display()), 0o100_644, (0, 0), &read(&file.path())?);
    }
    Ok(archive.end())
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, (0, 0), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let name_size = name.len() as u32 + 1;
        let (major, minor) = device;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, major, minor, name_size, 0];
        self.bytes.extend(b"070701");
        self.bytes.extend(fields.iter().flat_map(|f| format!("{f:08x}").into_bytes()));
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}
