//! What a cluster is given, as `kubectl apply` takes it: a RuntimeClass, and a DaemonSet that installs on its nodes.

const RUNTIME_CLASS: &str = include_str!("runtime-class.yaml");
const DAEMON_SET: &str = include_str!("daemon-set.yaml");

/// Both, for a runtime of this name and an image that holds the binary.
pub(super) fn text(handler: &str, image: &str) -> String {
    format!("{RUNTIME_CLASS}---\n{DAEMON_SET}").replace("@HANDLER@", handler).replace("@IMAGE@", image)
}
