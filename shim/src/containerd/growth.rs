//! How large a sandbox is while it lives: what its containers may use, and the guest's own share.
//!
//! Grows before a container may use more, and gives back after it may use less or is gone. Between two sizes that the machine was
//! made for; what a guest does not use the host has back anyway. Knows nothing of how a container's limits are set.

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;
use tatami_vmm::VmConfig;
use tokio::sync::Mutex;

use super::error::TaskError;
use super::share::Share;
use crate::sandbox;
use crate::sandbox::guest::Guest;

const MIB: u64 = 1 << 20;

/// A machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) memory_mib: u32,
    pub(super) vcpus: u8,
}

/// The size of one sandbox.
pub(super) struct Growth {
    /// Beside what its containers may use.
    own: Size,
    least: Size,
    most: Size,
    state: Mutex<State>,
}

struct State {
    size: Size,
    shares: HashMap<String, Share>,
}

impl Growth {
    /// Of a machine that starts as `machine`, with `own` beside its containers.
    pub(super) fn new(machine: &VmConfig, own: Size) -> Growth {
        let least = Size { memory_mib: machine.memory_mib, vcpus: machine.vcpus };
        let memory_mib = machine.memory_mib.saturating_add(machine.spare_memory_mib);
        let most = Size { memory_mib, vcpus: machine.max_vcpus };
        Growth { own, least, most, state: Mutex::new(State { size: least, shares: HashMap::new() }) }
    }

    /// Makes room for a container, as far as there is any: limits may promise more than a host has.
    ///
    /// # Errors
    /// The guest's.
    pub(super) async fn admit(&self, guest: &Guest, id: &str, share: Share) -> Result<(), sandbox::Error> {
        let mut state = self.state.lock().await;
        state.shares.insert(id.to_owned(), share);
        let size = self.bounded(&self.wanted(&state.shares));
        self.resize(guest, &mut state, size).await
    }

    /// Has `work` give a container other limits, with room for both while it does.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for more memory than the sandbox can have, and `work`'s; all is as it was, then.
    pub(super) async fn change(
        &self,
        guest: &Guest,
        id: &str,
        limits: &LinuxResources,
        work: impl Future<Output = Result<(), TaskError>>,
    ) -> Result<(), TaskError> {
        let mut state = self.state.lock().await;
        let former = state.shares.get(id).copied().unwrap_or_default();
        let share = former.after(limits);
        let mut shares = state.shares.clone();
        shares.insert(id.to_owned(), share);
        let wanted = self.wanted(&shares);
        if share.memory > former.memory && wanted.memory_mib > u64::from(self.most.memory_mib) {
            return Err(TaskError::InvalidArgument(format!(
                "{} MiB of memory for all containers and the guest itself are more than the {} MiB that this sandbox can have \
                 (default_maxmemory)",
                wanted.memory_mib, self.most.memory_mib
            )));
        }
        let before = state.size;
        let after = self.bounded(&wanted);
        let both = Size { memory_mib: before.memory_mib.max(after.memory_mib), vcpus: before.vcpus.max(after.vcpus) };
        let changed = match self.resize(guest, &mut state, both).await {
            Ok(()) => work.await,
            Err(error) => Err(error.into()),
        };
        let last = if changed.is_ok() { after } else { before };
        if changed.is_ok() {
            state.shares = shares;
        }
        self.give_back(guest, &mut state, last).await;
        changed
    }

    /// How many vCPUs its guest runs on now.
    pub(super) async fn vcpus(&self) -> u8 {
        self.state.lock().await.size.vcpus
    }

    /// Takes back what a container had.
    pub(super) async fn leave(&self, guest: &Guest, id: &str) {
        let mut state = self.state.lock().await;
        if state.shares.remove(id).is_some() {
            let size = self.bounded(&self.wanted(&state.shares));
            self.give_back(guest, &mut state, size).await;
        }
    }

    async fn give_back(&self, guest: &Guest, state: &mut State, size: Size) {
        if let Err(error) = self.resize(guest, state, size).await
            && !error.is_of_dead_guest()
        {
            log::warn!("the sandbox keeps {:?}, {size:?} would do: {error}", state.size);
        }
    }

    async fn resize(&self, guest: &Guest, state: &mut State, size: Size) -> Result<(), sandbox::Error> {
        if size.memory_mib != state.size.memory_mib {
            guest.vm().resize_memory(size.memory_mib).await?;
            let grows = size.memory_mib > state.size.memory_mib;
            state.size.memory_mib = size.memory_mib;
            if grows {
                let more = u64::from(size.memory_mib - self.least.memory_mib) * MIB;
                let come = guest.call(guest.agent().await_memory(more)).await?;
                if come < more {
                    log::warn!("of {} MiB more memory the guest has taken {} by now", more / MIB, come / MIB);
                }
            }
        }
        if size.vcpus != state.size.vcpus {
            guest.call(guest.agent().set_processors(size.vcpus.into())).await?;
            state.size.vcpus = size.vcpus;
        }
        Ok(())
    }

    /// What containers of these shares and the guest itself need.
    fn wanted(&self, shares: &HashMap<String, Share>) -> Wanted {
        let sum = |part: fn(&Share) -> u64| shares.values().map(part).fold(0_u64, u64::saturating_add);
        Wanted {
            memory_mib: sum(|share| share.memory.div_ceil(MIB)).saturating_add(self.own.memory_mib.into()),
            vcpus: Share { memory: 0, millicpus: sum(|share| share.millicpus) }
                .processors()
                .saturating_add(self.own.vcpus.into()),
        }
    }

    fn bounded(&self, wanted: &Wanted) -> Size {
        let between = |wanted: u64, least: u32, most: u32| wanted.clamp(least.into(), most.into()) as u32;
        Size {
            memory_mib: between(wanted.memory_mib, self.least.memory_mib, self.most.memory_mib),
            vcpus: between(wanted.vcpus, self.least.vcpus.into(), self.most.vcpus.into()) as u8,
        }
    }
}

/// A size that nobody has looked at the bounds of.
struct Wanted {
    memory_mib: u64,
    vcpus: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(json: &str) -> Share {
        Share::default().after(&serde_json::from_str(json).unwrap())
    }

    fn growth() -> Growth {
        let machine =
            VmConfig { memory_mib: 256, spare_memory_mib: 1024, vcpus: 1, max_vcpus: 4, ..VmConfig::default() };
        Growth::new(&machine, Size { memory_mib: 256, vcpus: 0 })
    }

    fn size_of(shares: &[Share]) -> (u32, u8) {
        let growth = growth();
        let shares = shares.iter().enumerate().map(|(number, share)| (number.to_string(), *share)).collect();
        let Size { memory_mib, vcpus } = growth.bounded(&growth.wanted(&shares));
        (memory_mib, vcpus)
    }

    #[test]
    fn a_sandbox_holds_what_all_its_containers_may_use() {
        let one = share(r#"{"memory":{"limit":67108864},"cpu":{"quota":150000,"period":100000}}"#);
        assert_eq!(size_of(&[]), (256, 1));
        assert_eq!(size_of(&[one]), (256 + 64, 2));
        assert_eq!(size_of(&[one, one, Share::default()]), (256 + 128, 3));
    }

    #[test]
    fn it_grows_no_further_than_its_machine_can() {
        let huge = share(r#"{"memory":{"limit":9223372036854771712},"cpu":{"quota":9223372036854775807,"period":1}}"#);
        assert_eq!(size_of(&[huge]), (1280, 4));
        assert_eq!(size_of(&[huge, huge, huge]), (1280, 4));
    }
}
