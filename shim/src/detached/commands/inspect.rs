//! `tatami inspect`: all that is known of containers, and of images where no container is called so, in docker's words where there
//! are some.

use std::io::Write;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use super::super::client::Client;
use super::super::output_log;
use super::super::registry::{self, Entry};
use super::super::{Error, FAILED, complain, server};
use crate::images;
use crate::log_files::time_of;
use crate::sandbox::folder::Places;

/// `tatami inspect`.
#[derive(Args)]
#[command(after_help = "\
Prints a JSON array with an object for each container, or image if no container is called so. `State.Status` is created, running, paused, exited, or dead,
which a container is whose sandbox server was killed. `Spec` is the OCI specification in the guest's terms.

Examples:
  tatami inspect web
  tatami inspect web | jq -r '.[0].State.ExitCode'")]
pub struct InspectArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "CONTAINER|IMAGE")]
    containers: Vec<String>,
}

pub(super) async fn inspect(places: &Places, arguments: &InspectArguments) -> Result<u8, Error> {
    let mut status = 0;
    let mut all = Vec::new();
    for word in &arguments.containers {
        match registry::find(places, word) {
            Ok(entry) => all.push(describe(&entry).await),
            Err(error) => match images::described(&places.root, word) {
                Some(image) => all.push(image),
                None => {
                    complain(&error);
                    status = FAILED;
                }
            },
        }
    }
    let text = serde_json::to_string_pretty(&all).expect("values are JSON");
    writeln!(std::io::stdout(), "{text}").map_err(Error::Output)?;
    Ok(status)
}

async fn describe(entry: &Entry) -> Value {
    let record = &entry.record;
    let ended = entry.ended();
    let lives = entry.lives();
    let paused = match (&ended, Client::connect(entry).await) {
        (None, Ok(client)) => client.is_paused().await.unwrap_or(false),
        _ => false,
    };
    let status = match &ended {
        Some(ended) if ended.at == SystemTime::UNIX_EPOCH => "dead",
        Some(_) => "exited",
        None if record.started.is_none() => "created",
        None if paused => "paused",
        None => "running",
    };
    let time = |time: Option<SystemTime>| time.filter(|time| *time != SystemTime::UNIX_EPOCH).map(time_of);
    let process = &record.spec["process"];
    let words = &record.command;
    json!({
        "Id": record.id,
        "Name": record.name,
        "Image": record.image,
        "Created": time_of(record.created),
        "Path": words.first(),
        "Args": words.get(1..).unwrap_or_default(),
        "State": {
            "Status": status,
            "Running": ended.is_none() && record.started.is_some(),
            "Paused": paused,
            "Dead": status == "dead",
            "OOMKilled": entry.kept.folder().join("oom").exists(),
            "ExitCode": ended.as_ref().map(|ended| ended.status),
            "Error": ended.as_ref().and_then(|ended| ended.error.clone()),
            "StartedAt": time(record.started),
            "FinishedAt": time(ended.as_ref().map(|ended| ended.at)),
        },
        "Config": {
            "Tty": record.tty,
            "OpenStdin": record.interactive,
            "Env": process["env"],
            "WorkingDir": process["cwd"],
            "User": process["user"],
            "StopSignal": record.stop_signal,
            "StopTimeout": record.stop_timeout,
            "AutoRemove": record.auto_remove,
        },
        "Machine": { "Cpus": record.cpus, "MemoryMiB": record.memory_mib },
        "Server": {
            "Pid": lives.then_some(entry.found.server()),
            "Socket": lives.then(|| server::socket(entry.found.state())),
        },
        "LogPath": (!record.foreground).then(|| output_log::newest(entry.kept.folder())),
        "Spec": record.spec,
    })
}
