//! `tatami rmi`: takes names back, and with an image's last one what it was unpacked to and the blobs that no other image has.

use std::io::Write;
use std::path::Path;

use clap::Args;

use super::{ImagesError, complain};
use crate::content::{Content, ContentError, Named};
use crate::image::{self, Digest};

/// `tatami rmi`.
#[derive(Args)]
#[command(after_help = "\
An id takes all names of the image. What was unpacked is used by running containers, and by what `tatami save` wrote.

Examples:
  tatami rmi alpine:3.20
  tatami rmi -f $(tatami images -q)")]
pub struct RemoveArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also those that containers use, which keep what was unpacked
    #[arg(short, long)]
    force: bool,
}

pub(super) fn remove(content: &Content, root: &Path, arguments: &RemoveArguments) -> Result<u8, ImagesError> {
    let mut status = 0;
    for word in &arguments.images {
        match remove_one(content, root, word, arguments.force) {
            Ok(removed) => {
                let text: String = removed.iter().map(|named| format!("{}\n", named.familiar())).collect();
                std::io::stdout().write_all(text.as_bytes()).map_err(ImagesError::Output)?;
            }
            Err(error) => {
                complain(&error);
                status = 1;
            }
        }
    }
    content.sweep()?;
    Ok(status)
}

/// Removes what `word` means; the names that there are no more.
pub(super) fn remove_one(content: &Content, root: &Path, word: &str, force: bool) -> Result<Vec<Named>, ImagesError> {
    let found = content.find(word)?;
    let by_id = found.id.trim_start_matches("sha256:").starts_with(word.trim_start_matches("sha256:"));
    let (same, others): (Vec<Named>, Vec<Named>) = content
        .names()?
        .into_iter()
        .filter(|named| named.id == found.id)
        .partition(|one| by_id || one.name == found.name);
    if others.is_empty() {
        let id = Digest::parse(&found.id).ok_or_else(|| ContentError::NoSuch(word.to_owned()))?;
        if !image::forget(root, &id)? && !force {
            return Err(ImagesError::InUse(found.familiar().to_owned()));
        }
    }
    same.iter().try_for_each(|named| content.unname(named))?;
    Ok(same)
}
