//! Who to be at a registry: the files that `docker login`, `podman login` and `skopeo login` write, and the helpers that they name.
//!
//! containers-auth.json(5); docker's config.json. Knows nothing of how a registry is told.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use serde::Deserialize;

/// A user, or a token that stands for one.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Name and password.
    Password(String, String),
    /// What a token is given for.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Password(user, _) => write!(f, "Password({user})"),
            Credentials::Identity(_) => write!(f, "Identity"),
        }
    }
}

/// A file or a helper that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error("credentials in {}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A helper.
    #[error("credentials for {registry}: docker-credential-{helper}, which {} names: {why}", path.display())]
    Helper {
        /// For which registry.
        registry: String,
        /// Its name.
        helper: String,
        /// Who names it.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Where credentials may be, the first that has any for a registry counts.
#[derive(Debug, Clone, Default)]
pub struct Files {
    paths: Vec<PathBuf>,
    /// The first of them was asked for by its name, and must be there.
    insists: bool,
}

/// What is of interest in such a file.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Files {
    /// The file that was asked for, or where Podman and Docker have theirs.
    pub fn new(asked: Option<&Path>, environment: impl Fn(&str) -> Option<PathBuf>) -> Files {
        let environment = |name: &str| environment(name).filter(|value| !value.as_os_str().is_empty());
        if let Some(asked) = asked.map(Path::to_path_buf).or_else(|| environment("REGISTRY_AUTH_FILE")) {
            return Files { paths: vec![asked], insists: true };
        }
        let home = environment("HOME").unwrap_or_else(|| PathBuf::from("/root"));
        let run = environment("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json"));
        let config = environment("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let docker = environment("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
        let paths = run.into_iter().chain([
            PathBuf::from("/run/containers/0/auth.json"),
            config.join("containers/auth.json"),
            docker.join("config.json"),
        ]);
        Files { paths: paths.collect(), insists: false }
    }

    /// Who to be at `registry` for `repository`.
    ///
    /// # Errors
    /// A file that cannot be read, a helper that fails.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, CredentialsError> {
        for path in &self.paths {
            let failed = |why: String| CredentialsError::File { path: path.clone(), why };
            let text = match std::fs::read(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !self.insists => continue,
                Err(error) => return Err(failed(error.to_string())),
            };
            let document: Document = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
            if let Some(found) = document.find(registry, repository, path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Document {
    fn find(&self, registry: &str, repository: &str, path: &Path) -> Result<Option<Credentials>, CredentialsError> {
        let helped = self.cred_helpers.iter().find(|(key, _)| bare(key) == registry).map(|(_, helper)| helper);
        if let Some(helper) = helped.or(self.creds_store.as_ref())
            && let Some(found) = ask(helper, registry, path)?
        {
            return Ok(Some(found));
        }
        // The longest of registry/namespace/…, then the registry alone.
        let full = format!("{registry}/{repository}");
        let mut scope = Some(full.as_str());
        while let Some(name) = scope {
            let entry = self.auths.iter().find(|(key, _)| bare(key) == name);
            if let Some((key, entry)) = entry {
                let why = |why: &str| CredentialsError::File { path: path.to_path_buf(), why: format!("{key}: {why}") };
                if let Some(found) = entry.credentials().map_err(why)? {
                    return Ok(Some(found));
                }
            }
            scope = name.rsplit_once('/').map(|(above, _)| above);
        }
        Ok(None)
    }
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::Identity(token.clone())));
        }
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credentials::Password(user.clone(), password.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth).map_err(|_| "auth is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "auth is not text")?;
        let (user, password) = text.split_once(':').ok_or("auth is not USER:PASSWORD")?;
        Ok(Some(Credentials::Password(user.to_owned(), password.trim_end_matches('\0').to_owned())))
    }
}

/// A key as containers' tools write it: docker writes some as addresses, and its own registry's as that of its first interface.
fn bare(key: &str) -> &str {
    let Some(address) = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) else {
        return if key == "index.docker.io" { "docker.io" } else { key };
    };
    match address.split('/').next().unwrap_or_default() {
        "index.docker.io" => "docker.io",
        host => host,
    }
}

/// Asks a helper (docker-credential-helpers' protocol: the registry on standard input, JSON on standard output).
fn ask(helper: &str, registry: &str, path: &Path) -> Result<Option<Credentials>, CredentialsError> {
    let failed = |why: String| {
        let (registry, helper, path) = (registry.to_owned(), helper.to_owned(), path.to_path_buf());
        CredentialsError::Helper { registry, helper, path, why }
    };
    if helper.contains('/') {
        return Err(failed("not a helper's name".to_owned()));
    }
    let known_as = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    // One that does not read knows without.
    let _ = child.stdin.take().map(|mut stdin| writeln!(stdin, "{known_as}"));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // In all helpers' words; it is no error, as there may be others to ask.
        let knows_none = said.contains("credentials not found");
        return if knows_none { Ok(None) } else { Err(failed(said.lines().next().unwrap_or("it failed").to_owned())) };
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::Identity(answer.secret),
        _ => Credentials::Password(answer.username, answer.secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        std::fs::write(&path, text).unwrap();
        (folder, Files::new(Some(&path), |_| None))
    }

    fn user(name: &str) -> Option<Credentials> {
        Some(Credentials::Password(name.to_owned(), "secret".to_owned()))
    }

    #[test]
    fn the_closest_entry_counts_and_dockers_own_is_known_by_its_old_address() {
        // a:secret, b:secret
        let (_folder, files) = files(
            r#"{"auths":{"r.example":{"auth":"YTpzZWNyZXQ="},"r.example/team":{"auth":"YjpzZWNyZXQ="},
                "https://index.docker.io/v1/":{"auth":"YTpzZWNyZXQ="},"t.example":{"identitytoken":"x"}}}"#,
        );
        assert_eq!(files.find("r.example", "app").unwrap(), user("a"));
        assert_eq!(files.find("r.example", "team/app").unwrap(), user("b"));
        assert_eq!(files.find("docker.io", "library/app").unwrap(), user("a"));
        assert_eq!(files.find("t.example", "app").unwrap(), Some(Credentials::Identity("x".to_owned())));
        assert_eq!(files.find("other.example", "r.example").unwrap(), None);
    }

    #[test]
    fn a_file_that_is_wrong_or_asked_for_and_missing_is_named() {
        let (_folder, wrong) = files("<html>");
        assert!(wrong.find("r", "a").unwrap_err().to_string().contains("auth.json"));
        let (_folder, wrong) = files(r#"{"auths":{"r.example":{"auth":"%%"}}}"#);
        assert!(wrong.find("r.example", "a").unwrap_err().to_string().contains("r.example: auth is not base64"));
        let missing = Files::new(Some(Path::new("/nowhere/auth.json")), |_| None);
        assert!(missing.find("r", "a").is_err());
        let usual = Files::new(None, |name| (name == "HOME").then(|| PathBuf::from("/nowhere")));
        assert_eq!(usual.find("no-such-registry.invalid", "a").unwrap(), None);
    }

    #[test]
    fn places_are_the_usual_ones() {
        let of = |name: &'static str, value: &'static str| {
            Files::new(None, move |asked| (asked == name).then(|| PathBuf::from(value))).paths
        };
        assert!(of("DOCKER_CONFIG", "/d").contains(&"/d/config.json".into()));
        assert!(of("XDG_RUNTIME_DIR", "/x").contains(&"/x/containers/auth.json".into()));
        assert_eq!(of("REGISTRY_AUTH_FILE", "/f"), [PathBuf::from("/f")]);
        assert!(of("HOME", "/h").contains(&"/h/.docker/config.json".into()));
    }

    #[test]
    fn a_helper_that_is_not_there_is_named() {
        let (_folder, files) = files(r#"{"credHelpers":{"r.example":"no-such-helper"}}"#);
        let error = files.find("r.example", "a").unwrap_err().to_string();
        assert!(error.contains("docker-credential-no-such-helper") && error.contains("auth.json"), "{error}");
        assert_eq!(files.find("other.example", "a").unwrap(), None);
    }
}
