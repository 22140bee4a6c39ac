//! The OCI runtime specification that `docker run` would make of an image and a few options.
//!
//! A pure function of its input, apart from [`Accounts::read`]. Paths are the guest's. It knows nothing of VMs, of how
//! the root file system gets into one, or of the process that will read the result.

mod accounts;
mod defaults;
mod isolation;
#[cfg(test)]
mod tests;

pub use accounts::{AccountError, Accounts, Identity};
pub use isolation::{CapabilityName, Isolation, IsolationError, SeccompProfile, Tmpfs, Ulimit};

use oci_spec::OciSpecError;
use oci_spec::image::Config;
use oci_spec::runtime::{
    BoxBuilder, Capabilities, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxDeviceBuilder,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxResourcesBuilder, Mount, MountBuilder, Process, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use std::path::{Component, Path, PathBuf};

/// What a person asks of a container beyond what its image says.
#[derive(Debug, Clone, Default)]
pub struct ContainerOptions {
    /// Path of the root file system, where the container's creator finds it (in the guest).
    pub rootfs: PathBuf,
    /// Words of the command; none: the image's Cmd.
    pub args: Vec<String>,
    /// Replaces the image's Entrypoint and drops its Cmd; the empty text means no entrypoint.
    pub entrypoint: Option<String>,
    /// `NAME=value` sets, `NAME` alone takes the image's variable away; later ones win.
    pub env: Vec<String>,
    /// Working folder, absolute; else the image's, else `/`.
    pub workdir: Option<String>,
    /// `USER[:GROUP]` by name or number; else the image's, else root.
    pub user: Option<String>,
    /// A terminal for standard input and output.
    pub tty: bool,
    /// Folders and files bound into the container, in this order.
    pub volumes: Vec<Volume>,
    /// File systems of their own, in this order.
    pub files: Vec<Files>,
    /// Block devices, none with another's path or number.
    pub devices: Vec<Device>,
    /// No writes to the root file system.
    pub read_only: bool,
    /// Host name in the container; also `HOSTNAME`.
    pub hostname: String,
    /// Capabilities, limits and the like, where they are not the usual ones.
    pub isolation: Isolation,
}

/// What a person asks of a process that joins a container.
#[derive(Debug, Clone, Default)]
pub struct JoinOptions {
    /// Words of the command.
    pub args: Vec<String>,
    /// As [`ContainerOptions::env`], over the container's.
    pub env: Vec<String>,
    /// Working folder, absolute; else the container's.
    pub workdir: Option<String>,
    /// `USER[:GROUP]` by name or number; else the container's.
    pub user: Option<String>,
    /// A terminal for standard input and output.
    pub tty: bool,
    /// The terminal's size at first: rows, columns.
    pub size: Option<(u16, u16)>,
}

/// A virtio-fs file system, mounted in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The device's.
    pub tag: String,
    /// Where the container sees it, absolute.
    pub destination: PathBuf,
    /// No writes to it.
    pub read_only: bool,
}

/// A folder or file bound into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where its content is in the guest.
    pub guest_source: PathBuf,
    /// Where the container sees it, absolute.
    pub destination: PathBuf,
    /// No writes to it.
    pub read_only: bool,
}

/// A block device that the container may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where the container has it, absolute.
    pub path: PathBuf,
    /// Major and minor.
    pub number: (i64, i64),
    /// No writes to it.
    pub read_only: bool,
    /// Permissions of the node.
    pub mode: u32,
    /// User and group of the node.
    pub owner: (u32, u32),
}

/// Options that make no container.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the image nor the caller names a command.
    #[error("no command specified: the image names none, so give one")]
    NoCommand,
    /// A working folder that is not absolute.
    #[error("the working directory {0:?} is invalid, it needs to be an absolute path")]
    Workdir(String),
    /// A volume's place that is not absolute, or is the root.
    #[error("the volume destination {0:?} is invalid, it needs to be an absolute path other than /")]
    VolumeDestination(PathBuf),
    /// A variable without a name.
    #[error("the environment variable {0:?} is invalid, it needs to be NAME=VALUE or NAME")]
    Environment(String),
    /// An unknown user or group.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A profile of system calls that cannot be applied.
    #[error("seccomp: {0}")]
    Isolation(#[from] IsolationError),
    /// A part of the specification could not be put together.
    #[error("cannot build the container's specification: {0}")]
    Build(#[from] OciSpecError),
}

/// Builds the specification of a container. `image` is the `config` member of the image's configuration, and `None` for
/// a plain tree. The working folder must exist before the container starts: `Process::cwd` names it.
///
/// # Errors
/// Options that contradict themselves or the image's accounts.
pub fn container(image: Option<&Config>, accounts: &Accounts, options: &ContainerOptions) -> Result<Spec, SpecError> {
    let image = image.cloned().unwrap_or_default();
    let root = RootBuilder::default().path(&options.rootfs).readonly(options.read_only).build()?;
    let spec = SpecBuilder::default()
        .version(defaults::VERSION)
        .hostname(&options.hostname)
        .root(root)
        .process(process(&image, accounts, options)?)
        .mounts(mounts(options)?)
        .linux(linux(options)?)
        .build()?;
    Ok(spec)
}

/// Builds the description of a process that joins the container whose first one is `first`.
///
/// # Errors
/// Options that contradict themselves or the container's accounts.
pub fn joining(mut first: Process, accounts: &Accounts, options: &JoinOptions) -> Result<Process, SpecError> {
    let mut variables = Variables::default();
    for (name, value) in first.env().iter().flatten().filter_map(|variable| variable.split_once('=')) {
        variables.set(name, value);
    }
    if let Some(user) = &options.user {
        let identity = accounts.find(user)?;
        variables.set("HOME", &identity.home);
        let (uid, gid) = (identity.uid, identity.gid);
        first.set_user(UserBuilder::default().uid(uid).gid(gid).additional_gids(identity.groups).build()?);
        let bound = first.capabilities().as_ref().and_then(|held| held.bounding().clone()).unwrap_or_default();
        first.set_capabilities(Some(capabilities(uid, bound)?));
    }
    if options.tty {
        variables.set("TERM", "xterm");
    }
    variables.change(&options.env)?;
    first.set_env(Some(variables.written()));
    if let Some(workdir) = &options.workdir {
        first.set_cwd(absolute(Path::new(workdir)).ok_or_else(|| SpecError::Workdir(workdir.clone()))?);
    }
    first.set_args(Some(options.args.clone()));
    first.set_terminal(Some(options.tty));
    let size = options
        .size
        .map(|(rows, columns)| BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build());
    first.set_console_size(size.transpose()?);
    Ok(first)
}

fn process(image: &Config, accounts: &Accounts, options: &ContainerOptions) -> Result<Process, SpecError> {
    let user = options.user.clone().or_else(|| image.user().clone()).unwrap_or_default();
    let identity = accounts.find(&user)?;
    let process = ProcessBuilder::default()
        .terminal(options.tty)
        .args(command(image, options)?)
        .env(environment(image, &identity.home, options)?)
        .cwd(working_folder(image, options)?)
        .user(
            UserBuilder::default()
                .uid(identity.uid)
                .gid(identity.gid)
                .additional_gids(identity.groups.clone())
                .build()?,
        )
        .capabilities(capabilities(identity.uid, options.isolation.capabilities())?)
        .rlimits(options.isolation.rlimits()?)
        .no_new_privileges(false)
        .build()?;
    Ok(process)
}

/// Entrypoint and command as Docker merges them.
fn command(image: &Config, options: &ContainerOptions) -> Result<Vec<String>, SpecError> {
    let (entrypoint, default_args) = match &options.entrypoint {
        Some(word) if word.is_empty() => (Vec::new(), Vec::new()),
        Some(word) => (vec![word.clone()], Vec::new()),
        None => (image.entrypoint().clone().unwrap_or_default(), image.cmd().clone().unwrap_or_default()),
    };
    let args = if options.args.is_empty() { default_args } else { options.args.clone() };
    let words: Vec<String> = entrypoint.into_iter().chain(args).collect();
    match words.first() {
        Some(word) if !word.is_empty() => Ok(words),
        _ => Err(SpecError::NoCommand),
    }
}

/// The image's variables, the caller's over them, and what every container has under both.
fn environment(image: &Config, home: &str, options: &ContainerOptions) -> Result<Vec<String>, SpecError> {
    let mut variables = Variables::default();
    variables.set("PATH", defaults::PATH);
    variables.set("HOSTNAME", &options.hostname);
    if options.tty {
        variables.set("TERM", "xterm");
    }
    for variable in image.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            variables.set(name, value);
        }
    }
    variables.change(&options.env)?;
    if !variables.0.iter().any(|(name, _)| name == "HOME") {
        variables.set("HOME", home);
    }
    Ok(variables.written())
}

/// Variables in the order in which their names first came.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    /// `NAME=value` sets, `NAME` alone takes away.
    fn change(&mut self, changes: &[String]) -> Result<(), SpecError> {
        for variable in changes {
            match variable.split_once('=') {
                Some(("", _)) => return Err(SpecError::Environment(variable.clone())),
                Some((name, value)) => self.set(name, value),
                None if variable.is_empty() => return Err(SpecError::Environment(variable.clone())),
                None => self.0.retain(|(name, _)| name != variable),
            }
        }
        Ok(())
    }

    fn written(self) -> Vec<String> {
        self.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(existing, _)| existing == name) {
            Some((_, existing)) => *existing = value.to_owned(),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }
}

fn working_folder(image: &Config, options: &ContainerOptions) -> Result<PathBuf, SpecError> {
    let text = options.workdir.clone().or_else(|| image.working_dir().clone()).filter(|text| !text.is_empty());
    let text = text.unwrap_or_else(|| "/".to_owned());
    absolute(Path::new(&text)).ok_or(SpecError::Workdir(text))
}

/// The path without `.`, `..` and doubled slashes; `None` if it is not absolute.
fn absolute(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

/// These capabilities. A user other than root gets them only as its bound.
fn capabilities(uid: u32, all: Capabilities) -> Result<LinuxCapabilities, OciSpecError> {
    let none = Capabilities::new();
    let held = if uid == 0 { all.clone() } else { none.clone() };
    LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(held.clone())
        .permitted(held)
        .inheritable(none.clone())
        .ambient(none)
        .build()
}

fn mounts(options: &ContainerOptions) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = defaults::mounts()?;
    for mount in options.isolation.mounts()? {
        mounts.retain(|other| other.destination() != mount.destination());
        mounts.push(mount);
    }
    for Files { tag, destination, read_only } in &options.files {
        let mount = MountBuilder::default().typ("virtiofs").source(tag);
        place(&mut mounts, destination, mount.options(["nodev", access(*read_only)].map(str::to_owned)))?;
    }
    for Volume { guest_source, destination, read_only } in &options.volumes {
        let mount = MountBuilder::default().typ("bind").source(guest_source);
        place(&mut mounts, destination, mount.options(["rbind", "rprivate", access(*read_only)].map(str::to_owned)))?;
    }
    Ok(mounts)
}

fn access(read_only: bool) -> &'static str {
    if read_only { "ro" } else { "rw" }
}

/// Adds a mount that a person asked for. Docker's own give way to it.
fn place(mounts: &mut Vec<Mount>, destination: &Path, mount: MountBuilder) -> Result<(), SpecError> {
    let clean = absolute(destination).filter(|path| path.parent().is_some());
    let clean = clean.ok_or_else(|| SpecError::VolumeDestination(destination.to_owned()))?;
    mounts.retain(|other| *other.destination() != clean);
    mounts.push(mount.destination(clean).build()?);
    Ok(())
}

fn linux(options: &ContainerOptions) -> Result<Linux, SpecError> {
    let isolation = &options.isolation;
    let mut rules = defaults::device_rules()?;
    let mut nodes = Vec::new();
    for Device { path, number: (major, minor), read_only, mode, owner: (uid, gid) } in &options.devices {
        let access = if *read_only { "rm" } else { "rwm" };
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(LinuxDeviceType::B).access(access);
        rules.push(rule.major(*major).minor(*minor).build()?);
        let node = LinuxDeviceBuilder::default().path(path).typ(LinuxDeviceType::B).major(*major).minor(*minor);
        nodes.push(node.file_mode(*mode).uid(*uid).gid(*gid).build()?);
    }
    let linux = LinuxBuilder::default()
        .devices(nodes)
        .namespaces(defaults::namespaces()?)
        .masked_paths(defaults::MASKED_PATHS.map(str::to_owned))
        .readonly_paths(defaults::READ_ONLY_PATHS.map(str::to_owned))
        .resources(LinuxResourcesBuilder::default().devices(rules).build()?);
    let linux = match &isolation.seccomp {
        Some(profile) => linux.seccomp(profile.resolve(&isolation.capabilities())?),
        None => linux,
    };
    Ok(linux.build()?)
}
