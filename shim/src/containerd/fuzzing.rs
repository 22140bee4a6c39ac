//! Entry points of the fuzz targets: what containerd, and whoever configures it, says to a shim before anything is done about it.

use std::path::Path;

use oci_spec::runtime::Spec;

use super::arguments::Invocation;
use super::bootstrap::Form;
use super::network::Namespace;
use super::translate::{Known, Plan};
use super::{bundle, direct_volumes, disk_rootfs};
use crate::configuration::Configuration;
use crate::sandbox::fs_mount::FsMount;

/// What `start` is called with: words, and standard input.
pub fn call(words: &[String], input: &[u8]) {
    if let Ok(call) = Invocation::parse(words) {
        let bundle = call.bundle.clone().unwrap_or_default();
        Form::shown_by(input, &bundle, &call).answer("unix:///run/x.sock");
        Form::shown_by(input, Path::new("/"), &call).event_address();
    }
}

/// A bundle's config.json.
///
/// # Panics
/// When it asks for a machine that cannot be.
pub fn config(json: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(json) else { return };
    bundle::sandbox_of("c", &spec);
    Namespace::of(&spec);
    for sandbox in [false, true] {
        let machine = bundle::machine(Some(&spec), sandbox, &Configuration::default());
        machine.validate().expect("a machine that can be");
    }
    if let Ok(plan) = Plan::new(spec, &Known::default()) {
        plan.console_size();
    }
}

/// What a direct volume is said by.
pub fn direct_volume(json: &[u8]) {
    let _ = direct_volumes::parse(Path::new("/volume"), json);
}

/// The mounts that make a root file system.
pub fn root(mounts: &[FsMount]) {
    for mount in mounts {
        mount.is_bind();
    }
    let _ = disk_rootfs::disk_root(mounts);
}
