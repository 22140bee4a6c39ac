//! The specification's `linux.resources` as settings of cgroup version 2, or as a refusal: nothing is left out in silence.
//!
//! Pure: it says what to write into which file of the group; `cgroup` writes. `devices` knows what rules about devices mean.

use libcontainer::oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxResources, LinuxThrottleDevice,
};

use crate::devices::{self, Rule};
use crate::nodes::Numbers;

/// The number of processes, which is set last: a container's own making takes more than one for a moment.
pub(crate) const PIDS_MAX: &str = "pids.max";

/// One write into a file of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) file: String,
    pub(crate) value: String,
    /// The file is not there in every kernel, and what it would do is done by another setting as well.
    pub(crate) optional: bool,
}

/// What the group shall be set to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) settings: Vec<Setting>,
    /// A new period of `cpu.max`, in microseconds, under the quota that it has.
    pub(crate) period: Option<u64>,
    /// Rules about devices; none: nothing is said about them.
    pub(crate) devices: Vec<Rule>,
    /// Refuse if more memory than this, in bytes, is in use already.
    pub(crate) usage_at_most: Option<u64>,
    /// Weights of input and output are wanted, which the kernel follows only on devices told so.
    pub(crate) weighs_io: bool,
}

/// A limit that cannot be carried out, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("linux.resources.{key}: {reason}")]
pub(crate) struct Unsupported {
    key: String,
    reason: String,
}

/// What `resources` asks for; what it does not name stays as it is. Block devices have the guest's numbers in it.
///
/// # Errors
/// The first limit that has no counterpart.
pub(crate) fn plan(resources: &LinuxResources, numbers: &Numbers) -> Result<Plan, Unsupported> {
    let mut plan = Plan::default();
    if let Some(memory) = resources.memory() {
        plan.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        plan.cpu(cpu)?;
    }
    if let Some(block) = resources.block_io() {
        plan.block_io(block, numbers)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        plan.hugepages(limit)?;
    }
    if let Some(network) = resources.network() {
        network_classes(network)?;
    }
    if resources.rdma().as_ref().is_some_and(|limits| !limits.is_empty()) {
        return Err(unsupported("rdma", "the guest has no RDMA devices"));
    }
    if let Some(pids) = resources.pids() {
        // Zero tasks would not even let it start; the others of the field take it for one as well.
        let limit = if pids.limit() < 0 { "max".to_owned() } else { pids.limit().max(1).to_string() };
        plan.set(PIDS_MAX, limit);
    }
    if let Some(list) = resources.devices() {
        plan.devices = devices::rules(list, numbers).map_err(|reason| unsupported("devices", &reason))?;
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        plan.unified(file, value)?;
    }
    Ok(plan)
}

impl Plan {
    fn set(&mut self, file: &str, value: impl ToString) {
        self.settings.push(Setting { file: file.to_owned(), value: value.to_string(), optional: false });
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), Unsupported> {
        const V1: &str = "a control of cgroup version 1, which the guest does not have";
        for (key, value) in [("memory.kernel", memory.kernel()), ("memory.kernelTCP", memory.kernel_tcp())] {
            if value.is_some_and(|limit| limit > 0) {
                return Err(unsupported(key, V1));
            }
        }
        if memory.swappiness().is_some() {
            return Err(unsupported("memory.swappiness", V1));
        }
        if memory.disable_oom_killer() == Some(true) {
            return Err(unsupported("memory.disableOOMKiller", V1));
        }
        let limit = memory.limit().filter(|limit| *limit != 0);
        let swap = memory.swap().filter(|swap| *swap != 0);
        match (limit, swap) {
            // The specification counts memory and swap together, the kernel swap alone.
            (Some(limit), Some(swap)) if limit > 0 && swap > 0 => {
                let rest = swap - limit;
                if rest < 0 {
                    let reason = format!("{swap} is less than the memory limit {limit}, which it includes");
                    return Err(unsupported("memory.swap", &reason));
                }
                self.set("memory.swap.max", rest);
            }
            (_, Some(swap)) if swap < 0 => self.set("memory.swap.max", "max"),
            (Some(limit), None) if limit < 0 => self.set("memory.swap.max", "max"),
            (_, Some(_)) => return Err(unsupported("memory.swap", "needs a memory limit beside it")),
            _ => {}
        }
        if let Some(limit) = limit {
            self.set("memory.max", or_max(limit));
            self.usage_at_most = u64::try_from(limit).ok().filter(|_| memory.check_before_update() == Some(true));
        }
        if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
            self.set("memory.low", or_max(reservation));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), Unsupported> {
        if cpu.realtime_runtime().is_some_and(|runtime| runtime > 0)
            || cpu.realtime_period().is_some_and(|period| period > 0)
        {
            return Err(unsupported("cpu.realtimeRuntime", "cgroup version 2 has no limits of real-time tasks"));
        }
        // An idle group takes no weight, so it must be made busy before, or idle after.
        if let Some(idle) = cpu.idle().filter(|idle| *idle == 0) {
            self.set("cpu.idle", idle);
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            self.set("cpu.weight", weight_of_shares(shares));
        }
        if let Some(idle) = cpu.idle().filter(|idle| *idle != 0) {
            self.set("cpu.idle", idle);
        }
        let period = cpu.period().filter(|period| *period > 0);
        match (cpu.quota().filter(|quota| *quota != 0), period) {
            (Some(quota), Some(period)) => self.set("cpu.max", format!("{} {period}", or_max(quota))),
            (Some(quota), None) => self.set("cpu.max", or_max(quota)),
            (None, period) => self.period = period,
        }
        if let Some(burst) = cpu.burst() {
            self.set("cpu.max.burst", burst);
        }
        for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = value.as_ref().filter(|list| !list.is_empty()) {
                self.set(file, list);
            }
        }
        Ok(())
    }

    fn block_io(&mut self, block: &LinuxBlockIo, numbers: &Numbers) -> Result<(), Unsupported> {
        let leaf = "cgroup version 2 has no weights of leaves";
        if block.leaf_weight().is_some_and(|weight| weight > 0) {
            return Err(unsupported("blockIO.leafWeight", leaf));
        }
        if let Some(weight) = block.weight().filter(|weight| *weight > 0) {
            self.weighs_io = true;
            self.set("io.weight", format!("default {}", weight_of_cfq(weight)));
        }
        for device in block.weight_device().iter().flatten() {
            if device.leaf_weight().is_some_and(|weight| weight > 0) {
                return Err(unsupported("blockIO.weightDevice.leafWeight", leaf));
            }
            if let Some(weight) = device.weight().filter(|weight| *weight > 0) {
                self.weighs_io = true;
                let (major, minor) = numbers.limited((device.major(), device.minor()));
                let value = format!("{major}:{minor} {}", weight_of_cfq(weight));
                self.set("io.weight", value);
            }
        }
        let mut throttle = |devices: &Option<Vec<LinuxThrottleDevice>>, key: &str| {
            for device in devices.iter().flatten() {
                let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
                let (major, minor) = numbers.limited((device.major(), device.minor()));
                self.set("io.max", format!("{major}:{minor} {key}={rate}"));
            }
        };
        throttle(block.throttle_read_bps_device(), "rbps");
        throttle(block.throttle_write_bps_device(), "wbps");
        throttle(block.throttle_read_iops_device(), "riops");
        throttle(block.throttle_write_iops_device(), "wiops");
        Ok(())
    }

    fn hugepages(&mut self, limit: &LinuxHugepageLimit) -> Result<(), Unsupported> {
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(unsupported("hugepageLimits", &format!("{size:?} is no page size")));
        }
        let value = or_max(limit.limit());
        self.set(&format!("hugetlb.{size}.max"), &value);
        // Pages that are reserved and not used yet; without it a container meets its limit as SIGBUS.
        let file = format!("hugetlb.{size}.rsvd.max");
        self.settings.push(Setting { file, value, optional: true });
        Ok(())
    }

    fn unified(&mut self, file: &str, value: &str) -> Result<(), Unsupported> {
        let refuse = |reason: &str| Err(unsupported(&format!("unified[{file:?}]"), reason));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !file.contains('.') || file.starts_with('.') || !file.bytes().all(plain) {
            return refuse("not the name of a control group file");
        }
        if file.starts_with("cgroup.") {
            return refuse("the group's own files are not limits");
        }
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            self.set(file, line);
        }
        Ok(())
    }
}

fn network_classes(network: &LinuxNetwork) -> Result<(), Unsupported> {
    let reason = "cgroup version 2 does not mark packets; shape the traffic on the pod's interface instead";
    if network.class_id().is_some_and(|class| class != 0) {
        return Err(unsupported("network.classID", reason));
    }
    if network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty()) {
        return Err(unsupported("network.priorities", reason));
    }
    Ok(())
}

/// CPU shares (2 to 262144, 1024 being normal) as a weight (1 to 10000, 100 being normal): the curve of that form through
/// both ends and the middle, on which runc and crun agreed.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let exponent = (shares as f64).log2();
            let exponent = (exponent * exponent + 125.0 * exponent) / 612.0 - 7.0 / 34.0;
            (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// A weight of 10 to 1000 as one of 1 to 10000.
fn weight_of_cfq(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

fn unsupported(key: &str, reason: &str) -> Unsupported {
    Unsupported { key: key.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(resources: Value) -> Result<Plan, String> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        plan(&resources, &Numbers::of((8, 0), (254, 1))).map_err(|refusal| refusal.to_string())
    }

    fn written(resources: Value) -> Vec<String> {
        let settings = planned(resources).unwrap().settings;
        settings.into_iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    #[test]
    fn memory_and_swap_are_counted_apart() {
        let memory = json!({ "memory": { "limit": 1000, "swap": 1500, "reservation": 800 } });
        assert_eq!(written(memory), ["memory.swap.max=500", "memory.max=1000", "memory.low=800"]);
        assert_eq!(written(json!({ "memory": { "limit": -1 } })), ["memory.swap.max=max", "memory.max=max"]);
        assert_eq!(written(json!({ "memory": { "limit": 7, "swap": -1 } })), ["memory.swap.max=max", "memory.max=7"]);
        assert_eq!(written(json!({ "memory": { "limit": 0, "disableOOMKiller": false } })), [""; 0]);
        let checked = planned(json!({ "memory": { "limit": 9, "checkBeforeUpdate": true } })).unwrap();
        assert_eq!(checked.usage_at_most, Some(9));
    }

    #[test]
    fn cpu_limits_become_weight_quota_and_sets() {
        let cpu = json!({ "cpu": { "shares": 1024, "quota": 50000, "period": 100000, "burst": 10, "cpus": "0-1", "mems": "" } });
        assert_eq!(written(cpu), ["cpu.weight=100", "cpu.max=50000 100000", "cpu.max.burst=10", "cpuset.cpus=0-1"]);
        assert_eq!(written(json!({ "cpu": { "quota": -1 } })), ["cpu.max=max"]);
        assert_eq!(planned(json!({ "cpu": { "period": 1000 } })).unwrap().period, Some(1000));
        assert_eq!(written(json!({ "cpu": { "idle": 1, "shares": 2 } })), ["cpu.weight=1", "cpu.idle=1"]);
        assert_eq!((weight_of_shares(3), weight_of_shares(1 << 18), weight_of_shares(1 << 20)), (2, 10_000, 10_000));
    }

    #[test]
    fn the_rest_has_its_files() {
        assert_eq!(written(json!({ "pids": { "limit": 10 } })), ["pids.max=10"]);
        assert_eq!(written(json!({ "pids": { "limit": -1 } })), ["pids.max=max"]);
        assert_eq!(written(json!({ "pids": { "limit": 0 } })), ["pids.max=1"]);
        let block =
            json!({ "blockIO": { "weight": 1000, "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 5 }] } });
        assert_eq!(written(block), ["io.weight=default 10000", "io.max=254:1 rbps=5"]);
        let pages = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4194304 }] });
        assert_eq!(written(pages), ["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"]);
        let unified = json!({ "unified": { "memory.high": "100", "io.max": "8:0 rbps=1\n8:1 rbps=2" } });
        assert_eq!(written(unified), ["io.max=8:0 rbps=1", "io.max=8:1 rbps=2", "memory.high=100"]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (resources, key) in [
            (json!({ "memory": { "swappiness": 10 } }), "memory.swappiness"),
            (json!({ "memory": { "kernel": 10 } }), "memory.kernel"),
            (json!({ "memory": { "disableOOMKiller": true } }), "memory.disableOOMKiller"),
            (json!({ "memory": { "swap": 10 } }), "memory.swap"),
            (json!({ "memory": { "limit": 10, "swap": 9 } }), "memory.swap"),
            (json!({ "cpu": { "realtimeRuntime": 10 } }), "cpu.realtimeRuntime"),
            (json!({ "network": { "classID": 5 } }), "network.classID"),
            (json!({ "network": { "priorities": [{ "name": "eth0", "priority": 1 }] } }), "network.priorities"),
            (json!({ "blockIO": { "leafWeight": 10 } }), "blockIO.leafWeight"),
            (json!({ "rdma": { "mlx": { "hcaHandles": 1 } } }), "rdma"),
            (json!({ "hugepageLimits": [{ "pageSize": "../x", "limit": 1 }] }), "hugepageLimits"),
            (json!({ "unified": { "../memory.max": "1" } }), "unified"),
            (json!({ "unified": { "cgroup.freeze": "1" } }), "unified"),
        ] {
            let message = planned(resources).unwrap_err();
            assert!(message.starts_with(&format!("linux.resources.{key}")), "{key}: {message}");
        }
        assert!(planned(json!({ "network": { "classID": 0 } })).unwrap().settings.is_empty());
    }
}
