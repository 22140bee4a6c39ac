//! A whole `tatami run`, phase by phase.

use tatami_tests::Tatami;

use crate::contest::{median, milliseconds};

/// A whole `tatami run … true`, with the phases that `--timings` gives.
pub(crate) fn table(rounds: usize) {
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
    println!();
}

/// One line of `--timings`: a name, a number, `ms`.
pub(crate) fn phase(line: &str) -> Option<(String, f64)> {
    let (name, number) = line.trim().strip_suffix("ms")?.trim().rsplit_once(char::is_whitespace)?;
    Some((name.trim().to_owned(), number.parse().ok()?))
}
