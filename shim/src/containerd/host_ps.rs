//! Clients that show a container's processes by what the host's `ps` says of them: `docker top`, `nerdctl top`.
//!
//! They run `ps` on the host and keep the lines whose process ids they are told. A guest's ids would show none there, or strangers;
//! so they are told the one process of the host that stands for the sandbox. Everybody else is told the guest's.

use oci_spec::runtime::Spec;

/// The namespace that dockerd calls its own.
const DOCKERS_NAMESPACE: &str = "moby";
/// What the annotations begin with that nerdctl gives every container, in whatever namespace.
const NERDCTLS_ANNOTATIONS: &str = "nerdctl/";

/// Whether the client that made a container in `namespace` is one of those.
pub(super) fn asks_the_host(namespace: &str, spec: &Spec) -> bool {
    let mut annotations = spec.annotations().iter().flatten();
    namespace == DOCKERS_NAMESPACE || annotations.any(|(key, _)| key.starts_with(NERDCTLS_ANNOTATIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_and_nerdctl_are_known_by_what_they_leave() {
        let plain = Spec::default();
        let text = r#"{"ociVersion":"1.0.2","annotations":{"nerdctl/name":"a","io.example":"b"}}"#;
        let nerdctl: Spec = serde_json::from_str(text).unwrap();
        assert!(asks_the_host("moby", &plain) && asks_the_host("default", &nerdctl));
        assert!(!asks_the_host("default", &plain));
    }
}
