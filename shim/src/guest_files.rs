//! Where the guest's kernel and initrd are found: in files, or in this binary itself.
//!
//! Knows the search order and the file names that the builders produce; does not judge what is in the files: the VMM says
//! whether a kernel is one.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use tatami_vmm::{RootDisk, Verity};

use crate::root_image::{self, RootImageError};

/// What `make standalone` put in: `build.rs` writes it.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// This machine's architecture as the builders call it: Rust has one name for both byte orders.
pub const ARCHITECTURE: &str = match env::consts::ARCH.as_bytes() {
    b"powerpc64" => "ppc64le",
    _ => env::consts::ARCH,
};
/// File name of the guest kernel, an ELF `vmlinux`, in every folder that is searched.
pub const KERNEL_NAME: &str = "vmlinux";
/// File name of the guest's initrd in every folder that is searched.
pub const INITRD_NAME: &str = "initrd.img";
/// Names a kernel where no flag does.
pub const KERNEL_VARIABLE: &str = "TATAMI_KERNEL";
/// Names an initrd where no flag does.
pub const INITRD_VARIABLE: &str = "TATAMI_INITRD";
/// The folder of an installed Tatami.
const INSTALLED: &str = "/usr/share/tatami";

/// A guest file is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum GuestFilesError {
    /// The file that a flag or a variable names does not exist.
    #[error("{what} {path} (given by {origin}) is not a file")]
    Named {
        /// "guest kernel" or "initrd".
        what: &'static str,
        /// The file as it was named.
        path: PathBuf,
        /// The flag or variable that named it.
        origin: &'static str,
    },
    /// None of the known folders has the file.
    #[error("no {what} found; looked for {searched}: build it with `make`, or name one with {flag} or {variable}")]
    NotFound {
        /// "guest kernel" or "initrd".
        what: &'static str,
        /// The paths that were tried.
        searched: String,
        /// The flag that names one.
        flag: &'static str,
        /// The variable that names one.
        variable: &'static str,
    },
    /// A disk that is not what it should be.
    #[error("the guest's root {file}: {source}")]
    Root {
        /// Where it is.
        file: GuestFile,
        /// What is wrong with it.
        source: RootImageError,
    },
}

/// The two files that every sandbox boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFiles {
    /// An ELF kernel.
    pub kernel: GuestFile,
    /// A newc cpio archive, possibly compressed, or a disk image (erofs, ext4), with the agent as `/init`.
    pub initrd: GuestFile,
}

/// Something that a guest boots from.
#[derive(Clone, PartialEq, Eq)]
pub enum GuestFile {
    /// A file.
    OnDisk(PathBuf),
    /// Bytes of this binary.
    Embedded(&'static [u8]),
}

impl GuestFile {
    /// Opens it for reading, at its beginning.
    ///
    /// # Errors
    /// When the file cannot be opened, or there is no memory for a copy of what is embedded.
    pub fn open(&self) -> io::Result<File> {
        match self {
            GuestFile::OnDisk(path) => File::open(path),
            // The VMM, which has no way back to this binary, is handed a file. Nobody changes it any more.
            GuestFile::Embedded(bytes) => {
                let copy = memfd_create(c"tatami-guest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
                let mut copy = File::from(copy);
                copy.write_all(bytes)?;
                io::Seek::rewind(&mut copy)?;
                fcntl(&copy, FcntlArg::F_ADD_SEALS(SealFlag::all()))?;
                Ok(copy)
            }
        }
    }

    /// What kind of disk it is, if it is one. With `wanted`, it must be one that is checked by just that.
    ///
    /// # Errors
    /// [`GuestFilesError::Root`].
    pub fn root_disk(&self, wanted: Option<&Verity>) -> Result<Option<RootDisk>, GuestFilesError> {
        let found = match self {
            GuestFile::OnDisk(path) => {
                File::open(path).map_err(Into::into).and_then(|mut file| root_image::inspect(&mut file, wanted))
            }
            GuestFile::Embedded(bytes) => root_image::inspect(&mut Cursor::new(bytes), wanted),
        };
        found.map_err(|source| GuestFilesError::Root { file: self.clone(), source })
    }
}

impl fmt::Display for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestFile::OnDisk(path) => path.display().fmt(f),
            GuestFile::Embedded(_) => f.write_str("embedded in this binary"),
        }
    }
}

impl fmt::Debug for GuestFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestFile({self})")
    }
}

impl GuestFiles {
    /// Finds both files: what the flags name, else what `TATAMI_KERNEL` and `TATAMI_INITRD` name, else what the binary
    /// carries within, else beside it (`../guest/<architecture>/`, where a build leaves them), else `/usr/share/tatami/`.
    ///
    /// # Errors
    /// [`GuestFilesError`], for the first of them.
    pub fn find(kernel: Option<&Path>, initrd: Option<&Path>) -> Result<GuestFiles, GuestFilesError> {
        Ok(GuestFiles { kernel: find_kernel(kernel)?, initrd: find_initrd(initrd)? })
    }
}

/// Finds the kernel alone; see [`GuestFiles::find`].
pub fn find_kernel(flag: Option<&Path>) -> Result<GuestFile, GuestFilesError> {
    let wanted = Wanted {
        what: "guest kernel",
        name: KERNEL_NAME,
        flag: "--kernel",
        variable: KERNEL_VARIABLE,
        embedded: embedded::KERNEL,
    };
    wanted.find(flag, env::var_os(KERNEL_VARIABLE), &folders())
}

/// Finds the initrd alone; see [`GuestFiles::find`].
pub fn find_initrd(flag: Option<&Path>) -> Result<GuestFile, GuestFilesError> {
    let wanted = Wanted {
        what: "initrd",
        name: INITRD_NAME,
        flag: "--initrd",
        variable: INITRD_VARIABLE,
        embedded: embedded::INITRD,
    };
    wanted.find(flag, env::var_os(INITRD_VARIABLE), &folders())
}

/// The folders that are searched, first match first.
fn folders() -> Vec<PathBuf> {
    env::current_exe().map_or_else(|_| vec![PathBuf::from(INSTALLED)], |binary| folders_of(&binary))
}

fn folders_of(binary: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let built = |above: &Path| above.join("guest").join(ARCHITECTURE);
    match binary.ancestors().find(|folder| folder.ends_with("target")) {
        // target/release/tatami and target/<triple>/release/tatami → target/guest/x86_64.
        Some(target) => folders.push(built(target)),
        None => {
            if let Some(prefix) = binary.parent().and_then(Path::parent) {
                folders.push(built(prefix));
                // PREFIX/bin/tatami → PREFIX/share/tatami.
                folders.push(prefix.join("share/tatami"));
            }
        }
    }
    if !folders.iter().any(|folder| folder == Path::new(INSTALLED)) {
        folders.push(PathBuf::from(INSTALLED));
    }
    folders
}

/// One file and every way to name it.
struct Wanted {
    what: &'static str,
    name: &'static str,
    flag: &'static str,
    variable: &'static str,
    embedded: Option<&'static [u8]>,
}

impl Wanted {
    fn find(
        &self,
        flag: Option<&Path>,
        variable: Option<OsString>,
        folders: &[PathBuf],
    ) -> Result<GuestFile, GuestFilesError> {
        if let Some(path) = flag {
            return self.named(path, self.flag);
        }
        if let Some(path) = variable.filter(|path| !path.is_empty()) {
            return self.named(Path::new(&path), self.variable);
        }
        if let Some(bytes) = self.embedded {
            return Ok(GuestFile::Embedded(bytes));
        }
        let tried: Vec<PathBuf> = folders.iter().map(|folder| folder.join(self.name)).collect();
        tried.iter().find(|path| path.is_file()).cloned().map(GuestFile::OnDisk).ok_or_else(|| {
            GuestFilesError::NotFound {
                what: self.what,
                searched: tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
                flag: self.flag,
                variable: self.variable,
            }
        })
    }

    fn named(&self, path: &Path, origin: &'static str) -> Result<GuestFile, GuestFilesError> {
        if path.is_file() {
            Ok(GuestFile::OnDisk(path.to_path_buf()))
        } else {
            Err(GuestFilesError::Named { what: self.what, path: path.to_path_buf(), origin })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const WANTED: Wanted =
        Wanted { what: "guest kernel", name: KERNEL_NAME, flag: "--kernel", variable: KERNEL_VARIABLE, embedded: None };

    #[test]
    fn flag_wins_over_variable_and_folders() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["flag", "variable", KERNEL_NAME] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let folders = [dir.path().to_path_buf()];
        let flag = dir.path().join("flag");
        let variable = dir.path().join("variable");
        let on_disk = |path: &Path| GuestFile::OnDisk(path.to_owned());
        let by_all = WANTED.find(Some(&flag), Some(variable.clone().into()), &folders).unwrap();
        assert_eq!(by_all, on_disk(&flag));
        assert_eq!(WANTED.find(None, Some(variable.clone().into()), &folders).unwrap(), on_disk(&variable));
        let in_folder = on_disk(&dir.path().join(KERNEL_NAME));
        assert_eq!(WANTED.find(None, Some(OsString::new()), &folders).unwrap(), in_folder);

        let carrying = Wanted { embedded: Some(b"within"), ..WANTED };
        assert_eq!(carrying.find(Some(&flag), None, &folders).unwrap(), on_disk(&flag));
        assert_eq!(carrying.find(None, Some(variable.clone().into()), &folders).unwrap(), on_disk(&variable));
        assert_eq!(carrying.find(None, None, &folders).unwrap(), GuestFile::Embedded(b"within"));
    }

    #[test]
    fn what_is_embedded_is_a_file_to_whoever_opens_it() {
        let mut file = GuestFile::Embedded(b"a kernel").open().unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text, "a kernel");
        assert_eq!(file.write(b"x").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn folders_follow_from_where_the_binary_is() {
        let guest = |prefix: &str| PathBuf::from(format!("{prefix}/guest/{ARCHITECTURE}"));
        let installed = PathBuf::from(INSTALLED);
        let build = [guest("/src/target"), installed.clone()];
        assert_eq!(folders_of(Path::new("/src/target/release/tatami")), build);
        assert_eq!(folders_of(Path::new("/src/target/x86_64-unknown-linux-gnu/release/tatami")), build);
        let local = [guest("/usr/local"), PathBuf::from("/usr/local/share/tatami"), installed.clone()];
        assert_eq!(folders_of(Path::new("/usr/local/bin/tatami")), local);
        assert_eq!(folders_of(Path::new("/usr/bin/tatami")), [guest("/usr"), installed]);
    }

    #[test]
    fn a_named_file_that_is_missing_is_not_searched_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(KERNEL_NAME), "k").unwrap();
        let missing = dir.path().join("missing");
        let error = WANTED.find(Some(&missing), None, &[dir.path().to_path_buf()]).unwrap_err();
        assert!(error.to_string().contains("missing (given by --kernel)"), "{error}");
    }

    #[test]
    fn not_found_names_every_path_and_both_remedies() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().join("a"), dir.path().join("b")];
        let text = WANTED.find(None, None, &folders).unwrap_err().to_string();
        for part in ["a/vmlinux", "b/vmlinux", "--kernel", "TATAMI_KERNEL"] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
}
