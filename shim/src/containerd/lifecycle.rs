//! Where a process is in its life, and what can be asked of it there.
//!
//! Pure: it says yes or no and remembers; what was asked is carried out elsewhere.

use std::time::SystemTime;

use super::error::TaskError;

/// The status of a process that was killed because its machine ended.
pub(crate) const KILLED: u32 = 137;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0 to 255, or 128 + n for signal n.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    /// One that happens now.
    pub(crate) fn now(status: u32) -> Exit {
        Exit { status, at: SystemTime::now() }
    }
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It waits to be started.
    Created,
    /// Its command runs.
    Running,
    /// It stands still, to be resumed.
    Paused,
    /// It has ended, and all its output is handed over.
    Stopped(Exit),
}

/// A process's life.
#[derive(Debug)]
pub(super) struct Lifecycle {
    phase: Phase,
    deleted: bool,
}

impl Lifecycle {
    /// A process that was created.
    pub(super) fn new() -> Lifecycle {
        Lifecycle { phase: Phase::Created, deleted: false }
    }

    /// Where it is.
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// How it ended, if it has.
    pub(super) fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether it can be started.
    pub(super) fn may_start(&self) -> Result<(), TaskError> {
        self.refuse("start", matches!(self.phase, Phase::Created))
    }

    /// It runs. One that has ended meanwhile stays ended.
    pub(super) fn started(&mut self) {
        if self.phase == Phase::Created {
            self.phase = Phase::Running;
        }
    }

    /// Whether it can be signalled.
    pub(super) fn may_signal(&self) -> Result<(), TaskError> {
        match self.phase {
            Phase::Stopped(_) => Err(TaskError::NotFound("process already finished: not found".to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether it can be paused.
    pub(super) fn may_pause(&self) -> Result<(), TaskError> {
        self.refuse("pause", matches!(self.phase, Phase::Running))
    }

    /// It stands still.
    pub(super) fn paused(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Paused;
        }
    }

    /// Whether it can be resumed.
    pub(super) fn may_resume(&self) -> Result<(), TaskError> {
        self.refuse("resume", matches!(self.phase, Phase::Paused))
    }

    /// It goes on.
    pub(super) fn resumed(&mut self) {
        if self.phase == Phase::Paused {
            self.phase = Phase::Running;
        }
    }

    /// Whether processes can join it, or its limits be changed.
    pub(super) fn may_change(&self, what: &str) -> Result<(), TaskError> {
        self.refuse(what, !matches!(self.phase, Phase::Stopped(_)))
    }

    /// It ended; whether that is news.
    pub(super) fn ended(&mut self, exit: Exit) -> bool {
        let news = self.exit().is_none();
        if news {
            self.phase = Phase::Stopped(exit);
        }
        news
    }

    /// Claims its removal, which happens once: of a process that has ended, or was never started.
    pub(super) fn delete(&mut self) -> Result<(), TaskError> {
        if self.deleted {
            return Err(TaskError::NotFound("the process is being deleted".to_owned()));
        }
        self.refuse("delete", matches!(self.phase, Phase::Created | Phase::Stopped(_)))?;
        self.deleted = true;
        Ok(())
    }

    /// The removal failed, and can be claimed again.
    pub(super) fn not_deleted(&mut self) {
        self.deleted = false;
    }

    fn refuse(&self, what: &str, allowed: bool) -> Result<(), TaskError> {
        let state = match self.phase {
            _ if allowed => return Ok(()),
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopped(_) => "stopped",
        };
        Err(TaskError::FailedPrecondition(format!("cannot {what} a process that is {state}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_goes_one_way() {
        let mut life = Lifecycle::new();
        life.may_start().unwrap();
        life.may_signal().unwrap();
        assert!(life.may_pause().is_err() && life.may_resume().is_err());
        life.started();
        assert_eq!(life.phase(), Phase::Running);
        assert!(life.may_start().is_err());
        assert!(matches!(life.delete(), Err(TaskError::FailedPrecondition(_))));
        life.may_pause().unwrap();
        life.paused();
        assert!(life.may_pause().is_err());
        life.may_resume().unwrap();
        life.resumed();
        let exit = Exit::now(3);
        assert!(life.ended(exit));
        assert!(!life.ended(Exit::now(4)), "an end is news once");
        assert_eq!(life.exit(), Some(exit));
        assert!(matches!(life.may_signal(), Err(TaskError::NotFound(_))));
        assert!(life.may_start().is_err() && life.may_pause().is_err() && life.may_change("update").is_err());
        life.delete().unwrap();
        assert!(matches!(life.delete(), Err(TaskError::NotFound(_))));
    }

    #[test]
    fn what_ends_while_it_starts_or_stands_still_has_ended() {
        let mut life = Lifecycle::new();
        assert!(life.ended(Exit::now(1)));
        life.started();
        life.paused();
        life.resumed();
        assert_eq!(life.exit().unwrap().status, 1);
        let mut life = Lifecycle::new();
        life.started();
        life.paused();
        assert!(life.ended(Exit::now(KILLED)));
        assert_eq!(life.exit().unwrap().status, KILLED);
    }

    #[test]
    fn what_was_never_started_can_go_and_a_failed_removal_can_be_repeated() {
        let mut life = Lifecycle::new();
        life.delete().unwrap();
        life.not_deleted();
        life.delete().unwrap();
    }
}
