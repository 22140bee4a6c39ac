//! `testhost`, the developer's side of the emulated test host; `tests/host/run` builds and calls it.
//!
//! It finds or starts the host of a checkout and runs one command in it. What the host is made of is `build-images`' matter;
//! what happens inside is `init/`'s.

mod arch;
mod client;
mod connection;
mod host;
mod initrd;
mod invocation;
mod keeper;
mod places;
mod prepare;
mod qemu;
mod qmp;
mod terminal;

use std::path::Path;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::host::Wanted;
use crate::invocation::{Action, Invocation, USAGE};
use crate::places::Cache;
use crate::qemu::Machine;

/// Our own failure, as other runners of commands report theirs.
const FAILED: i32 = 125;

fn main() {
    let status = match Invocation::parse(std::env::args_os().skip(1)) {
        Ok(invocation) => act(&invocation).unwrap_or_else(|e| {
            eprintln!("testhost: {e:#}");
            FAILED
        }),
        Err(mistake) => {
            eprintln!("testhost: {mistake}\n\n{USAGE}");
            FAILED
        }
    };
    // Threads may still be reading a terminal or a pipe that nobody will close.
    std::process::exit(status);
}

fn act(invocation: &Invocation) -> Result<i32> {
    match &invocation.action {
        Action::Help => println!("{USAGE}"),
        Action::Keep(plan) => {
            keeper::keep(serde_json::from_slice(plan.as_encoded_bytes()).context("the plan")?)?;
        }
        Action::Run(command) => {
            let host = host::find_or_start(&Cache::open()?, &wanted(invocation)?)?;
            return client::run(&host, invocation, command);
        }
        Action::Prepare => drop(host::find_or_start(&Cache::open()?, &wanted(invocation)?)?),
        Action::Status => return status(&Cache::open()?, &invocation.checkout),
        Action::Stop => {
            let (cache, arch) = (Cache::open()?, arch()?);
            for icount in [false, true] {
                host::stop(&host::folder(&cache, &invocation.checkout, arch, icount)?)?;
            }
        }
    }
    Ok(0)
}

fn wanted(invocation: &Invocation) -> Result<Wanted> {
    let (icount, cold) = (invocation.icount, invocation.cold);
    // One, unless asked: with two, emulated CPUs on threads of their own, about one guest in fifty was seen to die or hang.
    let cpus = if icount { 1 } else { setting("TATAMI_TESTHOST_SMP", 1)? };
    let machine = Machine { arch: arch()?, cpus, memory: setting("TATAMI_TESTHOST_MEM", 4096)?, icount };
    // A machine whose time counts instructions never sleeps: it costs a CPU even when idle.
    let idle = u64::from(setting("TATAMI_TESTHOST_IDLE", if icount { 60 } else { 1800 })?);
    Ok(Wanted { checkout: invocation.checkout.clone(), init: invocation.init.clone(), machine, cold, idle })
}

/// The architecture that is asked for.
fn arch() -> Result<Arch> {
    match std::env::var("TATAMI_TESTHOST_ARCH") {
        Ok(name) if !name.is_empty() => Arch::named(&name).with_context(|| {
            let all = Arch::ALL.map(Arch::name).join(", ");
            format!("TATAMI_TESTHOST_ARCH={name}: there is no test host of that architecture, but of {all}")
        }),
        _ => Ok(Arch::X86_64),
    }
}

fn setting(name: &str, default: u32) -> Result<u32> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().ok().filter(|n| *n > 0).with_context(|| format!("{name}={text}: not a positive number"))
        }
        _ => Ok(default),
    }
}

fn status(cache: &Cache, checkout: &Path) -> Result<i32> {
    let mut found = 1;
    for (icount, name) in [(false, "test host"), (true, "instruction-counting test host")] {
        let folder = host::folder(cache, checkout, arch()?, icount)?;
        if let Some(state) = host::running(&folder)? {
            let machine = &state.plan.machine;
            println!(
                "{name}: runs, keeper {}, {} CPUs, {} MiB, logs in {}",
                state.keeper,
                machine.cpus,
                machine.memory,
                folder.display()
            );
            found = 0;
        }
    }
    if found == 1 {
        println!("no test host runs for {}", checkout.display());
    }
    Ok(found)
}
