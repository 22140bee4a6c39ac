//! The host binary: what it does depends on the name it is called by.
//!
//! Knows which part of the library answers to which name and command; nothing of what they do.

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use clap::error::ErrorKind;
use tatami_shim::command_line::{Command, CommandLine};
use tatami_shim::run::{self, TATAMI_FAILED};
use tatami_shim::{
    check, containerd, detached, direct_volume, environment, events, images, install, ksm, logging, metrics, oci,
    rootfs,
};

fn main() -> ExitCode {
    let started = Instant::now();
    let name = std::env::args_os().next().unwrap_or_default();
    if name == "tatami-vmm" {
        tatami_vmm::process::main()
    }
    if containerd::is_shim(&name) {
        return containerd::main();
    }
    if oci::is_runtime(&name) {
        return oci::main(std::env::args_os().skip(1));
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == "oci") {
        return oci::main(std::env::args_os().skip(2));
    }
    logging::start();
    match CommandLine::try_parse() {
        Ok(CommandLine { command: Command::Run(arguments) }) => run::main(*arguments, started),
        Ok(CommandLine { command: Command::Detached(command) }) => detached::main(command),
        Ok(CommandLine { command: Command::Pull(arguments) }) => images::pull(&arguments),
        Ok(CommandLine { command: Command::Images(arguments) }) => images::list(&arguments),
        Ok(CommandLine { command: Command::Rmi(arguments) }) => images::remove(&arguments),
        Ok(CommandLine { command: Command::Load(arguments) }) => images::load(&arguments),
        Ok(CommandLine { command: Command::Image(arguments) }) => images::main(&arguments),
        Ok(CommandLine { command: Command::Check(arguments) }) => {
            // Fails only when nobody reads it.
            check::run(&arguments, &mut io::stdout().lock()).unwrap_or(ExitCode::FAILURE)
        }
        Ok(CommandLine { command: Command::Env(arguments) }) => environment::main(&arguments),
        Ok(CommandLine { command: Command::Metrics(arguments) }) => metrics::main(arguments),
        Ok(CommandLine { command: Command::Top(arguments) }) => metrics::top::main(&arguments),
        Ok(CommandLine { command: Command::Events(arguments) }) => events::main(&arguments),
        Ok(CommandLine { command: Command::Ksm(arguments) }) => ksm::main(&arguments),
        Ok(CommandLine { command: Command::DirectVolume(arguments) }) => direct_volume::main(&arguments),
        Ok(CommandLine { command: Command::Rootfs(arguments) }) => rootfs::main(&arguments),
        Ok(CommandLine { command: Command::Install(arguments) }) => install::main(&arguments),
        Ok(CommandLine { command: Command::Uninstall(arguments) }) => install::main_of_removal(&arguments),
        // It was taken before, unless something stands before it.
        Ok(CommandLine { command: Command::Oci }) => oci::main(std::env::args_os().skip(2)),
        Err(error) => explain(&error),
    }
}

/// Shows help that was asked for, or says in one line what is wrong with the command line.
fn explain(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Fails only when nobody reads it.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(TATAMI_FAILED)
        }
        _ => {
            let text = error.render().to_string();
            let problem = text.lines().next().unwrap_or_default();
            eprintln!("tatami: {} (see --help)", problem.trim_start_matches("error: "));
            ExitCode::from(TATAMI_FAILED)
        }
    }
}
