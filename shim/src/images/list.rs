//! `tatami images`: which images there are, as a table for people or as JSON for programs.

use std::io::Write;
use std::time::SystemTime;

use clap::Args;
use serde_json::json;

use super::ImagesError;
use crate::content::{Content, Named};
use crate::table::{Format, ago, table};

/// `tatami images`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tatami images
  tatami images --format json | jq -r .Repository
  tatami rmi $(tatami images -q)          # everything")]
pub struct ListArguments {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// A table, or a JSON object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Also the digests by which registries have them
    #[arg(long)]
    digests: bool,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
}

pub(super) fn list(content: &Content, arguments: &ListArguments) -> Result<u8, ImagesError> {
    let names = content.names()?;
    let id = |named: &Named| match arguments.no_trunc {
        true => named.id.clone(),
        false => named.id.trim_start_matches("sha256:").chars().take(12).collect(),
    };
    let text = match (arguments.quiet, arguments.format) {
        (true, _) => {
            let mut ids: Vec<String> = names.iter().map(id).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.iter().map(|id| format!("{id}\n")).collect()
        }
        (false, Format::Json) => names.iter().map(|named| json(named, id(named))).collect(),
        (false, Format::Table) => table_of(&names, id, arguments.digests),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(ImagesError::Output)?;
    Ok(0)
}

fn json(named: &Named, id: String) -> String {
    let (repository, tag) = named.parts();
    let line = json!({
        "Repository": repository,
        "Tag": tag,
        "Digest": named.digest(),
        "ID": id,
        "StoredAt": humantime::format_rfc3339_seconds(named.stored).to_string(),
        "Size": named.size,
    });
    format!("{line}\n")
}

fn table_of(names: &[Named], id: impl Fn(&Named) -> String, digests: bool) -> String {
    let now = SystemTime::now();
    let head = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "STORED", "SIZE"].map(str::to_owned);
    let rows = names.iter().map(|named| {
        let (repository, tag) = named.parts();
        let stored = format!("{} ago", ago(named.stored, now));
        let size = format!("{:.1} MB", named.size as f64 / 1e6);
        [repository.to_owned(), tag.unwrap_or("<none>").to_owned(), named.digest().to_owned(), id(named), stored, size]
    });
    let mut lines: Vec<Vec<String>> = std::iter::once(head).chain(rows).map(Vec::from).collect();
    if !digests {
        lines.iter_mut().for_each(|line| drop(line.remove(2)));
    }
    table(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    #[test]
    fn names_stand_in_columns() {
        let named = |name: &str| Named {
            name: name.to_owned(),
            manifest: Digest::of(b"m").to_string(),
            media_type: String::new(),
            manifest_size: 1,
            source: None,
            id: Digest::of(b"i").to_string(),
            size: 1_500_000,
            stored: SystemTime::now(),
        };
        let by_digest = format!("localhost:5000/b@{}", Digest::of(b"m"));
        let names = [named("docker.io/library/a:1"), named(&by_digest)];
        let text = table_of(&names, |named| named.id[7..19].to_owned(), false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("REPOSITORY         TAG      IMAGE ID       STORED"), "{text}");
        assert!(lines[1].starts_with("a                  1        ") && lines[1].ends_with("1.5 MB"), "{text}");
        assert!(lines[2].starts_with("localhost:5000/b   <none>   "), "{text}");
    }
}
