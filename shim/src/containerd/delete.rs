//! `delete`: takes away what a server left, or ends one that still lives, and says how its container ended.
//!
//! containerd calls it after every removal as well; then it only waits until nothing is left. It can be repeated.

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use containerd_shim_protos::api::DeleteResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::Message;

use super::address::Address;
use super::arguments::Invocation;
use super::bundle;
use super::lifecycle::KILLED;
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
    if let Some(found) = folder::find(&places, address.name())? {
        end(&found)?;
    }
    if let Some(bundle) = &invocation.bundle
        && let Ok(spec) = bundle::read(bundle)
        && bundle::sandbox_of(&invocation.id, &spec) == invocation.id
        && let Namespace::Given(path) = Namespace::of(&spec)
    {
        network::clear(&path)?;
    }
    if !address.answers() {
        address.remove();
    }
    Address::sweep(&places);
    let response =
        DeleteResponse { exit_status: KILLED, exited_at: Some(SystemTime::now().into()).into(), ..Default::default() };
    io::stdout().write_all(&response.write_to_bytes()?)?;
    Ok(())
}

fn end(found: &Found) -> anyhow::Result<()> {
    if found.lives() {
        let server = Pid::from_raw(found.server());
        // One that ends already takes no notice.
        let _ = kill(server, Signal::SIGTERM);
        if !wait(ORDERLY, || !found.lives()) {
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

fn wait(limit: Duration, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}
