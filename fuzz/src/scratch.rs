//! A place for files that hostile input makes: a small file system of the calling thread's own, on which device nodes do nothing.
//!
//! Only root can have that; others get an ordinary folder, where they cannot make device nodes either.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A folder and what lies beside it.
pub struct Scratch {
    /// The folder that the guest or the image has.
    pub inside: PathBuf,
    outside: PathBuf,
}

/// What lies beside the folder, and nobody may read or change.
pub const SECRET: &[u8] = b"nobody's business";

thread_local! {
    static PLACE: PathBuf = place();
}

fn place() -> PathBuf {
    let id = if nix::unistd::geteuid().is_root() { "root".to_owned() } else { std::process::id().to_string() };
    let place = std::env::temp_dir().join(format!("tatami-fuzz-{id}"));
    fs::create_dir_all(&place).expect("a folder for temporary files");
    let none = None::<&str>;
    let private = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none))
        .and_then(|()| {
            let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            mount(Some("fuzz"), &place, Some("tmpfs"), flags, Some("size=32m,nr_inodes=8k,mode=755"))
        });
    assert!(
        private.is_ok() || !nix::unistd::geteuid().is_root(),
        "root cannot have a file system of its own: {private:?}"
    );
    place
}

impl Scratch {
    /// An empty folder, whatever was there before.
    pub fn new() -> Scratch {
        let place = PLACE.with(Clone::clone);
        for entry in fs::read_dir(&place).expect("a folder of our own").flatten() {
            remove(&entry.path());
        }
        let scratch = Scratch { inside: place.join("inside"), outside: place.join("outside") };
        fs::create_dir(&scratch.inside).expect("a folder of our own");
        fs::write(&scratch.outside, SECRET).expect("a folder of our own");
        scratch
    }

    /// Panics if anything beside the folder is not as it was.
    pub fn check(&self) {
        let place = self.outside.parent().unwrap_or(Path::new("/"));
        let mut beside: Vec<_> =
            fs::read_dir(place).expect("a folder of our own").flatten().map(|e| e.path()).collect();
        beside.sort();
        assert_eq!(beside, [&*self.inside, &*self.outside], "something was made beside the folder");
        assert_eq!(fs::read(&self.outside).expect("a file of our own"), SECRET, "a file beside the folder was changed");
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

fn remove(path: &Path) {
    let gone = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    gone.unwrap_or_else(|error| panic!("cannot remove {}: {error}", path.display()));
}
