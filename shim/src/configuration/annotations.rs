//! A pod's annotations `io.katacontainers.config.*`: settings of that pod alone, as far as the operator allows.
//!
//! `enable_annotations` has patterns for the names of a hypervisor's settings, `valid_file_mem_backends` for folders. What does not match is
//! refused by its name, whatever it says: a pod is described by those whom the wall is built against.

use std::collections::HashMap;
use std::path::Path;

use regex_lite::Regex;

use super::document::{Document, Place, Setting, Value};
use super::keys::{self, Fate, Section};
use super::{ConfigurationError, OURS, hypervisor};

/// What they all begin with. Others of Kata's tell the runtime what it knows already.
const PREFIX: &str = "io.katacontainers.config.";
/// Settings that annotations have another name for.
const OTHER_NAMES: [(&str, &str); 4] = [
    ("default_max_vcpus", "default_maxvcpus"),
    ("default_max_memory", "default_maxmemory"),
    ("block_device_num_queues", "num_queues"),
    ("block_device_queue_size", "queue_size"),
];
/// The settings that are the operator's alone: what pods may set, and what of the host a guest may have.
const OPERATORS: [&str; 2] = ["enable_annotations", "sandbox_bind_mounts"];
/// The settings whose values are paths of the host's, and the patterns that the values must match.
const PATHS: [(&str, &str); 2] =
    [("file_mem_backend", "valid_file_mem_backends"), ("entropy_source", "valid_entropy_sources")];

/// Enters those of `annotations` that are Kata's as settings that go before what is in `document`.
///
/// # Errors
/// [`ConfigurationError::Annotation`] for one that is not allowed, or that nobody knows.
pub(super) fn take(document: &mut Document, annotations: &HashMap<String, String>) -> Result<(), ConfigurationError> {
    let mut ours: Vec<_> = annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    // The first that is refused is the same each time.
    ours.sort();
    if ours.is_empty() {
        return Ok(());
    }
    let chosen = format!("hypervisor.{}", hypervisor(document)?.as_deref().unwrap_or(OURS));
    for (name, text) in ours {
        let refused = |reason: String| ConfigurationError::Annotation { name: name.clone(), reason };
        let rest = &name[PREFIX.len()..];
        let (kind, said) = rest.split_once('.').ok_or_else(|| refused("nobody knows it".to_owned()))?;
        let key = OTHER_NAMES.iter().find(|(other, _)| *other == said).map_or(said, |(_, key)| *key);
        let (section, place) = match kind {
            "hypervisor" => (Section::Hypervisor, chosen.clone()),
            "runtime" => (Section::Runtime, "runtime".to_owned()),
            "agent" => (Section::Agent, "agent.kata".to_owned()),
            _ => return Err(refused("nobody knows it".to_owned())),
        };
        if keys::fate(section, key) == Fate::Unknown || key.starts_with("valid_") || OPERATORS.contains(&key) {
            return Err(refused("no such setting can be made by a pod".to_owned()));
        }
        if section == Section::Hypervisor {
            if !matches(&patterns(document, &chosen, "enable_annotations"), said).map_err(&refused)? {
                return Err(refused(format!("enable_annotations of [{chosen}] does not allow {said}")));
            }
            if let Some((_, list)) = PATHS.iter().find(|(name, _)| *name == key)
                && !is_among(&patterns(document, &chosen, list), text).map_err(&refused)?
            {
                return Err(refused(format!("{list} of [{chosen}] does not allow {text}")));
            }
        }
        let setting = (place, key.to_owned());
        let text = match document.settings.get(&setting).map(|setting| &setting.value) {
            // The operator's stay.
            Some(Value::Text(former)) if key == "kernel_params" => format!("{former} {text}"),
            _ => text.clone(),
        };
        let value = Setting { value: Value::Loose(text), place: Place::Annotation(name.clone()) };
        document.settings.insert(setting, value);
    }
    Ok(())
}

/// The patterns of a list.
fn patterns(document: &Document, section: &str, name: &str) -> Vec<String> {
    let list = match document.settings.get(&(section.to_owned(), name.to_owned())).map(|setting| &setting.value) {
        Some(Value::List(values)) => values.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(|value| if let Value::Text(text) = value { Some(text.clone()) } else { None }).collect()
}

/// Whether one of these regular expressions is found in `name`, as Kata looks for it: anywhere in it.
fn matches(patterns: &[String], name: &str) -> Result<bool, String> {
    let compiled = patterns.iter().map(|pattern| {
        Regex::new(pattern)
            .map_err(|error| format!("enable_annotations has {pattern:?}, which is no regular expression: {error}"))
    });
    let compiled: Vec<Regex> = compiled.collect::<Result<_, _>>()?;
    Ok(compiled.iter().any(|pattern| pattern.is_match(name)))
}

/// Whether a path is one that these patterns of a shell's name: as it is written, without ways around.
fn is_among(patterns: &[String], path: &str) -> Result<bool, String> {
    let plain = Path::new(path).is_absolute() && !Path::new(path).components().any(|part| part.as_os_str() == "..");
    let one = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let compiled = patterns
        .iter()
        .map(|pattern| glob::Pattern::new(pattern).map_err(|error| format!("{pattern:?} is no pattern: {error}")));
    let compiled: Vec<glob::Pattern> = compiled.collect::<Result<_, _>>()?;
    Ok(plain && compiled.iter().any(|pattern| pattern.matches_with(path, one)))
}

#[cfg(test)]
mod tests {
    use super::super::Configuration;

    const FILE: &str = "[hypervisor.qemu]\nenable_annotations = ['^default_', 'kernel_params', 'file_mem_backend', '_rate$', '^block_']\n\
                        kernel_params = 'a=b'\nvalid_file_mem_backends = ['/dev/shm', '/mnt/*']\n";

    fn load(annotations: &[(&str, &str)]) -> Result<Configuration, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, FILE).unwrap();
        let named = |(name, text): &(&str, &str)| (format!("io.katacontainers.{name}"), (*text).to_owned());
        let annotations = annotations.iter().map(named).collect();
        Configuration::load(Some(&file), &annotations).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_operator_allows_a_pod_may_set() {
        let set = load(&[
            ("config.hypervisor.default_memory", "300"),
            ("config.hypervisor.default_vcpus", "1.0"),
            ("config.hypervisor.default_max_vcpus", "3"),
            ("config.hypervisor.kernel_params", "c=d"),
            ("config.hypervisor.rx_rate_limiter_max_rate", "8000"),
            ("config.hypervisor.block_device_num_queues", "3"),
            ("config.hypervisor.file_mem_backend", "/mnt/pmem"),
            ("config.agent.container_pipe_size", "65536"),
            ("config.runtime.disable_guest_seccomp", "true"),
            ("config.agent.create_container_timeout", "9"),
            ("pkg.oci.bundle_path", "/any"),
        ])
        .unwrap();
        assert_eq!((set.memory_mib, set.vcpus, set.kernel_params.as_str()), (Some(300), Some(1), "a=b c=d"));
        assert_eq!((set.max_vcpus, set.disk_queues, set.pipe_size), (Some(3), Some(3), Some(65536)));
        assert_eq!(set.limits.receive.bytes.map(|bytes| bytes.per_second.get()), Some(1000));
        assert!(set.no_seccomp && set.memory.is_some_and(|(_, folder)| folder == Some("/mnt/pmem".into())));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        let refused = |name: &str, text: &str, words: &str| {
            let error = load(&[(name, text)]).unwrap_err();
            assert!(error.contains(&format!("io.katacontainers.{name}")) && error.contains(words), "{error}");
        };
        refused(
            "config.hypervisor.kernel",
            "/etc/passwd",
            "enable_annotations of [hypervisor.qemu] does not allow kernel",
        );
        refused("config.hypervisor.enable_annotations", ".*", "no such setting");
        refused("config.hypervisor.valid_file_mem_backends", "/", "no such setting");
        refused("config.hypervisor.default_such", "1", "no such setting");
        refused("config.runtime.sandbox_bind_mounts", "/etc:rw", "no such setting");
        refused("config.agent.container_pipe_size", "4294967296", "expected a number that can be");
        refused("config.such.thing", "1", "nobody knows it");
        refused("config.such", "1", "nobody knows it");
        for path in ["/etc", "/mnt/a/b", "/mnt/../etc", "/dev/shm/../x", "dev/shm"] {
            refused("config.hypervisor.file_mem_backend", path, "does not allow");
        }
        refused("config.hypervisor.default_memory", "99999999999999999999", "expected a number");
        refused("config.hypervisor.default_memory", "-5", "expected a number that can be");
        refused("config.hypervisor.default_vcpus", "many", "expected a number");
        refused("config.hypervisor.tx_rate_limiter_max_rate", "1m", "expected a number");
        refused("config.hypervisor.network_queues", "2", "does not allow network_queues");
        refused("config.runtime.disable_guest_seccomp", "maybe", "true or false");
    }
}
