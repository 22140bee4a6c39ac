//! A network in user space: passt, which makes of the guest's frames ordinary connections of a process on the host.
//!
//! It needs the host's network and nothing else, so it is a child of the server's, and not of the VMM's. It ends when the VMM closes
//! its end of the socket: whatever dies, it does not stay.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};
use tatami_vmm::{NicConfig, NicKind, NicLimits};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

const PROGRAM: &str = "passt";
/// The guest's address: of a range that no network routes (RFC 7335), so that it is in nobody's way.
pub const ADDRESS: &str = "192.0.0.2";
/// Its prefix's length, and the same as a mask.
pub const PREFIX: u8 = 29;
const MASK: &str = "255.255.255.248";
/// Where the guest sends what is not for its own network.
pub const GATEWAY: &str = "192.0.0.1";
/// Where the guest reaches the host's name servers.
pub const NAME_SERVER: &str = "192.0.0.3";
/// The largest packet, in bytes: nothing needs to be cut where nothing but memory lies between.
pub const MTU: u32 = 65520;
/// How long it may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How much of what it says is kept, in bytes.
const WORDS_LIMIT: u64 = 4096;

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The host's address; none: all of them.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// UDP rather than TCP.
    pub udp: bool,
}

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// No such program.
    #[error("{PROGRAM} is not installed: install it (Debian's package {PROGRAM}), or use --net tap:NAME")]
    Missing,
    /// It does not start.
    #[error("cannot start {PROGRAM}: {0}")]
    Start(#[from] io::Error),
    /// It ended at once.
    #[error("{PROGRAM} does not start: {0}")]
    Ended(String),
    /// It says nothing.
    #[error("{PROGRAM} did not start within {} s", START_LIMIT.as_secs())]
    Silent,
}

/// A running passt. Dropping it ends it.
#[derive(Debug)]
pub struct Passt(Child);

/// The slot that it fits into.
pub const SLOT: NicConfig = NicConfig { kind: NicKind::Stream, queue_pairs: 1, mtu: None, limits: NicLimits::NONE };

impl Passt {
    /// Whether the program is there.
    ///
    /// # Errors
    /// [`PasstError::Missing`].
    pub fn find() -> Result<(), PasstError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        match std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()) {
            true => Ok(()),
            false => Err(PasstError::Missing),
        }
    }

    /// Starts one; the socket is the VMM's end. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`PasstError`], with passt's own words.
    pub async fn start(published: &[Published]) -> Result<(Passt, OwnedFd), PasstError> {
        let (ours, its) = UnixStream::pair()?;
        let mut command = Command::new(PROGRAM);
        command.args(arguments(its.as_raw_fd(), published));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A terminal's Ctrl-C is for the container.
        command.process_group(0);
        // Inherited by this one child: no other process is started meanwhile, as this thread starts them all.
        rustix::io::fcntl_setfd(&its, FdFlags::empty()).map_err(io::Error::from)?;
        let child = command.spawn();
        drop(its);
        let mut child = child.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Start(error),
        })?;
        // It writes its process id when it is ready, and is silent otherwise.
        let ready = words(child.stdout.take(), 1);
        match tokio::time::timeout(START_LIMIT, ready).await {
            Err(_) => Err(PasstError::Silent),
            Ok(id) if id.is_empty() => {
                // Why it ends is the last thing that it says.
                let said = words(child.stderr.take(), WORDS_LIMIT).await;
                Err(PasstError::Ended(said.lines().last().unwrap_or("it does not say why").to_owned()))
            }
            Ok(_) => {
                if let Some(mut said) = child.stderr.take() {
                    // Read to its end, or passt would have to wait.
                    tokio::spawn(async move { tokio::io::copy(&mut said, &mut tokio::io::sink()).await });
                }
                Ok((Passt(child), ours.into()))
            }
        }
    }

    /// Ends it, and returns when it is gone.
    pub async fn end(mut self) {
        if let Err(error) = self.0.kill().await {
            log::warn!("{PROGRAM} cannot be ended: {error}");
        }
    }
}

/// What somebody says, at most `limit` bytes of it.
async fn words(source: Option<impl AsyncRead + Unpin>, limit: u64) -> String {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        // What could be read is all that there is to tell.
        let _ = source.take(limit).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

fn arguments(socket: i32, published: &[Published]) -> Vec<String> {
    let mut words: Vec<String> = [
        "--foreground",
        "--quiet",
        "--ipv4-only",
        "--no-dhcp",
        // The host's own loopback is not the guest's to reach.
        "--no-map-gw",
    ]
    .map(str::to_owned)
    .into();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    option("--fd", socket.to_string());
    option("--pid", "/proc/self/fd/1".to_owned());
    option("--mtu", MTU.to_string());
    option("--address", ADDRESS.to_owned());
    option("--netmask", MASK.to_owned());
    option("--gateway", GATEWAY.to_owned());
    option("--dns-forward", NAME_SERVER.to_owned());
    for (name, udp) in [("--tcp-ports", false), ("--udp-ports", true)] {
        let ports = || published.iter().filter(|port| port.udp == udp);
        if ports().next().is_none() {
            option(name, "none".to_owned());
        }
        for Published { address, host, guest, .. } in ports() {
            let address = address.map(|address| format!("{address}/")).unwrap_or_default();
            option(name, format!("{address}{host}:{guest}"));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_as_passt_has_them() {
        let port = |address: Option<&str>, host, guest, udp| {
            let address = address.map(|address| address.parse().unwrap());
            Published { address, host, guest, udp }
        };
        let said = arguments(7, &[port(None, 8080, 80, false), port(Some("127.0.0.1"), 53, 5353, true)]).join(" ");
        assert!(said.contains("--fd 7 ") && said.contains("--tcp-ports 8080:80"), "{said}");
        assert!(said.ends_with("--udp-ports 127.0.0.1/53:5353"), "{said}");
        assert!(arguments(7, &[]).join(" ").ends_with("--tcp-ports none --udp-ports none"));
    }
}
