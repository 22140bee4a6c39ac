//! Boot on any architecture: from the start of a process to its end, the guest that it runs having restarted in its first
//! user-space instruction; next to QEMU's own machine of that architecture.
//!
//! No console is looked at, which each machine has another of. On x86_64, [`crate::boot`] tells more.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tatami_tests::{checkout, guest, kernel, on_own_disk, program};

use crate::contest::{self, Times};

/// What every contestant's kernel is told; Tatami adds what its own machine needs.
const COMMAND_LINE: &str = "quiet loglevel=1 panic=-1 random.trust_cpu=on random.trust_bootloader=on rcupdate.rcu_expedited=1 \
     cryptomgr.notests dummy.numdummies=0 maxcpus=1";
/// MiB of a guest.
const MEMORY: u32 = 256;
/// A guest in an emulated host may take so long.
const PATIENCE: Duration = Duration::from_secs(300);

/// QEMU's machine of this architecture: its program, and what it is to be.
fn machine() -> Result<(&'static str, &'static str)> {
    Ok(match std::env::consts::ARCH {
        "x86_64" => ("qemu-system-x86_64", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off"),
        "aarch64" => ("qemu-system-aarch64", "virt,gic-version=host"),
        // With the firmware that starts the kernel at once, instead of the slower one that a disk is booted by, and the
        // interrupt controller that KVM has there. An emulated host's KVM has no safe bounds checks, and QEMU starts no guest
        // without being told that it may do without.
        "powerpc64" => ("qemu-system-ppc64", "pseries,x-vof=on,ic-mode=xics,cap-sbbc=broken"),
        other => bail!("no machine of QEMU's is known for {other}"),
    })
}

/// Both in turn.
pub(crate) fn table(rounds: usize) -> Result<()> {
    let (qemu, machine) = machine()?;
    let [kernel, initrd] = [kernel_for(qemu)?, guest("bench.img", "make bench")].map(|path| path.display().to_string());
    let boot = on_own_disk(&program("examples/boot", "make bench"))?.display().to_string();
    let memory = MEMORY.to_string();
    let ours = [&boot, "--quiet", "--cpus", "1", "--memory", &memory, "--kernel", &kernel, "--initrd", &initrd];
    let mut theirs = program_of(qemu)?;
    theirs.extend(
        [
            &[
                "-M",
                machine,
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-smp",
                "1",
                "-m",
                &memory,
                "-nodefaults",
                "-no-user-config",
            ][..],
            // A firmware's kernel wants to know where its output goes, wherever that is.
            &["-display", "none", "-serial", "null", "-no-reboot"],
            &["-kernel", &kernel, "-initrd", &initrd, "-append", COMMAND_LINE],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned),
    );
    let contestants = [("Tatami", ours.map(str::to_owned).to_vec()), ("QEMU", theirs)];
    let mut times = contestants.each_ref().map(|(name, _)| Times::of(name));
    for _ in 0..rounds {
        for ((name, command), times) in contestants.iter().zip(&mut times) {
            times.add(live(command).with_context(|| format!("a guest with {name}"))?);
        }
    }
    let title = format!(
        "from a process's start to its end, its guest restarting in user space, {MEMORY} MiB, 1 vCPU ({machine})"
    );
    contest::print(&title, &times);
    Ok(())
}

/// The guest kernel; where that cannot be started by QEMU's firmware, the distribution's, which `tests/pick-qemu` puts beside
/// the program.
fn kernel_for(qemu: &str) -> Result<PathBuf> {
    let picked = picked(&format!("{qemu}.vmlinux"));
    Ok(if picked.exists() { on_own_disk(&picked)? } else { kernel() })
}

/// Where `tests/pick-qemu` puts what it is asked for.
fn picked(name: &str) -> PathBuf {
    checkout().join("target/bench/qemu").join(name)
}

/// QEMU's program: this machine's, or one with its libraries beside it that is not installed here.
fn program_of(name: &str) -> Result<Vec<String>> {
    let folder = picked(name);
    if !folder.exists() {
        return Ok(vec![name.to_owned()]);
    }
    let own = PathBuf::from("/var/tmp/tatami-bench-qemu");
    let copied = Command::new("cp").args(["-rT"]).args([&folder, &own]).status()?;
    ensure!(copied.success(), "cannot copy {} to {}", folder.display(), own.display());
    let at = |name: &str| own.join(name).display().to_string();
    Ok(vec![at("loader"), "--library-path".to_owned(), at("lib"), at(name), "-L".to_owned(), at("share")])
}

/// How long the process lives.
fn live(command: &[String]) -> Result<Duration> {
    let started = Instant::now();
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", command[0]))?;
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            let took = started.elapsed();
            ensure!(status.success(), "it ended with {status}");
            return Ok(took);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    bail!("its guest has not restarted after {} s", PATIENCE.as_secs())
}
