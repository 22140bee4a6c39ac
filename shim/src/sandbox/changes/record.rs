//! What fanotify(7) reports, as it lies in the buffer of a read: events by file handle, with folder and name.
//!
//! Pure: takes bytes, borrows from them, and does no I/O. A record that does not fit ends the reading. Knows nothing of what the
//! handles stand for.

use libc::{
    FAN_EVENT_INFO_TYPE_DFID, FAN_EVENT_INFO_TYPE_DFID_NAME, FAN_EVENT_INFO_TYPE_FID,
    FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, FANOTIFY_METADATA_VERSION,
};

/// Bytes of `struct fanotify_event_metadata`.
const METADATA: usize = 24;
/// Bytes of `struct fanotify_event_info_header`.
const HEADER: usize = 4;
/// Bytes of the file system's id before a handle, and of the handle's length and type.
const FSID: usize = 8;
const HANDLE: usize = 8;

/// A file: the id of its file system and its `struct file_handle`, as the kernel lays them one after the other.
pub(super) type Handle<'a> = &'a [u8];

/// A name in a folder; `.` is the folder itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) folder: Handle<'a>,
    pub(super) name: &'a [u8],
}

/// One or more things that happened to a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// `FAN_*`.
    pub(super) mask: u64,
    /// Whose doing it was; 0 if that is not to be seen from here.
    pub(super) pid: i32,
    /// Where.
    pub(super) at: Option<Entry<'a>>,
    /// Of a rename: where it was, and where it is, each if watched.
    pub(super) old: Option<Entry<'a>>,
    pub(super) new: Option<Entry<'a>>,
    /// The file itself.
    pub(super) file: Option<Handle<'a>>,
}

/// The events in a buffer.
pub(super) struct Events<'a> {
    rest: &'a [u8],
}

impl<'a> Events<'a> {
    /// Those in `read`, which one read(2) filled.
    pub(super) fn new(read: &'a [u8]) -> Events<'a> {
        Events { rest: read }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let length = number(self.rest, 0)? as usize;
        let (version, metadata) = (*self.rest.get(4)?, usize::from(u16::from_ne_bytes(bytes(self.rest, 6)?)));
        if version != FANOTIFY_METADATA_VERSION || metadata < METADATA || length < metadata {
            return None;
        }
        let mut event = Event {
            mask: u64::from_ne_bytes(bytes(self.rest, 8)?),
            pid: number(self.rest, 20)? as i32,
            ..Event::default()
        };
        let mut records = self.rest.get(metadata..length)?;
        while !records.is_empty() {
            let length = usize::from(u16::from_ne_bytes(bytes(records, 2)?));
            if length < HEADER {
                return None;
            }
            event.take(records[0], records.get(HEADER..length)?)?;
            records = &records[length..];
        }
        self.rest = &self.rest[length..];
        Some(event)
    }
}

impl<'a> Event<'a> {
    /// The file or folder that it happened to, rather than the folder that this is in.
    pub(super) fn itself(&self) -> Option<Handle<'a>> {
        self.file.or(self.at.filter(|entry| entry.name == b".").map(|entry| entry.folder))
    }

    /// Notes one record; those of unknown kinds are passed over.
    fn take(&mut self, kind: u8, record: &'a [u8]) -> Option<()> {
        let entry = |record| {
            let (folder, rest) = split(record)?;
            Some(Entry { folder, name: rest.split(|&byte| byte == 0).next().unwrap_or_default() })
        };
        match kind {
            FAN_EVENT_INFO_TYPE_FID => self.file = Some(split(record)?.0),
            FAN_EVENT_INFO_TYPE_DFID => self.at = Some(Entry { folder: split(record)?.0, name: b"." }),
            FAN_EVENT_INFO_TYPE_DFID_NAME => self.at = Some(entry(record)?),
            FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => self.old = Some(entry(record)?),
            FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => self.new = Some(entry(record)?),
            _ => {}
        }
        Some(())
    }
}

/// A handle, and what follows it.
fn split(record: &[u8]) -> Option<(Handle<'_>, &[u8])> {
    record.split_at_checked(FSID + HANDLE + number(record, FSID)? as usize)
}

fn number(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A handle of some file system, with `id` in it.
    pub(in crate::sandbox::changes) fn handle(id: u8) -> Vec<u8> {
        [&[7; FSID][..], &4_u32.to_ne_bytes(), &1_i32.to_ne_bytes(), &[id, 0, 0, 0]].concat()
    }

    fn record(kind: u8, handle: &[u8], name: Option<&str>) -> Vec<u8> {
        let mut body = handle.to_vec();
        if let Some(name) = name {
            body.extend(name.as_bytes());
            body.push(0);
        }
        // Records are padded to four bytes.
        body.resize(body.len().next_multiple_of(4), 0);
        let length = (HEADER + body.len()) as u16;
        [&[kind, 0][..], &length.to_ne_bytes(), &body].concat()
    }

    fn event(mask: u64, pid: i32, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let length = (METADATA + records.len()) as u32;
        let mut event = length.to_ne_bytes().to_vec();
        event.extend([FANOTIFY_METADATA_VERSION, 0]);
        event.extend((METADATA as u16).to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend((-1_i32).to_ne_bytes());
        event.extend(pid.to_ne_bytes());
        event.extend(records);
        event
    }

    #[test]
    fn events_carry_folder_name_and_file() {
        let (folder, file, other) = (handle(1), handle(2), handle(3));
        let mut read = event(
            libc::FAN_CREATE | libc::FAN_MODIFY,
            77,
            &[
                record(FAN_EVENT_INFO_TYPE_DFID_NAME, &folder, Some("a file")),
                record(FAN_EVENT_INFO_TYPE_FID, &file, None),
                record(99, &[], None),
            ],
        );
        read.extend(event(
            libc::FAN_RENAME,
            0,
            &[
                record(FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, &folder, Some("a file")),
                record(FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, &other, Some("b")),
            ],
        ));
        read.extend(event(libc::FAN_Q_OVERFLOW, 0, &[]));
        let events: Vec<Event<'_>> = Events::new(&read).collect();
        let entry = |folder, name| Some(Entry { folder, name });
        assert_eq!(events.len(), 3);
        assert_eq!((events[0].mask, events[0].pid), (libc::FAN_CREATE | libc::FAN_MODIFY, 77));
        assert_eq!((events[0].at, events[0].file), (entry(&folder[..], &b"a file"[..]), Some(&file[..])));
        assert_eq!((events[1].old, events[1].new), (entry(&folder, b"a file"), entry(&other, b"b")));
        assert_eq!((events[2].mask, events[2].at), (libc::FAN_Q_OVERFLOW, None));
    }

    #[test]
    fn what_does_not_fit_ends_the_reading() {
        let folder = handle(1);
        let whole = event(libc::FAN_CREATE, 1, &[record(FAN_EVENT_INFO_TYPE_DFID_NAME, &folder, Some("name"))]);
        assert_eq!(Events::new(&whole).count(), 1);
        for length in 0..whole.len() {
            assert_eq!(Events::new(&whole[..length]).count(), 0, "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut wrong = whole.clone();
                wrong[at] = value;
                // Whatever it makes of it: it ends, and names nothing from elsewhere.
                assert!(Events::new(&wrong).count() <= 1);
            }
        }
    }
}
