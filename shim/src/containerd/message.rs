//! Messages of protobuf of which a few fields are wanted, and no more than their numbers are known.

use protobuf::CodedInputStream;
use protobuf::rt::WireType;

/// Shows every field of a message that has a length: texts and messages.
///
/// # Errors
/// For what is no message, and what `take` returns.
pub(super) fn fields(message: &[u8], mut take: impl FnMut(u32, &[u8]) -> protobuf::Result<()>) -> protobuf::Result<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match WireType::new(tag & 7) {
            Some(WireType::LengthDelimited) => take(tag >> 3, &stream.read_bytes()?)?,
            Some(kind) => stream.skip_field(kind)?,
            None => return Err(std::io::Error::other(format!("{tag:#x} begins no field")).into()),
        }
    }
    Ok(())
}
