//! The top of the command line `tatami`: what the binary reads, and what completions, manual pages and the reference are made from
//! (`examples/manual.rs`).

use clap::{Parser, Subcommand};

use crate::check::CheckArguments;
use crate::detached::Commands;
use crate::direct_volume::DirectVolumeArguments;
use crate::environment::EnvArguments;
use crate::events::EventsArguments;
use crate::images::{ImageArguments, ListArguments, LoadArguments, PullArguments, RemoveArguments};
use crate::install::{InstallArguments, UninstallArguments};
use crate::ksm::KsmArguments;
use crate::metrics::MetricsArguments;
use crate::metrics::top::TopArguments;
use crate::rootfs::RootfsArguments;
use crate::run::options::RunArguments;

/// The command line.
#[derive(Parser)]
#[command(name = "tatami", version, about = "Containers, each in a small virtual machine of its own")]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The first word.
#[derive(Subcommand)]
pub enum Command {
    /// Run a command in a container, in a virtual machine of its own
    Run(Box<RunArguments>),
    /// One of those about containers in the background.
    #[command(flatten)]
    Detached(Commands),
    /// Fetch an image from a registry
    Pull(PullArguments),
    /// List images
    Images(ListArguments),
    /// Remove images
    Rmi(RemoveArguments),
    /// Take images in from files
    Load(LoadArguments),
    /// Fetch, list, remove, load, save and inspect images
    Image(ImageArguments),
    /// Say whether this machine can run sandboxes, and what is missing
    Check(CheckArguments),
    /// Show what this machine and this installation are, for a report of an error
    Env(EnvArguments),
    /// Say what all sandboxes of this host use, in the form that Prometheus reads
    Metrics(MetricsArguments),
    /// Show what sandboxes use now, the busiest first, until Ctrl-C
    #[command(visible_alias = "stats")]
    Top(TopArguments),
    /// Tell what happens to sandboxes and containers, until Ctrl-C
    Events(EventsArguments),
    /// Have the kernel look for equal pages of mergeable sandboxes' memory while there is something to find, until Ctrl-C
    Ksm(KsmArguments),
    /// Say which disk guests mount in place of a volume, as CSI drivers do
    DirectVolume(DirectVolumeArguments),
    /// Build a guest's root: with a shell and tools, or checked as it is read
    Rootfs(RootfsArguments),
    /// Tell this machine's containerd of the runtime, or print what tells a cluster's
    Install(InstallArguments),
    /// Be an OCI runtime, as under the name tatami-runtime: `tatami oci --help`
    Oci,
    /// Take back what `install` has done, and nothing else
    Uninstall(UninstallArguments),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        CommandLine::command().debug_assert();
    }
}
