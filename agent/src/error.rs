//! Why a request was not carried out, sorted as its client needs it.
//!
//! Knows no wire format: the service turns each kind into its status code.

/// A refusal or failure, with a message for the user of the sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such container, process or command.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The request cannot be carried out as written.
    #[error("{0}")]
    InvalidArgument(String),
    /// Right request, wrong moment.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The command may not be executed.
    #[error("{0}")]
    PermissionDenied(String),
    /// Everything else; the message names the cause.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Wraps what the system said while `doing` something.
    pub(crate) fn internal(doing: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |cause| Self::Internal(format!("{doing}: {cause}"))
    }
}
