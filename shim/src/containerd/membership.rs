//! Which sandbox a container belongs to: its own, its pod's, or another container's whose network it is to be in.
//!
//! A network is a machine's, so who shares one shares the machine: this is Docker's `--network container:NAME`, which names the namespace
//! of the process that stands for that container, its sandbox's server.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{ShutdownRequest, StateRequest};
use oci_spec::runtime::Spec;

use super::address::Address;
use super::bundle;
use super::delete::wait;
use super::network::Namespace;
use crate::detached::client::{Client, ClientError};
use crate::sandbox::folder::{self, Found, Places};

/// How long a server may take to say which containers it has, and to take its address away when it has none.
const ANSWER: Duration = Duration::from_millis(500);
const LEAVE: Duration = Duration::from_millis(500);

/// The processes whose namespaces the container of `spec` is to share.
pub(crate) fn shared_with(spec: &Spec) -> Vec<i32> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().filter_map(|namespace| process_in(namespace.path().as_deref()?)).collect()
}

/// The process whose network it is to share.
fn network_of(spec: &Spec) -> Option<i32> {
    match Namespace::of(spec) {
        Namespace::Given(path) => process_in(&path),
        Namespace::Host | Namespace::Own => None,
    }
}

/// The number of the process that a path like `/proc/7/ns/net` is about.
fn process_in(path: &Path) -> Option<i32> {
    path.strip_prefix("/proc").ok()?.iter().next()?.to_str()?.parse().ok()
}

/// What the client calls the sandbox of its container `id`, in `namespace`: `id` if that is a sandbox of its own.
pub(super) fn sandbox_of(places: &Places, namespace: &str, id: &str, spec: &Spec) -> String {
    let pod = bundle::sandbox_of(id, spec);
    if pod != id {
        return pod.to_owned();
    }
    let Some(shared) = network_of(spec) else { return id.to_owned() };
    let all = folder::all(places).unwrap_or_else(|error| {
        log::warn!("{error}");
        Vec::new()
    });
    let of_server = |found: &Found| found.server() == shared && found.is_held();
    let client = all.iter().find(|found| of_server(found)).and_then(Found::client);
    client.filter(|client| client.namespace == namespace).map_or_else(|| id.to_owned(), |client| client.id)
}

/// Whether the server at `address` has lost its container `id`, and goes on for others that have joined it. One that has none at all is
/// asked to end; one that does not answer is nobody's.
pub(super) fn is_left_to_others(address: &Address, id: &str) -> bool {
    let asked = async {
        let client = Client::at(address.socket(), id).await?;
        let (task, id) = client.task();
        let limit = || ttrpc::context::with_duration(ANSWER);
        task.shutdown(limit(), &ShutdownRequest { id: id.to_owned(), ..Default::default() }).await?;
        Ok(task.state(limit(), &StateRequest { id: id.to_owned(), ..Default::default() }).await.map(drop)?)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer: Result<(), ClientError> = match runtime {
        Ok(runtime) => runtime.block_on(asked),
        Err(error) => Err(ClientError::Lost(error.to_string())),
    };
    // What ends takes its address away first.
    answer.is_err_and(|error| error.is_gone()) && !wait(LEAVE, || !address.answers())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::folder::{Client, Folder, Lot};

    fn spec(namespaces: &str) -> Spec {
        let json = format!(r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{namespaces}]}}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn namespaces_name_processes() {
        let all = spec(
            r#"{"type":"pid","path":"/proc/7/ns/pid"},{"type":"network","path":"/proc/8/ns/net"},
               {"type":"ipc"},{"type":"uts","path":"/run/netns/x"},{"type":"mount","path":"/proc/self/ns/mnt"}"#,
        );
        assert_eq!(shared_with(&all), [7, 8]);
        assert_eq!(network_of(&all), Some(8));
    }

    #[test]
    fn who_shares_a_network_shares_the_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        // Its server is this process.
        let folder = Folder::create(&places, Lot::choose(&places).unwrap(), None).unwrap();
        folder.note_client(&Client { namespace: "moby".to_owned(), id: "first".to_owned() }).unwrap();
        let of = |namespace: &str, path: &str| {
            sandbox_of(&places, namespace, "second", &spec(&format!(r#"{{"type":"network","path":"{path}"}}"#)))
        };
        let its = format!("/proc/{}/ns/net", std::process::id());
        assert_eq!(of("moby", &its), "first");
        assert_eq!(of("k8s.io", &its), "second");
        assert_eq!(of("moby", "/proc/1/ns/net"), "second");
        assert_eq!(of("moby", "/run/netns/x"), "second");
        drop(folder);
        assert_eq!(of("moby", &its), "second");
    }
}
