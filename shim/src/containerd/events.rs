//! Events on their way to containerd: in order, each once, and never in anybody's way.
//!
//! Events wait in a bounded queue; one task forwards them over ttrpc and goes on trying while containerd is away. Knows
//! what the events are called, not when they are due.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::EventsClient;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::events::{Happening, announce};
use crate::sandbox::folder::Places;

/// Events that wait for a containerd that is away. Beyond that the oldest are given up.
const CAPACITY: usize = 4096;
/// How long containerd may take for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before the next attempt to reach it: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    Create,
    Start,
    Exit,
    Delete,
    Oom,
    ExecAdded,
    ExecStarted,
    Paused,
    Resumed,
}

impl Topic {
    /// The name it is published under, and the type of its message.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Topic::Create => ("/tasks/create", "containerd.events.TaskCreate"),
            Topic::Start => ("/tasks/start", "containerd.events.TaskStart"),
            Topic::Exit => ("/tasks/exit", "containerd.events.TaskExit"),
            Topic::Delete => ("/tasks/delete", "containerd.events.TaskDelete"),
            Topic::Oom => ("/tasks/oom", "containerd.events.TaskOOM"),
            Topic::ExecAdded => ("/tasks/exec-added", "containerd.events.TaskExecAdded"),
            Topic::ExecStarted => ("/tasks/exec-started", "containerd.events.TaskExecStarted"),
            Topic::Paused => ("/tasks/paused", "containerd.events.TaskPaused"),
            Topic::Resumed => ("/tasks/resumed", "containerd.events.TaskResumed"),
        }
    }
}

/// Where events are handed in. Cloning is cheap; clones share the queue.
#[derive(Clone)]
pub(crate) struct Events {
    namespace: String,
    /// Beside it is who listens on this host.
    state: Arc<Path>,
    /// None where there is no containerd that would take them.
    queue: Option<Arc<Queue>>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Envelope>>,
    changed: Notify,
}

impl Events {
    /// Of containers in `namespace`, to be forwarded to the containerd at `address`; without an address to nobody. Call it
    /// inside a runtime.
    pub(crate) fn start(namespace: &str, address: &str) -> Events {
        let state = Places::from_environment().state.into();
        let path = address.strip_prefix("unix://").unwrap_or(address).to_owned();
        let queue = (!path.is_empty()).then(Arc::default);
        if let Some(queue) = &queue {
            tokio::spawn(forward(path, Arc::clone(queue)));
        }
        Events { namespace: namespace.to_owned(), state, queue }
    }

    /// Hands in an event that happens now.
    pub(super) fn publish(&self, topic: Topic, event: &impl Message) {
        let (name, type_name) = topic.names();
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return log::error!("the event {name} cannot be encoded: {error}"),
        };
        if let Some(happening) = self.happening(topic, &value) {
            let Happening { container, what, exec, status, .. } = &happening;
            let status = status.map(|status| format!(" status {status}")).unwrap_or_default();
            match exec {
                // Of those there may be one every few seconds: probes.
                Some(exec) => log::debug!("container {container}: {what} {exec}{status}"),
                None => log::info!("container {container}: {what}{status}"),
            }
            announce(&self.state, &happening);
        }
        let Some(queue) = &self.queue else { return };
        let event = Any { type_url: type_name.to_owned(), value, ..Default::default() };
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()).into(),
            namespace: self.namespace.clone(),
            topic: name.to_owned(),
            event: Some(event).into(),
            ..Default::default()
        };
        let mut waiting = queue.lock();
        if waiting.len() == CAPACITY {
            let lost = waiting.pop_front();
            log::warn!("containerd is away: the event {} is given up", lost.unwrap_or_default().topic);
        }
        waiting.push_back(envelope);
        drop(waiting);
        queue.changed.notify_waiters();
    }

    /// The event for those who listen on this host. All messages call what they are about by the same names.
    fn happening(&self, topic: Topic, event: &[u8]) -> Option<Happening> {
        let (exec, status) = match topic {
            Topic::Exit => {
                let exit = TaskExit::parse_from_bytes(event).ok()?;
                // A container's first process has the container's id.
                ((exit.id != exit.container_id).then_some(exit.id), Some(exit.exit_status))
            }
            Topic::ExecAdded => (TaskExecAdded::parse_from_bytes(event).ok().map(|event| event.exec_id), None),
            Topic::ExecStarted => (TaskExecStarted::parse_from_bytes(event).ok().map(|event| event.exec_id), None),
            _ => (None, None),
        };
        Some(Happening {
            at: SystemTime::now(),
            what: topic.names().0.trim_start_matches("/tasks/").to_owned(),
            namespace: self.namespace.clone(),
            server: std::process::id(),
            // The first field of all of them.
            container: TaskOOM::parse_from_bytes(event).ok()?.container_id,
            exec: exec.filter(|exec| !exec.is_empty()),
            status,
        })
    }

    /// Returns when all events are delivered, or `limit` has passed.
    pub(super) async fn delivered(&self, limit: Duration) {
        let Some(queue) = &self.queue else { return };
        let all = async {
            loop {
                let changed = queue.changed.notified();
                if queue.lock().is_empty() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            log::warn!("{} events are given up: containerd is away", queue.lock().len());
        }
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Envelope>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest event, which stays in the queue until it is delivered.
    async fn first(&self) -> Envelope {
        loop {
            let changed = self.changed.notified();
            if let Some(envelope) = self.lock().front() {
                return envelope.clone();
            }
            changed.await;
        }
    }

    /// Takes `delivered` out, if it was not given up meanwhile.
    fn remove(&self, delivered: &Envelope) {
        let mut waiting = self.lock();
        if waiting.front() == Some(delivered) {
            waiting.pop_front();
        }
        drop(waiting);
        self.changed.notify_waiters();
    }
}

/// Forwards events as long as the process lives.
async fn forward(path: String, queue: Arc<Queue>) {
    let mut connection: Option<EventsClient> = None;
    let mut pause = PAUSES.0;
    loop {
        let envelope = queue.first().await;
        let client = match connection.take() {
            Some(client) => client,
            None => match UnixStream::connect(&path).await {
                Ok(stream) => EventsClient::new(Client::new(Socket::new(stream))),
                Err(error) => {
                    log::debug!("containerd cannot be reached at {path}: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
            },
        };
        let request = ForwardRequest { envelope: Some(envelope.clone()).into(), ..Default::default() };
        let context = ttrpc::context::with_duration(PATIENCE);
        match client.forward(context, &request).await {
            Ok(_) => connection = Some(client),
            // It was heard, and is not wanted: sending it again changes nothing.
            Err(ttrpc::Error::RpcStatus(status)) => {
                log::warn!("containerd refuses the event {}: {}", envelope.topic, status.message());
                connection = Some(client);
            }
            Err(error) => {
                log::debug!("the event {} was not delivered: {error}", envelope.topic);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                continue;
            }
        }
        pause = PAUSES.0;
        queue.remove(&envelope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events as Service, create_events};
    use ttrpc::r#async::TtrpcContext;

    #[derive(Clone, Default)]
    struct Containerd(Arc<Mutex<Vec<ForwardRequest>>>);

    #[async_trait::async_trait]
    impl Service for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            self.0.lock().unwrap().push(request);
            Ok(Empty::default())
        }
    }

    fn oom(id: usize) -> TaskOOM {
        TaskOOM { container_id: id.to_string(), ..Default::default() }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn events_arrive_in_order_also_when_containerd_comes_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containerd.sock");
        let containerd = Containerd::default();
        block_on(async {
            let events = Events::start("default", &format!("unix://{}", path.display()));
            for id in 0..20 {
                events.publish(Topic::Oom, &oom(id));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let service = create_events(Arc::new(containerd.clone()));
            let mut server = ttrpc::r#async::Server::new()
                .bind(&format!("unix://{}", path.display()))
                .unwrap()
                .register_service(service);
            server.start().await.unwrap();
            events.delivered(Duration::from_secs(10)).await;
            events.publish(Topic::Oom, &oom(20));
            events.delivered(Duration::from_secs(10)).await;
        });
        let seen = containerd.0.lock().unwrap();
        let ids: Vec<String> = seen
            .iter()
            .map(|request| {
                assert_eq!(request.envelope.topic, "/tasks/oom");
                assert_eq!(request.envelope.namespace, "default");
                assert_eq!(request.envelope.event.type_url, "containerd.events.TaskOOM");
                TaskOOM::parse_from_bytes(&request.envelope.event.value).unwrap().container_id
            })
            .collect();
        assert_eq!(ids, (0..=20).map(|id| id.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_containerd_that_stays_away_costs_no_more_than_the_queue() {
        block_on(async {
            let events = Events::start("default", "/no/such/socket");
            for id in 0..CAPACITY + 3 {
                events.publish(Topic::Oom, &oom(id));
            }
            events.delivered(Duration::from_millis(1)).await;
            let waiting = events.queue.as_ref().unwrap().lock();
            assert_eq!(waiting.len(), CAPACITY);
            assert_eq!(waiting.front().unwrap().event.value, oom(3).write_to_bytes().unwrap());
        });
    }

    #[test]
    fn without_a_containerd_nobody_is_waited_for() {
        block_on(async {
            let events = Events::start("default", "");
            events.publish(Topic::Oom, &oom(1));
            assert!(events.queue.is_none());
            tokio::time::timeout(Duration::from_secs(60), events.delivered(Duration::MAX)).await.unwrap();
        });
    }
}
