//! Fifty sandboxes at once: that all of them come up, in what time, and what they weigh together.

use std::process::Stdio;
use std::time::Instant;

use tatami_tests::{Running, Tatami};

use crate::contest::milliseconds;
use crate::cost::available;

/// How many at once.
const CROWD: usize = 50;

/// Starts them all, waits until each has spoken, and ends them.
///
/// # Panics
/// When one does not come up, does not end with 0, or leaves something.
pub(crate) fn table() {
    let tatami = Tatami::new();
    // The first unpacks the image and leaves the template that the others go on from.
    tatami.run_with(&["--memory", "64m"], &["true"]).expect_status(0);
    let before = available();
    let started = Instant::now();
    let mut crowd: Vec<Running> = (0..CROWD)
        .map(|_| {
            let mut command = tatami
                .command(&Tatami::run_arguments(&["-i", "--memory", "64m"], &["sh", "-c", "echo here; exec cat"]));
            command.stdin(Stdio::piped());
            Running::start(command)
        })
        .collect();
    for sandbox in &crowd {
        sandbox.wait_for("here");
    }
    let up = started.elapsed();
    let used = before.saturating_sub(available());
    // The end of their input is the end of their command.
    let inputs: Vec<_> = crowd.iter_mut().map(Running::take_stdin).collect();
    drop(inputs);
    for sandbox in crowd {
        sandbox.finish().expect_status(0);
    }
    tatami.assert_nothing_left();
    println!("{CROWD} sandboxes at once, 64 MiB each, tatami run -i IMAGE sh");
    println!("  {:<24} {:>9.0} ms  ({:.0} each)", "until all ran", milliseconds(up), milliseconds(up) / CROWD as f64);
    println!(
        "  {:<24} {:>9.1} MB  ({:.1} each)",
        "available memory",
        used as f64 / 1024.0,
        used as f64 / 1024.0 / CROWD as f64
    );
    println!("  {:<24} {:>9.0} ms", "all gone after", milliseconds(started.elapsed()) - milliseconds(up));
    println!();
}
