//! How a guest's kernel checks the disk that its root is on, block by block as it reads it: dm-verity. What one hash vouches for is
//! all that was there when the disk was built.
//!
//! Knows how that is written for people, and how for the kernel. Reads no disk, and computes no hash.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a block, of data as of hashes.
pub const VERITY_BLOCK: u64 = 4096;
/// Bytes of a hash (SHA-256).
const HASH_BYTES: u64 = 32;
/// The longest salt that Linux takes is of 256 bytes; nobody uses more than a hash's own length.
const SALT_BYTES: u64 = 32;
/// Far more than any disk has, and a number of bytes still.
const BLOCKS_MAX: u64 = 1 << 40;

/// What there is to say of a disk.
const FIELDS: [&str; 5] = ["root_hash", "salt", "data_blocks", "data_block_size", "hash_block_size"];

/// What a disk with a tree of hashes behind its data is checked by. In text, it is what Kata's `kernel_verity_params` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Verity {
    /// Hexadecimal digits, small ones.
    root_hash: String,
    /// The same.
    salt: String,
    data_blocks: u64,
}

/// Why a text says no such thing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected root_hash=HEX,salt=HEX,data_blocks=NUMBER,data_block_size={VERITY_BLOCK},hash_block_size={VERITY_BLOCK}: {0}"
)]
pub struct VerityError(String);

impl Verity {
    /// The hash of everything, in hexadecimal digits.
    pub fn root_hash(&self) -> &str {
        &self.root_hash
    }

    /// Bytes of data and of the tree behind it.
    pub fn bytes(&self) -> u64 {
        let (mut all, mut level) = (self.data_blocks, self.data_blocks);
        while level > 1 {
            level = level.div_ceil(VERITY_BLOCK / HASH_BYTES);
            all += level;
        }
        all * VERITY_BLOCK
    }

    /// What has the kernel make a disk of `disk` that it checks, and take that for its root. Something that is not as it was ends
    /// the guest: whoever goes on without a page of a program does anything.
    pub(crate) fn command_line(&self, disk: &str) -> String {
        let Verity { root_hash, salt, data_blocks } = self;
        let sectors = data_blocks * (VERITY_BLOCK / 512);
        format!(
            "dm-mod.create=\"root,,,ro,0 {sectors} verity 1 {disk} {disk} {VERITY_BLOCK} {VERITY_BLOCK} {data_blocks} {data_blocks} \
             sha256 {root_hash} {salt} 1 panic_on_corruption\" root=/dev/dm-0"
        )
    }
}

impl FromStr for Verity {
    type Err = VerityError;

    fn from_str(text: &str) -> Result<Verity, VerityError> {
        let mut values = [None; FIELDS.len()];
        for word in text.split(',') {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let place = FIELDS.iter().position(|field| *field == name);
            let place = place.ok_or_else(|| VerityError(format!("what is {word:?}?")))?;
            if values[place].replace(value).is_some() {
                return Err(VerityError(format!("{name} is there twice")));
            }
        }
        let value = |place: usize| values[place].ok_or_else(|| VerityError(format!("{} is missing", FIELDS[place])));
        let hex = |place: usize, lengths: std::ops::RangeInclusive<u64>| {
            let digits = value(place)?;
            let whole = digits.len().is_multiple_of(2) && lengths.contains(&(digits.len() as u64 / 2));
            match whole && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                true => Ok(digits.to_ascii_lowercase()),
                false => Err(VerityError(format!("{} is {digits:?}", FIELDS[place]))),
            }
        };
        let number = |place: usize, range: std::ops::RangeInclusive<u64>| {
            let text = value(place)?;
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| VerityError(format!("{} is {text:?}", FIELDS[place])))
        };
        let verity = Verity {
            root_hash: hex(0, HASH_BYTES..=HASH_BYTES)?,
            salt: hex(1, 1..=SALT_BYTES)?,
            data_blocks: number(2, 1..=BLOCKS_MAX)?,
        };
        for size in [3, 4] {
            number(size, VERITY_BLOCK..=VERITY_BLOCK)?;
        }
        Ok(verity)
    }
}

impl fmt::Display for Verity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verity { root_hash, salt, data_blocks } = self;
        write!(f, "root_hash={root_hash},salt={salt},data_blocks={data_blocks}")?;
        write!(f, ",data_block_size={VERITY_BLOCK},hash_block_size={VERITY_BLOCK}")
    }
}

impl TryFrom<String> for Verity {
    type Error = VerityError;

    fn try_from(text: String) -> Result<Verity, VerityError> {
        text.parse()
    }
}

impl From<Verity> for String {
    fn from(verity: Verity) -> String {
        verity.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(data_blocks: &str) -> String {
        let hash = "0123456789abcdef".repeat(4);
        format!("root_hash={hash},salt=5a17,data_blocks={data_blocks},data_block_size=4096,hash_block_size=4096")
    }

    #[test]
    fn text_and_meaning_are_one() {
        let verity: Verity = text("1221").parse().unwrap();
        assert_eq!(verity.to_string(), text("1221"));
        assert_eq!(serde_json::to_string(&verity).unwrap(), format!("\"{}\"", text("1221")));
        assert_eq!(serde_json::from_str::<Verity>(&format!("\"{}\"", text("1221"))).unwrap(), verity);
        let large: Verity = text("1221").replace("abcdef", "ABCDEF").parse().unwrap();
        assert_eq!(large, verity);
    }

    #[test]
    fn what_is_missing_or_cannot_be_is_named() {
        let why = |text: &str| text.parse::<Verity>().unwrap_err().to_string();
        assert!(why("").ends_with(": what is \"\"?"), "{}", why(""));
        assert!(why("salt=00").ends_with(": root_hash is missing"), "{}", why("salt=00"));
        for (right, wrong) in [
            ("root_hash=01", "root_hash=x1"),
            ("root_hash=01", "root_hash=0101"),
            ("salt=5a17", "salt=5a1"),
            ("salt=5a17", "salt="),
            ("data_blocks=7", "data_blocks=0"),
            ("data_blocks=7", "data_blocks=7 8"),
            ("data_blocks=7", "data_blocks=18446744073709551615"),
            ("data_block_size=4096", "data_block_size=512"),
            ("hash_block_size=4096", "hash_block_size=1024"),
            (",salt=", ",salt=00,salt="),
            (",salt=", ",\",salt="),
        ] {
            let text = text("7").replace(right, wrong);
            assert!(text.parse::<Verity>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_tree_has_a_block_for_128_of_the_level_below() {
        let blocks = |data: &str| text(data).parse::<Verity>().unwrap().bytes() / VERITY_BLOCK;
        assert_eq!(blocks("1"), 1);
        assert_eq!(blocks("2"), 2 + 1);
        assert_eq!(blocks("128"), 128 + 1);
        assert_eq!(blocks("129"), 129 + 2 + 1);
        assert_eq!(blocks("16385"), 16385 + 129 + 2 + 1);
    }

    #[test]
    fn the_kernel_is_told_in_one_word_of_its_own_language() {
        let line = text("1221").parse::<Verity>().unwrap().command_line("/dev/vda");
        assert!(line.starts_with(
            "dm-mod.create=\"root,,,ro,0 9768 verity 1 /dev/vda /dev/vda 4096 4096 1221 1221 sha256 0123"
        ));
        assert!(line.ends_with("cdef 5a17 1 panic_on_corruption\" root=/dev/dm-0"), "{line}");
    }
}
