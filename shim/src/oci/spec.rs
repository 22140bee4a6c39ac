//! `spec` and `features`: what people begin a bundle with, and what programs ask a runtime.
//!
//! Texts that lie beside this file.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{Error, system_at};

/// What this runtime can do, in the form of the specification's `features`.
pub(super) const FEATURES: &str = include_str!("features.json");
const SPEC: &str = include_str!("config.json");

/// Writes a specification for a shell to `bundle`.
///
/// # Errors
/// When there is one.
pub(super) fn write(bundle: &Path) -> Result<(), Error> {
    let path = bundle.join("config.json");
    if path.exists() {
        return Err(Error::Refused("File config.json exists. Remove it first".to_owned()));
    }
    let file = File::options().write(true).create_new(true).open(&path);
    file.and_then(|mut file| file.write_all(SPEC.as_bytes())).map_err(system_at("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_what_they_claim() {
        let spec: oci_spec::runtime::Spec = serde_json::from_str(SPEC).unwrap();
        assert_eq!(spec.process().as_ref().unwrap().args().as_ref().unwrap().as_slice(), ["sh"]);
        let features: oci_spec::runtime::Features = serde_json::from_str(FEATURES).unwrap();
        assert!(features.hooks().as_ref().unwrap().iter().any(|hook| hook == "poststop"));
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        assert!(write(dir.path()).unwrap_err().to_string().contains("exists"));
    }
}
