//! Files and folders as a stream: what both ends of a copy between host and container do, written once.
//!
//! One end [`pack`]s a tree, the other [`unpack`]s it; between them travel [`stream`]'s entries, not tar, so that what an end has to
//! understand of the other is a page. Neither end believes the other: names are judged when they are read, and whatever is opened or made
//! is opened or made in a folder that is open already, without following a link. An [`Order`] says what the end in the container shall
//! do. Knows nothing of guests, sandboxes or how the stream gets across.

mod order;
mod pack;
pub mod stream;
mod target;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};

pub use order::Order;
pub use pack::{Notes, pack};
pub use target::{Destination, Form};
pub use unpack::{Options, unpack};

/// Why a copy ends early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file system would not.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It would do harm, or is not meant.
    #[error("{}: {why}", path.display())]
    Refused {
        /// What is.
        path: PathBuf,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The other end said something that it may not say.
    #[error("the other end sends {0}")]
    Malformed(&'static str),
    /// The other end went away.
    #[error("the other end stopped half-way")]
    Early,
    /// The connection to the other end.
    #[error("the connection to the other end: {0}")]
    Stream(#[source] io::Error),
}

impl CopyError {
    /// The connection's error, or its early end.
    fn of_stream(error: io::Error) -> CopyError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => CopyError::Early,
            _ => CopyError::Stream(error),
        }
    }
}

/// What was attempted on `path`, to be told with the reason.
fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> CopyError {
    move |source| CopyError::File { action, path: path.to_owned(), source: source.into() }
}
