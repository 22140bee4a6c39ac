//! CRI as the kubelet has it: one call at a time over containerd's socket.
//!
//! Knows the calls; nothing of what pods are made for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Its messages.
pub use k8s_cri::v1 as api;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// A client of CRI.
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
}

impl Cri {
    /// One of the server at `socket`, which need not be there yet.
    ///
    /// # Panics
    /// When the system has no runtime to give.
    pub fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, socket: socket.to_owned() }
    }

    /// Does what `call` says with a client. Each has a connection of its own: between two of them the server may be another.
    ///
    /// # Errors
    /// What the server says: its code and its words.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, String> {
        let socket = self.socket.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(PATIENCE);
        let answer = self
            .runtime
            .block_on(async { call(RuntimeServiceClient::new(endpoint.connect_with_connector_lazy(connect))).await });
        answer.map(tonic::Response::into_inner).map_err(|status| format!("{:?}: {}", status.code(), status.message()))
    }
}
