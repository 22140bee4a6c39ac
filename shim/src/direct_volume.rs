//! `tatami direct-volume`: what a CSI driver leaves for the runtime is written and removed, as Kata's tool has it, and how full such a
//! volume is.
//!
//! Knows the command line; what such a file says, and where it lies, is in [`crate::containerd`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::containerd::direct_volumes;
use crate::logging::complain;
use crate::metrics;

/// The command line of `tatami direct-volume`.
#[derive(Args, Debug)]
#[command(after_help = r#"MOUNT_INFO is JSON: volume-type ("block"), device, fstype, and perhaps metadata and options.

Examples:
  tatami direct-volume add /var/lib/kubelet/pods/UID/volumes/NAME/mount \
      '{"volume-type":"block","device":"/dev/sdb","fstype":"ext4","options":["noatime"]}'
  tatami direct-volume stats /var/lib/kubelet/pods/UID/volumes/NAME/mount | jq '.usage[0].available'
  tatami direct-volume remove /var/lib/kubelet/pods/UID/volumes/NAME/mount"#)]
pub struct DirectVolumeArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Have guests mount a disk where a pod names this path as a volume
    Add {
        /// The path that pods know the volume by
        #[arg(value_name = "VOLUME_PATH")]
        volume: PathBuf,
        /// What is to be mounted
        #[arg(value_name = "MOUNT_INFO")]
        info: String,
    },
    /// Say how full it is, as long as a pod has it: bytes (unit 1) and inodes (unit 2), in JSON as CSI has it
    Stats {
        /// The path that pods know the volume by
        #[arg(value_name = "VOLUME_PATH")]
        volume: PathBuf,
    },
    /// Take that back. Pods that have the volume keep it
    #[command(visible_alias = "delete")]
    Remove {
        /// The path that pods know the volume by
        #[arg(value_name = "VOLUME_PATH")]
        volume: PathBuf,
    },
}

/// Carries it out.
pub fn main(arguments: &DirectVolumeArguments) -> ExitCode {
    let done = match &arguments.command {
        Command::Add { volume, info } => add(volume, info),
        Command::Remove { volume } => {
            direct_volumes::remove(volume).map_err(|error| format!("{}: {error}", volume.display()))
        }
        Command::Stats { volume } => return metrics::volume::main(volume),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn add(volume: &Path, info: &str) -> Result<(), String> {
    if !volume.is_absolute() {
        return Err(format!("the volume {volume:?}: expected a path from / on"));
    }
    // What no pod could be given is refused now, to whom it can be told.
    direct_volumes::parse(volume, info.as_bytes())?;
    direct_volumes::add(volume, info.as_bytes()).map_err(|error| format!("{}: {error}", volume.display()))
}
