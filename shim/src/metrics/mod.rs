//! `tatami metrics`: what all sandboxes of this host use, in the form that Prometheus reads, once or for whoever asks over HTTP; and
//! `tatami top` ([`top`]), for people; and of one volume ([`volume`]).
//!
//! There is no daemon to ask: sandboxes are found by their folders ([`node`]). What their processes use is read from the host's `/proc`
//! ([`process`]), and what goes on in their guests their servers are asked for ([`guest`]), which have it from the agents. Nothing is
//! kept between two looks.

mod exposition;
mod guest;
mod http;
mod node;
mod process;
pub mod top;
pub mod volume;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

use crate::logging::complain;
use crate::privilege::{self, NotRoot};
use crate::sandbox::folder::{FolderError, Places};

/// The command line of `tatami metrics`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  tatami metrics
  tatami metrics --listen 127.0.0.1:9090 &
  curl http://127.0.0.1:9090/metrics
  tatami metrics --listen unix:/run/tatami-metrics.sock")]
pub struct MetricsArguments {
    /// Serve them at /metrics over HTTP, at an IP address and port or at unix:PATH; whoever can connect can read them
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Address>,
}

/// Where to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Address, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err("a path is missing behind unix:"),
            Some(path) => Ok(Address::Unix(path.into())),
            None => text.parse().map(Address::Tcp).map_err(|_| "127.0.0.1:9090, [::1]:9090 or unix:PATH is expected"),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "http://{address}/metrics"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
enum MetricsError {
    #[error(transparent)]
    NotRoot(#[from] NotRoot),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("cannot listen at {address}: {source}")]
    Listen { address: Address, source: io::Error },
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("no sandbox that runs has mounted the volume {}", .0.display())]
    NoVolume(PathBuf),
    /// Nobody reads what is written.
    #[error("cannot write the metrics: {0}")]
    Output(#[source] io::Error),
}

/// Prints the metrics, or serves them until it is told to end.
pub fn main(arguments: MetricsArguments) -> ExitCode {
    end(as_root(|places| run(places, arguments)))
}

/// Does `work` with this host's sandboxes.
fn as_root<W: Future<Output = Result<(), MetricsError>>>(work: impl FnOnce(Places) -> W) -> Result<(), MetricsError> {
    privilege::root()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| MetricsError::System { action: "start the runtime", source })?;
    runtime.block_on(work(Places::from_environment()))
}

/// Says what went wrong, if anything did.
fn end(result: Result<(), MetricsError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(MetricsError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(places: Places, arguments: MetricsArguments) -> Result<(), MetricsError> {
    match arguments.listen {
        Some(address) => serve(places, address).await,
        None => {
            let page = node::page(&places).await?;
            let mut out = io::stdout();
            out.write_all(page.as_bytes()).and_then(|()| out.flush()).map_err(MetricsError::Output)
        }
    }
}

/// The signals that ask for an end.
fn ends() -> Result<(Signal, Signal), MetricsError> {
    let caught = |kind| signal(kind).map_err(|source| MetricsError::System { action: "catch signals", source });
    Ok((caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?))
}

/// Serves until a signal comes.
async fn serve(places: Places, address: Address) -> Result<(), MetricsError> {
    let places = Arc::new(Mutex::new(places));
    let page = || {
        let places = places.clone();
        async move {
            // One look at a time, however many ask.
            let places = places.lock().await;
            node::page(&places).await.inspect_err(|error| log::error!("{error}")).ok()
        }
    };
    let (mut terminate, mut interrupt) = ends()?;
    let refused = |source| MetricsError::Listen { address: address.clone(), source };
    let serving = async {
        match &address {
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at).await.map_err(refused)?;
                // The port may have been left to the kernel.
                announce(&Address::Tcp(listener.local_addr().map_err(refused)?));
                http::serve(listener, exposition::CONTENT_TYPE, page).await;
            }
            Address::Unix(path) => {
                let listener = bind(path).map_err(refused)?;
                announce(&address);
                http::serve(listener, exposition::CONTENT_TYPE, page).await;
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = serving => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if let (Address::Unix(path), Ok(())) = (&address, &result) {
        // It may have been removed already.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn announce(address: &Address) {
    // Where nobody can be told, nobody is.
    let _ = writeln!(io::stdout(), "The metrics are at {address}");
}

/// Listens at `path`, in place of one that listened there and was killed.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            match UnixStream::connect(path) {
                Err(refusal) if is_socket && refusal.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)
                }
                _ => Err(error),
            }
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ips_with_ports_or_paths() {
        assert_eq!("127.0.0.1:9090".parse(), Ok(Address::Tcp(([127, 0, 0, 1], 9090).into())));
        assert!(matches!("[::1]:0".parse(), Ok(Address::Tcp(address)) if address.is_ipv6()));
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        for wrong in ["", "unix:", "9090", "127.0.0.1", "localhost:9090", ":9090", "/run/x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let first = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
