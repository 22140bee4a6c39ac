//! The rules that keep the tree readable, as tests: `//!` headers, who may depend on whom, where unsafe and
//! architecture conditions may stand, which names are not used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// This file names what it forbids.
const THIS: &str = "tests/tests/tidy.rs";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every file that git knows or would take, relative to the root, whose name ends with `ending`.
fn files(ending: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).unwrap();
    let found: Vec<PathBuf> = listing
        .lines()
        .filter(|line| line.ends_with(ending))
        .map(PathBuf::from)
        .filter(|p| root().join(p).is_file())
        .collect();
    assert!(!found.is_empty(), "no {ending} file in the tree: the check looks in the wrong place");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code of a file without its comments and its trailing test module.
fn code(path: &Path) -> String {
    let text = read(path);
    let body = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    body.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Fails with every finding at once.
fn none(what: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{what}:\n  {}", findings.join("\n  "));
}

fn offending(paths: Vec<PathBuf>, wrong: impl Fn(&Path) -> bool) -> Vec<String> {
    paths.into_iter().filter(|path| wrong(path)).map(|path| path.display().to_string()).collect()
}

#[test]
fn every_file_says_what_it_is() {
    none("these files do not open with //!", offending(files(".rs"), |path| !read(path).starts_with("//!")));
}

#[test]
fn arch_and_devices_never_name_kvm() {
    let pure = |path: &Path| path.starts_with("arch") || path.starts_with("devices");
    let sources: Vec<_> = files(".rs").into_iter().filter(|path| pure(path)).collect();
    none(
        "KVM named outside vmm",
        offending(sources, |path| code(path).to_lowercase().contains("kvm_") || code(path).contains("kvm-")),
    );
    let manifests: Vec<_> = files("Cargo.toml").into_iter().filter(|path| pure(path)).collect();
    none("KVM crates outside vmm", offending(manifests, |path| read(path).contains("kvm-")));
}

#[test]
fn only_one_folder_talks_to_kvm() {
    let outside: Vec<_> = files(".rs")
        .into_iter()
        .filter(|path| {
            path.starts_with("vmm/src") && !path.starts_with("vmm/src/kvm") && path != Path::new("vmm/src/kvm.rs")
        })
        .collect();
    none(
        "kvm_ioctls outside vmm/src/kvm",
        offending(outside, |path| code(path).contains("kvm_ioctls::") || code(path).contains("kvm_bindings::")),
    );
}

#[test]
fn dependencies_point_one_way() {
    // Who may name whom; everything not listed is forbidden.
    let allowed: &[(&str, &[&str])] = &[
        ("arch", &[]),
        ("devices", &[]),
        ("vmm", &["tatami-arch", "tatami-devices"]),
        ("agent/protocol", &[]),
        ("agent/files", &[]),
        ("agent", &["tatami-files", "tatami-protocol"]),
        ("shim", &["tatami-vmm", "tatami-files", "tatami-protocol"]),
    ];
    let mut wrong = Vec::new();
    for (folder, may) in allowed {
        let manifest = read(&Path::new(folder).join("Cargo.toml"));
        let manifest = manifest.parse::<toml::Table>().unwrap();
        for name in manifest["dependencies"].as_table().unwrap().keys() {
            if name.starts_with("tatami") && !may.contains(&name.as_str()) {
                wrong.push(format!("{folder} depends on {name}"));
            }
        }
    }
    none("dependencies against the direction", wrong);
}

#[test]
fn unsafe_is_opted_into_with_a_reason() {
    let wrong = |path: &Path| {
        let text = code(path);
        path != Path::new(THIS)
            && text.match_indices("allow(unsafe_code").any(|(at, _)| {
                let attribute = text[at..].split(']').next().unwrap_or_default();
                !attribute.contains("reason")
            })
    };
    none("allow(unsafe_code) without a reason", offending(files(".rs"), wrong));
    none(
        "crates outside the workspace's lints",
        offending(files("Cargo.toml"), |path| {
            path != Path::new("Cargo.toml") && !read(path).contains("[lints]\nworkspace = true")
        }),
    );
}

#[test]
fn architecture_conditions_stand_in_the_selectors_only() {
    // The two places that choose the host's architecture, and the files and folders that are one architecture's.
    let selectors = ["arch/src/host.rs", "vmm/src/kvm/mod.rs", THIS];
    let own = ["x86_64", "aarch64", "ppc64le"];
    let wrong = |path: &Path| {
        let name = path.to_string_lossy();
        code(path).contains("target_arch")
            && !selectors.contains(&name.as_ref())
            && !own
                .iter()
                .any(|arch| path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(arch)))
    };
    none("cfg(target_arch) outside the selectors", offending(files(".rs"), wrong));
}

#[test]
fn names_say_something() {
    let empty_names = ["util", "utils", "common", "base", "helpers", "helper", "manager", "misc"];
    let wrong = |path: &Path| {
        path.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            empty_names.contains(&part.trim_end_matches(".rs"))
        })
    };
    none("names that say nothing", offending(files(".rs"), wrong));
}

#[test]
fn files_hold_one_idea() {
    let wrong = |path: &Path| code(path).lines().filter(|line| !line.trim().is_empty()).count() > 600;
    none("files of more than 600 lines of code", offending(files(".rs"), wrong));
}

#[test]
fn nothing_is_left_undone() {
    let marks = ["todo!(", "unimplemented!(", concat!("FIX", "ME"), concat!("XX", "X:")];
    let wrong = |path: &Path| path != Path::new(THIS) && marks.iter().any(|mark| read(path).contains(mark));
    none("unfinished code", offending(files(".rs"), wrong));
}

#[test]
fn the_tree_speaks_of_the_project_alone() {
    // Where packages are mirrored and where a checkout happens to lie is the machine's affair.
    let places = [concat!("/wo", "rk/"), concat!("deb.", "debian.org"), concat!("/root", "/")];
    let wrong = |path: &Path| {
        fs::read(root().join(path)).is_ok_and(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            places.iter().any(|place| text.contains(place))
        })
    };
    none("machine paths or mirror hosts", offending(files(""), wrong));
}
