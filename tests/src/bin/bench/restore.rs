//! Restore: from the VMM's start to the agent's first answer over vsock, booted, and gone on from a machine that was kept.

use std::time::Duration;

use anyhow::{Context, Result};
use tatami_tests::{Running, Tatami};

use crate::contest::{self, Times};
use crate::run::phase;

/// The phases that end with the first answer.
const PHASES: [&str; 3] = ["VM create", "boot", "agent ready"];

pub(crate) fn table(rounds: usize) -> Result<()> {
    let tatami = Tatami::new();
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let kept = folder.path().display().to_string();
    // The first one boots, and leaves its machine for the others.
    for _ in 0..2 {
        first_answer(&tatami, &kept)?;
    }
    let mut times = [Times::of("restored"), Times::of("booted")];
    for _ in 0..rounds {
        times[0].add(first_answer(&tatami, &kept)?);
        times[1].add(first_answer(&tatami, "off")?);
    }
    contest::print("VMM's start to the agent's first answer over vsock, 512 MiB, 1 vCPU, wall clock", &times);
    Ok(())
}

/// With machines kept at `templates`, or off.
fn first_answer(tatami: &Tatami, templates: &str) -> Result<Duration> {
    let mut command = tatami.command(&Tatami::run_arguments(&["--timings"], &["true"]));
    command.env("TATAMI_TEMPLATES", templates);
    let finished = Running::start(command).finish().expect_status(0);
    let text = finished.err();
    let phases: Vec<(String, f64)> = text.lines().filter_map(phase).collect();
    let time_of = |name: &str| phases.iter().find(|(known, _)| known == name).map(|(_, time)| *time);
    time_of("agent ready").with_context(|| format!("no agent in the timings: {text}"))?;
    let milliseconds: f64 = PHASES.iter().filter_map(|name| time_of(name)).sum();
    Ok(Duration::from_secs_f64(milliseconds / 1e3))
}
