//! `exec`: a process that joins a container, with a keeper of its own.
//!
//! What is to be run is said by a file with `process` of a specification, or by words, with the container's own for the rest.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::commands::{Status, status_of};
use super::create::check_console;
use super::keeper::{Duty, Keeper};
use super::options::Parsed;
use super::store::{Record, Store, write_whole};
use super::streams::{Console, Fifos};
use super::{Error, block_on, system, system_at};
use crate::containerd::keeper;
use crate::detached::client::Client;
use crate::sandbox::folder::new_id;

/// `exec`: the process's exit status; with `--detach`, 0.
///
/// # Errors
/// Why it does not run.
pub(super) fn exec(store: &Store, parsed: &Parsed) -> Result<u8, Error> {
    join(store, parsed).map_err(|error| Error::Exec(Box::new(error)))
}

fn join(store: &Store, parsed: &Parsed) -> Result<u8, Error> {
    let Some((id, command)) = parsed.words.split_first() else {
        return Err(Error::Refused("a container ID is needed".to_owned()));
    };
    let record = store.find(id)?;
    match status_of(&record)? {
        Status::Stopped => return Err(Error::Refused("cannot exec in a stopped container".to_owned())),
        Status::Paused if !parsed.has("ignore-paused") => {
            let text = "cannot exec in a paused container (use --ignore-paused to override)";
            return Err(Error::Refused(text.to_owned()));
        }
        _ => {}
    }
    if parsed.number("preserve-fds")?.unwrap_or(0) > 0 {
        return Err(Error::Refused("preserve-fds: a guest cannot have open files of the host".to_owned()));
    }
    let process = process(&record, command, parsed)?;
    let terminal = process["terminal"].as_bool().unwrap_or(false);
    let detached = parsed.has("detach");
    let socket = parsed.path("console-socket");
    check_console(terminal, detached, socket.as_deref())?;
    let size = |name: &str| process["consoleSize"][name].as_u64().unwrap_or(0).min(u16::MAX.into()) as u16;
    let size = (size("height"), size("width"));
    let console = socket.as_deref().map(|socket| Console::open(socket, size)).transpose()?;
    let exec = new_id().map_err(|error| Error::Refused(error.to_string()))?;
    let place = store.place(id).joining(&exec)?;
    let made = (|| {
        let fifos = Fifos::make(place.folder(), terminal)?;
        let names = fifos.names.clone();
        let (socket, container) = (record.socket.clone(), id.clone());
        let duty = Duty { socket, container, exec: exec.clone(), fifos, folder: Some(place.folder().to_owned()) };
        let keeper = match detached {
            true => Keeper::leave(duty, console.as_ref(), None).map_err(system("start the keeper"))?,
            false => Keeper::Own(duty),
        };
        let started = block_on(async {
            let client = Client::at(&record.socket, id).await?;
            let spec = keeper::kept_by(keeper.pid() as u32, process.to_string().into_bytes());
            Ok(client.exec_as(&exec, spec, &names).await?)
        });
        let told = started.and_then(|()| {
            place.note_keeper(keeper.pid())?;
            if let Some(path) = parsed.path("pid-file") {
                write_whole(&path, keeper.pid().to_string().as_bytes())?;
            }
            console.as_ref().map_or(Ok(()), Console::hand_over)
        });
        match told {
            Ok(()) => Ok(keeper),
            Err(error) => {
                keeper.dismiss();
                Err(error)
            }
        }
    })();
    match made {
        Ok(keeper) => Ok(keeper.begin()),
        Err(error) => {
            drop(place.remove());
            Err(error)
        }
    }
}

/// What is to be run.
fn process(record: &Record, command: &[String], parsed: &Parsed) -> Result<Value, Error> {
    if let Some(path) = parsed.path("process") {
        let text = std::fs::read(&path).map_err(system_at("read", &path))?;
        return serde_json::from_slice(&text)
            .map_err(|error| Error::Refused(format!("{} is not a process: {error}", path.display())));
    }
    if command.is_empty() {
        return Err(Error::Refused("a command is needed, or --process".to_owned()));
    }
    let config: PathBuf = record.bundle.join("config.json");
    let text = std::fs::read(&config).map_err(system_at("read", &config))?;
    let spec: Value = serde_json::from_slice(&text)
        .map_err(|error| Error::Refused(format!("{} is not valid: {error}", config.display())))?;
    let mut process = spec["process"].clone();
    let refused = |what: &str, text: &str| Error::Refused(format!("the {what} {text:?} is not understood"));
    process["args"] = json!(command);
    process["terminal"] = json!(parsed.has("tty"));
    if let Some(folder) = parsed.value("cwd") {
        process["cwd"] = json!(folder);
    }
    if let Some(user) = parsed.value("user") {
        let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
        process["user"]["uid"] = json!(uid.parse::<u32>().map_err(|_| refused("user", user))?);
        if !gid.is_empty() {
            process["user"]["gid"] = json!(gid.parse::<u32>().map_err(|_| refused("user", user))?);
        }
    }
    let groups: Result<Vec<u32>, Error> =
        parsed.all("additional-gids").map(|text| text.parse().map_err(|_| refused("group", text))).collect();
    let mut add = |pointer: &str, what: Vec<Value>| {
        let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
        if what.is_empty() {
            return;
        }
        let list = process.pointer_mut(parent).map(|parent| &mut parent[name]);
        match list {
            Some(Value::Array(list)) => list.extend(what),
            Some(other) => *other = Value::Array(what),
            None => {}
        }
    };
    add("/user/additionalGids", groups?.into_iter().map(Value::from).collect());
    add("/env", parsed.all("env").map(Value::from).collect());
    let capabilities: Vec<Value> = parsed.all("cap").map(Value::from).collect();
    for set in ["bounding", "effective", "permitted"] {
        add(&format!("/capabilities/{set}"), capabilities.clone());
    }
    if parsed.has("no-new-privs") {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::options::{switch, value};
    use crate::oci::store::Pid;

    #[test]
    fn what_is_not_said_is_the_containers() {
        let bundle = tempfile::tempdir().unwrap();
        let config = r#"{"process":{"cwd":"/","args":["a"],"env":["A=1"],"user":{"uid":0,"gid":5},"terminal":true}}"#;
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        let record = Record {
            id: "c".to_owned(),
            version: String::new(),
            bundle: bundle.path().to_owned(),
            keeper: Pid::of(std::process::id() as i32).unwrap(),
            sandbox: "c".to_owned(),
            socket: "/s".into(),
            created: String::new(),
            rootfs: "/r".into(),
            cgroup: None,
            annotations: Default::default(),
        };
        let flags = [value("user|u", ""), value("env|e", ""), switch("tty|t", "")];
        let words: Vec<String> = ["-u", "7", "-e", "B=2", "c", "ls", "-l"].map(str::to_owned).into();
        let parsed = Parsed::of(&flags, &words, true).unwrap();
        let process = process(&record, &parsed.words[1..], &parsed).unwrap();
        assert_eq!(process["args"], json!(["ls", "-l"]));
        assert_eq!(process["user"], json!({ "uid": 7, "gid": 5 }));
        assert_eq!(process["env"], json!(["A=1", "B=2"]));
        assert_eq!((&process["cwd"], &process["terminal"]), (&json!("/"), &json!(false)));
    }
}
