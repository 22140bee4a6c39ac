//! What only root may do, and how it is said to others.

use nix::unistd::geteuid;

/// Somebody else calls.
#[derive(Debug, thiserror::Error)]
#[error("root privileges are needed: run it as root or with sudo")]
pub struct NotRoot;

/// Whether root calls.
///
/// # Errors
/// [`NotRoot`] if not.
pub(crate) fn root() -> Result<(), NotRoot> {
    if geteuid().is_root() { Ok(()) } else { Err(NotRoot) }
}
