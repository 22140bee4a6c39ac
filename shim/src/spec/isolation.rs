//! What a person may change of a container's walls: capabilities, limits, system calls, file systems in memory.
//!
//! Each is parsed from docker's text, and becomes its part of the specification. Pure; who may ask for it is not asked here:
//! the machine's wall is another one.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxSeccomp, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{absolute, defaults};

/// The last capability that kernels know by now, and all before it.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Flags of a file system in memory; besides them there are some with values.
const TMPFS_FLAGS: [&str; 18] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "sync",
    "async",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
];
const TMPFS_VALUES: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Isolation {
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Beyond the usual.
    pub cap_add: Vec<CapabilityName>,
    /// Of the usual.
    pub cap_drop: Vec<CapabilityName>,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Which system calls there are; all without one.
    pub seccomp: Option<SeccompProfile>,
}

/// A text that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IsolationError(String);

/// One capability, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityName {
    /// Every one that there is.
    All,
    /// One.
    One(Capability),
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    destination: PathBuf,
    options: Vec<String>,
}

/// A limit of each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    kind: PosixRlimitType,
    soft: u64,
    hard: u64,
}

impl FromStr for CapabilityName {
    type Err = IsolationError;

    fn from_str(text: &str) -> Result<CapabilityName, IsolationError> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            return Ok(CapabilityName::All);
        }
        let known = CAPABILITIES.contains(&name).then(|| one(name)).flatten();
        known.map(CapabilityName::One).ok_or_else(|| IsolationError(format!("there is no capability {text:?}")))
    }
}

fn one(name: &str) -> Option<Capability> {
    serde_json::from_value(Value::String(format!("CAP_{name}"))).ok()
}

impl FromStr for Tmpfs {
    type Err = IsolationError;

    fn from_str(text: &str) -> Result<Tmpfs, IsolationError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let wrong = |why: &str| IsolationError(format!("invalid tmpfs {text:?}: {why}"));
        let destination = absolute(Path::new(path)).filter(|path| path.parent().is_some());
        let destination = destination.ok_or_else(|| wrong("an absolute path other than / is expected"))?;
        // Docker's; what is given later counts.
        let mut all = ["rw", "noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let known = match option.split_once('=') {
                Some((name, value)) => TMPFS_VALUES.contains(&name) && !value.is_empty(),
                None => TMPFS_FLAGS.contains(&option),
            };
            if !known {
                return Err(wrong(&format!("unknown option {option:?}")));
            }
            // Their opposites go.
            let opposite = match option {
                "ro" => "rw".to_owned(),
                "rw" => "ro".to_owned(),
                other => other.strip_prefix("no").map_or_else(|| format!("no{other}"), str::to_owned),
            };
            all.retain(|existing| *existing != opposite && existing != option);
            all.push(option.to_owned());
        }
        Ok(Tmpfs { destination, options: all })
    }
}

impl FromStr for Ulimit {
    type Err = IsolationError;

    fn from_str(text: &str) -> Result<Ulimit, IsolationError> {
        let wrong = |why: &str| IsolationError(format!("invalid ulimit {text:?}: {why}"));
        let (name, values) = text.split_once('=').ok_or_else(|| wrong("NAME=SOFT[:HARD] is expected"))?;
        let kind = Value::String(format!("RLIMIT_{}", name.to_ascii_uppercase()));
        let kind = serde_json::from_value(kind).map_err(|_| wrong(&format!("there is no limit {name:?}")))?;
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            digits => digits.parse::<u64>().map_err(|_| wrong("numbers, or -1 for no limit, are expected")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(wrong("the soft limit is above the hard one"));
        }
        Ok(Ulimit { kind, soft, hard })
    }
}

impl Isolation {
    /// What root in the container may.
    pub(super) fn capabilities(&self) -> HashSet<Capability> {
        let every = || CAPABILITIES.iter().filter_map(|name| one(name)).collect::<HashSet<_>>();
        let listed = |names: &[CapabilityName]| -> HashSet<Capability> {
            let one = |name: &CapabilityName| match name {
                CapabilityName::All => None,
                CapabilityName::One(one) => Some(*one),
            };
            names.iter().filter_map(one).collect()
        };
        let (added, dropped) = (listed(&self.cap_add), listed(&self.cap_drop));
        if self.cap_add.contains(&CapabilityName::All) {
            return every().difference(&dropped).copied().collect();
        }
        let kept = match self.cap_drop.contains(&CapabilityName::All) {
            true => HashSet::new(),
            false => defaults::capabilities().difference(&dropped).copied().collect(),
        };
        kept.union(&added).copied().collect()
    }

    /// The limits of each process; of several for one thing the last counts.
    pub(super) fn rlimits(&self) -> Result<Vec<PosixRlimit>, OciSpecError> {
        let (soft, hard) = defaults::OPEN_FILES;
        let mut limits = vec![Ulimit { kind: PosixRlimitType::RlimitNofile, soft, hard }];
        for limit in &self.ulimits {
            limits.retain(|existing| existing.kind != limit.kind);
            limits.push(*limit);
        }
        let build =
            |limit: Ulimit| PosixRlimitBuilder::default().typ(limit.kind).soft(limit.soft).hard(limit.hard).build();
        limits.into_iter().map(build).collect()
    }

    /// The file systems in memory.
    pub(super) fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let build = |tmpfs: &Tmpfs| {
            let mount = MountBuilder::default().destination(&tmpfs.destination).typ("tmpfs").source("tmpfs");
            mount.options(tmpfs.options.clone()).build()
        };
        self.tmpfs.iter().map(build).collect()
    }
}

/// A profile of system calls, in the runtime specification's form or in docker's, which knows conditions.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompProfile {
    default_action: Value,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchitectureMap>>,
    flags: Option<Value>,
    #[serde(default)]
    syscalls: Vec<SeccompRule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchitectureMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeccompRule {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: Value,
    errno_ret: Option<u32>,
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The version of guests' kernels, at least.
const GUEST_KERNEL: (u32, u32) = (6, 1);

impl SeccompProfile {
    /// Reads the text of a profile.
    ///
    /// # Errors
    /// [`IsolationError`] says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<SeccompProfile, IsolationError> {
        let profile: SeccompProfile = serde_json::from_slice(text)
            .map_err(|error| IsolationError(format!("not a profile of system calls: {error}")))?;
        // What depends on the container is the same for all of them in form.
        profile.resolve(&HashSet::new())?;
        Ok(profile)
    }

    /// What it means for a container with these capabilities.
    pub(super) fn resolve(&self, held: &HashSet<Capability>) -> Result<LinuxSeccomp, IsolationError> {
        let (ours, go) = match std::env::consts::ARCH {
            "x86_64" => ("SCMP_ARCH_X86_64", "amd64"),
            "aarch64" => ("SCMP_ARCH_AARCH64", "arm64"),
            _ => ("SCMP_ARCH_PPC64LE", "ppc64le"),
        };
        let mapped = self.arch_map.iter().flatten().find(|map| map.architecture == ours);
        let mapped = mapped
            .map(|map| [vec![map.architecture.clone()], map.sub_architectures.clone().unwrap_or_default()].concat());
        let architectures = self.architectures.clone().filter(|given| !given.is_empty()).or(mapped);
        let holds = |name: &String| one(name.trim_start_matches("CAP_")).is_some_and(|cap| held.contains(&cap));
        let applies = |rule: &&SeccompRule| {
            let (with, without) = (&rule.includes, &rule.excludes);
            with.caps.iter().flatten().all(&holds)
                && with.arches.as_ref().is_none_or(|arches| arches.is_empty() || arches.iter().any(|arch| arch == go))
                && with.min_kernel.as_deref().is_none_or(is_new_enough)
                && !without.caps.iter().flatten().any(&holds)
                && !without.arches.iter().flatten().any(|arch| arch == go)
                && !without.min_kernel.as_deref().is_some_and(is_new_enough)
        };
        let rules = self.syscalls.iter().filter(applies).map(|rule| {
            let names: Vec<&String> = rule.names.iter().chain(&rule.name).collect();
            let args = rule.args.clone().filter(|args| !args.is_empty());
            without_nulls(json!({"names": names, "action": rule.action, "errnoRet": rule.errno_ret, "args": args}))
        });
        let profile = without_nulls(json!({
            "defaultAction": self.default_action,
            "defaultErrnoRet": self.default_errno_ret,
            "architectures": architectures,
            "flags": self.flags,
            "syscalls": rules.collect::<Vec<_>>(),
        }));
        serde_json::from_value(profile)
            .map_err(|error| IsolationError(format!("not a profile of system calls: {error}")))
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, member| !member.is_null());
    }
    value
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) <= GUEST_KERNEL
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(add: &[&str], drop: &[&str]) -> HashSet<Capability> {
        let parse = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        Isolation { cap_add: parse(add), cap_drop: parse(drop), ..Isolation::default() }.capabilities()
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does() {
        assert_eq!(capabilities(&[], &[]), defaults::capabilities());
        assert_eq!(capabilities(&["sys_time"], &["ALL"]), HashSet::from([Capability::SysTime]));
        let most = capabilities(&["all"], &["CAP_CHOWN"]);
        assert_eq!(most.len(), CAPABILITIES.len() - 1);
        assert!(!capabilities(&[], &["chown"]).contains(&Capability::Chown));
        assert!("CAP_FLY".parse::<CapabilityName>().is_err());
    }

    #[test]
    fn limits_are_soft_and_hard() {
        let parse = |text: &str| text.parse::<Ulimit>();
        assert_eq!(parse("nofile=10:20").map(|limit| (limit.soft, limit.hard)), Ok((10, 20)));
        assert_eq!(parse("core=-1").map(|limit| (limit.soft, limit.hard)), Ok((u64::MAX, u64::MAX)));
        for wrong in ["nofile", "nofile=", "nofile=x", "nofile=20:10", "files=1", "nofile=1:2:3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let ulimits = vec![parse("nofile=5").unwrap(), parse("nofile=7").unwrap(), parse("nproc=9").unwrap()];
        let limits = Isolation { ulimits, ..Isolation::default() }.rlimits().unwrap();
        assert_eq!(limits.iter().map(PosixRlimit::soft).collect::<Vec<_>>(), [7, 9]);
    }

    #[test]
    fn a_tmpfs_has_dockers_options_and_its_own() {
        let tmpfs: Tmpfs = "/a/./b:size=1m,exec,ro".parse().unwrap();
        assert_eq!(tmpfs.destination, Path::new("/a/b"));
        assert_eq!(tmpfs.options, ["nosuid", "nodev", "size=1m", "exec", "ro"]);
        for wrong in ["", "a", "/", "/a:size", "/a:bind", "/a:source=/b"] {
            assert!(wrong.parse::<Tmpfs>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn dockers_profiles_are_resolved_for_the_container() {
        let text = br#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":[]},{"architecture":"SCMP_ARCH_PPC64LE"}],
            "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
                {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
                {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]},
                 "args":[{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let profile = SeccompProfile::parse(text).unwrap();
        let names = |held: &[Capability]| {
            let resolved = profile.resolve(&held.iter().copied().collect()).unwrap();
            resolved.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), ["read", "write", "ptrace", "clone"]);
        assert_eq!(names(&[Capability::SysAdmin]), ["read", "write", "mount", "ptrace"]);
        assert!(profile.resolve(&HashSet::new()).unwrap().architectures().is_some());
        for wrong in [&b""[..], b"{}", br#"{"defaultAction":"SCMP_ACT_FLY"}"#] {
            assert!(SeccompProfile::parse(wrong).is_err());
        }
    }
}
