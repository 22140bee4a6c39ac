//! `tatami ksm`: has the kernel look for equal pages of sandboxes' memory when there is something to find, and rest when there is not.
//!
//! Only memory that was made mergeable takes part (`--memory-backing mergeable`, `mergeable_memory`). While it runs, it alone turns the
//! kernel's knobs ([`knobs`]), as fast as [`pace`] says. What the host had set is kept in a file as long as something else is set, so
//! that it comes back also after an end by force: with the next start.

mod knobs;
mod pace;

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use self::knobs::{Knobs, Speed};
use self::pace::{Pace, Seen};
use crate::logging::complain;
use crate::privilege::{self, NotRoot};
use crate::sandbox::folder::{self, FolderError, Places};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// The kernel's.
const FOLDER: &str = "/sys/kernel/mm/ksm";
/// In the folder of what is gone with a reboot, as the kernel's settings are.
const KEPT: &str = "ksm.json";

/// The command line of `tatami ksm`.
#[derive(Args, Debug)]
#[command(after_help = "\
It takes part in what /sys/kernel/mm/ksm does, and only where that was turned on: echo 1 >/sys/kernel/mm/ksm/run
At its end (Ctrl-C, SIGTERM) the host's own settings are back.

A guest that has pages in common with another can learn, by the time that its writes take, what the other has in memory: give
mergeable memory to sandboxes that trust each other.

Examples:
  tatami run -d --memory-backing mergeable IMAGE
  tatami ksm")]
pub struct KsmArguments {}

/// Why pages are not looked for.
#[derive(Debug, thiserror::Error)]
enum KsmError {
    #[error(transparent)]
    NotRoot(#[from] NotRoot),
    #[error("there is no {FOLDER}: this host's kernel is built without CONFIG_KSM")]
    None,
    #[error("the merging of pages is turned off on this host ({FOLDER}/run is {0}): echo 1 >{FOLDER}/run turns it on")]
    Off(String),
    #[error("another `tatami ksm` runs on this host")]
    Another,
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
}

/// Runs until it is told to end.
pub fn main(_: &KsmArguments) -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), KsmError> {
    privilege::root()?;
    let places = Places::from_environment();
    let mut throttler = Throttler::start(Path::new(FOLDER), &places.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| KsmError::System { action: "start the runtime", source })?;
    let result = runtime.block_on(async {
        let caught = |kind| signal(kind).map_err(|source| KsmError::System { action: "catch signals", source });
        let (mut terminate, mut interrupt) = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
        loop {
            let sandboxes = folder::all(&places)?.iter().map(|found| found.id().to_owned()).collect();
            throttler.look(sandboxes)?;
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    });
    // Whatever the reason.
    throttler.finish().and(result)
}

/// What is kept as long as something else than the host's own is set.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    host: Speed,
    set: Speed,
}

/// What turns the knobs.
struct Throttler {
    knobs: Knobs,
    /// Where the host's own settings are kept.
    kept: PathBuf,
    pace: Pace,
    /// What the host had set.
    host: Speed,
    /// What is set.
    set: Speed,
    known: HashSet<String>,
    /// Somebody has turned merging off meanwhile, and has not turned it on again.
    off: bool,
}

impl Throttler {
    fn start(folder: &Path, state: &Path) -> Result<Throttler, KsmError> {
        let knobs = Knobs::take(folder)?;
        let kept = state.join(KEPT);
        let found = knobs.speed()?;
        let mut throttler = Throttler {
            knobs,
            kept,
            pace: Pace::default(),
            host: found,
            set: found,
            known: HashSet::new(),
            off: false,
        };
        // Left by one that was killed.
        let left = std::fs::read(&throttler.kept).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        if let Some(Kept { host, .. }) = left.filter(|left| left.set == found) {
            throttler.host = host;
            throttler.set(host)?;
        }
        throttler.forget()?;
        if !throttler.knobs.is_on()? {
            return Err(KsmError::Off(throttler.knobs.run()?));
        }
        throttler.tell("looking");
        Ok(throttler)
    }

    /// Looks at what there is, and sets what that asks for.
    fn look(&mut self, sandboxes: HashSet<String>) -> Result<(), KsmError> {
        let on = self.knobs.is_on()?;
        if on == self.off {
            self.off = !on;
            self.tell(if on { "turned on again" } else { "turned off by somebody: waiting" });
        }
        if self.off {
            return Ok(());
        }
        let found = self.knobs.speed()?;
        if found != self.set {
            // Somebody knows better; that is what comes back, then.
            (self.host, self.set) = (found, found);
            self.pace = Pace::default();
            self.forget()?;
            self.tell("set by somebody: taken over");
        }
        let more = sandboxes.iter().any(|id| !self.known.contains(id));
        self.known = sandboxes;
        let seen = Seen {
            more,
            sandboxes: self.known.len(),
            full_scans: self.knobs.full_scans()?,
            saved: self.knobs.saved()?,
        };
        if let Some(gear) = self.pace.look(seen) {
            self.set(gear.speed(self.host))?;
            self.tell(gear.name());
        }
        Ok(())
    }

    fn set(&mut self, speed: Speed) -> Result<(), KsmError> {
        if speed != self.host {
            let text = serde_json::to_vec(&Kept { host: self.host, set: speed }).expect("a few numbers");
            let file = |action, source| KsmError::File { action, path: self.kept.clone(), source };
            let folder = self.kept.parent().expect("it lies in a folder");
            std::fs::create_dir_all(folder).map_err(|source| file("make the folder of", source))?;
            std::fs::write(&self.kept, text).map_err(|source| file("write", source))?;
        }
        self.knobs.set(speed)?;
        self.set = speed;
        if speed == self.host { self.forget() } else { Ok(()) }
    }

    /// Nothing but the host's own is set.
    fn forget(&self) -> Result<(), KsmError> {
        match std::fs::remove_file(&self.kept) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(KsmError::File { action: "remove", path: self.kept.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// The host has its own settings back, unless somebody has set others meanwhile.
    fn finish(mut self) -> Result<(), KsmError> {
        if self.knobs.speed()? == self.set {
            self.set(self.host)?;
        }
        self.forget()?;
        self.tell("ended, the host's own settings are back");
        Ok(())
    }

    fn tell(&self, what: &str) {
        let saved = self.knobs.saved().unwrap_or(0);
        let mib = (saved * rustix::param::page_size() as u64) >> 20;
        let (sandboxes, Speed { pages_to_scan, sleep_millisecs }) = (self.known.len(), self.set);
        // Where nobody can be told, nobody is.
        let _ = writeln!(
            io::stdout(),
            "{what}: {sandboxes} sandboxes, {pages_to_scan} pages each {sleep_millisecs} ms, {saved} pages saved ({mib} MiB)"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder like the kernel's.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [
            ("run", "1"),
            ("pages_to_scan", "100"),
            ("sleep_millisecs", "20"),
            ("full_scans", "7"),
            ("pages_sharing", "0"),
        ] {
            fs::write(folder.path().join(name), value).unwrap();
        }
        folder
    }

    fn read(folder: &Path, name: &str) -> String {
        fs::read_to_string(folder.join(name)).unwrap()
    }

    fn ids(ids: &[&str]) -> HashSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_hosts_settings_come_back_at_the_end_and_after_an_end_by_force() {
        let (folder, state) = (folder(), tempfile::tempdir().unwrap());
        let start = || Throttler::start(folder.path(), state.path()).unwrap();
        let mut throttler = start();
        throttler.look(ids(&["a"])).unwrap();
        assert_ne!(read(folder.path(), "pages_to_scan"), "100");
        throttler.finish().unwrap();
        assert_eq!(
            (read(folder.path(), "pages_to_scan"), read(folder.path(), "sleep_millisecs")),
            ("100".into(), "20".into())
        );
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);

        let mut killed = start();
        killed.look(ids(&["a"])).unwrap();
        drop(killed);
        assert_ne!(read(folder.path(), "pages_to_scan"), "100");
        let next = start();
        assert_eq!(read(folder.path(), "pages_to_scan"), "100");
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
        drop(next);

        let mut killed = start();
        killed.look(ids(&["a"])).unwrap();
        drop(killed);
        // Somebody has come between.
        fs::write(folder.path().join("pages_to_scan"), "300").unwrap();
        start().finish().unwrap();
        assert_eq!(read(folder.path(), "pages_to_scan"), "300");
    }

    #[test]
    fn what_somebody_sets_meanwhile_is_respected() {
        let (folder, state) = (folder(), tempfile::tempdir().unwrap());
        let mut throttler = Throttler::start(folder.path(), state.path()).unwrap();
        throttler.look(ids(&["a"])).unwrap();
        fs::write(folder.path().join("pages_to_scan"), "300").unwrap();
        throttler.look(ids(&["a"])).unwrap();
        assert_eq!(read(folder.path(), "pages_to_scan"), "300");
        throttler.look(ids(&["a", "b"])).unwrap();
        assert_ne!(read(folder.path(), "pages_to_scan"), "300");
        fs::write(folder.path().join("run"), "0").unwrap();
        throttler.look(ids(&["a", "b", "c"])).unwrap();
        throttler.finish().unwrap();
        assert_eq!((read(folder.path(), "run"), read(folder.path(), "pages_to_scan")), ("0".into(), "300".into()));
    }

    #[test]
    fn what_is_off_or_is_not_there_or_is_anothers_is_said() {
        let (folder, state) = (folder(), tempfile::tempdir().unwrap());
        let told = |folder: &Path| Throttler::start(folder, state.path()).map(|_| ()).unwrap_err().to_string();
        let first = Throttler::start(folder.path(), state.path()).unwrap();
        assert!(told(folder.path()).contains("another"));
        drop(first);
        fs::write(folder.path().join("run"), "0\n").unwrap();
        assert!(told(folder.path()).contains("run is 0"));
        fs::write(folder.path().join("pages_to_scan"), "many").unwrap();
        assert!(told(folder.path()).contains("pages_to_scan"));
        assert!(told(&folder.path().join("none")).contains("CONFIG_KSM"));
    }
}
