//! Builds the guest in `guest/`, which is no cargo target: it is linked for a bare machine, where a kernel would lie.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    let out = std::env::var_os("OUT_DIR").expect("cargo says where");
    let guest = Path::new(&out).join("guest");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        // The test says so.
        std::fs::write(guest, "").expect("cargo's folder can be written");
        return;
    }
    let script = format!("link-arg=-Wl,-T,{}/guest/link.ld", env!("CARGO_MANIFEST_DIR"));
    let mut compiler = Command::new(std::env::var_os("RUSTC").expect("cargo says which"));
    compiler.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "hostile_guest"]);
    compiler.args(["-D", "warnings", "--target", &std::env::var("TARGET").expect("cargo says which")]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "strip=symbols",
        "relocation-model=static",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--build-id=none",
        &script,
    ] {
        compiler.args(["-C", option]);
    }
    let status = compiler.arg("-o").arg(guest).arg("guest/main.rs").status().expect("the compiler runs");
    assert!(status.success(), "the hostile guest does not compile: {status}");
}
