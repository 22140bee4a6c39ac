//! Watches for processes of a container that the guest's kernel kills for want of memory, and tells of each.
//!
//! A process's end that is one of these kills is told after the kill itself: who hears of the end asks why, and deletes the
//! container. Knows nothing of limits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskOOM;
use tokio::sync::watch;

use super::events::{Events, Topic};
use crate::sandbox::guest::Guest;

/// How long kills may take to be counted and told.
const LIMIT: Duration = Duration::from_secs(2);

/// The watch over one container.
pub(super) struct MemoryWatch {
    guest: Guest,
    events: Events,
    container: String,
    bundle: PathBuf,
    /// Kills that were told.
    told: watch::Sender<u64>,
}

impl MemoryWatch {
    /// Watches, in a task, as long as the container exists in `guest`.
    pub(super) fn start(guest: Guest, events: Events, container: &str, bundle: &Path) -> Arc<MemoryWatch> {
        let watch = Arc::new(MemoryWatch {
            guest,
            events,
            container: container.to_owned(),
            bundle: bundle.to_owned(),
            told: watch::Sender::new(0),
        });
        tokio::spawn(watch.clone().follow());
        watch
    }

    /// Returns when all kills are told that there have been.
    pub(super) async fn all_told(&self) {
        let all = async {
            let Ok(stats) = self.guest.call(self.guest.agent().stats(&self.container)).await else { return };
            let counted = stats.memory.events.get("oom_kill").copied().unwrap_or_default();
            // The sender is in `self`, so it cannot be gone.
            let _ = self.told.subscribe().wait_for(|told| *told >= counted).await;
        };
        if tokio::time::timeout(LIMIT, all).await.is_err() {
            log::warn!("container {}: whether memory ran out was not told in time", self.container);
        }
    }

    async fn follow(self: Arc<MemoryWatch>) {
        let mut seen = 0;
        loop {
            match self.guest.call(self.guest.agent().wait_oom(&self.container, seen)).await {
                Ok(killed) => {
                    seen = killed.max(seen + 1);
                    log::warn!("container {} is out of memory", self.container);
                    // Where CRI-O, which takes no events, looks for it.
                    let _ = std::fs::write(self.bundle.join("oom"), "");
                    let event = TaskOOM { container_id: self.container.clone(), ..Default::default() };
                    self.events.publish(Topic::Oom, &event);
                    self.told.send_replace(seen);
                }
                // It is deleted, or the guest is gone.
                Err(error) => return log::debug!("container {}'s memory: {error}", self.container),
            }
        }
    }
}
