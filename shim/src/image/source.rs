//! Where an image's files lie: a folder, or a tar archive that is indexed once and then read in place.
//!
//! Gives a file's bytes by name. Knows neither layouts nor digests.

use super::ImageError;
use super::tar_stream::{Kind, TarStream};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More files than this in an archive is no image: real ones hold a handful for each layer.
const MAX_FILES: usize = 100_000;
/// How far links inside an archive are followed (`docker save` once wrote repeated layers as links).
const MAX_LINKS: usize = 8;

/// An image's files.
pub(super) struct Source {
    /// As the user named it, for messages.
    pub(super) path: PathBuf,
    files: Files,
}

enum Files {
    Folder(PathBuf),
    Archive { file: Arc<File>, index: HashMap<String, Member> },
}

enum Member {
    Content { offset: u64, size: u64 },
    Link(String),
}

/// The bytes of one file, read in place: several may be read at once.
pub(super) struct Blob {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Blob {
    /// Bytes left to read.
    pub(super) fn len(&self) -> u64 {
        self.end - self.offset
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.len()).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image file is shorter than its index says"));
        }
        self.offset += count as u64;
        Ok(count)
    }
}

impl Source {
    /// Opens a folder, or a tar archive that may be compressed with gzip or zstd.
    pub(super) fn open(path: &Path) -> Result<Source, ImageError> {
        let failed = |source| ImageError::Read { path: path.to_path_buf(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        let files = if metadata.is_dir() {
            Files::Folder(path.to_path_buf())
        } else if metadata.is_file() {
            let file = File::open(path).map_err(failed)?;
            let file = decompressed(file).map_err(failed)?;
            let index = index(&file).map_err(|error| ImageError::NotAnImage {
                path: path.to_path_buf(),
                why: format!("it is neither a folder nor a tar archive ({error})"),
            })?;
            Files::Archive { file: Arc::new(file), index }
        } else {
            let why = "it is neither a folder nor a regular file".to_owned();
            return Err(ImageError::NotAnImage { path: path.to_path_buf(), why });
        };
        Ok(Source { path: path.to_path_buf(), files })
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match &self.files {
            Files::Folder(folder) => folder.join(name).is_file(),
            Files::Archive { index, .. } => find(index, name).is_some(),
        }
    }

    /// Opens the file `name` (a relative path that the caller has made sure is harmless, as a digest's is).
    pub(super) fn blob(&self, name: &str) -> Result<Blob, ImageError> {
        match &self.files {
            Files::Folder(folder) => open_regular(&folder.join(name)).map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ImageError::MissingBlob { name: name.to_owned() },
                _ => ImageError::Read { path: folder.join(name), source },
            }),
            Files::Archive { file, index } => {
                let (offset, size) =
                    find(index, name).ok_or_else(|| ImageError::MissingBlob { name: name.to_owned() })?;
                Ok(Blob { file: Arc::clone(file), offset, end: offset + size })
            }
        }
    }

    /// Reads a small file whole; more than `limit` bytes is an error.
    pub(super) fn small_file(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut blob = self.blob(name)?;
        if blob.len() > limit {
            let why = format!("{} bytes are more than the {limit} that such a document may have", blob.len());
            return Err(ImageError::Document { name: name.to_owned(), why });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.len()).unwrap_or_default());
        blob.read_to_end(&mut bytes).map_err(|source| ImageError::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }
}

fn open_regular(path: &Path) -> io::Result<Blob> {
    // O_NONBLOCK: a fifo in a hostile folder must not hang us before we see that it is one.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(Blob { file: Arc::new(file), offset: 0, end: metadata.len() })
}

fn find(index: &HashMap<String, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = name;
    for _ in 0..=MAX_LINKS {
        match index.get(name)? {
            Member::Content { offset, size } => return Some((*offset, *size)),
            Member::Link(target) => name = target,
        }
    }
    None
}

/// The compression of a file, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Judges by the first four bytes (RFC 1952 section 2.3.1, RFC 8878 section 3.1.1).
    pub(super) fn of(start: &[u8]) -> Compression {
        if start.starts_with(&[0x1f, 0x8b]) {
            Compression::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Compression::Zstd
        } else {
            Compression::None
        }
    }

    /// A reader of what `inner` holds compressed.
    pub(super) fn reader<'a>(self, inner: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let inner = BufReader::with_capacity(128 * 1024, inner);
        Ok(match self {
            Compression::None => Box::new(inner),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(inner)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(inner)?),
        })
    }
}

/// What the media type of a layer ends in that begins with these bytes.
pub(crate) fn layer_suffix(start: &[u8]) -> &'static str {
    match Compression::of(start) {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    }
}

/// The file itself if it is not compressed, otherwise its content in an unnamed temporary file: layers are read from
/// it in any order.
fn decompressed(file: File) -> io::Result<File> {
    let mut start = [0; 4];
    let count = file.read_at(&mut start, 0)?;
    let compression = Compression::of(&start[..count]);
    if compression == Compression::None {
        return Ok(file);
    }
    let folder = scratch_folder();
    let mut plain = tempfile::tempfile_in(&folder)?;
    let room = super::budget::free_bytes(&plain)?;
    let mut content = compression.reader(file)?.take(room.saturating_add(1));
    let written = io::copy(&mut content, &mut plain)?;
    if written > room {
        let text = format!("its content is larger than the {} MiB free in {}", room >> 20, folder.display());
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    plain.seek(SeekFrom::Start(0))?;
    Ok(plain)
}

/// Large temporary files belong on disk: /tmp is memory on many machines.
fn scratch_folder() -> PathBuf {
    let on_disk = PathBuf::from("/var/tmp");
    match std::env::var_os("TMPDIR") {
        None if on_disk.is_dir() => on_disk,
        _ => std::env::temp_dir(),
    }
}

fn index(file: &File) -> io::Result<HashMap<String, Member>> {
    let mut index = HashMap::new();
    let mut stream = TarStream::seekable(BufReader::new(file));
    while let Some(entry) = stream.next_entry().map_err(io::Error::other)? {
        let Some(name) = clean(&entry.path, "") else { continue };
        let member = match entry.kind {
            Kind::File => Member::Content { offset: stream.offset(), size: entry.size },
            Kind::HardLink => match clean(&entry.link, "") {
                Some(target) => Member::Link(target),
                None => continue,
            },
            Kind::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                match clean(&entry.link, folder) {
                    Some(target) => Member::Link(target),
                    None => continue,
                }
            }
            _ => continue,
        };
        index.insert(name, member);
        if index.len() > MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files")));
        }
    }
    if index.is_empty() {
        return Err(io::Error::other("it holds no files"));
    }
    Ok(index)
}

/// A name inside an archive without `.`, `..` and repeated slashes. `None`: not text, or it leads out.
fn clean(name: &[u8], folder: &str) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_kept_inside() {
        assert_eq!(clean(b"./a//b/./c", "").as_deref(), Some("a/b/c"));
        assert_eq!(clean(b"../x/layer.tar", "y").as_deref(), Some("x/layer.tar"));
        assert_eq!(clean(b"../../x", "y"), None);
        assert_eq!(clean(b"./", ""), None);
        assert_eq!(clean(b"\xff", ""), None);
    }

    #[test]
    fn link_cycles_end() {
        let mut links = HashMap::new();
        links.insert("a".to_owned(), Member::Link("b".to_owned()));
        links.insert("b".to_owned(), Member::Link("a".to_owned()));
        assert!(find(&links, "a").is_none());
    }

    #[test]
    fn compression_is_told_by_magic() {
        assert_eq!(Compression::of(b"\x1f\x8b\x08\0"), Compression::Gzip);
        assert_eq!(Compression::of(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::of(b"etc/"), Compression::None);
        assert_eq!(Compression::of(b""), Compression::None);
    }
}
