//! Serves the sandbox's server: the control channel on one listener, stdio streams on the other.

use std::io;
use std::sync::Arc;

use tatami_protocol::agent_ttrpc::create_agent;
use tatami_protocol::stream::{self, Kind, StreamHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::r#async::transport::Listener as ControlListener;

use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::service::{BootTimes, Service};
use crate::transport::{Incoming, Listener, Stream};
use crate::{console, forward, kmsg, names, process};

/// What happens once the containers are ended and the server has its answer.
pub type Shutdown = Box<dyn Fn() + Send + Sync>;

/// The agent's server, accepting connections since it was started.
pub struct Server {
    sandbox: Arc<Sandbox>,
    control: ttrpc::r#async::Server,
    streams: Listener,
}

impl Server {
    /// Starts reaping children and answering on `control`.
    ///
    /// # Errors
    /// When children cannot be watched or the listener is unusable.
    pub async fn start(
        sandbox: Arc<Sandbox>,
        control: Listener,
        streams: Listener,
        started_ms: f64,
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        tokio::spawn(sandbox.launcher.reaper.clone().run(Reaper::subscribe()?));
        let service = Service::new(Arc::clone(&sandbox), BootTimes::ready_now(started_ms), shutdown);
        let mut control = ttrpc::r#async::Server::new()
            .add_listener(ControlListener::new(Incoming(control)))
            .register_service(create_agent(Arc::new(service)));
        control.start().await.map_err(io::Error::other)?;
        Ok(Self { sandbox, control, streams })
    }

    /// Takes stdio streams, as long as the agent lives.
    ///
    /// # Errors
    /// When the listener is unusable.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            match self.streams.accept().await {
                Ok(stream) => drop(tokio::spawn(attach(Arc::clone(&self.sandbox), stream))),
                Err(cause) => {
                    // What a client did to one connection is no reason to refuse the next.
                    log::warn!("a stdio stream was lost: {cause}");
                    if cause.raw_os_error() == Some(libc::EBADF) {
                        self.control.disconnect().await;
                        return Err(cause);
                    }
                }
            }
        }
    }
}

/// Finds out whom a new stream belongs to.
async fn attach(sandbox: Arc<Sandbox>, mut stream: Stream) {
    let result = async {
        let header = read_header(&mut stream).await?;
        match header.kind.enum_value() {
            Ok(Kind::FORWARD) => return forward::serve(stream, header.port).await,
            Ok(Kind::LOG) => return kmsg::serve(stream).await,
            Ok(Kind::NAMES) => return names::serve(stream).await,
            Ok(Kind::CONSOLE) => {
                let size = process::size(header.rows, header.columns);
                return console::serve(stream, sandbox.has_console(), size).await;
            }
            _ => {}
        }
        let Some((process, kind)) = sandbox.awaiting(&header) else {
            log::debug!("refused a stream for {}/{}", header.container_id, header.exec_id);
            return stream.write_all(&[stream::REFUSED]).await;
        };
        stream.write_all(&[stream::ACCEPTED]).await?;
        process.attach(kind, stream);
        Ok(())
    };
    if let Err(cause) = result.await {
        log::warn!("a stream did not start, or broke off: {cause}");
    }
}

async fn read_header(stream: &mut Stream) -> io::Result<StreamHeader> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut body = vec![0; stream::body_length(prefix).map_err(io::Error::other)?];
    stream.read_exact(&mut body).await?;
    stream::decode(&body).map_err(io::Error::other)
}
