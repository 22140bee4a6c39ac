//! `make bench`: how long a boot takes next to its peers, and where a whole `tatami run` spends its time.
//!
//! Every figure comes from one run on one host: the same kernel, the same initrd, the same size of guest, the contestants in
//! turn, medians of the rounds. Absolute times are the host's (an emulated one is some fifty times slower than hardware);
//! ratios are what to read.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tatami_tests::{Tatami, checkout, kernel, on_own_disk};

/// Rounds of each table.
const ROUNDS: usize = 7;
/// Rounds of the boot table where instructions are counted.
const INSTRUCTION_ROUNDS: usize = 3;
/// What `/init` says; see `bench-init.rs`.
const MARK: &[u8] = b"bench: user space";
/// What Tatami gives a guest without a console, for the others to be given the same: silence before the early console, which
/// nothing else is probed for. Only the way to reset differs, as their machines do.
const COMMAND_LINE: &str = "quiet loglevel=1 keep_bootcon 8250.nr_uarts=0 panic=-1 random.trust_cpu=on \
     random.trust_bootloader=on rcupdate.rcu_expedited=1 cryptomgr.notests earlycon=uart8250,io,0x3f8 reboot=f,t \
     tsc=reliable no_timer_check noreplace-smp swiotlb=noforce maxcpus=1";

/// A way to boot the benchmark's guest.
struct Contestant {
    name: &'static str,
    command: Vec<String>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => boot_table(ROUNDS, "wall clock").and_then(|()| run_table(ROUNDS)),
        // For a host whose clock counts instructions: rounds differ only in the state of its caches.
        ["instructions"] => boot_table(INSTRUCTION_ROUNDS, "instruction-counted"),
        _ => bail!("usage: bench [instructions]"),
    }
}

/// Process start to the guest's first user-space instruction.
fn boot_table(rounds: usize, clock: &str) -> Result<()> {
    let contestants = contestants()?;
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..rounds {
        for (contestant, times) in contestants.iter().zip(&mut times) {
            times.push(boot(contestant).with_context(|| format!("booting with {}", contestant.name))?);
        }
    }
    let medians: Vec<f64> = times.iter().map(|times| median(times)).collect();
    println!(
        "boot to the guest's first user-space instruction, 128 MiB, 1 vCPU, {clock}, median of {rounds} alternating rounds"
    );
    println!("  {:<16} {:>9} {:>9} {:>9} {:>14}", "", "median ms", "min", "max", "Tatami/this");
    for ((contestant, times), middle) in contestants.iter().zip(&times).zip(&medians) {
        let (least, most) = (times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(0.0, f64::max));
        println!("  {:<16} {middle:>9.1} {least:>9.1} {most:>9.1} {:>14.2}", contestant.name, medians[0] / middle);
    }
    println!();
    Ok(())
}

/// The contestants, all of them with the files on the host's own disk.
fn contestants() -> Result<Vec<Contestant>> {
    let nearby = |path: PathBuf| {
        let copy = on_own_disk(&path).with_context(|| format!("{}: run `make bench`", path.display()))?;
        Ok::<_, anyhow::Error>(copy.display().to_string())
    };
    let kernel = nearby(kernel())?;
    let initrd = nearby(checkout().join("target/bench/initrd.img"))?;
    let boot = nearby(checkout().join("target/release/examples/boot"))?;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let files = words(&format!("--kernel {kernel} --initrd {initrd}"));
    let tatami = [vec![boot], words("--quiet --memory 128 --cpus 1"), files].concat();
    let microvm = [
        words(
            "qemu-system-x86_64 -M microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off,isa-serial=on -accel kvm",
        ),
        words("-cpu host -m 128 -smp 1 -nodefaults -no-user-config -display none -no-reboot -serial stdio"),
        words(&format!("-kernel {kernel} -initrd {initrd} -append")),
        vec![COMMAND_LINE.to_owned()],
    ]
    .concat();
    Ok(vec![Contestant { name: "Tatami", command: tatami }, Contestant { name: "QEMU microvm", command: microvm }])
}

/// Milliseconds until the mark comes on the contestant's standard output.
fn boot(contestant: &Contestant) -> Result<f64> {
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
    Ok(milliseconds(took))
}

/// A whole `tatami run … true`, with the phases that `--timings` gives.
fn run_table(rounds: usize) -> Result<()> {
    let tatami = Tatami::new();
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    let mut whole = Vec::new();
    // The first run unpacks the image.
    tatami.run(&["true"]).expect_status(0);
    for _ in 0..rounds {
        let finished = tatami.run_with(&["--timings"], &["true"]).expect_status(0);
        whole.push(milliseconds(finished.took));
        for (name, time) in finished.err().lines().filter_map(phase) {
            match phases.iter_mut().find(|(known, _)| *known == name) {
                Some((_, times)) => times.push(time),
                None => phases.push((name, vec![time])),
            }
        }
    }
    println!("tatami run --rm IMAGE true, median of {rounds} rounds");
    for (name, times) in &phases {
        println!("  {name:<24} {:>9.1} ms", median(times));
    }
    println!("  {:<24} {:>9.1} ms", "start to exit", median(&whole));
    Ok(())
}

/// One line of `--timings`: a name, a number, `ms`.
fn phase(line: &str) -> Option<(String, f64)> {
    let (name, number) = line.trim().strip_suffix("ms")?.trim().rsplit_once(char::is_whitespace)?;
    Some((name.trim().to_owned(), number.parse().ok()?))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
