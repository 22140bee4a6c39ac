//! What is in the initrd's place: whether it is a disk, and what the guest's kernel is to check it by.
//!
//! A disk that is checked says so twice: where it begins, which file systems leave to boot loaders, and in its last block, with
//! what it is checked by (`rootfs/build-root` writes both). Whatever else happens to it, it does not pass for one that is not
//! checked. What lies in between, data and the tree of hashes, is for the guest's kernel to read.

use std::io::{self, Read, Seek, SeekFrom};

use tatami_vmm::{RootDisk, VERITY_BLOCK, Verity};

use crate::sandbox::disk_root::{DiskFormat, HEAD_BYTES};

/// What both places begin with.
const MARK: &[u8] = b"tatami-verity\n";

/// Why an image cannot be the guest's root.
#[derive(Debug, thiserror::Error)]
pub enum RootImageError {
    /// The file.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// Its last block.
    #[error("it is damaged, or was cut short: its last block should say what it is checked by (dm-verity): {0}")]
    Damaged(String),
    /// Somebody insists on a check.
    #[error("it is no disk that is checked, and root hash {0} is wanted (see tatami rootfs build --dm-verity)")]
    NotChecked(String),
    /// Somebody insists on another one.
    #[error("it is another disk: it is checked by {found}, and {wanted} is wanted")]
    Other {
        /// In its last block.
        found: String,
        /// By whoever has a say.
        wanted: String,
    },
}

/// What kind of disk an image is; none: no disk at all. With `wanted`, it must be one that is checked by just that.
///
/// # Errors
/// [`RootImageError`].
pub fn inspect(image: &mut (impl Read + Seek), wanted: Option<&Verity>) -> Result<Option<RootDisk>, RootImageError> {
    let mut head = Vec::new();
    image.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let marked = head.starts_with(MARK);
    let found = match marked || DiskFormat::of_head(&head).is_some() {
        true => Some(last_block(image, marked)?.map_or(RootDisk::Plain, RootDisk::Verity)),
        false => None,
    };
    match (wanted, found) {
        (None, found) => Ok(found),
        (Some(wanted), Some(RootDisk::Verity(found))) if found != *wanted => {
            Err(RootImageError::Other { found: found.to_string(), wanted: wanted.to_string() })
        }
        (Some(_), found @ Some(RootDisk::Verity(_))) => Ok(found),
        (Some(wanted), _) => Err(RootImageError::NotChecked(wanted.root_hash().to_owned())),
    }
}

/// What the last block says; it must say something where the first one is `marked`.
fn last_block(image: &mut (impl Read + Seek), marked: bool) -> Result<Option<Verity>, RootImageError> {
    let damaged = |why: &dyn ToString| RootImageError::Damaged(why.to_string());
    let length = image.seek(SeekFrom::End(0))?;
    let mut block = [0; VERITY_BLOCK as usize];
    if let Some(start) = length.checked_sub(VERITY_BLOCK) {
        image.seek(SeekFrom::Start(start))?;
        image.read_exact(&mut block)?;
    }
    let Some(said) = block.strip_prefix(MARK) else {
        return if marked { Err(damaged(&"it says something else")) } else { Ok(None) };
    };
    let end = said.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged(&"it has no end"))?;
    let (line, rest) = said.split_at(end);
    if rest[1..].iter().any(|byte| *byte != 0) {
        return Err(damaged(&"something is behind it"));
    }
    let verity: Verity = String::from_utf8_lossy(line).parse().map_err(|error| damaged(&error))?;
    let whole = verity.bytes() + VERITY_BLOCK;
    match length == whole {
        true => Ok(Some(verity)),
        false => Err(damaged(&format!("the image has {length} bytes, not {whole}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const BLOCK: usize = VERITY_BLOCK as usize;

    /// Two blocks of data, which are an erofs by their superblock, and one of hashes.
    fn plain() -> Vec<u8> {
        let mut image = vec![0; 3 * BLOCK];
        image[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        image
    }

    fn verity(data_blocks: u32) -> Verity {
        let hash = "5a".repeat(32);
        let text =
            format!("root_hash={hash},salt=00,data_blocks={data_blocks},data_block_size=4096,hash_block_size=4096");
        text.parse().unwrap()
    }

    fn checked() -> Vec<u8> {
        let mut image = plain();
        image[..MARK.len()].copy_from_slice(MARK);
        let mut block = [MARK, format!("{}\n", verity(2)).as_bytes()].concat();
        block.resize(BLOCK, 0);
        image.extend(block);
        image
    }

    fn look(image: &[u8], wanted: Option<&Verity>) -> Result<Option<RootDisk>, String> {
        inspect(&mut Cursor::new(image), wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn a_disk_is_told_from_an_initrd_and_one_that_is_checked_from_one_that_is_not() {
        assert_eq!(look(b"070701", None), Ok(None));
        assert_eq!(look(b"", None), Ok(None));
        assert_eq!(look(&plain(), None), Ok(Some(RootDisk::Plain)));
        assert_eq!(look(&plain()[..1100], None), Ok(Some(RootDisk::Plain)));
        assert_eq!(look(&checked(), None), Ok(Some(RootDisk::Verity(verity(2)))));
    }

    #[test]
    fn one_that_is_checked_passes_for_nothing_else_whichever_byte_is_another() {
        let right = checked();
        for at in (0..MARK.len()).chain(1024..1028).chain(3 * BLOCK..4 * BLOCK) {
            let mut image = right.clone();
            image[at] ^= 1;
            // Another salt or hash is for the guest's kernel to find.
            assert!(!matches!(look(&image, None), Ok(None | Some(RootDisk::Plain))), "byte {at}");
        }
        for length in [1028, 2 * BLOCK, 4 * BLOCK - 1, 3 * BLOCK] {
            let error = look(&right[..length], None).unwrap_err();
            assert!(error.contains("damaged, or was cut short"), "{error}");
        }
        let longer = [&right[..BLOCK], &right].concat();
        assert!(look(&longer, None).unwrap_err().contains("has 20480 bytes, not 16384"));
    }

    #[test]
    fn who_wants_one_disk_gets_no_other() {
        assert_eq!(look(&checked(), Some(&verity(2))), Ok(Some(RootDisk::Verity(verity(2)))));
        let other = look(&checked(), Some(&verity(3))).unwrap_err();
        assert!(other.contains("data_blocks=2") && other.contains("data_blocks=3"), "{other}");
        for not_checked in [&plain()[..], b"070701"] {
            let error = look(not_checked, Some(&verity(2))).unwrap_err();
            assert!(error.contains("no disk that is checked") && error.contains("5a5a5a"), "{error}");
        }
    }
}
