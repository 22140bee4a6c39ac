//! `delete`: takes away what a server left, or ends one that still lives, and says how its container ended.
//!
//! containerd calls it after every removal as well; then it only waits until nothing is left, or leaves the server to other containers
//! that are in its sandbox. It can be repeated.

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use containerd_shim_protos::api::DeleteResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use protobuf::Message;

use super::address::Address;
use super::arguments::Invocation;
use super::bundle;
use super::lifecycle::KILLED;
use super::membership;
use super::network::{self, Namespace};
use crate::sandbox::folder::{self, Found, Places};

/// How long a server may take to end in order, and how long what it leaves may take to go by itself: both together, and the
/// removal here, in less than the 5 s after which containerd kills this process.
const ORDERLY: Duration = Duration::from_millis(2500);
const REMOVAL: Duration = Duration::from_millis(1000);
/// How often that is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Carries out `delete`.
///
/// # Errors
/// When something is left.
pub(super) fn delete(invocation: &Invocation) -> anyhow::Result<()> {
    let places = Places::from_environment();
    let address = Address::of(&places, &invocation.address, &invocation.namespace, &invocation.id);
    let spec = invocation.bundle.as_ref().and_then(|bundle| bundle::read(bundle).ok());
    let Invocation { id, namespace, .. } = invocation;
    let own = spec.filter(|spec| membership::sandbox_of(&places, namespace, id, spec) == *id);
    if own.is_none() || !membership::is_left_to_others(&address, id) {
        clear_away(&places, &address, own.as_ref(), ORDERLY)?;
    }
    Address::sweep(&places);
    let response =
        DeleteResponse { exit_status: KILLED, exited_at: Some(SystemTime::now().into()).into(), ..Default::default() };
    io::stdout().write_all(&response.write_to_bytes()?)?;
    Ok(())
}

/// Ends the server of the sandbox at `address`, which may take `orderly` to do so by itself, and takes away what is left of it; in the
/// network namespace too, if `spec`, its first container's, names one.
///
/// # Errors
/// When something is left.
pub(crate) fn clear_away(
    places: &Places,
    address: &Address,
    spec: Option<&Spec>,
    orderly: Duration,
) -> anyhow::Result<()> {
    if let Some(found) = folder::find(places, address.name())? {
        end(&found, orderly)?;
    }
    if let Some(Namespace::Given(path)) = spec.map(Namespace::of) {
        network::clear(&path)?;
    }
    if !address.answers() {
        address.remove();
    }
    Ok(())
}

fn end(found: &Found, orderly: Duration) -> anyhow::Result<()> {
    if found.lives() {
        let server = Pid::from_raw(found.server());
        // One that ends already takes no notice.
        let _ = kill(server, Signal::SIGTERM);
        if !wait(orderly, || !found.lives()) {
            let _ = kill(server, Signal::SIGKILL);
        }
    }
    // Usually somebody is at it.
    if wait(REMOVAL, || !found.remains()) {
        return Ok(());
    }
    // If somebody is at it still, each finds things gone that it has just seen.
    found.clear().or_else(|_| found.clear()).context("what is left of the sandbox")
}

/// Whether it is `done` before `limit` has passed.
pub(super) fn wait(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}
