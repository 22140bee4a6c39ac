//! The guest's PID 1, or that of a pod's namespaces. What it does stands in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == "hold") {
        tatami_agent::hold();
    }
    if std::process::id() != 1 {
        eprintln!("tatami-agent: runs only as PID 1 of a Tatami guest; start a sandbox with `tatami run` instead");
        return ExitCode::FAILURE;
    }
    // Returning from here is a kernel panic, which restarts the machine and so ends the VMM with the message on its console.
    tatami_agent::boot();
    ExitCode::FAILURE
}
