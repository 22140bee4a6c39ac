//! Messages of protobuf of which a few fields are wanted, and no more than their numbers are known.

use protobuf::CodedInputStream;
use protobuf::rt::WireType;

/// Shows every field of a message that has a length: texts and messages.
///
/// # Errors
/// For what is no message, and what `take` returns.
pub(crate) fn fields(message: &[u8], mut take: impl FnMut(u32, &[u8]) -> protobuf::Result<()>) -> protobuf::Result<()> {
    read(message, &mut |_, _| (), &mut take)
}

/// The number at `path` in a message, of which each step is a field in the message that the one before holds; 0 where there is none.
///
/// # Errors
/// For what is no message.
pub(crate) fn number(message: &[u8], path: &[u32]) -> protobuf::Result<u64> {
    let Some((&wanted, rest)) = path.split_first() else { return Ok(0) };
    let (mut own, mut within) = (0, 0);
    let mut note = |field, value| own = if field == wanted { value } else { own };
    let mut follow = |field, content: &[u8]| {
        if field == wanted && !rest.is_empty() {
            within = number(content, rest)?;
        }
        Ok(())
    };
    read(message, &mut note, &mut follow)?;
    Ok(if rest.is_empty() { own } else { within })
}

fn read(
    message: &[u8],
    number: &mut dyn FnMut(u32, u64),
    content: &mut dyn FnMut(u32, &[u8]) -> protobuf::Result<()>,
) -> protobuf::Result<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match WireType::new(tag & 7) {
            Some(WireType::LengthDelimited) => content(tag >> 3, &stream.read_bytes()?)?,
            Some(WireType::Varint) => number(tag >> 3, stream.read_raw_varint64()?),
            Some(kind) => stream.skip_field(kind)?,
            None => return Err(std::io::Error::other(format!("{tag:#x} begins no field")).into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_path() {
        // 1: 7; 2: { 3: 300, 4: "x" }; 2 again, with 3: 5.
        let message = [0x08, 7, 0x12, 6, 0x18, 0xac, 2, 0x22, 1, b'x', 0x12, 2, 0x18, 5];
        assert_eq!(number(&message, &[1]).unwrap(), 7);
        assert_eq!(number(&message, &[2, 3]).unwrap(), 5);
        assert_eq!(number(&message, &[2]).unwrap(), 0);
        assert_eq!(number(&message, &[9, 1]).unwrap(), 0);
        assert!(number(&message[..5], &[2, 3]).is_err());
        let mut told = Vec::new();
        fields(&message, |field, content| {
            told.push((field, content.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(told, [(2, 6), (2, 2)]);
    }
}
