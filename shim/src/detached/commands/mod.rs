//! The commands about containers: their command lines, and which part carries each out.

mod attach;
mod balloon;
mod console;
mod control;
mod cp;
mod exec;
mod fifos;
mod inspect;
mod log;
mod logs;
mod ps;
mod sandboxes;
mod save;
mod session;

use clap::Subcommand;

use super::Error;
use crate::sandbox::folder::Places;

/// The commands' words and options.
#[derive(Subcommand)]
pub enum Commands {
    /// List containers
    #[command(visible_alias = "list", visible_alias = "ls")]
    Ps(ps::PsArguments),
    /// Show what a container has written
    Logs(logs::LogsArguments),
    /// Show what a sandbox's server, VMM and guest have logged, in one stream by time
    Log(log::LogArguments),
    /// Run a further command in a running container
    Exec(exec::ExecArguments),
    /// Copy files and folders into a running container, or out of it
    Cp(cp::CpArguments),
    /// Open a shell in a sandbox's guest itself, outside its containers
    Console(console::ConsoleArguments),
    /// Join a running container's output, and its input with -i
    Attach(attach::AttachArguments),
    /// Ask containers to end, and end those that do not
    Stop(control::StopArguments),
    /// Send a signal to containers
    Kill(control::KillArguments),
    /// Wait until containers have ended, and print their exit statuses
    Wait(control::WaitArguments),
    /// Have all processes of containers stand still
    Pause(control::PauseArguments),
    /// Have paused containers go on
    #[command(visible_alias = "unpause")]
    Resume(control::ResumeArguments),
    /// Have a container's machine do without a part of its memory, or give it back
    Balloon(balloon::BalloonArguments),
    /// Write a running container to a folder, from which others can go on
    Save(save::SaveArguments),
    /// Start a container that goes on from where one was saved
    Restore(save::RestoreArguments),
    /// Remove containers that have ended: their records and logs
    Rm(control::RmArguments),
    /// Show all that is known of containers or images, as JSON
    Inspect(inspect::InspectArguments),
}

impl Commands {
    /// Carries it out; the exit status.
    pub(super) fn carry_out(self) -> Result<u8, Error> {
        let places = Places::from_environment();
        match self {
            Commands::Ps(arguments) => run(ps::ps(&places, &arguments)),
            Commands::Logs(arguments) => logs::logs(&places, &arguments),
            Commands::Log(arguments) => run(log::log(&places, &arguments)),
            Commands::Exec(arguments) => run(exec::exec(&places, arguments)),
            Commands::Cp(arguments) => run(cp::cp(&places, arguments)),
            Commands::Console(arguments) => run(console::console(&places, &arguments)),
            Commands::Attach(arguments) => run(attach::attach(&places, &arguments)),
            Commands::Stop(arguments) => run(control::stop(&places, arguments)),
            Commands::Kill(arguments) => run(control::kill(&places, arguments)),
            Commands::Wait(arguments) => run(control::wait(&places, &arguments)),
            Commands::Pause(arguments) => run(control::pause(&places, &arguments)),
            Commands::Resume(arguments) => run(control::resume(&places, &arguments)),
            Commands::Balloon(arguments) => run(balloon::balloon(&places, &arguments)),
            Commands::Save(arguments) => run(save::save(&places, &arguments)),
            Commands::Restore(arguments) => save::restore(arguments),
            Commands::Rm(arguments) => run(control::rm(&places, arguments)),
            Commands::Inspect(arguments) => run(inspect::inspect(&places, &arguments)),
        }
    }
}

/// Runs a command to its end; threads that still read from somewhere are not waited for.
fn run(command: impl Future<Output = Result<u8, Error>>) -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::System { action: "start the runtime", source })?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}
