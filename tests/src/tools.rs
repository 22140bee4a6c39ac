//! Programs of the tests' own that run in containers whose image has none of the libraries they need.

use std::fs;
use std::path::Path;

/// Copies the program `built` with the libraries of this process into `folder`, for a container that sees it as `/tools`; returns the
/// words that run it there.
///
/// # Panics
/// When a file cannot be copied.
pub fn pack(built: &Path, folder: &Path) -> String {
    fs::create_dir_all(folder).expect("a folder");
    let copy = |from: &Path| {
        let name = from.file_name().expect("a file");
        fs::copy(from, folder.join(name)).unwrap_or_else(|error| panic!("copy {}: {error}", from.display()));
        name.to_string_lossy().into_owned()
    };
    // Tests are linked as the program is.
    let maps = fs::read_to_string("/proc/self/maps").expect("this process's maps");
    let mut libraries: Vec<&str> = maps.lines().filter_map(|line| Some(&line[line.find('/')?..])).collect();
    libraries.retain(|path| path.contains(".so"));
    libraries.sort_unstable();
    libraries.dedup();
    let names: Vec<String> = libraries.iter().map(|path| copy(Path::new(path))).collect();
    // POWER has its own name for it.
    let is_loader = |name: &&String| name.starts_with("ld-") || name.starts_with("ld64");
    let loader = names.iter().find(is_loader).expect("a loader");
    format!("/tools/{loader} --library-path /tools /tools/{}", copy(built))
}
