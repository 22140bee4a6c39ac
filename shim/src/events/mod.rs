//! `tatami events`: what happens to the sandboxes of this host and their containers, as it happens, whoever started them.
//!
//! Servers tell ([`announce`]) what containerd is told of theirs. Knows nothing of what was before it listened.

mod announce;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::announce::{Happening, announce};
use crate::logging::complain;
use crate::privilege::{self, NotRoot};
use crate::sandbox::folder::{self, Places};
use crate::table::{Format, printable};

/// The longest line that a server sends, in bytes, and how long it may take to.
const LINE: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(2);
/// Of so many servers is remembered whose they are.
const KNOWN: usize = 1024;

/// The command line of `tatami events`.
#[derive(Args, Debug)]
#[command(after_help = "\
One line each: when, whose (a namespace of containerd's, or tatami), what, and of which container; of an end with the exit status. The words
are containerd's: create, start, exec-added, exec-started, paused, resumed, oom, exit, delete; and remove, when `tatami rm` has forgotten
a container. One in the foreground has only those between its start and its exit.

Examples:
  tatami events                           # until Ctrl-C
  tatami events --format json | jq 'select(.Event == \"oom\")'")]
pub struct EventsArguments {
    /// A line of text, or a JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Why it ends.
#[derive(Debug, thiserror::Error)]
enum EventsError {
    #[error(transparent)]
    NotRoot(#[from] NotRoot),
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("cannot listen at {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

/// One of them, as it is told.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    time: String,
    namespace: String,
    event: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Twelve hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
    #[serde(rename = "ExecID", skip_serializing_if = "Option::is_none")]
    exec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u32>,
}

/// Tells until a signal comes.
pub fn main(arguments: &EventsArguments) -> ExitCode {
    let carry_out = || {
        privilege::root()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| EventsError::System { action: "start the runtime", source })?;
        runtime.block_on(listen(&Places::from_environment(), arguments.format))
    };
    match carry_out() {
        Ok(()) => ExitCode::SUCCESS,
        Err(EventsError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn listen(places: &Places, format: Format) -> Result<(), EventsError> {
    let caught = |kind| signal(kind).map_err(|source| EventsError::System { action: "catch signals", source });
    let (mut terminate, mut interrupt) = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
    let ear = Ear::open(&places.state)?;
    let mut known = HashMap::new();
    loop {
        let accepted = tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            accepted = ear.listener.accept() => accepted,
        };
        let (stream, _) = accepted.map_err(|source| EventsError::System { action: "take an event", source })?;
        let Some(happening) = hear(stream).await else { continue };
        let row = row(happening, places, &mut known);
        let mut out = io::stdout();
        let text = match format {
            Format::Table => line(&row),
            Format::Json => serde_json::to_string(&row).expect("texts and numbers are JSON") + "\n",
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(EventsError::Output)?;
    }
}

/// A socket that servers find, as long as this lives.
struct Ear {
    listener: UnixListener,
    path: PathBuf,
}

impl Ear {
    fn open(state: &Path) -> Result<Ear, EventsError> {
        let folder = state.join(announce::FOLDER);
        let path = folder.join(format!("{}.sock", std::process::id()));
        let refused = |source| EventsError::Listen { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(refused)?;
        // One that had this process's number and was killed.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(refused)?;
        Ok(Ear { listener, path })
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // Who removes it as well was faster; the folder stays as long as others listen.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

/// What a server says; nothing if that is not understood.
async fn hear(stream: UnixStream) -> Option<Happening> {
    let mut line = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.take(LINE).read_to_end(&mut line)).await;
    match read {
        Ok(Ok(_)) => serde_json::from_slice(&line).inspect_err(|error| log::warn!("an event is lost: {error}")).ok(),
        _ => {
            log::warn!("an event is lost: its server did not finish it");
            None
        }
    }
}

/// With what is known of its sandbox, or was when it was last seen: with a container's end, that goes.
fn row(happening: Happening, places: &Places, known: &mut HashMap<u32, (String, Option<String>)>) -> Row {
    let Happening { at, what, namespace, server, container, exec, status } = happening;
    let found = folder::all(places).unwrap_or_default().into_iter().find(|found| found.server() == server as i32);
    if let Some(found) = found {
        known.insert(server, (found.id().to_owned(), found.name().map(str::to_owned)));
    }
    let (sandbox, name) = known.get(&server).cloned().map_or((None, None), |(id, name)| (Some(id), name));
    if known.len() > KNOWN {
        known.clear();
    }
    let time = humantime::format_rfc3339_millis(at).to_string();
    Row { time, namespace, event: what, id: container, name, sandbox, exec, exit_code: status }
}

fn line(row: &Row) -> String {
    let id = printable(&row.id);
    let container = match &row.name {
        Some(name) if *name != id => format!("{} ({id})", printable(name)),
        _ => id,
    };
    let exec = row.exec.as_deref().map(|exec| format!(" exec {}", printable(exec))).unwrap_or_default();
    let status = row.exit_code.map(|status| format!(" status {status}")).unwrap_or_default();
    let (namespace, event) = (printable(&row.namespace), printable(&row.event));
    format!("{}  {namespace:<8}  {event:<12}  {container}{exec}{status}\n", row.time)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn happening(what: &str, status: Option<u32>) -> Happening {
        Happening {
            at: SystemTime::UNIX_EPOCH,
            what: what.to_owned(),
            namespace: "tatami".to_owned(),
            server: std::process::id(),
            container: "c".to_owned(),
            exec: None,
            status,
        }
    }

    #[test]
    fn who_listens_hears_in_order_and_who_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody listens.
        announce(dir.path(), &happening("start", None));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ear = Ear::open(dir.path()).unwrap();
            let dead = dir.path().join("events/dead.sock");
            drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
            let told = [("start", None), ("exit", Some(3))].map(|(what, status)| happening(what, status));
            told.iter().for_each(|happening| announce(dir.path(), happening));
            assert!(!dead.exists());
            for wanted in told {
                let (stream, _) = ear.listener.accept().await.unwrap();
                assert_eq!(hear(stream).await, Some(wanted));
            }
        });
        assert!(!dir.path().join("events").exists());
    }

    #[test]
    fn one_that_stands_still_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let _ear = Ear::open(dir.path()).unwrap();
        for _ in 0..10_000 {
            announce(dir.path(), &happening("oom", None));
        }
    }

    #[test]
    fn a_line_names_the_container_as_people_do() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        let mut known = HashMap::from([(std::process::id(), ("0123".to_owned(), Some("web".to_owned())))]);
        let row = row(happening("exit", Some(3)), &places, &mut known);
        assert_eq!(line(&row), "1970-01-01T00:00:00.000Z  tatami    exit          web (c) status 3\n");
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!((&json["ID"], &json["ExitCode"], &json["Sandbox"]), (&"c".into(), &3.into(), &"0123".into()));
        assert!(json.get("ExecID").is_none());
    }
}
