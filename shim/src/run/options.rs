//! The command line of `tatami run`, and the validated options made of it.
//!
//! Knows the text; whether the files exist is found out when they are opened.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tatami_vmm::{FolderConfig, MemoryKind, Verity, VirtioBus};

use super::device::Device;
use super::folder::FolderArguments;
use super::isolation::IsolationArguments;
use super::network::{self, Net};
use super::rates::{RateArguments, Rates};
use super::size::{parse_memory, parse_size};
use super::volume::Volume;
use crate::detached::signal_number;
use crate::images::PullPolicy;
use crate::log_files::Limits;
use crate::network::passt::Published;
use crate::spec::Isolation;

/// The command line as it is written.
#[derive(Args, Debug)]
#[command(
    about = "Run a command in a container, in a virtual machine of its own",
    override_usage = "tatami run [OPTIONS] IMAGE [COMMAND] [ARG...]\n       tatami run [OPTIONS] --rootfs DIR|DISK COMMAND [ARG...]",
    after_help = EXAMPLES,
    // As with `docker run`, the last of several counts.
    args_override_self = true
)]
pub struct RunArguments {
    /// The image (its name, as `tatami pull` takes it, or an OCI layout folder, an oci-archive or a docker-archive), then the
    /// command; with --rootfs the command alone
    #[arg(value_name = "IMAGE [COMMAND] [ARG...]", trailing_var_arg = true)]
    words: Vec<String>,

    /// When to ask the registry for an image that has a name: where it is not there, each time, or never
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pull: PullPolicy,
    /// Leave it running in the background, and print its id; `tatami ps` shows it, `tatami logs` what it writes
    #[arg(short, long, conflicts_with_all = ["console", "timings"])]
    detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; without a value, take the caller's, or none if the caller has none
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Run in this folder of the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Run as this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Show a file or folder of the host in the container
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<Volume>,
    /// Give the container a disk image or a block device of the host; what it writes stays there. HOST may be the socket of
    /// a process that serves a disk (a vhost-user-blk back end); with `r` that process must not let anybody write
    #[arg(long = "device", value_name = "HOST[:CONTAINER][:r|rw]")]
    device: Vec<Device>,
    /// Show a file system in the container that a process serves on this socket (a vhost-user-fs back end: virtiofsd)
    #[arg(long, value_name = "SOCKET:CONTAINER[:ro]")]
    vhost_user_fs: Vec<Volume>,
    /// The container's host name [default: the sandbox's id]
    #[arg(long)]
    hostname: Option<String>,
    /// Run this in place of the image's entry point; empty for none
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Let the container not write to its root file system
    #[arg(long)]
    read_only: bool,
    /// Use this folder as the container's root file system, in place of an image, or what is on this disk image or block
    /// device (ext4, erofs); what the command writes stays in it. On an erofs image, and on any disk with --read-only,
    /// nothing is written
    #[arg(long, value_name = "DIR|DISK")]
    rootfs: Option<PathBuf>,

    #[command(flatten)]
    isolation: IsolationArguments,

    /// Give the container a name, which no other one may have until this one is removed
    #[arg(long)]
    name: Option<String>,
    /// With -d, keep nothing of it when its command ends. In the foreground nothing is kept anyway
    #[arg(long)]
    rm: bool,
    /// The signal that `tatami stop` sends [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signal_name)]
    stop_signal: Option<String>,
    /// How long `tatami stop` waits for the command's end before it kills
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    stop_timeout: u32,
    /// How much of a detached command's output is kept: max-size=SIZE for each file (10m), max-file=NUMBER of them (3)
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,

    /// The network: none; passt, a network in user space that needs no set-up (the program passt must be installed); or a tap
    /// that you have made, with the guest's addresses and gateways. The host's kernel moves a tap's frames where it can (vhost-net);
    /// vhost=on insists on that, vhost=off does without
    #[arg(
        long,
        value_name = "none|passt|tap:NAME[,ip=ADDRESS/PREFIX][,gw=ADDRESS][,mac=ADDRESS][,mtu=BYTES][,vhost=auto|on|off]",
        default_value = "none"
    )]
    net: Net,
    /// Lead a port of the host to one of the container (with --net passt)
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST[/udp]", value_parser = network::published)]
    publish: Vec<Published>,

    #[command(flatten)]
    rates: RateArguments,

    #[command(flatten)]
    folder: FolderArguments,

    /// Memory of the virtual machine; the host provides only what is used
    #[arg(short, long, value_name = "SIZE[b|k|m|g]", default_value = "512m", value_parser = parse_memory)]
    memory: u32,
    /// What the virtual machine's memory is made of on the host: its own (anonymous), what other processes can map
    /// (shared), pages of 2 MiB that the host has set aside with vm.nr_hugepages (huge-pages), a file without a name in a
    /// folder (file:FOLDER), or its own in pages that sandboxes with equal ones have together (mergeable; see `tatami ksm`,
    /// which says what that gives away) [default: anonymous, or shared where a vhost-user back end takes part]
    #[arg(long, value_name = "KIND", value_parser = parse_memory_backing)]
    memory_backing: Option<MemoryBacking>,
    /// Virtual CPUs
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    cpus: u8,
    /// The guest's kernel, an ELF vmlinux [default: the one that was built or installed]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The guest's initrd, or a disk image (erofs, ext4) to be its root, with the agent as /init [default: the one that was
    /// built or installed]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The guest's root must be a disk that is checked by just this as it is read (dm-verity); `tatami rootfs build --dm-verity` prints it.
    /// Without it, such a disk is checked by what it says itself
    #[arg(long, value_name = "root_hash=HEX,salt=HEX,...")]
    verity: Option<Verity>,
    /// More words for the guest kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    append: String,
    /// Show the guest kernel's log on standard error: from its first line on, or faster (virtio)
    #[arg(long, value_name = "serial|virtio", num_args = 0..=1, require_equals = true, default_missing_value = "serial")]
    console: Option<ConsoleKind>,
    /// What the guest finds its devices on: memory's own bus, which is the default where there is one, or PCI, with an interrupt for
    /// each queue where interrupts can be messages
    #[arg(long, value_name = "mmio|pci", value_parser = parse_transport)]
    transport: Option<VirtioBus>,
    /// Say at the end, on standard error, how long each phase took
    #[arg(long)]
    timings: bool,
    /// How long the guest may take until its agent answers
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    boot_timeout: u32,
}

const EXAMPLES: &str = "\
Examples:
  A command in an image from a registry, fetched once:
      tatami run debian:trixie-slim uname -a
  A command from a docker-archive or oci-archive:
      tatami run alpine.tar uname -a
  A shell in a terminal, from an OCI layout folder:
      tatami run -it ./layout sh
  This folder seen in the container, not writable:
      tatami run -v $PWD:/src:ro -w /src image.tar make
  Standard input, output and error are passed through:
      tar c . | tatami run -i image.tar tar t
  A plain folder as the root; ends with status 42:
      tatami run --rootfs ./tree /bin/sh -c 'exit 42'
  The same from a disk image, which the guest reads and writes itself:
      mke2fs -q -t ext4 -d ./tree disk.img 64m
      tatami run --rootfs disk.img /bin/sh
  A disk that another process serves:
      qemu-storage-daemon --blockdev file,node-name=disk,filename=data.img \
          --export vhost-user-blk,id=disk,node-name=disk,writable=on,\
      addr.type=unix,addr.path=/run/disk.sock &
      tatami run --device /run/disk.sock:/dev/xvda image.tar sh
  In the background; then see what it writes, look inside, end and forget it:
      tatami run -d --name web image.tar
      tatami logs -f web
      tatami exec -it web sh
      tatami stop web && tatami rm web
  A server that the host reaches on port 8080:
      tatami run --net passt -p 8080:80 image.tar httpd -f -p 80
  A network of your own: a tap, and addresses on both ends:
      ip tuntap add tap0 mode tap && ip addr add 192.0.2.1/24 dev tap0
      ip link set tap0 up
      tatami run --net tap:tap0,ip=192.0.2.2/24,gw=192.0.2.1 image.tar sh

Exit status: the command's; 125 when Tatami itself fails, 126 when the
command cannot be executed, 127 when it is not found, 128 + n when signal n
ended it.

Signals that this process receives are passed on to the command. It is the
container's first process, so it gets INT and TERM only if it handles them.
Three of these within a few seconds of each other end the sandbox by force.
When the terminal goes away, the command gets HUP, and ten seconds to end.

A tap made with `multi_queue` gives each vCPU a queue of its own. Without
--net the container has a loopback interface, and no other.";

fn parse_transport(text: &str) -> Result<VirtioBus, String> {
    match text {
        "mmio" => Ok(VirtioBus::Mmio),
        "pci" => Ok(VirtioBus::Pci),
        _ => Err("expected mmio or pci".to_owned()),
    }
}

/// How the guest's kernel talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsoleKind {
    /// A byte at a time, and from the start.
    Serial,
    /// A buffer at a time, once it has found the device; until then as the other.
    Virtio,
}

/// Where the container's root comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image: a file or folder in any form that [`crate::image`] reads, or its name.
    Image(PathBuf),
    /// A folder.
    Plain(PathBuf),
}

/// What is to be run, and how.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where the root comes from.
    pub source: Source,
    /// When it is fetched.
    pub pull: PullPolicy,
    /// The command; empty: the image's.
    pub command: Vec<String>,
    /// In place of the image's entry point.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, or `NAME` to take the image's variable away.
    pub env: Vec<String>,
    /// Folder in the container.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// What of the host is seen.
    pub volumes: Vec<Volume>,
    /// File systems that other processes serve: the source is a socket.
    pub files: Vec<Volume>,
    /// Its block devices.
    pub devices: Vec<Device>,
    /// Host name.
    pub hostname: Option<String>,
    /// No writes to the root.
    pub read_only: bool,
    /// Standard input is passed on.
    pub interactive: bool,
    /// The command has a terminal.
    pub tty: bool,
    /// Capabilities, limits and the like.
    pub isolation: Isolation,
    /// The network.
    pub net: Net,
    /// Ports of the host that lead into it.
    pub publish: Vec<Published>,
    /// How fast disk and network may be.
    pub rates: Rates,
    /// How files of the host are served.
    pub folder: FolderConfig,
    /// Name servers, if not the network's.
    pub dns: Vec<IpAddr>,
    /// The sandbox's name.
    pub name: Option<String>,
    /// It is left in the background, with a log of this size.
    pub detach: Option<Limits>,
    /// Nothing is kept of it.
    pub remove: bool,
    /// What asks it to end, if not what the image says.
    pub stop_signal: Option<String>,
    /// How long it may take then, seconds.
    pub stop_timeout: u64,
    /// The VM's memory, MiB.
    pub memory_mib: u32,
    /// What that is made of, if not what its devices need.
    pub memory_kind: Option<MemoryKind>,
    /// Where its file is to be, if it is to lie in one.
    pub memory_folder: Option<PathBuf>,
    /// The VM's CPUs.
    pub cpus: u8,
    /// Kernel, if not the usual one.
    pub kernel: Option<PathBuf>,
    /// Initrd, if not the usual one.
    pub initrd: Option<PathBuf>,
    /// What the disk in its place must be checked by.
    pub verity: Option<Verity>,
    /// More for the kernel's command line.
    pub append: String,
    /// Show the kernel's log, by way of this.
    pub console: Option<ConsoleKind>,
    /// What virtio devices are on.
    pub virtio_bus: VirtioBus,
    /// Print the table of phases.
    pub timings: bool,
    /// For the agent to answer.
    pub boot_limit: Duration,
}

/// What is wrong with the command line as a whole.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionsError {
    /// Nothing to run.
    #[error("which image? Give an image, or --rootfs DIR|DISK and a command (see `tatami run --help`)")]
    NoImage,
    /// A plain folder does not say what to run.
    #[error("which command? A --rootfs does not say what to run (see `tatami run --help`)")]
    NoCommand,
    /// `-e` without a name.
    #[error("invalid environment variable {0:?}: expected NAME=VALUE or NAME")]
    Variable(String),
    /// A profile of system calls that cannot be used.
    #[error("--seccomp {path}: {1}", path = .0.display())]
    Seccomp(PathBuf, String),
    /// A log that cannot be so.
    #[error("invalid --log-opt {0:?}: max-size=SIZE (at least 1k) and max-file=NUMBER (1 to 100) are known")]
    Log(String),
    /// Two volumes in one place.
    #[error("two volumes for {}", .0.display())]
    Twice(PathBuf),
    /// Two devices in one place.
    #[error("two devices for {}", .0.display())]
    TwoDevices(PathBuf),
    /// Ports of a network that has none.
    #[error(
        "--publish needs --net passt: with a tap, the guest's ports are reached at its own address, and without a network not at all"
    )]
    Publish,
    /// The rate of a network that there is not.
    #[error("--net-rate needs a network: --net passt or --net tap:NAME")]
    NetRate,
    /// The rate of a network that the kernel is to serve as fast as it can.
    #[error("--net-rate and vhost=on exclude each other: the kernel keeps no rate")]
    VhostRate,
}

impl RunArguments {
    /// Whether it is to be left in the background.
    pub fn is_detached(&self) -> bool {
        self.detach
    }

    /// The options that these arguments mean; `environment` is the caller's.
    ///
    /// # Errors
    /// [`OptionsError`].
    pub fn validate(self, environment: impl Fn(&str) -> Option<String>) -> Result<RunOptions, OptionsError> {
        let mut words = self.words;
        let source = match self.rootfs {
            Some(folder) if words.is_empty() && self.entrypoint.as_deref().is_none_or(str::is_empty) => {
                log::debug!("no command for {}", folder.display());
                return Err(OptionsError::NoCommand);
            }
            Some(folder) => Source::Plain(folder),
            None if words.is_empty() => return Err(OptionsError::NoImage),
            None => Source::Image(words.remove(0).into()),
        };
        let mut places: Vec<_> = self.volume.iter().chain(&self.vhost_user_fs).map(|one| &one.destination).collect();
        places.sort_unstable();
        if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(OptionsError::Twice(twice[0].clone()));
        }
        for (index, device) in self.device.iter().enumerate() {
            if self.device[..index].iter().any(|other| other.container == device.container) {
                return Err(OptionsError::TwoDevices(device.container.clone()));
            }
        }
        let (isolation, dns) = self.isolation.validate()?;
        let limits = log_limits(&self.log_opt)?;
        let detach = self.detach.then_some(limits);
        if !self.publish.is_empty() && self.net != Net::Passt {
            return Err(OptionsError::Publish);
        }
        let rates = self.rates.rates();
        if rates.net.is_some() && self.net == Net::None {
            return Err(OptionsError::NetRate);
        }
        if rates.net.is_some() && self.net.insists_on_vhost() {
            return Err(OptionsError::VhostRate);
        }
        let (memory_kind, memory_folder) = match self.memory_backing {
            Some(MemoryBacking(kind, folder)) => (Some(kind), folder),
            None => (None, None),
        };
        Ok(RunOptions {
            source,
            pull: self.pull,
            command: words,
            entrypoint: self.entrypoint,
            env: variables(self.env, environment)?,
            workdir: self.workdir,
            user: self.user,
            volumes: self.volume,
            files: self.vhost_user_fs,
            devices: self.device,
            hostname: self.hostname,
            read_only: self.read_only,
            interactive: self.interactive,
            tty: self.tty,
            isolation,
            dns,
            net: self.net,
            publish: self.publish,
            rates,
            folder: self.folder.config(),
            name: self.name,
            detach,
            remove: self.rm || !self.detach,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout.into(),
            memory_mib: self.memory,
            memory_kind,
            memory_folder,
            cpus: self.cpus,
            kernel: self.kernel,
            initrd: self.initrd,
            verity: self.verity,
            append: self.append,
            console: self.console,
            virtio_bus: self.transport.unwrap_or_default(),
            timings: self.timings,
            boot_limit: Duration::from_secs(self.boot_timeout.into()),
        })
    }
}

/// How much of the output is kept.
fn log_limits(given: &[String]) -> Result<Limits, OptionsError> {
    let mut limits = Limits::default();
    for text in given {
        let wrong = || OptionsError::Log(text.clone());
        match text.split_once('=').ok_or_else(wrong)? {
            ("max-size", size) => {
                limits.size = parse_size(size).ok().filter(|size| *size >= 1024).ok_or_else(wrong)?;
            }
            ("max-file", number) => {
                limits.files = number.parse().ok().filter(|number| (1..=100).contains(number)).ok_or_else(wrong)?;
            }
            _ => return Err(wrong()),
        }
    }
    Ok(limits)
}

/// The name of a signal that there is.
fn signal_name(text: &str) -> Result<String, String> {
    signal_number(text).map(|_| text.to_owned()).ok_or_else(|| format!("there is no signal {text}"))
}

/// `NAME=VALUE` for each; a name alone takes the caller's value, and stays alone where the caller has none.
pub(crate) fn variables(
    given: Vec<String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>, OptionsError> {
    let mut variables = Vec::new();
    for text in given {
        match text.split_once('=') {
            Some(("", _)) => return Err(OptionsError::Variable(text)),
            Some(_) => variables.push(text),
            None if text.is_empty() => return Err(OptionsError::Variable(text)),
            None => variables.push(environment(&text).map_or(text.clone(), |value| format!("{text}={value}"))),
        }
    }
    Ok(variables)
}

/// What memory is made of, and where a file for it is to be.
#[derive(Clone, Debug)]
struct MemoryBacking(MemoryKind, Option<PathBuf>);

fn parse_memory_backing(text: &str) -> Result<MemoryBacking, String> {
    match (text, text.strip_prefix("file:")) {
        ("anonymous", _) => Ok(MemoryBacking(MemoryKind::Anonymous, None)),
        ("mergeable", _) => Ok(MemoryBacking(MemoryKind::Mergeable, None)),
        ("shared", _) => Ok(MemoryBacking(MemoryKind::Shared, None)),
        ("huge-pages", _) => Ok(MemoryBacking(MemoryKind::HugePages, None)),
        (_, Some(folder)) if !folder.is_empty() => {
            let folder = std::path::absolute(folder).map_err(|error| error.to_string())?;
            Ok(MemoryBacking(MemoryKind::File, Some(folder)))
        }
        _ => Err("expected anonymous, mergeable, shared, huge-pages or file:FOLDER".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use tatami_vmm::FsCache;

    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArguments,
    }

    fn parse(words: &[&str]) -> Result<RunArguments, clap::Error> {
        Line::try_parse_from([&["run"], words].concat()).map(|line| line.run)
    }

    fn options(words: &[&str]) -> Result<RunOptions, OptionsError> {
        parse(words).unwrap().validate(|name| (name == "KNOWN").then(|| "value".to_owned()))
    }

    #[test]
    fn what_follows_the_image_is_the_commands() {
        let options = options(&["-i", "image.tar", "ls", "-l", "--name", "-t", "--", "x"]).unwrap();
        assert_eq!(options.source, Source::Image("image.tar".into()));
        assert_eq!(options.command, ["ls", "-l", "--name", "-t", "--", "x"]);
        assert!(options.interactive && !options.tty && options.name.is_none());
    }

    #[test]
    fn flags_may_be_joined_and_have_defaults() {
        let options = options(&["-it", "x", "sh"]).unwrap();
        assert!(options.interactive && options.tty);
        assert_eq!((options.memory_mib, options.cpus, options.boot_limit.as_secs()), (512, 1, 30));
    }

    #[test]
    fn a_plain_root_leaves_all_words_to_the_command() {
        let options = super::tests::options(&["--rootfs", "/tree", "/bin/sh", "-c", "exit 3"]).unwrap();
        assert_eq!(options.source, Source::Plain("/tree".into()));
        assert_eq!(options.command, ["/bin/sh", "-c", "exit 3"]);
        assert_eq!(super::tests::options(&["--rootfs", "/tree"]).unwrap_err(), OptionsError::NoCommand);
        assert_eq!(super::tests::options(&[]).unwrap_err(), OptionsError::NoImage);
    }

    #[test]
    fn an_unknown_flag_before_the_image_is_an_error() {
        assert!(parse(&["--nonsense", "image", "sh"]).is_err());
        assert!(parse(&["-Z", "image"]).is_err());
        assert!(parse(&["--cpus", "0", "image"]).is_err());
        assert!(parse(&["--boot-timeout", "0", "image"]).is_err());
        assert!(parse(&["-v", "data:/x", "image"]).is_err());
    }

    #[test]
    fn variables_are_set_or_taken_from_the_caller() {
        let env = |words: &[&str]| super::tests::options(&[words, &["i"]].concat()).map(|options| options.env);
        assert_eq!(
            env(&["-e", "A=1", "-e", "KNOWN", "-e", "UNKNOWN", "-e", "B="]).unwrap(),
            ["A=1", "KNOWN=value", "UNKNOWN", "B="]
        );
        assert_eq!(env(&["-e", "=x"]).unwrap_err(), OptionsError::Variable("=x".into()));
    }

    #[test]
    fn a_detached_one_has_a_log_of_a_size() {
        let run = |words: &[&str]| super::tests::options(&[words, &["i"]].concat());
        assert_eq!(run(&["-i"]).unwrap().detach, None);
        let options = run(&["-d", "--log-opt", "max-size=2k", "--log-opt", "max-file=7"]).unwrap();
        assert_eq!((options.detach, options.remove), (Some(Limits { size: 2048, files: 7 }), false));
        assert!(run(&["-d", "--rm"]).unwrap().remove);
        for wrong in ["max-size", "max-size=1", "max-file=0", "max-file=x", "mode=y"] {
            assert_eq!(run(&["-d", "--log-opt", wrong]).unwrap_err(), OptionsError::Log(wrong.into()));
        }
        assert!(parse(&["-d", "--timings", "i"]).is_err());
        assert!(parse(&["--stop-signal", "SIGNONE", "i"]).is_err());
    }

    #[test]
    fn ports_need_passt() {
        assert_eq!(options(&["-p", "80:80", "i"]).unwrap_err(), OptionsError::Publish);
        assert_eq!(options(&["--net", "tap:t", "-p", "80:80", "i"]).unwrap_err(), OptionsError::Publish);
        let both = options(&["--net", "passt", "-p", "80:80", "-p", "81:81/udp", "i"]).unwrap();
        assert_eq!((both.publish.len(), both.net), (2, Net::Passt));
        assert!(parse(&["--net", "bridge", "i"]).is_err() && parse(&["-p", "80", "i"]).is_err());
    }

    #[test]
    fn a_rate_is_not_the_kernels_to_keep() {
        let tap = |net| options(&["--net", net, "--net-rate", "rx=1m", "i"]).map(|options| options.rates.net.is_some());
        assert_eq!(tap("tap:t,vhost=on").unwrap_err(), OptionsError::VhostRate);
        assert!(tap("tap:t").unwrap() && tap("tap:t,vhost=off").unwrap());
    }

    #[test]
    fn two_volumes_or_devices_in_one_place_are_an_error() {
        let error = options(&["-v", "/a:/x", "-v", "/b:/x/", "i"]).unwrap_err();
        assert_eq!(error, OptionsError::Twice("/x".into()));
        let error = options(&["-v", "/a:/x", "--vhost-user-fs", "/run/socket:/x:ro", "i"]).unwrap_err();
        assert_eq!(error, OptionsError::Twice("/x".into()));
        let error = options(&["--device", "a.img:/dev/x", "--device", "b.img:/dev/x:r", "i"]).unwrap_err();
        assert_eq!(error, OptionsError::TwoDevices("/dev/x".into()));
    }

    #[test]
    fn devices_are_on_memorys_bus_unless_said_otherwise() {
        let bus = |words: &[&str]| options(&[words, &["i", "sh"]].concat()).unwrap().virtio_bus;
        assert_eq!(bus(&[]), VirtioBus::default());
        assert_eq!(bus(&["--transport", "pci"]), VirtioBus::Pci);
    }

    #[test]
    fn the_console_is_the_serial_line_unless_said_otherwise() {
        let console = |words: &[&str]| options(&[words, &["i", "sh"]].concat()).unwrap().console;
        assert_eq!(console(&[]), None);
        assert_eq!(console(&["--console"]), Some(ConsoleKind::Serial));
        assert_eq!(console(&["--console=virtio"]), Some(ConsoleKind::Virtio));
    }

    #[test]
    fn files_are_served_as_asked_for() {
        let folder = |words: &[&str]| options(&[words, &["i"]].concat()).unwrap().folder;
        assert_eq!(folder(&[]), FolderConfig::default());
        let asked = folder(&["--folder-cache", "always", "--folder-queues", "4"]);
        assert_eq!(asked, FolderConfig { queues: 4, cache: FsCache::Always });
        for wrong in [["--folder-cache", "sometimes"], ["--folder-queues", "0"], ["--folder-queues", "17"]] {
            assert!(parse(&[wrong.as_slice(), &["i"]].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn memory_is_made_of_what_is_asked_for() {
        let kind = |words: &[&str]| {
            let options = options(&[words, &["i"]].concat()).unwrap();
            (options.memory_kind, options.memory_folder)
        };
        assert_eq!(kind(&[]), (None, None));
        assert_eq!(kind(&["--memory-backing", "huge-pages"]), (Some(MemoryKind::HugePages), None));
        assert_eq!(kind(&["--memory-backing", "mergeable"]), (Some(MemoryKind::Mergeable), None));
        assert_eq!(kind(&["--memory-backing", "file:/a"]), (Some(MemoryKind::File), Some("/a".into())));
        let error = parse(&["--memory-backing", "hugetlbfs", "i"]).unwrap_err().to_string();
        assert!(error.contains("expected anonymous, mergeable, shared, huge-pages or file:FOLDER"), "{error}");
    }
}
