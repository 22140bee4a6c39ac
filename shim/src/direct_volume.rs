//! `tatami direct-volume`: what a CSI driver leaves for the runtime is written and removed, as Kata's tool has it; how full such a
//! volume is, and that it becomes larger.
//!
//! Knows the command line; what such a file says, and where it lies, is in [`crate::containerd`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::containerd::direct_volumes;
use crate::logging::complain;
use crate::metrics;
use crate::run::size::parse_size;
use crate::sandbox::enlarging::{self, Outcome, Wish};
use crate::sandbox::folder::{self, Found, Places};

/// How long a file system may take to grow: its tables are written.
const PATIENCE: Duration = Duration::from_secs(300);

/// The command line of `tatami direct-volume`.
#[derive(Args, Debug)]
#[command(after_help = r#"MOUNT_INFO is JSON: volume-type ("block"), device, fstype, and perhaps metadata and options.

Examples:
  tatami direct-volume add /var/lib/kubelet/pods/UID/volumes/NAME/mount \
      '{"volume-type":"block","device":"/dev/sdb","fstype":"ext4","options":["noatime"]}'
  tatami direct-volume stats /var/lib/kubelet/pods/UID/volumes/NAME/mount | jq '.usage[0].available'
  truncate -s 20G /srv/disk.img; losetup -c /dev/loop0
  tatami direct-volume resize /var/lib/kubelet/pods/UID/volumes/NAME/mount 20g
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
    /// Have the guest's disk and the file system on it become as large as the disk has become on the host, while a pod has it
    Resize {
        /// The path that pods know the volume by
        #[arg(value_name = "VOLUME_PATH")]
        volume: PathBuf,
        /// How large: as 21474836480, 20480m or 20g
        #[arg(value_name = "SIZE", value_parser = parse_size)]
        size: u64,
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
        Command::Resize { volume, size } => resize(volume, *size),
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

/// Asks all sandboxes of this host at the same time: only they know who has it.
fn resize(volume: &Path, length: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start the runtime: {error}"))?.block_on(async {
        let wish = Arc::new(Wish { volume: volume.to_owned(), length });
        let all = folder::all(&Places::from_environment()).map_err(|error| error.to_string())?;
        let ask = |found: Found| {
            let wish = wish.clone();
            tokio::spawn(async move { tokio::time::timeout(PATIENCE, enlarging::ask(found.state(), &wish)).await })
        };
        let asked: Vec<_> = all.into_iter().filter(Found::is_held).map(ask).collect();
        let mut silent = 0;
        for asked in asked {
            match asked.await {
                Ok(Ok(Ok(Outcome::Done))) => return Ok(()),
                Ok(Ok(Ok(Outcome::Failed(why)))) => return Err(why),
                Ok(Ok(Ok(Outcome::Elsewhere))) => {}
                _ => silent += 1,
            }
        }
        let silent = if silent > 0 { format!(" ({silent} did not answer)") } else { String::new() };
        Err(format!("no sandbox that runs has mounted the volume {}{silent}", volume.display()))
    })
}
