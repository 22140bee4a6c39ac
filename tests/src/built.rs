//! Where `make` leaves what tests use. Knows the build's places, and nothing of what the files are.

use std::env;
use std::path::{Path, PathBuf};

use crate::nearby;

/// The architecture, as the kernel calls it: Rust has one name for both byte orders.
const ARCH: &str = match env::consts::ARCH.as_bytes() {
    b"powerpc64" => "ppc64le",
    _ => env::consts::ARCH,
};

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout")
}

/// The sample image that `make image` builds.
pub fn image() -> PathBuf {
    built(&format!("target/sample-image{}.tar", suffix()), "make image")
}

/// The image of a pod's first container that `make image` builds: it waits.
pub fn pause_image() -> PathBuf {
    built(&format!("target/pause-image{}.tar", suffix()), "make image")
}

/// The guest kernel that `make kernel` builds.
pub fn kernel() -> PathBuf {
    guest("vmlinux", "make kernel")
}

/// The guest's initrd that `make initrd` builds.
pub fn initrd() -> PathBuf {
    guest("initrd.img", "make initrd")
}

/// A file that lies beside them, and what builds it.
pub fn guest(name: &str, how: &str) -> PathBuf {
    built(&format!("target/guest/{ARCH}/{name}"), how)
}

/// The program `tatami` that `make build` builds, or the one that `TATAMI_BIN` names.
pub fn binary() -> PathBuf {
    env::var_os("TATAMI_BIN").map_or_else(|| program("tatami", "make build"), PathBuf::from)
}

/// A program that lies beside it, and what builds it.
pub fn program(name: &str, how: &str) -> PathBuf {
    // Rust's targets have a third name for that one.
    let target = if ARCH == "ppc64le" { "powerpc64le" } else { ARCH };
    let folder =
        if cross_built() { format!("target/{target}-unknown-linux-gnu/release") } else { "target/release".into() };
    built(&format!("{folder}/{name}"), how)
}

/// Whether all this was built on a machine of another architecture: in an emulated host of its own it was.
fn cross_built() -> bool {
    env::var("TATAMI_TESTHOST_ARCH").is_ok_and(|arch| arch == ARCH && arch != "x86_64")
}

/// What the names of images have, so that those of several architectures can lie side by side.
fn suffix() -> String {
    if cross_built() { format!("-{ARCH}") } else { String::new() }
}

fn built(path: &str, how: &str) -> PathBuf {
    let path = checkout().join(path);
    let how = if cross_built() { format!("{how} ARCH={ARCH}") } else { how.to_owned() };
    assert!(path.exists(), "{} is missing: run `{how}`", path.display());
    nearby::on_own_disk(&path).unwrap_or_else(|error| panic!("cannot copy {}: {error}", path.display()))
}
