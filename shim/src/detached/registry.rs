//! Which containers there are on this host, and which one a person means.
//!
//! Reads records and asks locks; talks to nobody. What front ends other than this one start is theirs.

use std::time::SystemTime;

use crate::containerd::lifecycle::KILLED;
use crate::sandbox::folder::{self, Found, Places};
use crate::sandbox::kept::{self, Ended, Kept, Record};

/// Where its socket is in a sandbox's folder.
pub(super) const SOCKET: &str = "task.sock";

/// A container that there is, or was.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) kept: Kept,
    pub(super) found: Found,
}

/// Nobody, or too many.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LookupError {
    #[error("no such container: {0} (`tatami ps -a` lists them)")]
    None(String),
    #[error("{0} is the beginning of more than one id ({1}): give more of it")]
    Ambiguous(String, String),
}

/// All, the newest first.
pub(super) fn all(places: &Places) -> Vec<Entry> {
    let kept = kept::all(places).into_iter().map(|record| (Kept::at(places, &record.id), record));
    // Without the folder there is none in the foreground.
    let passing = folder::all(places).unwrap_or_default().into_iter().filter_map(|found| {
        let kept = Kept::passing(found.state());
        kept.read().map(|record| (kept, record))
    });
    let mut entries: Vec<Entry> = kept
        .chain(passing)
        .map(|(kept, record)| Entry { kept, found: folder::at(places, &record.id), record })
        .filter(|entry| !entry.is_forgotten())
        .collect();
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.record.created, entry.record.id.clone())));
    entries
}

/// The one called `word`: by name, by id, or by the beginning of its id, in this order.
///
/// # Errors
/// [`LookupError`].
pub(super) fn find(places: &Places, word: &str) -> Result<Entry, LookupError> {
    let entries = all(places);
    let named = |entry: &&Entry| entry.record.name.as_deref() == Some(word) || entry.record.id == word;
    if let Some(entry) = entries.iter().find(named) {
        return Ok(entry.clone());
    }
    let mut fitting = entries.into_iter().filter(|entry| !word.is_empty() && entry.record.id.starts_with(word));
    match (fitting.next(), fitting.next()) {
        (Some(entry), None) => Ok(entry),
        (Some(one), Some(two)) => {
            let ids = format!("{}, {}", one.record.id, two.record.id);
            Err(LookupError::Ambiguous(word.to_owned(), ids))
        }
        _ => Err(LookupError::None(word.to_owned())),
    }
}

impl Entry {
    /// As a person calls it: by name if it has one.
    pub(super) fn name(&self) -> &str {
        self.record.name.as_deref().unwrap_or(&self.record.id)
    }

    /// Whether its server lives.
    pub(super) fn lives(&self) -> bool {
        self.found.lives()
    }

    /// How it ended, if it has; a server that was killed leaves nobody who knows.
    pub(super) fn ended(&self) -> Option<Ended> {
        // First the lock: a server writes the end before it lets go.
        let lives = self.lives();
        let record = self.kept.read();
        let ended = record.as_ref().unwrap_or(&self.record).ended.clone();
        let lost = || Ended {
            status: KILLED,
            at: SystemTime::UNIX_EPOCH,
            error: Some("its sandbox server was killed".to_owned()),
        };
        ended.or_else(|| (!lives).then(lost))
    }

    /// One that was to go with its sandbox, whose server could not see to it.
    fn is_forgotten(&self) -> bool {
        if !(self.record.auto_remove || self.record.foreground) || self.lives() {
            return false;
        }
        if self.record.foreground {
            // It goes with its sandbox's folder, which somebody is removing.
            return true;
        }
        if let Err(error) = self.kept.remove() {
            log::warn!("cannot remove {}: {error}", self.kept.folder().display());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::kept::tests::record;

    fn keep(places: &Places, id: &str, name: Option<&str>) {
        Kept::create(places, id).unwrap().write(&record(id, name)).unwrap();
    }

    #[test]
    fn names_come_before_ids_and_prefixes_must_be_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        keep(&places, "aaaaaaaaaaa1", Some("web"));
        keep(&places, "aaaaaaaaaab2", Some("aaaaaaaaaaa"));
        keep(&places, "bbbbbbbbbbb3", None);
        let id = |word: &str| find(&places, word).map(|entry| entry.record.id);
        assert_eq!(id("web").as_deref(), Ok("aaaaaaaaaaa1"));
        assert_eq!(id("aaaaaaaaaaa").as_deref(), Ok("aaaaaaaaaab2"));
        assert_eq!(id("b").as_deref(), Ok("bbbbbbbbbbb3"));
        assert!(matches!(id("aaaa"), Err(LookupError::Ambiguous(..))));
        for word in ["", "we", "c", "../web"] {
            assert!(matches!(id(word), Err(LookupError::None(_))), "{word}");
        }
    }

    #[test]
    fn a_server_that_is_gone_without_a_word_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        keep(&places, "aaaaaaaaaaa1", None);
        let entry = find(&places, "a").unwrap();
        assert_eq!(entry.ended().unwrap().status, 137);
        let mut passing = record("bbbbbbbbbbb3", None);
        passing.auto_remove = true;
        let kept = Kept::create(&places, "bbbbbbbbbbb3").unwrap();
        kept.write(&passing).unwrap();
        assert!(find(&places, "b").is_err() && !kept.folder().exists());
    }

    #[test]
    fn one_in_the_foreground_is_there_as_long_as_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        let lot = folder::Lot::choose(&places).unwrap();
        let sandbox = folder::Folder::create(&places, lot, Some("web")).unwrap();
        assert!(all(&places).is_empty(), "it is being started");
        let mut shown = record(sandbox.id(), Some("web"));
        shown.foreground = true;
        Kept::passing(sandbox.state()).write(&shown).unwrap();
        let entry = find(&places, "web").unwrap();
        assert!(entry.lives() && entry.ended().is_none());
        drop(sandbox);
        assert!(matches!(find(&places, "web"), Err(LookupError::None(_))));
        assert_eq!(entry.ended().unwrap().status, 137);
        assert!(entry.found.remains(), "whoever removes it is somebody else");
    }
}
