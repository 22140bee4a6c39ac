//! What a caller can ask of a container: each command with its flags, and those that are a call or two of its server.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command as Program;
use std::time::Duration;

use containerd_shim_protos::api::{StartRequest, StateRequest, StatsRequest, UpdateTaskRequest};
use containerd_shim_protos::types::task::Status as TaskStatus;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use super::options::{Flag, GLOBAL, Global, Parsed, UsageError, help, switch, value};
use super::store::{Record, Store};
use super::{Error, SPEC_VERSION, block_on, create, exec, figures, remove, spec, system, system_at};
use crate::detached::client::{Client, ClientError};
use crate::detached::signal_number;

/// How long a container may take to be started, changed or measured.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command of the runtime.
struct Command {
    name: &'static str,
    words: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    run: fn(&Global, &Parsed) -> Result<u8, Error>,
}

const BUNDLE: Flag = value("bundle|b", "folder with config.json; the working folder if it is not named");
const CONSOLE: Flag = value("console-socket", "socket that gets the other end of the terminal");
const PID_FILE: Flag = value("pid-file", "file for the process id of what stands for it on the host");
const PRESERVE: Flag = value("preserve-fds", "refused: a guest cannot have open files of the host");
const NO_PIVOT: Flag = switch("no-pivot", "accepted: a guest's root is another matter");
const NO_KEYRING: Flag = switch("no-new-keyring", "accepted: a guest has keyrings of its own");

const COMMANDS: &[Command] = &[
    Command {
        name: "create",
        words: "ID",
        about: "make a container",
        flags: &[BUNDLE, CONSOLE, PID_FILE, PRESERVE, NO_PIVOT, NO_KEYRING],
        run: create::create,
    },
    Command {
        name: "start",
        words: "ID",
        about: "start its process",
        flags: &[],
        run: |global, parsed| start(&find(global, parsed)?).map(|()| 0),
    },
    Command {
        name: "run",
        words: "ID",
        about: "create, start, wait and delete",
        flags: &[
            BUNDLE,
            CONSOLE,
            PID_FILE,
            PRESERVE,
            NO_PIVOT,
            NO_KEYRING,
            switch("detach|d", "do not wait"),
            switch("keep", "do not delete"),
            switch("no-subreaper", "accepted"),
        ],
        run: create::run,
    },
    Command { name: "state", words: "ID", about: "print what it is", flags: &[], run: state },
    Command {
        name: "kill",
        words: "ID [SIGNAL]",
        about: "send a signal (TERM) to its first process",
        flags: &[switch("all|a", "to every process")],
        run: kill,
    },
    Command {
        name: "delete",
        words: "ID",
        about: "remove it",
        flags: &[switch("force|f", "kill it first if it runs")],
        run: |global, parsed| {
            let store = Store::at(&global.root);
            remove::delete(&store, id(parsed)?, parsed.has("force")).map(|()| 0)
        },
    },
    Command {
        name: "exec",
        words: "ID COMMAND [ARG...]",
        about: "run a process in it",
        flags: &[
            CONSOLE,
            PID_FILE,
            PRESERVE,
            value("process|p", "file that describes the process"),
            value("cwd", "its folder"),
            value("env|e", "a variable: NAME=VALUE"),
            switch("tty|t", "on a terminal"),
            value("user|u", "UID[:GID]"),
            value("additional-gids|g", "a further group"),
            switch("detach|d", "do not wait"),
            value("cap|c", "a further capability"),
            switch("no-new-privs", "it gains no privileges"),
            switch("ignore-paused", "also in a container that stands still"),
            value("process-label", "accepted: a guest has no SELinux"),
            value("apparmor", "accepted: a guest has no AppArmor"),
            value("cgroup", "accepted: the container's is used"),
        ],
        run: |global, parsed| exec::exec(&Store::at(&global.root), parsed),
    },
    Command {
        name: "ps",
        words: "ID [ARG...]",
        about: "what stands for its processes on the host",
        flags: &[value("format|f", "table or json")],
        run: ps,
    },
    Command {
        name: "list",
        words: "",
        about: "all containers",
        flags: &[value("format|f", "table or json"), switch("quiet|q", "ids alone")],
        run: list,
    },
    Command {
        name: "pause",
        words: "ID",
        about: "have it stand still",
        flags: &[],
        run: |global, parsed| {
            let record = find(global, parsed)?;
            match status_of(&record)? {
                Status::Running => with(&record, async |client| Ok(client.pause().await?)),
                _ => Err(Error::Refused("container not running".to_owned())),
            }
        },
    },
    Command {
        name: "resume",
        words: "ID",
        about: "have it go on",
        flags: &[],
        run: |global, parsed| {
            let record = find(global, parsed)?;
            match status_of(&record)? {
                Status::Paused => with(&record, async |client| Ok(client.resume().await?)),
                _ => Err(Error::Refused("container not paused".to_owned())),
            }
        },
    },
    Command {
        name: "update",
        words: "ID",
        about: "give it other limits",
        flags: &[
            value("resources|r", "file with linux.resources; - for standard input"),
            value("memory", "bytes"),
            value("memory-reservation", "bytes"),
            value("memory-swap", "bytes, with memory"),
            value("cpu-period", "microseconds"),
            value("cpu-quota", "microseconds"),
            value("cpu-share", "weight"),
            value("cpuset-cpus", "list"),
            value("cpuset-mems", "list"),
            value("pids-limit", "number"),
            value("blkio-weight", "weight"),
        ],
        run: update,
    },
    Command {
        name: "events",
        words: "ID",
        about: "print what it uses, again and again",
        flags: &[switch("stats", "once"), value("interval", "time between, such as 5s")],
        run: events,
    },
    Command {
        name: "spec",
        words: "",
        about: "write a config.json to begin with",
        flags: &[BUNDLE, switch("rootless", "refused")],
        run: |_, parsed| match parsed.has("rootless") {
            true => Err(Error::NotRoot),
            false => spec::write(&parsed.path("bundle").unwrap_or_else(|| ".".into())).map(|()| 0),
        },
    },
    Command {
        name: "features",
        words: "",
        about: "print what this runtime can do",
        flags: &[],
        run: |_, _| print(spec::FEATURES),
    },
    Command { name: "checkpoint", words: "ID", about: "refused", flags: &[], run: |_, _| refuse_checkpoint() },
    Command { name: "restore", words: "ID", about: "refused", flags: &[], run: |_, _| refuse_checkpoint() },
];

fn refuse_checkpoint() -> Result<u8, Error> {
    Err(Error::Refused("checkpoints are not supported: `tatami save` writes a container of `tatami run -d`".to_owned()))
}

/// Carries out the command that `words` begin with.
///
/// # Errors
/// What the caller is told.
pub(super) fn carry_out(global: &Global, words: Vec<String>) -> Result<u8, Error> {
    if global.shows_version {
        return print(&format!("tatami-runtime version {}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION")));
    }
    let Some((name, words)) = words.split_first().filter(|_| !global.shows_help) else { return print(&overview()) };
    if name == "help" {
        return print(&overview());
    }
    let command = COMMANDS.iter().find(|command| command.name == name);
    let command = command.ok_or_else(|| UsageError::Command(name.clone()))?;
    if words.iter().any(|word| word == "--help" || word == "-h") && !words.iter().any(|word| !word.starts_with('-')) {
        return print(&usage(command));
    }
    if matches!(command.name, "checkpoint" | "restore") {
        return refuse_checkpoint();
    }
    let parsed = Parsed::of(command.flags, words, matches!(command.name, "exec" | "ps"))?;
    if !matches!(command.name, "features" | "spec") && !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    (command.run)(global, &parsed)
}

fn overview() -> String {
    let commands: String =
        COMMANDS.iter().map(|command| format!("   {:<28} {}\n", command.name, command.about)).collect();
    format!(
        "An OCI runtime whose containers are each in a virtual machine.\n\nUsage: tatami-runtime [FLAGS] COMMAND [FLAGS] [ID]\n\n\
         Commands (each has --help):\n{commands}\nFlags:\n{}",
        help(GLOBAL)
    )
}

fn usage(command: &Command) -> String {
    format!(
        "tatami-runtime {}: {}\n\nUsage: tatami-runtime {0} [FLAGS] {}\n\n{}",
        command.name,
        command.about,
        command.words,
        help(command.flags)
    )
}

fn print(text: &str) -> Result<u8, Error> {
    io::stdout().write_all(text.as_bytes()).map(|()| 0).map_err(system("write the output"))
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// Where the container is in its life; without a server, at its end.
///
/// # Errors
/// When the server does not say.
pub(super) fn status_of(record: &Record) -> Result<Status, Error> {
    block_on(async {
        let Ok(client) = Client::at(&record.socket, &record.id).await else { return Ok(Status::Stopped) };
        let request = StateRequest { id: record.id.clone(), ..Default::default() };
        let answer = client.task().0.state(ttrpc::context::with_duration(PATIENCE), &request).await;
        let state = match answer.map_err(ClientError::from) {
            Ok(state) => state,
            Err(error) if error.is_gone() => return Ok(Status::Stopped),
            Err(ClientError::Lost(_)) => return Ok(Status::Stopped),
            Err(error) => return Err(error.into()),
        };
        Ok(match state.status.value() {
            value if value == TaskStatus::CREATED as i32 => Status::Created,
            value if value == TaskStatus::RUNNING as i32 => Status::Running,
            value if value == TaskStatus::PAUSED as i32 => Status::Paused,
            _ => Status::Stopped,
        })
    })
}

fn id(parsed: &Parsed) -> Result<&str, Error> {
    match parsed.words.first() {
        Some(id) => Ok(id),
        None => Err(Error::Refused("a container ID is needed".to_owned())),
    }
}

fn find(global: &Global, parsed: &Parsed) -> Result<Record, Error> {
    Store::at(&global.root).find(id(parsed)?)
}

/// Has the container's server do `work`.
fn with(record: &Record, work: impl AsyncFnOnce(Client) -> Result<(), Error>) -> Result<u8, Error> {
    block_on(async { work(Client::at(&record.socket, &record.id).await?).await }).map(|()| 0)
}

/// Starts the container's process.
///
/// # Errors
/// Why it does not run.
pub(super) fn start(record: &Record) -> Result<(), Error> {
    match status_of(record)? {
        Status::Created => {}
        Status::Stopped => return Err(Error::Refused("cannot start a container that has stopped".to_owned())),
        _ => return Err(Error::Refused("cannot start an already running container".to_owned())),
    }
    with(record, async |client| {
        let request = StartRequest { id: record.id.clone(), ..Default::default() };
        let started = client.task().0.start(ttrpc::context::with_duration(PATIENCE), &request).await;
        Ok(started.map(drop).map_err(ClientError::from)?)
    })
    .map(drop)
}

fn kill(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    let record = find(global, parsed)?;
    let word = parsed.words.get(1).map_or("TERM", String::as_str);
    let signal = signal_number(word).ok_or_else(|| Error::Refused(format!("unknown signal {word:?}")))?;
    let all = parsed.has("all");
    let over = || Error::Refused("container not running".to_owned());
    match status_of(&record)? {
        // Every process of one that has ended has been signalled.
        Status::Stopped if all => return Ok(0),
        Status::Stopped => return Err(over()),
        _ => {}
    }
    with(&record, async |client| match client.kill("", signal, all).await {
        Err(error) if error.is_gone() => Err(over()),
        result => Ok(result?),
    })
}

fn described(record: &Record) -> Result<Value, Error> {
    let status = status_of(record)?;
    let pid = if status == Status::Stopped { 0 } else { record.keeper.number };
    Ok(json!({
        "ociVersion": record.version,
        "id": record.id,
        "pid": pid,
        "status": status.to_string(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    }))
}

fn state(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    print(&format!("{:#}\n", described(&find(global, parsed)?)?))
}

fn list(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    let all = Store::at(&global.root).all();
    if parsed.has("quiet") {
        return print(&all.iter().map(|record| format!("{}\n", record.id)).collect::<String>());
    }
    let all: Vec<Value> = all.iter().map(described).collect::<Result<_, _>>()?;
    match parsed.value("format").unwrap_or("table") {
        "json" => print(&format!("{}\n", Value::from(all))),
        "table" => {
            let text = |container: &Value, name: &str| match &container[name] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let row = |cells: [&str; 5]| {
                let [id, pid, status, bundle, created] = cells;
                format!("{id:<20} {pid:<9} {status:<9} {bundle:<40} {created}\n")
            };
            let rows = all.iter().map(|one| {
                row(["id", "pid", "status", "bundle", "created"]
                    .map(|name| text(one, name))
                    .each_ref()
                    .map(String::as_str))
            });
            print(&std::iter::once(row(["ID", "PID", "STATUS", "BUNDLE", "CREATED"])).chain(rows).collect::<String>())
        }
        other => Err(UsageError::Invalid(other.to_owned(), "format").into()),
    }
}

fn ps(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    let record = find(global, parsed)?;
    if status_of(&record)? == Status::Stopped {
        return Err(Error::Refused("container not running".to_owned()));
    }
    let mut pids = vec![record.keeper.number];
    pids.extend(Store::at(&global.root).place(&record.id).joined());
    match parsed.value("format").unwrap_or("table") {
        "json" => print(&format!("{}\n", json!(pids))),
        "table" => {
            let words = if parsed.words.len() > 1 { &parsed.words[1..] } else { &["-ef".to_owned()][..] };
            let output = Program::new("ps").args(words).output().map_err(system("run ps"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let column = text.lines().next().and_then(|head| head.split_whitespace().position(|name| name == "PID"));
            let column = column.ok_or_else(|| Error::Refused("ps shows no PID".to_owned()))?;
            let ours = |line: &str| {
                line.split_whitespace()
                    .nth(column)
                    .and_then(|pid| pid.parse().ok())
                    .is_some_and(|pid| pids.contains(&pid))
            };
            let lines = text.lines().enumerate().filter(|(number, line)| *number == 0 || ours(line));
            print(&lines.map(|(_, line)| format!("{line}\n")).collect::<String>())
        }
        other => Err(UsageError::Invalid(other.to_owned(), "format").into()),
    }
}

fn update(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    let record = find(global, parsed)?;
    let resources = match parsed.value("resources") {
        Some("-") => io::read_to_string(io::stdin()).map_err(system("read standard input"))?,
        Some(path) => std::fs::read_to_string(path).map_err(system_at("read", Path::new(path)))?,
        None => limits(parsed)?.to_string(),
    };
    with(&record, async |client| {
        let resources = Any { value: resources.into_bytes(), ..Default::default() };
        let request =
            UpdateTaskRequest { id: record.id.clone(), resources: Some(resources).into(), ..Default::default() };
        let updated = client.task().0.update(ttrpc::context::with_duration(PATIENCE), &request).await;
        Ok(updated.map(drop).map_err(ClientError::from)?)
    })
}

/// The limits that flags name, as a specification has them.
fn limits(parsed: &Parsed) -> Result<Value, Error> {
    const NUMBERS: [(&str, &str, &str); 8] = [
        ("memory", "memory", "limit"),
        ("memory-reservation", "memory", "reservation"),
        ("memory-swap", "memory", "swap"),
        ("cpu-period", "cpu", "period"),
        ("cpu-quota", "cpu", "quota"),
        ("cpu-share", "cpu", "shares"),
        ("pids-limit", "pids", "limit"),
        ("blkio-weight", "blockIO", "weight"),
    ];
    let mut limits = json!({});
    for (flag, kind, name) in NUMBERS {
        if let Some(number) = parsed.number(flag)? {
            limits[kind][name] = json!(number);
        }
    }
    for (flag, name) in [("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")] {
        if let Some(list) = parsed.value(flag) {
            limits["cpu"][name] = json!(list);
        }
    }
    Ok(limits)
}

fn events(global: &Global, parsed: &Parsed) -> Result<u8, Error> {
    let record = find(global, parsed)?;
    let interval = humantime::parse_duration(parsed.value("interval").unwrap_or("5s"));
    let interval = interval.map_err(|error| Error::Refused(format!("the interval: {error}")))?;
    if status_of(&record)? == Status::Stopped {
        return Err(Error::Refused("container with id is not running".replace("id", &record.id)));
    }
    with(&record, async |client| {
        let request = StatsRequest { id: record.id.clone(), ..Default::default() };
        loop {
            let answer = client.task().0.stats(ttrpc::context::with_duration(PATIENCE), &request).await;
            let stats = match answer.map_err(ClientError::from) {
                Ok(answer) => answer.stats.map(|any| any.value).unwrap_or_default(),
                // It has ended since.
                Err(_) if !parsed.has("stats") && status_gone(&client).await => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let line = figures::stats(&record.id, &stats).map_err(|error| Error::Refused(error.to_string()))?;
            print(&format!("{line}\n"))?;
            if parsed.has("stats") {
                return Ok(());
            }
            tokio::time::sleep(interval).await;
        }
    })
}

/// Whether the container runs no more.
async fn status_gone(client: &Client) -> bool {
    tokio::time::timeout(Duration::from_secs(1), client.wait("")).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_help_that_names_its_flags() {
        for command in COMMANDS {
            assert!(usage(command).contains(command.about));
        }
        assert!(overview().contains("checkpoint") && overview().contains("--log-format"));
    }

    #[test]
    fn limits_are_named_as_in_a_specification() {
        let words = ["--memory", "1024", "--cpu-quota=-1", "--cpuset-cpus", "0-1", "c"].map(str::to_owned);
        let update = COMMANDS.iter().find(|command| command.name == "update").unwrap();
        let parsed = Parsed::of(update.flags, &words, false).unwrap();
        let wanted = json!({ "memory": { "limit": 1024 }, "cpu": { "quota": -1, "cpus": "0-1" } });
        assert_eq!(limits(&parsed).unwrap(), wanted);
    }
}
