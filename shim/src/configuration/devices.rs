//! Settings of disks, of shared files and of random numbers: what they ask for, and what of it there is only in one form.

use std::num::NonZeroU64;
use std::path::Path;

use tatami_vmm::{Allowance, RateLimit};

use super::keys::Section;
use super::{ConfigurationError, Settings, Value, wrong};
use crate::sandbox::mounts::HostVolume;

/// Queues that have the size they have: whose they are, and what they hold.
const QUEUES: [(&str, i64, &str); 2] = [
    ("queue_size", 512, "a queue of a disk always has 512 places"),
    ("virtio_fs_queue_size", 1024, "a queue of the shared folder always has 1024 places"),
];
/// The host's generator, by the names that it has.
const GENERATOR: [&str; 2] = ["/dev/urandom", "/dev/random"];

impl Settings<'_> {
    /// Notes what is asked of devices that they are not.
    pub(super) fn check_devices(&mut self) -> Result<(), ConfigurationError> {
        for (name, size, why) in QUEUES {
            // Virtio 1.2, 2.7.
            let Some(wanted) = self.number(Section::Hypervisor, name, 0..=32768)? else { continue };
            let setting = self.get(Section::Hypervisor, name).expect("it is set");
            if wanted > 0 && !wanted.cast_unsigned().is_power_of_two() {
                return Err(wrong(setting, name, "a power of two of at most 32768"));
            }
            if ![0, size].contains(&wanted) {
                self.note(name, why);
            }
        }
        const SOURCE: &str = "entropy_source";
        if let Some(source) = self.text(Section::Hypervisor, SOURCE)?.filter(|source| !source.is_empty()) {
            if !source.starts_with('/') || !Path::new(source).exists() {
                let setting = self.get(Section::Hypervisor, SOURCE).expect("it is set");
                return Err(wrong(setting, SOURCE, "/dev/urandom, or another device that is there"));
            }
            if !GENERATOR.contains(&source) {
                self.note(SOURCE, "a guest has its random numbers from the host's kernel: have rngd feed that");
            }
        }
        Ok(())
    }

    /// Whether disks are to do without io_uring.
    pub(super) fn disk_threads(&mut self) -> Result<bool, ConfigurationError> {
        const NAME: &str = "block_device_aio";
        match self.text(Section::Hypervisor, NAME)? {
            None | Some("" | "io_uring") => Ok(false),
            Some("threads") => Ok(true),
            Some("native") => {
                self.note(NAME, "Linux AIO needs disks without a page cache: they are read and written by io_uring");
                Ok(false)
            }
            Some(_) => {
                let setting = self.get(Section::Hypervisor, NAME).expect("it is set");
                Err(wrong(setting, NAME, "io_uring, threads or native"))
            }
        }
    }

    /// Whether disks are to be cached as the setting `name` says, which needs leave to do so.
    pub(super) fn disk_cache(&mut self, name: &str) -> Result<bool, ConfigurationError> {
        let leave = self.flag(Section::Hypervisor, "block_device_cache_set")?;
        let asks = self.flag(Section::Hypervisor, name)?;
        if asks && !leave {
            self.note(name, "block_device_cache_set is not true");
        }
        Ok(asks && leave)
    }

    /// How fast a disk may be: bits a second, and requests a second.
    pub(super) fn disk_limit(&self) -> Result<RateLimit, ConfigurationError> {
        let requests = self.number(Section::Hypervisor, "disk_rate_limiter_ops_max_rate", 0..=i64::MAX)?.unwrap_or(0);
        Ok(RateLimit {
            operations: NonZeroU64::new(requests.cast_unsigned()).map(Allowance::of_operations),
            ..self.rate("disk_rate_limiter_bw_max_rate")?
        })
    }

    /// Files and folders of the host that the guest itself sees, only to be read unless `:rw` stands behind them.
    pub(super) fn guest_mounts(&self) -> Result<Vec<HostVolume>, ConfigurationError> {
        const NAME: &str = "sandbox_bind_mounts";
        const WANTED: &str =
            "a list of files and folders that are there, by their paths from / on, no two with the same last part";
        let Some(setting) = self.get(Section::Runtime, NAME) else { return Ok(Vec::new()) };
        let refused = || wrong(setting, NAME, WANTED);
        let Value::List(values) = &setting.value else { return Err(refused()) };
        let mut mounts: Vec<HostVolume> = Vec::new();
        for value in values {
            let Value::Text(text) = value else { return Err(refused()) };
            let (path, read_only) = match text.strip_suffix(":rw") {
                Some(path) => (path, false),
                None => (text.strip_suffix(":ro").unwrap_or(text), true),
            };
            let source = Path::new(path).to_owned();
            let is_new = source
                .file_name()
                .is_some_and(|name| mounts.iter().all(|other| other.source.file_name() != Some(name)));
            if !is_new || !source.is_absolute() || !source.exists() {
                return Err(refused());
            }
            mounts.push(HostVolume { source, read_only, recursive: true });
        }
        Ok(mounts)
    }

    /// Says that the value of a hypervisor's setting changes nothing.
    fn note(&mut self, name: &str, why: &str) {
        let setting = self.get(Section::Hypervisor, name).expect("it is set");
        self.idle.push(format!("{}: {name} {} changes nothing: {why}", setting.place, setting.value));
    }
}
