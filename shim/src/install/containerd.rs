//! Where containerd's configuration is told of the runtime, and how.
//!
//! Version 3 (containerd 2.x) gets a file of ours beside the main one, for 2.x merges what it imports setting by setting. Version 2 gets
//! a section in the operator's own file: containerd 1.x merges imports plug-in by plug-in, and of CRI's settings (registries, the pause
//! image, runc's cgroup driver) only those of the last file that has any would be left. Such a section works with 2.x as well, as far as
//! that still reads version 2, so nobody needs to know which containerd it will be.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::change::{Change, Plan};
use super::config_file::{ConfigFile, quoted};
use super::error::{InstallError, Line};

/// CRI's settings of runtimes, in version 2 and from 3 on.
const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
/// What keeps all of CRI from running, in version 1 and from 2 on.
const CRI_NAMES: [&str; 2] = ["cri", CRI];
/// The version that gets a section. Those after it get a drop-in.
const SECTION_VERSION: i64 = 2;
/// The newest version of which it is known that it has its runtimes where 3 has them.
const NEWEST: i64 = 4;

const DROP_IN_FOLDER: &str = "conf.d";
const DROP_IN: &str = "tatami.toml";
/// With an asterisk: containerd 1.x does not start when a file that is imported by its plain name is missing. And no wider: what else lies
/// in the folder may have been left out on purpose.
const DROP_IN_GLOB: &str = "tatami*.toml";
/// The first line of a file that is ours alone.
const OURS: &str = "# Written by `tatami install`, again by the next; `tatami uninstall` removes it.";
/// All of a main file that was not there. Every containerd from 1.3 on reads version 2.
const CREATED: &str = "# Made by `tatami install`, for there was none; `tatami uninstall` removes it if nothing else was added.\nversion = 2\n";

/// A runtime as CRI is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runtime {
    /// What a RuntimeClass calls it: letters, digits and dashes.
    pub(super) handler: String,
    /// Who makes pods: `podsandbox` or `shim`; containerd's own choice if nobody says.
    pub(super) sandboxer: Option<String>,
    /// The file of settings that the shim is given.
    pub(super) configuration: Option<String>,
}

impl Runtime {
    /// The tables below `plugin`.
    fn tables(&self, plugin: &str) -> String {
        let name = format!("plugins.\"{plugin}\".containerd.runtimes.{}", self.handler);
        // A privileged container has the guest's devices; with the host's in its specification it would not start. Kata's annotations
        // change a pod's settings, as far as `enable_annotations` allows.
        let mut text = format!(
            "[{name}]\nruntime_type = \"io.containerd.kata.v2\"\nprivileged_without_host_devices = true\n\
             pod_annotations = [\"io.katacontainers.*\"]\ncontainer_annotations = [\"io.katacontainers.*\"]\n"
        );
        if let Some(sandboxer) = &self.sandboxer {
            text += &format!("sandboxer = {}\n", quoted(sandboxer));
        }
        if let Some(file) = &self.configuration {
            text +=
                &format!("[{name}.options]\nTypeUrl = \"runtimeoptions.v1.Options\"\nConfigPath = {}\n", quoted(file));
        }
        text
    }
}

/// Where a runtime is written.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Nowhere,
    Section(PathBuf),
    DropIn,
}

/// What is to be changed so that the configuration whose main file is `config` has the `wanted` runtime, and nothing else of ours.
///
/// # Errors
/// [`InstallError`]; nothing has been changed.
pub(super) fn plan(config: &Path, wanted: Option<&Runtime>) -> Result<Plan, InstallError> {
    let config =
        std::path::absolute(config).map_err(|source| InstallError::Read { path: config.to_owned(), source })?;
    let folder = config.parent().unwrap_or(Path::new("/")).join(DROP_IN_FOLDER);
    let drop_in = folder.join(DROP_IN);
    let entry = folder.join(DROP_IN_GLOB);
    let entry = entry.to_str().ok_or_else(|| InstallError::Name { path: folder.clone() })?;

    let found = read(&config)?;
    let main = found.clone().unwrap_or_else(|| ConfigFile::new(&config, CREATED));
    let version = main.version()?;
    let mut files = with_imports(main, &drop_in)?;
    let mut plan = Plan::default();
    let target = match wanted {
        Some(runtime) => target(runtime, version, &files, &mut plan)?,
        None => Target::Nowhere,
    };

    let imported = imports(&files, &drop_in)?;
    for (number, file) in files.iter_mut().enumerate() {
        let before = file.clone();
        let tables = wanted.filter(|_| target == Target::Section(file.path.clone())).map(|runtime| runtime.tables(CRI));
        *file = file.with_section(tables.as_deref())?;
        if number == 0 {
            *file = match target {
                Target::DropIn if !imported => file.with_import(entry)?,
                Target::DropIn => file.clone(),
                _ => file.without_import(entry)?,
            };
        }
        let old = if number == 0 { found.as_ref() } else { Some(&before) };
        let new = Some(&file.text).filter(|text| *text != CREATED);
        plan.changes.extend(Change::of_file(&file.path, old.map(|old| &old.text), new));
    }
    let text = wanted
        .filter(|_| target == Target::DropIn)
        .map(|runtime| format!("{OURS}\nversion = {version}\n\n{}", runtime.tables(CRI_RUNTIME)));
    own_file(&drop_in, text.as_ref(), &mut plan)?;
    Ok(plan)
}

/// Where `runtime` belongs, in a configuration of these files.
fn target(runtime: &Runtime, version: i64, files: &[ConfigFile], plan: &mut Plan) -> Result<Target, InstallError> {
    let main = &files[0];
    if let Some(line) = main.disabling(&CRI_NAMES)? {
        plan.notes
            .push(format!("{line}: CRI is disabled there, so Kubernetes finds no runtime; ctr and docker need none"));
        if version < SECTION_VERSION {
            return Ok(Target::Nowhere);
        }
    }
    let unknown = match version {
        ..SECTION_VERSION => {
            "give it `version = 2` and its plug-ins their whole names, as `containerd config default` has them"
        }
        SECTION_VERSION..=NEWEST => "",
        _ => "this Tatami knows none after 4: a newer one is needed",
    };
    if !unknown.is_empty() {
        let reason = format!("the configuration is of version {version}; {unknown}");
        return Err(InstallError::Form { place: Line::of(&main.path, &main.text, 0), reason });
    }
    let mut last = main;
    for file in files {
        let others = file.with_section(None)?;
        for plugin in [CRI, CRI_RUNTIME] {
            if let Some(place) = others.mentions(plugin, Some(&runtime.handler))? {
                return Err(InstallError::Taken { place, handler: runtime.handler.clone() });
            }
        }
        if others.mentions(CRI, None)?.is_some() {
            last = file;
        }
    }
    // Of CRI's settings, containerd 1.x takes those of this file, and of no other.
    Ok(if version == SECTION_VERSION { Target::Section(last.path.clone()) } else { Target::DropIn })
}

/// The file at `path` that is all ours becomes `text`.
fn own_file(path: &Path, text: Option<&String>, plan: &mut Plan) -> Result<(), InstallError> {
    let found = read(path)?;
    if let Some(found) = &found
        && !found.text.starts_with(OURS)
    {
        if text.is_some() {
            let remedy = "move it away, or give it another name that ends with .toml";
            return Err(InstallError::Foreign { path: path.to_owned(), what: "a file".to_owned(), remedy });
        }
        plan.notes.push(format!("{} stays: `tatami install` has not made it", path.display()));
        return Ok(());
    }
    plan.changes.extend(Change::of_file(path, found.as_ref().map(|found| &found.text), text));
    Ok(())
}

/// The main file and those that it imports, in the order in which containerd reads them, without the drop-in of ours. One that is named but
/// missing is containerd's affair.
fn with_imports(main: ConfigFile, drop_in: &Path) -> Result<Vec<ConfigFile>, InstallError> {
    let mut known = HashSet::from([main.path.clone(), drop_in.to_owned()]);
    let mut files = vec![main];
    let mut next = 0;
    while let Some(file) = files.get(next) {
        for entry in entries(file)? {
            let Ok(paths) = glob::glob(&entry.to_string_lossy()) else { continue };
            for path in paths.flatten() {
                if known.insert(path.clone()) {
                    files.extend(read(&path)?);
                }
            }
        }
        next += 1;
    }
    Ok(files)
}

/// Whether one of the files imports `path`.
fn imports(files: &[ConfigFile], path: &Path) -> Result<bool, InstallError> {
    let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    for file in files {
        let matches = |entry: PathBuf| {
            glob::Pattern::new(&entry.to_string_lossy()).is_ok_and(|pattern| pattern.matches_path_with(path, options))
        };
        if entries(file)?.into_iter().any(matches) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a file imports, as whole paths.
fn entries(file: &ConfigFile) -> Result<Vec<PathBuf>, InstallError> {
    let folder = file.path.parent().unwrap_or(Path::new("/"));
    let entries = file.imports()?.map(|imports| imports.entries).unwrap_or_default();
    Ok(entries.iter().map(|entry| folder.join(entry).components().collect()).collect())
}

fn read(path: &Path) -> Result<Option<ConfigFile>, InstallError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(ConfigFile::new(path, &text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InstallError::Read { path: path.to_owned(), source }),
    }
}
