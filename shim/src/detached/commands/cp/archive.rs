//! `-` in the place of a file: the stream between host and container as a tar archive, and the other way round.
//!
//! Archives are for the host's other programs. The container's end knows nothing of them.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};
use tatami_files::CopyError;
use tatami_files::stream::{self, Entry, Kind};

use crate::image::tar_stream::{self, TarError, TarStream};
use crate::image::{TreeError, tree};

/// The longest link that stands in a tar header as it is, in bytes.
const SHORT: usize = 100;

/// Why there is no archive, or no stream of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    #[error(transparent)]
    Stream(#[from] CopyError),
    #[error("standard input: {0}")]
    Tar(#[from] TarError),
    #[error("standard input: {}: {why}", String::from_utf8_lossy(name))]
    Name { name: Vec<u8>, why: TreeError },
    #[error("standard input: {0}")]
    Input(#[source] io::Error),
    #[error("cannot write the archive: {0}")]
    Output(#[source] io::Error),
}

/// Writes what the stream holds to `target`, below a first name.
///
/// # Errors
/// [`ArchiveError`].
pub(super) fn write(stream: &mut impl Read, root: &OsStr, target: impl Write) -> Result<(), ArchiveError> {
    let root = if root.is_empty() { OsStr::new(".") } else { root };
    let mut archive = Builder::new(BufWriter::new(target));
    while let Some(entry) = Entry::read(stream)? {
        append(&mut archive, root, &entry, stream)?;
    }
    archive.into_inner().and_then(|mut target| target.flush()).map_err(ArchiveError::Output)
}

fn append(
    archive: &mut Builder<impl Write>,
    root: &OsStr,
    entry: &Entry,
    stream: &mut impl Read,
) -> Result<(), ArchiveError> {
    let named =
        |name: &[u8]| if name.is_empty() { PathBuf::from(root) } else { Path::new(root).join(OsStr::from_bytes(name)) };
    let path = named(&entry.name);
    let mut header = Header::new_gnu();
    header.set_entry_type(match entry.kind {
        Kind::File => EntryType::Regular,
        Kind::Folder => EntryType::Directory,
        Kind::Link => EntryType::Symlink,
        Kind::HardLink => EntryType::Link,
        Kind::Fifo => EntryType::Fifo,
        Kind::CharDevice => EntryType::Char,
        Kind::BlockDevice => EntryType::Block,
    });
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime(u64::try_from(entry.mtime.0).unwrap_or_default());
    header.set_size(entry.size);
    let numbers = header.set_device_major(entry.device.0).and_then(|()| header.set_device_minor(entry.device.1));
    numbers.map_err(ArchiveError::Output)?;
    let link = match entry.kind {
        Kind::HardLink => named(&entry.link).into_os_string(),
        _ => OsString::from_vec(entry.link.clone()),
    };
    let written = match entry.kind {
        Kind::Link | Kind::HardLink if link.len() > SHORT => archive.append_link(&mut header, path, Path::new(&link)),
        // Word for word: the other way tidies it up.
        Kind::Link | Kind::HardLink => header
            .set_link_name_literal(link.as_bytes())
            .and_then(|()| archive.append_data(&mut header, path, io::empty())),
        Kind::Folder => {
            let path = [path.as_os_str().as_bytes(), b"/"].concat();
            archive.append_data(&mut header, OsStr::from_bytes(&path), io::empty())
        }
        _ => archive.append_data(&mut header, path, Exactly { stream, left: entry.size }),
    };
    written.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => CopyError::Early.into(),
        _ => ArchiveError::Output(error),
    })
}

/// So many bytes of a stream, and not fewer.
struct Exactly<'a, R> {
    stream: &'a mut R,
    left: u64,
}

impl<R: Read> Read for Exactly<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(bytes.len() as u64) as usize;
        let count = self.stream.read(&mut bytes[..want])?;
        if count == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads an archive from `source` to its end, and writes what it holds to the stream, as the contents of a folder.
///
/// # Errors
/// [`ArchiveError`].
pub(super) fn read(source: impl Read, stream: &mut impl Write) -> Result<(), ArchiveError> {
    let mut source = BufReader::new(source);
    Entry::new(Kind::Folder, Vec::new()).write(stream)?;
    let mut archive = TarStream::new(&mut source);
    while let Some(found) = archive.next_entry()? {
        let Some(entry) = entry_of(&found)? else { continue };
        entry.write(stream)?;
        let mut content = (&mut archive).take(entry.size);
        let mut chunk = vec![0; 64 * 1024];
        let mut left = entry.size;
        while left > 0 {
            let count = content.read(&mut chunk).map_err(ArchiveError::Input)?;
            if count == 0 {
                return Err(ArchiveError::Input(io::ErrorKind::UnexpectedEof.into()));
            }
            stream.write_all(&chunk[..count]).map_err(CopyError::Stream)?;
            left -= count as u64;
        }
    }
    stream::end(stream)?;
    // Who writes it is not to be told that nobody reads its last, empty blocks.
    io::copy(&mut source, &mut io::sink()).map(drop).map_err(ArchiveError::Input)
}

/// None for the archive's root.
fn entry_of(found: &tar_stream::Entry) -> Result<Option<Entry>, ArchiveError> {
    let below = |name: &[u8]| {
        let parts = tree::components(name).map_err(|why| ArchiveError::Name { name: name.to_vec(), why })?;
        Ok::<_, ArchiveError>(parts.join(OsStr::new("/")).into_vec())
    };
    let name = below(&found.path)?;
    if name.is_empty() {
        return Ok(None);
    }
    let (kind, link) = match found.kind {
        tar_stream::Kind::File => (Kind::File, Vec::new()),
        tar_stream::Kind::Directory => (Kind::Folder, Vec::new()),
        tar_stream::Kind::Symlink => (Kind::Link, found.link.clone()),
        tar_stream::Kind::HardLink => (Kind::HardLink, below(&found.link)?),
        tar_stream::Kind::Fifo => (Kind::Fifo, Vec::new()),
        tar_stream::Kind::CharDevice => (Kind::CharDevice, Vec::new()),
        tar_stream::Kind::BlockDevice => (Kind::BlockDevice, Vec::new()),
    };
    let (mode, size, device) = (found.mode, found.size, found.device);
    Ok(Some(Entry {
        mode,
        uid: found.uid,
        gid: found.gid,
        mtime: found.mtime,
        size,
        device,
        link,
        ..Entry::new(kind, name)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (entry, content) in entries {
            Entry { size: content.len() as u64, mode: 0o640, mtime: (7, 0), ..entry.clone() }
                .write(&mut bytes)
                .unwrap();
            bytes.extend(*content);
        }
        stream::end(&mut bytes).unwrap();
        bytes
    }

    fn entry(kind: Kind, name: &str, link: &str) -> Entry {
        Entry { link: link.into(), ..Entry::new(kind, name.into()) }
    }

    fn archived(stream: &[u8], root: &str) -> Vec<u8> {
        let mut archive = Vec::new();
        write(&mut &stream[..], OsStr::new(root), &mut archive).unwrap();
        archive
    }

    #[test]
    fn an_archive_holds_what_the_stream_does() {
        let long = "l/".repeat(60) + "end";
        let entries: [(Entry, &[u8]); 5] = [
            (entry(Kind::Folder, "", ""), b""),
            (entry(Kind::File, "a/b", ""), b"content"),
            (entry(Kind::HardLink, "c", "a/b"), b""),
            (entry(Kind::Link, "d", "./../x/"), b""),
            (entry(Kind::Link, "e", &long), b""),
        ];
        let archive = archived(&streamed(&entries), "root");
        let mut stream = TarStream::new(archive.as_slice());
        let mut told = Vec::new();
        while let Some(found) = stream.next_entry().unwrap() {
            assert_eq!((found.mode, found.mtime), (0o640, (7, 0)));
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            told.push((text(&found.path), text(&found.link), found.size));
        }
        let pair = |path: &str, link: &str, size| (path.to_owned(), link.to_owned(), size);
        let wanted = [
            pair("root/", "", 0),
            pair("root/a/b", "", 7),
            pair("root/c", "root/a/b", 0),
            pair("root/d", "./../x/", 0),
            pair("root/e", &long, 0),
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn an_archive_comes_back_as_a_stream() {
        let entries: [(Entry, &[u8]); 3] = [
            (entry(Kind::Folder, "", ""), b""),
            (entry(Kind::File, "f", ""), b"content"),
            (entry(Kind::HardLink, "g", "f"), b""),
        ];
        let mut bytes = Vec::new();
        read(archived(&streamed(&entries), "").as_slice(), &mut bytes).unwrap();
        let mut stream = bytes.as_slice();
        assert_eq!(Entry::read(&mut stream).unwrap().unwrap().kind, Kind::Folder);
        let file = Entry::read(&mut stream).unwrap().unwrap();
        assert_eq!((file.name.as_slice(), file.size), (&b"f"[..], 7));
        stream = &stream[7..];
        assert_eq!(Entry::read(&mut stream).unwrap().unwrap().link, b"f");
        assert_eq!(Entry::read(&mut stream).unwrap(), None);
    }

    #[test]
    fn what_is_no_archive_or_climbs_is_refused() {
        let refused = |bytes: &[u8]| read(bytes, &mut Vec::<u8>::new()).unwrap_err().to_string();
        let text = refused(&[b'x'; 1024]);
        assert!(text.contains("standard input") && text.contains("tar header"), "{text}");
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..4].copy_from_slice(b"../x");
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let text = refused(&[&header.as_bytes()[..], &[0; 1024]].concat());
        assert!(text.contains("../x") && text.contains("climbs"), "{text}");
        let short = streamed(&[(entry(Kind::File, "", ""), b"content")]);
        let result = write(&mut &short[..short.len() - 3], OsStr::new("f"), &mut Vec::<u8>::new());
        assert!(matches!(result, Err(ArchiveError::Stream(CopyError::Early))), "{result:?}");
    }
}
