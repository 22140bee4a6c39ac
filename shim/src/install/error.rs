//! Why an installation, or taking it back, is not possible; nothing has been changed then, except where it says so.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be looked at.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// containerd's configuration is not TOML, or not as containerd reads it.
    #[error("{place}: {reason}")]
    Form {
        /// Where.
        place: Line,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Somebody else has made a runtime of this name.
    #[error(
        "{place}: there is a runtime `{handler}` that `tatami install` has not made; remove it, or choose another name with --handler"
    )]
    Taken {
        /// Where.
        place: Line,
        /// The name.
        handler: String,
    },
    /// Something else is where a file or link should be.
    #[error("{} is {what}, which `tatami install` has not made; {remedy}", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file cannot be changed without a risk to what is in it.
    #[error("cannot change {} without harm to the rest of it ({reason}); write into it yourself: {text}", path.display())]
    Edit {
        /// Which.
        path: PathBuf,
        /// What would be wrong with it then.
        reason: String,
        /// What should be in it.
        text: String,
    },
    /// A file that the command line names is of no use.
    #[error("--configuration {}: {reason}", path.display())]
    Configuration {
        /// As it was given.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A path that cannot stand in containerd's configuration.
    #[error("{} cannot stand in containerd's configuration: it is not UTF-8; use another folder", path.display())]
    Name {
        /// Which.
        path: PathBuf,
    },
    /// The running binary is not to be found.
    #[error("cannot tell where this binary is: {source}; mount /proc")]
    Binary {
        /// Why not.
        source: io::Error,
    },
    /// A change failed. Those before it were made; the command can be repeated.
    #[error("cannot {what}: {source}; what was said to be done is done, and the command can be repeated")]
    Change {
        /// Which change.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Nobody reads what is told.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    file: PathBuf,
    number: usize,
}

impl Line {
    /// The line of `text`, which is in `file`, that the byte at `offset` is in.
    pub(super) fn of(file: &Path, text: &str, offset: usize) -> Line {
        let before = text.get(..offset).unwrap_or(text);
        Line { file: file.to_owned(), number: 1 + before.matches('\n').count() }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.number)
    }
}
