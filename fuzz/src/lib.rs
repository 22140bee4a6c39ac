//! The bodies of the fuzz targets, as ordinary functions: what each does with arbitrary bytes, and which bytes to begin with.
//!
//! | module | fed |
//! |---|---|
//! | [`rings`] | the split queue and the transport's registers, without a device |
//! | [`devices`], [`nics`], [`memories`], [`files`], [`back_ends`] | each device behind the driver of [`driver`] |
//! | [`loading`] | kernels, saved machines, what comes over the VMM's control socket |
//! | [`headers`] | what describes a saved sandbox |
//! | [`images`] | layers and image archives; what a registry asks |
//! | [`copies`] | files that come out of a container |
//! | [`agents`] | both sides of the agent's wire; what containerd says to a shim |
//! | [`seeds`] | inputs that make sense, to begin from |
//!
//! `targets/` has a file for each that hands it to libFuzzer (`make fuzz`); `tests/replay.rs` feeds each its seeds and what is kept
//! in `corpus/`, with nothing but a test runner.

pub mod agents;
pub mod back_ends;
pub mod copies;
pub mod devices;
pub mod driver;
pub mod files;
pub mod headers;
pub mod images;
pub mod input;
pub mod loading;
pub mod memories;
pub mod nics;
pub mod rings;
pub mod scratch;
pub mod seeds;

use nix::sys::signal::{SigSet, Signal};

/// A target.
pub struct Target {
    /// The name of its file in `targets/` and of its folder in `corpus/`.
    pub name: &'static str,
    /// What it does with bytes. A panic is a finding.
    pub run: fn(&[u8]),
    /// Where to begin.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Called by a fuzzer before the first bytes: with `TATAMI_FUZZ_SEEDS` set to a folder, writes the target's seeds there and ends.
///
/// # Panics
/// When there is no such target or folder.
pub fn begin(name: &str) {
    // As in any program of Rust's but those whose main is C++'s: a socket whose other end is gone is an error, and no more.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    pipe.thread_block().expect("a signal can be blocked");
    let Some(folder) = std::env::var_os("TATAMI_FUZZ_SEEDS") else { return };
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        let path = std::path::Path::new(&folder).join(format!("seed{number}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    std::process::exit(0);
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "mmio", run: rings::mmio, seeds: seeds::registers },
    Target { name: "pci", run: rings::pci, seeds: seeds::functions },
    Target { name: "ring", run: rings::ring, seeds: seeds::noise },
    Target { name: "rng", run: devices::rng, seeds: seeds::noise },
    Target { name: "blk", run: devices::blk, seeds: seeds::noise },
    Target { name: "uring", run: devices::uring, seeds: seeds::noise },
    Target { name: "net", run: nics::net, seeds: seeds::noise },
    Target { name: "tap", run: nics::tap, seeds: seeds::noise },
    Target { name: "balloon", run: memories::balloon, seeds: seeds::noise },
    Target { name: "mem", run: memories::mem, seeds: seeds::noise },
    Target { name: "console", run: memories::console, seeds: seeds::noise },
    Target { name: "vsock", run: devices::vsock, seeds: seeds::noise },
    Target { name: "connection", run: devices::connection, seeds: seeds::noise },
    Target { name: "vhost_user", run: back_ends::vhost_user, seeds: seeds::noise },
    Target { name: "fs", run: files::fs, seeds: seeds::noise },
    Target { name: "fuse", run: files::fuse, seeds: seeds::noise },
    Target { name: "kernel", run: loading::kernel, seeds: seeds::kernels },
    Target { name: "snapshot", run: loading::snapshot, seeds: seeds::snapshots },
    Target { name: "header", run: headers::header, seeds: seeds::headers },
    Target { name: "control", run: loading::control, seeds: seeds::messages },
    Target { name: "layer", run: images::layer, seeds: seeds::layers },
    Target { name: "image", run: images::image, seeds: seeds::images },
    Target { name: "challenge", run: images::challenge, seeds: seeds::challenges },
    Target { name: "agent", run: agents::agent, seeds: seeds::specifications },
    Target { name: "answers", run: agents::answers, seeds: seeds::answers },
    Target { name: "options", run: agents::options, seeds: seeds::options },
    Target { name: "copy", run: copies::copy, seeds: seeds::copies },
];
