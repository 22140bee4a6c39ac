//! Whole installations, each on a host of its own in a folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::Parser;

use super::{InstallArguments, UninstallArguments, manifests};

/// Debian's, for containerd 1.7.
const DEBIANS: &str = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      \
                       bin_dir = \"/usr/lib/cni\"\n";
const NEWER: &str = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'localhost/pause'\n";
const OF_2: &str = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]";
const OF_3: &str = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]";

#[derive(Parser)]
struct Install {
    #[command(flatten)]
    install: InstallArguments,
}

#[derive(Parser)]
struct Uninstall {
    #[command(flatten)]
    uninstall: UninstallArguments,
}

struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new(config: Option<&str>) -> Host {
        let host = Host { folder: tempfile::tempdir().unwrap() };
        for folder in ["etc", "bin", "opt"] {
            fs::create_dir(host.path(folder)).unwrap();
        }
        fs::write(host.path("opt/tatami"), "\x7fELF … containerd-shim-tatami-v2 …").unwrap();
        if let Some(text) = config {
            fs::write(host.path("etc/config.toml"), text).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|_| "(nothing)".to_owned())
    }

    fn words(&self, more: &[&str]) -> Vec<String> {
        let (config, bin) = (self.path("etc/config.toml"), self.path("bin"));
        let words = ["tatami", "--config", config.to_str().unwrap(), "--bin-dir", bin.to_str().unwrap()];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    /// What it says, or why not.
    fn install(&self, more: &[&str]) -> Result<String, String> {
        let line = Install::try_parse_from(self.words(&[&["--containerd"], more].concat())).unwrap();
        let mut out = Vec::new();
        let done = super::install(&line.install, &self.path("opt/tatami"), &mut out);
        done.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
    }

    fn uninstall(&self, more: &[&str]) -> Result<String, String> {
        let line = Uninstall::try_parse_from(self.words(more)).unwrap();
        let mut out = Vec::new();
        let done = super::uninstall(&line.uninstall, &self.path("opt/tatami"), &mut out);
        done.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
    }

    /// Every file and link on it, with what is in it.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match fs::read_link(&path) {
                    Ok(target) => found.push((path, target.display().to_string())),
                    Err(_) if path.is_dir() => folders.push(path),
                    Err(_) => found.push((path.clone(), fs::read_to_string(&path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn what_is_installed_is_taken_back_byte_for_byte() {
    let imports = format!("imports = [ 'other.toml' ] # mine\n{NEWER}");
    let own = format!("imports = ['conf.d/*.toml']\n{NEWER}");
    for config in
        [None, Some(DEBIANS), Some("version = 2"), Some(NEWER), Some(&*imports), Some(&*own), Some("version = 4")]
    {
        let host = Host::new(config);
        let before = host.files();
        let told = host.install(&["--print"]).unwrap();
        assert!(told.contains("would write") && told.contains("  + runtime_type"), "{told}");
        assert_eq!(host.files(), before, "printed only");
        let told = host.install(&[]).unwrap();
        assert!(told.contains("linked ") && told.ends_with("systemctl restart containerd\n"), "{told}");
        let installed = host.files();
        assert_eq!(host.install(&[]).unwrap(), "nothing to change\n");
        assert_eq!(host.files(), installed, "repeated");
        host.uninstall(&["--print"]).unwrap();
        assert_eq!(host.files(), installed, "printed only");
        let told = host.uninstall(&[]).unwrap();
        assert!(told.contains("removed ") && told.ends_with("systemctl restart containerd\n"), "{told}");
        assert_eq!(host.files(), before, "{config:?}");
        assert_eq!(host.uninstall(&[]).unwrap(), "nothing to change\n");
    }
}

#[test]
fn version_2_gets_a_section_where_cris_settings_are() {
    let host = Host::new(Some(DEBIANS));
    host.install(&[]).unwrap();
    let text = host.read("etc/config.toml");
    assert!(text.starts_with(DEBIANS) && text.contains(OF_2) && !text.contains("imports"), "{text}");
    let host = Host::new(Some("version = 2\nimports = ['a/*.toml']\n"));
    fs::create_dir(host.path("etc/a")).unwrap();
    for (name, text) in [("1.toml", DEBIANS), ("2.toml", DEBIANS), ("3.toml", "version = 2\n[grpc]\n")] {
        fs::write(host.path("etc/a").join(name), text).unwrap();
    }
    let before = host.files();
    host.install(&[]).unwrap();
    assert!(host.read("etc/a/2.toml").contains(OF_2));
    let changed = host.files().into_iter().filter(|file| !before.contains(file)).count();
    assert_eq!(changed, 3, "that file and two links");
    host.uninstall(&[]).unwrap();
    assert_eq!(host.files(), before);
}

#[test]
fn version_3_gets_a_drop_in_that_is_imported() {
    let host = Host::new(Some(NEWER));
    host.install(&["--sandboxer", "shim"]).unwrap();
    let dropped = host.read("etc/conf.d/tatami.toml");
    assert!(
        dropped.contains("\nversion = 3\n") && dropped.contains(OF_3) && dropped.contains("sandboxer = \"shim\""),
        "{dropped}"
    );
    assert!(
        dropped.contains("privileged_without_host_devices = true")
            && dropped.contains("pod_annotations = [\"io.katacontainers.*\"]")
    );
    let main = host.read("etc/config.toml");
    let import = format!("imports = [\"{}\"]", host.path("etc/conf.d/tatami*.toml").display());
    assert!(main.contains(&import), "{main}");
    let host = Host::new(Some(&format!("imports = ['conf.d/*.toml']\n{NEWER}")));
    host.install(&[]).unwrap();
    assert_eq!(host.read("etc/config.toml"), format!("imports = ['conf.d/*.toml']\n{NEWER}"));
}

#[test]
fn another_installation_takes_the_place_of_the_last() {
    let host = Host::new(Some(DEBIANS));
    let settings = host.path("opt/settings \"1\".toml");
    fs::write(&settings, "").unwrap();
    host.install(&["--configuration", settings.to_str().unwrap()]).unwrap();
    let text = host.read("etc/config.toml");
    let parsed: toml::Table = text.parse().unwrap();
    let runtime = &parsed["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["kata"];
    assert_eq!(runtime["options"]["ConfigPath"].as_str(), settings.to_str());
    assert_eq!(runtime["options"]["TypeUrl"].as_str(), Some("runtimeoptions.v1.Options"));
    // The operator goes over to version 3 meanwhile.
    fs::write(host.path("etc/config.toml"), text.replace("version = 2\n", "version = 3\n")).unwrap();
    host.install(&["--handler", "vm"]).unwrap();
    assert_eq!(host.read("etc/config.toml").matches("runtimes").count(), 0);
    assert!(host.read("etc/conf.d/tatami.toml").contains("runtimes.vm]"));
    host.uninstall(&[]).unwrap();
    assert_eq!(host.read("etc/config.toml"), DEBIANS.replace("version = 2\n", "version = 3\n"));
    assert!(
        host.install(&["--configuration", "/no/such"]).unwrap_err().contains("--configuration /no/such: is not a file")
    );
}

#[test]
fn what_is_added_to_a_file_of_ours_stays() {
    let host = Host::new(None);
    host.install(&[]).unwrap();
    let more = format!("{}[grpc]\naddress = '/x'\n", host.read("etc/config.toml"));
    fs::write(host.path("etc/config.toml"), more).unwrap();
    host.uninstall(&[]).unwrap();
    let left = host.read("etc/config.toml");
    assert!(left.ends_with("version = 2\n[grpc]\naddress = '/x'\n") && !left.contains("runtimes"), "{left}");
}

#[test]
fn what_is_not_ours_is_refused_and_stays() {
    let refused = |host: &Host, expected: &str| {
        let before = host.files();
        let told = host.install(&[]).unwrap_err();
        assert!(told.contains(expected), "{told}");
        assert_eq!(host.files(), before);
        host.uninstall(&[]).unwrap();
        assert_eq!(host.files(), before);
    };
    let host = Host::new(Some(DEBIANS));
    symlink("/opt/kata/bin/containerd-shim-kata-v2", host.path("bin/containerd-shim-kata-v2")).unwrap();
    refused(&host, "bin/containerd-shim-kata-v2 is a link to /opt/kata/bin/containerd-shim-kata-v2, which");
    let host = Host::new(Some(DEBIANS));
    fs::write(host.path("bin/containerd-shim-tatami-v2"), "#!/bin/sh\n").unwrap();
    refused(&host, "remove it, or choose another folder with --bin-dir");
    let host = Host::new(Some(NEWER));
    fs::create_dir(host.path("etc/conf.d")).unwrap();
    fs::write(host.path("etc/conf.d/tatami.toml"), "version = 3\n").unwrap();
    refused(&host, "conf.d/tatami.toml is a file, which");
    assert!(host.uninstall(&[]).unwrap().contains("note: "));
    for (text, line) in [(format!("{DEBIANS}{OF_2}\n"), 7), (format!("{NEWER}{OF_3}\n"), 4)] {
        refused(&Host::new(Some(&text)), &format!("config.toml:{line}: there is a runtime `kata` that"));
    }
}

#[test]
fn a_configuration_that_cannot_be_is_named() {
    let told = |text: &str| Host::new(Some(text)).install(&[]).unwrap_err();
    assert!(told("version = 2\n[plugins\n").contains("config.toml:2: "));
    assert!(told("version = 9\n").contains("config.toml:1: the configuration is of version 9"));
    assert!(told("[plugins.cri]\n").contains("version 1; give it `version = 2`"));
    assert!(told("version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = { x = 1 }\n").contains("without harm"));
    let host = Host::new(None);
    fs::create_dir(host.path("etc/config.toml")).unwrap();
    assert!(host.install(&[]).unwrap_err().contains("cannot read "));
}

#[test]
fn without_cri_there_are_links_alone() {
    let dockers = "disabled_plugins = [\"cri\"]\n";
    let host = Host::new(Some(dockers));
    let told = host.install(&[]).unwrap();
    assert!(told.contains("config.toml:1: CRI is disabled there") && !told.contains("restart"), "{told}");
    assert_eq!(host.read("etc/config.toml"), dockers);
    assert!(host.path("bin/containerd-shim-kata-v2").exists());
    let host = Host::new(Some("version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n"));
    assert!(host.install(&[]).unwrap().contains("note: "));
    assert!(host.read("etc/config.toml").contains(OF_2));
}

#[test]
fn links_of_ours_lead_to_the_binary_that_was_run_last() {
    let host = Host::new(None);
    let link = host.path("bin/containerd-shim-kata-v2");
    // As `make install` has it.
    symlink("../opt/tatami", &link).unwrap();
    symlink("/moved/away/tatami", host.path("bin/containerd-shim-tatami-v2")).unwrap();
    host.install(&[]).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../opt/tatami"));
    assert_eq!(fs::read_link(host.path("bin/containerd-shim-tatami-v2")).unwrap(), host.path("opt/tatami"));
    host.uninstall(&[]).unwrap();
    assert_eq!(fs::read_dir(host.path("bin")).unwrap().count(), 0);
}

#[test]
fn a_copy_is_made_renewed_and_removed() {
    let host = Host::new(None);
    let before = host.files();
    host.install(&["--copy"]).unwrap();
    assert_eq!(host.read("bin/tatami"), host.read("opt/tatami"));
    assert_eq!(fs::read_link(host.path("bin/containerd-shim-kata-v2")).unwrap(), host.path("bin/tatami"));
    assert_eq!(host.install(&["--copy"]).unwrap(), "nothing to change\n");
    fs::write(host.path("opt/tatami"), "\x7fELF newer containerd-shim-tatami-v2").unwrap();
    host.install(&["--copy"]).unwrap();
    assert_eq!(host.read("bin/tatami"), host.read("opt/tatami"));
    host.uninstall(&["--copy"]).unwrap();
    assert_eq!(host.files().len(), before.len());
    fs::write(host.path("bin/tatami"), "somebody's").unwrap();
    assert!(host.install(&["--copy"]).unwrap_err().contains("bin/tatami is a file or folder"));
    assert!(host.uninstall(&["--copy"]).unwrap().contains("bin/tatami stays"));
}

#[test]
fn manifests_name_the_handler_and_the_image() {
    let text = manifests::text("vm", "registry.example/tatami:1");
    assert!(!text.contains('@') && !text.contains('\t'), "{text}");
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    assert_eq!(kinds, ["RuntimeClass", "DaemonSet"]);
    assert!(text.contains("\nhandler: vm\n") && text.contains("image: \"registry.example/tatami:1\""));
    for words in text.lines().filter_map(|line| line.split_once("command: [")).map(|(_, words)| words) {
        let words: Vec<String> = serde_json::from_str(&format!("[{words}")).unwrap();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.split_at(2) {
            ([_, "install"], more) => {
                assert!(Install::try_parse_from([&["tatami"], more].concat()).is_ok(), "{more:?}")
            }
            ([_, "uninstall"], more) => {
                assert!(Uninstall::try_parse_from([&["tatami"], more].concat()).is_ok(), "{more:?}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_command_line_takes_one_of_two_things_and_plain_names() {
    let parse = |words: &[&str]| Install::try_parse_from([&["tatami"], words].concat()).is_ok();
    assert!(parse(&["--containerd"]) && parse(&["--manifests", "--handler", "kata-2"]));
    assert!(!parse(&[]) && !parse(&["--containerd", "--manifests"]) && !parse(&["--manifests", "--copy"]));
    for name in ["", "Kata", "a.b", "-a", "a-", "a\"b"] {
        assert!(!parse(&["--containerd", &format!("--handler={name}")]), "{name}");
    }
    assert!(!parse(&["--containerd", "--sandboxer", "other"]));
}
