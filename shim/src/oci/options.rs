//! The command line of an OCI runtime, in the form that runc's has: flags of the whole, a command, its flags, its words.
//!
//! A flag is `--name VALUE` or `--name=VALUE`, with one dash or two. Knows the forms; what the flags mean is the commands'.

use std::path::PathBuf;

/// A flag that a command understands.
pub(super) struct Flag {
    /// With `|x` behind it where there is a short form.
    name: &'static str,
    takes_value: bool,
    help: &'static str,
}

/// A flag that is there or not.
pub(super) const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, takes_value: false, help }
}

/// A flag with a value.
pub(super) const fn value(name: &'static str, help: &'static str) -> Flag {
    Flag { name, takes_value: true, help }
}

/// A command line that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UsageError {
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    Value(String),
    #[error("invalid value {0:?} for flag -{1}")]
    Invalid(String, &'static str),
    #[error("{0:?} is no command of an OCI runtime (see --help)")]
    Command(String),
}

/// Flags and words, as they were given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    flags: Vec<(&'static str, String)>,
    pub(super) words: Vec<String>,
}

impl Flag {
    fn long(&self) -> &'static str {
        self.name.split('|').next().unwrap_or(self.name)
    }

    fn is(&self, name: &str) -> bool {
        self.name.split('|').any(|form| form == name)
    }
}

impl Parsed {
    /// Reads `words`. With `stop`, the first that is no flag ends the flags: what follows is another command line.
    ///
    /// # Errors
    /// [`UsageError`] names the flag.
    pub(super) fn of(flags: &[Flag], words: &[String], stop: bool) -> Result<Parsed, UsageError> {
        let mut parsed = Parsed::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let dashed = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
            match dashed {
                Some("") if word == "--" => break,
                Some(flag) if !flag.is_empty() => {
                    let (name, inline) = match flag.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (flag, None),
                    };
                    let known = flags.iter().find(|flag| flag.is(name));
                    let known = known.ok_or_else(|| UsageError::Unknown(name.to_owned()))?;
                    let given = match (known.takes_value, inline) {
                        (_, Some(value)) => value,
                        (false, None) => "true".to_owned(),
                        (true, None) => words.next().cloned().ok_or_else(|| UsageError::Value(name.to_owned()))?,
                    };
                    parsed.flags.push((known.long(), given));
                }
                _ => {
                    parsed.words.push(word.clone());
                    if stop {
                        break;
                    }
                }
            }
        }
        parsed.words.extend(words.cloned());
        Ok(parsed)
    }

    /// Whether the switch is on.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| matches!(value, "true" | "1" | "t" | "T" | "TRUE" | "True"))
    }

    /// The last value that was given, if it is not empty.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.all(name).last().filter(|value| !value.is_empty())
    }

    /// Every value that was given.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// The value as a number.
    ///
    /// # Errors
    /// [`UsageError::Invalid`].
    pub(super) fn number(&self, name: &'static str) -> Result<Option<i64>, UsageError> {
        let parse = |text: &str| text.parse().map_err(|_| UsageError::Invalid(text.to_owned(), name));
        self.value(name).map(parse).transpose()
    }

    /// The value as a path.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }
}

/// What a flag is called and for, one a line.
pub(super) fn help(flags: &[Flag]) -> String {
    let line = |flag: &Flag| {
        let forms: Vec<String> =
            flag.name.split('|').map(|form| format!("{}{form}", if form.len() > 1 { "--" } else { "-" })).collect();
        let forms = forms.join(", ") + if flag.takes_value { " VALUE" } else { "" };
        format!("   {forms:<28} {}\n", flag.help)
    };
    flags.iter().map(line).collect()
}

/// The flags of the whole.
pub(super) const GLOBAL: &[Flag] = &[
    value("root", "folder with what is to be known of containers"),
    value("log", "file to which errors are written as well"),
    value("log-format", "form of those: text or json"),
    switch("debug", "log more"),
    switch("systemd-cgroup", "cgroup paths are systemd's: slice:prefix:name"),
    value("rootless", "accepted: containers of rootless users are refused"),
    value("criu", "accepted: there are no checkpoints"),
    switch("version|v", "print the version"),
    switch("help|h", "print this"),
];

/// What goes before the command.
#[derive(Debug, Default)]
pub(super) struct Global {
    pub(super) root: PathBuf,
    pub(super) log: Option<PathBuf>,
    pub(super) log_json: bool,
    pub(super) debug: bool,
    pub(super) shows_version: bool,
    pub(super) shows_help: bool,
}

impl Global {
    /// Reads the flags before the command; the command with all that follows comes back.
    ///
    /// # Errors
    /// [`UsageError`].
    pub(super) fn parse(words: &[String]) -> Result<(Global, Vec<String>), UsageError> {
        let parsed = Parsed::of(GLOBAL, words, true)?;
        let format = parsed.value("log-format").unwrap_or("text");
        if !matches!(format, "text" | "json") {
            return Err(UsageError::Invalid(format.to_owned(), "log-format"));
        }
        let global = Global {
            root: parsed.path("root").unwrap_or_else(super::default_root),
            log: parsed.path("log"),
            log_json: format == "json",
            debug: parsed.has("debug"),
            shows_version: parsed.has("version"),
            shows_help: parsed.has("help"),
        };
        Ok((global, parsed.words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[switch("all|a", ""), value("pid-file", ""), value("env|e", "")];

    fn parse(text: &str, stop: bool) -> Result<Parsed, UsageError> {
        Parsed::of(FLAGS, &words(text), stop)
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_taken_in_every_form() {
        let parsed = parse("-a --pid-file=/p id -e A=b --env C= 15", false).unwrap();
        assert!(parsed.has("all"));
        assert_eq!(parsed.value("pid-file"), Some("/p"));
        assert_eq!(parsed.all("env").collect::<Vec<_>>(), ["A=b", "C="]);
        assert_eq!(parsed.words, ["id", "15"]);
        assert!(!parse("--all=false id", false).unwrap().has("all"));
    }

    #[test]
    fn a_command_in_the_container_keeps_its_own_flags() {
        assert_eq!(parse("-a id ls -a --pid-file", true).unwrap().words, ["id", "ls", "-a", "--pid-file"]);
        assert_eq!(parse("-- -a", false).unwrap().words, ["-a"]);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse("--frob", false), Err(UsageError::Unknown("frob".into())));
        assert_eq!(parse("--pid-file", false), Err(UsageError::Value("pid-file".into())));
        let wrong = Global::parse(&words("--log-format xml list")).unwrap_err();
        assert_eq!(wrong, UsageError::Invalid("xml".into(), "log-format"));
        assert!(parse("-e x", false).unwrap().number("env").is_err());
    }

    #[test]
    fn what_podman_and_docker_say_first_is_understood() {
        let (global, rest) =
            Global::parse(&words("--root /r --log /l --log-format json --systemd-cgroup create --bundle /b x"))
                .unwrap();
        assert_eq!((global.root, global.log, global.log_json), ("/r".into(), Some("/l".into()), true));
        assert_eq!(rest, ["create", "--bundle", "/b", "x"]);
    }
}
