//! What containers use, and what they may.

use oci_spec::runtime::LinuxResources;
use tatami_protocol::agent::Stats;

use super::super::error::TaskError;
use super::super::growth::Growth;
use super::super::lifecycle::Phase;
use super::super::share;
use super::Tasks;
use crate::sandbox::guest::Guest;

impl Tasks {
    /// From now on the sandbox is as large as its containers need.
    pub(in super::super) fn offer_growth(&self, growth: Growth) {
        // It is offered once.
        let _ = self.growth.set(growth);
    }

    /// Has vCPUs run where containers, by now, say.
    pub(super) async fn pin(&self, guest: &Guest) {
        if let (Some(pinning), Some(growth)) = (&self.pinning, self.growth.get()) {
            pinning.follow(guest.vm().pid(), growth.vcpus().await);
        }
    }

    /// Gives a container other limits.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for limits that are not understood.
    pub(in super::super) async fn update(&self, id: &str, resources_json: &[u8]) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init().life().may_change("update")?;
        let limits: LinuxResources = serde_json::from_slice(resources_json)
            .map_err(|error| TaskError::InvalidArgument(format!("the limits are not understood: {error}")))?;
        let guest = self.guest().await?;
        let change = async { Ok(guest.call(guest.agent().update(id, resources_json.to_vec())).await?) };
        match self.growth.get() {
            Some(growth) => growth.change(&guest, id, &limits, change).await,
            None => change.await,
        }?;
        if let Some(pinning) = &self.pinning {
            if let Some(processors) = share::processors(&limits) {
                pinning.note(id, processors);
            }
            self.pin(&guest).await;
        }
        Ok(())
    }

    /// Has the sandbox's machine do without so many MiB of its memory, four bytes, the lowest first.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for what is no number, [`TaskError::Failed`] for more than it has.
    pub(in super::super) async fn inflate_balloon(&self, id: &str, mib: &[u8]) -> Result<(), TaskError> {
        self.container(id)?.init().life().may_change("take memory from")?;
        let no_number = |_| TaskError::InvalidArgument("the balloon's size is no number of MiB".to_owned());
        let mib = u32::from_le_bytes(mib.try_into().map_err(no_number)?);
        let guest = self.guest().await?;
        guest.vm().inflate_balloon(mib).await.map_err(|error| TaskError::Failed(error.to_string()))
    }

    /// The processes of a container, by their ids in the guest; for Docker, which looks for them on the host, the one that
    /// stands for them there.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(in super::super) async fn pids(&self, id: &str) -> Result<Vec<u32>, TaskError> {
        let container = self.container(id)?;
        if matches!(container.init().phase(), Phase::Stopped(_)) {
            return Ok(Vec::new());
        }
        if container.host_ps {
            return Ok(vec![Tasks::pid()]);
        }
        let guest = self.guest().await?;
        Ok(guest.call(guest.agent().processes(id)).await?)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`TaskError::NotFound`], [`TaskError::FailedPrecondition`] when it has ended.
    pub(in super::super) async fn stats(&self, id: &str) -> Result<Stats, TaskError> {
        let container = self.container(id)?;
        container.init().life().may_change("measure")?;
        let guest = self.guest().await?;
        Ok(guest.call(guest.agent().stats(id)).await?)
    }

    /// What each container uses that runs.
    pub(in super::super) async fn all_stats(&self) -> Vec<Stats> {
        let ids: Vec<String> = self.lock().keys().cloned().collect();
        let mut all = Vec::new();
        for id in ids {
            // One that has ended, or is not there yet, uses nothing.
            all.extend(self.stats(&id).await);
        }
        all
    }
}
