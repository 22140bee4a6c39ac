//! The command line of `tests/host/run`, as one validated value.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Shown with `--help`, and after a mistake.
pub(crate) const USAGE: &str = "\
usage: tests/host/run [OPTIONS] [--] COMMAND…
       tests/host/run --status | --stop

Runs COMMAND in the emulated test host, in the same folder, with stdin, stdout, stderr and exit status passed through. The
host is booted if none runs for this checkout, and ends by itself after 30 minutes without commands.

  -t                a terminal for COMMAND even where stdin or stdout is none
  -T                no terminal, even where both are
  -e, --env K=V     add to COMMAND's environment (repeatable; without =V, the caller's value)
      --cold        boot afresh, without the snapshot; ends the host that runs
      --icount      a separate host with one CPU whose time counts instructions; for measuring. Ends after 60 s
      --prepare     build images and snapshot, start the host, run nothing
      --status      say whether a host runs (exit status 0 if so, 1 if not)
      --stop        end the host of this checkout, and the --icount one

Environment: TATAMI_TESTHOST_ARCH (x86_64, aarch64 or ppc64le), TATAMI_TESTHOST_SMP (1), TATAMI_TESTHOST_MEM (4096, MiB), TATAMI_TESTHOST_IDLE (1800, seconds),
TATAMI_TESTHOST_NAME (a further host under that name), TATAMI_CACHE (~/.cache/tatami), TATAMI_DEBIAN_MIRROR. TERM, RUST_BACKTRACE,
RUST_LOG and TATAMI_* are passed to COMMAND.";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run a command.
    Run(Vec<OsString>),
    /// Only start the host.
    Prepare,
    /// Say whether one runs.
    Status,
    /// End it.
    Stop,
    /// Print [`USAGE`].
    Help,
    /// Internal: be the process that keeps a host, with this plan (JSON).
    Keep(OsString),
}

/// The whole command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// What to do.
    pub(crate) action: Action,
    /// The checkout; the wrapper script says which.
    pub(crate) checkout: PathBuf,
    /// Our PID 1; the wrapper script built it.
    pub(crate) init: PathBuf,
    /// A terminal: forced, forbidden, or where stdin and stdout are one.
    pub(crate) terminal: Option<bool>,
    /// Additions to the command's environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Boot without a snapshot.
    pub(crate) cold: bool,
    /// The instruction-counting host.
    pub(crate) icount: bool,
}

impl Invocation {
    /// Reads the arguments (without the program's name).
    ///
    /// # Errors
    /// One line that says which argument is wrong.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut arguments = arguments.peekable();
        let mut this = Self {
            action: Action::Run(vec![]),
            checkout: PathBuf::new(),
            init: PathBuf::new(),
            terminal: None,
            env: vec![],
            cold: false,
            icount: false,
        };
        while let Some(argument) = arguments.next_if(|a| a.as_encoded_bytes().starts_with(b"-")) {
            let option = argument.to_str().ok_or_else(|| format!("unknown option {}", argument.display()))?;
            let (option, attached) = match option.split_once('=') {
                Some((option, value)) if option.starts_with("--") => (option, Some(OsString::from(value))),
                _ => (option, None),
            };
            let mut value =
                || attached.clone().or_else(|| arguments.next()).ok_or_else(|| format!("{option} needs a value"));
            match option {
                "--" => break,
                "-t" => this.terminal = Some(true),
                "-T" => this.terminal = Some(false),
                "-e" | "--env" => this.env.push(variable(value()?)?),
                "--cold" => this.cold = true,
                "--icount" => this.icount = true,
                "--prepare" => this.action = Action::Prepare,
                "--status" => this.action = Action::Status,
                "--stop" => this.action = Action::Stop,
                "--help" | "-h" => this.action = Action::Help,
                "--checkout" => this.checkout = value()?.into(),
                "--init" => this.init = value()?.into(),
                "--keep" => this.action = Action::Keep(value()?),
                _ => return Err(format!("unknown option {option}")),
            }
        }
        let command: Vec<OsString> = arguments.collect();
        match &mut this.action {
            Action::Run(_) if command.is_empty() => Err("no command given".to_owned()),
            Action::Run(slot) => {
                *slot = command;
                Ok(this)
            }
            _ if command.is_empty() => Ok(this),
            _ => Err(format!("nothing is run here: {}", command[0].display())),
        }
    }
}

fn variable(given: OsString) -> Result<(OsString, OsString), String> {
    let bytes = given.clone().into_vec();
    match bytes.iter().position(|b| *b == b'=') {
        Some(0) => Err("--env: a variable needs a name".to_owned()),
        Some(at) => Ok((OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(bytes[at + 1..].to_vec()))),
        None => {
            let value = std::env::var_os(&given).ok_or_else(|| format!("--env: {} is not set", given.display()))?;
            Ok((given, value))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Invocation, String> {
        Invocation::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let got = parse(&["-t", "--env", "A=b=c", "--env=D=", "ls", "-l", "--cold", "--"]).unwrap();
        assert_eq!(got.action, Action::Run(["ls", "-l", "--cold", "--"].map(OsString::from).to_vec()));
        assert_eq!((got.terminal, got.cold), (Some(true), false));
        assert_eq!(got.env, [("A".into(), "b=c".into()), ("D".into(), "".into())]);
        let got = parse(&["--icount", "--", "--odd"]).unwrap();
        assert_eq!((got.action, got.icount), (Action::Run(vec!["--odd".into()]), true));
    }

    #[test]
    fn mistakes_are_named() {
        for (arguments, error) in [
            (&[][..], "no command given"),
            (&["--nonsense", "ls"], "unknown option --nonsense"),
            (&["--env"], "--env needs a value"),
            (&["--env", "=x", "ls"], "--env: a variable needs a name"),
            (&["--stop", "ls"], "nothing is run here: ls"),
        ] {
            assert_eq!(parse(arguments).unwrap_err(), error);
        }
    }
}
