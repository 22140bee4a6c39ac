//! Hooks that lie in the guest's own root and are every container's: what Kata's users know as `guest_hook_path`.
//!
//! Knows folders and specifications; when hooks run, and in what order after the container's own, is libcontainer's affair.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Hook, HookBuilder, Hooks, Spec};

/// Adds the programs in the folders `prestart`, `poststart` and `poststop` of `folder` to the hooks of `spec`, in the order of their
/// names. What cannot be looked at is told of, and has no hooks.
pub(crate) fn add(spec: &mut Spec, folder: &Path) {
    let hooks = spec.hooks_mut().get_or_insert_with(Hooks::default);
    #[allow(deprecated, reason = "it is what the folder is called")]
    extend(hooks.prestart_mut(), folder, "prestart");
    extend(hooks.poststart_mut(), folder, "poststart");
    extend(hooks.poststop_mut(), folder, "poststop");
}

fn extend(hooks: &mut Option<Vec<Hook>>, folder: &Path, kind: &str) {
    let folder = folder.join(kind);
    match programs(&folder) {
        Ok(programs) if programs.is_empty() => {}
        Ok(programs) => hooks.get_or_insert_default().extend(programs.into_iter().filter_map(|path| hook(path, kind))),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => log::debug!("{}: no hooks", folder.display()),
        Err(cause) => log::warn!("the hooks in {}: {cause}", folder.display()),
    }
}

/// The files in `folder` that can be executed. A link is none: it could lead anywhere.
fn programs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Of the entry itself, not of what it leads to.
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Called by its name, with the folder's behind it.
fn hook(path: PathBuf, kind: &str) -> Option<Hook> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    HookBuilder::default().path(path).args([name, kind.to_owned()]).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_called_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("poststart");
        fs::create_dir_all(place.join("folder")).unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("notes", 0o644)] {
            fs::write(place.join(name), "").unwrap();
            fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        std::os::unix::fs::symlink("10-a", place.join("link")).unwrap();
        let mut spec: Spec =
            serde_json::from_str(r#"{"ociVersion":"1.1.0","hooks":{"poststart":[{"path":"/own"}]}}"#).unwrap();
        add(&mut spec, folder.path());
        let hooks = spec.hooks().as_ref().unwrap();
        let called: Vec<_> = hooks.poststart().iter().flatten().map(|hook| hook.args().clone()).collect();
        let with_kind = |name: &str| Some(vec![name.to_owned(), "poststart".to_owned()]);
        assert_eq!(called, [None, with_kind("10-a"), with_kind("20-b")]);
        assert_eq!(hooks.poststop(), &None);
    }
}
