//! `tatami install` and `tatami uninstall`: a host's containerd is told of the runtime, and no longer.
//!
//! All that would be changed is found first, so that an error changes nothing; what is done is said, and only what is ours is taken back.
//! Restarts no daemon: when that suits is known to who calls this.

mod change;
mod config_file;
mod containerd;
mod error;
mod links;
mod manifests;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, Args, ValueEnum};

use self::change::Plan;
use self::containerd::Runtime;
pub use self::error::{InstallError, Line};

const RESTART: &str = "containerd reads its configuration when it starts: systemctl restart containerd";

/// The command line of `tatami install`.
#[derive(Args, Debug)]
#[command(
    group(ArgGroup::new("what").required(true).args(["containerd", "manifests"])),
    after_help = "Examples:
  tatami install --containerd --print      # what would be changed
  tatami install --containerd              # then: systemctl restart containerd
  tatami install --manifests --image registry.example/tatami | kubectl apply -f -"
)]
pub struct InstallArguments {
    /// Link the shim's names to this binary, and tell containerd's CRI of the runtime
    #[arg(long)]
    containerd: bool,
    /// Print, for kubectl, a RuntimeClass and a DaemonSet that does the same on a cluster's nodes
    #[arg(long, conflicts_with_all = ["print", "copy", "sandboxer", "configuration"])]
    manifests: bool,
    #[command(flatten)]
    places: Places,
    /// Copy this binary into that folder too, as `tatami`, and link to the copy
    #[arg(long)]
    copy: bool,
    /// What a RuntimeClass calls the runtime
    #[arg(long, value_name = "NAME", default_value = "kata", value_parser = handler)]
    handler: String,
    /// The file of settings (Kata's configuration.toml) that sandboxes are given [default: the one in Kata's own places]
    #[arg(long, value_name = "FILE")]
    configuration: Option<PathBuf>,
    /// Who makes a pod's sandbox, with containerd 2.x: containerd's own controller or, by its Sandbox API, the shim
    #[arg(long, value_name = "NAME")]
    sandboxer: Option<Sandboxer>,
    /// The image in the DaemonSet, which holds the binary
    #[arg(long, value_name = "IMAGE", default_value = concat!("localhost/tatami:", env!("CARGO_PKG_VERSION")))]
    image: String,
}

/// The command line of `tatami uninstall`.
#[derive(Args, Debug)]
#[command(
    after_help = "What `tatami install` has not made stays as it is, and is named. It may be repeated, and be run by another version."
)]
pub struct UninstallArguments {
    #[command(flatten)]
    places: Places,
    /// Remove the copy too that `tatami install --copy` has made
    #[arg(long)]
    copy: bool,
}

/// Where, and whether really.
#[derive(Args, Debug)]
struct Places {
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    config: PathBuf,
    /// The folder of the links, in which containerd looks for shims
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    bin_dir: PathBuf,
    /// Only print what would be changed
    #[arg(long)]
    print: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sandboxer {
    Podsandbox,
    Shim,
}

/// Runs `tatami install`.
pub fn main(arguments: &InstallArguments) -> ExitCode {
    exit(binary().and_then(|binary| install(arguments, &binary, &mut io::stdout().lock())))
}

/// Runs `tatami uninstall`.
pub fn main_of_removal(arguments: &UninstallArguments) -> ExitCode {
    exit(binary().and_then(|binary| uninstall(arguments, &binary, &mut io::stdout().lock())))
}

fn exit(result: Result<(), InstallError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tatami: {error}");
            ExitCode::FAILURE
        }
    }
}

fn binary() -> Result<PathBuf, InstallError> {
    std::env::current_exe().map_err(|source| InstallError::Binary { source })
}

fn install(arguments: &InstallArguments, binary: &Path, out: &mut dyn Write) -> Result<(), InstallError> {
    if arguments.manifests {
        return Ok(out.write_all(manifests::text(&arguments.handler, &arguments.image).as_bytes())?);
    }
    let runtime = Runtime {
        handler: arguments.handler.clone(),
        sandboxer: arguments.sandboxer.and_then(|name| Some(name.to_possible_value()?.get_name().to_owned())),
        configuration: arguments.configuration.as_deref().map(configuration).transpose()?,
    };
    let places = &arguments.places;
    let links = links::plan(&places.bin_dir, binary, arguments.copy)?;
    let containerd = containerd::plan(&places.config, Some(&runtime))?;
    let restart = !containerd.changes.is_empty();
    carry_out(&[links, containerd], places.print, out)?;
    if restart && !places.print {
        writeln!(out, "{RESTART}")?;
    }
    Ok(())
}

fn uninstall(arguments: &UninstallArguments, binary: &Path, out: &mut dyn Write) -> Result<(), InstallError> {
    let places = &arguments.places;
    let containerd = containerd::plan(&places.config, None)?;
    let links = links::plan_removal(&places.bin_dir, binary, arguments.copy)?;
    let restart = !containerd.changes.is_empty();
    carry_out(&[containerd, links], places.print, out)?;
    if restart && !places.print {
        writeln!(out, "{RESTART}")?;
    }
    Ok(())
}

/// Makes all changes, or only prints them, and says which.
fn carry_out(plans: &[Plan], print: bool, out: &mut dyn Write) -> Result<(), InstallError> {
    for change in plans.iter().flat_map(|plan| &plan.changes) {
        if print {
            write!(out, "would {}\n{}", change.told(false), change.lines())?;
        } else {
            change.make().map_err(|source| InstallError::Change { what: change.told(false), source })?;
            writeln!(out, "{}", change.told(true))?;
        }
    }
    for note in plans.iter().flat_map(|plan| &plan.notes) {
        writeln!(out, "note: {note}")?;
    }
    if plans.iter().all(|plan| plan.changes.is_empty()) {
        writeln!(out, "nothing to change")?;
    }
    Ok(())
}

/// A name that can be both Kubernetes' and a bare key of TOML.
fn handler(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = text.len() <= 63
        && text.bytes().all(|byte| plain(byte) || byte == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain);
    if good { Ok(text.to_owned()) } else { Err("a name of small letters, digits and dashes is needed".to_owned()) }
}

/// The file at `path`, as containerd can name it wherever it runs.
fn configuration(path: &Path) -> Result<String, InstallError> {
    let wrong = |reason: String| InstallError::Configuration { path: path.to_owned(), reason };
    let whole = std::path::absolute(path).map_err(|error| wrong(error.to_string()))?;
    if !whole.is_file() {
        return Err(wrong("is not a file".to_owned()));
    }
    whole.into_os_string().into_string().map_err(|_| wrong("its name is not UTF-8".to_owned()))
}
