//! Entry points of the fuzz targets: a layer by itself, which needs no digest to be right.

use std::path::Path;

use super::budget::{Budget, BudgetReader};
use super::layer;
use super::{Digest, LayerError, Tree};

/// Applies the tar archive `archive` to the folder `root`, which may grow by `bytes` and `entries`.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// When `root` is no folder.
pub fn apply(root: &Path, archive: &[u8], bytes: u64, entries: u64) -> Result<(), LayerError> {
    let tree = Tree::open(root).expect("a folder");
    let budget = Budget::new(bytes, entries);
    layer::apply(&tree, BudgetReader::new(archive, &budget), &budget)
}

/// The digest of `bytes`, for documents that shall be read.
pub fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// Where a layout keeps what has this digest.
pub fn blob_path(bytes: &[u8]) -> String {
    Digest::of(bytes).blob_path()
}
