//! Disks: the same guest, the same image, the same requests past the guest's page cache, by Tatami and by QEMU's microvm.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::boot::{microvm, tatami};
use crate::contest::median;

/// Bytes of the image, which the host's page cache holds.
const IMAGE: usize = 64 << 20;
/// What the guest says before its figures; see `bench-init`.
const MARK: &str = "bench: disk ";
/// Longest that one guest may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to give the guest its disk.
struct Contestant {
    name: &'static str,
    command: Vec<String>,
    /// Microseconds a request, by case and round.
    figures: Vec<(String, Vec<f64>)>,
}

/// The image, gone with the benchmark.
struct Image(PathBuf);

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Both ways to use a disk: through the host's page cache, and past it.
pub(crate) fn tables(rounds: usize, clock: &str) -> Result<()> {
    let image = image()?;
    let path = image.0.display();
    let ours = |more: &str| tatami(&format!("--cmdline BENCH=disk --disk {path} {more}"));
    let theirs = |options: &str| {
        microvm(
            " BENCH=disk",
            &format!(
                "-global virtio-mmio.force-legacy=false -drive id=disk,if=none,format=raw,file={path},{options} \
                 -device virtio-blk-device,drive=disk"
            ),
        )
    };
    let contestant = |name, command: Result<_>| Ok(Contestant { name, command: command?, figures: Vec::new() });
    let cached: Result<Vec<Contestant>> = [
        ("Tatami", ours("")),
        ("Tatami, no ring", ours("--no-uring")),
        ("QEMU threads", theirs("cache=writeback,aio=threads")),
        ("QEMU io_uring", theirs("cache=writeback,aio=io_uring")),
    ]
    .into_iter()
    .map(|(name, command)| contestant(name, command))
    .collect();
    let direct: Result<Vec<Contestant>> =
        [("Tatami", ours("--direct")), ("QEMU io_uring", theirs("cache=none,aio=io_uring"))]
            .into_iter()
            .map(|(name, command)| contestant(name, command))
            .collect();
    table(&format!("disk in the host's page cache, {clock}"), cached?, rounds)?;
    table(&format!("disk past the host's page cache, {clock}"), direct?, rounds)?;
    exits(&ours("")?, &tatami(&format!("--disk {path}"))?)
}

fn table(title: &str, mut contestants: Vec<Contestant>, rounds: usize) -> Result<()> {
    for _ in 0..rounds {
        for contestant in &mut contestants {
            let (line, _) = run(&contestant.command).with_context(|| format!("a disk with {}", contestant.name))?;
            for (index, (name, requests, nanos)) in figures(&line)?.into_iter().enumerate() {
                if contestant.figures.len() <= index {
                    contestant.figures.push((name, Vec::new()));
                }
                contestant.figures[index].1.push(nanos / requests / 1e3);
            }
        }
    }
    println!(
        "{title}: µs a request, median of {rounds} alternating rounds; in brackets how many times as fast Tatami is"
    );
    print!("  {:<12}", "");
    contestants.iter().for_each(|contestant| print!(" {:>19}", contestant.name));
    println!();
    let Some((ours, others)) = contestants.split_first() else { return Ok(()) };
    for (case, (name, mine)) in ours.figures.iter().enumerate() {
        print!("  {name:<12} {:>19.1}", median(mine));
        for other in others {
            let theirs = median(&other.figures[case].1);
            print!(" {theirs:>12.1} ({:>4.2})", theirs / median(mine));
        }
        println!();
    }
    println!();
    Ok(())
}

/// What Tatami's guest needed its VMM for, beyond booting.
fn exits(measured: &[String], idle: &[String]) -> Result<()> {
    let (line, with) = run(measured)?;
    let (_, without) = run(idle)?;
    let requests: f64 = figures(&line)?.iter().map(|(_, requests, _)| requests * 1.125).sum();
    let exits = count(&with)?.saturating_sub(count(&without)?);
    println!("  {:.2} exits to user space a request ({exits} for {requests:.0})\n", exits as f64 / requests);
    Ok(())
}

/// Accesses to device memory that ended in the VMM.
fn count(said: &str) -> Result<u64> {
    let (_, rest) = said.split_once("exits: ").context("no exits were counted")?;
    rest.split(' ').next().unwrap_or_default().parse().context("the count of exits")
}

/// Case, requests and nanoseconds, as the guest said them.
fn figures(line: &str) -> Result<Vec<(String, f64, f64)>> {
    let figure = |text: &str| {
        let (name, numbers) = text.split_once('=')?;
        let (requests, nanos) = numbers.split_once('/')?;
        Some((name.to_owned(), requests.parse().ok()?, nanos.parse().ok()?))
    };
    line.split_whitespace().map(|text| figure(text).with_context(|| format!("not a figure: {text}"))).collect()
}

/// Runs a guest to its end; gives its line, empty if it says none, and what the VMM said beside.
fn run(command: &[String]) -> Result<(String, String)> {
    let started = Instant::now();
    let mut complaints = tempfile::tempfile()?;
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {}", command[0]))?;
    let mut stdout = child.stdout.take().context("stdout is a pipe")?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stdout.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        seen.extend_from_slice(&buffer[..count]);
        if started.elapsed() > PATIENCE {
            child.kill()?;
        }
    }
    child.wait()?;
    let seen = String::from_utf8_lossy(&seen).into_owned();
    let mut said = String::new();
    std::io::Seek::rewind(&mut complaints)?;
    complaints.read_to_string(&mut said)?;
    if !seen.contains("bench: ") || seen.contains("disk failed") {
        bail!("the guest ended without figures; it said: {seen}{said}");
    }
    let line = seen.split_once(MARK).map_or("", |(_, rest)| rest.lines().next().unwrap_or_default());
    Ok((line.trim().to_owned(), said))
}

/// Bytes that are not zero, on the host's own disk.
fn image() -> Result<Image> {
    let path = PathBuf::from("/var/tmp").join(format!("tatami-bench-{}.img", std::process::id()));
    let image = Image(path);
    let mut file = File::create(&image.0)?;
    for _ in 0..IMAGE >> 20 {
        file.write_all(&vec![0x5a; 1 << 20])?;
    }
    file.sync_all()?;
    Ok(image)
}
