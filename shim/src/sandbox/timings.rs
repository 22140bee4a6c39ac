//! Where a sandbox's start-up time goes: marks on one clock, and the table made of them.
//!
//! Knows what the phases are called; knows nothing of how they are carried out.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// A moment in a sandbox's life. Phases are the time between a mark and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The VMM process was asked for; options, folder, namespace and mounts lie behind.
    VmmSpawned,
    /// The first vCPU runs.
    Booting,
    /// The agent executed its first line.
    AgentStarted,
    /// The agent answered its first call.
    AgentReady,
    /// The container's root, volumes and specification lie ready. Happens beside the boot, so it is no phase.
    ContainerPrepared,
    /// The agent has the container, and its streams are attached.
    ContainerCreated,
    /// The container's process runs.
    ContainerStarted,
    /// The container's process has ended, and all of its output is written out.
    ContainerEnded,
    /// Nothing is left of the sandbox.
    Removed,
}

impl Mark {
    /// What the time up to this mark was spent on.
    fn phase(self) -> &'static str {
        match self {
            Mark::VmmSpawned => "server",
            Mark::Booting => "VM create",
            Mark::AgentStarted => "boot",
            Mark::AgentReady => "agent ready",
            Mark::ContainerPrepared => "(image, beside the boot)",
            Mark::ContainerCreated => "container create",
            Mark::ContainerStarted => "container start",
            Mark::ContainerEnded => "command",
            Mark::Removed => "removal",
        }
    }
}

/// The marks passed so far.
#[derive(Clone, Debug)]
pub struct Timings {
    start: Instant,
    marks: Vec<(Mark, Instant)>,
}

impl Timings {
    /// A clock that starts at `start`, which should be the process's own start.
    pub fn starting_at(start: Instant) -> Timings {
        Timings { start, marks: Vec::new() }
    }

    /// Notes that `mark` is passed now.
    pub fn pass(&mut self, mark: Mark) {
        self.pass_at(mark, Instant::now());
    }

    /// Notes that `mark` was passed at `when`.
    pub fn pass_at(&mut self, mark: Mark, when: Instant) {
        self.marks.push((mark, when));
    }

    /// The phases in the order of the clock with their durations; what happened beside the boot is measured from the
    /// VMM's start and takes no time from the others.
    pub fn phases(&self) -> Vec<(&'static str, Duration)> {
        let mut marks = self.marks.clone();
        marks.sort_by_key(|&(_, when)| when);
        let spawned = marks.iter().find(|(mark, _)| *mark == Mark::VmmSpawned).map_or(self.start, |&(_, when)| when);
        let mut previous = self.start;
        marks
            .into_iter()
            .map(|(mark, when)| {
                if mark == Mark::ContainerPrepared {
                    return (mark.phase(), when.saturating_duration_since(spawned));
                }
                let spent = when.saturating_duration_since(previous);
                previous = previous.max(when);
                (mark.phase(), spent)
            })
            .collect()
    }

    /// The table for people: a line a phase, milliseconds, and two sums.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (phase, spent) in self.phases() {
            let _ = writeln!(text, "{phase:<26}{:>10.1} ms", milliseconds(spent));
        }
        let since_start = |mark: Mark| {
            self.marks.iter().find(|(m, _)| *m == mark).map(|&(_, when)| when.saturating_duration_since(self.start))
        };
        if let Some(started) = since_start(Mark::ContainerStarted) {
            let _ = writeln!(text, "{:<26}{:>10.1} ms", "until the command ran", milliseconds(started));
        }
        if let Some(&(_, last)) = self.marks.iter().max_by_key(|&&(_, when)| when) {
            let total = last.saturating_duration_since(self.start);
            let _ = writeln!(text, "{:<26}{:>10.1} ms", "total", milliseconds(total));
        }
        text
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Timings {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timings = Timings::starting_at(start);
        timings.pass_at(Mark::VmmSpawned, at(10));
        timings.pass_at(Mark::Booting, at(30));
        timings.pass_at(Mark::ContainerPrepared, at(60));
        timings.pass_at(Mark::AgentStarted, at(130));
        timings.pass_at(Mark::AgentReady, at(140));
        timings.pass_at(Mark::ContainerCreated, at(150));
        timings.pass_at(Mark::ContainerStarted, at(155));
        timings.pass_at(Mark::Removed, at(200));
        timings
    }

    #[test]
    fn phases_add_up_and_what_runs_beside_them_does_not_count() {
        let phases = example().phases();
        let of = |name: &str| phases.iter().find(|(phase, _)| *phase == name).unwrap().1.as_millis();
        assert_eq!(of("server"), 10);
        assert_eq!(of("VM create"), 20);
        assert_eq!(of("boot"), 100);
        assert_eq!(of("(image, beside the boot)"), 50);
        assert_eq!(of("container start"), 5);
        let sum: u128 = phases.iter().filter(|(phase, _)| !phase.starts_with('(')).map(|(_, d)| d.as_millis()).sum();
        assert_eq!(sum, 200);
    }

    #[test]
    fn the_table_names_every_phase_and_the_sums() {
        let table = example().table();
        for line in ["server", "VM create", "boot", "agent ready", "container start", "until the command ran", "total"]
        {
            assert!(table.lines().any(|l| l.starts_with(line)), "{line} is missing in\n{table}");
        }
        assert!(table.contains("155.0 ms") && table.contains("200.0 ms"), "{table}");
    }

    #[test]
    fn a_start_that_failed_early_has_a_table_too() {
        let mut timings = Timings::starting_at(Instant::now());
        assert_eq!(timings.table(), "");
        timings.pass(Mark::VmmSpawned);
        assert!(timings.table().contains("total"));
    }
}
