//! The server's side of the control channel against an agent that answers, refuses, or goes away.
//!
//! The agent here is a stand-in behind the same socket convention; the real one is tested with real guests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tatami_protocol::agent::{
    CreateContainerRequest, HelloRequest, HelloResponse, ProcessRequest, StartProcessResponse, WaitResponse,
};
use tatami_protocol::agent_ttrpc::{Agent as Service, create_agent};
use tatami_shim::sandbox::agent::{Agent, AgentError};
use tatami_shim::sandbox::door::Door;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::Code;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// Greets, refuses to start anything, never stops waiting, and knows no other call.
struct StandIn;

#[async_trait::async_trait]
impl Service for StandIn {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        assert!(request.host_time_ns > 1_600_000_000_000_000_000);
        Ok(HelloResponse { agent_version: "1".into(), ..Default::default() })
    }

    async fn start_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<StartProcessResponse> {
        Err(ttrpc::error::get_rpc_status(Code::NOT_FOUND, format!("exec: {}", request.container_id)))
    }

    async fn wait_process(&self, _: &TtrpcContext, _: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Ok(WaitResponse::default())
    }
}

/// Answers one connection as the VMM would, and hands it on to the service until `gone` says that the guest is gone.
async fn guest(listener: UnixListener, folder: &Path, gone: tokio::sync::oneshot::Receiver<()>) {
    let path = folder.join("agent.sock");
    let mut server = Server::new()
        .bind(&format!("unix://{}", path.display()))
        .unwrap()
        .register_service(create_agent(Arc::new(StandIn)));
    server.start().await.unwrap();
    let (mut outer, _) = listener.accept().await.unwrap();
    let mut line = [0; "CONNECT 1024\n".len()];
    outer.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"CONNECT 1024\n");
    outer.write_all(b"OK 1073741824\n").await.unwrap();
    let mut inner = UnixStream::connect(&path).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut outer, &mut inner) => {}
        _ = gone => {}
    }
}

/// Runs `body` with an agent; calling what it gets makes the guest go away.
fn with_agent<F: Future<Output = ()>>(body: impl FnOnce(Agent, tokio::sync::oneshot::Sender<()>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (door, listener) = Door::create(dir.path()).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let (leave, gone) = tokio::sync::oneshot::channel();
        let test = async { body(Agent::connect(door, None).await.unwrap(), leave).await };
        tokio::join!(guest(listener, dir.path(), gone), test);
    });
}

#[test]
fn answers_and_refusals_arrive_as_such() {
    with_agent(async |agent, leave| {
        assert_eq!(agent.hello(false, false).await.unwrap().agent_version, "1");
        let error = agent.start("c1", "").await.unwrap_err();
        assert_eq!(error.code(), Some(Code::NOT_FOUND));
        assert_eq!(error.to_string(), "exec: c1");
        let request = CreateContainerRequest { container_id: "c1".to_owned(), ..Default::default() };
        let error = agent.create_container(request).await.unwrap_err();
        assert!(matches!(error, AgentError::Refused { call: "CreateContainer", .. }), "{error:?}");
        leave.send(()).unwrap();
    });
}

#[test]
fn a_guest_that_goes_away_ends_the_calls_that_wait() {
    with_agent(async |agent, leave| {
        let waiting = agent.clone();
        let (waited, ()) = tokio::join!(waiting.wait("c1", ""), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            leave.send(()).unwrap();
        });
        assert!(matches!(waited.unwrap_err(), AgentError::Lost { call: "WaitProcess", .. }));
        let later = agent.start("c1", "").await.unwrap_err();
        assert!(matches!(later, AgentError::Lost { call: "StartProcess", .. }), "{later:?}");
    });
}
