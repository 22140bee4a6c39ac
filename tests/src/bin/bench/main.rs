//! `make bench`: how long a boot and devices' requests take next to its peers, where a whole `tatami run` spends its time, and what users of
//! containerd and Kubernetes wait and pay for next to runc.
//!
//! Every figure comes from one run on one host: the same kernel, the same initrd, the same size of guest, the contestants in
//! turn, medians of the rounds. Absolute times are the host's (an emulated one is some fifty times slower than hardware);
//! ratios are what to read. Where the clock counts instructions ([`boot`]), a loaded machine changes nothing.

mod boot;
mod containerd;
mod contest;
mod cost;
mod crowd;
mod disk;
mod files;
mod machine;
mod pods;
mod requests;
mod restore;
mod run;
mod sockets;

use anyhow::{Result, bail};

/// Rounds of each table.
const ROUNDS: usize = 7;
/// Rounds of the boot table where instructions are counted.
const INSTRUCTION_ROUNDS: usize = 3;
/// Rounds of the tables of devices.
const DEVICE_ROUNDS: usize = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            boot::table(ROUNDS, "wall clock")?;
            restore::table(ROUNDS)?;
            disk::tables(DEVICE_ROUNDS, "wall clock")?;
            files::tables(DEVICE_ROUNDS, "wall clock")?;
            sockets::vsock(DEVICE_ROUNDS, "wall clock")?;
            sockets::net(DEVICE_ROUNDS, "wall clock")?;
            run::table(ROUNDS);
            containerd::tables(ROUNDS);
            pods::tables()?;
            crowd::table();
            Ok(())
        }
        // For a host whose clock counts instructions: rounds differ only in the state of its caches.
        ["instructions"] => boot::table(INSTRUCTION_ROUNDS, "instruction-counted"),
        ["machine"] => machine::table(ROUNDS),
        ["restore"] => restore::table(ROUNDS),
        ["disk"] => disk::tables(DEVICE_ROUNDS, "wall clock"),
        ["files"] => files::tables(DEVICE_ROUNDS, "wall clock"),
        ["vsock"] => sockets::vsock(DEVICE_ROUNDS, "wall clock"),
        ["net"] => sockets::net(DEVICE_ROUNDS, "wall clock"),
        ["containerd"] => {
            containerd::tables(ROUNDS);
            Ok(())
        }
        ["pods"] => pods::tables(),
        ["crowd"] => {
            crowd::table();
            Ok(())
        }
        _ => bail!(
            "usage: bench [instructions | machine | restore | disk | files | vsock | net | containerd | pods | crowd]"
        ),
    }
}
