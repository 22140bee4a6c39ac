//! The names of stored images: a record for each, in a file whose own name is the digest of the image's.
//!
//! Names are references as registries have them (docker's grammar, with `docker.io`, `library/` and `:latest` where they are left out).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

use super::{Content, ContentError, at, write_whole};
use crate::image::Digest;

/// Fewer digits of an id than this are a name.
const SHORTEST_ID: usize = 4;

/// An image that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its full name, with registry and tag or digest.
    pub name: String,
    /// Digest of the manifest, for this machine.
    pub manifest: String,
    /// Media type of the manifest.
    pub media_type: String,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// What the registry has under the name: the manifest, or an index of several machines' manifests.
    pub source: Option<String>,
    /// Digest of the configuration: the image's id.
    pub id: String,
    /// Bytes of all blobs.
    pub size: u64,
    /// When it got the name.
    pub stored: SystemTime,
}

/// Reads the name of an image as it is in a registry.
///
/// # Errors
/// [`ContentError::Name`].
pub fn parse(text: &str) -> Result<Reference, ContentError> {
    let wrong = |why: String| ContentError::Name { text: text.to_owned(), why };
    let reference: Reference =
        text.parse().map_err(|error: oci_spec::distribution::ParseError| wrong(error.to_string()))?;
    match reference.digest() {
        Some(digest) if Digest::parse(digest).is_none() => {
            Err(wrong(format!("{digest} is not a sha256 or sha512 digest")))
        }
        _ => Ok(reference),
    }
}

impl Named {
    /// The name as people write it: without what is meant where nothing is said.
    pub fn familiar(&self) -> &str {
        let name = self.name.strip_prefix("docker.io/").unwrap_or(&self.name);
        name.strip_prefix("library/").unwrap_or(name)
    }

    /// Repository as people write it, tag, and the digest that the registry has under it.
    pub fn parts(&self) -> (&str, Option<&str>) {
        let familiar = self.familiar();
        let (repository, _) = familiar.split_once('@').unwrap_or((familiar, ""));
        match repository.rsplit_once(':') {
            // A port has a path behind it.
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (repository, None),
        }
    }

    /// The digest of the image in its registry, or of its manifest.
    pub fn digest(&self) -> &str {
        self.source.as_deref().unwrap_or(&self.manifest)
    }
}

impl Content {
    fn name_file(&self, name: &str) -> PathBuf {
        self.folder.join("names").join(format!("{}.json", Digest::of(name.as_bytes()).hex()))
    }

    /// Gives an image its name; another that had it has it no more.
    ///
    /// # Errors
    /// [`ContentError::Store`].
    pub fn name(&self, named: &Named) -> Result<(), ContentError> {
        let json = serde_json::to_vec(named).expect("texts and numbers are JSON");
        write_whole(&self.name_file(&named.name), &json)
    }

    /// Takes a name back.
    ///
    /// # Errors
    /// [`ContentError::Store`].
    pub fn unname(&self, named: &Named) -> Result<(), ContentError> {
        let path = self.name_file(&named.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// All names, in order.
    ///
    /// # Errors
    /// [`ContentError::Store`]; a record that cannot be read is left out.
    pub fn names(&self) -> Result<Vec<Named>, ContentError> {
        let folder = self.folder.join("names");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let path = entry.map_err(at(&folder))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).map(|bytes| serde_json::from_slice::<Named>(&bytes)) {
                Ok(Ok(named)) => names.push(named),
                Ok(Err(error)) => log::warn!("{} is left out: {error}", path.display()),
                // Removed meanwhile.
                Err(error) => log::debug!("{}: {error}", path.display()),
            }
        }
        names.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(names)
    }

    /// The image that `word` means: a name, or the beginning of an id that no other has.
    ///
    /// # Errors
    /// [`ContentError::NoSuch`], [`ContentError::Several`], [`ContentError::Store`].
    pub fn find(&self, word: &str) -> Result<Named, ContentError> {
        let names = self.names()?;
        if let Ok(reference) = parse(word) {
            let whole = reference.whole();
            if let Some(named) = names.iter().find(|named| named.name == whole) {
                return Ok(named.clone());
            }
            // By another name of the same repository it is the same image.
            let same = |named: &&Named| {
                parse(&named.name).is_ok_and(|other| {
                    (other.registry(), other.repository()) == (reference.registry(), reference.repository())
                }) && reference.digest().is_some_and(|digest| digest == named.digest() || digest == named.manifest)
            };
            if let Some(named) = names.iter().find(same) {
                return Ok(named.clone());
            }
        }
        let hex = word.strip_prefix("sha256:").unwrap_or(word);
        if hex.len() < SHORTEST_ID || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ContentError::NoSuch(word.to_owned()));
        }
        let mut found =
            names.into_iter().filter(|named| named.id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(hex)));
        let Some(first) = found.next() else { return Err(ContentError::NoSuch(word.to_owned())) };
        if found.any(|other| other.id != first.id) { Err(ContentError::Several(word.to_owned())) } else { Ok(first) }
    }
}
