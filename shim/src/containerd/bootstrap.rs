//! How containerd says what it wants of `start`, and how it wants to be answered.
//!
//! From version 2.3 on it writes a `BootstrapParams` message to standard input and reads a `BootstrapResult`; earlier ones
//! write the runtime's options or nothing, and all of them read a plain address. What 2.0 to 2.2 take as well, and 1.7 does
//! not, is JSON: it promises that a sandbox takes further containers without another `start`, so it is the answer where their
//! Sandbox API asks. Pure, but for the reading.

use std::io;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::arguments::Invocation;
use super::bundle;

/// The most that is read: options are small.
const MAX_INPUT: usize = 1 << 20;
/// How long the caller may keep standard input open without a word.
const PATIENCE: Duration = Duration::from_secs(2);
/// The version of the task service that the newer forms promise.
const TASK_VERSION: i32 = 3;

/// How the caller is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// With the address.
    Plain,
    /// With the address in JSON.
    Json,
    /// With a message; and what the caller said of itself.
    Message(Box<BootstrapParams>),
}

impl Form {
    /// What `input` and the place of `bundle` show that the caller of `start` takes.
    pub(super) fn shown_by(input: &[u8], bundle: &Path, call: &Invocation) -> Form {
        // The options of earlier versions parse as this message as well, but do not name the container.
        match BootstrapParams::parse_from_bytes(input) {
            Ok(params) if params.instance_id == call.id && params.namespace == call.namespace => {
                Form::Message(Box::new(params))
            }
            _ if bundle::is_of_sandbox(bundle) => Form::Json,
            _ => Form::Plain,
        }
    }

    /// Where events go: as the message says, else as the environment does.
    pub(super) fn event_address(&self) -> String {
        match self {
            Form::Message(params) => params.containerd_ttrpc_address.clone(),
            Form::Plain | Form::Json => std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
        }
    }

    /// The answer that tells `uri`.
    pub(super) fn answer(&self, uri: &str) -> Vec<u8> {
        match self {
            Form::Plain => uri.as_bytes().to_vec(),
            Form::Json => {
                let answer = serde_json::json!({ "version": TASK_VERSION, "address": uri, "protocol": "ttrpc" });
                answer.to_string().into_bytes()
            }
            Form::Message(_) => {
                let result = BootstrapResult {
                    version: TASK_VERSION,
                    address: uri.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..Default::default()
                };
                // Strings and a number are always a message.
                result.write_to_bytes().unwrap_or_default()
            }
        }
    }
}

/// Reads standard input to its end, or as long as something comes.
///
/// # Errors
/// The system's.
pub(super) fn read_input() -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    let mut chunk = [0; 4096];
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    while input.len() < MAX_INPUT {
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        if rustix::event::poll(&mut ready, Some(&patience))? == 0 {
            break;
        }
        // Not through a buffer, which would hide from poll what it holds.
        match rustix::io::read(&stdin, &mut chunk)? {
            0 => break,
            length => input.extend_from_slice(&chunk[..length]),
        }
    }
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::well_known_types::any::Any;

    const TASK: &str = "/run/io.containerd.runtime.v2.task/default/c1";
    const SANDBOX: &str = "/run/io.containerd.sandbox.controller.v1.shim/default/c1";

    fn call(id: &str) -> Invocation {
        let words = ["-namespace", "default", "-address", "/run/c.sock", "-id", id, "start"].map(str::to_owned);
        Invocation::parse(&words).unwrap()
    }

    fn form(input: &[u8], bundle: &str, id: &str) -> Form {
        Form::shown_by(input, Path::new(bundle), &call(id))
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".to_owned(),
            namespace: "default".to_owned(),
            containerd_ttrpc_address: "/run/c.sock.ttrpc".to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_caller_that_shows_the_new_form_gets_it() {
        let form = form(&params().write_to_bytes().unwrap(), SANDBOX, "c1");
        assert_eq!(form.event_address(), "/run/c.sock.ttrpc");
        let answer = BootstrapResult::parse_from_bytes(&form.answer("unix:///a")).unwrap();
        assert_eq!((answer.version, answer.address.as_str(), answer.protocol.as_str()), (3, "unix:///a", "ttrpc"));
    }

    #[test]
    fn everybody_else_gets_the_plain_address() {
        let options =
            Any { type_url: "runtimeoptions.v1.Options".to_owned(), value: vec![10, 0], ..Default::default() };
        for input in [Vec::new(), options.write_to_bytes().unwrap(), vec![0xff; 9]] {
            let form = form(&input, TASK, "c1");
            assert_eq!(form, Form::Plain);
            assert_eq!(form.answer("unix:///a"), b"unix:///a");
        }
        let other = params().write_to_bytes().unwrap();
        assert_eq!(form(&other, TASK, "c2"), Form::Plain);
    }

    #[test]
    fn the_sandbox_api_gets_json() {
        let answer = form(&[], SANDBOX, "c1").answer("unix:///a");
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer, serde_json::json!({ "version": 3, "address": "unix:///a", "protocol": "ttrpc" }));
    }
}
