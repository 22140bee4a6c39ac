//! Makes what a host starts from, where the cache lacks it: the images, and the snapshot of the booted host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tatami_testhost::wire::{Share, ToHost};

use crate::arch::Arch;
use crate::connection::Connection;
use crate::places::{Cache, Hash, try_lock, wait_lock};
use crate::qemu::{Life, Machine, Parts, Qemu};

/// What says how the machine is put together: a snapshot fits no machine that is put together otherwise.
const SNAPSHOT_FORMAT: &[u8] = include_bytes!("qemu.rs");

/// Snapshots kept beside the one in use: one for each of a few checkouts and machine sizes.
const SNAPSHOTS_KEPT: usize = 3;

/// How often the host is booted for one with a clock that goes right.
const BOOTS: usize = 3;
/// How long after it was set a clock is looked at: a few percent are seen then.
const COMPARED_AFTER: Duration = Duration::from_secs(8);
/// Images kept: those in use, and those of one other version of the recipe (another branch, another checkout).
const IMAGES_KEPT: usize = 2;

/// Makes sure of the images that a script in `scripts` makes for `arch`, and returns their folder.
///
/// # Errors
/// The build's.
pub(crate) fn images(cache: &Cache, scripts: &Path, arch: Arch) -> Result<PathBuf> {
    let (prefix, inputs) = match arch {
        Arch::X86_64 => ("images".to_owned(), ["build-images", "debian-packages", "packages", "modules"]),
        // Nothing of theirs runs here, so they are put together differently.
        Arch::Aarch64 | Arch::Ppc64le => (
            format!("{}-images", arch.name()),
            ["build-foreign-images", "debian-packages", "foreign-packages", "foreign-modules"],
        ),
    };
    let mut hash = Hash::default();
    for input in inputs {
        hash = hash.with_file(&scripts.join(input))?;
    }
    let name = format!("{prefix}-{}", hash.name());
    let folder = cache.folder(&name);
    if folder.is_dir() {
        cache.mark_used(&folder);
        return Ok(folder);
    }
    let lock = wait_lock(&cache.folder("images.lock"), true, "another run builds the test host's images")?;
    if folder.is_dir() {
        return Ok(folder);
    }
    cache.sweep_parts(&name);
    // The builder inherits the lock: were we killed and it not, the next one would wait for it.
    fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut builder = Command::new(scripts.join(inputs[0]));
    builder.arg(&folder);
    if arch != Arch::X86_64 {
        builder.arg(arch.name());
    }
    let status = builder.status().context(inputs[0])?;
    if !status.success() || !folder.is_dir() {
        bail!("the test host's images could not be built ({}: {status})", inputs[0]);
    }
    cache.mark_used(&folder);
    cache.prune(&prefix, IMAGES_KEPT);
    Ok(folder)
}

/// Makes sure of the snapshot of the host made of `parts`, and returns its folder.
///
/// # Errors
/// The host does not boot, or QEMU does not save it.
pub(crate) fn snapshot(cache: &Cache, parts: &Parts, machine: &Machine, shares: &[Share]) -> Result<PathBuf> {
    let machine_name = serde_json::to_vec(machine)?;
    let images = parts.images.file_name().unwrap_or_default().as_encoded_bytes();
    let mut hash = Hash::default().with(SNAPSHOT_FORMAT).with(images).with_file(&parts.init)?.with(&machine_name);
    for share in shares {
        hash = hash.with(share.tag.as_bytes());
    }
    let name = format!("snapshot-{}", hash.name());
    let folder = cache.folder(&name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let _lock = wait_lock(&cache.folder("snapshot.lock"), true, "another run makes the test host's snapshot")?;
    if folder.is_dir() {
        return Ok(folder);
    }
    cache.sweep_parts(&name);
    eprintln!("testhost: booting the test host once, to keep it as a snapshot (20 s)");
    let start = Instant::now();
    let part = cache.folder(&format!("{name}.part"));
    fs::create_dir_all(&part)?;
    let made = save_booted(parts, machine, shares, &part);
    if let Err(e) = made {
        // The error quotes the console; nothing half made stays.
        let _ = fs::remove_dir_all(&part);
        return Err(e);
    }
    drop(try_lock(&part.join("lock"), true)?);
    fs::rename(&part, &folder)?;
    eprintln!("testhost: snapshot made in {:.1} s", start.elapsed().as_secs_f32());
    cache.prune("snapshot", SNAPSHOTS_KEPT + 1);
    Ok(folder)
}

fn save_booted(parts: &Parts, machine: &Machine, shares: &[Share], into: &Path) -> Result<()> {
    let disk = parts.images.join("root.ext4");
    for boots_left in (0..BOOTS).rev() {
        let copied = Command::new("cp").arg("--sparse=always").arg(&disk).arg(into.join("disk")).status()?;
        if !copied.success() {
            bail!("copying {}: {copied}", disk.display());
        }
        let mut qemu = Qemu::start(parts, machine, Life::BootInto(into), shares, into)?;
        qemu.wait_booted()?;
        match prepare(qemu.port()?)? {
            Ok(()) => return qemu.save(into),
            Err(wrong) if boots_left == 0 => {
                eprintln!("testhost: kept all the same, although {wrong:#}: `--cold` boots a host of its own");
                return qemu.save(into);
            }
            Err(wrong) => eprintln!("testhost: booting it again, because {wrong:#} (is this machine busy?)"),
        }
    }
    Ok(())
}

/// Makes the host ready to be kept, and says whether its clock goes as fast as time does, which it does not where this machine was
/// busy at the moment when the host's kernel compared the two.
fn prepare(port: u16) -> Result<Result<()>> {
    // Any secret will do: the host forgets it as it prepares.
    let mut connection = Connection::open(port, [0; _])?;
    connection.tell_time().context("telling the test host the time")?;
    let told = Instant::now();
    connection.ask(&ToHost::Prepare).context("preparing the test host for its snapshot")?;
    thread::sleep(COMPARED_AFTER.saturating_sub(told.elapsed()));
    Ok(connection.compare_time())
}
