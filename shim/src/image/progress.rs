//! How far unpacking is, told to who waits.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Nothing is reported before this long.
const QUIET: Duration = Duration::from_secs(2);
/// At most one report in this long.
const INTERVAL: Duration = Duration::from_secs(5);

/// How far unpacking is. Reported only when it takes longer than two seconds; `Display` makes a line of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another process unpacks the same image, or a layer of it.
    Waiting,
    /// Layers are being unpacked.
    Unpacking {
        /// The layer being unpacked, from 1.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// Bytes of the image's layer files read so far.
        done: u64,
        /// Bytes of all its layer files.
        total: u64,
    },
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Progress::Waiting => write!(f, "waiting for another process that unpacks this image"),
            Progress::Unpacking { layer, layers, done, total } => {
                let mb = |bytes: &u64| *bytes as f64 / 1e6;
                write!(f, "unpacking layer {layer} of {layers}: {:.1} of {:.1} MB", mb(done), mb(total))
            }
        }
    }
}

/// What is told while an image is unpacked.
pub(super) struct Report<'a> {
    progress: &'a mut dyn FnMut(Progress),
    start: Instant,
    last: Option<Instant>,
    /// The layer that is being unpacked, from 1.
    layer: usize,
    layers: usize,
    /// Bytes of layer files.
    done: u64,
    total: u64,
}

impl<'a> Report<'a> {
    /// Nothing is done of so many layers, whose files have `total` bytes.
    pub(super) fn new(progress: &'a mut dyn FnMut(Progress), layers: usize, total: u64) -> Report<'a> {
        Report { progress, start: Instant::now(), last: None, layer: 0, layers, done: 0, total }
    }

    /// Somebody else has begun.
    pub(super) fn waiting(&mut self) {
        (self.progress)(Progress::Waiting);
    }

    /// The next layer's file is read through what this returns.
    pub(super) fn count<R: Read>(&mut self, layer: R) -> Counted<'_, 'a, R> {
        self.layer += 1;
        Counted { inner: layer, report: self }
    }

    /// So many layers are there, whose files have `done` bytes, whoever has unpacked them.
    pub(super) fn reached(&mut self, layers: usize, done: u64) {
        (self.layer, self.done) = (layers, done);
    }
}

/// Counts the bytes of layer files read, and reports when it is time.
pub(super) struct Counted<'a, 'b, R> {
    inner: R,
    report: &'a mut Report<'b>,
}

impl<R: Read> Read for Counted<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let report = &mut *self.report;
        report.done += count as u64;
        let due = report.last.map_or(report.start + QUIET, |last| last + INTERVAL);
        let now = Instant::now();
        if now >= due {
            report.last = Some(now);
            let (layer, layers, done, total) = (report.layer, report.layers, report.done, report.total);
            (report.progress)(Progress::Unpacking { layer, layers, done, total });
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_quiet_at_first_and_then_rare() {
        let mut lines = Vec::new();
        let mut progress = |progress: Progress| lines.push(progress.to_string());
        let mut report = Report::new(&mut progress, 3, 3_000_000);
        let content = vec![0; 750_000];
        io::copy(&mut report.count(&content[..]), &mut io::sink()).unwrap();
        assert_eq!((report.done, report.last), (750_000, None));
        report.start -= QUIET;
        io::copy(&mut report.count(&content[..]), &mut io::sink()).unwrap();
        assert_eq!((report.done, report.layer), (1_500_000, 2));
        report.reached(3, 3_000_000);
        assert_eq!((report.done, report.layer), (3_000_000, 3));
        assert_eq!(lines, ["unpacking layer 2 of 3: 0.8 of 3.0 MB"]);
    }
}
