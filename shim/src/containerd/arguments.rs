//! The command line that containerd gives its shims, in the form of Go's `flag` package.
//!
//! Knows the words; nothing of what they lead to.

use std::path::PathBuf;

/// What the shim is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Leave a server behind, or find the one that a container belongs to.
    Start,
    /// Clear away what a server left.
    Delete,
    /// Say what this runtime is, for programs.
    Info,
    /// Say what this runtime is, for people.
    Version,
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) action: Action,
    /// containerd's namespace.
    pub(super) namespace: String,
    /// Of containerd's own socket; empty where there is no containerd.
    pub(super) address: String,
    /// The container's.
    pub(super) id: String,
    /// The container's bundle; the working folder if it is not named.
    pub(super) bundle: Option<PathBuf>,
    /// Log more.
    pub(super) debug: bool,
}

/// A call that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ArgumentError {
    /// A flag nobody knows.
    #[error("unknown flag -{0}")]
    Unknown(String),
    /// A flag without its value.
    #[error("flag -{0} needs a value")]
    Value(String),
    /// Neither start nor delete.
    #[error("{0:?} is not a command of a shim: start and delete are")]
    Action(String),
    /// No command.
    #[error("a shim is called by containerd, with the command start or delete")]
    NoAction,
    /// What every command needs.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// Not usable as a name.
    #[error("the id {0:?} is invalid: letters and digits, with `_`, `.` or `-` between, at most 128")]
    Id(String),
}

impl Invocation {
    /// Reads the words after the binary's name.
    ///
    /// # Errors
    /// [`ArgumentError`] names what is wrong.
    pub(super) fn parse(words: &[String]) -> Result<Invocation, ArgumentError> {
        let mut call = Invocation {
            action: Action::Version,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: None,
            debug: false,
        };
        let mut shown = None;
        let mut words = words.iter();
        let action = loop {
            let Some(word) = words.next() else { break None };
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|flag| !flag.is_empty())
            else {
                break Some(word.as_str());
            };
            let (flag, inline) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            let yes = inline.as_deref().is_none_or(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"));
            let mut value = || {
                inline.clone().or_else(|| words.next().cloned()).ok_or_else(|| ArgumentError::Value(flag.to_owned()))
            };
            match flag {
                "namespace" => call.namespace = value()?,
                "address" => call.address = value()?,
                "id" => call.id = value()?,
                "bundle" => call.bundle = Some(PathBuf::from(value()?)),
                "debug" => call.debug = yes,
                "v" if yes => shown = Some(Action::Version),
                "info" if yes => shown = Some(Action::Info),
                "v" | "info" => {}
                // Events go to the address in the environment, and the socket is where it has to be.
                "publish-binary" | "socket" => drop(value()?),
                _ => return Err(ArgumentError::Unknown(flag.to_owned())),
            }
        };
        if let Some(shown) = shown {
            return Ok(Invocation { action: shown, ..call });
        }
        call.action = match action {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some(other) => return Err(ArgumentError::Action(other.to_owned())),
            None => return Err(ArgumentError::NoAction),
        };
        call.check()
    }

    fn check(self) -> Result<Invocation, ArgumentError> {
        if self.namespace.is_empty() {
            return Err(ArgumentError::Missing("namespace"));
        }
        if self.id.is_empty() {
            return Err(ArgumentError::Missing("id"));
        }
        if is_id(&self.id) { Ok(self) } else { Err(ArgumentError::Id(self.id)) }
    }
}

/// Whether `text` has the form that containers and processes are named in.
pub(crate) fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(fits) && text.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Invocation, ArgumentError> {
        Invocation::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_call_of_containerd_is_understood() {
        let call = parse(
            "-namespace default -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id x1 \
             -bundle /run/b -debug start",
        );
        let call = call.unwrap();
        assert_eq!((call.action, call.namespace.as_str(), call.id.as_str()), (Action::Start, "default", "x1"));
        assert_eq!(call.address, "/run/containerd/containerd.sock");
        assert_eq!(call.bundle, Some(PathBuf::from("/run/b")));
        assert!(call.debug);
        let call = parse("--namespace=k8s.io --id=x -debug=false delete").unwrap();
        assert_eq!((call.action, call.debug, call.bundle), (Action::Delete, false, None));
    }

    #[test]
    fn questions_need_nothing_else() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v=false -namespace n -id i start").unwrap().action, Action::Start);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(""), Err(ArgumentError::NoAction));
        assert_eq!(parse("-id x start"), Err(ArgumentError::Missing("namespace")));
        assert_eq!(parse("-namespace n start"), Err(ArgumentError::Missing("id")));
        assert_eq!(parse("-namespace n -id x run"), Err(ArgumentError::Action("run".into())));
        assert_eq!(parse("-frob"), Err(ArgumentError::Unknown("frob".into())));
        assert_eq!(parse("-id"), Err(ArgumentError::Value("id".into())));
        for id in ["../x", "a/b", ".", "-a"] {
            assert_eq!(parse(&format!("-namespace n -id={id} start")), Err(ArgumentError::Id(id.into())));
        }
    }
}
