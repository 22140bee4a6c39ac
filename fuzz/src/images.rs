//! Container images as strangers make them: a layer that would write elsewhere, an archive that is none.

use std::fs;

use tatami_shim::image::{Image, Progress, fuzzing};
use tatami_shim::registry::fuzzing as registry;

use crate::scratch::Scratch;

/// What an unpacked layer may take, in bytes.
const BYTES: u64 = 1 << 20;
/// What it may have, in entries.
const ENTRIES: u64 = 200;

/// A layer's tar archive over a small tree with links that lead astray. Nothing beside the tree changes.
pub fn layer(data: &[u8]) {
    let scratch = Scratch::new();
    fs::create_dir(scratch.inside.join("folder")).expect("a folder of our own");
    fs::write(scratch.inside.join("folder/old"), "old").expect("a folder of our own");
    for (name, target) in [("up", ".."), ("out", "../outside"), ("root", "/"), ("loop", "loop"), ("down", "folder")] {
        std::os::unix::fs::symlink(target, scratch.inside.join(name)).expect("a folder of our own");
    }
    let _ = fuzzing::apply(&scratch.inside, data, BYTES, ENTRIES);
    scratch.check();
}

/// An image archive. Where the input holds [`NAME`] and a digit, the digest of its part of that number is put in, so that documents
/// can name each other; a part that is so named lies where a layout keeps it.
pub fn image(data: &[u8]) {
    let scratch = Scratch::new();
    let path = scratch.inside.join("image.tar");
    fs::write(&path, archive(data)).expect("a folder of our own");
    if let Ok(image) = Image::open(&path) {
        let store = scratch.inside.join("store");
        let _ = image.unpack_into(&store, &mut |_: Progress| {});
    }
    scratch.check();
}

/// What a registry says before it gives anything, and an image's name.
pub fn challenge(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    registry::challenge(&text);
    registry::name(&text);
}

/// Between the parts of an image's input.
pub const PART: &[u8] = b"\n--\n";
/// Stands before the number of a part whose digest is meant.
pub const NAME: u8 = b'@';
/// Stands before the number of a part whose length is meant.
pub const SIZE: u8 = b'#';

/// The archive that an input describes; the input itself if it has no parts.
pub fn archive(data: &[u8]) -> Vec<u8> {
    let mut rest = data;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    while let Some(end) = rest.windows(PART.len()).position(|window| window == PART) {
        parts.push(fill_in(&rest[..end], &parts));
        rest = &rest[end + PART.len()..];
    }
    if parts.is_empty() {
        return data.to_vec();
    }
    // The last part is what everything begins with: a layout's index, or docker's list.
    let index = fill_in(rest, &parts);
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    if index.starts_with(b"[") {
        files = vec![("manifest.json".to_owned(), index)];
        files.extend(parts.into_iter().enumerate().map(|(number, part)| (format!("{number}.json"), part)));
    } else {
        files.push(("index.json".to_owned(), index));
        files.extend(parts.into_iter().map(|part| (fuzzing::blob_path(&part), part)));
    }
    let entries: Vec<u8> =
        files.iter().flat_map(|(name, bytes)| crate::seeds::tar_entry(name, b'0', "", bytes)).collect();
    [entries, vec![0; 1024]].concat()
}

fn fill_in(text: &[u8], parts: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().and_then(|next| next.checked_sub(b'0')).map(usize::from);
        match (byte, number.and_then(|number| parts.get(number))) {
            (NAME, Some(part)) => out.extend_from_slice(fuzzing::digest(part).as_bytes()),
            (SIZE, Some(part)) => out.extend_from_slice(part.len().to_string().as_bytes()),
            _ => {
                out.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    out
}
