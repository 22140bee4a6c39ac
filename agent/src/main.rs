//! The guest's PID 1, and, under another name, the short-lived child of it that makes a container or joins one.
//!
//! Only chooses between the two; what either does stands in the library.

use std::ffi::OsStr;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().next().as_deref() == Some(OsStr::new(tatami_agent::CREATOR_NAME)) {
        return tatami_agent::creator_main();
    }
    if std::process::id() != 1 {
        eprintln!("tatami-agent: runs only as PID 1 of a Tatami guest; start a sandbox with `tatami run` instead");
        return ExitCode::FAILURE;
    }
    // Returning from here is a kernel panic, which restarts the machine and so ends the VMM with the message on its console.
    tatami_agent::boot();
    ExitCode::FAILURE
}
