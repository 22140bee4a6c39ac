//! The platform that images must be for: Linux on this machine's architecture, in the names that images use.

/// This machine's architecture as Go, and so every image, names it.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        // Rust has one name for both byte orders; the guests are little endian.
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// `linux/amd64` and the like.
pub(super) fn host_platform() -> String {
    format!("linux/{}", host_architecture())
}
