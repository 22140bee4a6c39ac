//! What a container gets, against what `docker run` would give it.

use super::*;
use oci_spec::image::ConfigBuilder;
use oci_spec::runtime::{Capability, LinuxNamespace, LinuxNamespaceType};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n";
const GROUP: &str = "root:x:0:\naudio:x:29:anna\n";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn options() -> ContainerOptions {
    ContainerOptions {
        rootfs: "/run/tatami/shared/c/rootfs".into(),
        hostname: "kata".to_owned(),
        ..ContainerOptions::default()
    }
}

fn image() -> Config {
    ConfigBuilder::default().entrypoint(words("/entry -e")).cmd(words("default args")).build().unwrap()
}

fn build(image: &Config, options: &ContainerOptions) -> Result<Spec, SpecError> {
    container(Some(image), &Accounts::parse(PASSWD, GROUP), options)
}

fn process_of(image: &Config, options: &ContainerOptions) -> Process {
    build(image, options).unwrap().process().clone().unwrap()
}

fn args_of(entrypoint: Option<&str>, args: &str) -> Vec<String> {
    let options = ContainerOptions { entrypoint: entrypoint.map(str::to_owned), args: words(args), ..options() };
    process_of(&image(), &options).args().clone().unwrap()
}

#[test]
fn command_and_entrypoint_merge_as_dockers() {
    assert_eq!(args_of(None, ""), words("/entry -e default args"));
    assert_eq!(args_of(None, "my words"), words("/entry -e my words"));
    assert_eq!(args_of(Some("/other"), ""), words("/other"));
    assert_eq!(args_of(Some("/other"), "x"), words("/other x"));
    assert_eq!(args_of(Some(""), "x y"), words("x y"));
}

#[test]
fn no_command_at_all_is_an_error() {
    let cleared = ContainerOptions { entrypoint: Some(String::new()), ..options() };
    assert!(matches!(build(&image(), &cleared), Err(SpecError::NoCommand)));
    assert!(matches!(container(None, &Accounts::default(), &options()), Err(SpecError::NoCommand)));
    let empty_word = ContainerOptions { args: vec![String::new()], ..options() };
    assert!(matches!(container(None, &Accounts::default(), &empty_word), Err(SpecError::NoCommand)));
}

#[test]
fn environment_merges_image_and_caller_over_the_defaults() {
    let image =
        ConfigBuilder::default().cmd(words("x")).env(words("PATH=/image A=1 B=2 broken EQ=a=b")).build().unwrap();
    let options = ContainerOptions { env: words("B=3 C= A"), tty: true, ..options() };
    let env = process_of(&image, &options).env().clone().unwrap();
    assert_eq!(env, words("PATH=/image HOSTNAME=kata TERM=xterm B=3 EQ=a=b C= HOME=/root"));
}

#[test]
fn environment_without_an_image_has_the_defaults() {
    let options = ContainerOptions { args: words("x"), env: words("HOME=/elsewhere HOSTNAME=other"), ..options() };
    let spec = container(None, &Accounts::default(), &options).unwrap();
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    let path = format!("PATH={}", defaults::PATH);
    assert_eq!(env, [&path, "HOSTNAME=other", "HOME=/elsewhere"]);
    for bad in ["=x", ""] {
        let options = ContainerOptions { env: vec![bad.to_owned()], ..options.clone() };
        assert!(matches!(build(&image(), &options), Err(SpecError::Environment(_))), "{bad:?}");
    }
}

#[test]
fn the_callers_user_wins_and_brings_home_and_groups() {
    let image = ConfigBuilder::default().cmd(words("x")).user("4242:7").build().unwrap();
    let user = process_of(&image, &options()).user().clone();
    assert_eq!((user.uid(), user.gid()), (4242, 7));
    let process = process_of(&image, &ContainerOptions { user: Some("anna".to_owned()), ..options() });
    assert_eq!((process.user().uid(), process.user().gid()), (1000, 1000));
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[1000, 29][..]));
    assert!(process.env().as_ref().unwrap().contains(&"HOME=/home/anna".to_owned()));
    let error = build(&image, &ContainerOptions { user: Some("bob".to_owned()), ..options() }).unwrap_err();
    assert_eq!(error.to_string(), "unable to find user bob: no matching entries in passwd file");
}

#[test]
fn only_root_holds_capabilities() {
    let root = process_of(&image(), &options()).capabilities().clone().unwrap();
    let all = defaults::capabilities();
    assert_eq!(all.len(), 14);
    assert_eq!(root.bounding().as_ref(), Some(&all));
    assert_eq!(root.effective().as_ref(), Some(&all));
    assert!(!all.contains(&Capability::SysAdmin) && root.inheritable().as_ref().unwrap().is_empty());
    let anna = process_of(&image(), &ContainerOptions { user: Some("anna".to_owned()), ..options() });
    let anna = anna.capabilities().clone().unwrap();
    assert_eq!(anna.bounding().as_ref(), Some(&all));
    for set in [anna.effective(), anna.permitted(), anna.ambient(), anna.inheritable()] {
        assert!(set.as_ref().unwrap().is_empty());
    }
}

#[test]
fn working_folder_is_the_callers_the_images_or_the_root() {
    let image = ConfigBuilder::default().cmd(words("x")).working_dir("/image/./dir/").build().unwrap();
    let at = |workdir: Option<&str>| {
        let options = ContainerOptions { workdir: workdir.map(str::to_owned), ..options() };
        build(&image, &options).map(|spec| spec.process().clone().unwrap().cwd().clone())
    };
    assert_eq!(at(None).unwrap(), Path::new("/image/dir"));
    assert_eq!(at(Some("/a/../../b")).unwrap(), Path::new("/b"));
    assert!(matches!(at(Some("relative")), Err(SpecError::Workdir(text)) if text == "relative"));
    let spec = container(None, &Accounts::default(), &ContainerOptions { args: words("x"), ..options() }).unwrap();
    assert_eq!(spec.process().clone().unwrap().cwd(), Path::new("/"));
}

#[test]
fn volumes_are_bound_last_and_replace_a_default_mount() {
    let volume = |source: &str, destination: &str, read_only| Volume {
        guest_source: source.into(),
        destination: destination.into(),
        read_only,
    };
    let volumes = vec![volume("/shared/0", "/data", false), volume("/shared/1", "/dev/shm/", true)];
    let spec = build(&image(), &ContainerOptions { volumes, ..options() }).unwrap();
    let mounts = spec.mounts().clone().unwrap();
    let last: Vec<_> = mounts[mounts.len() - 2..].iter().map(|mount| mount.options().clone().unwrap()).collect();
    assert_eq!(last, [words("rbind rprivate rw"), words("rbind rprivate ro")]);
    let shm: Vec<_> = mounts.iter().filter(|mount| mount.destination() == Path::new("/dev/shm")).collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(shm[0].source().as_deref(), Some(Path::new("/shared/1")));
    for bad in ["relative", "/", "/a/.."] {
        let volumes = vec![volume("/shared/0", bad, false)];
        let error = build(&image(), &ContainerOptions { volumes, ..options() }).unwrap_err();
        assert!(matches!(error, SpecError::VolumeDestination(_)), "{bad}");
    }
}

#[test]
fn mounts_come_outer_first() {
    let spec = build(&image(), &options()).unwrap();
    let mounts = spec.mounts().clone().unwrap();
    for (position, mount) in mounts.iter().enumerate() {
        let later = mounts.iter().skip(position + 1);
        assert!(
            later.clone().all(|other| !mount.destination().starts_with(other.destination())),
            "{:?} comes before what it lies in",
            mount.destination()
        );
    }
    let sys = mounts.iter().find(|mount| mount.destination() == Path::new("/sys")).unwrap();
    assert!(sys.options().as_ref().unwrap().contains(&"ro".to_owned()));
}

#[test]
fn the_specification_is_isolated_and_survives_json() {
    let spec = build(&image(), &ContainerOptions { read_only: true, tty: true, ..options() }).unwrap();
    let linux = spec.linux().clone().unwrap();
    let kinds: Vec<_> = linux.namespaces().iter().flatten().map(LinuxNamespace::typ).collect();
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    for kind in [Mount, Pid, Ipc, Uts, Cgroup] {
        assert!(kinds.contains(&kind), "{kinds:?} lacks {kind}");
    }
    assert!(!kinds.contains(&Network));
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert!(!rules[0].allow() && rules[0].typ().is_none(), "the first rule denies everything");
    assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".to_owned()));
    assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".to_owned()));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(spec.process().as_ref().unwrap().terminal(), Some(true));
    let again: Spec = serde_json::from_slice(&serde_json::to_vec(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
}

#[test]
fn a_block_device_has_a_node_and_a_rule() {
    let device = Device { path: "/dev/x".into(), number: (0, 1), read_only: true, mode: 0o640, owner: (7, 8) };
    let spec = build(&image(), &ContainerOptions { devices: vec![device], ..options() }).unwrap();
    let linux = spec.linux().clone().unwrap();
    let node = linux.devices().as_ref().unwrap()[0].clone();
    assert_eq!((node.path().as_path(), node.major(), node.minor()), (Path::new("/dev/x"), 0, 1));
    assert_eq!((node.file_mode(), node.uid(), node.gid()), (Some(0o640), Some(7), Some(8)));
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    let rule = rules.last().unwrap();
    assert_eq!((rule.major(), rule.minor(), rule.access().as_deref()), (Some(0), Some(1), Some("rm")));
}
