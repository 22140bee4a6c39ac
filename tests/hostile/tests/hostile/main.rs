//! The hostile guest in a jailed VMM, with a well-behaved neighbour beside it; prints what came of each attack.
//!
//! What must hold: the VMM lives and does not panic; its memory, descriptors and threads stay bounded and its CPU time ends with the
//! attack; what it logs stays a handful of lines; nothing beside the shared folder is touched; the neighbour answers all the while.
//!
//! Needs KVM and root; runs with `--ignored`, and names its cases like any test.

mod machine;
mod neighbour;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tatami_vmm::{Event, StopReason, process};

use machine::{Machine, Usage};
use neighbour::Neighbour;

/// What a VMM may take beyond the guest's RAM, in KiB.
const MEMORY_KIB: u64 = 24 << 10;
/// Descriptors at most: the socket device's 1024 sockets, the file server's few, and what the machine itself needs.
const DESCRIPTORS: usize = 1200;
/// Streams that the test's host side holds without reading them.
const STREAMS: usize = 32;
/// Lines that one guest may have a VMM log, whatever it does.
const LOG_LINES: usize = 64;
/// How long an attack may last on an emulated host.
const PATIENCE: Duration = Duration::from_secs(300);

type Case = (&'static str, &'static str);

/// Name, and the word on the guest's command line.
const CASES: [Case; 5] = [
    ("queues_that_break_every_rule", "attack=queues"),
    ("file_requests_that_lead_astray", "attack=files"),
    ("sockets_flooded", "attack=sockets"),
    ("registers_ports_and_storms", "attack=machine"),
    ("a_triple_fault", "attack=triple"),
];

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(process::NAME) {
        process::main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let cases: Vec<_> = CASES.iter().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == "--ignored" || argument == "--include-ignored") {
        println!("\ntest result: ok. 0 passed; {} ignored, need KVM: run through tests/host\n", cases.len());
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        return ExitCode::SUCCESS;
    }
    machine::keep_log();
    match run(&cases) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("test the_neighbour ... FAILED\n    {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the cases beside one neighbour; says how many failed.
fn run(cases: &[&Case]) -> Result<usize> {
    let mut neighbour = Neighbour::start()?;
    let mut failed = 0;
    for (name, attack) in cases {
        let started = Instant::now();
        match attempt(attack, &mut neighbour) {
            Ok(()) => println!("test {name} ... ok ({} ms)", started.elapsed().as_millis()),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED\n    {error:#}");
            }
        }
    }
    println!("\ntest result: {failed} failed\n");
    Ok(failed)
}

fn attempt(attack: &str, neighbour: &mut Neighbour) -> Result<()> {
    let mut machine = Machine::start(attack)?;
    let (mut before, mut peak) = (None, Peak::default());
    // A host that takes connections and reads nothing from the last few.
    let (mut connections, mut streams) = (0_u64, VecDeque::new());
    let started = Instant::now();
    let end = loop {
        ensure!(started.elapsed() < PATIENCE, "no end after {PATIENCE:?}:\n{}", machine.console());
        if neighbour.ask()? {
            peak.note(&machine);
        }
        match machine.event(Duration::from_millis(100))? {
            Some(Event::Booting { .. }) => before = Some(machine.usage()?),
            Some(Event::GuestConnected { stream, .. }) => {
                connections += 1;
                streams.push_back(stream);
                if streams.len() > STREAMS {
                    streams.pop_front();
                }
            }
            Some(Event::Stopped(reason)) => break Some(reason),
            _ => {}
        }
        if machine.console().ends_with("done\n") {
            break None;
        }
    };
    let outcomes = machine.outcomes();
    report(&outcomes);
    let log = machine::log_since_last();
    log.iter().for_each(|line| println!("  log: {line}"));
    if let Some(reason) = end {
        ensure!(attack == "attack=triple" && reason == StopReason::GuestReset, "the VMM ended: {reason}");
    } else {
        let Some(before) = before else { bail!("it never ran") };
        drop(streams);
        judge(&machine, &before, &peak)?;
    }
    println!(
        "  {connections} connections to the host; the neighbour was asked {} times, its slowest answer took {} ms",
        neighbour.asked,
        neighbour.slowest.as_millis()
    );
    ensure!(!outcomes.is_empty(), "it said nothing of any attack:\n{}", machine.console());
    let loud: Vec<_> = outcomes.iter().filter(|(_, outcome)| is_loud(outcome)).collect();
    ensure!(loud.is_empty(), "attacks that were not held off: {loud:?}");
    ensure!(!log.iter().any(|line| line.contains("panicked")), "a thread of the VMM panicked");
    ensure!(log.len() <= LOG_LINES, "{} lines of log", log.len());
    machine.check_folder()
}

/// The most that was seen.
#[derive(Default)]
struct Peak {
    memory_kib: u64,
    descriptors: usize,
    threads: usize,
}

impl Peak {
    fn note(&mut self, machine: &Machine) {
        // Nothing is to be noted of one that has ended: its end is told otherwise.
        let Ok(usage) = machine.usage() else { return };
        self.memory_kib = self.memory_kib.max(usage.memory_kib);
        self.descriptors = self.descriptors.max(usage.descriptors);
        self.threads = self.threads.max(usage.threads);
    }
}

/// Memory, descriptors, threads; and CPU time, now that the guest stands still.
fn judge(machine: &Machine, before: &Usage, peak: &Peak) -> Result<()> {
    let after = machine.usage()?;
    std::thread::sleep(Duration::from_secs(2));
    let resting = machine.usage()?;
    let idle = resting.cpu.saturating_sub(after.cpu);
    let line = |what: &str, before: u64, peak: u64, after: u64| {
        println!("  {what:<42} {before} before, {peak} at most, {after} after");
    };
    line("memory beyond RAM in KiB", before.memory_kib, peak.memory_kib, after.memory_kib);
    line("descriptors", before.descriptors as u64, peak.descriptors as u64, after.descriptors as u64);
    line("threads", before.threads as u64, peak.threads as u64, after.threads as u64);
    println!("  {:<42} {} ms", "CPU time in 2 s at rest", idle.as_millis());
    ensure!(peak.memory_kib.max(after.memory_kib) <= MEMORY_KIB, "{} KiB of memory", peak.memory_kib);
    ensure!(peak.descriptors <= DESCRIPTORS, "{} descriptors", peak.descriptors);
    ensure!(after.descriptors <= before.descriptors + 16, "{} descriptors", after.descriptors);
    ensure!(after.threads <= before.threads + 4, "{} threads", after.threads);
    ensure!(idle < Duration::from_millis(200), "the VMM is busy while its guest stands still: {idle:?} in 2 s");
    Ok(())
}

/// Outcomes that must not be are told in capitals.
fn is_loud(outcome: &str) -> bool {
    outcome.split(' ').any(|word| word.len() > 3 && word.chars().all(|letter| letter.is_ascii_uppercase()))
}

/// The table: each attack, with how often it came out how.
fn report(outcomes: &[(String, String)]) {
    let mut lines: Vec<(&(String, String), usize)> = Vec::new();
    for outcome in outcomes {
        match lines.iter_mut().find(|(line, _)| *line == outcome) {
            Some((_, times)) => *times += 1,
            None => lines.push((outcome, 1)),
        }
    }
    for ((attack, outcome), times) in lines {
        let times = if times > 1 { format!(" ({times} devices)") } else { String::new() };
        println!("  {attack:<42} {outcome}{times}");
    }
}
