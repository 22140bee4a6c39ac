//! Contestants' times, and the table that tells them: medians, extremes, and how the first compares to each.

use std::time::Duration;

/// What took how long, in milliseconds, round by round.
pub(crate) struct Times {
    name: String,
    rounds: Vec<f64>,
}

impl Times {
    /// None yet.
    pub(crate) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), rounds: Vec::new() }
    }

    /// One more round.
    pub(crate) fn add(&mut self, took: Duration) {
        self.rounds.push(milliseconds(took));
    }

    /// The middle one, in milliseconds.
    pub(crate) fn median(&self) -> f64 {
        median(&self.rounds)
    }
}

/// Prints what the contestants took; the ratios are the first's to each.
pub(crate) fn print(title: &str, contestants: &[Times]) {
    let [first, ..] = contestants else { return };
    println!("{title}, median of {} alternating rounds", first.rounds.len());
    println!("  {:<16} {:>9} {:>9} {:>9} {:>14}", "", "median ms", "min", "max", format!("{}/this", first.name));
    for times in contestants {
        let (least, most) =
            times.rounds.iter().fold((f64::MAX, 0.0_f64), |(least, most), time| (least.min(*time), most.max(*time)));
        let (middle, ratio) = (times.median(), first.median() / times.median());
        println!("  {:<16} {middle:>9.1} {least:>9.1} {most:>9.1} {ratio:>14.2}", times.name);
    }
    println!();
}

/// In milliseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The middle one of `numbers`, of which there are some.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
