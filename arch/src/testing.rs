//! Reads device trees back, for the tests of the machines that have one.

use std::io::Write;
use std::process::{Command, Stdio};

/// The tree as the reference compiler reads it, one line a property, each with the path of its node; it must find nothing wrong.
pub(crate) fn read_back(tree: &[u8]) -> Vec<String> {
    let mut dtc = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dtc runs (package device-tree-compiler)");
    dtc.stdin.take().unwrap().write_all(tree).unwrap();
    let output = dtc.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaints.is_empty(), "dtc: {complaints}");
    let mut path: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines().map(str::trim) {
        match line.strip_suffix(" {") {
            Some("/") => path.push(String::new()),
            Some(name) => path.push(name.to_owned()),
            None if line == "};" => drop(path.pop()),
            None if line.ends_with(';') => lines.push(format!("{}/{}", path.join("/"), line.trim_end_matches(';'))),
            None => {}
        }
    }
    lines
}
