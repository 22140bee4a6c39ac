//! Boot: from the start of a process to the first user-space instruction of the guest that it runs.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tatami_tests::{checkout, kernel, on_own_disk, program};

use crate::contest::{self, Times};

/// What `/init` says; see `bench-init.rs`.
const MARK: &[u8] = b"bench: user space";
/// What Tatami gives a guest without a console, for the others to be given the same: silence before the early console, which
/// nothing else is probed for. Only the way to reset differs, as their machines do.
const COMMAND_LINE: &str = "quiet loglevel=1 keep_bootcon 8250.nr_uarts=0 panic=-1 random.trust_cpu=on \
     random.trust_bootloader=on rcupdate.rcu_expedited=1 cryptomgr.notests dummy.numdummies=0 \
     earlycon=uart8250,io,0x3f8 reboot=f,t tsc=reliable no_timer_check noreplace-smp swiotlb=noforce maxcpus=1";

/// A way to boot the benchmark's guest.
struct Contestant {
    name: &'static str,
    command: Vec<String>,
}

/// Tatami and its peers in turn, by whatever clock the host has.
pub(crate) fn table(rounds: usize, clock: &str) -> Result<()> {
    let contestants = contestants()?;
    let mut times: Vec<Times> = contestants.iter().map(|contestant| Times::of(contestant.name)).collect();
    for _ in 0..rounds {
        for (contestant, times) in contestants.iter().zip(&mut times) {
            times.add(boot(contestant).with_context(|| format!("booting with {}", contestant.name))?);
        }
    }
    contest::print(&format!("boot to the guest's first user-space instruction, 128 MiB, 1 vCPU, {clock}"), &times);
    Ok(())
}

/// The contestants: those that everybody has, and those whose binaries `make bench` was told.
fn contestants() -> Result<Vec<Contestant>> {
    let mut contestants = vec![
        Contestant { name: "Tatami", command: tatami("")? },
        Contestant { name: "QEMU microvm", command: microvm("", "")? },
    ];
    let peers = checkout().join("target/bench/peers");
    let peer = |name: &str| Some(peers.join(name)).filter(|path| path.exists()).map(nearby).transpose();
    if let Some(binary) = peer("firecracker")? {
        contestants.push(Contestant { name: "Firecracker", command: firecracker(binary)? });
    }
    if let Some(binary) = peer("cloud-hypervisor")? {
        contestants.push(Contestant { name: "Cloud Hypervisor", command: cloud_hypervisor(binary)? });
    }
    Ok(contestants)
}

/// What runs the benchmark's guest in Firecracker, whose configuration is a file.
fn firecracker(binary: String) -> Result<Vec<String>> {
    let [kernel, initrd] = guest()?;
    let machine = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel, "initrd_path": initrd, "boot_args": COMMAND_LINE },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
    });
    let file = std::env::temp_dir().join("tatami-bench-firecracker.json");
    std::fs::write(&file, machine.to_string())?;
    Ok([&binary, "--no-api", "--config-file", &file.display().to_string()].map(str::to_owned).to_vec())
}

/// What runs it in Cloud Hypervisor.
fn cloud_hypervisor(binary: String) -> Result<Vec<String>> {
    let [kernel, initrd] = guest()?;
    let words = format!(
        "{binary} --cpus boot=1 --memory size=128M --serial tty --console off --kernel {kernel} --initramfs {initrd} --cmdline"
    );
    let mut command: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    command.push(COMMAND_LINE.to_owned());
    Ok(command)
}

/// What runs the benchmark's guest in Tatami, with `more` arguments.
pub(crate) fn tatami(more: &str) -> Result<Vec<String>> {
    let (boot, [kernel, initrd]) = (program("examples/boot", "make bench"), guest()?);
    let words = format!("{} --quiet --memory 128 --cpus 1 --kernel {kernel} --initrd {initrd} {more}", boot.display());
    Ok(words.split_whitespace().map(str::to_owned).collect())
}

/// What runs the same guest in QEMU's microvm, with `parameters` more for the kernel, and `more` arguments.
pub(crate) fn microvm(parameters: &str, more: &str) -> Result<Vec<String>> {
    let [kernel, initrd] = guest()?;
    let words = format!(
        "qemu-system-x86_64 -M microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off,isa-serial=on -accel kvm \
         -cpu host -m 128 -smp 1 -nodefaults -no-user-config -display none -no-reboot -serial stdio \
         -kernel {kernel} -initrd {initrd} {more} -append"
    );
    let mut command: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    command.push(format!("{COMMAND_LINE}{parameters}"));
    Ok(command)
}

/// Kernel and initrd, on the host's own disk.
fn guest() -> Result<[String; 2]> {
    Ok([nearby(kernel())?, nearby(tatami_tests::guest("bench.img", "make bench"))?])
}

fn nearby(path: PathBuf) -> Result<String> {
    let copy = on_own_disk(&path).with_context(|| format!("{}: run `make bench`", path.display()))?;
    Ok(copy.display().to_string())
}

/// How long until the mark comes on the contestant's standard output.
fn boot(contestant: &Contestant) -> Result<Duration> {
    let started = Instant::now();
    let mut child = Command::new(&contestant.command[0])
        .args(&contestant.command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot start {}", contestant.command[0]))?;
    let mut stdout = child.stdout.take().context("stdout is a pipe")?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let took = loop {
        let count = stdout.read(&mut buffer)?;
        if count == 0 {
            bail!("it ended without reaching user space; it said: {}", String::from_utf8_lossy(&seen));
        }
        seen.extend_from_slice(&buffer[..count]);
        if seen.windows(MARK.len()).any(|window| window == MARK) {
            break started.elapsed();
        }
        if started.elapsed() > Duration::from_secs(60) {
            bail!("no user space after a minute; it said: {}", String::from_utf8_lossy(&seen));
        }
    };
    // It restarts by itself; whoever ignores that is helped.
    child.kill().ok();
    child.wait()?;
    Ok(took)
}
