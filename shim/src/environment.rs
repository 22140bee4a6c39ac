//! `tatami env`: what this machine and this installation are, for a report of an error.
//!
//! Tells of names, versions and sizes; of what configuration files hold only whether they can be used, for there may be secrets
//! in them, and of the environment only the variables that are Tatami's own. Judges nothing that `tatami check` does not.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::check::{self, Told, kernel_release};
use crate::configuration::{self, Configuration};
use crate::guest_files::{self, GuestFile, GuestFilesError};
use crate::logging::complain;
use crate::sandbox::folder::{self, Places};
use crate::table::{Format, printable, size, table};

/// Variables that change where things are or how they are done.
const VARIABLES: [&str; 7] = [
    "TATAMI_KERNEL",
    "TATAMI_INITRD",
    "TATAMI_ROOT",
    "TATAMI_STATE",
    "TATAMI_TEMPLATES",
    "TATAMI_LOG",
    configuration::VARIABLE,
];
/// What the host may have for sandboxes, and what is made with it.
const DEVICES: [(&str, &str); 4] =
    [("kvm", "/dev/kvm"), ("tap", "/dev/net/tun"), ("vhost-net", "/dev/vhost-net"), ("fuse", "/dev/fuse")];

/// The command line of `tatami env`.
#[derive(Args, Debug)]
#[command(after_help = "\
Shows no secrets: names, versions and sizes, and of configuration files whether they can be used.

Examples:
  tatami env
  tatami env --format json | jq -r .Guest.Kernel.Path")]
pub struct EnvArguments {
    /// A table, or one JSON object
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// All that is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Environment {
    tatami: Installation,
    host: Host,
    guest: Guest,
    configuration: ConfigurationFiles,
    folders: Folders,
    devices: Vec<Device>,
    variables: Vec<Variable>,
    checks: Vec<Told>,
}

/// The binary.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Installation {
    version: &'static str,
    architecture: &'static str,
    binary: Option<PathBuf>,
    bytes: Option<u64>,
}

/// The machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Host {
    system: Option<String>,
    kernel: String,
    processor: Option<String>,
    processors: usize,
    /// `vmx` or `svm`, where processors tell.
    virtualisation: Option<&'static str>,
    /// This machine is a virtual one itself.
    virtual_machine: bool,
}

/// What sandboxes boot from.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Guest {
    kernel: Boots,
    initrd: Boots,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Boots {
    /// None: there is none, or it is within the binary.
    path: Option<PathBuf>,
    embedded: bool,
    bytes: Option<u64>,
    /// A disk image in place of an archive.
    disk: bool,
    error: Option<String>,
}

/// Of containerd's shim and the OCI runtime.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigurationFiles {
    /// In this order; the first that is there is read.
    looked_for: Vec<PathBuf>,
    /// It, and what is dropped in beside it.
    read: Vec<PathBuf>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Folders {
    /// Images, records, logs, what containers write.
    root: PathBuf,
    /// Locks and sockets.
    state: PathBuf,
    /// How many sandboxes have a folder there; None: it cannot be read.
    sandboxes: Option<usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Device {
    name: &'static str,
    path: Option<&'static str>,
    usable: bool,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Variable {
    name: &'static str,
    value: String,
}

/// Looks, and prints what it found.
pub fn main(arguments: &EnvArguments) -> ExitCode {
    let found = Environment::look();
    let text = match arguments.format {
        Format::Table => found.text(),
        Format::Json => serde_json::to_string(&found).expect("texts and numbers are JSON") + "\n",
    };
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            complain(&format_args!("cannot write the output: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Environment {
    fn look() -> Environment {
        let places = Places::from_environment();
        let devices = DEVICES.iter().map(|(name, path)| device(name, path)).chain(std::iter::once(uring()));
        let variables = VARIABLES.iter().filter_map(|name| {
            let value = std::env::var_os(name)?.to_string_lossy().into_owned();
            Some(Variable { name, value })
        });
        Environment {
            tatami: Installation::look(),
            host: Host::look(),
            guest: Guest {
                kernel: Boots::of(guest_files::find_kernel(None)),
                initrd: Boots::of(guest_files::find_initrd(None)),
            },
            configuration: ConfigurationFiles::look(),
            folders: Folders {
                sandboxes: folder::all(&places).ok().map(|all| all.len()),
                root: places.root,
                state: places.state,
            },
            devices: devices.collect(),
            variables: variables.collect(),
            checks: check::look(),
        }
    }

    /// For people: what is found under which name.
    fn text(&self) -> String {
        let mut lines = Lines::default();
        let Installation { version, architecture, binary, bytes } = &self.tatami;
        lines.add("tatami", format!("{version}, {architecture}"));
        lines.add("binary", sized(binary.as_deref(), *bytes));
        let host = &self.host;
        lines.add("host", host.system.as_deref().unwrap_or("unknown"));
        lines.add("host kernel", &host.kernel);
        let processor = host.processor.as_deref().unwrap_or("unknown");
        let inside = if host.virtual_machine { ", in a virtual machine" } else { "" };
        let extension = host.virtualisation.map(|flag| format!(", {flag}")).unwrap_or_default();
        lines.add("processors", format!("{} × {processor}{extension}{inside}", host.processors));
        lines.add("guest kernel", &self.guest.kernel);
        lines.add(if self.guest.initrd.disk { "guest image" } else { "initrd" }, &self.guest.initrd);
        self.configuration.tell(&mut lines);
        lines.add("images and records", self.folders.root.display());
        let sandboxes =
            self.folders.sandboxes.map_or("cannot be read".to_owned(), |count| format!("{count} sandboxes"));
        lines.add("locks and sockets", format!("{} ({sandboxes})", self.folders.state.display()));
        for Device { name, path, error, .. } in &self.devices {
            let path = path.map(|path| format!("{path}: ")).unwrap_or_default();
            lines.add(name, format!("{path}{}", error.as_deref().unwrap_or("usable")));
        }
        for Variable { name, value } in &self.variables {
            lines.add(name, value);
        }
        let checks = self.checks.iter().map(|told| {
            let Told { name, verdict, what, remedy } = told;
            let remedy = if remedy.is_empty() { String::new() } else { format!(" → {remedy}") };
            [(*verdict).to_owned(), (*name).to_owned(), printable(&format!("{what}{remedy}"))]
        });
        format!("{}\n{}", table(&lines.0), table(&checks.collect::<Vec<_>>()))
    }
}

/// Names and what is said of them.
#[derive(Default)]
struct Lines(Vec<[String; 2]>);

impl Lines {
    fn add(&mut self, name: &str, what: impl Display) {
        self.0.push([name.to_owned(), printable(&what.to_string())]);
    }
}

impl Installation {
    fn look() -> Installation {
        let binary = std::env::current_exe().ok();
        let bytes = binary.as_deref().and_then(|path| fs::metadata(path).ok()).map(|metadata| metadata.len());
        Installation { version: env!("CARGO_PKG_VERSION"), architecture: guest_files::ARCHITECTURE, binary, bytes }
    }
}

impl Host {
    fn look() -> Host {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let release = [read("/etc/os-release"), read("/usr/lib/os-release")];
        let system = release.iter().find_map(|text| system_of(text));
        Host { system, ..Host::of_cpuinfo(&read("/proc/cpuinfo"), kernel_release()) }
    }

    /// Of what the kernel tells of processors, in the words of each architecture's.
    fn of_cpuinfo(cpuinfo: &str, kernel: String) -> Host {
        let values = |key: &'static str| {
            let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            fields.filter(move |(name, _)| name.trim() == key).map(|(_, value)| value.trim())
        };
        let of_arm = || {
            let (maker, part) = (values("CPU implementer").next()?, values("CPU part").next()?);
            Some(format!("implementer {maker} part {part}"))
        };
        let first = |key| values(key).next().map(str::to_owned);
        let flags = values("flags").next().unwrap_or_default();
        let has = |wanted: &str| flags.split(' ').any(|flag| flag == wanted);
        Host {
            system: None,
            kernel,
            processor: first("model name").or_else(|| first("cpu")).or_else(of_arm),
            processors: values("processor").count(),
            virtualisation: ["vmx", "svm"].into_iter().find(|flag| has(flag)),
            virtual_machine: has("hypervisor"),
        }
    }
}

/// What os-release(5) calls the system.
fn system_of(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

impl Boots {
    fn of(found: Result<GuestFile, GuestFilesError>) -> Boots {
        let none = Boots { path: None, embedded: false, bytes: None, disk: false, error: None };
        let file = match found {
            Ok(file) => file,
            Err(error) => return Boots { error: Some(error.to_string()), ..none },
        };
        let (disk, error) = match file.root_disk(None) {
            Ok(disk) => (disk.is_some(), None),
            Err(error) => (false, Some(error.to_string())),
        };
        match &file {
            GuestFile::Embedded(bytes) => {
                Boots { embedded: true, bytes: Some(bytes.len() as u64), disk, error, ..none }
            }
            GuestFile::OnDisk(path) => {
                let bytes = fs::metadata(path).map(|metadata| metadata.len());
                let error = bytes.as_ref().err().map(ToString::to_string).or(error);
                Boots { path: Some(path.clone()), bytes: bytes.ok(), disk, error, embedded: false }
            }
        }
    }
}

impl Display for Boots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.error, self.embedded) {
            (Some(error), _) => f.write_str(error),
            (None, true) => write!(f, "within the binary ({})", size(self.bytes.unwrap_or_default())),
            (None, false) => f.write_str(&sized(self.path.as_deref(), self.bytes)),
        }
    }
}

impl ConfigurationFiles {
    fn look() -> ConfigurationFiles {
        let looked_for = configuration::places();
        let (read, error) = match configuration::files_read() {
            Ok(read) => {
                let unusable = Configuration::load(None, &Default::default()).err();
                (read, unusable.map(|error| error.to_string()))
            }
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        ConfigurationFiles { looked_for, read, error }
    }

    fn tell(&self, lines: &mut Lines) {
        let names =
            |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        match (&self.error, self.read.is_empty()) {
            (Some(error), _) => lines.add("configuration", error),
            (None, false) => lines.add("configuration", names(&self.read)),
            (None, true) => lines.add("configuration", format!("none; looked for {}", names(&self.looked_for))),
        }
    }
}

fn sized(path: Option<&Path>, bytes: Option<u64>) -> String {
    let path = path.map_or("unknown".to_owned(), |path| path.display().to_string());
    bytes.map_or(path.clone(), |bytes| format!("{path} ({})", size(bytes)))
}

fn device(name: &'static str, path: &'static str) -> Device {
    // Nothing is asked of it. Opening may load its driver, as a sandbox's start would.
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let error = opened.err().map(|error| error.to_string());
    Device { name, path: Some(path), usable: error.is_none(), error }
}

fn uring() -> Device {
    let error = tatami_vmm::uring_works().err().map(|error| format!("disks go without: {error}"));
    Device { name: "io_uring", path: None, usable: error.is_none(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_told_in_every_architectures_words() {
        let host = |text: &str| Host::of_cpuinfo(text, "6.12".to_owned());
        let x86 =
            "processor\t: 0\nmodel name\t: EPYC\nflags\t\t: fpu svm hypervisor\n\nprocessor\t: 1\nmodel name\t: EPYC\n";
        let told = host(x86);
        assert_eq!((told.processors, told.processor.as_deref()), (2, Some("EPYC")));
        assert_eq!((told.virtualisation, told.virtual_machine), (Some("svm"), true));
        let arm = host("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n");
        assert_eq!(arm.processor.as_deref(), Some("implementer 0x41 part 0xd0b"));
        assert_eq!(host("processor\t: 0\ncpu\t\t: POWER9\n").processor.as_deref(), Some("POWER9"));
        assert_eq!(host("").processor, None);
    }

    #[test]
    fn the_system_is_called_as_it_calls_itself() {
        assert_eq!(system_of("ID=x\nPRETTY_NAME=\"A Linux 1\"\n").as_deref(), Some("A Linux 1"));
        assert_eq!(system_of("ID=x\n"), None);
    }

    #[test]
    fn both_forms_tell_of_everything() {
        let found = Environment::look();
        let json: serde_json::Value = serde_json::to_value(&found).unwrap();
        for key in ["Tatami", "Host", "Guest", "Configuration", "Folders", "Devices", "Variables", "Checks"] {
            assert!(json.get(key).is_some(), "{key} in {json}");
        }
        assert_eq!(json["Tatami"]["Version"], env!("CARGO_PKG_VERSION"));
        let text = found.text();
        for name in ["tatami", "host kernel", "guest kernel", "configuration", "io_uring", "/dev/kvm"] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }

    #[test]
    fn what_is_missing_says_how_to_name_one() {
        let boots = Boots::of(guest_files::find_kernel(Some(Path::new("/nonexistent/vmlinux"))));
        assert!(boots.path.is_none() && boots.to_string().contains("/nonexistent/vmlinux"), "{boots}");
    }
}
