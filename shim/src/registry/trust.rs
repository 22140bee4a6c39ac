//! Whose certificates are believed: the system's authorities, and those that docker's and containers' `certs.d` name for one registry.

use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, parse_pem};

/// Where distributions keep all authorities in one file (Debian and Alpine, Fedora, openSUSE).
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where a folder with a registry's name holds the certificates of its authorities.
const OWN: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Certificates of authorities that the registry `host` may be certified by, those in the folder `further` among them.
pub(super) fn authorities(host: &str, further: Option<&Path>) -> Vec<Certificate<'static>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()));
    let further = further.into_iter().flat_map(files);
    bundle.into_iter().chain(own_files(host)).chain(further).flat_map(|path| read(&path)).collect()
}

/// Whether somebody has said whom to believe about this registry.
pub(super) fn has_own(host: &str) -> bool {
    own_files(host).next().is_some()
}

fn own_files(host: &str) -> impl Iterator<Item = PathBuf> {
    OWN.iter().flat_map(move |folder| files(&Path::new(folder).join(host)))
}

/// The certificates of a folder, by their names.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
        .collect()
}

fn read(path: &Path) -> Vec<Certificate<'static>> {
    let pem = std::fs::read(path).unwrap_or_else(|error| {
        log::warn!("{}: {error}", path.display());
        Vec::new()
    });
    let found = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    found.collect()
}
