//! A container in the foreground, among the others: `tatami ps` lists it, and the commands about one that runs reach it.
//!
//! Its front end ([`crate::run`]) makes it, has its streams, and waits for its end; here it is written down, in its sandbox's folder, and
//! served as the ones in the background are. A sandbox can do without: what goes wrong here is told, and the container runs.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::server::{self, LAST_WORDS, NAMESPACE, StartError};
use crate::containerd::events::Events;
use crate::containerd::hooks::HostNamespaces;
use crate::containerd::lifecycle::Exit;
use crate::containerd::process::Process;
use crate::containerd::tasks::{Policy, Tasks};
use crate::run::compose::LaidOut;
use crate::sandbox::kept::{Ended, Kept, Record};
use crate::sandbox::saving::{Ingredients, Saver};
use crate::sandbox::{Ground, Sandbox};

/// What is known before there is a sandbox.
pub(crate) struct Announcement {
    record: Record,
    host: HostNamespaces,
    state: PathBuf,
    data: PathBuf,
}

/// A container that others can see. Dropped, it is not served any more.
pub(crate) struct Foreground {
    kept: Kept,
    record: Record,
    tasks: Arc<Tasks>,
    process: Arc<Process>,
    _server: ttrpc::r#async::Server,
}

impl Announcement {
    /// Of a container as `record` says, in the sandbox that will be on `ground`. `host` are the namespaces that were left for it.
    pub(crate) fn new(ground: &Ground, record: Record, host: HostNamespaces) -> Announcement {
        let (state, data) = (ground.state().to_owned(), ground.data().to_owned());
        let record = Record { id: ground.id().to_owned(), ..record };
        Announcement { record, host, state, data }
    }

    /// Shows the container `name`, laid out in the place of that name and with this network, whose command has been started; `watched` of its
    /// volumes are watched for changes.
    pub(crate) async fn show(
        self,
        sandbox: &Sandbox,
        name: &str,
        (laid_out, network): (LaidOut, serde_json::Value),
        watched: usize,
    ) -> Option<Foreground> {
        let shown = self.try_show(sandbox, name, (laid_out, network), watched).await;
        shown.inspect_err(|error| log::warn!("this container will not be in `tatami ps`: {error}")).ok()
    }

    async fn try_show(
        self,
        sandbox: &Sandbox,
        name: &str,
        (laid_out, network): (LaidOut, serde_json::Value),
        watched: usize,
    ) -> Result<Foreground, StartError> {
        let Announcement { mut record, host, state, data } = self;
        let LaidOut { spec, root, host_root, stop_signal, volumes, devices } = laid_out;
        server::note_layout(&mut record, &spec, host_root, stop_signal);
        record.container = Some(name.to_owned());
        let (_, guest) = watch::channel(Some(sandbox.machine().ok_or_else(|| "the agent is gone".to_owned())));
        let tasks =
            Tasks::new(NAMESPACE, guest, Some(sandbox.shared()), host, Events::start(NAMESPACE, ""), Policy::default());
        let process = tasks.note(name, &state, watched, record.tty)?;
        let (place, devices) = (name.to_owned(), !devices.is_empty());
        let ingredients = Ingredients { place, root, volumes, watched, devices, network };
        // What goes on from it does so in the background.
        let saved = Record { foreground: false, ..record.clone() };
        tasks.offer_saving(Saver::new((sandbox.vm().clone(), sandbox.settings()), &data, saved, ingredients));
        let mut server = server::listen(&state, &tasks)?;
        server.start().await.map_err(|error| crate::containerd::error::TaskError::Failed(error.to_string()))?;
        let kept = Kept::passing(&state);
        server::note_start(&kept, &mut record)?;
        Ok(Foreground { kept, record, tasks, process, _server: server })
    }
}

impl Foreground {
    /// Tells whoever waits that the container's command has ended, and that what had joined it has.
    pub(crate) async fn ended(mut self, status: u8) {
        let exit = Exit::now(status.into());
        self.record.ended = Some(Ended { status: exit.status, at: exit.at, error: None });
        if let Err(error) = self.kept.write(&self.record) {
            log::debug!("the container's end is not written down: {error}");
        }
        self.tasks.note_end(&self.process, exit.status);
        let _ = tokio::time::timeout(LAST_WORDS, server::others(&self.tasks, self.record.container())).await;
    }
}
