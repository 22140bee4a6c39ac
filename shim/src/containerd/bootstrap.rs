//! How containerd says what it wants of `start`, and how it wants to be answered.
//!
//! From version 2.3 on it writes a `BootstrapParams` message to standard input and reads a `BootstrapResult`; earlier ones
//! write the runtime's options or nothing, and all of them read a plain address. Pure, but for the reading.

use std::io;
use std::time::Duration;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec};

/// The most that is read: options are small.
const MAX_INPUT: usize = 1 << 20;
/// How long the caller may keep standard input open without a word.
const PATIENCE: Duration = Duration::from_secs(2);
/// The version of the task service that the new form promises.
const TASK_VERSION: i32 = 3;

/// How the caller is to be answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// With the address.
    Plain,
    /// With a message; and what the caller said of itself.
    Message(Box<BootstrapParams>),
}

impl Form {
    /// What `input` shows that the caller of `start` for `id` in `namespace` takes.
    pub(super) fn shown_by(input: &[u8], id: &str, namespace: &str) -> Form {
        // The options of earlier versions parse as this message as well, but do not name the container.
        match BootstrapParams::parse_from_bytes(input) {
            Ok(params) if params.instance_id == id && params.namespace == namespace => Form::Message(Box::new(params)),
            _ => Form::Plain,
        }
    }

    /// Where events go: as the message says, else as the environment does.
    pub(super) fn event_address(&self) -> String {
        match self {
            Form::Message(params) => params.containerd_ttrpc_address.clone(),
            Form::Plain => std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
        }
    }

    /// The answer that tells `uri`.
    pub(super) fn answer(&self, uri: &str) -> Vec<u8> {
        match self {
            Form::Plain => uri.as_bytes().to_vec(),
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
        let form = Form::shown_by(&params().write_to_bytes().unwrap(), "c1", "default");
        assert_eq!(form.event_address(), "/run/c.sock.ttrpc");
        let answer = BootstrapResult::parse_from_bytes(&form.answer("unix:///a")).unwrap();
        assert_eq!((answer.version, answer.address.as_str(), answer.protocol.as_str()), (3, "unix:///a", "ttrpc"));
    }

    #[test]
    fn everybody_else_gets_the_plain_address() {
        let options =
            Any { type_url: "runtimeoptions.v1.Options".to_owned(), value: vec![10, 0], ..Default::default() };
        for input in [Vec::new(), options.write_to_bytes().unwrap(), vec![0xff; 9]] {
            let form = Form::shown_by(&input, "c1", "default");
            assert_eq!(form, Form::Plain);
            assert_eq!(form.answer("unix:///a"), b"unix:///a");
        }
        let other = params().write_to_bytes().unwrap();
        assert_eq!(Form::shown_by(&other, "c2", "default"), Form::Plain);
    }
}
