//! What the same requests of the same guest or container take, by whoever serves them: they run in turn, say their figures at
//! the end, and a table compares them.

use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::contest::median;

/// What the guest says before its figures; see `bench-init`.
const MARK: &str = "bench: figures ";
/// Longest that one guest may take, which emulates another that emulates.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Of the requests that a guest is told to make, so many more go before, to warm caches up.
const WARMING: f64 = 0.125;

/// A way to give the guest its device.
pub(crate) struct Contestant {
    name: &'static str,
    command: Vec<String>,
    /// What has to run beside it, started anew for each guest.
    helper: Option<Vec<String>>,
}

impl Contestant {
    pub(crate) fn new(name: &'static str, command: Vec<String>) -> Self {
        Self { name, command, helper: None }
    }

    /// With a program that is started before the guest, and ended after it.
    pub(crate) fn with_helper(self, helper: Vec<String>) -> Self {
        Self { helper: Some(helper), ..self }
    }

    fn run(&self) -> Result<(String, String)> {
        let helper = self.helper.as_deref().map(Helper::start).transpose()?;
        let result = run(&self.command);
        drop(helper);
        result.with_context(|| format!("a guest with {}", self.name))
    }
}

/// Has guests, the first of which is ours, run in turn, and prints what their requests take.
pub(crate) fn table(title: &str, contestants: Vec<Contestant>, rounds: usize) -> Result<()> {
    let names: Vec<&str> = contestants.iter().map(|contestant| contestant.name).collect();
    compare(title, &names, rounds, |index| Ok(contestants[index].run()?.0))
}

/// Has the contestants of these names, the first of which is ours, `run` in turn, each saying its figures in a line, and prints what
/// their requests take.
pub(crate) fn compare(
    title: &str,
    names: &[&str],
    rounds: usize,
    mut run: impl FnMut(usize) -> Result<String>,
) -> Result<()> {
    // Microseconds a request, by case and round.
    let mut all: Vec<Vec<(String, Vec<f64>)>> = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        for (contestant, cases) in all.iter_mut().enumerate() {
            for (index, (name, requests, nanos)) in figures(&run(contestant)?)?.into_iter().enumerate() {
                if cases.len() <= index {
                    cases.push((name, Vec::new()));
                }
                cases[index].1.push(nanos / requests / 1e3);
            }
        }
    }
    println!(
        "{title}: µs a request, median of {rounds} alternating rounds; in brackets how many times as fast Tatami is"
    );
    print!("  {:<12}", "");
    names.iter().for_each(|name| print!(" {name:>19}"));
    println!();
    let Some((ours, others)) = all.split_first() else { return Ok(()) };
    for (case, (name, mine)) in ours.iter().enumerate() {
        print!("  {name:<12} {:>19.1}", median(mine));
        for other in others {
            let theirs = median(&other[case].1);
            print!(" {theirs:>12.1} ({:>4.2})", theirs / median(mine));
        }
        println!();
    }
    println!();
    Ok(())
}

/// Prints what `measured`, a guest of Tatami's, needed its VMM for, beyond what `idle` does, which makes no requests.
pub(crate) fn exits(measured: Vec<String>, idle: Vec<String>) -> Result<()> {
    let (line, with) = run(&measured)?;
    let (_, without) = run(&idle)?;
    let requests: f64 = figures(&line)?.iter().map(|(_, requests, _)| requests * (1.0 + WARMING)).sum();
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

/// A program that runs beside a guest. It ends with its socket, or when this is dropped.
struct Helper(std::process::Child);

impl Helper {
    /// Starts it, and waits until the socket is there that its last argument, as `NAME=PATH`, names.
    fn start(command: &[String]) -> Result<Helper> {
        let socket = command.last().and_then(|word| word.rsplit_once('=')).context("a helper's socket")?.1.to_owned();
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command[0]))?;
        let helper = Helper(child);
        let started = Instant::now();
        while !std::path::Path::new(&socket).exists() {
            if started.elapsed() > Duration::from_secs(20) {
                bail!("{} does not listen at {socket}", command[0]);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(helper)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
    complaints.rewind()?;
    complaints.read_to_string(&mut said)?;
    if !seen.contains("bench: ") || seen.contains("bench: failed") {
        bail!("the guest ended without figures; it said: {seen}{said}");
    }
    let line = seen.split_once(MARK).map_or("", |(_, rest)| rest.lines().next().unwrap_or_default());
    Ok((line.trim().to_owned(), said))
}
