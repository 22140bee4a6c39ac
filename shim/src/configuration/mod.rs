//! Kata's `configuration.toml`: what an operator has set for all sandboxes of a runtime.
//!
//! A setting that cannot be is an error with file and line. One that has no meaning here is told of, with the reason, and changes
//! nothing: a node's file need not be rewritten to try Tatami. Knows nothing of any one container.

mod annotations;
mod devices;
mod document;
mod files;
mod guest;
mod keys;
mod memory;
mod reference;

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tatami_vmm::{Allowance, BLK_QUEUES_MAX, FsCache, MAX_QUEUE_PAIRS, MemoryKind, NicLimits, RateLimit, Verity};

use self::document::{Document, Setting, Value};
pub use self::document::{DocumentError, Place};
pub use self::files::VARIABLE;
use self::keys::{Fate, Section};
pub use self::reference::reference;
use crate::network::interfaces::Model;
use crate::sandbox::mounts::HostVolume;

/// Where Kata installs its own guests. Their agent is Kata's.
const KATAS_FOLDERS: [&str; 2] = ["/usr/share/kata-containers/", "/opt/kata/"];
const KATAS_GUEST: &str = "it is Kata's own, whose agent Tatami does not speak to: Tatami's is used";
/// What the kernel takes for the size of a pipe (F_SETPIPE_SZ).
const PIPE_SIZE_MAX: i64 = i32::MAX as i64;
/// A hypervisor's section of this name goes before all others.
const OURS: &str = "tatami";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The file that somebody named.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A value that cannot be.
    #[error("{place}: {name} is {found}: expected {wanted}")]
    Value {
        /// Where.
        place: Place,
        /// Of which setting.
        name: String,
        /// What there is.
        found: String,
        /// What there should be.
        wanted: &'static str,
    },
    /// Several hypervisors, none of them chosen.
    #[error("{place}: there are several hypervisors ({names}): `hypervisor_name` in [runtime] says which one is meant")]
    Hypervisors {
        /// Where one of them is.
        place: Place,
        /// All of them.
        names: String,
    },
    /// An annotation that may not be.
    #[error("the annotation {name} is refused: {reason}")]
    Annotation {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
    /// Two settings that exclude each other.
    #[error("{place}: {name} and {other} exclude each other")]
    Both {
        /// Where the one is.
        place: Place,
        /// The one.
        name: &'static str,
        /// The other.
        other: &'static str,
    },
}

/// What is set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// The guest's kernel.
    pub kernel: Option<PathBuf>,
    /// Its user space: an initrd or a disk image.
    pub user_space: Option<PathBuf>,
    /// What the disk must be checked by.
    pub verity: Option<Verity>,
    /// More parameters for the kernel.
    pub kernel_params: String,
    /// vCPUs beside those that containers ask for.
    pub vcpus: Option<u8>,
    /// The guest's own share of memory, MiB, beside what containers ask for.
    pub memory_mib: Option<u32>,
    /// vCPUs that a sandbox can have, however many its containers ask for.
    pub max_vcpus: Option<u8>,
    /// Memory that a sandbox can have, MiB.
    pub max_memory_mib: Option<u32>,
    /// Sandboxes stay as large as they start.
    pub fixed_size: bool,
    /// Memory neither comes nor goes while they live.
    pub fixed_memory: bool,
    /// What a guest frees is not reported to the host.
    pub no_reporting: bool,
    /// What memory is made of, and the folder of its file if it lies in one.
    pub memory: Option<(MemoryKind, Option<PathBuf>)>,
    /// How long a guest believes what it has read.
    pub cache: Option<FsCache>,
    /// Queues of a disk.
    pub disk_queues: Option<u8>,
    /// Disks are read and written by a thread each, without io_uring.
    pub disk_threads: bool,
    /// The host's page cache is left out of disks.
    pub disk_direct: bool,
    /// A guest's flush of a disk is not carried out.
    pub disk_unflushed: bool,
    /// How fast each disk may be.
    pub disk_limit: RateLimit,
    /// What of the host the guest itself is shown, each by the last part of its path.
    pub guest_mounts: Vec<HostVolume>,
    /// The folder in the guest whose programs are hooks of every container.
    pub guest_hooks: Option<String>,
    /// A shell in the guest itself is to be had, outside containers.
    pub debug_console: bool,
    /// Bytes that a pipe of a process's standard streams holds in the guest.
    pub pipe_size: Option<u32>,
    /// More is logged.
    pub debug: bool,
    /// Seccomp profiles are not applied in the guest.
    pub no_seccomp: bool,
    /// The whole sandbox is in the cgroup that its client names.
    pub own_cgroup: bool,
    /// vCPUs run on processors of their own where containers name as many as there are.
    pub pin_vcpus: bool,
    /// The host's vhost-net is not used.
    pub no_vhost: bool,
    /// Pairs of queues of a network interface.
    pub queues: Option<u8>,
    /// How fast each network interface may be.
    pub limits: NicLimits,
    /// How the guest is joined to the network.
    pub model: Model,
    /// How long the guest may take to come up.
    pub patience: Option<Duration>,
    /// The settings that change nothing, and why not.
    pub idle: Vec<String>,
}

/// Where the file is looked for where no client names one, in this order.
pub fn places() -> Vec<PathBuf> {
    files::places()
}

/// The file that is read where no client names one, and what is dropped in beside it. None: there is none.
///
/// # Errors
/// When it cannot be read.
pub fn files_read() -> Result<Vec<PathBuf>, ConfigurationError> {
    let Some(file) = files::find(None, std::env::var_os(VARIABLE)) else { return Ok(Vec::new()) };
    files::with_drop_ins(&file).map_err(|source| ConfigurationError::Missing { path: file, source })
}

impl Configuration {
    /// Reads the file that a client has `named`, or that [`VARIABLE`] names, or that lies in one of Kata's places, with what is
    /// dropped in beside it, and of a pod's `annotations` those that are Kata's and that the file allows. Where there is none, nothing is
    /// set.
    ///
    /// # Errors
    /// [`ConfigurationError`], with file and line.
    pub fn load(
        named: Option<&Path>,
        annotations: &HashMap<String, String>,
    ) -> Result<Configuration, ConfigurationError> {
        let mut document = Document::default();
        if let Some(file) = files::find(named, std::env::var_os(VARIABLE)) {
            let all = files::with_drop_ins(&file);
            let all = all.map_err(|source| ConfigurationError::Missing { path: file, source })?;
            all.iter().try_for_each(|path| document.read(path))?;
        }
        annotations::take(&mut document, annotations)?;
        Configuration::from_document(&document)
    }

    fn from_document(document: &Document) -> Result<Configuration, ConfigurationError> {
        let chosen = hypervisor(document)?;
        let mut settings = Settings { document, hypervisor: chosen, idle: Vec::new() };
        settings.look_over();
        settings.check_empty_dirs()?;
        settings.check_devices()?;
        let guest = |settings: &mut Settings<'_>, name| settings.guest_file(name);
        let (kernel, image, initrd) =
            (guest(&mut settings, "kernel")?, guest(&mut settings, "image")?, guest(&mut settings, "initrd")?);
        if image.is_some()
            && initrd.is_some()
            && let Some(setting) = settings.get(Section::Hypervisor, "image")
        {
            return Err(ConfigurationError::Both { place: setting.place.clone(), name: "image", other: "initrd" });
        }
        let verity = settings.verity(image.is_some())?;
        let memory = settings.memory()?;
        let model = settings.model()?;
        settings.check_namespace(model)?;
        Ok(Configuration {
            kernel,
            user_space: image.or(initrd),
            verity,
            kernel_params: settings.text(Section::Hypervisor, "kernel_params")?.unwrap_or_default().to_owned(),
            vcpus: settings.vcpus()?,
            memory_mib: settings
                .number(Section::Hypervisor, "default_memory", 0..=u32::MAX.into())?
                .filter(|mib| *mib > 0)
                .map(|mib| mib as u32),
            max_vcpus: settings
                .number(Section::Hypervisor, "default_maxvcpus", 0..=254)?
                .filter(|vcpus| *vcpus > 0)
                .map(|vcpus| vcpus as u8),
            max_memory_mib: settings
                .number(Section::Hypervisor, "default_maxmemory", 0..=u32::MAX.into())?
                .filter(|mib| *mib > 0)
                .map(|mib| mib as u32),
            fixed_size: settings.flag(Section::Runtime, "static_sandbox_resource_mgmt")?,
            fixed_memory: settings.switch(Section::Hypervisor, "enable_virtio_mem")? == Some(false),
            no_reporting: settings.switch(Section::Hypervisor, "reclaim_guest_freed_memory")? == Some(false),
            memory,
            cache: settings.cache()?,
            disk_queues: settings
                .number(Section::Hypervisor, "num_queues", 0..=BLK_QUEUES_MAX.into())?
                .filter(|queues| *queues > 0)
                .map(|queues| queues as u8),
            disk_threads: settings.disk_threads()?,
            disk_direct: settings.disk_cache("block_device_cache_direct")?,
            disk_unflushed: settings.disk_cache("block_device_cache_noflush")?,
            disk_limit: settings.disk_limit()?,
            guest_mounts: settings.guest_mounts()?,
            guest_hooks: settings.guest_hooks()?,
            debug_console: settings.flag(Section::Agent, "debug_console_enabled")?,
            pipe_size: settings
                .number(Section::Agent, "container_pipe_size", 0..=PIPE_SIZE_MAX)?
                .filter(|bytes| *bytes > 0)
                .map(|bytes| bytes as u32),
            debug: settings.flag(Section::Runtime, "enable_debug")?,
            no_seccomp: settings.flag(Section::Runtime, "disable_guest_seccomp")?,
            own_cgroup: settings.flag(Section::Runtime, "sandbox_cgroup_only")?,
            pin_vcpus: settings.flag(Section::Runtime, "enable_vcpus_pinning")?,
            no_vhost: settings.flag(Section::Hypervisor, "disable_vhost_net")?,
            queues: settings
                .number(Section::Hypervisor, "network_queues", 0..=MAX_QUEUE_PAIRS.into())?
                .filter(|pairs| *pairs > 0)
                .map(|pairs| pairs as u8),
            limits: NicLimits {
                receive: settings.rate("rx_rate_limiter_max_rate")?,
                transmit: settings.rate("tx_rate_limiter_max_rate")?,
            },
            model,
            patience: settings.patience()?,
            idle: settings.idle,
        })
    }
}

/// The name of the hypervisor whose section counts.
fn hypervisor(document: &Document) -> Result<Option<String>, ConfigurationError> {
    let mut found: Vec<(&str, &Place)> = Vec::new();
    for ((section, _), setting) in &document.settings {
        if let Some((Section::Hypervisor, Some(name))) = Section::of(section)
            && found.last().is_none_or(|(last, _)| *last != name)
        {
            found.push((name, &setting.place));
        }
    }
    let chosen = document.settings.get(&("runtime".to_owned(), "hypervisor_name".to_owned()));
    let chosen = chosen.and_then(|setting| match &setting.value {
        Value::Text(name) => Some(name.as_str()),
        _ => None,
    });
    let is_there = |wanted: &str| found.iter().any(|(name, _)| *name == wanted);
    match (&found[..], chosen) {
        ([], _) => Ok(None),
        (_, _) if is_there(OURS) => Ok(Some(OURS.to_owned())),
        ([(only, _)], _) => Ok(Some((*only).to_owned())),
        (_, Some(chosen)) if is_there(chosen) => Ok(Some(chosen.to_owned())),
        ([(_, place), ..], _) => {
            let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
            Err(ConfigurationError::Hypervisors { place: (*place).clone(), names: names.join(", ") })
        }
    }
}

/// A document, as what it means is read out of it.
struct Settings<'a> {
    document: &'a Document,
    hypervisor: Option<String>,
    idle: Vec<String>,
}

impl<'a> Settings<'a> {
    /// Notes what changes nothing.
    fn look_over(&mut self) {
        for ((section, name), setting) in &self.document.settings {
            let why = match Section::of(section) {
                Some((Section::Hypervisor, of)) if of != self.hypervisor.as_deref() => continue,
                Some((of, _)) => match keys::fate(of, name) {
                    Fate::Used => continue,
                    Fate::Idle(why) if keys::asks(&setting.value) => why,
                    Fate::Idle(_) => continue,
                    Fate::Unknown => "nobody knows it",
                },
                None => "nobody knows its section",
            };
            self.idle.push(format!("{}: {section}.{name} changes nothing: {why}", setting.place));
        }
    }

    fn get(&self, section: Section, name: &str) -> Option<&'a Setting> {
        let mut all = self.document.settings.iter().filter(|((_, other), _)| other == name);
        let found = all.find(|((text, _), _)| match Section::of(text) {
            Some((Section::Hypervisor, of)) => section == Section::Hypervisor && of == self.hypervisor.as_deref(),
            Some((of, _)) => of == section,
            None => false,
        });
        found.map(|(_, setting)| setting)
    }

    fn text(&self, section: Section, name: &str) -> Result<Option<&'a str>, ConfigurationError> {
        match self.get(section, name) {
            None => Ok(None),
            Some(Setting { value: Value::Text(text) | Value::Loose(text), .. }) => Ok(Some(text)),
            Some(setting) => Err(wrong(setting, name, "text in quotes")),
        }
    }

    fn flag(&self, section: Section, name: &str) -> Result<bool, ConfigurationError> {
        Ok(self.switch(section, name)?.unwrap_or(false))
    }

    /// What is true unless it is switched off, or false unless it is switched on.
    fn switch(&self, section: Section, name: &str) -> Result<Option<bool>, ConfigurationError> {
        match self.get(section, name) {
            None => Ok(None),
            Some(Setting { value: Value::Bool(value), .. }) => Ok(Some(*value)),
            Some(setting @ Setting { value: Value::Loose(text), .. }) => {
                text.parse().map(Some).map_err(|_| wrong(setting, name, "true or false"))
            }
            Some(setting) => Err(wrong(setting, name, "true or false")),
        }
    }

    fn model(&self) -> Result<Model, ConfigurationError> {
        const NAME: &str = "internetworking_model";
        match self.text(Section::Runtime, NAME)? {
            None | Some("" | "tcfilter") => Ok(Model::TcFilter),
            Some("macvtap") => Ok(Model::MacVtap),
            Some("none") => Ok(Model::None),
            Some(_) => {
                let setting = self.get(Section::Runtime, NAME).expect("it is set");
                Err(wrong(setting, NAME, "tcfilter, macvtap or none"))
            }
        }
    }

    /// Notes that emptyDirs are never on disks of their own, if that is asked for.
    fn check_empty_dirs(&mut self) -> Result<(), ConfigurationError> {
        const NAME: &str = "emptydir_mode";
        let mode = self.text(Section::Runtime, NAME)?;
        let Some(setting) = self.get(Section::Runtime, NAME) else { return Ok(()) };
        match mode {
            None | Some("" | "shared-fs") => {}
            Some(mode @ ("block-plain" | "block-encrypted")) => {
                let why = keys::EMPTY_DIRS;
                self.idle.push(format!("{}: runtime.{NAME} {mode:?} changes nothing: {why}", setting.place));
            }
            Some(_) => return Err(wrong(setting, NAME, "shared-fs")),
        }
        Ok(())
    }

    fn number(
        &self,
        section: Section,
        name: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ConfigurationError> {
        let Some(setting) = self.get(section, name) else { return Ok(None) };
        let number = match &setting.value {
            Value::Integer(number) => *number,
            Value::Loose(text) => text.trim().parse().map_err(|_| wrong(setting, name, "a number"))?,
            _ => return Err(wrong(setting, name, "a number")),
        };
        if range.contains(&number) { Ok(Some(number)) } else { Err(wrong(setting, name, "a number that can be")) }
    }

    /// vCPUs: none for 0, all of the host's for fewer.
    fn vcpus(&self) -> Result<Option<u8>, ConfigurationError> {
        let name = "default_vcpus";
        let Some(setting) = self.get(Section::Hypervisor, name) else { return Ok(None) };
        let number = match &setting.value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) if number.is_finite() => *number,
            Value::Loose(text) => {
                let number = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
                number.ok_or_else(|| wrong(setting, name, "a number"))?
            }
            _ => return Err(wrong(setting, name, "a number")),
        };
        let host = std::thread::available_parallelism().map_or(1, |count| count.get()).min(u8::MAX.into()) as u8;
        Ok(match number {
            0.0 => None,
            number if number < 0.0 => Some(host),
            // Saturates.
            number => Some((number.ceil() as u8).min(host)),
        })
    }

    /// The shortest of the times that a guest may take: whatever is set first gives up first.
    fn patience(&self) -> Result<Option<Duration>, ConfigurationError> {
        let limit = |section| self.number(section, "create_container_timeout", 1..=86_400);
        let shortest = [limit(Section::Agent)?, limit(Section::Runtime)?].into_iter().flatten().min();
        Ok(shortest.map(|seconds| Duration::from_secs(seconds as u64)))
    }

    /// There is nothing to do for a VMM without a namespace of its own, as it has no use for the host's network.
    fn check_namespace(&self, model: Model) -> Result<(), ConfigurationError> {
        const NAME: &str = "disable_new_netns";
        match self.get(Section::Runtime, NAME) {
            Some(setting) if self.flag(Section::Runtime, NAME)? && model != Model::None => {
                Err(wrong(setting, NAME, "false, or an internetworking_model of \"none\""))
            }
            _ => Ok(()),
        }
    }

    /// A rate in bits a second; 0 is no limit.
    fn rate(&self, name: &str) -> Result<RateLimit, ConfigurationError> {
        let bits = self.number(Section::Hypervisor, name, 0..=i64::MAX)?.unwrap_or(0) as u64;
        Ok(RateLimit { bytes: NonZeroU64::new(bits.div_ceil(8)).map(Allowance::of_bytes), operations: None })
    }

    fn cache(&self) -> Result<Option<FsCache>, ConfigurationError> {
        let name = "virtio_fs_cache";
        let cache = match self.text(Section::Hypervisor, name)? {
            None | Some("") => return Ok(None),
            Some("never" | "none") => FsCache::Never,
            Some("auto") => FsCache::Auto,
            Some("metadata") => FsCache::Metadata,
            Some("always") => FsCache::Always,
            Some(_) => {
                let setting = self.get(Section::Hypervisor, name).expect("it is set");
                return Err(wrong(setting, name, "never, auto, metadata or always"));
            }
        };
        Ok(Some(cache))
    }

    /// A file of the guest's, unless it is Kata's.
    fn guest_file(&mut self, name: &str) -> Result<Option<PathBuf>, ConfigurationError> {
        let Some(path) = self.text(Section::Hypervisor, name)?.filter(|path| !path.is_empty()) else { return Ok(None) };
        let setting = self.get(Section::Hypervisor, name).expect("it is set");
        if KATAS_FOLDERS.iter().any(|folder| path.starts_with(folder)) {
            self.idle.push(format!("{}: {name} {path} changes nothing: {KATAS_GUEST}", setting.place));
            return Ok(None);
        }
        if !path.starts_with('/') || !Path::new(path).is_file() {
            return Err(wrong(setting, name, "a file that is there, by its path from / on"));
        }
        Ok(Some(path.into()))
    }
}

fn wrong(setting: &Setting, name: &str, wanted: &'static str) -> ConfigurationError {
    let found = setting.value.to_string();
    ConfigurationError::Value { place: setting.place.clone(), name: name.to_owned(), found, wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<Configuration, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config.d")).unwrap();
        for (number, text) in texts.iter().enumerate() {
            let name = if number == 0 { "c.toml".to_owned() } else { format!("config.d/{number}.toml") };
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Configuration::load(Some(&folder.path().join("c.toml")), &HashMap::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_set_is_read_and_drop_ins_go_before_it() {
        let main = "[hypervisor.qemu]\nkernel = '/etc/passwd'\ninitrd = '/etc/group'\nkernel_params = 'a=b'\ndefault_memory = 128\n\
                    default_vcpus = 0.5\nvirtio_fs_cache = 'always'\n[agent.kata]\ncreate_container_timeout = 7\n\
                    [runtime]\ninternetworking_model = 'macvtap'\n";
        let dropped =
            "[hypervisor.qemu]\ndefault_memory = 200\nenable_hugepages = true\n[runtime]\nenable_debug = true\n";
        let configuration = read(&[main, dropped]).unwrap();
        let expected = Configuration {
            kernel: Some("/etc/passwd".into()),
            user_space: Some("/etc/group".into()),
            kernel_params: "a=b".to_owned(),
            vcpus: Some(1),
            memory_mib: Some(200),
            memory: Some((MemoryKind::HugePages, None)),
            cache: Some(FsCache::Always),
            debug: true,
            model: Model::MacVtap,
            patience: Some(Duration::from_secs(7)),
            ..Configuration::default()
        };
        assert_eq!(configuration, expected);
    }

    #[test]
    fn networks_have_queues_and_rates_in_bits_a_second() {
        let set = |text: &str| read(&[&format!("[hypervisor.q]\n{text}")]);
        let configuration =
            set("network_queues = 2\nrx_rate_limiter_max_rate = 80000000\ntx_rate_limiter_max_rate = 1").unwrap();
        let limits = configuration.limits;
        let bytes = |limit: RateLimit| limit.bytes.map(|bytes| (bytes.per_second.get(), bytes.burst.get()));
        assert_eq!(bytes(limits.receive), Some((10_000_000, 1_000_000)));
        assert_eq!(bytes(limits.transmit), Some((1, 65536)), "a limit is never none");
        assert_eq!((configuration.queues, configuration.idle), (Some(2), vec![]));
        let none = set("network_queues = 0\nrx_rate_limiter_max_rate = 0").unwrap();
        assert_eq!((none.queues, none.limits), (None, NicLimits::NONE));
        for wrong in ["network_queues = 17", "rx_rate_limiter_max_rate = -1"] {
            let error = set(wrong).unwrap_err();
            assert!(error.contains(&format!("c.toml:2: {}: expected", wrong.replace('=', "is"))), "{error}");
        }
    }

    #[test]
    fn disks_have_rates_in_bits_and_requests_a_second() {
        let set = |text: &str| read(&[&format!("[hypervisor.q]\n{text}")]);
        let all = "disk_rate_limiter_bw_max_rate = 80000000\ndisk_rate_limiter_ops_max_rate = 1000\n\
                   disk_rate_limiter_bw_one_time_burst = 1\n";
        let configuration = set(all).unwrap();
        let rates =
            |limit: RateLimit| [limit.bytes, limit.operations].map(|rate| rate.map(|rate| rate.per_second.get()));
        assert_eq!(rates(configuration.disk_limit), [Some(10_000_000), Some(1000)]);
        let idle = &configuration.idle;
        assert!(idle.len() == 1 && idle[0].contains("bw_one_time_burst changes nothing: a disk may"), "{idle:?}");
        let none = set("disk_rate_limiter_bw_max_rate = 0\ndisk_rate_limiter_ops_max_rate = 0").unwrap();
        assert_eq!(none, Configuration::default());
        let error = set("disk_rate_limiter_ops_max_rate = -1").unwrap_err();
        assert!(error.contains("c.toml:2: disk_rate_limiter_ops_max_rate is -1: expected"), "{error}");
    }

    #[test]
    fn memory_and_disks_are_as_usual_unless_they_are_set() {
        let set = |text: &str| read(&[&format!("[hypervisor.q]\n{text}")]);
        let usual = "enable_virtio_mem = true\nreclaim_guest_freed_memory = true\nblock_device_aio = 'io_uring'\nnum_queues = 0\n\
                     queue_size = 512\nvirtio_fs_queue_size = 1024\nentropy_source = '/dev/urandom'\n";
        assert_eq!(set(usual).unwrap(), Configuration::default());
        let other = "enable_virtio_mem = false\nreclaim_guest_freed_memory = false\nblock_device_aio = 'threads'\nnum_queues = 8\n\
                     block_device_cache_set = true\nblock_device_cache_direct = true\nblock_device_cache_noflush = true\n";
        let expected = Configuration {
            fixed_memory: true,
            no_reporting: true,
            disk_queues: Some(8),
            disk_threads: true,
            disk_direct: true,
            disk_unflushed: true,
            ..Configuration::default()
        };
        assert_eq!(set(other).unwrap(), expected);
        for wrong in [
            "num_queues = 9",
            "block_device_aio = \"aio\"",
            "queue_size = 100",
            "virtio_fs_queue_size = 65536",
            "entropy_source = \"/no/such\"",
            "entropy_source = \"etc\"",
            "enable_virtio_mem = 1",
            "reclaim_guest_freed_memory = \"yes\"",
        ] {
            let error = set(wrong).unwrap_err();
            assert!(error.contains(&format!("c.toml:2: {}: expected", wrong.replace('=', "is"))), "{error}");
        }
    }

    #[test]
    fn how_disks_are_cached_counts_only_where_it_is_set() {
        let set =
            read(&["[hypervisor.q]\nblock_device_cache_direct = true\nblock_device_cache_noflush = false\n"]).unwrap();
        assert!(!set.disk_direct && !set.disk_unflushed);
        assert_eq!(set.idle.len(), 1, "{:?}", set.idle);
        assert!(set.idle[0].contains("c.toml:2: block_device_cache_direct true changes nothing"), "{:?}", set.idle);
    }

    #[test]
    fn what_devices_are_not_is_named_with_the_value_and_the_reason() {
        let text = "[hypervisor.q]\nblock_device_aio = 'native'\nqueue_size = 128\nvirtio_fs_queue_size = 256\nentropy_source = '/dev/null'\n\
                    block_device_cache_direct = true\n";
        let configuration = read(&[text]).unwrap();
        let named = |words: &str| configuration.idle.iter().filter(|line| line.contains(words)).count();
        assert_eq!(configuration.idle.len(), 5, "{:?}", configuration.idle);
        assert_eq!(named("c.toml:2: block_device_aio \"native\" changes nothing: "), 1);
        assert_eq!((named("c.toml:3: queue_size 128"), named("c.toml:4: virtio_fs_queue_size 256")), (1, 1));
        assert_eq!((named("c.toml:5: entropy_source \"/dev/null\""), named("block_device_cache_direct")), (1, 1));
    }

    #[test]
    fn the_guest_is_shown_what_is_there_and_may_write_only_where_it_is_said() {
        let shown = |list: &str| read(&[&format!("[runtime]\nsandbox_bind_mounts = {list}")]);
        let mount = |path: &str, read_only| HostVolume { source: path.into(), read_only, recursive: true };
        let expected = [mount("/etc/passwd", true), mount("/etc", true), mount("/tmp", false)];
        assert_eq!(shown("['/etc/passwd', '/etc:ro', '/tmp:rw']").unwrap().guest_mounts, expected);
        assert_eq!(shown("[]").unwrap(), Configuration::default());
        for (wrong, found) in [
            ("'/etc'", "\"/etc\""),
            ("[1]", "[1]"),
            ("['etc']", "[\"etc\"]"),
            ("['/']", "[\"/\"]"),
            ("['/no/such']", "[\"/no/such\"]"),
            ("['/usr/bin', '/bin']", "[\"/usr/bin\", \"/bin\"]"),
        ] {
            let error = shown(wrong).unwrap_err();
            assert!(error.contains(&format!("c.toml:2: sandbox_bind_mounts is {found}: expected a list")), "{error}");
        }
    }

    #[test]
    fn hooks_are_in_a_folder_of_the_guests() {
        let hooks =
            |path: &str| read(&[&format!("[hypervisor.q]\nguest_hook_path = '{path}'\n")]).map(|set| set.guest_hooks);
        assert_eq!(hooks("/usr/share/oci/hooks"), Ok(Some("/usr/share/oci/hooks".to_owned())));
        assert_eq!(hooks(""), Ok(None));
        for path in ["hooks", "/usr/../hooks"] {
            let error = hooks(path).unwrap_err();
            assert!(error.contains("c.toml:2: guest_hook_path is"), "{error}");
        }
    }

    #[test]
    fn a_disk_is_checked_by_what_the_operator_says() {
        let hash = "ab".repeat(32);
        let text = format!("root_hash={hash},salt=00,data_blocks=7,data_block_size=4096,hash_block_size=4096");
        let verity = |image: &str, text: &str| {
            read(&[&format!("[hypervisor.q]\nimage = '{image}'\nkernel_verity_params = '{text}'\n")])
        };
        assert_eq!(verity("/etc/passwd", &text).unwrap().verity, Some(text.parse().unwrap()));
        assert_eq!(verity("/etc/passwd", "").unwrap().verity, None);
        // That no disk is named is for whoever opens what is in its place to say.
        assert_eq!(verity("", &text).unwrap().verity, Some(text.parse().unwrap()));
        let katas = verity("/opt/kata/share/kata-containers/kata-containers.img", &text).unwrap();
        assert_eq!((katas.verity, katas.idle.len()), (None, 2), "{:?}", katas.idle);
        let error = verity("/etc/passwd", "root_hash=ab").unwrap_err();
        assert!(error.contains("c.toml:3: kernel_verity_params is"), "{error}");
    }

    #[test]
    fn a_guest_has_the_shortest_of_all_times() {
        let patience = |text: &str| read(&[text]).map(|set| set.patience);
        let all = "[agent.kata]\ncreate_container_timeout = 9\n[runtime]\ncreate_container_timeout = 8\n";
        assert_eq!(patience(all), Ok(Some(Duration::from_secs(8))));
        // How often Kata's runtime calls its agent is no time that a slow host may take.
        assert_eq!(patience("[agent.kata]\ndial_timeout = 5\nreconnect_timeout_ms = 3000\n"), Ok(None));
    }

    #[test]
    fn without_a_namespace_there_is_no_network() {
        let set =
            |model: &str| read(&[&format!("[runtime]\ndisable_new_netns = true\ninternetworking_model = '{model}'\n")]);
        let idle = set("none").unwrap().idle;
        assert!(idle.len() == 1 && idle[0].contains("c.toml:2: runtime.disable_new_netns changes nothing"), "{idle:?}");
        let error = set("tcfilter").unwrap_err();
        assert!(error.contains("c.toml:2: disable_new_netns is true: expected false, or"), "{error}");
    }

    #[test]
    fn what_changes_nothing_is_named_with_the_reason_if_it_asks_for_something() {
        let text = "[hypervisor.qemu]\npath = '/usr/bin/qemu'\nfirmware = ''\nenable_iommu = false\nkernel = '/opt/kata/k'\nsuch = 1\n\
                    [hypervisor.clh]\npath = 'x'\n[runtime]\nhypervisor_name = 'qemu'\n[netmon]\nenable = true\n";
        let idle = read(&[text]).unwrap().idle;
        let named = |words: &str| idle.iter().filter(|line| line.contains(words)).count();
        assert_eq!(idle.len(), 4, "{idle:?}");
        assert_eq!(named("c.toml:2: hypervisor.qemu.path changes nothing: the VMM is Tatami itself"), 1);
        assert_eq!((named("c.toml:5: kernel /opt/kata/k"), named("qemu.such"), named("netmon.enable")), (1, 1, 1));
    }

    #[test]
    fn empty_dirs_are_shared_whatever_is_asked_for() {
        let idle = |mode: &str| read(&[&format!("[runtime]\nemptydir_mode = '{mode}'\n")]).map(|set| set.idle);
        for mode in ["", "shared-fs"] {
            assert_eq!(idle(mode).unwrap(), [""; 0]);
        }
        for mode in ["block-plain", "block-encrypted"] {
            let told = idle(mode).unwrap();
            assert!(
                told.len() == 1
                    && told[0].contains(&format!("c.toml:2: runtime.emptydir_mode {mode:?} changes nothing"))
            );
        }
        let error = idle("disk").unwrap_err();
        assert!(error.ends_with("c.toml:2: emptydir_mode is \"disk\": expected shared-fs"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_named_with_file_and_line() {
        let told = |text: &str, words: &str| {
            let error = read(&[text]).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        told("[hypervisor.q]\n\ndefault_memory = 'x'", "c.toml:3: default_memory is \"x\": expected a number");
        told("[hypervisor.q]\ndefault_memory = -1", "c.toml:2: default_memory is -1");
        told("[hypervisor.q]\ndefault_vcpus = true", "c.toml:2: default_vcpus is true");
        told("[hypervisor.q]\nkernel = 'k'", "c.toml:2: kernel is \"k\": expected a file that is there");
        told(
            "[hypervisor.q]\nimage = '/etc/passwd'\ninitrd = '/etc/group'",
            "c.toml:2: image and initrd exclude each other",
        );
        told("[hypervisor.q]\nvirtio_fs_cache = 'much'", "c.toml:2: virtio_fs_cache is \"much\": expected never, auto");
        told("[runtime]\ninternetworking_model = 'l2'", "c.toml:2: internetworking_model is \"l2\": expected tcfilter");
        told("[hypervisor.a]\npath = 'x'\n[hypervisor.b]\npath = 'y'", "there are several hypervisors (a, b)");
        told("[hypervisor.q\n", "c.toml:1: ");
        let missing = Configuration::load(Some(Path::new("/no/such.toml")), &HashMap::new()).unwrap_err().to_string();
        assert!(missing.contains("/no/such.toml"), "{missing}");
    }
}
