//! What is between the loopback interfaces of a network namespace on the host and of the guest: connections to ports of the pod's, and
//! containers' questions to Docker's resolver.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use tokio::net::{TcpListener, TcpStream};

use crate::network::catcher::Catcher;
use crate::network::names;
use crate::sandbox::guest::Guest;

/// Carries whatever connects to 127.0.0.1 in the network namespace that this thread is in to the guest's.
///
/// # Errors
/// When the kernel cannot catch connections.
pub(super) fn forward(guest: Guest) -> io::Result<()> {
    let catcher = Catcher::start()?;
    let listener = TcpListener::from_std(catcher.listener.try_clone()?)?;
    tokio::spawn(async move {
        let _catcher = catcher;
        loop {
            match listener.accept().await {
                Ok((connection, _)) => drop(tokio::spawn(carry(connection, guest.clone()))),
                Err(error) => {
                    log::warn!("a connection to the pod's loopback is lost: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(())
}

async fn carry(mut connection: TcpStream, guest: Guest) {
    let carried = async {
        let port = connection.local_addr()?.port();
        let mut stream = guest.call(guest.agent().forward(port)).await.map_err(io::Error::other)?;
        tokio::io::copy_bidirectional(&mut connection, &mut stream).await
    };
    if let Err(error) = carried.await {
        log::debug!("a connection to the pod's loopback: {error}");
        // Whoever connected is to see that nobody listens, and not the end of what somebody said.
        let _ = rustix::net::sockopt::set_socket_linger(&connection, Some(std::time::Duration::ZERO));
    }
}

/// The host's file that a container has as its `/etc/resolv.conf`, the last one where there are several, which lies over the others.
pub(super) fn resolv_conf(spec: &Spec) -> Option<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    let mut told = mounts.filter(|mount| mount.destination().as_os_str() == "/etc/resolv.conf");
    told.next_back()?.source().clone()
}

/// Whether the file says that the resolver is Docker's. It is written between a container's creation and its start.
pub(super) fn asks_docker(resolv_conf: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(resolv_conf) else { return false };
    let resolver = names::RESOLVER.to_string();
    let mut words = text.lines().map(str::split_whitespace);
    words.any(|mut words| words.next() == Some("nameserver") && words.next() == Some(&resolver))
}

/// Has the guest's questions to Docker's resolver asked here.
pub(super) fn answer_names(guest: Guest) {
    tokio::spawn(async move {
        let asked = async {
            let stream = guest.call(guest.agent().names()).await.map_err(io::Error::other)?;
            names::serve(stream).await
        };
        if let Err(error) = asked.await {
            log::debug!("questions to Docker's resolver: {error}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_is_asked_only_where_a_container_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let asks = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let mounts = format!(r#"[{{"destination":"/etc/resolv.conf","source":"{}"}}]"#, file.display());
            let spec = serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","mounts":{mounts}}}"#)).unwrap();
            asks_docker(&resolv_conf(&spec).unwrap())
        };
        assert!(asks("# Docker's\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(!asks("nameserver 10.0.2.3\n"));
        assert!(!asks("# nameserver 127.0.0.11\n"));
        assert!(resolv_conf(&serde_json::from_str(r#"{"ociVersion":"1.0.2"}"#).unwrap()).is_none());
    }
}
