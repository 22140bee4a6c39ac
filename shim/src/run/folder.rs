//! `--folder-cache` and `--folder-queues`: how the container's files of the host are served.

use clap::Args;
use tatami_vmm::{FS_QUEUES_MAX, FolderConfig, FsCache};

/// The options as they are written.
#[derive(Args, Debug)]
pub(super) struct FolderArguments {
    /// How long the guest believes what it has read of the host's files: not at all (never), names and attributes for a second
    /// (auto), these for a day (metadata), or everything for a day (always), for files that nobody on the host changes
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = cache)]
    folder_cache: FsCache,
    /// Threads that serve the host's files, at most one for each virtual CPU is of use
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=FS_QUEUES_MAX as i64))]
    folder_queues: u8,
}

impl FolderArguments {
    pub(super) fn config(&self) -> FolderConfig {
        FolderConfig { queues: self.folder_queues, cache: self.folder_cache }
    }
}

fn cache(text: &str) -> Result<FsCache, String> {
    match text {
        "never" => Ok(FsCache::Never),
        "auto" => Ok(FsCache::Auto),
        "metadata" => Ok(FsCache::Metadata),
        "always" => Ok(FsCache::Always),
        _ => Err("expected never, auto, metadata or always".to_owned()),
    }
}
