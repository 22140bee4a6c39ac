//! What is looked at in a FUSE request before virtiofsd sees it: its head, and the names it gives to things.
//!
//! Pure: judges bytes that the guest cannot change any more. The file server resolves most names with `openat2` below their
//! folder, but makes, renames and removes with calls that would follow a path; Linux sends plain names only, so anything else
//! is an attack, whatever root the process has.

use crate::virtio::Fault;

/// `struct fuse_in_header`.
pub(super) const HEAD_BYTES: usize = 40;
/// `struct fuse_out_header`, which every reply begins with.
pub(super) const REPLY_HEAD_BYTES: u32 = 16;
/// A write's head and `struct fuse_write_in`; what follows is data.
const WRITE_BYTES: usize = HEAD_BYTES + 40;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const WRITE: u32 = 16;
const CREATE: u32 = 35;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;
const RENAME2: u32 = 45;

/// A request's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    opcode: u32,
}

impl Head {
    /// Reads the head of a request that is `len` bytes long.
    ///
    /// # Errors
    /// When the request says that it has another length.
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES], len: u32) -> Result<Head, Fault> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if word(0) != len {
            return Err(Fault::Request(format!("a FUSE request of {len} bytes that says it has {}", word(0))));
        }
        Ok(Head { opcode: word(4) })
    }

    /// How many of a request's `len` bytes are not file data.
    pub(super) fn parameter_bytes(self, len: usize) -> usize {
        if self.opcode == WRITE { len.min(WRITE_BYTES) } else { len }
    }

    /// Whether it may come with no room for a reply; over others virtiofsd would panic.
    ///
    /// # Errors
    /// When it may not.
    pub(super) fn check_room(self, room: u32) -> Result<(), Fault> {
        let is_silent = matches!(self.opcode, FORGET | INTERRUPT | DESTROY | BATCH_FORGET);
        if room >= REPLY_HEAD_BYTES || is_silent {
            return Ok(());
        }
        Err(Fault::Request(format!("FUSE request {} with {room} bytes for a reply", self.opcode)))
    }

    /// Holds the names in a request (`bytes` with its head) to being names.
    ///
    /// # Errors
    /// When one is a path, empty, or without an end.
    pub(super) fn check_names(self, bytes: &[u8]) -> Result<(), Fault> {
        // How many bytes of parameters come first, and how many names then.
        let (skip, names) = match self.opcode {
            LOOKUP | SYMLINK | UNLINK | RMDIR => (0, 1),
            MKDIR | LINK => (8, 1),
            MKNOD | CREATE => (16, 1),
            RENAME => (8, 2),
            RENAME2 => (16, 2),
            _ => return Ok(()),
        };
        let mut rest = bytes.get(HEAD_BYTES + skip..).unwrap_or_default();
        for _ in 0..names {
            let end = rest.iter().position(|&byte| byte == 0);
            let Some(end) = end.filter(|&end| is_name(&rest[..end])) else {
                return Err(Fault::Request(format!("FUSE request {} with a name that is none", self.opcode)));
            };
            rest = &rest[end + 1..];
        }
        Ok(())
    }
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(opcode: u32, body: &[u8]) -> Result<(), Fault> {
        let len = (HEAD_BYTES + body.len()) as u32;
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
        bytes.extend_from_slice(body);
        let head = Head::parse(bytes.first_chunk().unwrap(), len)?;
        head.check_names(&bytes)
    }

    #[test]
    fn names_are_found_behind_their_parameters() {
        let sixteen = [b'/'; 16];
        for (opcode, skip, names) in [
            (LOOKUP, 0, 1),
            (SYMLINK, 0, 1),
            (MKNOD, 16, 1),
            (MKDIR, 8, 1),
            (UNLINK, 0, 1),
            (RMDIR, 0, 1),
            (RENAME, 8, 2),
            (LINK, 8, 1),
            (CREATE, 16, 1),
            (RENAME2, 16, 2),
        ] {
            for (name, is_good) in
                [("a", true), ("...", true), ("a/b", false), ("/", false), ("..", false), (".", false)]
            {
                // The last name is the one to be judged; what follows it (a link's target, extensions) is free.
                let before = ["first\0".as_bytes()].repeat(names - 1).concat();
                let body = [&sixteen[..skip], &before, name.as_bytes(), b"\0/free/\0"].concat();
                assert_eq!(judge(opcode, &body).is_ok(), is_good, "{opcode} {name:?}");
            }
            assert!(judge(opcode, &sixteen[..skip]).is_err(), "{opcode} with nothing");
            assert!(judge(opcode, &[&sixteen[..skip], b"endless"].concat()).is_err(), "{opcode} without an end");
            assert!(judge(opcode, &sixteen[..skip / 2]).is_err(), "{opcode} cut off");
            assert!(judge(opcode, &[&sixteen[..skip], b"\0\0"].concat()).is_err(), "{opcode} without a name");
        }
    }

    #[test]
    fn other_requests_may_hold_anything() {
        judge(22, b"\0/../\0").unwrap();
    }

    #[test]
    fn data_is_not_among_the_parameters() {
        let head = |opcode| Head { opcode };
        assert_eq!(head(WRITE).parameter_bytes(5000), 80);
        assert_eq!(head(WRITE).parameter_bytes(41), 41);
        assert_eq!(head(LOOKUP).parameter_bytes(5000), 5000);
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        assert!(Head::parse(&[0; HEAD_BYTES], 40).is_err());
    }
}
