//! What this runtime is, as `-v` tells people and `-info` tells containerd 2.

use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

/// As containerd shows it.
pub(super) const NAME: &str = "io.containerd.tatami.v2";

/// Writes a `RuntimeInfo` to standard output.
///
/// # Errors
/// When nobody reads it.
pub(super) fn print() -> anyhow::Result<()> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let info = RuntimeInfo { name: NAME.to_owned(), version: Some(version).into(), ..Default::default() };
    io::stdout().write_all(&info.write_to_bytes()?)?;
    Ok(())
}

/// Writes name and version to standard output.
///
/// # Errors
/// When nobody reads it.
pub(super) fn print_version() -> anyhow::Result<()> {
    writeln!(io::stdout(), "{NAME}:\n  Version:  {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
