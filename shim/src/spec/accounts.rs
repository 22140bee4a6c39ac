//! Users and groups of a container, looked up in its own `/etc/passwd` and `/etc/group` as Docker does.
//!
//! The files come from an image and are treated so: read below its root, bounded in size, bad lines passed over.

use crate::image::{Tree, TreeError};
use std::path::Path;

/// More of a file than this is not read.
const MAX_FILE: u64 = 4 << 20;
/// The largest id that Docker and the kernel's signed users agree on.
const MAX_ID: u32 = i32::MAX as u32;

/// What the two files of a root file system say.
#[derive(Debug, Default, Clone)]
pub struct Accounts {
    users: Vec<UserLine>,
    groups: Vec<GroupLine>,
}

#[derive(Debug, Clone)]
struct UserLine {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone)]
struct GroupLine {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// A user that a process can run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one included: what a group is denied must hold for it as well.
    pub groups: Vec<u32>,
    /// Home folder, `/` if nothing names one.
    pub home: String,
}

/// A user or group that cannot be found; the texts are Docker's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// No such user name.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// No such group name.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number that is no id.
    #[error("uids and gids must be in range 0-2147483647: {0}")]
    OutOfRange(String),
}

impl Accounts {
    /// Reads both files below `rootfs`, following links inside it only. A file that is missing is an empty one.
    pub fn read(rootfs: &Path) -> Result<Accounts, TreeError> {
        let tree = Tree::open(rootfs)?;
        let text = |name: &str| -> Result<String, TreeError> {
            let bytes = tree.read_file(Path::new(name), MAX_FILE)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Accounts::parse(&text("etc/passwd")?, &text("etc/group")?))
    }

    /// Parses the text of both files.
    pub fn parse(passwd: &str, group: &str) -> Accounts {
        Accounts {
            users: passwd.lines().filter_map(UserLine::parse).collect(),
            groups: group.lines().filter_map(GroupLine::parse).collect(),
        }
    }

    /// Looks up `USER`, `UID`, `USER:GROUP` and so on; the empty text is user 0. A number need not be in the files. The
    /// groups that list the user as a member are added only where no group is named.
    pub fn find(&self, text: &str) -> Result<Identity, AccountError> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let (line, uid) = self.find_user(if user.is_empty() { "0" } else { user })?;
        let mut gid = line.map_or(0, |line| line.gid);
        let mut groups = Vec::new();
        if !group.is_empty() {
            gid = self.find_group(group)?;
        } else if let Some(line) = line {
            let joined = self.groups.iter().filter(|group| group.members.contains(&line.name));
            groups.extend(joined.map(|group| group.gid));
        }
        groups.insert(0, gid);
        let mut seen = std::collections::HashSet::new();
        groups.retain(|gid| seen.insert(*gid));
        let home = line.map(|line| line.home.clone()).filter(|home| !home.is_empty());
        Ok(Identity { uid, gid, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
    }

    fn find_user(&self, text: &str) -> Result<(Option<&UserLine>, u32), AccountError> {
        let number = id(text)?;
        let line = self.users.iter().find(|line| line.name == text || Some(line.uid) == number);
        match (line, number) {
            (Some(line), _) => Ok((Some(line), line.uid)),
            (None, Some(uid)) => Ok((None, uid)),
            (None, None) => Err(AccountError::NoUser(text.to_owned())),
        }
    }

    fn find_group(&self, text: &str) -> Result<u32, AccountError> {
        let number = id(text)?;
        let line = self.groups.iter().find(|line| line.name == text || Some(line.gid) == number);
        line.map(|line| line.gid).or(number).ok_or_else(|| AccountError::NoGroup(text.to_owned()))
    }
}

/// A number is an id and must be in range; anything else is a name.
fn id(text: &str) -> Result<Option<u32>, AccountError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(AccountError::OutOfRange(text.to_owned())),
    }
}

impl UserLine {
    /// passwd(5): `name:password:uid:gid:comment:home:shell`.
    fn parse(line: &str) -> Option<UserLine> {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = &fields[..] else { return None };
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let home = rest.get(1).copied().unwrap_or_default().to_owned();
        Some(UserLine { name: (*name).to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    }
}

impl GroupLine {
    /// group(5): `name:password:gid:member,member`.
    fn parse(line: &str) -> Option<GroupLine> {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, rest @ ..] = &fields[..] else { return None };
        if name.is_empty() || name.starts_with('#') {
            return None;
        }
        let members = rest.first().copied().unwrap_or_default().split(',').filter(|member| !member.is_empty());
        Some(GroupLine {
            name: (*name).to_owned(),
            gid: gid.parse().ok()?,
            members: members.map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "# comment\nroot:x:0:0:root:/root:/bin/sh\nbroken\nanna:x:1000:1000::/home/anna:/bin/sh\n\
                          :x:5:5::/:\nshort:x:7:8\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:anna,root\nwheel:x:10:anna\nanna:x:1000:\nwheel2:x:10:anna\n";

    fn find(text: &str) -> Result<Identity, AccountError> {
        Accounts::parse(PASSWD, GROUP).find(text)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn names_and_numbers_find_the_same_user_with_all_groups() {
        let anna = identity(1000, 1000, &[1000, 29, 10], "/home/anna");
        assert_eq!(find("anna").unwrap(), anna);
        assert_eq!(find("1000").unwrap(), anna);
        assert_eq!(find("").unwrap(), identity(0, 0, &[0, 29], "/root"));
    }

    #[test]
    fn a_named_group_replaces_all_others() {
        assert_eq!(find("anna:audio").unwrap(), identity(1000, 29, &[29], "/home/anna"));
        assert_eq!(find("anna:4242").unwrap(), identity(1000, 4242, &[4242], "/home/anna"));
        assert_eq!(find(":wheel").unwrap(), identity(0, 10, &[10], "/root"));
    }

    #[test]
    fn a_number_need_not_be_listed() {
        assert_eq!(find("4242").unwrap(), identity(4242, 0, &[0], "/"));
        assert_eq!(Accounts::default().find("").unwrap(), identity(0, 0, &[0], "/"));
    }

    #[test]
    fn errors_read_as_dockers() {
        let texts = |text: &str| find(text).unwrap_err().to_string();
        assert_eq!(texts("bob"), "unable to find user bob: no matching entries in passwd file");
        assert_eq!(texts("anna:bobs"), "unable to find group bobs: no matching entries in group file");
        assert_eq!(texts("2147483648"), "uids and gids must be in range 0-2147483647: 2147483648");
        assert_eq!(texts("-1"), "uids and gids must be in range 0-2147483647: -1");
        assert_eq!(texts("0:99999999999"), "uids and gids must be in range 0-2147483647: 99999999999");
    }

    #[test]
    fn a_short_line_has_no_home() {
        assert_eq!(find("short").unwrap(), identity(7, 8, &[8], "/"));
    }

    #[test]
    fn links_in_a_root_file_system_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("real")).unwrap();
        std::fs::write(root.path().join("real/passwd"), "inside:x:5:6::/in:\n").unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("etc")).unwrap();
        let accounts = Accounts::read(root.path()).unwrap();
        assert_eq!(accounts.find("inside").unwrap().uid, 5);
        assert!(accounts.find("root").is_err(), "the host's /etc/passwd was read");
    }
}
