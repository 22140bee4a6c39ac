//! Why a call was not carried out, in the terms that containerd's clients tell apart.

use ttrpc::Code;

use crate::sandbox;
use crate::sandbox::agent::AgentError;
use crate::sandbox::volumes::VolumeError;

/// A refusal, each with what to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TaskError {
    /// No such container or process, or none any more.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// Not in this state.
    #[error("{0}")]
    FailedPrecondition(String),
    /// Not understood, or not possible.
    #[error("{0}")]
    InvalidArgument(String),
    /// Not to be had from this runtime.
    #[error("{0}")]
    Unimplemented(String),
    /// It should have worked.
    #[error("{0}")]
    Failed(String),
}

impl TaskError {
    /// For `map_err`: a failure with what was attempted before the reason.
    pub(crate) fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> TaskError {
        move |error| TaskError::Failed(format!("{what}: {error}"))
    }

    /// The same kind of refusal, in these words.
    fn with(self, text: String) -> TaskError {
        match self {
            TaskError::NotFound(_) => TaskError::NotFound(text),
            TaskError::AlreadyExists(_) => TaskError::AlreadyExists(text),
            TaskError::FailedPrecondition(_) => TaskError::FailedPrecondition(text),
            TaskError::InvalidArgument(_) => TaskError::InvalidArgument(text),
            TaskError::Unimplemented(_) => TaskError::Unimplemented(text),
            TaskError::Failed(_) => TaskError::Failed(text),
        }
    }

    /// With its kind at the end, as other shims say it: containerd 2 shows its users the words alone, without the code.
    fn told(&self) -> String {
        let kind = match self {
            TaskError::NotFound(_) => "not found",
            TaskError::AlreadyExists(_) => "already exists",
            TaskError::FailedPrecondition(_) => "failed precondition",
            TaskError::InvalidArgument(_) => "invalid argument",
            TaskError::Unimplemented(_) => "not implemented",
            TaskError::Failed(text) => return text.clone(),
        };
        let text = self.to_string();
        if text.ends_with(kind) { text } else { format!("{text}: {kind}") }
    }

    fn code(&self) -> Code {
        match self {
            TaskError::NotFound(_) => Code::NOT_FOUND,
            TaskError::AlreadyExists(_) => Code::ALREADY_EXISTS,
            TaskError::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            TaskError::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            TaskError::Unimplemented(_) => Code::UNIMPLEMENTED,
            TaskError::Failed(_) => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.told()))
    }
}

impl From<VolumeError> for TaskError {
    fn from(error: VolumeError) -> TaskError {
        let text = error.to_string();
        TaskError::from(error.error).with(text)
    }
}

impl From<sandbox::Error> for TaskError {
    fn from(error: sandbox::Error) -> TaskError {
        let text = error.to_string();
        match error {
            sandbox::Error::Agent(AgentError::Refused { code, .. }) => match code {
                Code::NOT_FOUND => TaskError::NotFound(text),
                Code::ALREADY_EXISTS => TaskError::AlreadyExists(text),
                Code::FAILED_PRECONDITION => TaskError::FailedPrecondition(text),
                Code::INVALID_ARGUMENT => TaskError::InvalidArgument(text),
                Code::UNIMPLEMENTED => TaskError::Unimplemented(text),
                _ => TaskError::Failed(text),
            },
            // What clients look for in the text decides whether it is 126 or 127 to them.
            sandbox::Error::Command { .. } => TaskError::Failed(format!("OCI runtime exec failed: {text}")),
            _ => TaskError::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_refusals_keep_their_kind() {
        let refused = |code| {
            sandbox::Error::Agent(AgentError::Refused { call: "SignalProcess", code, message: "why".to_owned() })
        };
        assert_eq!(TaskError::from(refused(Code::NOT_FOUND)), TaskError::NotFound("why".into()));
        assert_eq!(TaskError::from(refused(Code::INVALID_ARGUMENT)), TaskError::InvalidArgument("why".into()));
        assert_eq!(TaskError::from(refused(Code::INTERNAL)), TaskError::Failed("why".into()));
    }

    #[test]
    fn a_kind_is_told_once_and_last() {
        let told = |error: TaskError| error.told();
        assert_eq!(told(TaskError::AlreadyExists("process e1".into())), "process e1: already exists");
        assert_eq!(
            told(TaskError::NotFound("process already finished: not found".into())),
            "process already finished: not found"
        );
        assert_eq!(told(TaskError::Failed("why".into())), "why");
    }

    #[test]
    fn a_command_that_is_missing_reads_as_oci_runtimes_say_it() {
        let error = sandbox::Error::Command { message: "exec: \"x\": not found".into(), missing: true };
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(TaskError::from(error)) else { panic!("a status") };
        assert_eq!(status.code(), Code::UNKNOWN);
        assert_eq!(status.message(), "OCI runtime exec failed: exec: \"x\": not found");
    }
}
