//! The sandbox's network, which may come after its containers, and be another later.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::super::explain;
use super::super::loopback;
use super::super::network as namespace;
use super::Tasks;
use crate::network::interfaces::{Network, News};
use crate::sandbox::guest::Guest;

/// A network, and news of it as long as nobody follows them.
pub(super) struct SandboxNetwork {
    network: Arc<Network>,
    news: Option<News>,
}

impl Tasks {
    /// From now on whoever connects to loopback in the sandbox's network namespace reaches the guest's.
    pub(in super::super) fn forward_ports(&self) {
        self.is_pod.store(true, Ordering::Relaxed);
    }

    /// From now on this is the sandbox's network.
    pub(in super::super) fn offer_network(&self, (network, news): (Network, News)) {
        let network = SandboxNetwork { network: Arc::new(network), news: Some(news) };
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Some(network);
    }

    /// From now on the sandbox's network is what the namespace at `path` has. This thread moves there: whoever looks for the sandbox's
    /// namespace looks at it.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(in super::super) fn move_to_network(&self, path: &Path) -> Result<(), String> {
        namespace::enter(path).map_err(|error| explain(&error))?;
        self.forward_ports();
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = &*network {
            let opened = former.network.here().map_err(|error| format!("the network namespace: {error}"))?;
            *network = Some(SandboxNetwork { network: Arc::new(opened.0), news: Some(opened.1) });
        }
        Ok(())
    }

    /// Joins the guest to the network as far as it is there, and to what will come.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(in super::super) async fn join_network(&self, guest: &Guest) -> Result<(), String> {
        let (network, news) = match &mut *self.network.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(SandboxNetwork { network, news }) => (network.clone(), news.take()),
            None => return Ok(()),
        };
        if let Some(news) = news {
            network.keep_following(news, guest.clone());
            if self.is_pod.load(Ordering::Relaxed)
                && let Err(error) = loopback::forward(guest.clone())
            {
                log::warn!("no ports are forwarded to the pod: {error}");
            }
        }
        network.follow(guest).await.map_err(|error| error.to_string())
    }

    /// Leaves the network as it was found.
    pub(in super::super) async fn leave_network(&self) {
        let network = self.network.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(SandboxNetwork { network, .. }) = network {
            network.end().await;
        }
    }
}
