//! A pod without a container of its own, as containerd's Sandbox API starts it: what is known of it, and what holds it together in
//! the guest.
//!
//! Its containers share namespaces that somebody has to be in: a container that the client does not know, with the agent's own
//! program as its only process and nothing else to see.

use std::collections::HashMap;

use protobuf::well_known_types::any::Any;
use serde_json::json;
use tatami_protocol::agent::storage::Kind;
use tatami_protocol::agent::{CreateContainerRequest, Stdio, Storage, TmpfsStorage};

use super::message::fields;

/// What the container is called in the guest: no client may use a name that begins with `_`.
pub(super) const ID: &str = "_pod";
/// Where its root is mounted.
const ROOT: &str = "/run/tatami/storages/_pod/root";
/// Where the agent puts its own program.
const AGENT: &str = "/run/tatami/agent";

/// What a client says of a pod: the part of CRI's `PodSandboxConfig` that the guest has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pod {
    hostname: String,
    sysctls: HashMap<String, String>,
}

impl Pod {
    /// As CRI describes it. Whatever else `options` hold describes nothing.
    ///
    /// # Errors
    /// When they are malformed.
    pub(super) fn of(options: &Any) -> protobuf::Result<Pod> {
        const HOSTNAME: u32 = 2;
        const LINUX: u32 = 8;
        const SYSCTLS: u32 = 3;
        let mut pod = Pod::default();
        if !options.type_url.ends_with("runtime.v1.PodSandboxConfig") {
            return Ok(pod);
        }
        fields(&options.value, |number, value| {
            match number {
                HOSTNAME => pod.hostname = text(value),
                LINUX => fields(value, |number, value| match number {
                    // A map is a list of pairs: the key is field 1, the value field 2.
                    SYSCTLS => {
                        let (mut key, mut content) = (String::new(), String::new());
                        fields(value, |number, value| {
                            *(if number == 1 { &mut key } else { &mut content }) = text(value);
                            Ok(())
                        })?;
                        pod.sysctls.insert(key, content);
                        Ok(())
                    }
                    _ => Ok(()),
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(pod)
    }

    /// The container that holds it together.
    pub(super) fn holder(&self) -> CreateContainerRequest {
        let namespaces: Vec<_> = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind })).into();
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/agent", "hold"],
                "cwd": "/",
                "user": { "uid": 0, "gid": 0 },
                "noNewPrivileges": true,
                "capabilities": {},
            },
            "root": { "path": ROOT, "readonly": true },
            "hostname": self.hostname,
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
                { "destination": "/agent", "type": "bind", "source": AGENT, "options": ["bind", "ro"] },
            ],
            "linux": { "namespaces": namespaces, "sysctl": self.sysctls },
        });
        let root = Storage {
            name: "root".to_owned(),
            kind: Some(Kind::Tmpfs(TmpfsStorage { options: vec!["size=64k".to_owned()], ..Default::default() })),
            ..Default::default()
        };
        CreateContainerRequest {
            container_id: ID.to_owned(),
            spec_json: spec.to_string().into_bytes(),
            stdio: Some(Stdio::default()).into(),
            storages: vec![root],
            ..Default::default()
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text or message of a field with a small number.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn options(value: Vec<u8>) -> Any {
        Any { type_url: "runtime.v1.PodSandboxConfig".to_owned(), value, ..Default::default() }
    }

    #[test]
    fn a_pod_has_the_name_and_settings_that_cri_gives_it() {
        let sysctl = field(3, &[field(1, b"kernel.shm_rmid_forced"), field(2, b"1")].concat());
        let pod = Pod::of(&options([field(1, b"\x0a\x01x"), field(2, b"web"), field(8, &sysctl)].concat())).unwrap();
        assert_eq!(pod.hostname, "web");
        assert_eq!(pod.sysctls["kernel.shm_rmid_forced"], "1");
        let spec: oci_spec::runtime::Spec = serde_json::from_slice(&pod.holder().spec_json).unwrap();
        assert_eq!(spec.hostname().as_deref(), Some("web"));
    }

    #[test]
    fn options_of_another_kind_say_nothing_and_broken_ones_are_refused() {
        let other = Any { type_url: "something.else".to_owned(), value: vec![0xff], ..Default::default() };
        assert_eq!(Pod::of(&other).unwrap(), Pod::default());
        assert!(Pod::of(&options(vec![2 << 3 | 2, 9, b'x'])).is_err());
    }
}
