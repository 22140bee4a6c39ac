//! `tatami image inspect`: all that is known of images, in docker's words where there are some.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::{ImagesError, complain, open};
use crate::content::{Content, Named};

/// `tatami image inspect`.
#[derive(Args)]
#[command(after_help = "\
Prints a JSON array with an object for each image.

Examples:
  tatami image inspect alpine | jq -r '.[0].Config.Env[]'")]
pub struct InspectArguments {
    /// Names, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) fn inspect(content: &Content, arguments: &InspectArguments) -> Result<u8, ImagesError> {
    let mut status = 0;
    let mut all = Vec::new();
    for word in &arguments.images {
        match describe(content, word) {
            Ok(image) => all.push(image),
            Err(error) => {
                complain(&error);
                status = 1;
            }
        }
    }
    let text = serde_json::to_string_pretty(&all).expect("values are JSON");
    writeln!(std::io::stdout(), "{text}").map_err(ImagesError::Output)?;
    Ok(status)
}

/// The image that `word` means.
pub(super) fn describe(content: &Content, word: &str) -> Result<Value, ImagesError> {
    let found = content.find(word)?;
    let stored = open(content, &found)?;
    let same: Vec<Named> = content.names()?.into_iter().filter(|named| named.id == found.id).collect();
    let tags = same.iter().filter(|named| named.parts().1.is_some()).map(Named::familiar);
    let digests = same.iter().filter(|named| named.source.is_some());
    let digests = digests.map(|named| format!("{}@{}", named.parts().0, named.digest()));
    let config = stored.image.config();
    Ok(json!({
        "Id": found.id,
        "RepoTags": tags.collect::<Vec<_>>(),
        "RepoDigests": digests.collect::<Vec<_>>(),
        "Manifest": found.manifest,
        "Created": config.created(),
        "Stored": humantime::format_rfc3339_seconds(found.stored).to_string(),
        "Architecture": config.architecture().to_string(),
        "Os": config.os().to_string(),
        "Size": found.size,
        "Config": config.config(),
        "RootFS": { "Type": "layers", "Layers": config.rootfs().diff_ids() },
    }))
}
