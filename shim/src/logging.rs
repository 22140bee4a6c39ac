//! What this process says of itself: to who reads along, which is standard error unless a client reads elsewhere, and into its
//! sandbox's [`crate::journal`] once there is one.
//!
//! `TATAMI_LOG` (error, warn, info, debug, trace, off) says how much the former is told; warnings and errors by default.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

use crate::journal;

/// How much who reads along is told: a [`LevelFilter`].
static TOLD: AtomicUsize = AtomicUsize::new(LevelFilter::Off as usize);

/// Who reads along, as something that takes a message.
struct Logger<T>(T);

impl<T: Fn(&Record<'_>) + Send + Sync> Log for Logger<T> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if is_told(record.level().to_level_filter()) {
            (self.0)(record);
        }
        journal::note(record);
    }

    fn flush(&self) {}
}

/// Says what went wrong to who has given the command.
pub(crate) fn complain(error: &dyn std::fmt::Display) {
    // In one piece: others may write to the same place. And where nobody can be told, nobody is.
    let _ = io::stderr().write_all(format!("tatami: {error}\n").as_bytes());
}

/// Starts logging to standard error, each message a line that says who speaks and how grave it is. Later calls change nothing.
pub fn start() {
    start_for(LevelFilter::Warn, |record| {
        let level = record.level().as_str().to_ascii_lowercase();
        // In one piece; and where nobody can be told, nobody is.
        let _ = io::stderr().write_all(format!("tatami {level}: {}\n", record.args()).as_bytes());
    });
}

/// Starts logging by `tell`, so much unless `TATAMI_LOG` says how much; whether it has, which only the first call can.
pub(crate) fn start_for(usual: LevelFilter, tell: impl Fn(&Record<'_>) + Send + Sync + 'static) -> bool {
    let started = log::set_boxed_logger(Box::new(Logger(tell))).is_ok();
    if started {
        tell_up_to(wanted().unwrap_or(usual));
    }
    started
}

/// Tells more than before, unless somebody has said how much is to be told.
pub(crate) fn tell_more(level: LevelFilter) {
    if !is_told(level) && wanted().is_none() {
        tell_up_to(level);
    }
}

/// Has messages of this level made, whoever reads them.
pub(crate) fn at_least(level: LevelFilter) {
    log::set_max_level(log::max_level().max(level));
}

/// What `TATAMI_LOG` says.
fn wanted() -> Option<LevelFilter> {
    std::env::var("TATAMI_LOG").ok()?.parse().ok()
}

fn tell_up_to(level: LevelFilter) {
    TOLD.store(level as usize, Ordering::Relaxed);
    at_least(level);
}

fn is_told(level: LevelFilter) -> bool {
    level as usize <= TOLD.load(Ordering::Relaxed)
}
