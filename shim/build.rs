//! Puts the guest's kernel and initrd into the binary, if `TATAMI_EMBED` names the folder that has them (`make standalone`).

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TATAMI_EMBED");
    let folder = std::env::var_os("TATAMI_EMBED").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let text: String = [("KERNEL", "vmlinux"), ("INITRD", "initrd.img")]
        .map(|(name, file)| {
            let bytes = folder.as_deref().map_or_else(|| "None".to_owned(), |folder| embed(&folder.join(file)));
            format!("pub(super) const {name}: Option<&[u8]> = {bytes};\n")
        })
        .concat();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("embedded.rs"), text).expect("OUT_DIR is writable");
}

fn embed(file: &Path) -> String {
    println!("cargo:rerun-if-changed={}", file.display());
    let file = file.canonicalize().unwrap_or_else(|error| panic!("TATAMI_EMBED: {}: {error}", file.display()));
    format!("Some(include_bytes!({file:?}))")
}
