//! Linker options of the agent's binary.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A static PIE is mostly relative relocations; packed they take a tenth. Linkers that cannot pack them say so and go on.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
