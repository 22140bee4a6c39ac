//! Entry points of the fuzz targets: what a registry says before it gives anything, and names of images.

use super::challenge::Challenge;
use crate::content;

/// The lines of a header that asks who somebody is.
pub fn challenge(text: &str) {
    let _ = Challenge::read(text.lines());
}

/// A name, which is read again from its whole form.
///
/// # Panics
/// When that is another.
pub fn name(text: &str) {
    // The whole form may be longer than a name can be.
    let Ok(reference) = content::parse(text) else { return };
    if let Ok(again) = content::parse(&reference.whole()) {
        assert_eq!(again.whole(), reference.whole());
    }
}
