//! `tatami check`: what a host needs to run sandboxes, one line for each requirement, with the remedy where one is missing.
//!
//! Changes nothing on the host. Every look at the host is one function that returns a [`Finding`]; whoever needs more of
//! a host adds a line to [`REQUIREMENTS`].

use crate::guest_files::{self, GuestFile};
use clap::Args;
use serde::Serialize;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The command line of `tatami check`.
#[derive(Args, Debug, Default)]
#[command(after_help = "Exit status: 0 if all is well, 1 if something is missing.")]
pub struct CheckArguments {
    /// Check this requirement alone; may be repeated
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(names()))]
    pub only: Vec<String>,
    /// The guest's kernel to look for [default: the one that was built or installed]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The guest's initrd to look for [default: the one that was built or installed]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
}

/// What a look at one requirement finds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// As it should be; says what was found.
    Ok(String),
    /// Sandboxes run, but something is worse than it could be.
    Note { what: String, remedy: String },
    /// No sandbox runs. The remedy may be part of `what`, and then is empty.
    Problem { what: String, remedy: String },
}

type Look = fn(&CheckArguments) -> Finding;

/// Name, and the look at it.
const REQUIREMENTS: [(&str, Look); 8] = [
    ("kvm", kvm),
    ("kernel", guest_kernel),
    ("initrd", guest_initrd),
    ("privileges", privileges),
    ("host-kernel", host_kernel),
    ("overlayfs", overlayfs),
    ("cgroups", cgroups),
    ("memory", memory),
];

fn names() -> [&'static str; REQUIREMENTS.len()] {
    REQUIREMENTS.map(|(name, _)| name)
}

/// A finding for those who show it in another form.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Told {
    /// The requirement's.
    pub(crate) name: &'static str,
    /// ok, note or problem.
    pub(crate) verdict: &'static str,
    pub(crate) what: String,
    /// Empty, or part of `what`, where there is none to tell of.
    pub(crate) remedy: String,
}

/// What a look at everything finds.
pub(crate) fn look() -> Vec<Told> {
    let arguments = CheckArguments::default();
    let told = REQUIREMENTS.iter().map(|&(name, look)| {
        let finding = look(&arguments);
        let (verdict, what, remedy) = finding.parts();
        Told { name, verdict, what: what.to_owned(), remedy: remedy.to_owned() }
    });
    told.collect()
}

/// Looks at everything, or at what `--only` names, and writes what it finds to `out`.
///
/// # Errors
/// Those of writing.
pub fn run(arguments: &CheckArguments, out: &mut dyn Write) -> io::Result<ExitCode> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let chosen = REQUIREMENTS.iter().filter(|(name, _)| wanted(name));
    let findings: Vec<_> = chosen.map(|(name, look)| (*name, look(arguments))).collect();
    let problems = report(&findings, out)?;
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the findings and returns how many are problems. A single one is a single line, for scripts to show.
fn report(findings: &[(&str, Finding)], out: &mut dyn Write) -> io::Result<usize> {
    let problems = findings.iter().filter(|(_, finding)| matches!(finding, Finding::Problem { .. })).count();
    if let [(name, finding)] = findings {
        let (_, what, remedy) = finding.parts();
        let separator = if remedy.is_empty() { "" } else { "; " };
        writeln!(out, "{name}: {what}{separator}{remedy}")?;
        return Ok(problems);
    }
    for (name, finding) in findings {
        let (verdict, what, remedy) = finding.parts();
        writeln!(out, "{verdict:<8} {name:<12} {what}")?;
        if !remedy.is_empty() {
            writeln!(out, "{:21} → {remedy}", "")?;
        }
    }
    match problems {
        0 => writeln!(out, "\nThis machine can run Tatami's sandboxes.")?,
        1 => writeln!(out, "\nOne problem keeps this machine from running Tatami's sandboxes.")?,
        count => writeln!(out, "\n{count} problems keep this machine from running Tatami's sandboxes.")?,
    }
    Ok(problems)
}

impl Finding {
    fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::Problem { what: what.into(), remedy: remedy.into() }
    }

    /// Verdict, text and remedy.
    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Finding::Ok(what) => ("ok", what, ""),
            Finding::Note { what, remedy } => ("note", what, remedy),
            Finding::Problem { what, remedy } => ("problem", what, remedy),
        }
    }
}

fn kvm(_: &CheckArguments) -> Finding {
    match tatami_vmm::probe::probe() {
        Ok(info) => Finding::Ok(format!("/dev/kvm runs ordinary 64-bit code, up to {} virtual CPUs", info.max_vcpus)),
        // The probe's messages hold their remedies.
        Err(error) => Finding::problem(chain(&error), ""),
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

fn guest_kernel(arguments: &CheckArguments) -> Finding {
    found(guest_files::find_kernel(arguments.kernel.as_deref()))
}

fn guest_initrd(arguments: &CheckArguments) -> Finding {
    found(guest_files::find_initrd(arguments.initrd.as_deref()))
}

fn found(file: Result<GuestFile, guest_files::GuestFilesError>) -> Finding {
    let file = match file {
        Ok(file) => file,
        Err(error) => return Finding::problem(error.to_string(), ""),
    };
    match file.open().and_then(|open| open.metadata()) {
        Ok(metadata) => Finding::Ok(format!("{file} ({:.1} MB)", metadata.len() as f64 / 1e6)),
        Err(error) => Finding::problem(format!("cannot open {file}: {error}"), "make it readable"),
    }
}

/// Capabilities that the sandbox server uses or gives to the VMM's file server, by number (linux/capability.h).
const CAPABILITIES: [(u32, &str); 12] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (2, "DAC_READ_SEARCH"),
    (3, "FOWNER"),
    (4, "FSETID"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (18, "SYS_CHROOT"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
    (31, "SETFCAP"),
];

fn privileges(_: &CheckArguments) -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    privileges_of(rustix::process::geteuid().is_root(), &status)
}

fn privileges_of(root: bool, status: &str) -> Finding {
    if !root {
        return Finding::problem("not root", "run Tatami as root, for instance with sudo");
    }
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) else {
        return Finding::problem("cannot read this process's capabilities", "mount /proc");
    };
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(number, _)| effective & (1 << number) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Finding::Ok("root, with every capability that is needed".to_owned());
    }
    let what = format!("root, but without the capabilities {}", missing.join(", "));
    Finding::problem(what, "start Tatami outside of the container or service that dropped them")
}

/// The oldest host kernel with every system call that is used: mount_setattr came in 5.12.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

fn host_kernel(_: &CheckArguments) -> Finding {
    host_kernel_of(&kernel_release())
}

pub(crate) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn host_kernel_of(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST_KERNEL => {
            Finding::Ok(format!("Linux {release}"))
        }
        _ => {
            let (major, minor) = OLDEST_KERNEL;
            Finding::problem(format!("Linux {release}"), format!("use Linux {major}.{minor} or newer"))
        }
    }
}

fn overlayfs(_: &CheckArguments) -> Finding {
    let modules = Path::new("/lib/modules").join(kernel_release());
    let listed = |name: &str| fs::read_to_string(modules.join(name)).unwrap_or_default();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    overlayfs_of(&known, &(listed("modules.dep") + &listed("modules.builtin")))
}

fn overlayfs_of(file_systems: &str, modules: &str) -> Finding {
    if file_systems.lines().any(|line| line.split_whitespace().last() == Some("overlay")) {
        return Finding::Ok("the kernel has it".to_owned());
    }
    if modules.contains("/overlay.ko") {
        return Finding::Ok("the kernel loads it when it is first mounted".to_owned());
    }
    let remedy = "use a kernel with CONFIG_OVERLAY_FS, or load the module overlay; without it only --rootfs works";
    Finding::problem("the kernel has no overlayfs, which gives each container of an image its own writes", remedy)
}

fn cgroups(_: &CheckArguments) -> Finding {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Finding::Ok("version 2 at /sys/fs/cgroup".to_owned());
    }
    Finding::Note {
        what: "no cgroup v2 at /sys/fs/cgroup: the host cannot limit a sandbox as a whole".to_owned(),
        remedy: "mount it there, or boot with systemd.unified_cgroup_hierarchy=1".to_owned(),
    }
}

/// Free memory below which not even a small sandbox starts, in MiB.
const LEAST_MEMORY: u64 = 128;
/// Free memory for a sandbox of the default size that uses all of it, in MiB.
const GOOD_MEMORY: u64 = 640;

fn memory(_: &CheckArguments) -> Finding {
    memory_of(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn memory_of(meminfo: &str) -> Finding {
    let mib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
    };
    let (Some(available), Some(total)) = (mib("MemAvailable:"), mib("MemTotal:")) else {
        return Finding::problem("cannot read /proc/meminfo", "mount /proc");
    };
    let what = format!("{available} of {total} MiB available");
    match available {
        0..LEAST_MEMORY => Finding::problem(what, format!("free at least {LEAST_MEMORY} MiB")),
        LEAST_MEMORY..GOOD_MEMORY => {
            let remedy = "give sandboxes less than the default with `tatami run --memory`".to_owned();
            Finding::Note { what, remedy }
        }
        _ => Finding::Ok(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn reported(findings: &[(&str, Finding)]) -> (String, usize) {
        let mut out = Vec::new();
        let problems = report(findings, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), problems)
    }

    #[test]
    fn the_table_ends_with_the_verdict() {
        let good = ("kvm", Finding::Ok("works".to_owned()));
        let bad = ("memory", Finding::problem("0 MiB", "buy some"));
        let (text, problems) = reported(&[good.clone(), good.clone()]);
        assert_eq!((text.lines().last(), problems), (Some("This machine can run Tatami's sandboxes."), 0));
        let (text, problems) = reported(&[good, bad]);
        assert_eq!(problems, 1);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok       kvm          works");
        assert_eq!(lines[1], "problem  memory       0 MiB");
        assert_eq!(lines[2].trim(), "→ buy some");
        assert!(lines[4].starts_with("One problem"), "{text}");
    }

    #[test]
    fn a_single_finding_is_a_single_line() {
        let (text, problems) = reported(&[("memory", Finding::problem("0 MiB", "buy some"))]);
        assert_eq!((text.as_str(), problems), ("memory: 0 MiB; buy some\n", 1));
    }

    #[test]
    fn only_known_names_are_accepted() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            check: CheckArguments,
        }
        let line = Line::try_parse_from(["check", "--only", "kvm", "--only", "memory"]).unwrap();
        assert_eq!(line.check.only, ["kvm", "memory"]);
        assert!(Line::try_parse_from(["check", "--only", "coffee"]).is_err());
    }

    #[test]
    fn only_what_is_asked_is_looked_at() {
        let arguments = CheckArguments { only: vec!["host-kernel".to_owned()], ..CheckArguments::default() };
        let mut out = Vec::new();
        run(&arguments, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("host-kernel: Linux ") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn a_missing_guest_file_is_a_problem_that_says_how_to_name_one() {
        let finding = found(guest_files::find_kernel(Some(Path::new("/nonexistent/vmlinux"))));
        let (verdict, what, _) = finding.parts();
        assert!(verdict == "problem" && what.contains("/nonexistent/vmlinux"), "{what}");
    }

    #[test]
    fn privileges_name_what_is_missing() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(matches!(privileges_of(true, all), Finding::Ok(_)));
        assert!(matches!(privileges_of(false, all), Finding::Problem { .. }));
        let docker = privileges_of(true, "CapEff:\t00000000a80425fb\n");
        let (_, what, _) = docker.parts();
        assert!(what.contains("DAC_READ_SEARCH, SYS_ADMIN") && !what.contains("CHOWN,"), "{what}");
    }

    #[test]
    fn host_kernels_are_compared_by_number() {
        for (release, good) in
            [("6.12.9-amd64", true), ("5.12.0", true), ("5.9.1", false), ("4.19", false), ("", false)]
        {
            assert_eq!(matches!(host_kernel_of(release), Finding::Ok(_)), good, "{release}");
        }
    }

    #[test]
    fn overlayfs_is_there_or_can_be_loaded() {
        assert!(matches!(overlayfs_of("nodev\tproc\nnodev\toverlay\n", ""), Finding::Ok(_)));
        assert!(matches!(overlayfs_of("", "kernel/fs/overlayfs/overlay.ko.xz: x\n"), Finding::Ok(_)));
        assert!(matches!(overlayfs_of("nodev\tproc\n", "kernel/fs/fuse/fuse.ko:\n"), Finding::Problem { .. }));
    }

    #[test]
    fn memory_has_three_answers() {
        let info = |available: u64| format!("MemTotal: 2048000 kB\nMemAvailable: {} kB\n", available * 1024);
        assert!(matches!(memory_of(&info(1000)), Finding::Ok(what) if what == "1000 of 2000 MiB available"));
        assert!(matches!(memory_of(&info(300)), Finding::Note { .. }));
        assert!(matches!(memory_of(&info(100)), Finding::Problem { .. }));
        assert!(matches!(memory_of(""), Finding::Problem { .. }));
    }
}
