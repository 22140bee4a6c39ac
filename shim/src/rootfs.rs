//! `tatami rootfs build`: a guest's root with a shell and tools, or with hashes to check it by, around the agent that this installation has.
//!
//! What builds one is `rootfs/build-root`, which the binary carries: this process becomes it. It knows where the agent is and how the
//! script is told; nothing of file systems.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::guest_files::{self, ARCHITECTURE, GuestFilesError};
use crate::logging::complain;

const BUILD_ROOT: &[u8] = include_bytes!("../../rootfs/build-root");
/// What the agent is in an initrd.
const AGENT: &str = "init";
/// More than any agent has, in bytes.
const MOST_OF_AN_AGENT: u32 = 64 << 20;

/// The command line of `tatami rootfs`.
#[derive(Args, Debug)]
pub struct RootfsArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Build a guest's root as a disk
    Build(BuildArguments),
}

/// The command line of `tatami rootfs build`.
#[derive(Args, Debug)]
#[command(after_help = "\
A guest reads a disk page by page, many guests the same pages of the host's memory; an initrd,
which has the agent alone and comes with Tatami, is copied into each. Equal calls give equal
bytes, but for Debian, whose packages change.

With --dm-verity the guest's kernel checks whatever it reads. What it is checked by is printed:
--verity of `tatami run` and kernel_verity_params of a configuration take it, and then start from
no other disk.

Examples:
  tatami rootfs build --distro busybox
  tatami run -d --initrd busybox.erofs IMAGE
  tatami rootfs build --dm-verity --output /srv/tatami/root.erofs
  sudo tatami rootfs build --distro debian --extra-packages strace,gdb --format ext4")]
struct BuildArguments {
    /// What is beside the agent
    #[arg(long, value_enum, default_value_t = Distro::Agent)]
    distro: Distro,
    /// The suite of Debian's [default: bookworm]
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// And these of its packages
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    extra_packages: Vec<String>,
    /// Where Debian comes from [default: what this machine's apt uses, else Debian's own]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// The busybox, statically linked [default: the one on PATH]
    #[arg(long, value_name = "FILE")]
    busybox: Option<PathBuf>,
    /// What is in this folder, over all that: hooks of the guest's own, for instance
    #[arg(long, value_name = "FOLDER")]
    add: Option<PathBuf>,
    /// The disk's file system
    #[arg(long, value_enum, default_value_t = Format::Erofs)]
    format: Format,
    /// Put a tree of hashes behind the disk, by which a guest's kernel checks whatever it reads
    #[arg(long)]
    dm_verity: bool,
    /// The initrd whose agent it gets [default: the one that sandboxes start from]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Where it is put [default: in this folder, named by what it is]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What a guest has beside its agent.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Distro {
    /// Nothing, as guests usually have it
    Agent,
    /// A shell and small tools in one program
    Busybox,
    /// A Debian with apt, which takes root to build
    Debian,
}

/// The file system that it is built as.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A compact file system that is only read
    Erofs,
    /// A file system as disks have it
    Ext4,
}

/// Why nothing is built; the script says itself what goes wrong in it.
#[derive(Debug, thiserror::Error)]
enum RootfsError {
    #[error(transparent)]
    Found(#[from] GuestFilesError),
    #[error("the initrd {initrd}: {source}")]
    Initrd { initrd: String, source: io::Error },
    #[error("cannot hand over {what}: {source}")]
    HandOver { what: &'static str, source: io::Error },
    #[error("cannot run bash, which builds it: {0}")]
    Bash(io::Error),
}

/// Builds one: does not come back if all goes well.
pub fn main(arguments: &RootfsArguments) -> ExitCode {
    let Command::Build(arguments) = &arguments.command;
    complain(&match build(arguments) {
        Err(error) => error,
        Ok(never) => match never {},
    });
    ExitCode::FAILURE
}

fn build(arguments: &BuildArguments) -> Result<Infallible, RootfsError> {
    let initrd = guest_files::find_initrd(arguments.initrd.as_deref())?;
    let failed = |source| RootfsError::Initrd { initrd: initrd.to_string(), source };
    let agent = initrd.open().and_then(agent_of).map_err(failed)?;
    let hand_over = |what, bytes| handed_over(bytes).map_err(|source| RootfsError::HandOver { what, source });
    let (script, agent) = (hand_over("the script", BUILD_ROOT)?, hand_over("the agent", &agent)?);
    let mut bash = Program::new("bash");
    bash.arg(script).args(arguments.words(&agent)).env("TATAMI_ROOTFS_CALLED", "tatami");
    Err(RootfsError::Bash(bash.exec()))
}

impl BuildArguments {
    /// As the script is told it.
    fn words(&self, agent: &Path) -> Vec<OsString> {
        // Somebody else's machine: what it lacks is named.
        let mut words: Vec<OsString> = ["--no-install", "--arch", ARCHITECTURE, "--agent"].map(Into::into).into();
        words.push(agent.into());
        let packages = Some(self.extra_packages.join(",")).filter(|names| !names.is_empty());
        let output = self.output.clone().unwrap_or_else(|| self.named_by_what_it_is());
        let text = |value: &Option<String>| value.as_ref().map(OsString::from);
        let path = |value: &Option<PathBuf>| value.as_ref().map(OsString::from);
        let said = [
            ("--distro", Some(value_of(self.distro).into())),
            ("--format", Some(value_of(self.format).into())),
            ("--suite", text(&self.suite)),
            ("--extra-packages", text(&packages)),
            ("--mirror", text(&self.mirror)),
            ("--busybox", path(&self.busybox)),
            ("--add", path(&self.add)),
            ("--output", Some(output.into())),
        ];
        let said = said.into_iter().filter_map(|(name, value)| Some([name.into(), value?]));
        words.extend(said.flatten());
        if self.dm_verity {
            words.push("--dm-verity".into());
        }
        words
    }

    fn named_by_what_it_is(&self) -> PathBuf {
        let base = match (self.distro, &self.suite) {
            (Distro::Agent, _) => "root",
            (Distro::Busybox, _) => "busybox",
            (Distro::Debian, suite) => suite.as_deref().unwrap_or("debian"),
        };
        format!("{base}{}.{}", if self.dm_verity { ".verity" } else { "" }, value_of(self.format)).into()
    }
}

/// By what the command line knows it, as the script does.
fn value_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|possible| possible.get_name().to_owned()).unwrap_or_default()
}

/// The agent in an initrd.
fn agent_of(initrd: File) -> io::Result<Vec<u8>> {
    let none = |why: &dyn Display| {
        io::Error::other(format!("{why}: one with the agent as /{AGENT} is wanted, not compressed"))
    };
    let mut rest = io::BufReader::new(initrd);
    loop {
        let mut entry = cpio::NewcReader::new(rest).map_err(|error| none(&error))?;
        let (name, length) = (entry.entry().name().trim_start_matches("./").to_owned(), entry.entry().file_size());
        if name == AGENT && (1..MOST_OF_AN_AGENT).contains(&length) {
            let mut agent = Vec::new();
            entry.read_to_end(&mut agent)?;
            return if agent.len() == length as usize { Ok(agent) } else { Err(none(&"it is cut short")) };
        }
        if entry.entry().is_trailer() {
            return Err(none(&"it has no agent"));
        }
        rest = entry.finish().map_err(|error| none(&error))?;
    }
}

/// Puts bytes where the program that this becomes finds them.
fn handed_over(bytes: &[u8]) -> io::Result<PathBuf> {
    let mut file = File::from(memfd_create(c"tatami-rootfs", MFdFlags::empty())?);
    file.write_all(bytes)?;
    // Nobody closes it: this process is another program soon, or ends.
    Ok(format!("/proc/self/fd/{}", file.into_raw_fd()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: BuildArguments,
    }

    fn told(words: &[&str]) -> String {
        let line = CommandLine::parse_from(["build"].iter().chain(words));
        let words = line.arguments.words(Path::new("/i"));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_script_is_told_what_is_asked_for() {
        let always = format!("--no-install --arch {ARCHITECTURE} --agent /i");
        assert_eq!(told(&[]), format!("{always} --distro agent --format erofs --output root.erofs"));
        assert_eq!(
            told(&["--distro", "busybox", "--busybox", "/b", "--format", "ext4", "--dm-verity"]),
            format!("{always} --distro busybox --format ext4 --busybox /b --output busybox.verity.ext4 --dm-verity")
        );
        assert_eq!(
            told(&["--distro=debian", "--suite=trixie", "--extra-packages=a,b", "--mirror=http://m", "--add=/h"]),
            format!(
                "{always} --distro debian --format erofs --suite trixie --extra-packages a,b --mirror http://m --add /h \
                 --output trixie.erofs"
            )
        );
        assert!(told(&["-o", "/x"]).ends_with("--output /x"));
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        file
    }

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in entries {
            let mut entry = cpio::NewcBuilder::new(name).mode(0o100_755).write(&mut bytes, content.len() as u32);
            entry.write_all(content).unwrap();
            entry.finish().unwrap();
        }
        cpio::newc::trailer(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_agent_is_found_in_an_initrd_and_nowhere_else() {
        let (other, agent): (&[u8], &[u8]) = (b"another file", b"\x7fELF and so on");
        for name in ["init", "./init"] {
            assert_eq!(agent_of(file_of(&archive(&[("etc/init", other), (name, agent)]))).unwrap(), agent);
        }
        let refused = |bytes: &[u8]| agent_of(file_of(bytes)).unwrap_err().to_string();
        assert!(refused(&archive(&[("etc/init", other)])).starts_with("it has no agent: one with the agent as /init"));
        assert!(refused(&archive(&[("init", b"")])).starts_with("it has no agent"));
        assert!(refused(&archive(&[("init", agent)])[..120]).contains("one with the agent as /init"));
        assert!(refused(&[0; 4096]).starts_with("Invalid magic number: one with"));
    }
}
