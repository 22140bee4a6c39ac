//! Entry points of the fuzz targets: what the agent reads that others wrote, as far as nothing is carried out.

use std::os::fd::OwnedFd;

use libcontainer::oci_spec::runtime::{LinuxResources, Process, Spec};

use crate::{devices, guest, limits, wire};

/// A container's specification, its resources by themselves, or a process that joins: read, checked, planned.
pub fn specification(json: &[u8]) {
    if let Ok(spec) = serde_json::from_slice::<Spec>(json) {
        if let Some(linux) = spec.linux() {
            let _ = guest::check(linux);
            linux.resources().iter().for_each(plan);
        }
        spec.process().iter().for_each(|process| drop(guest::check_process(process)));
    }
    if let Ok(resources) = serde_json::from_slice::<LinuxResources>(json) {
        plan(&resources);
    }
    if let Ok(process) = serde_json::from_slice::<Process>(json) {
        let _ = guest::check_process(&process);
    }
}

fn plan(resources: &LinuxResources) {
    let Ok(plan) = limits::plan(resources, &crate::nodes::Numbers::default()) else { return };
    let program = devices::program(&plan.devices);
    // What the kernel takes at most of a program (BPF_MAXINSNS is 4096 for those without CAP_BPF; the agent has it).
    assert!(program.len() <= 1_000_000, "{} instructions", program.len());
    for setting in plan.settings {
        assert!(!setting.file.contains('/') && !setting.file.starts_with('.'), "a setting of {}", setting.file);
    }
}

/// What comes over `socket`, as the agent reads a report and as a creator reads a request.
pub fn report(first: OwnedFd, second: OwnedFd) {
    let _ = wire::receive_report(first);
    let _ = wire::receive_request(second);
}
