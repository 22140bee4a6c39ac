//! Holds `deny.toml` true: every crate that is linked has a licence it allows, comes from the registry, and there is one
//! vm-memory. `cargo deny check` says the same where it is installed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value as Json;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The packages that end in a Linux build, as cargo resolves them from the lock file.
fn packages() -> Vec<Json> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Json = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Licences that `deny.toml` allows: for everyone, and for single crates.
struct Allowed {
    everyone: Vec<String>,
    exceptions: BTreeMap<String, Vec<String>>,
    clarified: BTreeMap<String, String>,
}

fn allowed() -> Allowed {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let deny: toml::Value = text.parse::<toml::Table>().expect("deny.toml is TOML").into();
    let licenses = &deny["licenses"];
    let strings = |value: &toml::Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let name = |value: &toml::Value| value["crate"].as_str().unwrap().to_owned();
    let tables = |key: &str| licenses[key].as_array().unwrap().clone();
    Allowed {
        everyone: strings(&licenses["allow"]),
        exceptions: tables("exceptions").iter().map(|item| (name(item), strings(&item["allow"]))).collect(),
        clarified: tables("clarify")
            .iter()
            .map(|item| (name(item), item["expression"].as_str().unwrap().to_owned()))
            .collect(),
    }
}

impl Allowed {
    /// Whether crate `name` under the SPDX expression `licence` may be used.
    fn permits(&self, name: &str, licence: &str) -> bool {
        let Ok(expression) = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX) else { return false };
        let extra = self.exceptions.get(name);
        expression.evaluate(|requirement| {
            let id = requirement.license.id().map(|id| id.name).unwrap_or_default();
            self.everyone.iter().chain(extra.into_iter().flatten()).any(|allowed| allowed == id)
        })
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().or(allowed.clarified.get(name).map(String::as_str));
        if !licence.is_some_and(|licence| allowed.permits(name, licence)) {
            wrong.push(format!("{name}: {}", licence.unwrap_or("no licence field")));
        }
    }
    assert!(wrong.is_empty(), "licences that deny.toml does not allow:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_refuses_what_is_not_listed() {
    let allowed = allowed();
    assert!(allowed.permits("any", "MIT OR GPL-3.0-only"));
    assert!(!allowed.permits("any", "GPL-2.0-only"));
    assert!(!allowed.permits("any", "MIT AND GPL-2.0-only"));
    assert!(!allowed.permits("any", "MPL-2.0"));
}

#[test]
fn everything_comes_from_the_registry_or_this_workspace() {
    for package in packages() {
        let source = package["source"].as_str();
        assert!(
            source.is_none_or(|source| source.starts_with("registry+")),
            "{} comes from {source:?}",
            package["name"]
        );
    }
}

#[test]
fn guest_memory_is_one_type_everywhere() {
    let versions: Vec<_> =
        packages().iter().filter(|p| p["name"] == "vm-memory").map(|p| p["version"].to_string()).collect();
    assert_eq!(versions.len(), 1, "vm-memory {versions:?}");
}
